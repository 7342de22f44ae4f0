"""`tuning.images.splitting`: honest splits, and augmentation that does what it says and nothing else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images import datasets, splitting
from tuning.images.batches import augment, normalise, to_tensors, train_batches
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import Labelled, image_digests
from tuning.images.splitting import Splits, make_splits

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(values: npt.ArrayLike) -> bytes:
    """Returns the values as a file of the IDX format."""
    array = np.asarray(values, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The contents that Fashion-MNIST's files now have: 6,000 train images of 2 x 3 pixels and 20 test images."""
    draw = np.random.default_rng(0)
    contents = {
        TRAIN_IMAGES: idx(draw.integers(0, 256, (6000, 2, 3))),
        TRAIN_LABELS: idx(np.arange(6000) % 10),
        TEST_IMAGES: idx(draw.integers(7, 200, (20, 2, 3))),
        TEST_LABELS: idx([0] * 5 + [9] * 15),
    }

    def read_files(files: object, names: tuple[str, ...], data_dir: Path | None = None) -> dict[str, bytes]:
        return {name: contents[name] for name in names}

    monkeypatch.setattr(datasets, "read_files", read_files)
    return contents


def class_counts(part: Labelled) -> list[int]:
    """Returns the number of images of each class."""
    return np.bincount(part.labels, minlength=len(CLASS_NAMES)).tolist()


def digests(part: Labelled) -> set[bytes]:
    """Returns the digests of the images, which must all be different."""
    found = set(image_digests(part.images).tolist())
    assert len(found) == len(part)
    return found


def test_files_become_images_with_a_channel_and_int64_labels(files: dict[str, bytes]) -> None:
    loaded = datasets.load_train("fashion-mnist")
    assert (loaded.images.shape, loaded.images.dtype) == ((6000, 1, 2, 3), np.uint8)
    assert (loaded.labels.shape, loaded.labels.dtype) == ((6000,), np.int64)
    assert loaded.images.tobytes() == files[TRAIN_IMAGES][16:]
    assert len(loaded) == 6000


def test_files_of_colour_images_keep_their_channels(files: dict[str, bytes]) -> None:
    files[TRAIN_IMAGES] = idx(np.arange(6000 * 3 * 4).reshape(6000, 3, 2, 2) % 256)
    splits = splitting.load_splits("fashion-mnist")
    assert splits.train.images.shape == (5400, 3, 2, 2)
    assert splits.channels == len(splits.mean) == len(splits.std) == 3


def test_load_splits_keeps_5000_valid_images_and_its_options(files: dict[str, bytes]) -> None:
    files[TRAIN_IMAGES] = idx(np.random.default_rng(0).integers(0, 256, (60_000, 2, 3)))
    files[TRAIN_LABELS] = idx(np.arange(60_000) % 10)
    splits = splitting.load_splits("fashion-mnist", seed=3, train_images=50)
    assert (len(splits.train), len(splits.valid)) == (50, 5000)
    assert np.bincount(splits.valid.labels).tolist() == [500] * 10
    assert np.bincount(splits.train.labels).tolist() == [5] * 10
    assert (splits.n_classes, splits.channels, splits.dataset) == (10, 1, "fashion-mnist")
    assert splits.split_hash != splitting.load_splits("fashion-mnist", seed=4, train_images=50).split_hash


def test_hash_test_tells_counts_and_digests_of_the_test_files(files: dict[str, bytes]) -> None:
    test = datasets.hash_test("fashion-mnist")
    pixels = np.frombuffer(files[TEST_IMAGES][16:], np.uint8).reshape(20, 1, 2, 3)
    assert test.digests.tolist() == image_digests(pixels).tolist()
    assert test.counts.tolist() == [5] + [0] * 8 + [15]
    assert test.shape == (20, 1, 2, 3)
    assert test.value_range == (pixels.min(), pixels.max())
    assert np.array_equal(datasets.load_test("fashion-mnist").images, pixels)


