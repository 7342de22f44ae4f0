"""`tuning.predict` with an untrained model in a folder like best_model/, and with every way to damage one."""

import builtins
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image

from tuning.base import files
from tuning.base.averagings import AVERAGINGS
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.batches import normalise
from tuning.images.decoding import Preparation, prepare
from tuning.models.architectures import build_model
from tuning.predict import frame, load, main, print_predictions
from tuning.retraining import best_model
from tuning.retraining.best_model import (
    BestModel,
    Prediction,
    Winner,
    load_best_model,
    predict_files,
    probabilities,
)
from tuning.retraining.given_images import looks_inverted, read_image

CLASSES = ("Shirt", "Bag", "Boot")


def write_model(folder: Path, channels: int = 1, **values: Any) -> Path:
    """Returns the folder, which now holds a tiny model; `values` replace those of config.json."""
    folder.mkdir(exist_ok=True)
    config = TrainConfig(width=4)
    torch.manual_seed(0)
    torch.save(build_model(config, channels, len(CLASSES)).state_dict(), folder / "model.pth")
    description = {
        "config": config.model_dump(),
        "dataset": "toy",
        "class_names": CLASSES,
        "channels": channels,
        "height": 10,
        "width": 8,
        "mean": [0.3] * channels,
        "std": [0.4] * channels,
        "flip_averaging": False,
    }
    (folder / "config.json").write_text(json.dumps(description | values))
    return folder


