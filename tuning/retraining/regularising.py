"""More regularisation for a configuration that is trained longer than its search trained it.

A search chooses what is best at its own length. A configuration that labels the images that it trains on, as its
augmentation shows them, better than those of the valid split has little left to learn from them: twice as long, it
learns them by heart. Nothing here trains.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tuning.base.config import TrainConfig, parse_config

if TYPE_CHECKING:
    import pandas as pd

# A default search on Fashion-MNIST (55,000 images, ResNet-20, 6 epochs) had its first and its third best trial without
# crops. With these they gained 0.7 and 0.8 points of valid accuracy at 12 epochs, on the same seed.
LEAST: Mapping[str, float] = {"label_smoothing": 0.1, "crop_padding": 1, "erase": 0.3}

Z_95 = 1.96  # Standard errors on each side of an estimate, in its 95 % interval.


def learned(epochs: "pd.DataFrame", n_valid: int) -> set[int]:
    """Returns the trials that labelled their train images better than the valid ones in their last epoch.

    Args:
        epochs: A run's. The accuracy on the train images is that of the steps, as augmentation shows them.
        n_valid: Images of the valid split. The difference has to be beyond its noise, in an interval of 95 % (Agresti
            and Coull 1998): of few images that were hardly learned, either accuracy is the larger one by chance.
    """
    last = epochs.sort_values("epoch").groupby("trial").tail(1)
    share = (last["valid_accuracy"] * n_valid + 2) / (n_valid + 4)
    noise = Z_95 * (share * (1 - share) / (n_valid + 4)) ** 0.5
    return {int(trial) for trial in last.loc[last["train_accuracy"] - last["valid_accuracy"] > noise, "trial"]}


def changes(config: TrainConfig) -> dict[str, Any]:
    """Returns what a configuration gets at least, where it has less; nothing where its head alone is trained.

    Images that are cropped and resized at random are not shifted besides.
    """
    if config.train == "head":
        return {}
    left_out: Collection[str] = ("crop_padding",) if config.crop_scale < 1 else ()
    return {name: value for name, value in LEAST.items() if name not in left_out and getattr(config, name) < value}


def regularised(config: TrainConfig) -> TrainConfig:
    """Returns a configuration with its `changes`."""
    return parse_config(config.model_dump() | changes(config), "more regularisation")


def said(changed: Mapping[str, Any]) -> str:
    """Returns `changes` for a line of output, e.g. "crop padding 1, erase 0.3"."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in changed.items())
