"""The search's own process computes on one thread, whatever the sampler, and gets its threads back."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from tuning.base.registries import SAMPLERS
from tuning.base.threads import one_thread
from tuning.figures import importances
from tuning.sampling import samplers
from tuning.sampling.spaces import Space
from tuning.sampling.study import RunStudy


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.set_num_threads(2)
    with threadpool_limits(2):
        yield
    torch.set_num_threads(1)


def test_all_libraries_have_one_thread_inside_and_their_own_again_after_it() -> None:
    assert threads() == {2}
    with one_thread():
        assert threads() == {1}
    assert threads() == {2}
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert threads() == {2}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_proposes_on_one_thread(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    sampler = samplers.make(name, 0, 2)
    propose = sampler.sample_relative

    def spied(*given: Any) -> Any:
        seen.append(threads())
        return propose(*given)

    monkeypatch.setattr(sampler, "sample_relative", spied)
    space = Space("one", "", "", lambda trial: {"learning_rate": trial.suggest_float("lr", 0.01, 1)}, [], {}, {})
    study = RunStudy(tmp_path, space, sampler, epochs=1, seed=0)
    for _ in range(2):
        assert study.ask() is not None
    study.close("search")
    assert seen and all(one == {1} for one in seen)
    assert threads() == {2}


def test_importances_are_computed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []

    def spied(*given: Any) -> list[Any]:
        seen.append(threads())
        return []

    monkeypatch.setattr(importances, "_with_values", spied)
    importances.assess(optuna.create_study(), None)  # type: ignore[arg-type]
    assert seen == [{1}]
