"""Retrain the best configuration of a run to its full length, choose on the valid split, then open the test split once.

    python -m tuning.final [--run RUN]
    python -m tuning.final --config FILE.json|FILE.yaml

Everything lands in `best_model/`; `best_model/test_log.jsonl` says each time that the test split was opened.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning import results
from tuning.config import TrainConfig, parse_config, read_config
from tuning.errors import UserError, run_command

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from tuning.data import Splits

MODEL_DIR = Path("best_model")
# A search compares many configurations at a short length; the one that is kept earns a longer one. Its schedule is
# stretched to it.
LENGTHENING = 3


@dataclass(frozen=True)
class Choice:
    """What is to be retrained: a configuration, and how its run chose the valid split.

    Attributes:
        source: The run and its trial, or the configuration's file.
        search_accuracy: What the search measured on the valid split, in [0, 1]; None where there was no search.
        data_seed: Chooses the valid split; the run's, so that no image moves from valid to train.
    """

    config: TrainConfig
    source: str
    search_accuracy: float | None
    dataset: str
    data_seed: int
    train_images: int | None


@dataclass(frozen=True)
class Outcome:
    """A split's labels, log-probabilities (N, n_classes) and features (N, D) as the final model gives them."""

    labels: Any
    log_probabilities: Any
    features: Any

    @property
    def predictions(self) -> Any:
        """The likeliest class of each image, (N,)."""
        return self.log_probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return float((self.predictions == self.labels).mean())


def choose(run: str, config: Path | None, dataset: str) -> Choice:
    """Returns the best configuration of a run, or the one in a file.

    Raises:
        UserError: No trial of the run has finished, or the file holds no valid configuration.
    """
    if config is not None:
        return Choice(read_config(config), str(config), None, dataset, data_seed=0, train_images=None)
    found = results.load(run)
    best, settings = found.best, found.meta["settings"]
    values = {name: best[f"config/{name}"] for name in TrainConfig.model_fields}
    return Choice(
        config=parse_config(results.plain(values), f"{found.path}/trials.csv"),
        source=f"{found.path}, trial {best['trial']}",
        search_accuracy=float(best["valid_accuracy"]),
        dataset=settings["dataset"],
        data_seed=settings["seed"],
        train_images=settings["train_images"],
    )


def retrain(
    config: TrainConfig, splits: "Splits", seed: int, device: str, folder: Path
) -> tuple["nn.Module", "pd.DataFrame"]:
    """Trains to full length, with early stopping; returns the model of the best epoch and a row an epoch.

    Goes on from a checkpoint in `folder` of the same configuration, seed and splits.
    """
    import pandas as pd

    from tuning import checkpoints
    from tuning.training import Training, fit

    training = Training(config, splits, seed=seed, device=device)
    rows = checkpoints.load(folder, training)
    for epoch in fit(training):
        rows.append(asdict(epoch))
        checkpoints.save(folder, training, rows)
        best = "  best so far" if epoch.best_epoch == epoch.epoch else ""
        print(
            f"epoch {epoch.epoch:>3}/{config.epochs}  train {epoch.train_loss:.4f} {epoch.train_accuracy:.2%}  "
            f"valid {epoch.valid_loss:.4f} {epoch.valid_accuracy:.2%}  {epoch.epoch_seconds:.0f} s{best}",
            flush=True,
        )
    return training.best_model(), pd.DataFrame(rows)


