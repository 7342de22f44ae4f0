"""`tuning.images.augmentation`: what it says and nothing else, as torchvision does it where it has it, too."""

import colorsys
import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from tuning.base.config import TrainConfig
from tuning.images.augmentation import N_DRAWS, N_PHOTO_DRAWS, OPERATIONS, augment, mix, recoloured


def random_images(n: int, channels: int = 1, height: int = 8, width: int = 6) -> torch.Tensor:
    """Returns images without a black pixel, uint8 (n, channels, height, width)."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(1, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def draws(n: int, seed: int = 0) -> torch.Tensor:
    """Returns what decides an augmentation, uniform in [0, 1), (14, n)."""
    return torch.rand(N_DRAWS + N_PHOTO_DRAWS, n, generator=torch.Generator().manual_seed(seed))


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Returns the image (C, H, W) moved by so many pixels; beyond its border a gray one is black, others mirror."""
    pad, (height, width) = 4, image.shape[1:]
    padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), "constant" if len(image) == 1 else "symmetric")
    return torch.from_numpy(padded[:, pad - down :, pad - right :][:, :height, :width])


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("erase", "side"), [(0.5, 3), (0.34, 2), (0.99, 6)])
def test_erase_blanks_a_square_that_the_border_may_clip(erase: float, side: int, channels: int) -> None:
    """A gray image gets black, one of colours its mean colour."""
    images = random_images(1000, channels)
    before = images.clone()
    augmented = augment(images, TrainConfig(erase=erase), draws(1000))
    assert torch.equal(images, before)
    mean = images.float().mean((2, 3), keepdim=True).round().to(torch.uint8) if channels == 3 else 0
    blank = augmented == torch.zeros_like(images) + mean
    blank = blank.all(1, keepdim=True)
    expected = torch.where(blank, torch.zeros_like(images) + mean, images)
    assert torch.equal(augmented, expected)
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


def test_a_shift_beyond_the_image_mirrors_it_as_often_as_it_takes() -> None:
    images = torch.tensor([10, 20], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    for right, expected in ((0.99, [10, 20]), (0.92, [10, 10]), (0.85, [20, 10]), (0.8, [20, 20]), (0.0, [10, 20])):
        draw = torch.tensor([0.5, right, 0, 0, 0])[:, None]
        moved = augment(images, TrainConfig(crop_padding=8), draw)
        assert moved[0, 0, 0].tolist() == expected, right


def test_draws_of_the_crop_do_not_depend_on_the_other_augmentations() -> None:
    images = random_images(50)
    cropped = augment(images, TrainConfig(crop_padding=2), draws(50))
    both = augment(images, TrainConfig(crop_padding=2, erase=0.5), draws(50))
    kept = both != 0
    assert torch.equal(both[kept], cropped[kept])


def photo(n: int, channels: int = 3, height: int = 24, width: int = 18) -> torch.Tensor:
    """Returns smooth images, as photos are, without the darkest and brightest values: uint8 (n, C, H, W)."""
    coarse = torch.randint(60, 196, (n, channels, 5, 4), generator=torch.Generator().manual_seed(7)).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return smooth.clamp(40, 215).round().to(torch.uint8)


def middle(n: int) -> torch.Tensor:
    """Returns draws that change nothing: factors are 1, strengths 0, and no crop, shift or flip."""
    return torch.full((N_DRAWS + N_PHOTO_DRAWS, n), 0.5)


def close(ours: torch.Tensor, theirs: torch.Tensor, levels: int = 1) -> bool:
    """Returns whether pixels differ by so many levels at most; torchvision cuts fractions off, and ours rounds."""
    return int((ours.int() - theirs.int()).abs().max()) <= levels


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 18), (1, 24, 18), (3, 16, 40)])
def test_a_resized_crop_is_torchvisions(channels: int, height: int, width: int) -> None:
    """At the border of the crop ours goes on into the image, where torchvision has nothing: that is left out."""
    least, n = 0.2, 30
    images, draw = photo(n, channels, height, width), draws(n, seed=3)
    cropped = augment(images, TrainConfig(crop_scale=least), draw)
    assert (cropped.shape, cropped.dtype) == (images.shape, torch.uint8)
    stretches = []
    for image, ours, (area, aspect, down, right) in zip(images, cropped, draw[5:9].T.tolist(), strict=True):
        area = 1 - (1 - least) * area
        stretch = math.exp((2 * aspect - 1) * min(-math.log(area), math.log(4 / 3)))
        stretches.append(stretch)
        high, wide = height * math.sqrt(area / stretch), width * math.sqrt(area * stretch)
        top, left = down * (height - high), right * (width - wide)
        # Enlarged 16 times, the crop begins and ends on whole pixels, near enough.
        large = functional.resize(image, [16 * height, 16 * width], InterpolationMode.BILINEAR)
        box = [round(16 * side) for side in (top, left, high, wide)]
        theirs = functional.resized_crop(large, *box, [height, width], InterpolationMode.BILINEAR, antialias=False)
        assert close(ours[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], levels=3)
    assert 3 / 4 <= min(stretches) < 0.85 and 1.2 < max(stretches) <= 4 / 3


