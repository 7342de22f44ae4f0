"""What an epoch of a configuration costs, by the times that the trials of its search took.

Nothing here trains. A time depends on what ran beside it: a search has its trials side by side, as `final` has.
"""

from typing import TYPE_CHECKING

from tuning.base.config import TrainConfig
from tuning.base.registries import ARCHITECTURES

if TYPE_CHECKING:
    import pandas as pd

CHANNELS, N_CLASSES = 1, 10  # Of the network whose parameters are counted: they are a small part of it.


def epoch_seconds(config: TrainConfig, trials: "pd.DataFrame") -> float | None:
    """Returns the expected seconds of an epoch of a configuration that no trial had; None where nothing tells.

    It is the median over the trials of the same network on images of the same size. Without one, it is that of the
    trials whose number of parameters is nearest, and longer in proportion where the configuration has more parameters.
    Fewer parameters do not make it shorter: a small network may compute as much on larger maps.

    Args:
        config: Its network must be one that the project can build without a user's file.
        trials: A run's.
    """
    times = (trials["seconds"] / trials["epochs"])[trials["seconds"] > 0]
    if times.empty:
        return None
    known = ARCHITECTURES.get(config.architecture)
    names = ["architecture", "image_size", "train", *(known.uses if known else ())]
    values = config.model_dump()
    same = times > 0
    for name in names:
        column = trials.loc[times.index, f"config/{name}"]
        same &= column.isna() if values[name] is None else column == values[name]
    if same.any():
        return float(times[same].median())
    parameters = trials.loc[times.index, "n_parameters"].dropna().astype("float64")
    if parameters.empty:
        return float(times.median())
    own = _n_parameters(config)
    nearest = parameters[(ratio := (own / parameters).map(lambda each: max(each, 1 / each))) == ratio.min()]
    return float(times[nearest.index].median()) * max(1.0, own / float(nearest.iloc[0]))


def _n_parameters(config: TrainConfig) -> int:
    from tuning.models.architectures import build_model, count_parameters

    return count_parameters(build_model(config, CHANNELS, N_CLASSES, load_pretrained=False))
