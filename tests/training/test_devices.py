"""CPU and GPU give the same numbers within tolerance; where there is no GPU, the CPU is compared with itself."""

import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import CLASS_NAMES, patterned_images

from tuning.base import machine
from tuning.base.config import TrainConfig
from tuning.base.registries import OPTIMIZERS
from tuning.images.augmentation import N_DRAWS, N_PHOTO_DRAWS, augment
from tuning.images.batches import Batch, Tensors, normalise, to_tensors, train_batches
from tuning.images.splitting import Splits, make_splits
from tuning.training.evaluation import evaluate
from tuning.training.fit import Training, fit

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
PHOTOS = {
    **{"batch_size": 16, "crop_scale": 0.5, "jitter": 0.4, "trivial_augment": True, "erase": 0.3},
    **{"mixup": 0.5, "cutmix": 1.0},
}
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Keeps a GPU from rounding fp32 to TF32, whose ten bits would need a tolerance that hides mistakes."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def augmented(tiny: TrainConfig) -> TrainConfig:
    return tiny.model_copy(update={"crop_padding": 2, "flip": True, "erase": 0.3, "ema_decay": 0.9})


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_the_same_to_the_bit(splits: Splits, augmented: TrainConfig, device: str) -> None:
    def batches(device: torch.device) -> list[Batch]:
        images, labels, _ = to_tensors(splits.train, device)
        return list(train_batches(Tensors(images, labels), augmented, torch.Generator().manual_seed(3)))

    for theirs, ours in zip(batches(CPU), batches(torch.device(device)), strict=True):
        assert ours.images.device.type == device
        assert torch.equal(theirs.images, ours.images.cpu()) and torch.equal(theirs.labels, ours.labels.cpu())
        scaled = normalise(ours.images, splits.mean, splits.std).cpu()
        torch.testing.assert_close(scaled, normalise(theirs.images, splits.mean, splits.std))


@pytest.mark.parametrize("images_on", DEVICES)
@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_photos_are_the_same_but_for_rounding(device: str, images_on: str) -> None:
    """Also where the images stay in a CPU's memory, as those of a memory-mapped file do."""
    parts = make_splits(patterned_images(90, channels=3), "photos", CLASS_NAMES, valid_images=20)

    def batches(images_on: str, labels_on: str) -> list[Batch]:
        (images, *_), (_, labels, _) = (
            to_tensors(parts.train, torch.device(where)) for where in (images_on, labels_on)
        )
        return list(train_batches(Tensors(images, labels), TrainConfig(**PHOTOS), torch.Generator().manual_seed(3)))

    for theirs, ours in zip(batches("cpu", "cpu"), batches(images_on, device), strict=True):
        assert ours.images.device.type == ours.labels.device.type == device
        difference = (theirs.images.int() - ours.images.cpu().int()).abs()
        # A level where .5 is rounded the other way; posterize and solarize make more of it, in few pixels.
        assert (difference > 1).float().mean() < 0.01
        assert torch.equal(theirs.labels, ours.labels.cpu()) and theirs.share == ours.share


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("device", DEVICES)
def test_training_gives_the_same_losses(splits: Splits, augmented: TrainConfig, device: str, optimizer: str) -> None:
    config = augmented.model_copy(update={"optimizer": optimizer, "learning_rate": 0.01})
    trainings = [Training(config, splits, seed=1, device=where) for where in ("cpu", device)]
    for ours, theirs in zip(*(fit(training) for training in trainings), strict=True):
        assert theirs.train_loss == pytest.approx(ours.train_loss, rel=1e-2)
        assert theirs.valid_loss == pytest.approx(ours.valid_loss, rel=2e-2)
        assert theirs.valid_accuracy == pytest.approx(ours.valid_accuracy, abs=0.03)
    model = trainings[0].best_model()
    scores, features = evaluate(model, splits.valid, splits)
    again, same = evaluate(model.to(device), splits.valid, splits, device=device)
    torch.testing.assert_close(again, scores, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(same, features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_goes_from_device_to_device(splits: Splits, tiny: TrainConfig, device: str) -> None:
    first = Training(tiny, splits, seed=1, device=device)
    first.run_epoch()
    moved = Training(tiny, splits, seed=1)
    moved.load_state_dict(copy.deepcopy(first.state_dict()))
    assert moved.run_epoch().train_loss == pytest.approx(first.run_epoch().train_loss, rel=1e-2)


@needs_gpu
def test_bf16_on_a_gpu_learns_what_fp32_does(splits: Splits, tiny: TrainConfig) -> None:
    precisions = [tiny.model_copy(update={"precision": precision}) for precision in ("fp32", "bf16")]
    [(*_, fp32), (*_, bf16)] = [list(fit(Training(one, splits, seed=1, device="cuda"))) for one in precisions]
    assert bf16.train_loss == pytest.approx(fp32.train_loss, rel=0.1)


@needs_gpu
def test_a_process_gets_its_share_of_a_gpus_memory_and_no_more() -> None:
    try:
        machine.limit_gpu_memory(0.1)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(machine.gpu_memory()[0] // 8, dtype=torch.uint8, device="cuda")
    finally:
        machine.limit_gpu_memory(1.0)


@needs_gpu
def test_no_step_of_an_epoch_waits_for_the_gpu(splits: Splits, augmented: TrainConfig) -> None:
    training = Training(augmented, splits, seed=1, device="cuda")
    training.run_epoch()
    photos = TrainConfig(**PHOTOS)
    batches = [
        *train_batches(training._train, augmented, training._generator),
        *train_batches(training._train, photos, training._generator),
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            for config in (augmented, photos):
                draws = torch.rand(N_DRAWS + N_PHOTO_DRAWS, len(batch.labels), device="cuda")
                augment(batch.images, config, draws)
            training._gradients(batch)
            training._optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# On a machine with a GPU and nothing but torch, numpy and pydantic the benchmark runs, too.
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("ray", "optuna", "typer"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(ABSENT)
    paths = [str(folder), str(BENCHMARK.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(BENCHMARK), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_with_torch_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"width": 4, "image_size": 8, "epochs": 2}))
    size = ["--device", "cpu", "--train-images", "300", "--epochs", "1", "--networks", "resnet8-16"]
    size += ["--side-by-side", "2", "--recipe", str(tmp_path / "recipe.json"), "--target", "0.99", "0.01"]
    done = bench(tmp_path, *size, "--out", str(tmp_path / "gpu.csv"))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "gpu.csv").read_text().splitlines()))
    assert [row["what"].split(",")[0] for row in rows] == ["resnet8-16", "1.00% valid accuracy", "99.00% not reached"]
    assert rows[0]["processes"] == "2" and float(rows[0]["images_per_second"]) > 50
    assert [row["epochs"] for row in rows] == ["", "1", "2"]
    assert "resnet8-16" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_benchmark_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = bench(tmp_path)
    assert done.returncode == 2 and "no GPU that torch can use" in done.stderr
