"""Wrong labels that were planted are found; what the models agree with is not listed."""

from pathlib import Path

import numpy as np
import pandas as pd
from test_folds import write_images

from tuning.images.datasets import load_own
from tuning.images.splitting import Splits, load_folds
from tuning.retraining import suspects
from tuning.retraining.artefacts import Outcome

NAMES = ("a", "b", "c")


def test_the_least_likely_labels_come_first_and_right_ones_are_not_listed() -> None:
    probabilities = np.array([[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.05, 0.9, 0.05]], np.float32)
    labels, names = np.array([0, 1, 2, 0]), np.array(["x/0", "x/1", "x/2", "x/3"])
    found = suspects.find(labels, probabilities, names, NAMES)
    assert found["image"].tolist() == ["x/3", "x/1"]
    assert found["label"].tolist() == ["a", "b"] and found["predicted"].tolist() == ["b", "a"]
    assert np.allclose(found["label_probability"], [0.05, 0.3])
    assert np.allclose(found["predicted_probability"], [0.9, 0.6])
    assert len(suspects.find(labels, probabilities, names, NAMES, most=1)) == 1


def test_each_row_has_the_name_of_its_image(tmp_path: Path) -> None:
    images = write_images(tmp_path / "a")
    own, parts = load_own(images), load_folds(images, 3, seed=1)
    planted = {own.rest.pixels([i]).tobytes(): str(own.known.names[i]) for i in (3, 17, 40)}

    def outcome(fold: Splits) -> Outcome:
        labels = fold.valid.labels
        wrong = [fold.valid.pixels([i]).tobytes() in planted for i in range(len(labels))]
        of_label = np.where(wrong, 0.2, 0.9)
        rows = np.where(np.arange(2) == labels[:, None], of_label[:, None], 1 - of_label[:, None])
        return Outcome(labels, np.log(rows), np.zeros((len(labels), 1)))

    [said] = suspects.write(tmp_path, images, parts, [outcome(each) for each in parts])
    found = pd.read_csv(tmp_path / suspects.SUSPECTS)
    assert said.startswith("suspects.csv names 3 images") and set(found["image"]) == set(planted.values())
    with np.load(tmp_path / suspects.PIXELS) as arrays:  # A gray photo's one channel is kept as ink on paper.
        shown = 255 - arrays["images"]
    assert [planted[image.tobytes()] for image in shown] == found["image"].tolist()
    assert (tmp_path / suspects.PICTURE).stat().st_size > 5_000


def test_images_are_brought_to_96_pixels_and_small_ones_are_kept() -> None:
    wide = np.repeat(np.arange(0, 200, dtype=np.uint8), 2)[None, None, None, :].repeat(3, axis=1).repeat(200, axis=2)
    [image] = suspects.smaller(wide)
    assert image.shape == (3, 48, 96) and np.ptp(image[:, :, 0]) == 0 and image[0, 0, 0] < 5 < 194 < image[0, 0, -1]
    small = np.zeros((2, 1, 90, 30), np.uint8)
    assert suspects.smaller(small) is small and suspects.smaller(wide[:0]).shape == (0, 3, 200, 400)
