"""`tuning.images.splitting`: honest splits."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import CLASS_NAMES, patterned_images

from tuning.base.errors import UserError
from tuning.images import datasets, splitting
from tuning.images.batches import normalise, to_tensors
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
    images, *_ = to_tensors(parts.train, torch.device("cpu"))
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
        images, labels, *_ = to_tensors(part, torch.device("cpu"))
    finally:
        torch.set_warn_always(False)
    assert images.data_ptr() == part.images.ctypes.data
    assert labels.data_ptr() == part.labels.ctypes.data
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
