"""Events for TensorBoard: what is in them, and what writing them does not import."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tuning.trials.tensorboard import TensorBoard


def test_each_epoch_is_in_the_file_and_the_hyperparameters_at_the_end(tmp_path: Path) -> None:
    callback, config = TensorBoard(), {"lr": 0.1, "arch": "resnet8", "width": None}
    trial: Any = SimpleNamespace(trial_id="a", local_path=str(tmp_path), init_local_path=lambda: None)
    trial.config = {"config": config, "trial": 3, "seed": 5}
    for epoch in (1, 2):
        result = {"training_iteration": epoch, "valid_accuracy": epoch / 4, "loss": float("nan"), "error": "", "pid": 1}
        callback.on_trial_result(epoch, [], trial, result)
    callback.on_trial_complete(3, [], trial)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("ray/tune/valid_accuracy")] == [(1, 0.25), (2, 0.5)]
    assert events.Tags()["scalars"] == ["ray/tune/valid_accuracy"]
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"config/arch" in written and b"resnet8" in written and b"config/width" not in written
    callback.on_trial_complete(3, [], SimpleNamespace(trial_id="that reported nothing"))


def test_tensorboardx_can_be_imported_without_torch_and_torch_after_it() -> None:
    program = (
        "import sys\nfrom tuning.trials.tensorboard import without_torch\n"
        "with without_torch():\n    import tensorboardX\n"
        "assert 'torch' not in sys.modules, 'tensorboardX imports torch: see tuning/trials/tensorboard.py'\n"
        "import torch\nwith without_torch():\n    assert sys.modules['torch'] is torch\n"
        "assert sys.modules['torch'] is torch"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