def test_different_numbers_of_images_and_labels_are_refused(files: dict[str, bytes]) -> None:
    files[TRAIN_LABELS] = idx(np.zeros(5999))
    expected = (
        f"{TRAIN_IMAGES} and {TRAIN_LABELS} must hold equally many items, but got 6000 images and 5999 labels. "
        "Fetch both files again."
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        datasets.load_train("fashion-mnist")


def test_a_label_that_no_class_has_is_refused(files: dict[str, bytes]) -> None:
    files[TEST_LABELS] = idx([0] * 19 + [10])
    with pytest.raises(
        UserError, match=f"^{TEST_LABELS} must hold labels below 10, but got 10. Fetch the file again.$"
    ):
        datasets.hash_test("fashion-mnist")


@pytest.mark.parametrize("load", [datasets.load_train, splitting.load_splits, datasets.hash_test, datasets.load_test])
def test_an_unknown_data_set_lists_the_known_ones_and_the_closest(load: Callable[[str], object]) -> None:
    expected = r"^--dataset must be .*fashion-mnist.*, or the path of your own images, but got 'fashion_mnst': no such"
    with pytest.raises(UserError, match=expected + r".*Did you mean 'fashion-mnist'\?$"):
        load("fashion_mnst")


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_names_its_classes_once_and_whose_it_is(name: str) -> None:
    known = DATASETS[name]
    assert len(set(known.class_names)) == len(known.class_names) > 1
    assert known.licence.endswith(".")


def test_splits_have_the_promised_sizes_and_every_class_its_share(splits: Splits) -> None:
    assert class_counts(splits.train) == [120] * 4
    assert class_counts(splits.valid) == [30] * 4


def test_no_image_is_in_both_splits_and_none_is_lost(splits: Splits) -> None:
    train, valid = digests(splits.train), digests(splits.valid)
    assert not train & valid
    assert train | valid == digests(patterned_images(600))


def test_labels_stay_with_their_images(splits: Splits) -> None:
    everything = patterned_images(600)
    label = dict(zip(image_digests(everything.images).tolist(), everything.labels.tolist(), strict=True))
    for part in (splits.train, splits.valid):
        assert [label[digest] for digest in image_digests(part.images).tolist()] == part.labels.tolist()


@pytest.mark.parametrize("valid_images", [60, 61, 62, 199])
def test_uneven_classes_are_split_in_proportion(valid_images: int) -> None:
    labels = np.repeat(np.arange(4), [300, 200, 70, 30])
    images = np.random.default_rng(0).integers(0, 256, (600, 1, 4, 4), np.uint8)
    parts = make_splits(Labelled(images, labels), "uneven", CLASS_NAMES, valid_images=valid_images)
    shares = np.array([300, 200, 70, 30]) * valid_images / 600
    assert len(parts.valid) == valid_images
    assert len(parts.train) == 600 - valid_images
    assert np.abs(class_counts(parts.valid) - shares).max() < 1


@pytest.mark.parametrize(
    ("n", "n_valid"),
    [(4, 1), (7, 3), (8, 4), (40, 4), (45, 4), (600, 60), (5000, 500), (5001, 500), (49_990, 4999), (60_000, 5000)],
)
def test_the_valid_split_is_a_tenth_with_each_class_and_5000_at_most(n: int, n_valid: int) -> None:
    everything = Labelled(np.zeros((n, 1, 1, 1), np.uint8), np.arange(n) % 4)
    parts = make_splits(everything, "few", CLASS_NAMES)
    assert (len(parts.valid), len(parts.train)) == (n_valid, n - n_valid)
    assert np.isfinite(parts.mean).all() and np.isfinite(parts.std).all()
    if n >= 8:
        assert min(class_counts(parts.valid)) > 0 and min(class_counts(parts.train)) > 0


@pytest.mark.parametrize("counts", [(100, 2, 2, 2), (2, 2, 2, 2), (1000, 3, 1, 0), (0, 30, 0, 2), (5, 1, 1, 1)])
def test_a_rare_class_is_in_both_splits_and_one_of_a_single_image_in_train(counts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    for seed in range(5):
        parts = make_splits(Labelled(images, labels), "rare", CLASS_NAMES, seed=seed)
        for count, train, valid in zip(counts, class_counts(parts.train), class_counts(parts.valid), strict=True):
            assert train + valid == count
            assert (train > 0) == (count > 0) and (valid > 0) == (count > 1)


def test_a_train_subset_has_an_image_of_each_class() -> None:
    labels = np.repeat(np.arange(4), [1000, 40, 20, 10])
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    parts = make_splits(Labelled(images, labels), "rare", CLASS_NAMES, train_images=6)
    assert class_counts(parts.train) == [3, 1, 1, 1]


@pytest.mark.parametrize(("n", "counted"), [(0, "0 images"), (1, "1 image"), (3, "3 images")])
def test_too_few_images_are_refused(n: int, counted: str) -> None:
    few = Labelled(np.zeros((n, 1, 2, 2), np.uint8), np.arange(n) % 4)
    with pytest.raises(UserError, match=f"^few has {counted}, too few to train on .*needs 4 images at least"):
        make_splits(few, "few", CLASS_NAMES)


@pytest.mark.parametrize("valid_images", [0, 599, 600, 5000])
def test_a_valid_split_that_leaves_nothing_to_train_on_is_refused(valid_images: int) -> None:
    with pytest.raises(UserError, match=f"^valid_images must be between 1 and 598, but got {valid_images}.$"):
        make_splits(patterned_images(600), "p", CLASS_NAMES, valid_images=valid_images)


def test_a_seed_repeats_its_split_and_another_seed_gives_another(splits: Splits) -> None:
    everything = patterned_images(600)
    again, other = (make_splits(everything, "patterns", CLASS_NAMES, seed=s, valid_images=120) for s in (0, 1))
    assert again.split_hash == splits.split_hash
    assert np.array_equal(again.train.images, splits.train.images)
    assert np.array_equal(again.valid.labels, splits.valid.labels)
    assert other.split_hash != splits.split_hash
    # Two random splits share a fifth of their valid images: 24 of 120, give or take 4.
    assert len(digests(other.valid) & digests(splits.valid)) < 50


def test_the_split_hash_sees_labels_and_pixels(splits: Splits) -> None:
    everything = patterned_images(600)
    labels, images = everything.labels.copy(), everything.images.copy()
    labels[[0, np.flatnonzero(labels != labels[0])[0]]] = labels[[np.flatnonzero(labels != labels[0])[0], 0]]
    images[0, 0, 0, 0] ^= 1
    for changed in (Labelled(everything.images, labels), Labelled(images, everything.labels)):
        hashed = make_splits(changed, "patterns", CLASS_NAMES, valid_images=120).split_hash
        assert hashed != splits.split_hash
    assert re.fullmatch("[0-9a-f]{12}", splits.split_hash)


def test_a_train_subset_is_stratified_and_leaves_the_valid_split_whole(splits: Splits) -> None:
    subset = make_splits(patterned_images(600), "patterns", CLASS_NAMES, train_images=100, valid_images=120)
    assert class_counts(subset.train) == [25] * 4
    assert digests(subset.train) < digests(splits.train)
    assert digests(subset.valid) == digests(splits.valid)
    assert subset.split_hash != splits.split_hash and subset.valid_hash == splits.valid_hash


@pytest.mark.parametrize("train_images", [4, 480])
def test_the_ends_of_train_images_are_accepted(train_images: int) -> None:
    subset = make_splits(patterned_images(600), "p", CLASS_NAMES, train_images=train_images, valid_images=120)
    assert class_counts(subset.train) == [train_images // 4] * 4


@pytest.mark.parametrize("train_images", [-1, 0, 3, 481])
def test_train_images_out_of_range_is_refused(train_images: int) -> None:
    with pytest.raises(UserError, match=f"^--train-images must be between 4 and 480, but got {train_images}.$"):
        make_splits(patterned_images(600), "p", CLASS_NAMES, train_images=train_images, valid_images=120)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_are_those_of_the_train_split_alone(channels: int) -> None:
    everything = patterned_images(600, channels=channels)
    images = everything.images // np.arange(1, channels + 1, dtype=np.uint8)[:, None, None]
    parts = make_splits(Labelled(images, everything.labels), "p", CLASS_NAMES, valid_images=120)
    pixels = parts.train.images.astype(np.float64) / 255
    assert parts.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), rel=1e-6)
    assert parts.std == pytest.approx(pixels.std(axis=(0, 2, 3)), rel=1e-6)
    assert parts.mean != pytest.approx(images.mean(axis=(0, 2, 3)) / 255, rel=1e-6)
    assert all(type(value) is float for value in parts.mean + parts.std)


def test_a_constant_channel_does_not_give_a_std_of_zero() -> None:
    black = Labelled(np.zeros((40, 1, 4, 4), np.uint8), np.arange(40) % 4)
    parts = make_splits(black, "black", CLASS_NAMES, valid_images=8)
    assert parts.std == (1e-3,)
    images, _ = to_tensors(parts.train, torch.device("cpu"))
    assert torch.equal(normalise(images, parts.mean, parts.std), torch.zeros(32, 1, 4, 4))


def test_digests_are_equal_for_equal_images_only() -> None:
    images = np.zeros((3, 1, 4, 4), np.uint8)
    images[2, 0, 3, 3] = 1
    first, second, third = image_digests(images)
    assert first == second != third
    assert len(first) == 32


def test_read_only_arrays_become_tensors_of_the_same_memory_without_a_warning() -> None:
    part = patterned_images(8)
    part.images.flags.writeable = part.labels.flags.writeable = False
    torch.set_warn_always(True)  # Else torch gives this warning once a process, perhaps before this test.
    try:
        with pytest.warns(UserWarning, match="not writable"):
            torch.from_numpy(part.images)
        images, labels = to_tensors(part, torch.device("cpu"))
    finally:
        torch.set_warn_always(False)
    assert images.data_ptr() == part.images.ctypes.data
    assert labels.data_ptr() == part.labels.ctypes.data
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


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
    batches = list(train_batches(images, labels, TrainConfig(batch_size=batch_size), torch.Generator().manual_seed(0)))
    assert [len(batch_labels) for _, batch_labels in batches] == sizes
    taken = torch.cat([batch_labels for _, batch_labels in batches])
    assert len(taken.unique()) == sum(sizes)
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images[taken])
    assert not torch.equal(taken, taken.sort().values)


