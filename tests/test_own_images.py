"""One's own images from files to a model: search, resume, final, predict, page and export, by the commands alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.datasets import Labelled, hash_test, load_own, load_test, load_train
from tuning.images.source import Source
from tuning.images.splitting import Splits, load_folds, load_splits, make_splits
from tuning.runs import run_folder
from tuning.training.fit import Training, fit
from tuning.trials import settings

pytestmark = pytest.mark.usefixtures("unrendered")

CLASSES = ("blue", "green", "grey", "red", "yellow")
COLOURS = np.array([(40, 60, 220), (40, 200, 60), (120, 120, 120), (220, 40, 40), (230, 220, 40)])


def photo(label: int, seed: int) -> npt.NDArray[np.uint8]:
    """Returns an RGB image (20, 26, 3) with a rectangle of a class's colour on a noisy ground."""
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (20, 26, 3))
    top, left = draw.integers(0, 6), draw.integers(0, 8)
    image[top : top + 12, left : left + 16] = COLOURS[label] + draw.integers(-20, 20, (12, 16, 3))
    return image.clip(0, 255).astype(np.uint8)


def write_photos(folder: Path, n: int = 200, first: int = 0) -> Path:
    """Returns a folder of class folders with so many photos in all, as PNG."""
    for i in range(first, first + n):
        path = folder / CLASSES[i % 5] / f"photo {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(i % 5, i)).save(path)
    return folder


def command(folder: Path, name: str, *words: str, code: int = 0) -> str:
    """Returns what a command of the project prints in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", f"tuning.{name}", *words]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 200 photos."""
    return write_photos(tmp_path / "My Photos")


