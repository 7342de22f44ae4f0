"""The page of a run: what it says and leaves out, that files' texts stay texts, and how it behaves in a browser."""

import base64
import errno
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import write_run
from PIL import Image

from tuning import report
from tuning.base import files
from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.figures import model_charts, page_text, run_charts, run_figures, run_page, thumbnails
from tuning.runs import analysis, final_models, run_folder, schema, summaries
from tuning.runs.verdicts import verdicts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ("T-shirt/top", "Bag & <b>strap</b>", "Sandal")
SCRIPT = "</script><script>alert(1)</script>"
HEADER = "<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """What a browser would make of a page: its tags, its texts, and what its <data> and <td> elements stand for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.numbers: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.numbers |= {str(value) for name, value in attrs if name in ("value", "data-value")}
        self.texts += [str(value) for name, value in attrs if name == "data-figure"]

    def handle_data(self, data: str) -> None:
        if self.lasttag not in ("script", "style"):
            self.texts.append(data)

    def says(self, text: str) -> bool:
        return text in " ".join(" ".join(self.texts).split())


def make_run(
    path: Path, n_trials: int = 12, n_epochs: int = 6, *, running: bool = False, error: str = ""
) -> run_folder.Run:
    """Writes a run whose trial 3 is the best, 1 failed and, if asked for, the last one is still running."""
    draw, path = np.random.default_rng(1), path.absolute()
    files.make_folder(path)
    meta = {
        "dataset": "fashion-mnist",
        "settings": {"concurrency": 2},
        "seed": 7,
        "started": "2026-11-23T10:00:00+00:00",
    }
    files.write_json(path / "meta.json", meta | ({} if running else {"ended": "2026-11-23T11:00:00+00:00"}))
    trials, epochs = [], []
    for trial in range(n_trials):
        state = {1: "failed", n_trials - 1: "running" if running else "complete"}.get(trial, "complete")
        length = 2 if trial % 4 == 2 else n_epochs
        state = "pruned" if state == "complete" and length == 2 else state
        accuracy = np.sort(draw.uniform(0.5, 0.93, length))
        if trial == 3:
            accuracy[-1] = 0.97  # As `make_final` has it.
        config = TrainConfig(learning_rate=10 ** draw.uniform(-3, -1), batch_size=[64, 128][trial % 2])
        row = {"trial": trial, "state": state, "valid_accuracy": accuracy[-1], "valid_loss": 0.3, "epochs": length}
        times = {
            "started": f"2026-11-23T10:{trial % 60:02}:00+00:00",
            "ended": f"2026-11-23T11:{trial % 60:02}:30+00:00",
        }
        row |= times | {
            "seconds": draw.uniform(100, 200),
            "n_parameters": 77754,
            "error": error if trial == 1 else None,
        }
        trials.append(row | {f"config/{name}": value for name, value in config.model_dump().items()})
        for epoch in range(length):
            epochs.append({"trial": trial, "epoch": epoch + 1, "valid_accuracy": accuracy[epoch]})
    files.write_rows(path / "trials.csv", schema.TRIAL_COLUMNS, trials)
    files.write_rows(path / "epochs.csv", schema.EPOCH_COLUMNS, epochs)
    return run_folder.Run(path)