def test_a_generator_repeats_its_batches_and_goes_on_to_others() -> None:
    images, labels = numbered(64)
    config = TrainConfig(batch_size=16, crop_padding=1, flip=True, erase=0.5)

    def epochs(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        both = [list(train_batches(images, labels, config, generator)) for _ in range(2)]
        return [torch.cat([batch for batch, _ in epoch]) for epoch in both]

    before = torch.get_rng_state()
    first, second = epochs(0)
    again, _ = epochs(0)
    other, _ = epochs(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_batch_of_an_epoch_has_its_own_augmentation() -> None:
    images = random_images(1).expand(64, 1, 8, 6)
    config = TrainConfig(batch_size=32, crop_padding=3)
    first, second = train_batches(images, torch.arange(64), config, torch.Generator().manual_seed(0))
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_gives_mean_0_and_std_1_in_channels_last(channels: int) -> None:
    parts = make_splits(patterned_images(600, channels=channels), "p", CLASS_NAMES, valid_images=120)
    images, _ = to_tensors(parts.train, torch.device("cpu"))
    normal = normalise(images, parts.mean, parts.std)
    assert normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert normal.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * channels, abs=1e-4)
    assert normal.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * channels, abs=1e-4)
    expected = (images[:, 0] / 255 - parts.mean[0]) / parts.std[0]
    torch.testing.assert_close(normal[:, 0], expected, rtol=1e-4, atol=1e-5)


