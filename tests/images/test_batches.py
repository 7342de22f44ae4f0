"""`tuning.images.batches`: an epoch takes every image once, a seed repeats it, mixed batches say what is in them."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images

from tuning.base.config import TrainConfig
from tuning.images.batches import Batch, Tensors, normalise, to_tensors, train_batches
from tuning.images.splitting import make_splits


def numbered(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images uint8 (n, 3, 2, 2) whose pixels tell their number, and the numbers as labels."""
    numbers = torch.arange(n)
    pixels = torch.stack([numbers % 256, numbers // 256, numbers % 7], dim=1)
    return pixels[:, :, None, None].expand(n, 3, 2, 2).to(torch.uint8).contiguous(), numbers


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (96, 32, [32, 32, 32]),
        (112, 32, [32, 32, 32, 16]),  # Half a batch is kept,
        (111, 32, [32, 32, 32]),  # less is dropped.
        (300, 32, [32] * 9),
        (40, 32, [32]),
        (32, 32, [32]),
        (9, 32, [9]),  # A train split under half a batch is still one step.
    ],
)
def test_an_epoch_takes_every_image_once_and_drops_a_small_last_batch(
    n: int, batch_size: int, sizes: list[int]
) -> None:
    images, labels = numbered(n)
    batches = list(
        train_batches(Tensors(images, labels), TrainConfig(batch_size=batch_size), torch.Generator().manual_seed(0))
    )
    assert [len(batch.labels) for batch in batches] == sizes
    taken = torch.cat([batch.labels for batch in batches])
    assert len(taken.unique()) == sum(sizes)
    assert torch.equal(torch.cat([batch.images for batch in batches]), images[taken])
    assert not torch.equal(taken, taken.sort().values)


EVERYTHING: dict[str, Any] = {
    **{"crop_padding": 1, "flip": True, "erase": 0.5, "crop_scale": 0.3, "jitter": 0.5, "trivial_augment": True},
    **{"mixup": 0.5, "cutmix": 1.0},
}


@pytest.mark.parametrize(
    "augmentation", [{"crop_padding": 1, "flip": True, "erase": 0.5}, EVERYTHING, {"mixup": 0.5}, {"cutmix": 1.0}]
)
def test_a_generator_repeats_its_batches_and_goes_on_to_others(augmentation: dict[str, Any]) -> None:
    images, labels = numbered(64)
    config = TrainConfig(batch_size=16, **augmentation)

    def epochs(seed: int, n: int = 2) -> list[list[Batch]]:
        generator = torch.Generator().manual_seed(seed)
        return [list(train_batches(Tensors(images, labels), config, generator)) for _ in range(n)]

    def equal(one: list[Batch], other: list[Batch]) -> bool:
        pairs = zip(one, other, strict=True)
        return all(torch.equal(a.images, b.images) and a.share == b.share for a, b in pairs)

    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first, second = epochs(0)
    again, _ = epochs(0)
    other, _ = epochs(1)
    assert equal(first, again)
    assert not equal(first, second)
    assert not equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # type: ignore[index]  # noqa: NPY002


def test_batches_are_those_of_version_0_2_0() -> None:
    """To the bit, over two epochs; and the generator draws nothing that is not needed."""
    images = (torch.arange(40 * 8 * 6) * 37 % 251).to(torch.uint8).view(40, 1, 8, 6)
    config = TrainConfig(batch_size=16, crop_padding=2, flip=True, erase=0.4)
    generator, digest = torch.Generator().manual_seed(5), hashlib.sha256()
    for _ in range(2):
        for batch in train_batches(Tensors(images, torch.arange(40)), config, generator):
            assert batch[2:] == (None, 1.0)
            digest.update(batch.images.contiguous().numpy().tobytes() + batch.labels.numpy().tobytes())
    assert digest.hexdigest().startswith("617fe56c50b8")
    assert int(torch.randint(1000, (), generator=generator)) == 187


class Indexed:
    """Images that can only be indexed, as those of a file that is larger than memory."""

    device = torch.device("cpu")

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.shape, self.most = images, images.shape, 0

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, len(rows))
        return self.images[rows]