def final(choice: Choice, *, seed: int, device: str, data_dir: Path | None, model_dir: Path) -> dict[str, Any]:
    """Retrains, tests once, and writes `model_dir`; returns what `metrics.json` holds.

    Raises:
        UserError: The data cannot be had, or the disk is full.
    """
    from tuning.data import load_splits, load_test
    from tuning.models import count_parameters

    splits = load_splits(choice.dataset, data_dir, seed=choice.data_seed, train_images=choice.train_images)
    start = time.perf_counter()
    model, epochs = retrain(choice.config, splits, seed, device, model_dir)
    seconds = time.perf_counter() - start
    plain, mirrored = (_outcome(model, splits.valid, splits, device, flip) for flip in (False, True))
    flip_averaging = mirrored.accuracy > plain.accuracy
    metrics: dict[str, Any] = {
        "source": choice.source,
        "search_valid_accuracy": choice.search_accuracy,
        "valid_accuracy": max(plain.accuracy, mirrored.accuracy),
        "flip_averaging": flip_averaging,
        "best_epoch": int(epochs["best_epoch"].iloc[-1]),
        "epochs": len(epochs),
        "seconds": seconds,
        "seed": seed,
        "split_hash": splits.split_hash,
        "config_hash": choice.config.hash(),
        "n_parameters": count_parameters(model),
    }
    # The choice is made: only now the test split is opened, and the log says so before anything is seen of it.
    log_test(model_dir, metrics | {"event": "opened"})
    test_images = load_test(choice.dataset, data_dir)
    outcomes = {flip: _outcome(model, test_images, splits, device, flip) for flip in (False, True)}
    test = outcomes[flip_averaging]
    metrics |= _test_metrics(test) | {
        "test_accuracy_plain": outcomes[False].accuracy,
        "test_accuracy_flip_averaging": outcomes[True].accuracy,
    }
    log_test(model_dir, metrics | {"event": "result"})
    write_model(model_dir, model, choice, splits, metrics, epochs)
    write_pictures(model_dir, test, test_images.images, splits.class_names, epochs)
    write_separability(model_dir, _outcome(model, _sample(splits.train), splits, device, flip_averaging), test)
    return metrics


def log_test(model_dir: Path, metrics: dict[str, Any]) -> None:
    """Adds a line to `test_log.jsonl`: time, split and configuration hash, seed, and the result where there is one."""
    names = ("event", "split_hash", "config_hash", "seed", "source", "test_accuracy", "test_accuracy_plain")
    line = {"time": datetime.now(UTC).isoformat()} | {name: metrics[name] for name in names if name in metrics}
    with (model_dir / "test_log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def times_opened(model_dir: Path) -> int:
    """Returns how often the test split has been opened, as the log says."""
    log = model_dir / "test_log.jsonl"
    return sum('"event": "opened"' in line for line in log.read_text().splitlines()) if log.exists() else 0


def write_model(
    model_dir: Path,
    model: "nn.Module",
    choice: Choice,
    splits: "Splits",
    metrics: dict[str, Any],
    epochs: "pd.DataFrame",
) -> None:
    """Writes `model.pth`, `config.json`, `metrics.json`, `scores.txt` and `epochs.csv`, each whole or not at all."""
    import io

    import torch

    from tuning import checkpoints

    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, buffer)
    results.write_bytes(model_dir / "model.pth", buffer.getvalue())
    _, channels, height, width = splits.train.images.shape
    described = {
        "dataset": splits.dataset,
        "class_names": splits.class_names,
        "flip_averaging": metrics["flip_averaging"],
    }
    shape = {"channels": channels, "height": height, "width": width, "mean": splits.mean, "std": splits.std}
    results.write_json(model_dir / "config.json", {"config": choice.config.model_dump()} | described | shape)
    results.write_json(model_dir / "metrics.json", metrics)
    results.write_text(model_dir / "scores.txt", scores(choice, metrics))
    results.write_rows(model_dir / "epochs.csv", epochs.columns, [dict(row) for _, row in epochs.iterrows()])
    checkpoints.remove(model_dir)


def write_pictures(
    model_dir: Path, test: Outcome, images: Any, class_names: tuple[str, ...], epochs: "pd.DataFrame"
) -> None:
    """Writes `classification_report.csv` and the pictures of the model, `learning_curve.png` among them."""
    import numpy as np

    from tuning import analysis, pictures, plots, style

    report = analysis.classification_report(test.labels, test.predictions, class_names)
    results.write_text(model_dir / "classification_report.csv", report.to_csv(index=False))
    probabilities = np.exp(test.log_probabilities)
    figures = pictures.of_model(test.labels, probabilities, images, class_names, analysis.pca(test.features))
    for name, figure in (figures | {"learning_curve": plots.learning_curve(epochs)}).items():
        style.save(figure, model_dir / f"{name}.png")


def write_separability(model_dir: Path, train: Outcome, test: Outcome) -> None:
    """Writes `separability.csv`: how well the classes of the test split separate in the features."""
    from tuning import analysis

    frame = analysis.separability(train.features, train.labels, test.features, test.labels)
    results.write_text(model_dir / "separability.csv", frame.to_csv(index=False))