def make_final(folder: Path, run: str, *, n: int = 400, side: int = 8, names: tuple[str, ...] = NAMES) -> Path:
    """Writes what `final` leaves behind for a run: nine in ten right, three configurations on three seeds."""
    folder.mkdir()
    draw = np.random.default_rng(2)
    labels = draw.integers(0, len(names), n)
    logits = draw.normal(0, 1, (n, len(names))) + 4 * np.eye(len(names))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    components = analysis.pca(logits)
    np.savez(
        folder / "test_outputs.npz",
        labels=labels,
        probabilities=probabilities.astype(np.float32),
        points=components.points,
        explained=components.explained,
        images=draw.integers(0, 256, (n, 1, side, side), dtype=np.uint8),
    )
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    metrics = {"run": run, "trial": 3, "seeds": [1, 2, 3], "test_accuracy": accuracy, "test_opened": 2, "ece": 0.1 / 3}
    metrics |= {"test_interval": list(analysis.wilson_interval(round(accuracy * n), n)), "search_valid_accuracy": 0.97}
    metrics |= {"test_accuracy_mean": 0.9123456789012345, "test_accuracy_std": 0.0012345678901234567}
    metrics |= {"valid_accuracy": 0.95, "valid_accuracy_mean": 0.9487654321098765, "shrinkage": 0.1 + 0.2}
    metrics |= {"shrinkage_interval": [0.1 / 7, 0.2 / 7], "default_difference": 1 / 30, "lengthening": 2.0}
    metrics |= {
        "default_difference_interval": [0.02, 0.05],
        "random_difference": None,
        "random_difference_interval": None,
    }
    files.write_json(folder / "metrics.json", metrics)
    files.write_json(folder / "config.json", {"class_names": names})
    final_frame().to_csv(folder / "final.csv", index=False)
    predictions = probabilities.argmax(axis=1)
    analysis.classification_report(labels, predictions, names).to_csv(folder / "classification_report.csv", index=False)
    lines = [{"time": "2026-11-23T12:00:00.123+00:00", "event": "opened", "seeds": [1, 2, 3]}, {"event": "result"}]
    (folder / "test_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def final_frame() -> pd.DataFrame:
    seeds = np.random.default_rng(3).uniform(0.9, 0.95, (3, 3))
    seeds[1, 2] = np.nan
    frame = pd.DataFrame({"role": ["candidate", "candidate", "default"], "rank": [1, 2, None], "trial": [3, 5, None]})
    frame = frame.astype({"rank": "Int64", "trial": "Int64"}).assign(config_hash=["a1", "12", "c3"])
    mean, std = np.nanmean(seeds, axis=1), np.nanstd(seeds, axis=1, ddof=1)
    frame = frame.assign(search_valid_accuracy=[0.97, 0.96, None], valid_accuracy_mean=mean, valid_accuracy_std=std)
    frame = frame.assign(valid_accuracy_low=mean - 0.01, valid_accuracy_high=mean + 0.01, difference=mean[0] - mean)
    frame = frame.assign(difference_low=-0.01, difference_high=0.01, chosen=[True, False, False], seconds=1234.5)
    return frame.assign(**{f"seed_{i + 1}": seeds[:, i] for i in range(3)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> run_folder.Run:
    return make_run(tmp_path_factory.mktemp("page") / "first")


@pytest.fixture(scope="module")
def model_dir(run: run_folder.Run) -> Path:
    return make_final(run.path.parent / "best_model", run.name)


@pytest.fixture(scope="module")
def written(run: run_folder.Run, model_dir: Path) -> Path:
    return run_page.write(run, model_dir)


def test_the_numbers_of_the_page_are_those_of_the_files_to_the_last_digit(written: Path, model_dir: Path) -> None:
    page = Page(written.read_text())
    metrics = json.loads((model_dir / "metrics.json").read_text())
    shown = ["test_accuracy", "test_accuracy_mean", "test_accuracy_std", "valid_accuracy_mean", "shrinkage", "ece"]
    ends = [*metrics["test_interval"], *metrics["shrinkage_interval"]]
    assert {str(value) for value in [*ends, *(metrics[name] for name in shown)]} <= page.numbers
    final = final_frame().drop(columns="chosen")
    assert {str(value) for value in final.to_numpy().ravel() if pd.notna(value)} <= page.numbers
    trials = run_folder.Run(written.parent).trials
    assert {str(value) for value in trials["valid_accuracy"]} <= page.numbers
    assert {str(value) for value in trials["config/learning_rate"]} <= page.numbers
    assert (
        page.says("91.23% ± 0.12") and page.says("opened 2 times") and page.says("3.33 points better than the default")
    )
    assert page.says("2026-11-23 12:00 UTC") and page.says("1, 2, 3") and page.says("trained 2 times as long")


def test_a_run_alone_leaves_out_what_only_final_knows(run: run_folder.Run, model_dir: Path, tmp_path: Path) -> None:
    sections = {"seeds", "confusion", "reliability", "features"}
    alone = Page(run_page.render(run, None))
    assert not sections & set(alone.texts)
    assert {"best_so_far", "learning_curves", "parallel_coordinates"} <= set(alone.texts)
    assert alone.says("Best validation accuracy") and not alone.says("Test accuracy")
    assert not alone.says("Was the search worth it") and not alone.says("Openings of the test images")
    assert sections <= set(Page(run_page.render(run, final_models.load(run, model_dir))).texts)
    assert final_models.load(run, make_final(tmp_path / "best_model", "another")) is None
    assert final_models.load(run, tmp_path / "nothing") is None


def test_a_final_without_its_frames_still_has_its_answer(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    metrics = json.loads((folder / "metrics.json").read_text())
    files.write_json(folder / "metrics.json", metrics | {"test_accuracy_std": None, "test_opened": 1})
    for name in ("final.csv", "test_outputs.npz", "classification_report.csv", "test_log.jsonl"):
        (folder / name).unlink()
    page = Page(run_page.render(run, final_models.load(run, folder)))
    assert page.says(f"{metrics['test_accuracy']:.2%} 95% interval") and not page.says("have been opened")
    assert not {"seeds", "confusion"} & set(page.texts)


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({}, "without averaging"),
        ({"flip_averaging": True}, "with flip averaging (2 views)"),  # As version 0.2.0 wrote it.
        ({"averaging": "shift", "flip_averaging": False}, "with shift averaging (5 views)"),
    ],
)
@pytest.mark.parametrize("test_std", [None, 0.01])
def test_the_page_says_what_the_figure_is_an_average_over(
    run: run_folder.Run, tmp_path: Path, recorded: dict[str, Any], said: str, test_std: float | None
) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    metrics = json.loads((folder / "metrics.json").read_text())
    files.write_json(folder / "metrics.json", metrics | recorded | {"test_accuracy_std": test_std})
    assert Page(run_page.render(run, final_models.load(run, folder))).says(said)


def test_of_what_was_distilled_the_page_says_so_beside_each_mean(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    metrics = json.loads((folder / "metrics.json").read_text()) | {"test_accuracy_std": 0.01}
    metrics |= {"distilled": {"teachers": 3, "test_score_mean": 0.91}, "single": {"test_score_mean": 0.89}}
    pages = []
    for shipped in ("distilled", "single"):
        files.write_json(folder / "metrics.json", metrics | {"shipped": shipped})
        pages.append(Page(run_page.render(run, final_models.load(run, folder))))
    taught, alone = pages
    assert taught.says("has learned from 3 models; the same configuration, taught by the labels alone, has 89.00% on")
    assert taught.says("fresh seeds, distilled. The saved model:") and taught.says("on fresh seeds, distilled.")
    assert alone.says("learned from the ensemble have 91.00% on average; they were not better")
    assert not alone.says(", distilled.") and alone.says("fresh seeds. The saved model:")


def test_of_an_ensemble_the_page_says_that_the_figure_is_not_of_a_seed(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    metrics = json.loads((folder / "metrics.json").read_text())
    files.write_json(folder / "metrics.json", metrics | {"shipped": "ensemble", "test_accuracy_std": None})
    page = Page(run_page.render(run, final_models.load(run, folder)))
    assert page.says("of the ensemble, without averaging") and not page.says("on a fresh seed,")


def test_the_winners_epochs_and_the_time_are_those_of_final(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    files.write_json(folder / "config.json", {"class_names": NAMES, "config": {"epochs": 97}})
    metrics = json.loads((folder / "metrics.json").read_text())
    files.write_json(folder / "metrics.json", metrics | {"seconds_total": 6060.0})
    page = Page(run_page.render(run, final_models.load(run, folder)))
    assert "97" in page.texts and page.says("fresh seeds: 101 slot minutes")
    assert page.texts.index("97") < page.texts.index("What was the same in all trials")


def test_labels_to_check_are_shown_with_their_images(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    texts = {"image": ["bag/1.jpg", f"{HEADER}.jpg"], "label": NAMES[:2], "predicted": NAMES[1:]}
    found = pd.DataFrame(texts | {"label_probability": [0.001, 0.25], "predicted_probability": [0.97, 0.5]})
    found.to_csv(folder / "suspects.csv", index=False)
    old = run_page.render(run, final_models.load(run, folder))
    assert Page(old).says("Labels to check") and 'class="mistakes suspects"' not in old  # Of an earlier version.
    photos = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 30), dtype=np.uint8)
    np.savez(folder / "suspects.npz", images=photos)
    html = run_page.render(run, final_models.load(run, folder))
    gallery = html.partition('class="mistakes suspects"')[2].partition("<details>")[0]
    assert HEADER not in html and gallery.count("<figure>") == 2
    shown = Page(gallery)
    assert shown.says("bag/ 1.jpg") and shown.says(f"taken for {NAMES[1]}, 97.0%") and shown.says("0.1%")
    first = base64.b64decode(gallery.partition("data:image/jpeg;base64,")[2].partition('"')[0])
    assert np.abs(np.asarray(Image.open(io.BytesIO(first))).mean() - photos[0].mean()) < 3


@pytest.mark.parametrize("is_own", [False, True])
def test_gray_photos_are_no_negatives_in_the_dark(run: run_folder.Run, tmp_path: Path, is_own: bool) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    described = files.read_json(folder / "config.json") | ({"resize": "crop"} if is_own else {})
    files.write_json(folder / "config.json", described)
    html = run_page.render(run, final_models.load(run, folder))
    assert ('<img class="ink"' in html, "<i class=ink>" in html) == (not is_own, not is_own)


def test_a_matrix_of_many_classes_has_the_width_of_the_page(run: run_folder.Run, tmp_path: Path) -> None:
    names = tuple(f"species {i} of a genus with a long name" for i in range(17))
    folder = make_final(tmp_path / "best_model", run.name, names=names)
    html = run_page.render(run, final_models.load(run, folder))
    assert 'class="pair"' not in html and f"min-width: {40 + 7 * 28 + 20 * 17}px" in html
    counts = analysis.confusion(np.arange(17), np.arange(17), names)
    assert max(map(len, model_charts.confusion(counts).layout.xaxis.ticktext)) <= 28


def test_of_very_many_classes_the_page_shows_those_that_are_most_often_confused(
    run: run_folder.Run, tmp_path: Path
) -> None:
    names = tuple(f"species {i}" for i in range(300))
    folder = make_final(tmp_path / "best_model", run.name, n=900, names=names)
    html = run_page.render(run, final_models.load(run, folder))
    assert f"min-width: {40 + 7 * 11 + 20 * 100}px" in html
    assert Page(html).says("Of the 300 classes, the 100 that are most often confused are shown.")
    figures = json.loads(_figures(html))
    assert len(figures["confusion"]["data"][0]["text"]) == 100 and len(json.dumps(figures["confusion"])) < 1e6
    features = figures["features"]["data"]
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in features}
    assert len(looks) == len(features) == 101 and features[0]["name"] == "185 others"


def test_the_matrix_has_each_name_once(run: run_folder.Run) -> None:
    names = [f"a name that is long enough to be cut, {i}" for i in range(100)]
    drawn = model_charts.confusion(analysis.confusion(np.arange(100), np.arange(100), names)).to_json()
    assert len(drawn) < 3e5


def test_a_run_that_is_still_going_is_shown_so_far(tmp_path: Path) -> None:
    page = Page(run_page.render(make_run(tmp_path / "going", 5, running=True), None))
    assert page.says("The search has not ended") and page.says("1 running") and "learning_curves" in page.texts
    empty = Page(run_page.render(make_run(tmp_path / "new", 0, running=True), None))
    assert empty.says("0 trials (none yet)") and not {"best_so_far", "learning_curves"} & set(empty.texts)
    first = Page(run_page.render(make_run(tmp_path / "one", 1, running=True), None))
    assert "learning_curves" in first.texts and not first.says("Winner")


@pytest.mark.parametrize(
    ("minutes", "unit", "said"),
    [
        (0.4, "", ">24 s<"),
        (0.999, "", ">1 min<"),
        (12.4, "slot", ">12 slot minutes<"),
        (1 / 60, "slot", ">1 slot second<"),
        (math.nan, "slot", page_text.NOTHING),
        (math.inf, "", page_text.NOTHING),
    ],
)
def test_times_are_said_in_seconds_up_to_a_minute(minutes: float, unit: str, said: str) -> None:
    assert said in page_text.spent(minutes, unit)


def test_a_run_whose_trials_have_not_begun_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "queued", 1, running=True)
    never = {"started": None, "ended": None, "seconds": None}
    files.write_rows(run.path / "trials.csv", schema.TRIAL_COLUMNS, run.trials.assign(**never).to_dict("records"))
    run = run_folder.Run(run.path)
    assert Page(run_page.render(run, None)).says("0 s")
    assert "1 trial (1 running), 0.0 minutes" in summaries.summary_line(run)


def test_what_comes_from_files_is_text_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / HEADER, error=SCRIPT)
    files.write_json(run.path / "meta.json", run.meta | {"command": SCRIPT, SCRIPT: {SCRIPT: [SCRIPT]}})
    folder = make_final(tmp_path / "best_model", run.name, names=(SCRIPT, HEADER, "Bag"))
    html = run_page.render(run, final_models.load(run, folder))
    page = Page(html)
    assert page.tags.count("script") == 3 and "b" in page.tags
    assert page.tags.count("img") == len(
        thumbnails.pictures(dict(np.load(io.BytesIO((folder / "test_outputs.npz").read_bytes()))), "abc")["mistakes"]
    )
    assert page.says(HEADER) and page.says(SCRIPT)
    assert HEADER not in html and SCRIPT not in html


def test_texts_of_figures_are_escaped_for_plotly_which_reads_html(run: run_folder.Run) -> None:
    counts = analysis.confusion(np.array([0, 1]), np.array([0, 0]), (HEADER, "Bag"))
    assert "&lt;img" in model_charts.confusion(counts).layout.xaxis.ticktext[0]
    frame = pd.DataFrame({"parameter": [HEADER, "b"], "importance": [0.7, 0.3], "method": "<i>"})
    figure = run_charts.importances(frame)
    assert "<img" not in figure.to_json() and figure.data[0].name == "&lt;i&gt;"
    trials = run.trials.assign(**{"config/optimizer": [HEADER, *["sgd"] * 11]})
    for drawn in (
        run_charts.best_so_far(analysis.best_so_far(trials, run.clock), trials),
        run_charts.learning_curves(run.epochs, trials, 3),
    ):
        assert "onerror" in drawn.to_json() and "\\u003cimg" not in drawn.to_json()


def test_rounded_numbers_stay_what_they_are(run: run_folder.Run) -> None:
    assert page_text.spoken(5142, "n_parameters") == "5,142" and page_text.spoken(5142) == "5142"
    assert page_text.percent(math.nan) == page_text.percent(None) == page_text.NOTHING
    assert [page_text.spoken(value) for value in (1024.0, 0.9999, 0.12345, 12345.6)] == [
        "1024",
        "0.9999",
        "0.123",
        "12,346",
    ]
    decays = [0.9999, *[0.99] * 11]
    texts = run_charts.described(run.trials.assign(**{"config/ema_decay": decays}))
    assert "ema decay 0.9999" in texts[0] and "ema decay 0.99<" in texts[1] + "<"


def test_a_quote_is_shown_as_it_is_by_plotly_which_does_not_know_its_entity() -> None:
    names = ('6" pipe', "b & <i>")
    drawn = model_charts.confusion(analysis.confusion(np.array([0, 1]), np.array([0, 0]), names))
    assert drawn.layout.xaxis.ticktext == ('6" pipe', "b &amp; &lt;i&gt;")
    places = {"points": np.zeros((2, 2)), "explained": np.zeros(2), "labels": np.array([0, 1]), "texts": ["", ""]}
    scatter = model_charts.features(**places, class_names=names, numbers={0: 0, 1: 1})
    assert [trace.name for trace in scatter.data] == ['6" pipe', "b &amp; &lt;i&gt;"]
    trials = pd.DataFrame({"trial": [0, 1], "config/stem": ['a"b', "c"]})
    assert run_charts.described(trials)[0] == 'stem a"b'


def test_the_page_of_a_thousand_trials_grows_with_their_number_only() -> None:
    rates = np.geomspace(1e-4, 1, 1000)
    trials = pd.DataFrame({"trial": range(1000), "valid_accuracy": 0.9, "config/learning_rate": rates})
    figure = run_charts.parallel_coordinates(trials)
    texts = figure.data[0].dimensions[0].ticktext
    assert len(set(texts)) == len(texts) >= 1000
    assert sum(map(len, texts)) < 6 * len(texts)
    assert all(text.isascii() or not text.strip("\u200b\u200c\u200d\u2060") for text in texts)


def test_a_stopped_trial_is_hollow_in_the_best_so_far_and_a_paused_one_has_a_dot(run: run_folder.Run) -> None:
    trials = run.trials
    trials.loc[trials["state"].eq("pruned").idxmax(), "state"] = "paused"
    _, *dots = run_charts.best_so_far(analysis.best_so_far(trials, run.clock), trials).data
    assert [each.marker.symbol for each in dots] == ["circle", "circle-open", "circle-open-dot"]
    for each, state in zip(dots, ("complete", "pruned", "paused"), strict=True):
        assert len(each.x) == (trials["state"] == state).sum() and all(f"({state})" in text for text in each.text)
    assert len(dots[0].x) > 0 and len(dots[2].x) == 1


def test_importances_have_a_colour_a_method_and_their_interval() -> None:
    frame = pd.DataFrame({"parameter": ["a", "b"] * 2, "importance": [0.7, 0.3, 0.6, 0.4]})
    (plain,) = run_charts.importances(frame.head(2)).data
    assert plain.error_x.array is None and list(plain.x) == [0.7, 0.3]
    frame = frame.assign(method=["PED-ANOVA"] * 2 + ["fANOVA"] * 2, low=frame["importance"] - 0.1, high=0.9)
    one, two = run_charts.importances(frame).data
    assert (one.name, two.name) == ("PED-ANOVA", "fANOVA")
    assert np.allclose(one.error_x.array, [0.2, 0.6]) and np.allclose(two.error_x.arrayminus, 0.1)


def test_importances_come_from_the_study_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    assert "importances" not in Page(run_page.render(run, None)).texts and not (run.path / "study.db").exists()
    study = optuna.create_study(study_name="of another name", storage=f"sqlite:///{run.path}/study.db")
    space = {"learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True)}
    for row in run.trials.to_dict("records"):
        params = {"learning_rate": row["config/learning_rate"]}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=row["valid_accuracy"]))
    assert "importances" in Page(run_page.render(run, None)).texts


