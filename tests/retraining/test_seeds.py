"""What fresh seeds say, on planted cases: the true means are known, the noise is ours."""

import math

import numpy as np
import pandas as pd
import pytest

from tuning.retraining import seeds

N_VALID, NOISE = 5_000, 0.002


def table(rows: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index", columns=range(1, len(next(iter(rows.values()))) + 1))


def contest(
    truth: "pd.Series[float]", draw: np.random.Generator, n_seeds: int = 3
) -> tuple["pd.Series[float]", pd.DataFrame]:
    """Returns the search's values of the best three configurations, and the fresh ones that `final` would have."""
    search = (truth + draw.normal(0, NOISE, len(truth))).nlargest(3)
    every = pd.DataFrame(draw.normal(0, NOISE, (3, n_seeds)), search.index, range(1, n_seeds + 1))
    every = every.add(truth[search.index], axis="index")
    values = every[[1]].reindex(columns=every.columns)
    while True:
        dropped = seeds.dropped(values, str(values[1].idxmax()), independent(values[1]))
        more = values.combine_first(every.loc[~every.index.isin(dropped)]).loc[values.index]
        if more.equals(values):
            return search, values
        values = more


def independent(firsts: "pd.Series[float]") -> "pd.Series[float]":
    """Returns the errors of the differences to the best as if each image were right or wrong by chance alone."""
    variance = firsts * (1 - firsts) / N_VALID
    return (variance + variance[firsts.idxmax()]) ** 0.5


@pytest.mark.slow
def test_choosing_by_fresh_seeds_finds_the_best_more_often_and_shrinkage_is_within_its_interval() -> None:
    draw = np.random.default_rng(0)
    n_cases, by_search, by_seeds, covered, luck = 400, 0, 0, 0, []
    for _ in range(n_cases):
        truth = pd.Series(np.sort(draw.normal(0.93, 0.004, 20))[::-1], index=[f"c{i}" for i in range(20)])
        search, values = contest(truth, draw)
        by_search += search.index[0] == "c0"
        by_seeds += seeds.choose(values) == "c0"
        estimate = seeds.shrinkage(search, values)
        luck.append(float((search - truth[search.index]).mean()))
        covered += estimate.low <= luck[-1] <= estimate.high
    assert by_seeds > by_search + 20, (by_search, by_seeds)
    assert np.mean(luck) > 0.0005
    assert 0.92 <= covered / n_cases <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n_whole", [1, 2, 3])
def test_the_interval_of_a_difference_holds_the_true_one_at_its_rate(n_whole: int) -> None:
    """Also where seeds have an effect of their own, and where some configurations have one seed only."""
    draw = np.random.default_rng(n_whole)
    truth, covered, n_cases = np.array([0.94, 0.937, 0.93]), 0, 500
    for _ in range(n_cases):
        noise = draw.normal(0, NOISE, (3, 3)) + (draw.normal(0, NOISE, 3) if n_whole > 1 else 0)
        values = pd.DataFrame(truth[:, None] + noise, index=list("abc"), columns=[1, 2, 3])
        values.loc[values.index[n_whole:], [2, 3]] = math.nan
        row = seeds.summarise(values, "a").loc["c"]
        covered += row["difference_low"] <= 0.01 <= row["difference_high"]
    assert 0.925 <= covered / n_cases <= 0.975


def test_the_best_is_chosen_among_those_with_every_seed_and_the_first_of_equals() -> None:
    values = table({"a": [0.9, 0.92], "b": [0.92, 0.9], "c": [0.99, math.nan]})
    assert seeds.choose(values) == "a"


def test_means_and_differences_are_over_the_seeds_that_there_are() -> None:
    values = table({"a": [0.94, 0.95], "b": [0.93, 0.95], "c": [0.92, math.nan], "d": [math.nan, math.nan]})
    found = seeds.summarise(values, "a")
    assert list(found["valid_accuracy_mean"].round(6))[:3] == [0.945, 0.94, 0.92]
    assert list(found["difference"].round(6))[:3] == [0.0, 0.005, 0.02]
    assert found.loc["a", ["difference_low", "difference_high"]].tolist() == [0, 0]
    assert found.loc["d"].isna().all()
    # By hand: within, (0.005² * 2 + 0.01² * 2) / 2 on 2 degrees of freedom, t 4.303; residuals, 0.0025² * 4 on 1, t
    # 12.706.
    assert found.loc["a", "valid_accuracy_high"] - 0.945 == pytest.approx(4.3027 * math.sqrt(0.000125 / 2), rel=1e-3)
    assert found.loc["b", "difference_high"] - 0.005 == pytest.approx(12.706 * 0.005, rel=1e-3)
    assert found.loc["c", "difference_high"] - 0.02 == pytest.approx(12.706 * 0.005 * math.sqrt(2), rel=1e-3)


def test_a_single_seed_gives_no_interval() -> None:
    values = table({"a": [0.94], "b": [0.93]})
    found = seeds.summarise(values, "a")
    assert found["difference"].round(6).tolist() == [0.0, 0.01]
    assert math.isnan(found.loc["b", "difference_low"]) and found["valid_accuracy_std"].isna().all()
    estimate = seeds.shrinkage(pd.Series({"a": 0.95, "b": 0.95}), values)
    assert estimate.value == pytest.approx(0.015) and math.isnan(estimate.low)


def test_who_is_far_behind_on_the_first_seed_is_beaten_unless_seeds_turn_out_to_differ_more() -> None:
    values = table({"a": [0.94, math.nan, math.nan], "near": [0.933] + [math.nan] * 2, "far": [0.925] + [math.nan] * 2})
    noise = independent(values[1])
    assert seeds.dropped(values, "a", noise) == {"far"}
    assert seeds.dropped(values[[1]], "a", noise) == set()
    values.loc["a"] = [0.94, 0.92, 0.93]
    assert seeds.dropped(values, "a", noise) == set()
    assert seeds.dropped(values, "a", noise, shared=True) == {"far"}  # Folds are harder or easier for both.


def test_each_further_seed_is_asked_and_differences_that_vary_keep_their_row() -> None:
    noise = {"a": 0.0, "b": 0.004, "c": 0.004}
    values = table({"a": [0.94, 0.9, 0.92], "b": [0.934, math.nan, math.nan], "c": [0.934, math.nan, math.nan]})
    assert seeds.dropped(values, "a", noise, shared=True) == set()
    values.loc["b"] = [0.934, 0.894, math.nan]
    assert seeds.dropped(values, "a", noise, shared=True) == {"b"}
    values.loc["c"] = [0.934, 0.91, math.nan]
    assert seeds.dropped(values, "a", noise, shared=True) == set()
    values.loc["b"] = [0.934, 0.894, 0.914]
    assert seeds.dropped(values, "a", noise, shared=True) == set()  # With every fold there is nothing left to save.


def test_of_two_that_are_nearly_as_good_a_candidate_gets_no_more_where_it_would_hardly_add_anything() -> None:
    nan, noise = math.nan, {"a": 0.0, "b": 0.007}
    values = table({"a": [0.99, nan, nan, nan, nan], "b": [0.987, nan, nan, nan, nan]})
    both = {"shared": True, "candidates": ("a", "b")}
    assert seeds.dropped(values, "a", noise, **both) == set()  # By hand: 0.0025 on average, of 0.0089 either way.
    values = table({"a": [0.99, 0.98, nan, nan, nan], "b": [0.987, 0.977, nan, nan, nan]})
    assert seeds.dropped(values, "a", noise, **both) == {"b"}  # 0.0005 of 0.0038.
    assert seeds.dropped(values, "a", noise, shared=True, candidates=("a",)) == set()  # A comparison cannot win.
    values = table({"a": [0.99, 0.98, nan, nan, nan], "b": [0.9899, 0.9799, nan, nan, nan]})
    assert seeds.dropped(values, "a", noise, **both) == set()


def test_fresh_seeds_are_distinct_the_same_each_time_and_none_that_was_used() -> None:
    first = seeds.fresh_seeds("run", 5)
    assert len(set(first)) == 5 and all(0 <= seed < 2**31 for seed in first)
    assert seeds.fresh_seeds("run", 3) == first[:3]
    assert seeds.fresh_seeds("run", 4, {first[1]}) == (first[0], *first[2:])
    assert not set(first) & set(seeds.fresh_seeds("another", 5))


def test_the_best_of_two_is_too_high_by_what_the_textbook_says() -> None:
    assert [round(seeds.best_of(n), 3) for n in (1, 2, 3, 10)] == [0.0, 0.564, 0.846, 1.539]