def scores(choice: Choice, metrics: dict[str, Any]) -> str:
    """Returns the text of `scores.txt`: what was trained, and what it scored."""
    low, high = metrics["test_interval"]
    averaged = "with" if metrics["flip_averaging"] else "without"
    minutes = metrics["seconds"] / 60
    lines = [
        f"configuration      {choice.source} ({choice.config.hash()})",
        f"network            {choice.config.architecture}, {metrics['n_parameters']:,} parameters",
        f"training           {metrics['epochs']} epochs, best {metrics['best_epoch']}, {minutes:.1f} minutes",
    ]
    if choice.search_accuracy is not None:
        lines.append(f"valid, in search   {choice.search_accuracy:.2%}")
    return "\n".join(
        [
            *lines,
            f"valid, retrained   {metrics['valid_accuracy']:.2%}",
            f"test               {metrics['test_accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
            f"{averaged} flip averaging",
            f"test loss          {metrics['test_loss']:.4f}",
            "",
        ]
    )


def _sample(part: Any) -> Any:
    """Returns as many images, drawn at random, as the linear probe is fitted on at most."""
    import numpy as np

    from tuning.analysis import PROBE_IMAGES

    index = np.random.default_rng(0).permutation(len(part))[:PROBE_IMAGES]
    return type(part)(images=part.images[index], labels=part.labels[index])


def _outcome(model: "nn.Module", part: Any, splits: "Splits", device: str, flip_averaging: bool) -> Outcome:
    from tuning.training import evaluate

    log_probabilities, features = evaluate(model, part, splits, device=device, flip_averaging=flip_averaging)
    return Outcome(part.labels, log_probabilities.numpy(), features.numpy())


def _test_metrics(test: Outcome) -> dict[str, Any]:
    from tuning import analysis

    n = len(test.labels)
    right = int((test.predictions == test.labels).sum())
    loss = -float(test.log_probabilities[range(n), test.labels].mean())
    return {
        "test_accuracy": right / n,
        "test_interval": list(analysis.wilson_interval(right, n)),
        "test_loss": loss,
        "test_images": n,
    }


def main(
    run: Annotated[str, typer.Option(help="The run whose best configuration is retrained.")] = "latest",
    config: Annotated[
        Path | None, typer.Option(help="Train this JSON or YAML configuration; no search is needed.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Full length (default: three times the search's; with --config its own).")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights and batches (default: a fresh one).")] = None,
    dataset: Annotated[str, typer.Option(help="The data set, with --config.")] = "fashion-mnist",
    data_dir: Annotated[Path | None, typer.Option(help="A folder that holds the data set's files.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all cores).")] = None,
    model_dir: Annotated[Path, typer.Option(help="Where the model and its scores are written.")] = MODEL_DIR,
) -> None:
    """Retrain the best configuration, test it once, and write best_model/ with the PCA picture."""
    from dataclasses import replace

    from tuning import report

    found = results.load(run) if config is None else None
    choice = choose(run if found is None else str(found.path), config, dataset)
    length = epochs or choice.config.epochs * (LENGTHENING if config is None else 1)
    choice = replace(choice, config=choice.config.model_copy(update={"epochs": length}))
    import torch

    from tuning.training import prepare

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device must be 'cpu' on a machine without a GPU that torch can use, but got 'cuda'.")
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"--device must be 'cpu' or 'cuda', but got {device!r}.")
    prepare(threads or os.cpu_count() or 1)
    model_dir.mkdir(parents=True, exist_ok=True)
    opened = times_opened(model_dir)
    print(
        f"Retraining {choice.source}: {choice.config.architecture}, {choice.config.epochs} epochs at most", flush=True
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seed = _fresh_seed(choice) if seed is None else seed
    metrics = final(choice, seed=seed, device=device, data_dir=data_dir, model_dir=model_dir)
    print(scores(choice, metrics), end="")
    if opened:
        print(
            f"The test split was opened for the {opened + 1}. time: a model chosen by looking at these figures "
            "would be judged too well by them."
        )
    if found is not None:
        print(f"Page: {report.write(found, model_dir)}")
    print(f"Written: {model_dir}/. Next: python -m tuning.predict IMAGE")


def _fresh_seed(choice: Choice) -> int:
    """Returns a seed that no trial of the search had: derived from the configuration, the same each time."""
    return int(choice.config.hash(), 16) % 2**31


if __name__ == "__main__":
    run_command(main)