@pytest.mark.parametrize("augmentation", [{}, EVERYTHING])
def test_rows_of_larger_images_give_the_batches_of_their_own(augmentation: dict[str, Any]) -> None:
    images, labels = numbered(300)
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:70]
    config, larger = TrainConfig(batch_size=16, **augmentation), Indexed(images)
    seeds = (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    expected = list(train_batches(Tensors(images[rows], labels[rows]), config, seeds[0]))
    part = Tensors(larger, labels[rows], rows)  # type: ignore[arg-type]
    batches = list(train_batches(part, config, seeds[1]))
    assert larger.most == 16 and len(batches) == 4
    for ours, theirs in zip(batches, expected, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
        assert ours.share == theirs.share


def test_each_batch_of_an_epoch_has_its_own_augmentation() -> None:
    images = torch.arange(1, 49, dtype=torch.uint8).view(1, 1, 8, 6).expand(64, 1, 8, 6)
    config = TrainConfig(batch_size=32, crop_padding=3)
    first, second = train_batches(Tensors(images, torch.arange(64)), config, torch.Generator().manual_seed(0))
    assert not torch.equal(first.images, second.images)


def test_each_batch_of_an_epoch_has_its_own_share_and_its_own_kind_of_mix() -> None:
    """Images of one value each: mixup has two values between in each, cutmix two whole ones in one."""
    images = (torch.arange(2000) % 200).to(torch.uint8)[:, None, None, None].expand(-1, 1, 10, 10)
    config = TrainConfig(batch_size=8, mixup=1.0, cutmix=1.0)
    batches = list(train_batches(Tensors(images, torch.arange(2000) % 200), config, torch.Generator().manual_seed(0)))
    pasted = [(batch.images.flatten(1) != batch.images[:, 0, 0, :1]).any().item() for batch in batches]
    assert len({batch.share for batch in batches}) > 100
    assert 70 < sum(pasted) < 150  # About half of 250; a rectangle may also cover nothing, or all.


def test_every_operation_of_trivial_augment_has_its_turn_at_every_place() -> None:
    """A batch of 16 has no room for all 14 twice: which are twice in it changes from batch to batch."""
    images = torch.full((4000, 1, 4, 4), 100, dtype=torch.uint8)
    images[:, :, 0, 0] = 90
    config = TrainConfig(batch_size=8, trivial_augment=True)
    firsts = torch.stack(
        [b.images for b in train_batches(Tensors(images, torch.arange(4000)), config, torch.Generator())]
    )
    whole = (firsts == images[0]).flatten(2).all(2).float().mean(0)  # Identity and saturation at least, by place.
    assert whole.min() > 2 / 14 - 0.06 and whole.max() < 6 / 14


@pytest.mark.parametrize("others", [None, torch.arange(100, 111)])
@pytest.mark.parametrize(("asked", "sizes"), [(1, [11]), (3, [4, 4, 3]), (8, [3, 2, 2, 2, 2])])
def test_parts_of_a_batch_are_the_batch(others: torch.Tensor | None, asked: int, sizes: list[int]) -> None:
    batch = Batch(torch.arange(11)[:, None, None, None], torch.arange(11), others, 0.7)
    parts = list(batch.parts(asked))
    assert [len(part.images) for part in parts] == sizes
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert all(part.share == 0.7 and (part.others is None) == (others is None) for part in parts)
    if others is not None:
        assert torch.equal(torch.cat([part.others for part in parts if part.others is not None]), others)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_gives_mean_0_and_std_1_in_channels_last(channels: int) -> None:
    parts = make_splits(patterned_images(600, channels=channels), "p", CLASS_NAMES, valid_images=120)
    images, *_ = to_tensors(parts.train, torch.device("cpu"))
    normal = normalise(images, parts.mean, parts.std)
    assert normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert normal.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * channels, abs=1e-4)
    assert normal.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * channels, abs=1e-4)
    expected = (images[:, 0] / 255 - parts.mean[0]) / parts.std[0]
    torch.testing.assert_close(normal[:, 0], expected, rtol=1e-4, atol=1e-5)
