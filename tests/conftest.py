"""What every test may use: small learnable splits, a tiny configuration, and one thread for torch."""

import sys

import numpy as np
import pytest

from tuning.config import TrainConfig
from tuning.data import Labelled, Splits, make_splits

CLASS_NAMES = ("rows", "columns", "checks", "spot")


def patterned_images(n: int, *, channels: int = 1, side: int = 12, seed: int = 0) -> Labelled:
    """Returns noisy images of four patterns, as many of each; mirrored or shifted, they keep their class."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    rows, columns = (y // 2 % 2).astype(float), (x // 2 % 2).astype(float)
    spot = np.hypot(y - (side - 1) / 2, x - (side - 1) / 2) < side / 4
    patterns = np.stack([rows, columns, (rows + columns) % 2, spot])
    labels = draw.permutation(np.arange(n) % len(CLASS_NAMES))
    images = 70 + 70 * patterns[labels][:, None] + draw.normal(0, 40, (n, channels, side, side))
    return Labelled(images=images.clip(0, 255).astype(np.uint8), labels=labels.astype(np.int64))


@pytest.fixture(scope="session")
def splits() -> Splits:
    """480 train and 120 valid images, uint8 (N, 1, 12, 12), of four classes that a tiny network learns in seconds."""
    return make_splits(patterned_images(600), "patterns", CLASS_NAMES, valid_images=120)


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """A configuration that trains the splits in a blink; 15 steps an epoch."""
    return TrainConfig(architecture="resnet8", width=4, batch_size=32, epochs=3, precision="fp32")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keeps torch, in tests that have imported it, to one thread: more only wait for each other on tiny images."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