def test_crops_keep_at_least_their_share_and_reach_every_corner() -> None:
    """Each pixel says where it is from, so that a crop's area and place can be read off it."""
    n, side = 4000, 32
    ramp = (torch.arange(side) * 8).to(torch.uint8)
    images = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side)])[None].expand(n, 2, side, side)
    cropped = augment(images, TrainConfig(crop_scale=0.25), draws(n)).float() / 8
    high, wide = ((cropped[:, c].amax((1, 2)) - cropped[:, c].amin((1, 2)) + 1) / side for c in (0, 1))
    area, stretch = high * wide, wide / high
    assert area.min() > 0.22 and area.max() > 0.95
    assert area.mean().item() == pytest.approx(0.625, abs=0.03)  # Uniform in [0.25, 1].
    assert 0.70 < stretch.min() < 0.80 and 1.25 < stretch.max() < 1.42
    assert stretch.log().mean().item() == pytest.approx(0, abs=0.02)
    for c in (0, 1):
        assert cropped[:, c].amin((1, 2)).min() == 0 and cropped[:, c].amax((1, 2)).max() == 31
        assert cropped[:, c].mean().item() == pytest.approx(15.5, abs=0.2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.3, 0.8, 1.5, 2.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_torchvisions_do(name: str, factor: float, channels: int) -> None:
    images, one = photo(5, channels), torch.ones(5)
    factors = {"brightness": one, "contrast": one, "saturation": one} | {name: one * factor}
    ours = recoloured(images.float(), **factors, turns=0 * one)
    theirs = torch.stack([getattr(functional, f"adjust_{name}")(image, factor) for image in images])
    assert close(ours.clamp(0, 255), theirs)
    assert (channels == 1 and name == "saturation") or not close(ours.clamp(0, 255), images, levels=9)


def test_all_factors_together_are_torchvisions_one_after_the_other() -> None:
    """Images of middle values, which are not clamped between the steps."""
    images, factors = (photo(6).float() / 4 + 96).to(torch.uint8), {"brightness": 1.2, "contrast": 0.7}
    factors |= {"saturation": 1.4}
    ours = recoloured(images.float(), *(torch.full((6,), factor) for factor in factors.values()), torch.zeros(6))
    theirs = images
    for name, factor in factors.items():
        theirs = getattr(functional, f"adjust_{name}")(theirs, factor)
    assert close(ours, theirs, levels=3)


@pytest.mark.parametrize(("turns", "hue"), [(0.0, 0.0), (1 / 3, 1 / 3), (-1 / 3, -1 / 3), (1.0, 0.0)])
def test_hues_turn_as_in_hsv_where_both_are_exact(turns: float, hue: float) -> None:
    images, one = photo(5), torch.ones(5)
    ours = recoloured(images.float(), one, one, one, one * turns)
    assert close(ours, functional.adjust_hue(images, hue))


def test_hues_turn_the_right_way_and_leave_grays() -> None:
    red, one = torch.tensor([220.0, 60, 60]).view(1, 3, 1, 1), torch.ones(1)
    turned = recoloured(red, one, one, one, one * 0.1).flatten().tolist()
    hue, _, _ = colorsys.rgb_to_hsv(*(value / 255 for value in turned))
    assert hue == pytest.approx(0.1, abs=0.02) and sum(turned) == pytest.approx(340, abs=0.01)
    gray = torch.full((1, 3, 4, 4), 99.0)
    torch.testing.assert_close(recoloured(gray, one, one, one, one * 0.2), gray)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_changes_each_image_by_up_to_its_strength(channels: int) -> None:
    images, n = torch.full((2000, channels, 4, 4), 100, dtype=torch.uint8), 2000
    grays = augment(images, TrainConfig(jitter=0.4), draws(n))[:, 0, 0, 0]  # Of plain gray only brightness changes.
    assert grays.min() == 60 and grays.max() == 140
    assert grays.float().mean().item() == pytest.approx(100, abs=2)
    for row, differs in ((9, True), (10, True), (11, channels == 3), (12, channels == 3)):
        draw = middle(8)
        draw[row] = 0.95
        changed = augment(photo(8, channels), TrainConfig(jitter=0.4), draw)
        assert (not close(changed, photo(8, channels), levels=3)) == differs, row
    assert torch.equal(augment(photo(8, channels), TrainConfig(jitter=0.4), middle(8)), photo(8, channels))


def theirs_of(name: str, image: torch.Tensor, strength: float) -> torch.Tensor:
    """Returns what torchvision makes of an image (C, H, W) for an operation and its signed strength."""
    height, width = image.shape[1:]
    affine = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    if name in ("shear x", "shear y"):
        shear = math.degrees(math.atan(0.99 * strength))
        affine["shear"] = [shear, 0.0] if name == "shear x" else [0.0, shear]
    elif name == "translate x":
        affine["translate"] = [strength * min(32, width / 2), 0]
    elif name == "translate y":
        affine["translate"] = [0, strength * min(32, height / 2)]
    elif name == "rotate":
        affine["angle"] = 135 * strength
    else:
        factor = 1 + 0.99 * strength
        return {
            "identity": lambda: image,
            "brightness": lambda: functional.adjust_brightness(image, factor),
            "contrast": lambda: functional.adjust_contrast(image, factor),
            "saturation": lambda: functional.adjust_saturation(image, factor),
            "sharpness": lambda: functional.adjust_sharpness(image, factor),
            "posterize": lambda: functional.posterize(image, 8 - round(6 * abs(strength))),
            "solarize": lambda: functional.solarize(image, 255 * (1 - abs(strength))),
            "autocontrast": lambda: functional.autocontrast(image),
            "equalize": lambda: functional.equalize(image),
        }[name]()
    return functional.affine(image, **affine, interpolation=InterpolationMode.BILINEAR)


@pytest.mark.parametrize("first", [0, 5, 13])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 24), (3, 24, 90), (1, 80, 18)])
def test_each_operation_of_trivial_augment_is_torchvisions(channels: int, height: int, width: int, first: int) -> None:
    """Where torchvision has a pixel of the image: beyond its border ours mirrors, and theirs is black."""
    n = 6 * len(OPERATIONS) + 5
    images, draw = photo(n, channels, height, width), draws(n, seed=first)
    augmented = augment(images, TrainConfig(trivial_augment=True), draw, first)
    changed = set()
    for place, (image, ours) in enumerate(zip(images, augmented, strict=True)):
        name, strength = OPERATIONS[(place + first) % len(OPERATIONS)], float(2 * draw[13, place] - 1)
        inside = theirs_of(name, torch.full_like(image, 255), strength) == 255
        inside |= torch.tensor(OPERATIONS.index(name) in (0, *range(6, 14)))
        theirs = theirs_of(name, image, strength)
        assert close(ours[inside], theirs[inside], levels=2), (name, strength)
        changed |= {name} if not close(ours, image, levels=9) else set()
    # Saturation is nothing to a gray image; photos this smooth have nothing to sharpen.
    assert changed | {"identity", "saturation", "sharpness"} == set(OPERATIONS) and "identity" not in changed


