"""`tuning.images.mapped`: what was read of a mapped file leaves the process again."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tuning.base.config import TrainConfig
from tuning.images import datasets, mapped
from tuning.images.batches import to_tensors, train_batches
from tuning.images.datasets import Labelled
from tuning.training.evaluation import predict

N, SHAPE = 20_000, (3, 32, 32)  # 61 MB.


def resident(path: Path) -> int:
    """Returns the bytes of a file that this process has mapped and in memory."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    sizes = [re.search(r"^Rss:\s+(\d+) kB$", part, re.MULTILINE) for part in parts if str(path) in part]
    return sum(int(size[1]) * 1024 for size in sizes if size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.random.default_rng(0).integers(0, 256, (N, *SHAPE), dtype=np.uint8).tofile(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def part(path: Path, monkeypatch: pytest.MonkeyPatch) -> Labelled:
    monkeypatch.setattr(datasets, "BYTES_AT_ONCE", 1 << 20)
    return Labelled(np.memmap(path, np.uint8, "r", shape=(N, *SHAPE)), np.arange(N) % 3, np.arange(N)[::-1].copy())


needs_smaps = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")


@needs_smaps
def test_a_pass_over_all_images_leaves_few_of_them_in_memory(part: Labelled, path: Path) -> None:
    whole = part.pixels().copy()
    assert resident(path) > 60_000_000
    mapped.give_back(mapped.file_of(part.images))
    start = most = 0
    for images in part.blocks():
        assert (images == whole[start : start + len(images)]).all()
        start += len(images)
        most = max(most, resident(path))
    assert start == N and most < 20_000_000


@needs_smaps
def test_training_and_labelling_take_images_from_the_file_and_map_none(part: Labelled, path: Path) -> None:
    class Mean(torch.nn.Module):
        side = 0

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images.mean((2, 3)), images.mean((2, 3))

    tensors, most, seen = to_tensors(part, torch.device("cpu")), 0, 0
    for batch in train_batches(tensors, TrainConfig(batch_size=64), torch.Generator().manual_seed(0)):
        seen += len(batch.labels)
        most = max(most, resident(path))
    assert seen == N and most == 0
    logits, _ = predict(Mean(), tensors, (0.0,), (1.0,))
    assert len(logits) == N and resident(path) == 0
    torch.testing.assert_close(logits, torch.from_numpy(part.pixels()).float().mean((2, 3)) / 255)


def test_only_a_mapping_is_found(part: Labelled) -> None:
    assert mapped.file_of(part.images[5:]) is mapped.file_of(part.images) is not None
    assert mapped.file_of(part.pixels(slice(3))[:2].copy()) is None
    mapped.give_back(None)


def test_a_file_that_was_cut_while_it_is_read_is_named(part: Labelled, path: Path) -> None:
    tensors = to_tensors(part, torch.device("cpu"))
    assert tensors.at(slice(0, 0)).shape == (0, *SHAPE)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match=r"images was cut while it was read\.$"):
        tensors.at(slice(3))
