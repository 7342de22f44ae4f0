"""What a search needs before its first trial: its images, and of its space what this machine can do."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tuning.base import own_model
from tuning.base.errors import UserError, counted
from tuning.base.registries import ARCHITECTURES, METRICS
from tuning.trials.settings import Settings

if TYPE_CHECKING:
    from tuning.base.config import TrainConfig
    from tuning.images.splitting import Splits
    from tuning.sampling.spaces import Space
    from tuning.trials.progress import Progress


def load(settings: Settings, source: str, progress: "Progress", own: str = "") -> tuple[Settings, "Splits", "Space"]:
    """Returns the settings of a search with the size that one's own images have got, its splits and its space.

    Args:
        settings: Of the search.
        source: The name of the space, or its file.
        progress: Receives what is left out of the space, and what is to be known of the images.
        own: What a configuration calls the user's own network, which this process has read; "" where there is none.

    Raises:
        UserError: The data cannot be had, or the space is wrong.
    """
    import optuna

    from tuning.images import splitting
    from tuning.sampling import spaces

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = replace(spaces.load_space(source), own=own)
    space, drawn = usable_space(space, settings, progress)
    progress.note(lengths(drawn, settings))
    splits = splitting.load_splits(
        settings.source,
        seed=settings.seed,
        train_images=settings.train_images,
        device=settings.device,
        note=progress.note,
    )
    _check_networks(drawn, splits)
    if settings.metric == METRICS.default and (uneven := splitting.imbalance(splits)):
        progress.note(uneven)
    if settings.reading is not None:
        stored = {"image_size": splits.image_size, "resize": splits.resize}
        settings = replace(settings, reading={**settings.reading, **stored})
    return settings, splits, space


def usable_space(space: "Space", settings: Settings, progress: "Progress") -> tuple["Space", list["TrainConfig"]]:
    """Returns the space less what this machine cannot do, each omission said in one line, and some configurations.

    Raises:
        UserError: A point of the space is no valid configuration, or this machine cannot do what is left.
    """
    from tuning.sampling.spaces import check_gpu_only, check_space

    if space.gpu_only:
        check_gpu_only(space, settings.epochs)
    if settings.device != "cuda" and space.gpu_only:
        left_out = "; ".join(f"{name} {', '.join(map(str, choices))}" for name, choices in space.gpu_only.items())
        progress.note(f"On a CPU the space {settings.space} leaves out: {left_out}.")
        space = space.without(space.gpu_only)
    drawn = check_space(space, settings.epochs)
    while problems := _problems(config for _, config in drawn):
        lacking = _lacking(drawn, problems)
        if lacking is None:
            raise next(iter(problems.values()))
        name, choice, problem = lacking
        progress.note(f"The space leaves out {name}={choice!r}: {problem}")
        space = space.without({name: [choice]})
        drawn = check_space(space, settings.epochs)
    if settings.model is not None and not any(own_model.is_own(config.architecture) for _, config in drawn):
        raise UserError(
            f"--model {settings.model} is in no configuration of the space {settings.space}. Choose --space own, or "
            'have the space return "architecture": "own".'
        )
    return space, [config for _, config in drawn]


def lengths(configs: Iterable["TrainConfig"], settings: Settings) -> str:
    """Returns a sentence on how long trials may train, by some configurations of the space."""
    found = sorted({config.epochs for config in configs})
    if found == [settings.epochs]:
        return f"Trials train for at most {counted(settings.epochs, 'epoch')}."
    most = counted(found[0], "epoch") if len(found) == 1 else f"{found[0]} to {counted(found[-1], 'epoch')}"
    return (
        f"The space {settings.space} has trials train for at most {most}; --epochs {settings.epochs} counts where it "
        "sets none."
    )


def _problems(configs: Iterable["TrainConfig"]) -> dict[tuple[str, bool], UserError]:
    """Returns what this machine lacks, by architecture and whether it is pretrained."""
    from tuning.base.downloads import check_installed, check_weights

    problems: dict[tuple[str, bool], UserError] = {}
    for name, pretrained in sorted({(config.architecture, config.pretrained) for config in configs}):
        try:
            (check_weights if pretrained else check_installed)(name)
        except UserError as error:
            problems[name, pretrained] = error
    return problems


def _lacking(
    drawn: Sequence[tuple[Mapping[str, Any], "TrainConfig"]], problems: Mapping[tuple[str, bool], UserError]
) -> tuple[str, Any, UserError] | None:
    """Returns a choice of which every point has a problem, and the problem; None where there is none."""
    from tuning.sampling.spaces import OF_NETWORK

    texts = (name for params, _ in drawn for name, value in params.items() if isinstance(value, str))
    for name in dict.fromkeys([*OF_NETWORK, *texts]):
        for choice in dict.fromkeys(params[name] for params, _ in drawn if name in params):
            with_it = [problems.get((c.architecture, c.pretrained)) for p, c in drawn if p.get(name) == choice]
            if with_it[0] is not None and None not in with_it:
                return name, choice, with_it[0]
    return None


def _check_networks(configs: Iterable["TrainConfig"], splits: "Splits") -> None:
    """Tries networks that no test of this project has seen on two images, and the sizes of all others.

    Raises:
        UserError: One cannot be built, or gives no logits for such images.
    """
    networks = {(c.architecture, c.image_size, c.train, c.body_lr_factor == 1): c for c in configs}
    height, width = splits.train.images.shape[2:]
    for config in networks.values():
        listed = ARCHITECTURES.get(config.architecture)
        if listed is not None and min(config.image_size or height, config.image_size or width) >= listed.least_size:
            continue
        from tuning.models.trying import check_network

        check_network(config, splits.channels, splits.n_classes, (height, width))