@pytest.mark.parametrize("name", ["translate x", "rotate", "shear y"])
def test_what_is_beyond_the_border_is_mirrored(name: str) -> None:
    images = photo(1, 1, 30, 30)
    draw = middle(1)
    draw[13] = 0.8
    ours = augment(images, TrainConfig(trivial_augment=True), draw, OPERATIONS.index(name))[0]
    mirrored = functional.pad(images[0], [30] * 4, padding_mode="symmetric")
    theirs = functional.center_crop(theirs_of_large(name, mirrored), [30, 30])
    assert close(ours, theirs, levels=2)


def theirs_of_large(name: str, image: torch.Tensor) -> torch.Tensor:
    """Returns an image whose middle third is moved as a whole image is, at a strength of 0.6."""
    return theirs_of("translate x", image, 0.6 * 15 / 32) if name == "translate x" else theirs_of(name, image, 0.6)


def test_the_operations_are_the_papers_and_each_has_an_equal_share() -> None:
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 14
    images = photo(1).expand(14, -1, -1, -1)
    draw = middle(14)
    draw[13] = 0.98
    distinct = {bytes(image.numpy().tobytes()) for image in augment(images, TrainConfig(trivial_augment=True), draw)}
    assert len(distinct) == 14


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 1, 1, 1), (2, 3, 2, 5), (3, 1, 28, 28), (15, 3, 9, 3)])
def test_everything_together_keeps_shape_and_type_of_any_batch(shape: tuple[int, ...]) -> None:
    images, n = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), shape[0]
    before = images.clone()
    values = {"crop_padding": 3, "flip": True, "erase": 0.4, "crop_scale": 0.1, "jitter": 1.0, "trivial_augment": True}
    for first in range(14):
        augmented = augment(images, TrainConfig(**values), draws(n, seed=first), first)
        assert (augmented.shape, augmented.dtype) == (shape, torch.uint8)
    config = TrainConfig(mixup=1.0, cutmix=1.0)
    for seed in range(10):
        mixed, labels, others, share = mix(images, torch.arange(n), config, np.random.default_rng(seed))
        assert (mixed.shape, mixed.dtype) == (shape, torch.uint8) and 0.5 <= share <= 1
        assert labels.shape == others.shape == (n,)
    assert torch.equal(images, before)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_mixup_adds_two_images_up_as_their_labels(alpha: float) -> None:
    """Image i is of value 20 i, so that each pixel is 20 times what its labels say."""
    images, labels = (torch.arange(12) * 20).to(torch.uint8)[:, None, None, None].expand(-1, 3, 5, 4), torch.arange(12)
    shares = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        mixed, firsts, others, share = mix(images, labels, TrainConfig(mixup=alpha), rng)
        expected = 20 * (share * firsts + (1 - share) * others)
        assert (mixed[:, 0, 0, 0] - expected).abs().max() < 0.51
        assert {(a - b) % 12 for a, b in zip(firsts.tolist(), others.tolist(), strict=True)} <= {1, 11}
        shares.append(share)
    expected = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    assert np.mean(shares) == pytest.approx(np.maximum(expected, 1 - expected).mean(), abs=0.03)


