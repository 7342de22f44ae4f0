"""Splits of a small data set: `final` trains on several, because one small valid split says little.

Of each of K folds the images are valid once and train in the others, so that intervals hold the noise of the data, too
(Stone, Cross-Validatory Choice and Assessment of Statistical Predictions, 1974). The test split has no place here.
"""

from typing import TYPE_CHECKING

from tuning.base.errors import UserError
from tuning.images.source import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tuning.images.splitting import Splits
    from tuning.retraining.candidates import Plan

# Of 5,000 images a tenth is valid: 500, and the standard error of 90 % is 1.3 points.
DEFAULT_FOLDS, FEW_IMAGES = 5, 5_000


def how_many(images: Source, asked: int | None, n_seeds: int | None) -> tuple[int, tuple[str, ...]]:
    """Returns the number of folds, 0 for none, and what to say of a default that was taken.

    Args:
        images: Which.
        asked: 0 for none, at least 2; None is 5 for fewer than 5,000 images of one's own without a valid split of their
            own, where no number of seeds is asked for, and else 0.
        n_seeds: The number of seeds that is asked for; None where none is.

    Raises:
        UserError: There can be no folds, or there is 1.
    """
    if asked == 0 or (asked is None and (n_seeds is not None or not images.is_own)):
        return 0, ()
    if asked == 1:
        raise UserError("--folds must be 2 or more, or 0 for none, but got 1.")
    if n_seeds is not None:
        raise UserError(
            "--folds and --seeds exclude each other, because each fold has a fresh seed of its own, but got "
            f"{asked} and {n_seeds}. Leave one of them out."
        )
    if not images.is_own:
        raise UserError(
            f"--folds must be used with images of your own, but got {images.dataset}, whose valid split is large "
            "enough. Use --seeds."
        )
    from tuning.images.datasets import load_own

    own = load_own(images)
    if asked is not None:
        if own.valid.any():
            raise UserError(
                f"--folds must be left out for {images.dataset}, because it says itself which images are valid, but "
                f"got {asked}. Use --seeds."
            )
        return asked, ()
    if own.valid.any() or len(own.rest) >= FEW_IMAGES:
        return 0, ()
    note = (
        f"With {len(own.rest):,} images one valid split says little, so each configuration is trained on "
        f"{DEFAULT_FOLDS} folds. --folds 0 takes the split of the search, and fresh seeds."
    )
    return DEFAULT_FOLDS, (note,)


def load(plan: "Plan") -> "Mapping[int, Splits]":
    """Returns what each seed of a plan is trained and judged on; without folds it is the same for all.

    The first seed deals the folds: they are others than the split on which the search chose.

    Raises:
        UserError: The data cannot be had, or it is not what the search had.
    """
    from tuning.images.splitting import load_folds, load_splits

    splits = load_splits(plan.images, seed=plan.data_seed, train_images=plan.train_images)
    if plan.split_hash not in (None, splits.split_hash):
        raise UserError(
            f"The images are not those that {plan.source} was searched with (their hash is {splits.split_hash}, not "
            f"{plan.split_hash}). Put them back, or name their folder with --data-dir; for these images, search again."
        )
    if not plan.folds:
        return dict.fromkeys(plan.seeds, splits)
    folds = load_folds(plan.images, plan.folds, seed=plan.seeds[0], train_images=plan.train_images)
    return dict(zip(plan.seeds, folds, strict=True))