def random_images(n: int, channels: int = 1, height: int = 8, width: int = 6) -> torch.Tensor:
    """Returns images without a black pixel, uint8 (n, channels, height, width)."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(1, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def draws(n: int, seed: int = 0) -> torch.Tensor:
    """Returns what decides an augmentation, uniform in [0, 1), (5, n)."""
    return torch.rand(5, n, generator=torch.Generator().manual_seed(seed))


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Returns the image (C, H, W) moved by so many pixels, black where it has come from."""
    moved = torch.zeros_like(image)
    height, width = image.shape[1:]
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def find_shift(image: torch.Tensor, augmented: torch.Tensor, reach: int) -> tuple[int, int] | None:
    """Returns by how much the image was moved, or None if it is not a shift of up to `reach` pixels."""
    steps = range(-reach, reach + 1)
    found = [(y, x) for y in steps for x in steps if torch.equal(shifted(image, y, x), augmented)]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_moves_each_image_by_at_most_its_padding(channels: int) -> None:
    images = random_images(360, channels)
    augmented = augment(images, TrainConfig(crop_padding=1), draws(360))
    assert (augmented.shape, augmented.dtype) == (images.shape, torch.uint8)
    shifts = [find_shift(*pair, reach=2) for pair in zip(images, augmented, strict=True)]
    counts = {shift: shifts.count(shift) for shift in set(shifts)}
    assert set(counts) == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert all(15 < count < 70 for count in counts.values())  # 40 each, give or take 6


