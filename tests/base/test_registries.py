"""`tuning.base.registries`: what every name keeps, whatever it stands for; the rooms' tests build and try each."""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from tuning.base import files
from tuning.base.config import NAMED, TrainConfig, parse_config
from tuning.base.errors import UserError
from tuning.base.registries import (
    LR_SCHEDULES,
    METRICS,
    OBJECTIVES,
    SAMPLERS,
    SCHEDULERS,
    Entry,
    Registry,
    registries,
    renewed,
)
from tuning.images.catalogue import DATASETS
from tuning.runs import schema
from tuning.trials.settings import check_names

ALL = registries()
NAMES = [pytest.param(registry, name, id=f"{registry.kind}-{name}") for registry in ALL for name in registry]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (
        ROOT / name for name in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    )
    if path.exists()
}
# Command -> the names that it offers.
OFFERED: dict[str, list[Iterable[str]]] = {
    "search": [SAMPLERS, SCHEDULERS, OBJECTIVES, METRICS, DATASETS, files.space_names()],
    "final": [METRICS, DATASETS],
    "explore": [DATASETS],
}


@pytest.mark.parametrize(("registry", "name"), NAMES)
def test_every_entry_has_a_phrase_and_a_builder(registry: Registry[Any], name: str) -> None:
    entry = registry[name]
    assert re.fullmatch(r"[^|\n]+[^|\n.]", entry.summary)
    if registry.module:
        assert registry.module.startswith("tuning.") and callable(registry.load(name))
    assert set(entry.uses) <= set(TrainConfig.model_fields)


@pytest.mark.parametrize(("registry", "name"), NAMES)
def test_every_name_stands_in_a_readme_with_what_is_known_of_it(registry: Registry[Any], name: str) -> None:
    row = f"| `{name}` | {registry[name].summary} | {registry[name].facts} |"
    assert any(row in text.splitlines() for text in PAGES.values()), (
        f"No README has the row {row}. Run `python -m tuning.base.registries README.md tuning/*/README.md`."
    )


@pytest.mark.parametrize("command", OFFERED)
def test_every_name_is_in_the_help_of_the_commands_that_offer_it(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tuning.{command}", "--help"], capture_output=True, text=True, check=True
    )
    for names in OFFERED[command]:
        assert [name for name in names if name not in done.stdout] == []


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.kind)
def test_an_unknown_name_raises_with_the_known_ones_and_the_closest(registry: Registry[Any]) -> None:
    close = f"{registry.default}s"
    listed = re.escape(", ".join(sorted(registry)))
    for option, called in (("", registry.kind), ("--option", "--option")):
        expected = rf"^{called} must be one of {listed}, but got '{close}'\. Did you mean '{registry.default}'\?$"
        with pytest.raises(UserError, match=expected):
            registry.find(close, option)
    with pytest.raises(UserError, match=f"^{registry.kind} must be one of"):
        registry.load("")


@pytest.mark.parametrize("kind", NAMED)
def test_a_configuration_takes_the_names_of_its_registries_and_no_others(kind: str) -> None:
    for name in NAMED[kind]:
        assert getattr(parse_config({kind: name}, "space.py"), kind) == name
    listed = ", ".join(sorted(NAMED[kind]))
    with pytest.raises(UserError, match=f"^space.py: {kind} must be one of {listed}, but got 'nothing'"):
        parse_config({kind: "nothing"}, "space.py")
    assert getattr(TrainConfig(), kind) == NAMED[kind].default
    assert TrainConfig.model_json_schema()["properties"][kind]["enum"] == list(NAMED[kind])
    assert schema.TRIAL_COLUMNS[f"config/{kind}"] == "str"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("minimize", [None, *OBJECTIVES])
def test_a_sampler_is_refused_beside_a_second_objective_where_it_can_have_none(
    sampler: str, minimize: str | None
) -> None:
    if minimize is None or SAMPLERS[sampler].two_objectives:
        scheduler = SCHEDULERS.default if minimize is None else "none"
        assert check_names("smoke", sampler, None, minimize) == (sampler, scheduler)
        return
    expected = f"^--sampler must be one for two objectives beside --minimize, but got '{sampler}'. Choose tpe.$"
    with pytest.raises(UserError, match=expected):
        check_names("smoke", sampler, None, minimize)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_is_refused_beside_a_second_objective_where_it_stops_trials(scheduler: str) -> None:
    names = ("smoke", None, scheduler, OBJECTIVES.default)
    if not SCHEDULERS[scheduler].stops_trials:
        assert check_names(*names) == ("tpe", scheduler)
        return
    expected = f"^--scheduler must be none beside --minimize, which compares full trials, but got '{scheduler}'.$"
    with pytest.raises(UserError, match=expected):
        check_names(*names)


def test_nothing_chosen_is_the_default() -> None:
    assert check_names("smoke", None, None, None) == ("curves", "asha")
    assert check_names("smoke", None, None, OBJECTIVES.default) == ("tpe", "none")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_a_number_in_the_frame_of_trials(name: str) -> None:
    assert schema.TRIAL_COLUMNS[name] in ("Int64", "float64")


def test_a_registry_is_known_without_the_libraries_that_build_its_entries() -> None:
    libraries = {"torch", "ray", "optuna", "numpy"}
    program = f"import sys, tuning.base.config, tuning.images.catalogue; print(*{libraries!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_names_are_listed_as_a_sentence_has_them() -> None:
    three = Registry("letter", {name: Entry(name) for name in "abc"})
    assert (three.listed, three.default, len(three)) == ("a, b or c", "a", 3)
    assert Registry("letter", {"a": Entry("a")}).listed == "a"


def test_tables_are_printed_and_renewed_where_they_stand(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "tuning.base.registries"]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert printed == "\n\n".join(registry.table() for registry in ALL) + "\n"
    assert "| `cosine` | " in printed and "| annealed, uses `warmup_epochs` |" in printed
    page = tmp_path / "README.md"
    old = f"before\n\n{LR_SCHEDULES.table().splitlines()[0]}\n|---|---|---|\n| `gone` | it was here |  |\n\nafter\n"
    page.write_text(old, encoding="utf-8")
    subprocess.run([*run, str(page)], check=True)
    assert page.read_text(encoding="utf-8") == f"before\n\n{LR_SCHEDULES.table()}\n\nafter\n"
    assert renewed("no table\n") == "no table\n"