def test_an_edge_is_shown_with_the_line_of_the_space(tmp_path: Path) -> None:
    inside, edge = write_run(tmp_path / "inside", 20), write_run(tmp_path / "edge", 20, best=1.0)
    assert not Page(run_page.render(inside, None, pd.DataFrame())).says("At the edge")
    shutil.copy(files.SPACES / "smoke.py", edge.path / "space.py")
    page = Page(run_page.render(edge, None, pd.DataFrame()))
    assert page.says("The best of the 20 trials that drew learning_rate lie at the upper end of its range")
    assert page.says('space.py, line 12: "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True),')
    assert page.says('a wider range: "learning_rate": trial.suggest_float("learning_rate", 1e-3, 4.0, log=True),')
    assert page.says("To search beyond it, change")
    (edge.path / "space.py").unlink()
    page = Page(run_page.render(edge, None, pd.DataFrame()))
    assert page.says("Let it end at 4.0 in the space, for example.") and not page.says("a wider range")


def test_an_audit_and_a_front_are_shown_where_there_are_some(
    run: run_folder.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page(run_page.render(run, None))
    assert not page.says("Early stopping, audited") and "pareto" not in page.texts
    shutil.copytree(run.path, tmp_path / "first")
    copy = run_folder.Run(tmp_path / "first")
    found = {"trials": [4], "n_stopped": 2, "best_audited": 0.91, "loss": 0.1 / 3}
    audit = found | {"rungs": [{"epoch": 2, "rank_correlation": 0.5 / 3, "n": 5}]}
    files.write_json(copy.path / "meta.json", copy.meta | {"audit": audit})
    trials = copy.trials.assign(pareto=copy.trials["trial"].isin([3, 4]))
    monkeypatch.setitem(schema.TRIAL_COLUMNS, "pareto", "boolean")
    trials.to_csv(copy.path / "trials.csv", index=False)
    page = Page(run_page.render(copy, None))
    assert page.says("seconds parameters learning rate batch size pareto")
    assert (
        page.says("reached 91.00%, so stopping is estimated to have lost 3.33 points.") and str(0.5 / 3) in page.numbers
    )
    assert "pareto" in page.texts and page.says("Accuracy against trainable parameters")
    front = run_charts.pareto(trials, "n_parameters").data[1]
    assert sorted(front.y) == sorted(trials.loc[trials["pareto"], "valid_accuracy"])


def test_a_front_is_of_complete_trials_and_says_against_what(run: run_folder.Run, tmp_path: Path) -> None:
    copy = run_folder.Run(Path(shutil.copytree(run.path, tmp_path / "first")))
    files.write_json(copy.path / "meta.json", copy.meta | {"settings": {"minimize": "seconds_per_image"}})
    trials = copy.trials.assign(pareto=copy.trials["trial"].isin([3, 4]))
    trials["seconds_per_image"] = np.linspace(2.1e-5, 2.6e-5, len(trials))
    trials.loc[trials["trial"] == 5, "state"] = "running"
    trials.to_csv(copy.path / "trials.csv", index=False)
    html = run_page.render(copy, None)
    assert "<h2>Accuracy against seconds to label one image</h2>" in html
    figure = run_charts.pareto(trials, "seconds_per_image")
    shown = [text for trace in figure.data for text in trace.text]
    assert {int(text.split()[1].split("<")[0]) for text in shown} == {0, 3, 4, 7, 8, 9, 11}
    assert figure.layout.xaxis.title.text == "seconds to label one image"
    assert figure.layout.xaxis.dtick is None  # Of 2 and 5 there is none on this axis.


@pytest.mark.parametrize(
    ("difference", "interval", "word", "sentence"),
    [
        (
            0.0312,
            [0.02, 0.04],
            "Yes",
            r"3\.12 points better than the default configuration \(95% .* \+2.00 to \+4.00\)\.$",
        ),
        (-0.01, [-0.02, -0.005], "No", r"1\.00 points worse than the default configuration .*-0.50\)\.$"),
        (0.001, [-0.002, 0.004], "Not shown", r"0\.10 points better than .*, which may be chance\.$"),
        (0.0, [0.0, 0.0], "No", r"The winner is the default configuration itself\.$"),
        (0.001, None, "Not shown", r"0\.10 points better than the default configuration, which may be chance\.$"),
    ],
)
def test_whether_it_was_worth_it(difference: float, interval: list[float] | None, word: str, sentence: str) -> None:
    metrics = {"default_difference": difference, "default_difference_interval": interval, "random_difference": None}
    ((found, text),) = verdicts(metrics)
    assert found == word and re.search(sentence, text)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert verdicts({"default_difference": None}) == []
    ((_, sentence),) = verdicts({"random_difference": 0.01, "random_difference_interval": [0.005, 0.015]})
    assert "better than the best of the points drawn at random" in sentence


def test_the_random_point_decides_whether_it_was_worth_it() -> None:
    difference = {"default_difference": 0.06, "default_difference_interval": [0.05, 0.07]}
    difference |= {"random_difference": 0.001, "random_difference_interval": [-0.01, 0.012]}
    assert [word for word, _ in verdicts(difference)] == ["Not shown", "Yes"]


@pytest.mark.parametrize("name", ["test_outputs.npz", "config.json"])
def test_a_damaged_file_of_the_final_model_is_named(run: run_folder.Run, tmp_path: Path, name: str) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    (folder / name).write_text("{")
    with pytest.raises(
        UserError, match=r"best_model(/config\.json)? must (hold what `python -m tuning\.final`|be a read)"
    ):
        final_models.load(run, folder)


@pytest.mark.parametrize("length", [0, 1000])
def test_outputs_that_were_cut_off_are_an_error_of_the_user(run: run_folder.Run, tmp_path: Path, length: int) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    whole = (folder / "test_outputs.npz").read_bytes()
    (folder / "test_outputs.npz").write_bytes(whole[:length])
    with pytest.raises(UserError, match=r"best_model must hold what `python -m tuning\.final` writes"):
        final_models.load(run, folder)


@pytest.mark.parametrize("byte", [0, 255])
def test_outputs_that_a_disk_has_damaged_are_an_error_of_the_user(
    run: run_folder.Run, tmp_path: Path, byte: int
) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    with np.load(folder / "test_outputs.npz") as outputs:
        np.savez_compressed(folder / "test_outputs.npz", **dict(outputs))
    content = bytearray((folder / "test_outputs.npz").read_bytes())
    content[60:360] = bytes([byte]) * 300  # No zlib stream any more.
    (folder / "test_outputs.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"best_model must hold what `python -m tuning\.final` writes"):
        final_models.load(run, folder)


def test_the_command_writes_the_page_and_names_runs_it_does_not_know(run: run_folder.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "results" / "first")
    command = [sys.executable, "-m", "tuning.report"]
    done = subprocess.run([*command, "first"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Written: results/first/report.html (4." in done.stdout, done.stderr
    assert (tmp_path / "results/first/report.html").exists()
    done = subprocess.run([*command, "frist"], cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "error: Run below results/ must be one of first, latest, but got 'frist'." in done.stderr
    )


def test_a_hundred_trials_of_thirty_epochs_and_ten_thousand_images_are_under_8_mb(tmp_path: Path) -> None:
    run = make_run(tmp_path / "large", 100, 30)
    folder = make_final(tmp_path / "best_model", run.name, n=10_000, side=28)  # of noise, which PNG cannot compress
    page = run_page.write(run, folder)
    assert 6e6 < page.stat().st_size < 8e6


def test_the_sheet_has_the_images_in_their_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 2, 3), dtype=np.uint8)
    sheet = thumbnails._sheet(images, 3)
    assert sheet.shape == (4, 9, 1)
    assert (sheet[2:4, 3:6, 0] == images[4]).all() and (sheet[:2, 6:9, 0] == images[2]).all()


def test_few_large_images_are_shown_and_many_small_ones_up_to_a_number() -> None:
    assert len(thumbnails.thinned(np.zeros((10, 3, 512, 512), np.uint8))) == 1
    assert len(thumbnails.thinned(np.zeros((2000, 1, 4, 4), np.uint8))) == thumbnails.MAX_POINTS
    assert thumbnails.thinned(np.zeros((3, 1, 4, 4), np.uint8)).tolist() == [0, 1, 2]


def test_the_worst_mistakes_come_first() -> None:
    probabilities = np.array([[0.1, 0.9], [0.4, 0.6], [0.8, 0.2], [0.01, 0.99]])
    images = np.zeros((4, 3, 2, 2), np.uint8)
    found = thumbnails.pictures({"images": images, "labels": np.zeros(4, int), "probabilities": probabilities}, "ab")
    assert [mistake["probability"] for mistake in found["mistakes"]] == [0.99, 0.9, 0.6] and found["n_wrong"] == 3
    assert found["mistakes"][0]["caption"] == "test image 3: a, taken for b (99%)" and not found["grey"]


def test_the_curves_are_those_of_the_frame(run: run_folder.Run) -> None:
    figure = run_charts.learning_curves(run.epochs, run.trials, 3)
    assert figure.data[-1].name == "best: trial 3" and len(figure.data) == 12
    expected = run.epochs.loc[run.epochs["trial"] == 3, "valid_accuracy"]
    assert list(figure.data[-1].y) == list(expected)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("the page's behaviour needs a Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, written: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in a browser; whatever it complains of or asks another host for fails the test."""
    width, scheme = getattr(request, "param", (1280, "light"))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda sent: sent.url.startswith(("file:", "data:", "blob:")) or complaints.append(sent.url))
    page.goto(written.as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 6")
    yield page
    page.close()
    assert not complaints


def point_at(page: Any, figure: str, trace: int, index: int) -> None:
    """Moves the pointer to a point of a figure."""
    plot = page.locator(f'[data-figure="{figure}"]')
    plot.scroll_into_view_if_needed()
    x, y = plot.evaluate(
        """(node, [trace, index]) => {
            const {xaxis, yaxis} = node._fullLayout, box = node.getBoundingClientRect(), data = node._fullData[trace];
            return [box.x + xaxis._offset + xaxis.d2p(data.x[index]), box.y + yaxis._offset + yaxis.d2p(data.y[index])];
        }""",
        [trace, index],
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)


@pytest.mark.slow
def test_the_table_sorts_and_filters(opened: Any, run: run_folder.Run) -> None:
    def column(name: str) -> list[str]:
        rows = opened.locator("#trials tbody tr:visible")
        place = opened.locator("#trials th button").all_inner_texts().index(name)
        return rows.evaluate_all(f"rows => rows.map(row => row.cells[{place}].dataset.value)")

    rates = run.trials["config/learning_rate"]
    opened.locator("#trials th button", has_text="learning rate").click()
    assert [float(value) for value in column("learning rate")] == sorted(rates, reverse=True)
    opened.locator("#trials th button", has_text="learning rate").click()
    assert [float(value) for value in column("learning rate")] == sorted(rates)
    opened.locator("#trials th button", has_text="state").click()
    assert column("state") == sorted(run.trials["state"])
    opened.locator("#filter").fill("pruned 64")
    assert column("trial") == ["2", "6", "10"] and opened.locator("#shown").inner_text() == "3 of 12"


@pytest.mark.slow
def test_a_curve_and_a_point_say_what_they_are(opened: Any, run: run_folder.Run, model_dir: Path) -> None:
    names = opened.locator('[data-figure="learning_curves"]').evaluate("node => node._fullData.map(d => d.meta)")
    trace = next(i for i, text in enumerate(names) if text.startswith("<b>trial 5</b>"))
    point_at(opened, "learning_curves", trace, 3)
    hover = opened.locator('[data-figure="learning_curves"] .hoverlayer').text_content()
    row = run.trials.set_index("trial").loc[5]
    value = run.epochs.query("trial == 5 and epoch == 4")["valid_accuracy"].item()
    assert "trial 5 (complete)" in hover and f"epoch 4: {value:.2%}" in hover
    assert f"learning rate {row['config/learning_rate']:.3g}, batch size {row['config/batch_size']}" in hover

    point_at(opened, "features", 1, 7)
    outputs = np.load(io.BytesIO((model_dir / "test_outputs.npz").read_bytes()))
    index = np.flatnonzero(outputs["labels"] == 1)[7]  # all 400 images are shown
    said = thumbnails.caption(int(index), 1, outputs["probabilities"][index], NAMES)
    assert opened.locator("#card span").inner_text() == said and NAMES[1] in said
    columns, size = 20, 8 * 11  # about 84 pixels
    place = opened.locator("#card i").evaluate("tile => tile.style.backgroundPosition")
    assert place == f"{-(index % columns) * size}px {-(index // columns) * size}px"
    opened.mouse.move(5, 5)
    assert not opened.locator("#card").is_visible()


@pytest.mark.slow
def test_coordinates_can_be_brushed(opened: Any, run: run_folder.Run) -> None:
    plot = opened.locator('[data-figure="parallel_coordinates"]')
    plot.scroll_into_view_if_needed()
    axis = plot.locator(".axis-brush .background").first.bounding_box()
    x = axis["x"] + axis["width"] / 2
    opened.mouse.move(x, axis["y"] + 0.3 * axis["height"])
    opened.mouse.down()
    opened.mouse.move(x, axis["y"] + 0.7 * axis["height"], steps=8)
    opened.mouse.up()
    heights, ticks = run_figures.coordinate(run.trials["config/learning_rate"])
    for height, text in ticks:
        box = plot.locator(".axis").first.locator(".tick > text").get_by_text(text, exact=True).bounding_box()
        at = axis["y"] + (1 - height) * axis["height"]
        assert box["y"] - 3 < at < box["y"] + box["height"] + 3
    low, high = plot.evaluate("node => node.data[0].dimensions[0].constraintrange")
    inside = (heights > 0.3) & (heights < 0.7)
    assert 2 <= inside.sum() <= 10 and (inside == ((heights > low) & (heights < high))).all()


@pytest.mark.slow
@pytest.mark.parametrize("opened", [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], indirect=True)
def test_it_fits_and_has_the_colours_of_the_reader(opened: Any, request: pytest.FixtureRequest) -> None:
    width, scheme = request.node.callspec.params["opened"]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    ink = "node => getComputedStyle(document.documentElement).getPropertyValue('--ink')"
    curve = "node => node._fullData.at(-1).line.color"
    plot = opened.locator('[data-figure="learning_curves"]')
    assert plot.evaluate(ink) == plot.evaluate(curve) == {"light": "#16181b", "dark": "#eceef0"}[scheme]
    assert plot.evaluate("node => node._fullLayout.width") <= width
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert plot.evaluate(curve) == "#16181b"
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    other = {"light": "dark", "dark": "light"}[scheme]
    opened.emulate_media(color_scheme=other)
    # The browser tells the page of the change with its next frame.
    drawn = (
        "colour => document.querySelector('[data-figure=\"learning_curves\"]')._fullData.at(-1).line.color === colour"
    )
    opened.wait_for_function(drawn, arg={"light": "#16181b", "dark": "#eceef0"}[other])


@pytest.mark.slow
def test_what_comes_from_files_is_shown_as_text_in_a_browser(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / HEADER, error=SCRIPT)
    names = ("<script>alert(1)</script>", HEADER, "Bag")
    path = run_page.write(run, make_final(tmp_path / "best_model", run.name, names=names))
    page = browser.new_page()
    alarms: list[str] = []
    page.on("dialog", lambda dialog: alarms.append(dialog.message))
    page.on("pageerror", lambda error: alarms.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 6")
    assert page.title() == HEADER and page.locator("h1").inner_text() == HEADER
    assert names[0] in page.locator('[data-figure="confusion"] .ytick').first.text_content()
    assert names[0] in page.locator('[data-figure="features"] .legendtext').first.text_content()
    assert page.locator(".mistakes").inner_text().count("<script>alert(1)</script>") > 0
    assert SCRIPT in page.locator("#trials").inner_text()
    point_at(page, "features", 0, 0)
    assert names[0] in page.locator("#card span").inner_text()
    page.close()
    assert not alarms


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no font")


def test_one_of_a_kind_is_no_plural_and_short_times_are_in_seconds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", 1)
    trials = pd.read_csv(run.path / "trials.csv")
    trials["ended"] = "2026-11-23T10:00:24+00:00"
    trials.to_csv(run.path / "trials.csv", index=False)
    folder = make_final(tmp_path / "best_model", run.name)
    metrics = files.read_json(folder / "metrics.json")
    files.write_json(folder / "metrics.json", metrics | {"seconds_total": 12.0})
    outputs = dict(np.load(io.BytesIO((folder / "test_outputs.npz").read_bytes())))
    first = {name: values[:1] if len(values) > 2 else values for name, values in outputs.items()}
    first["labels"] = (first["probabilities"].argmax(axis=1) + 1) % 3
    np.savez(folder / "test_outputs.npz", **first)
    page = Page(run_page.render(run, final_models.load(run, folder)))
    assert page.says("on fashion-mnist: 1 trial (1 complete)") and page.says("Search of 1 trial,")
    assert page.says("Cost 24 s") and page.says("fresh seeds: 12 slot seconds")
    assert page.says("The one test image that it gets wrong.") and page.says("of the 1 test image on")


def test_a_run_that_was_interrupted_says_so_and_how_to_resume_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "cut", 5)
    files.write_json(run.path / "meta.json", run.meta | {"stopped_by": "interrupt"})
    page = Page(run_page.render(run, None))
    assert page.says("The search was interrupted and has not ended: these are its results so far.")
    assert page.says(f"python -m tuning.search --resume {run.path}")
    files.write_json(run.path / "meta.json", run.meta | {"stopped_by": "time budget"})
    assert not Page(run_page.render(run, None)).says("has not ended")


def test_a_run_that_ended_once_and_is_running_again_has_not_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "again", 5, running=True)
    files.write_json(run.path / "meta.json", run.meta | {"ended": "2026-11-23T11:00:00+00:00"})
    assert Page(run_page.render(run, None)).says("The search has not ended")


def test_proposals_that_repeat_a_trial_are_not_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "twice", 6)
    trials = pd.read_csv(run.path / "trials.csv")
    trials["attempt"] = [0 if number >= 4 else 1 for number in trials["trial"]]
    trials.to_csv(run.path / "trials.csv", index=False)
    page = Page(run_page.render(run, None))
    assert page.says("4 trials (2 complete, 1 failed, 1 pruned)") and page.says("Search of 4 trials")
    assert summaries.summary_line(run).startswith("twice: fashion-mnist, 4 trials (2 complete, 1 failed, 1 pruned)")


def test_the_table_has_the_trials_that_ran_with_the_failed_ones_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "table", 8, running=True)
    trials = pd.read_csv(run.path / "trials.csv")
    trials["attempt"] = [0 if number == 6 else 1 for number in trials["trial"]]
    trials.loc[trials["trial"].isin([1, 7]), "valid_accuracy"] = 0.999  # It had that before it failed.
    trials.to_csv(run.path / "trials.csv", index=False)
    html = run_page.render(run, None)
    table = html.partition('<table id="trials">')[2].partition("</table>")[0]
    states = re.findall(r"<td data-value=\"(\w+)\">", table)
    assert "6" not in re.findall(r'<tr><td class="number" data-value="(\d+)">', table)
    assert states[-2:] == ["running", "failed"] and set(states[:-2]) <= {"complete", "pruned"}
    assert len(states) == 7 and Page(html).says("7 of 7") and Page(html).says("7 trials (")


@pytest.mark.parametrize(
    ("module", "function", "figure"),
    [
        (run_charts, "learning_curves", "learning_curves"),
        (run_charts, "best_so_far", "best_so_far"),
        (run_charts, "parallel_coordinates", "parallel_coordinates"),
        (model_charts, "seeds", "seeds"),
        (model_charts, "confusion", "confusion"),
        (model_charts, "reliability", "reliability"),
        (model_charts, "features", "features"),
        (thumbnails, "pictures", "features"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_said_and_costs_no_other(
    run: run_folder.Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, figure: str
) -> None:
    final = final_models.load(run, model_dir)
    whole = set(json.loads(_figures(run_page.render(run, final))))
    monkeypatch.setattr(module, function, broken)
    told: list[str] = []
    html = run_page.render(run, final, tell=told.append)
    assert len(told) == 1 and told[0].endswith(" cannot be made: RuntimeError: no font")
    assert f'data-figure="{figure}" role' not in html and 'id="provenance"' in html
    assert whole - set(json.loads(_figures(html))) <= {figure}


def _figures(html: str) -> str:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_damaged_final_model_is_said_and_left_out_of_the_page(
    run: run_folder.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    metrics = files.read_json(folder / "metrics.json")
    del metrics["test_interval"]
    files.write_json(folder / "metrics.json", metrics)
    page = run_page.write(run, folder, out=tmp_path / "page.html")
    assert "The final model is left out of the page: " in (said := capsys.readouterr().out)
    assert "metrics.json has no test_interval: it is damaged, or another version wrote it" in said
    assert "Best validation accuracy" in page.read_text(encoding="utf-8")


def test_a_torn_line_of_the_log_is_shown_for_what_it_says(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", run.name)
    with (folder / "test_log.jsonl").open("a") as log:
        log.write('{"time": "2026-11-24T12:00:00+00:00", "event": "opened", "da')
    final = final_models.load(run, folder)
    assert final is not None and list(final.log["event"]) == ["opened", "result", "opened"]
    assert "2026-11-24 12:00 UTC" in Page(run_page.render(run, final)).texts


def test_the_page_can_be_written_elsewhere_and_the_run_is_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "the first")
    before = {path: path.stat().st_mtime_ns for path in [run.path, *run.path.rglob("*")]}
    report.main(run=str(run.path), out=tmp_path / "page.html")
    assert f"Written: {tmp_path}/page.html" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in [run.path, *run.path.rglob("*")]} == before

    def refuse(path: Path, text: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "write_text", refuse)
    message = (
        r"report\.html cannot be written \(Read-only file system\)\. `python -m tuning\.report .*/the first' --out F"
    )
    with pytest.raises(UserError, match=message):
        run_page.write(run)


@pytest.mark.parametrize("name", ["notes.csv", "page", "model.pth"])
def test_a_page_is_written_to_a_file_that_a_browser_opens(run: run_folder.Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"--out must end in \.html or \.htm, but got '{tmp_path}/{name}'\."):
        report.run(run, out=tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"
    assert report.run(run, out=tmp_path / "page.HTM").exists()


def test_a_damaged_study_costs_the_importances_and_the_edges_only(run: run_folder.Run, tmp_path: Path) -> None:
    copy = run_folder.Run(Path(shutil.copytree(run.path, tmp_path / "damaged")))
    (copy.path / "study.db").write_bytes(b"no database at all")
    told: list[str] = []
    page = Page(run_page.render(copy, None, tell=told.append))
    for what, line in zip(("importances", "edges"), told, strict=True):
        assert line.startswith(f"The {what} cannot be made: {copy.path}/study.db is damaged")
    assert "learning_curves" in page.texts and "importances" not in page.texts


@pytest.mark.parametrize("meta", [{}, {"settings": {}}, {"dataset": "x", "settings": {"samples": 3, "new": 1}}])
def test_a_meta_json_of_another_version_has_a_page(tmp_path: Path, meta: dict[str, Any]) -> None:
    run = make_run(tmp_path / "other")
    files.write_json(run.path / "meta.json", meta)
    assert "learning_curves" in Page(run_page.render(run, None)).texts


def test_a_final_model_belongs_to_a_run_whatever_its_folder_is_called(run: run_folder.Run, tmp_path: Path) -> None:
    folder = make_final(tmp_path / "best_model", "earlier name")
    assert final_models.load(run, folder) is None
    metrics = files.read_json(folder / "metrics.json")
    files.write_json(folder / "metrics.json", metrics | {"run_id": run.identity})
    assert final_models.load(run, folder) is not None
    files.write_json(folder / "metrics.json", metrics | {"run": run.name, "run_id": "another"})
    assert final_models.load(run, folder) is None


@pytest.mark.parametrize(
    ("metrics", "name", "identity", "expected"),
    [
        ({"run": None, "run_id": None}, "first", None, False),  # Of `--config`, beside a run whose study is damaged.
        ({}, "first", None, False),
        ({"run": None, "run_id": None}, None, None, False),
        ({"run": "first"}, "first", None, True),
        ({"run": "first", "run_id": "4f1c"}, "second", "4f1c", True),
    ],
)
def test_a_model_of_no_run_is_no_runs(
    metrics: dict[str, Any], name: str | None, identity: str | None, expected: bool
) -> None:
    assert run_folder.is_of(metrics, name, identity) is expected


def test_commands_in_a_sentence_are_shown_as_code_and_the_rest_as_text() -> None:
    found = page_text.with_code("change <space>, then run `python -m tuning.search --resume 'a<b'`.")
    assert found == "change &lt;space&gt;, then run <code>python -m tuning.search --resume &#39;a&lt;b&#39;</code>."


def test_the_page_finds_the_model_in_the_folder_that_final_wrote_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    run = make_run(Path("results/first"))
    inside, beside = (make_final(folder, run.name) for folder in (run.path / "model", Path("small")))
    assert final_models.folder_of(run) == Path("best_model")
    for folder, said in ((inside, Path("results/first/model")), (beside, Path("small"))):
        final_models.remember(run.path, folder)
        assert final_models.folder_of(run) == said
        assert Page(report.run(run).read_text()).says("Test accuracy")
        assert str(tmp_path) not in (run.path / final_models.PLACE).read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").rename("moved")
    moved = run_folder.Run(tmp_path / "moved" / "results" / "first")
    assert final_models.folder_of(moved) == Path("moved/small")
    (tmp_path / "moved" / "small").rename("elsewhere")
    said: list[str] = []
    page = Page(run_page.write(moved, tell=said.append).read_text())
    assert page.says("Best validation accuracy") and not page.says("Test accuracy")
    assert said == [
        "The final model is left out of the page: moved/small, to which `final` wrote it, has it no more. "
        "`python -m tuning.report --model-dir` names the folder in which it is now."
    ]
    for damaged in ("{", "[]", "{}", '{"model_dir": 3}'):
        (moved.path / final_models.PLACE).write_text(damaged)
        assert final_models.folder_of(moved) == Path("best_model")


def test_a_copy_that_went_on_by_itself_and_a_new_run_of_an_old_name_have_other_models(tmp_path: Path) -> None:
    run = make_run(tmp_path / "first")
    metrics = files.read_json(make_final(tmp_path / "model", "first") / "metrics.json")
    assert final_models.is_model_of(run, metrics)
    assert not final_models.is_model_of(run, metrics | {"search_valid_accuracy": 0.9})  # Of another trial 3.
    files.write_json(run.path / "meta.json", run.meta | {"schema": 3, "id": "f00d"})
    assert not final_models.is_model_of(run, metrics)  # That run had no identity, and this one is not of 0.2.0.
    assert final_models.is_model_of(run, metrics | {"run_id": "f00d"})


def test_the_model_folder_of_somebody_else_is_a_sentence(
    run: run_folder.Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", locked)
    with pytest.raises(UserError, match=r"best_model cannot be read \(Permission denied\)\."):
        final_models.load(run, model_dir)


def test_a_folder_without_a_model_of_the_run_is_refused(run: run_folder.Run, tmp_path: Path) -> None:
    another = make_final(tmp_path / "another", "second")
    for folder, holds in (
        (another, "has that of another run"),
        (tmp_path, "has none"),
        (tmp_path / "none", "has none"),
    ):
        with pytest.raises(UserError, match=rf"the model of .*first, but '{folder}' {holds}\. Leave it out"):
            report.run(run, model_dir=folder, out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
