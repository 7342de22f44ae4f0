"""Search spaces: those that come with the project, and a user's own file with everything that can be wrong in it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from tuning.base.config import TrainConfig, read_config
from tuning.base.errors import UserError
from tuning.sampling.spaces import (
    SPACES,
    Space,
    check_gpu_only,
    check_space,
    draw_points,
    load_space,
    point_of,
    space_names,
)


def write(tmp_path: Path, source: str) -> str:
    path = tmp_path / "mine.py"
    path.write_text(source)
    return str(path)


def load(name: str) -> Space:
    """Returns a space that comes with the project; `own` needs a network."""
    return replace(load_space(name), own="own:0123456789ab" if name == "own" else "")


def draws(space: Space, n: int = 40) -> list[TrainConfig]:
    study = optuna.create_study(sampler=space.possible(optuna.samplers.RandomSampler(seed=1)))
    return [space.sample(study.ask(), epochs=5) for _ in range(n)]


@pytest.mark.parametrize("name", space_names())
def test_every_space_gives_valid_configurations_and_offers_more_than_one(name: str) -> None:
    space = load(name)
    assert check_space(space, epochs=5)
    assert len({config.hash() for config in draws(space)}) == 40
    own = {20} if name in ("photos", "scans") else set()  # Of a head alone, whose epochs take no time.
    assert {config.epochs for config in draws(space)} == {5} | own


def test_the_names_are_those_of_the_readme() -> None:
    assert space_names() == ["own", "photos", "resnet", "resnet18", "resnet8", "scans", "smoke"]


def test_the_default_space_is_conditional() -> None:
    for config in draws(load_space("resnet"), 200):
        assert config.architecture == "resnet18" or not config.pretrained
        assert config.optimizer != "adamw" or config.momentum == TrainConfig().momentum


def test_the_default_space_begins_with_muon_on_networks_that_a_cpu_trains() -> None:
    space = load_space("resnet")
    first = [space.sample(optuna.trial.FixedTrial(dict(point)), epochs=8) for point in space.first]
    assert {config.optimizer for config in first} == {"muon"}
    assert len({config.hash() for config in first}) == len(first) <= 4
    assert all(config.architecture in ("resnet8", "resnet14", "resnet20") for config in first)


@pytest.mark.parametrize("network", ["resnet8-16", "resnet18"])
def test_the_original_projects_configurations_are_points_of_the_default_space(network: str) -> None:
    point: dict[str, Any] = {
        "network": network,
        "optimizer": "adamw",
        "learning_rate_adamw": 1e-4,
        "weight_decay_adamw": 1e-6,
        "batch_size": 64,
        "schedule": "plateau",
        "label_smoothing": 0.0,
        "crop_padding": 0,
        "flip": False,
        "erase": 0.0,
        "ema_decay": 0.0,
    }
    point |= {"pretrained": True, "stem": "imagenet"} if network == "resnet18" else {}
    config = load_space("resnet").sample(optuna.trial.FixedTrial(point), epochs=8)
    original = read_config(SPACES / f"original-{config.architecture}.yaml")
    alike = ("architecture", "pretrained", "stem", "optimizer", "learning_rate", "batch_size", "schedule", "flip")
    assert all(getattr(config, name) == getattr(original, name) for name in alike)


@pytest.mark.parametrize("name", ["original-resnet8", "original-resnet18"])
def test_the_original_projects_configurations_ship_as_files(name: str) -> None:
    config = read_config(SPACES / f"{name}.yaml")
    assert (config.schedule, config.learning_rate, config.pretrained) == ("plateau", 1e-4, name.endswith("18"))


def test_without_leaves_out_choices_and_the_first_points_that_need_them() -> None:
    space = load_space("resnet")
    limited = space.without(space.gpu_only).without({"pretrained": [True]})
    assert len(limited.first) == len(space.first)  # None of them needs a GPU or weights.
    configs = draws(limited, 100)
    assert {(c.architecture, c.width) for c in configs if c.architecture != "resnet18"} == {
        ("resnet8", 16),
        ("resnet14", 16),
        ("resnet20", 16),
    }
    assert not any(c.pretrained or c.stem == "small" for c in configs)
    assert any(c.width > 32 for c in draws(space, 100))


def test_an_unknown_space_names_the_closest() -> None:
    with pytest.raises(UserError, match=r"Search space must be one of .* but got 'resnt'\. Did you mean 'resnet'\?"):
        load_space("resnt")


def test_a_name_that_is_that_of_a_file_here_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "x = 1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"Search space must be one of .* got 'mine'\. Your file is --space mine\.py\.$"
    ):
        load_space("mine")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--space must be a readable \.py file, but got '.*nowhere\.py'"):
        load_space(str(tmp_path / "nowhere.py"))


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file, source = tmp_path / "mine.py", "def space(trial):\n    return {}\n"
    file.write_text(source, encoding="utf-8-sig")
    assert load_space(str(file)).source == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nonsense_module", r"mine\.py must import without an error, but line 1 raised ModuleNotFoundError"),
        ("def space(trial:", r"mine\.py must import without an error, but line 1 raised SyntaxError\("),
        ("import sys\nsys.exit()", r"mine\.py must import without an error, but line 2 raised SystemExit\("),
        ("x = 1", r"mine\.py must define space\(trial\) -> dict, but has no such function"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_space(write(tmp_path, source))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return {'learning_rte': 0.1}",
            r"Hyperparameter must be one of .* 'learning_rte'\. Did you mean 'learning_rate'",
        ),
        ("return {'learning_rate': -1}", r"mine: learning_rate must be greater than 0, but got -1"),
        ("return {'architecture': 'resnet9'}", r"architecture must be one of .*, resnet14, .* but got 'resnet9'"),
        ("return 3", r"mine must return a dict, but got int"),
        (
            "return {'width': trial.suggest_flot('w', 1, 2)}",
            r"mine must return hyperparameters, but line 2 raised AttributeError",
        ),
        (
            "return {'learning_rate': trial.suggest_float('lr', -1, 1)}",
            r"learning_rate must be greater than 0, but got",
        ),
        (
            "return {'width': exit(3)}",
            r"mine must return hyperparameters, but line 2 raised SystemExit\(3\)",
        ),
        ("return {'width': trial.suggest_int('width', 3, 64)}", r"mine: width must be .* equal to 4, but got 3\.$"),
        ("return {'batch_size': trial.suggest_int('b', 8, 4097)}", r"batch_size must be .* 4096, but got 4097\.$"),
        (
            "return {'learning_rate': trial.suggest_float('lr', 1e-4, 11, log=True)}",
            r"learning_rate must be .* 10, but got 11\.0\.$",
        ),
        (
            "return {'pretrained': True}",
            r"pretrained must be false unless architecture is resnet18, .* but got 'resnet8'",
        ),
    ],
)
def test_a_space_that_gives_wrong_points_is_refused_before_any_trial(tmp_path: Path, body: str, message: str) -> None:
    space = load_space(write(tmp_path, f"def space(trial):\n    {body}\n"))
    with pytest.raises(UserError, match=message):
        check_space(space, epochs=2)


def test_a_network_of_ones_own_is_what_a_space_calls_own_or_does_not_name(tmp_path: Path) -> None:
    body = "def space(trial):\n    return {{'width': trial.suggest_int('w', 8, 99){}}}\n"
    for named, expected in (("", "own:0123456789ab"), (", 'architecture': 'own'", "own:0123456789ab")):
        space = replace(load_space(write(tmp_path, body.format(named))), own=expected)
        assert {config.architecture for config in draws(space)} == {expected}
    space = replace(load_space(write(tmp_path, body.format(", 'architecture': 'resnet14'"))), own="own:0123456789ab")
    assert {config.architecture for config in draws(space)} == {"resnet14"}
    with pytest.raises(
        UserError, match=r'^Search space own: architecture "own" needs a file of yours: --model FILE\.$'
    ):
        check_space(load_space("own"), epochs=2)


def test_a_first_point_out_of_the_spaces_range_is_refused(tmp_path: Path) -> None:
    source = (
        "FIRST = [{'lr': 5.0}]\ndef space(trial):\n    return {'learning_rate': trial.suggest_float('lr', 0.1, 1)}\n"
    )
    with pytest.raises(
        UserError, match=r"FIRST must hold points of the space, but got {'lr': 5\.0}\. .* but line 3 raised"
    ):
        check_space(load_space(write(tmp_path, source)), epochs=2)


@pytest.mark.parametrize(
    ("constant", "message"),
    [
        (
            "FIRST = {'lr': 0.5}",
            r"FIRST of search space .*mine\.py must be a list of points .*, but got {'lr': 0\.5}\.",
        ),
        ("FIRST = [0.5]", r"FIRST of search space .*mine\.py must be a list of points .*, but got \[0\.5\]\."),
        ("FIRST = [{'lr': [0.5]}]", r"FIRST of search space .* numbers, True, False or None, but 'lr' is \[0\.5\]\."),
        ("GPU_ONLY = ['lr']", r"GPU_ONLY of search space .* must be {name: \[choice, \.\.\.\]}, but got \['lr'\]\."),
        ("GPU_ONLY = {'lr': 'ab'}", r"GPU_ONLY of search space .* but got {'lr': 'ab'}\."),
    ],
)
def test_what_a_file_says_of_its_space_is_checked(tmp_path: Path, constant: str, message: str) -> None:
    source = f"{constant}\ndef space(trial):\n    return {{'learning_rate': trial.suggest_float('lr', 0.1, 1)}}\n"
    with pytest.raises(UserError, match=message):
        load_space(write(tmp_path, source))


def test_a_range_of_real_numbers_may_end_where_a_value_is_excluded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text('def space(trial):\n    return {"learning_rate": trial.suggest_float("learning_rate", 0, 1)}\n')
    check_space(load_space(str(path)), 2)
    path.write_text('def space(trial):\n    return {"momentum": trial.suggest_float("momentum", 0, 1.01)}\n')
    with pytest.raises(UserError, match="momentum must be"):
        check_space(load_space(str(path)), 2)


def test_ends_that_decide_what_is_asked_for_next_are_ends_as_any_other(tmp_path: Path) -> None:
    source = (
        "def space(trial):\n    width = trial.suggest_int('width', 8, 64)\n"
        "    size = trial.suggest_int('batch_size', 8 * width, 9 * width)\n"
        "    return {'width': width, 'batch_size': size, 'momentum': trial.suggest_float('m', 0, 0.9) * (width < 64)\n"
        "        if width < 64 else trial.suggest_float('other', 0.1, 0.2)}\n"
    )
    assert len(check_space(load_space(write(tmp_path, source)), epochs=2)) == 50


def test_a_first_point_with_a_name_that_the_space_never_asks_for_is_refused(tmp_path: Path) -> None:
    source = "FIRST = [{'optimizer': 'adamw', 'NAME': 0.5}]\n" + BRANCHES
    with pytest.raises(
        UserError,
        match=r"FIRST must hold .* Parameter must be one of momentum, optimizer, .* 'momentun'\. Did you mean",
    ):
        check_space(load_space(write(tmp_path, source.replace("NAME", "momentun"))), epochs=2)
    assert check_space(load_space(write(tmp_path, source.replace("NAME", "momentum"))), epochs=2)  # Of another branch.


@pytest.mark.parametrize(
    ("gpu_only", "message"),
    [
        ("{'width': [15, 16]}", r" must have parameters of suggest_categorical, but 'width' is a number\.$"),
        ("{'ntwork': ['b']}", r": The parameter must be one of .*, but got 'ntwork'\. Did you mean 'network'\?$"),
        ("{'network': ['B']}", r": network must be one of a, b, but got 'B'\."),
    ],
)
def test_what_is_for_gpus_only_must_be_choices_of_the_space(tmp_path: Path, gpu_only: str, message: str) -> None:
    source = (
        "GPU_ONLY = {}\ndef space(trial):\n    if trial.suggest_categorical('network', ['a', 'b']) == 'a':\n"
        "        trial.suggest_categorical('rare', [*range(50)]) or trial.suggest_categorical('rarest', [1, 2])\n"
        "    return {{'width': trial.suggest_int('width', 8, 16)}}\n"
    )
    with pytest.raises(UserError, match=r"^GPU_ONLY of search space mine" + message):
        check_gpu_only(load_space(write(tmp_path, source.format(gpu_only))), epochs=2)
    check_gpu_only(load_space(write(tmp_path, source.format("{'rarest': [2]}"))), epochs=2)


def test_a_space_that_draws_nothing_has_no_name_to_choose_from(tmp_path: Path) -> None:
    space = load_space(
        write(tmp_path, "GPU_ONLY = {'a': ['b']}\nFIRST = [{'a': 1}]\ndef space(trial):\n    return {}\n")
    )
    with pytest.raises(
        UserError, match=r"mine: The parameter must be one that there is, but got 'a', and there is none"
    ):
        check_gpu_only(space, epochs=2)
    with pytest.raises(
        UserError, match=r"^FIRST must hold .* Parameter must be one that there is, but got 'a', and the"
    ):
        check_space(space, epochs=2)


@pytest.mark.parametrize("name", space_names())
def test_what_the_spaces_of_the_project_have_for_gpus_only_are_choices(name: str) -> None:
    check_gpu_only(load(name), epochs=2)


def test_numbers_of_numpy_in_a_first_point_are_numbers(tmp_path: Path) -> None:
    source = (
        "import numpy as np\nFIRST = [{'w': np.int64(16)}]\n"
        "def space(trial):\n    return {'width': trial.suggest_int('w', 8, 99)}\n"
    )
    [point] = load_space(write(tmp_path, source)).first
    assert point == {"w": 16} and type(point["w"]) is int


def test_choices_may_be_given_as_any_iterable_and_names_by_keyword(tmp_path: Path) -> None:
    source = (
        "def space(trial):\n"
        "    width = trial.suggest_categorical('w', (w for w in (8, 16)))\n"
        "    return {'width': width, 'learning_rate': trial.suggest_float(name='lr', low=0.1, high=1.0)}\n"
    )
    assert {config.width for config in draws(load_space(write(tmp_path, source)))} == {8, 16}


BRANCHES = """
def space(trial):
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    momentum = trial.suggest_float("momentum", 0.5, 0.99) if optimizer == "sgd" else 0.9
    return {"optimizer": optimizer, "momentum": momentum}