@pytest.mark.slow
def test_from_photos_to_a_model(tmp_path: Path, photos: Path) -> None:
    small = ["--space", "smoke", "--epochs", "2", "--run", "mine"]
    said = command(tmp_path, "search", "--dataset", "My Photos", "--samples", "1", *small)
    assert "are set aside as the test split" in said and "mine: my-photos, 1 trial " in said
    assert said.count("Classes: blue (40), green (40), grey (40), red (40), yellow (40).") == 1
    run = run_folder.load("mine", tmp_path / "results")
    assert run.meta["dataset"] == "my-photos" and settings.of_run(run).source.is_own
    before = run.meta["split_hash"]
    # The folder is renamed, and the run is extended with it.
    photos.rename(tmp_path / "moved")
    lost = command(tmp_path, "search", "--resume", "mine", "--samples", "2", code=2)
    assert "My Photos" in lost and "--data-dir" in lost
    command(tmp_path, "search", "--resume", "mine", "--samples", "2", "--data-dir", "moved")
    run = run_folder.load("mine", tmp_path / "results")
    assert len(run.trials) == 2 and run.meta["split_hash"] == before
    exported = ["--export", "onnx", "--export", "pt2", "--export", "safetensors"]
    asked = ["--run", "mine", "--top-k", "1", "--seeds", "1", "--epochs", "3", "--data-dir", "moved", *exported]
    said = command(tmp_path, "final", *asked)
    assert said.count("its probabilities differ by") == 3 and "test loss" in said
    model = tmp_path / "best_model"
    described = json.loads((model / "config.json").read_text())
    assert described["class_names"] == list(CLASSES) and described["channels"] == 3
    assert (described["height"], described["width"], described["resize"]) == (20, 26, "crop")
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["test_images"] == len(load_test(Source(str(tmp_path / "moved"))))
    for name in ("confusion.png", "pca.png", "mistakes.png", "model_card.md"):
        assert (model / name).stat().st_size > 0
    assert "my-photos" in (model / "model_card.md").read_text()
    page = (tmp_path / "results" / "mine" / "report.html").read_text()
    assert "my-photos" in page and "data:image/png;base64," in page
    said = command(tmp_path, "predict", "moved/red", "--top", "3", "--csv", "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 40 and set(table["class 1"]) <= set(CLASSES) and "class 3" in table
    said = command(tmp_path, "explore", "--dataset", "moved", "--out", "overview.png")
    assert "yellow" in said and (tmp_path / "overview.png").exists()
    write_photos(tmp_path / "moved", 20, first=900)
    refused = command(tmp_path, "final", "--run", "mine", "--data-dir", "moved", code=2)
    assert "The images are not those that" in refused and "search again" in refused
    assert json.loads((model / "metrics.json").read_text()) == metrics


@pytest.mark.parametrize("given", [False, True])
def test_train_and_test_are_what_was_read(tmp_path: Path, given: bool) -> None:
    folder = write_photos(tmp_path / ("a/train" if given else "a"))
    if given:
        write_photos(tmp_path / "a" / "test", 50, first=1000)
    source = Source(str(tmp_path / "a"))
    train, test = load_train(source), load_test(source)
    assert len(train) + len(test) == (250 if given else 200)
    assert len(test) == 50 if given else 15 < len(test) < 50
    names = list(folder.rglob("*.png"))
    pixels = {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in names}
    assert {image.tobytes() for image in train.pixels()} <= pixels
    found = hash_test(source)
    assert found.shape == test.shape and found.counts.sum() == len(test)
    splits = load_splits(source, seed=1)
    assert splits.class_names == CLASSES and splits.dataset == "a"
    assert len(splits.train) + len(splits.valid) == len(train) and len(splits.valid) >= 30
    assert splits.mean == pytest.approx(splits.train.pixels().mean(axis=(0, 2, 3)) / 255)
    assert splits.std == pytest.approx(splits.train.pixels().std(axis=(0, 2, 3)) / 255)
    assert load_splits(source, seed=1).split_hash == splits.split_hash != load_splits(source, seed=2).split_hash


def test_images_that_are_added_stay_out_of_the_way_of_the_test_split(tmp_path: Path) -> None:
    write_photos(tmp_path / "a", 100)
    source = Source(str(tmp_path / "a"))
    before = {image.tobytes() for image in load_test(source).pixels()}
    old = before | {image.tobytes() for image in load_train(source).pixels()}
    write_photos(tmp_path / "a", 100, first=100)
    assert {image.tobytes() for image in load_test(source).pixels()} & old == before


def test_each_image_is_valid_in_one_fold(tmp_path: Path) -> None:
    source = Source(str(write_photos(tmp_path / "a")))
    folds = load_folds(source, 5, seed=0)
    valid = [image.tobytes() for fold in folds for image in fold.valid.pixels()]
    assert sorted(valid) == sorted(image.tobytes() for image in load_train(source).pixels())
    for fold in folds:
        own = {image.tobytes() for image in fold.train.pixels()}
        assert own.isdisjoint({image.tobytes() for image in fold.valid.pixels()})
        assert abs(len(fold.valid) - len(valid) / 5) <= 5
    assert len({fold.split_hash for fold in folds}) == 5


def test_small_classes_are_left_out_when_that_is_asked_for(tmp_path: Path) -> None:
    write_photos(tmp_path / "a", 100)
    for path in sorted((tmp_path / "a" / "red").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"too few images to be in all splits: red \(1 image\)\. .*--min-images"):
        load_splits(Source(str(tmp_path / "a")))
    notes: list[str] = []
    splits = load_splits(Source(str(tmp_path / "a"), min_images=5), note=notes.append)
    assert splits.class_names == ("blue", "green", "grey", "yellow")
    assert any("Classes of fewer than 5 images are left out: red (1)." in note for note in notes)
    assert "Classes: blue (20), green (20), grey (20), yellow (20)." in notes
    shutil.rmtree(tmp_path / "a" / "red")
    assert load_splits(Source(str(tmp_path / "a"))).split_hash == splits.split_hash


def test_options_for_own_images_do_not_go_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuning import search

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--image-size must be used with images of your own, but got --dataset fashion"):
        search.run(dataset="fashion-mnist", image_size=32)
    with pytest.raises(UserError, match="--resize must be one of crop, pad, stretch, but got 'squeeze'"):
        search.run(dataset=str(tmp_path), resize="squeeze")


def write_forms(folder: Path, train: Labelled, test: Labelled) -> dict[str, Path]:
    """Returns the paths of labelled gray images in each form that is read."""
    parts = {"train": train, "test": test}
    rows = []
    for split, part in parts.items():
        for i, (image, label) in enumerate(zip(part.images[:, 0], part.labels, strict=True)):
            path = folder / "folders" / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, compress_level=1)
            rows.append({"path": path.relative_to(folder).as_posix(), "label": str(label), "split": split})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    content = [{"bytes": (folder / row["path"]).read_bytes(), "path": row["path"]} for row in rows]
    table = {"image": content, "label": [row["label"] for row in rows], "split": [row["split"] for row in rows]}
    pq.write_table(pa.table(table), folder / "inside.parquet")
    arrays = {f"x_{name}": part.images[:, 0] for name, part in parts.items()}
    np.savez(folder / "arrays.npz", **arrays, **{f"y_{name}": part.labels for name, part in parts.items()})
    (folder / "idx").mkdir()
    for name, part in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", part.images[:, 0]), ("labels-idx1", part.labels.astype(np.uint8))):
            header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
            (folder / "idx" / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())
    names = ("folders", "table.csv", "inside.parquet", "arrays.npz", "idx")
    return {name: folder / name for name in names}