def test_a_bright_pixel_reaches_every_place_within_the_padding_and_none_beyond() -> None:
    images = torch.zeros(2000, 2, 12, 10, dtype=torch.uint8)
    images[:, :, 6, 4] = 255
    augmented = augment(images, TrainConfig(crop_padding=3), draws(2000))
    first, second = augmented.unbind(1)
    assert torch.equal(first, second)
    number, row, column = first.nonzero(as_tuple=True)
    assert torch.equal(number, torch.arange(2000))
    assert first[number, row, column].unique().tolist() == [255]
    assert set(zip(row.tolist(), column.tolist(), strict=True)) == {(r, c) for r in range(3, 10) for c in range(1, 8)}


def test_the_largest_draw_stays_within_the_padding() -> None:
    images = random_images(2)
    extremes = torch.tensor([[0.0, 1 - 2**-24]]).expand(5, 2)
    first, last = augment(images, TrainConfig(crop_padding=4), extremes)
    assert find_shift(images[0], first, reach=4) == (4, 4)
    assert find_shift(images[1], last, reach=4) == (-4, -4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others(channels: int) -> None:
    images = random_images(400, channels)
    augmented = augment(images, TrainConfig(flip=True), draws(400))
    same = (augmented == images).flatten(1).all(1)
    mirrored = (augmented == images.flip(3)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 150 < mirrored.sum() < 250  # 200, give or take 10


def test_crop_and_flip_go_together() -> None:
    images = random_images(100)
    augmented = augment(images, TrainConfig(crop_padding=1, flip=True), draws(100))
    plain = [find_shift(*pair, reach=1) for pair in zip(images, augmented, strict=True)]
    mirrored = [find_shift(*pair, reach=1) for pair in zip(images.flip(3), augmented, strict=True)]
    assert all((one is None) != (other is None) for one, other in zip(plain, mirrored, strict=True))
    assert plain.count(None) > 20
    assert mirrored.count(None) > 20


@pytest.mark.parametrize(("erase", "side"), [(0.5, 3), (0.34, 2), (0.99, 6)])
def test_erase_blanks_a_square_that_the_border_may_clip(erase: float, side: int) -> None:
    images = random_images(1000, channels=3)
    before = images.clone()
    augmented = augment(images, TrainConfig(erase=erase), draws(1000))
    assert torch.equal(images, before)
    blank = augmented == 0
    assert torch.equal(blank.any(1), blank.all(1))  # All channels alike.
    assert torch.equal(augmented[~blank], images[~blank])
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(blank[:, 0].flatten(1).sum(1), rows * columns)  # A full rectangle each.
    assert rows.max() == columns.max() == side
    assert min(rows.min(), columns.min()) >= side // 2  # The centre is always in the image.
    assert blank.any(0).all()


def test_an_erased_square_at_the_centre_has_its_whole_side() -> None:
    augmented = augment(random_images(1, height=12, width=12), TrainConfig(erase=0.5), torch.full((5, 1), 0.5))
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[3:9, 3:9] = True
    assert torch.equal(augmented[0, 0] == 0, expected)


@pytest.mark.parametrize("values", [{}, {"erase": 0.01}])
def test_without_augmentation_nothing_changes(values: dict[str, Any]) -> None:
    images = random_images(20, channels=3)
    assert torch.equal(augment(images, TrainConfig(**values), draws(20)), images)


def test_draws_of_the_crop_do_not_depend_on_the_other_augmentations() -> None:
    images = random_images(50)
    cropped = augment(images, TrainConfig(crop_padding=2), draws(50))
    both = augment(images, TrainConfig(crop_padding=2, erase=0.5), draws(50))
    kept = both != 0
    assert torch.equal(both[kept], cropped[kept])