"""


@pytest.mark.parametrize(
    ("values", "point"),
    [
        ({"optimizer": "sgd", "momentum": 0.9, "width": 8}, {"optimizer": "sgd", "momentum": 0.9}),
        ({"optimizer": "adamw", "momentum": 7.0}, {"optimizer": "adamw"}),
        ({"optimizer": "sgd"}, None),
        ({"optimizer": "sgd", "momentum": 7.0}, None),
        ({"optimizer": "lion", "momentum": 0.9}, None),
        ({}, None),
    ],
    ids=repr,
)
def test_values_are_a_point_of_a_space_or_none(tmp_path: Path, values: dict[str, Any], point: Any) -> None:
    (tmp_path / "branches.py").write_text(BRANCHES)
    space = load_space(str(tmp_path / "branches.py"))
    assert point_of(space, values, 2) == point
    if point is not None:
        assert point_of(space.without({"optimizer": [point["optimizer"]]}), values, 2) is None


@pytest.mark.parametrize("draw", [draw_points, check_space])
def test_drawing_points_says_nothing(tmp_path: Path, draw: Callable[..., Any]) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda line: said.append(line.getMessage())  # type: ignore[method-assign]
    verbosity, logger = optuna.logging.get_verbosity(), logging.getLogger("optuna")
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logger.addHandler(handler)
    try:
        draw(load_space("smoke"), 2)
        assert (said, optuna.logging.get_verbosity()) == ([], optuna.logging.INFO)
    finally:
        logger.removeHandler(handler)
        optuna.logging.set_verbosity(verbosity)


def test_points_that_show_what_a_space_has_are_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "branches.py").write_text(BRANCHES)
    space = load_space(str(tmp_path / "branches.py"))
    one, other = ([t.params for t in draw_points(space, 2)] for _ in range(2))
    assert one == other and {name for point in one for name in point} == {"optimizer", "momentum"}
    left = draw_points(space.without({"optimizer": ["sgd"]}), 2)
    assert {t.params["optimizer"] for t in left} == {"adamw"}
