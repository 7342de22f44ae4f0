"""What a search will take: kinds of trials, simulated searches, and the dry run as a user runs it."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from ray.tune.schedulers import FIFOScheduler

from tuning import search
from tuning.base import machine
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.images.splitting import Splits
from tuning.sampling.spaces import load_space
from tuning.trials import estimate, loading
from tuning.trials.kinds import Cost, kinds
from tuning.trials.schedulers import METRIC
from tuning.trials.settings import Settings
from tuning.trials.simulated_searches import START_SECONDS, simulate
from tuning.trials.slots import SlotRequest, plan_slots


def settings(**values: Any) -> Any:
    some = {
        "samples": 6,
        "concurrency": 2,
        "epochs": 4,
        "scheduler": "none",
        "sampler": "random",
        "seed": 0,
        "time_budget": None,
        "audit": 0,
    }
    return SimpleNamespace(**some | values)


def cost(seconds: float, share: float = 1.0, epochs: int = 4) -> Cost:
    return Cost(TrainConfig(epochs=epochs), share, seconds, peak_bytes=10**9, checkpoint_bytes=10**6)


def test_without_a_scheduler_the_time_is_the_work_over_the_slots() -> None:
    assert simulate(settings(), [cost(10.0)], n=3) == pytest.approx(6 * 4 * 10 / 2 + START_SECONDS)
    one_slot = simulate(settings(concurrency=1), [cost(10.0)], n=1)
    assert one_slot == pytest.approx(6 * 4 * 10 + START_SECONDS)


def test_slots_that_wait_for_the_last_trial_are_counted() -> None:
    assert simulate(settings(samples=3), [cost(10.0)], n=1) == pytest.approx(80 + START_SECONDS)


def test_a_time_budget_bounds_the_estimate_and_an_audit_is_named() -> None:
    costs = [cost(10.0)]
    assert estimate.summarise(settings(time_budget=60.0), costs)["seconds"] == 60 + START_SECONDS
    bounded = settings(time_budget=9e9, audit=2, device="cpu")
    found = estimate.summarise(bounded, costs)
    assert found == estimate.summarise(settings(), costs)
    assert "The audit       up to 2 trials to the end" in estimate.text(bounded, costs, found)


def test_kinds_come_in_their_shares() -> None:
    costs = [cost(10.0, share=0.75), cost(30.0, share=0.25)]
    times = simulate(settings(samples=40, concurrency=1), costs, n=200) - START_SECONDS
    assert np.mean(times) == pytest.approx(40 * 4 * 15, rel=0.05)


def test_a_scheduler_that_stops_trials_saves_time() -> None:
    long = settings(samples=30, epochs=18)
    stopped = simulate(settings(**{**vars(long), "scheduler": "asha"}), [cost(10.0, epochs=18)], n=20)
    assert stopped.mean() < 0.6 * simulate(long, [cost(10.0, epochs=18)], n=1)[0]
    assert stopped.min() > 30 * 2 * 10 / 2


def test_a_simulated_scheduler_sees_accuracies_that_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[tuple[str, int], float] = {}

    class Spy(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            told[trial.trial_id, result["epoch"]] = result[METRIC]
            return super().on_trial_result(tune_controller, trial, result)

    monkeypatch.setattr("tuning.trials.schedulers.none", lambda epochs, seed: Spy())
    simulate(settings(samples=40, epochs=6), [cost(1.0, epochs=6)], n=1)
    curves = np.array([[told[str(number), epoch] for epoch in range(1, 7)] for number in range(40)])
    assert (np.diff(curves) >= 0).all()  # The best so far, as a search shows it.
    assert (np.diff(curves.mean(axis=0)) > 0.02).all()


def test_a_simulated_search_begins_with_the_first_points_and_a_resumed_one_after_them(tmp_path: Path) -> None:
    body = "return {'width': trial.suggest_categorical('width', [4, 8]), 'epochs': 4}"
    first = "FIRST = [{'width': 8}, {'width': 4}]\n"
    (tmp_path / "mine.py").write_text(f"{first}def space(trial):\n    {body}\n", encoding="utf-8")
    space = load_space(str(tmp_path / "mine.py"))
    found, begins = kinds(space, epochs=9)
    assert [config.width for config in begins] == [8, 4]
    seconds = {4: 1.0, 8: 100.0}
    costs = [Cost(config, float(config.width == 4), seconds[config.width], 1, 1) for config, _ in found]
    one = settings(samples=3, concurrency=1)
    assert simulate(one, costs, n=1) == pytest.approx(3 * 4 + START_SECONDS)
    assert simulate(one, costs, begins, n=1) == pytest.approx(4 * (100 + 2) + START_SECONDS)
    resumed = simulate(one, costs, begins, n_done=1, n=1)
    assert resumed == pytest.approx(4 * 2 + START_SECONDS)
    assert estimate.summarise(one, costs, begins, n_done=1)["samples"] == 2


def test_trials_that_come_after_others_are_judged_by_these() -> None:
    asha = {"epochs": 18, "scheduler": "asha", "concurrency": 1}
    costs = [cost(10.0, epochs=18)]
    before, after = (simulate(settings(samples=n, **asha), costs).mean() for n in (20, 25))
    more = simulate(settings(samples=25, **asha), costs, n_done=20).mean() - START_SECONDS
    assert more == pytest.approx(after - before, rel=0.2)


def test_a_search_that_its_time_budget_ends_is_simulated_no_further() -> None:
    endless = settings(samples=10**6, time_budget=60.0, scheduler="median")
    found = simulate(endless, [cost(10.0)], n=3)
    assert (found >= 60 + START_SECONDS).all() and (found <= 70 + START_SECONDS).all()


def test_a_sampler_that_learns_may_come_to_prefer_what_is_slow() -> None:
    costs = [cost(10.0, share=0.5), Cost(TrainConfig(epochs=4, width=32), 0.5, 30.0, 1, 1)]
    at_random = simulate(settings(samples=30), costs)
    guided = simulate(settings(samples=30, sampler="curves"), costs)
    assert guided.mean() > 1.05 * at_random.mean() and guided.std() > at_random.std()


def test_a_simulated_trial_is_as_long_as_its_space_says() -> None:
    asha = {"samples": 30, "scheduler": "asha", "concurrency": 1}
    seconds = simulate(settings(epochs=2, **asha), [cost(10.0, epochs=12)], n=20) - START_SECONDS
    assert seconds.mean() > 30 * 3 * 10


def test_a_space_that_sets_the_epochs_has_a_kind_for_each_but_a_step_is_measured_once(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "return {'width': 4, 'epochs': trial.suggest_int('epochs', 2, 5)}"
    (tmp_path / "mine.py").write_text(f"def space(trial):\n    {body}\n", encoding="utf-8")
    found, first = kinds(load_space(str(tmp_path / "mine.py")), epochs=9)
    assert first == []
    assert sorted(config.epochs for config, _ in found) == [2, 3, 4, 5]
    measured = []

    class Remote:
        def remote(self, config: TrainConfig, *given: Any) -> tuple[float, int, int]:
            measured.append(config)
            return 2.0, 3, 4

    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", lambda values: values)
    monkeypatch.setattr("ray.remote", lambda **resources: lambda function: Remote())
    costs = estimate.measure(replace(gpu_settings(), concurrency=1), found, splits)
    assert len(measured) == 1
    assert [(one.epoch_seconds, one.peak_bytes, one.checkpoint_bytes) for one in costs] == [(2.0, 3, 4)] * 4
    assert sorted(one.config.epochs for one in costs) == [2, 3, 4, 5]


@pytest.mark.parametrize("too_large", [{16}, {16, 32}])
def test_a_kind_that_does_not_fit_side_by_side_is_named_and_left_out(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch, too_large: set[int]
) -> None:
    def answer(sizes: list[int]) -> list[tuple[float, int, int]]:
        if too_large & set(sizes):
            raise ray.exceptions.RayTaskError("time_steps", "CUDA out of memory", RuntimeError("no"))
        return [(2.0, 3, 4) for _ in sizes]

    remote = SimpleNamespace(remote=lambda config, *given: config.batch_size)
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", answer)
    monkeypatch.setattr("ray.wait", lambda answers, num_returns: None)
    monkeypatch.setattr("ray.remote", lambda **resources: lambda function: remote)
    monkeypatch.setattr("tuning.trials.local_ray.started", lambda slots, log, **more: contextlib.nullcontext())
    found = [(tiny.model_copy(update={"batch_size": size}), 0.5) for size in (16, 32)]
    monkeypatch.setattr(estimate, "kinds", lambda space, epochs: (found, []))
    monkeypatch.setattr(estimate, "keep", lambda settings, found: None)
    wanted = replace(gpu_settings(), concurrency=2)
    space: Any = SimpleNamespace(source="")
    if len(too_large) == 2:
        with pytest.raises(
            UserError, match=r"^No kind of trial of the space smoke fits 2 side by side on this machine\."
        ):
            estimate.dry_run(wanted, splits, space)
        return
    said = estimate.dry_run(wanted, splits, space)
    assert "Not simulated" not in said
    begun = replace(wanted, start_from="one", scheduler="promotion")
    assert estimate.dry_run(begun, splits, space, n_done=1).endswith(
        "\nNot simulated   what the runs of --start-from make the sampler propose, and that trials that have paused "
        "may go on"
    )
    name = f"{tiny.architecture}-{tiny.width} in batches of 16"
    assert f"  {name} does not fit 2 side by side: the search trains it alone, or cuts its batches. That is not" in said


def test_what_else_goes_wrong_names_the_kind(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(given: Any) -> None:
        raise ray.exceptions.RayTaskError("time_steps", "", RuntimeError("my network is wrong"))

    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", answer)
    monkeypatch.setattr("ray.remote", lambda **resources: lambda function: SimpleNamespace(remote=lambda *given: None))
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        estimate.measure(gpu_settings(), [(tiny, 1.0)], splits)
    assert raised.value.__notes__ == [
        f"This was a trial of {tiny.architecture}-{tiny.width} in batches of {tiny.batch_size}."
    ]


def test_a_worker_that_the_system_killed_is_said(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(given: Any) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", answer)
    monkeypatch.setattr("ray.remote", lambda **resources: lambda function: SimpleNamespace(remote=lambda *given: None))
    with pytest.raises(UserError, match=r"^A worker that timed a trial of .* was killed, .* memory .* --concurrency"):
        estimate.measure(gpu_settings(), [(tiny, 1.0)], splits)


def test_the_kinds_of_the_default_space_are_its_networks_and_batch_sizes() -> None:
    space = load_space("resnet")
    space = space.without(space.gpu_only)
    found, first = kinds(space, epochs=6)
    assert [config.architecture for config in first] == ["resnet14", "resnet20", "resnet14"]
    assert {config.architecture for config, _ in found} == {"resnet8", "resnet14", "resnet20"}
    assert {config.batch_size for config, _ in found} == {64, 128, 256}
    assert sum(share for _, share in found) == pytest.approx(1)


def test_steps_are_timed_on_few_images_and_scaled_to_all(splits: Splits, tiny: TrainConfig) -> None:
    seconds, peak, size = estimate.time_steps(tiny, splits, "cpu", 1)
    assert seconds > 0
    assert peak > 10**8
    assert 10_000 < size < 10**6


def test_the_summary_bounds_time_memory_and_disk() -> None:
    costs = [cost(60.0, share=0.5), cost(120.0, share=0.5)]
    found = estimate.summarise(settings(samples=20), costs)
    assert found["seconds_low"] <= found["seconds"] <= found["seconds_high"]
    assert found["longest_trial_seconds"] == 480 and found["samples"] == 20
    assert found["disk_bytes"] == 10**6 * (3 * 2 + 2 * 20)
    said = estimate.text(settings(device="cpu"), costs, found)
    assert "resnet8-16" in said and "One full trial  8.0 minutes at most" in said and "2 on cpu, 1.0 GB" in said


GB = 10**9


@pytest.mark.parametrize(
    ("peak", "gpu", "cores", "fitting"),
    [
        (5 * GB, 80 * GB, 16, [2, 4, 8]),
        (10 * GB, 80 * GB, 16, [2, 4]),  # Eight would take all of it, and a tenth is to be left.
        (9 * GB, 80 * GB, 16, [2, 4, 8]),
        (5 * GB, 80 * GB, 4, [2, 4]),
        (13 * GB, 24 * GB, 16, []),
    ],
)
def test_no_more_trials_a_gpu_than_memory_and_cores(peak: int, gpu: int, cores: int, fitting: list[int]) -> None:
    assert estimate.slots_that_fit(peak, gpu, cores) == fitting


@pytest.mark.parametrize(
    ("rates", "pays"),
    [
        ({1: 1.0, 2: 1.9, 4: 3.5, 8: 6.1}, 8),
        ({1: 1.0, 2: 1.9, 4: 2.6, 8: 2.7}, 4),  # It saturates: eight would gain less than 5 %.
        ({1: 1.0, 2: 1.8, 4: 1.6, 8: 1.2}, 2),
        ({1: 1.0, 2: 1.02, 4: 0.9}, 1),
        ({1: 1.0}, 1),
    ],
)
def test_as_many_trials_a_gpu_as_pay(rates: dict[int, float], pays: int) -> None:
    assert estimate.slots_that_pay(rates) == pays


def test_trials_side_by_side_are_measured_as_far_as_they_fit(
    splits: Splits, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def planted(settings: Any, kinds: Any, splits: Splits) -> list[Cost]:
        asked.append((settings.concurrency, settings.gpus_per_trial, len(kinds)))
        slower = max(1.0, settings.concurrency / 2)  # The GPU does two at a time.
        return [Cost(config, share, config.batch_size * slower, 15 * GB, 1) for config, share in kinds]

    monkeypatch.setattr(estimate, "measure", planted)
    monkeypatch.setattr(machine, "gpu_memory", lambda: [80 * GB, 80 * GB])
    monkeypatch.setattr(machine, "cores", lambda: 16)
    kinds = [(tiny.model_copy(update={"batch_size": size}), 0.25) for size in (32, 8, 16, 64)]
    rates = estimate.measure_slots(gpu_settings(), kinds, splits)
    assert rates == pytest.approx({1: 3 / (8 + 32 + 64), 2: 6 / (8 + 32 + 64), 4: 6 / (8 + 32 + 64)})
    assert asked == [(1, 1.0, 4), (2, 0.5, 1), (2, 0.5, 3), (4, 0.25, 1), (4, 0.25, 3)]
    said = estimate.text(settings(device="cuda"), [cost(1.0)], estimate.summarise(settings(), [cost(1.0)]), rates)
    assert "on one GPU: 1.7 with 1, 3.5 with 2, 3.5 with 4. A search of this space here runs 2 a GPU" in said


def gpu_settings() -> Settings:
    settled = {"samples": 4, "epochs": 3, "seed": 0, "sampler": "random", "scheduler": "none", "train_images": None}
    slots = vars(plan_slots(SlotRequest()))
    return Settings(space="smoke", dataset="x", data_dir=None, max_failures=0, time_budget=None, **settled, **slots)


def test_what_pays_is_recalled_for_the_same_space_data_set_and_gpus_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu_memory", lambda: [80 * GB])
    estimate.keep({"samples": 20}, {"seconds": 60.0}, tmp_path)
    estimate.keep_slots("def space", "digits", {1: 1.0, 2: 1.9}, tmp_path)
    assert estimate.recall_slots("def space", "digits", tmp_path) == 2
    assert estimate.recall_slots("def space2", "digits", tmp_path) is None
    assert estimate.recall_slots("def space", "letters", tmp_path) is None
    assert estimate.recall({"samples": 20}, tmp_path) == {"seconds": 60.0}
    monkeypatch.setattr(machine, "gpu_memory", lambda: [24 * GB])
    assert estimate.recall_slots("def space", "digits", tmp_path) is None


def test_a_dry_run_chooses_the_slots_and_a_later_search_takes_them_and_says_so(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "gpu_memory", lambda: [80 * GB])
    monkeypatch.setattr(machine, "cores", lambda: 16)
    monkeypatch.setattr("tuning.trials.local_ray.started", lambda slots, log, **more: contextlib.nullcontext())
    monkeypatch.setattr(estimate, "measure_slots", lambda settings, kinds, splits: {1: 1.0, 2: 1.9, 4: 2.0, 8: 3.9})
    monkeypatch.setattr(estimate, "measure", lambda settings, kinds, splits: [cost(settings.concurrency)])
    asked = []

    def load(settings: Settings, source: str, progress: Any, own: str) -> tuple[Settings, Splits, Any]:
        asked.append((settings.concurrency, settings.gpus_per_trial))
        if len(asked) > 1:
            raise UserError("far enough")
        return settings, splits, load_space(source)

    monkeypatch.setattr(loading, "load", load)
    with contextlib.suppress(UserError):
        search.main(space="smoke", dry_run_only=True)
    assert "runs 8 a GPU from now on" in capsys.readouterr().out
    for arguments in ({}, {"concurrency": 2}, {"gpus_per_trial": 0.5}):
        with pytest.raises(UserError, match="far enough"):
            search.main(space="smoke", **arguments)
        assert ("Trials on each GPU: 8, as the dry run" in capsys.readouterr().out) == (not arguments)
    assert asked == [(4, 0.25), (8, 0.125), (2, 0.5), (2, 0.5)]


def test_an_estimate_that_cannot_be_kept_is_said_and_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        estimate.keep({"seed": 0}, {"seconds": 1.0}, root)
        assert capsys.readouterr().out.startswith("The estimate is not kept: ")


def test_an_estimate_is_recalled_for_the_same_settings_only(tmp_path: Path) -> None:
    estimate.keep({"samples": 20}, {"seconds": 60.0}, tmp_path)
    estimate.keep({"samples": 30}, {"seconds": 90.0}, tmp_path)
    assert estimate.recall({"samples": 20}, tmp_path) == {"seconds": 60.0}
    assert estimate.recall({"samples": 40}, tmp_path) is None
    (tmp_path / estimate.FILE).write_text("{")
    assert estimate.recall({"samples": 20}, tmp_path) is None


@pytest.mark.slow
def test_a_dry_run_says_what_the_search_takes_and_the_search_how_far_off_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuning.search", "--space", "smoke", "--train-images", "1000", "--samples", "2"]
    command += ["--epochs", "2"]
    dry = subprocess.run([*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr
    assert "resnet8-4" in dry.stdout and "The search      about" in dry.stdout and "Disk" in dry.stdout
    assert [path.name for path in (tmp_path / "results").iterdir()] == [estimate.FILE]
    done = subprocess.run([*command, "--run", "one"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The dry run said" in done.stdout
    assert json.loads((tmp_path / "results" / "one" / "meta.json").read_text())["estimate"]["seconds"] > 0