def shape_on(background: int, height: int = 10, width: int = 8) -> npt.NDArray[np.uint8]:
    """Returns a grey image (H, W) of a bright or dark square on the background."""
    image = np.full((height, width), background, np.uint8)
    image[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 255 - background
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like best_model/."""
    return write_model(tmp_path / "best_model")


@pytest.fixture
def best(folder: Path) -> BestModel:
    """What `load_best_model` makes of it."""
    return load_best_model(folder)


def test_model_is_ready(best: BestModel) -> None:
    assert (best.class_names, best.mean, best.std) == (CLASSES, (0.3,), (0.4,))
    assert (best.channels, best.height, best.width, best.model.training) == (1, 10, 8, False)


def moved_by_hand(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Returns the images and the four that are one pixel off, where the row or column that enters is the border's."""
    return [
        images,
        np.concatenate([images[:, :, 1:], images[:, :, -1:]], 2),
        np.concatenate([images[:, :, :1], images[:, :, :-1]], 2),
        np.concatenate([images[..., 1:], images[..., -1:]], 3),
        np.concatenate([images[..., :1], images[..., :-1]], 3),
    ]


SEEN: dict[str, Any] = {
    "none": lambda images: [images],
    "flip": lambda images: [images, images[..., ::-1].copy()],
    "shift": moved_by_hand,
    "flip+shift": lambda images: [*moved_by_hand(images), *moved_by_hand(images[..., ::-1].copy())],
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_probabilities_are_the_mean_over_the_views(tmp_path: Path, averaging: str, channels: int) -> None:
    best = load_best_model(write_model(tmp_path / "m", channels, averaging=averaging))
    images = np.random.default_rng(0).integers(0, 256, (3, channels, 10, 8), dtype=np.uint8)
    plain = replace(best, averaging="none")
    views = [probabilities(plain, view) for view in SEEN[averaging](images)]
    assert len(views) == len(AVERAGINGS[averaging].views)
    np.testing.assert_allclose(probabilities(best, images), np.mean(views, axis=0), atol=1e-6)
    with torch.inference_mode():
        logits, _ = best.model(normalise(torch.from_numpy(images), best.mean, best.std))
    np.testing.assert_allclose(views[0], logits.softmax(1), atol=1e-6)
    if averaging != "none":
        assert not np.allclose(probabilities(best, images), views[0], atol=1e-3)


@pytest.mark.parametrize(("flip_averaging", "averaging"), [(True, "flip"), (False, "none")])
def test_a_folder_of_version_0_2_0_says_only_whether_it_averages_with_the_mirror_image(
    folder: Path, flip_averaging: bool, averaging: str
) -> None:
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "averaging" not in described
    (folder / "config.json").write_text(json.dumps(described | {"flip_averaging": flip_averaging}), encoding="utf-8")
    assert load_best_model(folder).averaging == averaging


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_predicted(tmp_path: Path, channels: int, suffix: str) -> None:
    best = load_best_model(write_model(tmp_path / "m", channels))
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    Image.fromarray(shape_on(0)).save(paths[0])
    Image.fromarray(shape_on(0, 40, 30)).convert("RGB").save(paths[1])
    found = predict_files(best, paths)
    assert [prediction.path for prediction in found] == paths
    expected = probabilities(best, np.stack([read_image(path, channels, 10, 8) for path in paths]))
    for prediction, row in zip(found, expected, strict=True):
        assert prediction.class_name == CLASSES[row.argmax()] != prediction.runner_up
        assert prediction.probability == pytest.approx(row.max())
        assert prediction.runner_up_probability == pytest.approx(np.sort(row)[-2])


@pytest.mark.parametrize(
    ("background", "invert", "inverted"),
    [(0, "auto", False), (255, "auto", True), (0, "yes", True), (255, "no", False)],
)
def test_inversion(best: BestModel, tmp_path: Path, background: int, invert: Any, inverted: bool) -> None:
    Image.fromarray(shape_on(background)).save(tmp_path / "a.png")
    (found,) = predict_files(best, [tmp_path / "a.png"], invert)
    assert found.inverted is inverted
    seen = shape_on(255 - background if inverted else background)
    assert found.probability == pytest.approx(probabilities(best, seen[None, None]).max())


def test_colour_images_are_not_taken_for_inverted() -> None:
    assert looks_inverted(shape_on(255)[None])
    assert not looks_inverted(np.repeat(shape_on(255)[None], 3, axis=0))
    assert not looks_inverted(np.full((1, 2, 2), 255, np.uint8))
    assert not looks_inverted(np.full((1, 9, 9), 7, np.uint8))


def test_image_modes_are_brought_to_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 0x4080, np.uint16)).save(path)
    assert np.unique(read_image(path, 1, 4, 4)).tolist() == [0x40]
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(path)
    assert np.unique(read_image(path, 1, 4, 4)).tolist() == [255]
    Image.new("RGB", (4, 4), (10, 20, 30)).save(path)
    assert read_image(path, 3, 5, 6).shape == (3, 5, 6)
    assert read_image(path, 3, 4, 4)[:, 0, 0].tolist() == [10, 20, 30]


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # Orientation: upside down.
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg", 1, 8, 8)
    assert image[0, :3].max() < 50 and image[0, 5:].min() > 200


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.png", None, "No such file or directory"),
        ("text.png", b"not an image", "cannot identify image file"),
        ("empty.jpg", b"", "cannot identify image file"),
    ],
)
def test_unreadable_image_is_named(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    match = rf"^IMAGE must be a readable PNG or JPEG file, but got '{path}': .*{reason}.*\.$"
    with pytest.raises(UserError, match=match):
        read_image(path, 1, 10, 8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_exif_that_is_damaged_is_no_obstacle(tmp_path: Path) -> None:
    exif = (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x04\x01\n\0\x02\0\0\0\x06\0\0\0\0"
        b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x1a\0\x05\0\0"
    )
    Image.fromarray(np.full((10, 8), 7, np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert np.unique(read_image(tmp_path / "a.jpg", 1, 10, 8)).tolist() == [7]


def test_other_formats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.gif")
    with pytest.raises(
        UserError, match=r"^IMAGE must be a readable PNG or JPEG file, but got .*a\.gif': cannot identify"
    ):
        read_image(tmp_path / "a.gif", 1, 10, 8)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"IMAGE must be a readable PNG or JPEG file, but got .*a\.png': .*truncated"):
        read_image(path, 1, 10, 8)


@pytest.mark.parametrize("name", ["config.json", "model.pth"])
def test_missing_model_names_the_next_step(folder: Path, name: str) -> None:
    (folder / name).unlink()
    match = (
        rf"^There must be a trained model in {folder}, but .*/{name} is missing\. "
        rf"Run `python -m tuning\.final --model-dir {folder}` first"
    )
    with pytest.raises(UserError, match=match):
        load_best_model(folder)


class Payload:
    """What a pickle with code looks like: unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_the_weights_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    match = (
        r"model\.pth must be a state dict \(tensors only, no code\), but it cannot be read as one: Weights only load"
    )
    for write in (torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload, 2))):
        write({"a": Payload(tmp_path / "harm")}, folder / "model.pth")
        with pytest.raises(UserError, match=match):
            load_best_model(folder)
        assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 half a zip"])
def test_damaged_weights_are_said(folder: Path, content: bytes) -> None:
    (folder / "model.pth").write_bytes(content)
    match = r"model\.pth must be a state dict .* read as one: .+\. Run `python -m tuning\.final` again\.$"
    with pytest.raises(UserError, match=match):
        load_best_model(folder)


def test_truncated_weights_are_said(folder: Path) -> None:
    whole = (folder / "model.pth").read_bytes()
    (folder / "model.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.pth must be a state dict"):
        load_best_model(folder)


@pytest.mark.parametrize("weights", [{}, {"a": torch.zeros(1)}, [torch.zeros(1)], torch.zeros(1)])
def test_weights_of_another_model_are_said(folder: Path, weights: Any) -> None:
    torch.save(weights, folder / "model.pth")
    match = (
        r"model\.pth must hold the weights of the resnet8 in config\.json, but got others: .* Run `python -m tuning\.fi"
    )
    with pytest.raises(UserError, match=match):
        load_best_model(folder)


@pytest.mark.parametrize("name", ["config.json", "model.pth"])
def test_a_model_that_may_not_be_read_needs_no_retraining(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = io.open

    def locked(path: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))  # The tests may run as root.
        return opened(path, *args, **kwargs)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", locked)
    for read in (load_best_model, best_model._digest):
        with pytest.raises(
            UserError, match=rf"^/.*{name} cannot be read \(Permission denied\)\. Change its permissions\.$"
        ):
            read(folder)


def spoiled(folder: Path, value: float) -> None:
    """Multiplies the first weights of the model by a value."""
    weights = torch.load(folder / "model.pth")
    next(iter(weights.values())).mul_(value)
    torch.save(weights, folder / "model.pth")


def test_outputs_that_are_not_finite_are_no_prediction(folder: Path, tmp_path: Path) -> None:
    spoiled(folder, math.nan)
    for name in "ab":
        Image.fromarray(shape_on(0)).save(tmp_path / f"{name}.png")
    match = (
        r"not finite \(NaN or infinite\) for all of 2 images, the first of them '.*a\.png'\. .*tuning.final` again\.$"
    )
    for skip in (False, True):
        with pytest.raises(UserError, match=match):
            main([tmp_path / "a.png", tmp_path / "b.png"], folder, skip_broken=skip, csv=tmp_path / "found.csv")
    assert not (tmp_path / "found.csv").exists()
    with pytest.raises(UserError, match=r"for '.*b\.png'\. Its training may have diverged"):
        main([tmp_path / "b.png"], folder)
    with pytest.raises(UserError, match=r"for the image at index 0\. "):
        load(folder).predict(shape_on(0)[None])


def test_an_image_whose_outputs_alone_are_not_finite_is_named(best: BestModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def some(_: BestModel, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.where(images[:, 0, 0, :1] == 7, np.nan, np.float32([[0.5, 0.3, 0.2]]))

    monkeypatch.setattr(best_model, "probabilities", some)
    images = np.zeros((3, 10, 8), np.uint8)
    assert len(best.predict(images)) == 3
    images[1, 0] = 7
    with pytest.raises(
        UserError, match=r"for 1 of 3 images, the first of them the image at index 1\. Leave such images"
    ):
        best.predict(images)


@pytest.mark.parametrize("text", ["", "{", "\x00"])
def test_damaged_description_is_said(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    match = r"config\.json must be a JSON file, but it cannot be read: .*\. Run `python -m tuning\.final` again\.$"
    with pytest.raises(UserError, match=match):
        load_best_model(folder)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            {"channels": 2},
            r"config\.json: channels is wrong: Input should be 1 or 3\. Run `python -m tuning\.final` again",
        ),
        (
            {"averaging": "flips"},
            r"config\.json: averaging must be one of flip, flip\+shift, none, shift, but got 'flips'\. Did you mean",
        ),
        ({"averaging": 2}, r"config\.json: averaging is wrong: Input should be a valid string\. Run"),
        ({"flip_averaging": "maybe"}, r"config\.json: flip_averaging is wrong: Input should be a valid boolean"),
        ({"std": [0.0]}, r"config\.json: std\.0 is wrong: Input should be greater than 0\. Run"),
        ({"class_names": ["one"]}, r"config\.json: class_names is wrong: .*at least 2 items.*\. Run"),
        ({"mean": [0.1, 0.2]}, r"config\.json: mean must have 1 values, one a channel, but got 2\. Run"),
        ({"config": {"widht": 4}}, r"config\.json: Hyperparameter must be one of .*'widht'\. Did you mean 'width'\?"),
        ({"config": {"width": 1}}, r"config\.json: width must be greater than or equal to 4, but got 1\."),
    ],
)
def test_wrong_description_is_said(tmp_path: Path, values: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        load_best_model(write_model(tmp_path / "m", **values))


def test_description_that_is_no_mapping_is_said(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json: its content is wrong: Input should be .*\. Run"):
        load_best_model(folder)


def test_table_has_a_row_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("a [bold]folder[/] " + "x" * 60) / "1.png"
    ranking = (("Bag", 0.875), ("Shirt", 0.1), ("Boot", 0.025))
    predictions = [Prediction(path, *ranking[0], *ranking[1], inverted=True, ranking=ranking)]
    print_predictions(predictions)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["file", "class", "probability", "runner-up", "inverted"] in cells
    assert [str(path), "Bag", "87.5%", "Shirt 10.0%", "yes"] in cells
    print_predictions(predictions, top=3)
    assert "class 3" in (said := capsys.readouterr().out) and "Boot 2.5%" in said
    wide = frame(predictions, top=3)
    assert list(wide) == [
        "file",
        *(f"{name} {place}" for place in (1, 2, 3) for name in ("class", "probability")),
        "inverted",
    ]
    assert wide.loc[0, "class 3"] == "Boot" and wide.loc[0, "probability 3"] == 0.025


def test_a_model_for_photos_reads_files_as_it_was_trained(tmp_path: Path) -> None:
    best = load_best_model(write_model(tmp_path / "m", 3, resize="crop"))
    wide = np.zeros((20, 32, 3), np.uint8)
    wide[:, 8:24] = np.random.default_rng(0).integers(0, 256, (20, 16, 3))
    Image.fromarray(wide).save(tmp_path / "a.webp", lossless=True)
    (found,) = predict_files(best, [tmp_path / "a.webp"])
    seen = prepare(wide, Preparation(10, 8, 3, "crop"))
    assert found.probability == pytest.approx(probabilities(best, seen[None]).max())
    assert seen.mean() > 1.5 * prepare(wide, Preparation(10, 8, 3, "stretch")).mean()  # The black sides are cut off.
    bright = load_best_model(write_model(tmp_path / "gray", resize="crop"))
    Image.fromarray(shape_on(255)).save(tmp_path / "c.png")
    assert not predict_files(bright, [tmp_path / "c.png"])[0].inverted
    (tmp_path / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"IMAGE must be a readable image file, but got .*d\.png"):
        predict_files(best, [tmp_path / "d.png"])


def test_files_that_cannot_be_read_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(best_model, "AT_ONCE", 2)
    for resize in (None, "crop"):
        folder = write_model(tmp_path / f"model {resize}", **({} if resize is None else {"resize": resize}))
        photos = tmp_path / f"photos {resize}"
        photos.mkdir()
        for name in "adef":
            Image.fromarray(shape_on(0)).save(photos / f"{name}.png")
        for name in "bc":
            (photos / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        with pytest.raises(UserError, match=r"got .*b\.png'.*\. --skip-broken leaves out what cannot be read\.$"):
            main([photos], folder)
        capsys.readouterr()
        main([photos], folder, skip_broken=True, csv=tmp_path / "found.csv")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2 and "b.png" in said[0] and "c.png" in said[1]
        assert [Path(name).name for name in pd.read_csv(tmp_path / "found.csv")["file"]] == [f"{n}.png" for n in "adef"]
        for name in "adef":
            (photos / f"{name}.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"none of 6 can be read\.$"):
            main([photos], folder, skip_broken=True)


def test_a_name_that_is_no_utf_8_is_escaped(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    Image.fromarray(shape_on(0)).save(path)
    main([path], folder, csv=tmp_path / "found.csv")
    assert r"\udcff.png" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "found.csv")["file"].tolist() == [rf"{tmp_path}/\udcff.png"]


def test_an_image_whose_name_is_too_long_is_one_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    long = Path("a" * 300)
    for name in (long, long.with_suffix(".png"), long / "a.png"):
        with pytest.raises(
            UserError, match=r"^IMAGE must be a readable PNG or JPEG file, but got 'a+.*File name too long"
        ):
            main([tmp_path / "a.png", name], folder)
        main([tmp_path / "a.png", name], folder, skip_broken=True, csv=tmp_path / "found.csv")
        assert len(pd.read_csv(tmp_path / "found.csv")) == 1
    with pytest.raises(UserError, match=r"'a+\.csv' cannot be looked at: File name too long"):
        main([tmp_path / "a.png"], folder, csv=long.with_suffix(".csv"))
    with pytest.raises(UserError, match=r"a+\.csv'? .*File name too long"):
        main([long.with_suffix(".csv")], folder)


def test_a_table_may_list_images_that_are_gone_where_broken_ones_are_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    table = tmp_path / "list.csv"
    table.write_text("image\na.png\ngone.png\n")
    with pytest.raises(
        UserError, match=r"has 1 row whose image is not there: gone\.png\. .* --skip-broken leaves out such rows\.$"
    ):
        main([table], folder)
    capsys.readouterr()
    main([table], folder, skip_broken=True, csv=tmp_path / "found.csv")
    assert capsys.readouterr().err == f"{table} lists 'gone.png', which is not there.\n"
    assert [Path(name).name for name in pd.read_csv(tmp_path / "found.csv")["file"]] == ["a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"has 2 rows whose image is not there: .* and the table's place\.$"):
        main([table], folder, skip_broken=True)


def test_predictions_take_the_place_of_nothing_that_is_read(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    table, linked = tmp_path / "list.csv", tmp_path / "linked.csv"
    table.write_text("image\na.png\n")
    linked.symlink_to(table)
    for images, csv in [([table], table), ([table], linked), ([tmp_path], tmp_path / "a.png")]:
        with pytest.raises(UserError, match=r"^--csv must be a file of its own, but '.*' is one that is read"):
            main(images, folder, csv=csv)
    assert table.read_text() == "image\na.png\n"


def test_predictions_take_the_place_of_nothing_of_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    (folder / "final.csv").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.csv").write_text("image\na.png\n")
    others = [(Path("~/a.png"), folder / name) for name in ("config.json", "model.pth", "final.csv")]
    for image, csv in [*others, (Path("~/list.csv"), Path("~/list.csv"))]:
        before = csv.expanduser().read_bytes()
        with pytest.raises(
            UserError, match=r"^--csv must be a file of its own, but '.*' is one that is read, or of the"
        ):
            main([image], Path("~") / folder.relative_to(tmp_path), csv=csv)
        assert csv.expanduser().read_bytes() == before
    for _ in range(2):  # Of its own, it may be written again.
        main([Path("~/a.png")], folder, csv=folder / "predictions.csv")
    (tmp_path / "mine.py").touch()
    best = load_best_model(folder)
    monkeypatch.setattr("tuning.predict.load", lambda *given: best)
    with pytest.raises(UserError, match=r"^--csv must be a file of its own, but '.*/mine\.py' is one that is read"):
        main([Path("~/a.png")], folder, Path("~/mine.py"), csv=tmp_path / "mine.py")


def test_arrays_of_ones_own_images_are_not_turned_unasked(tmp_path: Path) -> None:
    bright = np.stack([255 - shape_on(0)])
    for resize, turned in ((None, True), ("crop", False)):
        folder = write_model(tmp_path / f"model {resize}", **({} if resize is None else {"resize": resize}))
        assert load_best_model(folder).predict(bright, invert="auto")[0].inverted == turned


def test_nobody_reads_the_weights_of_one_model_with_the_description_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = (write_model(tmp_path / name, std=[std]) for name, std in (("best_model", 0.25), ("other", 0.5)))
    read = torch.load
    kept = {name: value + 1 for name, value in read(other / "model.pth", weights_only=True).items()}
    torch.save(kept, other / "model.pth")

    def replaced_meanwhile(path: Path, **options: Any) -> Any:
        if path.parent == folder and files.read_json(folder / "config.json")["std"] == [0.25]:
            for name in ("model.pth", "config.json"):
                shutil.copyfile(other / name, folder / name)
        return read(path, **options)

    monkeypatch.setattr(torch, "load", replaced_meanwhile)
    found = load_best_model(folder)
    assert tuple(found.std) == (0.5,)
    monkeypatch.undo()
    assert all(torch.equal(value, kept[name]) for name, value in found.model.state_dict().items())


def test_more_classes_than_there_are_cannot_be_shown(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="--top must be at most 3, the number of classes, but got 4"):
        main([tmp_path / "a.png"], model_dir=folder, top=4)
    main([tmp_path / "a.png"], model_dir=folder, top=3, csv=tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("file,class 1,probability 1,class 2,")


def test_where_the_predictions_go_is_checked_before_they_are_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    main([tmp_path / "a.png"], model_dir=folder, csv=tmp_path / "new" / "out.csv")
    assert len(pd.read_csv(tmp_path / "new" / "out.csv")) == 1
    monkeypatch.setattr("tuning.predict.predict_files", None)
    with pytest.raises(UserError, match=r"^--csv must be a file, but got the folder '.*/new'\. Name a file in it\.$"):
        main([tmp_path / "a.png"], model_dir=folder, csv=tmp_path / "new")
    with pytest.raises(UserError, match=r"a\.png must be a folder that can be made"):
        main([tmp_path / "a.png"], model_dir=folder, csv=tmp_path / "a.png" / "out.csv")


def test_a_file_of_predictions_that_cannot_be_written_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    Image.fromarray(shape_on(0)).save(tmp_path / "a.png")
    monkeypatch.setattr("tuning.base.files.write_text", refused)
    with pytest.raises(UserError, match=r"^--csv must be a file that can be written, but got '.*out\.csv': .*denied"):
        main([tmp_path / "a.png"], model_dir=folder, csv=tmp_path / "out.csv")


def test_tensors_and_lists_of_arrays_are_predicted_as_an_array_is(best: BestModel) -> None:
    pixels = np.stack([shape_on(0), shape_on(40)])
    expected = best.predict(pixels)
    for images in (
        torch.from_numpy(pixels),
        list(pixels),
        list(pixels[:, None]),
        [torch.from_numpy(pixels[0]), pixels[1]],
    ):
        assert best.predict(images) == expected


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("resize", [None, "crop"])
def test_images_of_pillow_are_predicted_as_their_files_are(tmp_path: Path, mode: str, resize: str | None) -> None:
    best = load_best_model(write_model(tmp_path / "model", **({} if resize is None else {"resize": resize})))
    images, paths = [], []
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 20, 3), np.uint8)
        image = Image.fromarray(pixels)
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
        turned = image.getexif()
        turned[0x0112] = 6  # By a quarter.
        saved = image.convert("RGB") if mode in ("CMYK", "YCbCr") else image
        saved.save(tmp_path / f"{i}.png", exif=turned)
        images.append(image)
        paths.append(tmp_path / f"{i}.png")
    assert best.predict(images) == [replace(found, path=None) for found in best.predict(paths)]
    alone = [replace(found, path=None) for found in best.predict(paths[0])]
    assert best.predict(images[0]) == alone
    with Image.open(paths[0]) as opened:
        assert best.predict(opened) == alone


def test_folders_and_the_folder_of_the_user_are_taken_from_python_too(
    best: BestModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(shape_on(0)).save(tmp_path / "photos" / f"{name}.png")
    assert [found.path for found in best.predict("~/photos")] == [tmp_path / "photos" / f"{name}.png" for name in "ab"]
    files = pd.Series(["~/photos/a.png", str(tmp_path / "photos" / "b.png")])
    assert best.predict(files) == best.predict(tmp_path / "photos")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images must be all files, all Pillow's, or uint8 arrays of .*, but got NoneType"),
        ([3], "but got int"),
        ([Image.new("L", (8, 10)), "a.png"], "but got Image"),
        (Image.new("F", (8, 10)), "images must be ones that can be read, but one of Pillow's cannot: .*"),
        ([shape_on(0), "a.png"], "images must be all files or all arrays, but got both, 'a.png' among them"),
        ([shape_on(0), shape_on(0, 12)], r"images must be arrays of one shape, but got \(10, 8\) and \(12, 8\)"),
        (torch.zeros(2, 10, 8), r"but got float32 \(2, 10, 8\)"),
    ],
)
def test_what_is_no_image_is_said(best: BestModel, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"{message}\.$"):
        best.predict(images)


@pytest.mark.parametrize("invert", ["alway", "Yes", True])
def test_another_word_for_inverting_is_not_taken_for_no(best: BestModel, invert: Any) -> None:
    with pytest.raises(UserError, match=rf"^invert must be one of auto, no, yes, but got '{invert}'\."):
        best.predict(np.stack([shape_on(0)]), invert=invert)


def test_what_is_no_folder_of_a_model_is_said() -> None:
    with pytest.raises(UserError, match=r"^folder must be a path, but got None\.$"):
        load(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^model must be a path, but got 3\.$"):
        load("best_model", 3)  # type: ignore[arg-type]


def test_a_winner_does_not_predict_with_the_model_of_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "metrics.json").write_text("{}")
    (folder / "final.csv").write_text("rank\n1\n")
    monkeypatch.chdir(tmp_path)
    winner, another = (Winner.of(Path("best_model")) for _ in range(2))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    images = np.stack([shape_on(0)])
    before = winner.predict(images)
    weights = torch.load(folder / "model.pth", weights_only=True)
    torch.save({name: 2 * value for name, value in weights.items()}, folder / "model.pth")
    assert winner.predict(images) == before  # It was read.
    with pytest.raises(
        UserError, match=r"/best_model has another model now than that of this winner: .* `model_dir` of"
    ):
        another.predict(images)


@pytest.mark.slow
def test_command_prints_or_exits_with_2(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(shape_on(255)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "tuning.predict", "--model-dir", str(folder)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, str(tmp_path / "a.png")], cwd=root, capture_output=True, text=True, timeout=600, check=True
    )
    assert "runner-up" in done.stdout and done.stderr == ""
    done = subprocess.run([*command, "none.png"], cwd=root, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: IMAGE must be a readable PNG or JPEG file, but got 'none.png'")


def test_importing_it_is_light() -> None:
    code = (
        "import sys, tuning.predict; print([name for name in ('ray', 'optuna', 'torch', 'PIL') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_fashion_mnist_is_seldom_taken_for_inverted() -> None:
    from tuning.images.datasets import load_train

    images = load_train("fashion-mnist").images[:10_000]
    assert np.mean([looks_inverted(image) for image in images]) < 0.001
    assert np.mean([looks_inverted(255 - image) for image in images]) > 0.999


def test_a_model_that_an_earlier_version_left_is_read(tmp_path: Path) -> None:
    """`config.json` as 0.2.0 wrote it: later versions may add names, and take none away."""
    folder = write_model(tmp_path / "m")
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = {"config", "dataset", "class_names", "flip_averaging", "channels", "height", "width", "mean", "std"}
    kept = {name: value for name, value in described.items() if name in names}
    (folder / "config.json").write_text(json.dumps(kept | {"dataset": "Grün"}), encoding="utf-8")
    assert load_best_model(folder).class_names == tuple(described["class_names"])


def test_a_file_of_16_bits_is_what_it_is_in_8_for_a_model_that_has_seen_8_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8), dtype=np.uint8)
    deep, plain = tmp_path / "deep.png", tmp_path / "plain.png"
    Image.fromarray(pixels.astype(np.uint16) * 257).save(deep)
    Image.fromarray(pixels).save(plain)
    best = load_best_model(write_model(tmp_path / "model", resize="crop"))
    one, other = best.predict([deep, plain])
    assert one.ranking == other.ranking