def test_cutmix_pastes_a_rectangle_whose_area_is_in_the_labels() -> None:
    images = (torch.arange(9) + 1).to(torch.uint8)[:, None, None, None].expand(-1, 1, 20, 30)
    shares, seen = [], torch.zeros(20, 30)
    for seed in range(600):
        rng = np.random.default_rng(seed)
        mixed, firsts, others, share = mix(images, torch.arange(9) + 1, TrainConfig(cutmix=1.0), rng)
        of_first = mixed[:, 0] == firsts[:, None, None]
        assert torch.equal(of_first | (mixed[:, 0] == others[:, None, None]), torch.ones(9, 20, 30, dtype=torch.bool))
        assert of_first.flatten(1).float().mean(1).tolist() == pytest.approx([share] * 9, abs=1e-6)
        pasted = mixed[1, 0] == 1  # The image before it.
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        assert pasted.sum() == rows * columns  # A full rectangle.
        shares.append(1 - pasted.float().mean().item())
        seen += pasted
    # Uniform before the border clips it, which leaves more of the image: 0.5 and what is clipped.
    assert 0.55 < np.mean(shares) < 0.70 and min(shares) < 0.15 and max(shares) > 0.98
    assert seen.min() > 0 and seen[10, 15] > 2 * seen[0, 0]


def test_with_both_about_half_of_the_batches_are_cut() -> None:
    images, config = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 30, 30), None
    config, n_cut = TrainConfig(mixup=1.0, cutmix=1.0), 0
    for seed in range(300):
        mixed, *_ = mix(images, torch.arange(2), config, np.random.default_rng(seed))
        n_cut += bool(((mixed == 0) | (mixed == 200)).all())
    assert 120 < n_cut < 190


def test_the_label_that_dominates_comes_first() -> None:
    images, labels = torch.tensor([0, 100], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), torch.arange(2)
    for seed, config in ((seed, config) for seed in range(50) for config in (TrainConfig(mixup=1.0),)):
        mixed, firsts, _, share = mix(images, labels, config, np.random.default_rng(seed))
        assert torch.equal(firsts, (mixed[:, 0, 0, 0] > 50).long()) and share >= 0.5
