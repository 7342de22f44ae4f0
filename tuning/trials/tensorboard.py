"""TensorBoard's events of each trial: a scalar of each number that it reports, and its hyperparameters at the end."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

from ray import tune

from tuning.trials.schedulers import METRIC

LEFT_OUT = {"pid", "timestamp", "time_total_s", "training_iteration", METRIC}


class TensorBoard(tune.Callback):
    """Writes events into the folders of trials, under the names that Ray's own callback uses ("ray/tune/...").

    Ray's callback imports torch, and makes the writers before the first epoch, when the import takes a core from the
    workers that start.
    """

    def __init__(self) -> None:
        self._writers: dict[str, Any] = {}
        self._last: dict[str, dict[str, float]] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Writes an epoch; the file has it some seconds later."""
        if trial.trial_id not in self._writers:
            with without_torch():
                from tensorboardX import SummaryWriter
            trial.init_local_path()
            self._writers[trial.trial_id] = SummaryWriter(trial.local_path, flush_secs=30)
        writer, step = self._writers[trial.trial_id], result["training_iteration"]
        values = {f"ray/tune/{name}": value for name, value in result.items() if name not in LEFT_OUT}
        values = {name: v for name, v in values.items() if isinstance(v, int | float) and not math.isnan(v)}
        for name, value in values.items():
            writer.add_scalar(name, value, global_step=step)
        self._last[trial.trial_id] = values
        writer.flush()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Writes the hyperparameters beside the last epoch, and closes the file."""
        writer = self._writers.pop(trial.trial_id, None)
        if writer is None:
            return
        from tensorboardX.summary import hparams

        config = {f"config/{name}": v for name, v in trial.config["config"].items() if isinstance(v, str | int | float)}
        config |= {name: trial.config[name] for name in ("trial", "seed")}
        for summary in hparams(config, self._last.pop(trial.trial_id)):
            writer.file_writer.add_summary(summary)
        writer.close()

    on_trial_error = on_trial_complete


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Has an import of torch fail meanwhile, unless it is imported; nothing in the search's own process needs it.

    tensorboardX 2.6 imports torch (1.5 s and 200 MB) for the type of an argument, and does without where it is absent.
    That None in `sys.modules` stops an import is a rule of the language.
    """
    known = sys.modules.get("torch")
    if known is None:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if known is None:
            del sys.modules["torch"]