@pytest.mark.slow
def test_fashion_mnist_in_every_form_gives_the_same_arrays_and_the_same_training(tmp_path: Path) -> None:
    everything = load_train("fashion-mnist")
    train, test = everything.at(slice(5000)), everything.at(slice(5000, 5200))
    expected = make_splits(train, "fashion-mnist", tuple("0123456789"), seed=3)
    config = TrainConfig(width=4, image_size=8, epochs=1, crop_padding=1)

    def history(splits: Splits) -> list[tuple[float, ...]]:
        training = Training(config, splits, seed=0)
        return [(one.train_loss, one.valid_loss, one.valid_accuracy) for one in fit(training)]

    trained = history(expected)
    for name, path in write_forms(tmp_path, train, test).items():
        source = Source(str(path))
        splits = load_splits(source, seed=3)
        for ours, theirs in ((splits.train, expected.train), (splits.valid, expected.valid), (load_test(source), test)):
            assert np.array_equal(ours.pixels(), theirs.images), name
            assert np.array_equal(ours.labels, theirs.labels), name
        assert (splits.mean, splits.std, splits.class_names) == (expected.mean, expected.std, expected.class_names)
        assert history(splits) == trained, name


@pytest.mark.slow
def test_a_small_set_is_judged_on_folds_and_names_its_wrong_labels(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 300)
    for i in (3, 8, 13):  # Red ones, which have number 3 modulo 5.
        (tmp_path / "photos" / "red" / f"photo {i}.png").rename(tmp_path / "photos" / "green" / f"photo {i}.png")
    command(tmp_path, "search", "--dataset", "photos", "--samples", "1", "--space", "smoke", "--epochs", "2")
    asked = ["--top-k", "1", "--no-compare", "--epochs", "12", "--device", "cpu", "--seed", "7"]
    assert "exclude each other" in command(tmp_path, "final", *asked, "--folds", "3", "--seeds", "2", code=2)
    said = command(tmp_path, "final", *asked)
    assert "5 folds, 12 epochs at most" in said and "--folds 0 takes the split of the search" in said
    assert "Valid accuracy over 5 folds" in said and "the middle one of 5" in said and "over 5 folds" in said
    model = tmp_path / "best_model"
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["folds"] == len(metrics["seeds"]) == 5 and metrics["test_opened"] == 1
    assert "trained on 5 folds" in (model / "model_card.md").read_text()
    assert "fold_5" in pd.read_csv(model / "final.csv")
    suspects = pd.read_csv(model / "suspects.csv")
    rest = load_own(Source(str(tmp_path / "photos"))).known
    moved = {name for name in rest.names if Path(name).stem in ("photo 3", "photo 8", "photo 13")}
    assert moved and moved <= set(suspects["image"][:8]) and set(suspects["label"][: len(moved)]) == {"green"}
    [page] = (tmp_path / "results").glob("*/report.html")
    assert "Labels to check" in page.read_text() and "of 5 folds" in page.read_text()


@pytest.mark.slow
def test_from_python_a_configuration_is_trained_on_folds_and_then_on_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuning import final

    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 100)
    Path("c.json").write_text(json.dumps({"width": 4, "epochs": 1, "precision": "fp32", "batch_size": 16}))
    asked = {"config": "c.json", "dataset": "photos", "device": "cpu", "concurrency": 1, "threads": 1}
    with pytest.raises(UserError, match="--folds must be 2 or more, or 0 for none, but got 1"):
        final.run(**asked, folds=1, progress=False)
    won = final.run(**asked, folds=3, train_on="train+valid", progress=False)
    n_rest = len(load_train(Source("photos")))
    assert won.metrics["folds"] == 3 and won.metrics["train_images"] == n_rest
    assert {"fold_1", "fold_2", "fold_3"} <= set(won.candidates)
    card, said = ((won.path / name).read_text() for name in ("model_card.md", "scores.txt"))
    assert "trained once more on train and valid" in card and "trained once more on train and valid" in said
    assert (won.path / "suspects.csv").exists() and not (won.path / "final").exists()
    with pytest.warns(UserWarning, match="The test split has been opened 2 times for this data set"):
        plain = final.run(**asked, folds=0, progress=False)
    assert plain.metrics["folds"] == 0 and len(plain.metrics["seeds"]) == 1
    assert not (won.path / "suspects.csv").exists()
