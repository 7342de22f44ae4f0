"""The LCBench surrogate of YAHPO Gym (Zimmer et al. 2021, Pfisterer et al. 2022): an ONNX model of 34 tasks.

The folder holds `model.onnx`, `encoding.json` (task -> code) and `config_space.json` (the bounds). Curves begin with
the model's epoch 2, as its epoch 1 is the untrained network; values are validation accuracies in [0, 1], costs are
seconds. The best of a task is searched for when it is loaded: random points, then steps from the best of them.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tables import Array, Curve, Task, fingerprint
from tuning.base import files
from tuning.base.errors import UserError

FIRST_EPOCH = 2
# Of blood-transfusion-service-center (167184) the surrogate is poor: rank correlation with real final values is 0.35.
LEFT_OUT = {"167184"}
# The order of the model's inputs, `epoch` first.
INPUTS = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
SECONDS, ACCURACY = 0, 1
FILES = ("model.onnx", "encoding.json", "config_space.json")
RANDOM_POINTS, STEPS, EPOCHS_BETWEEN_LOOKS = 2_000, 15, 7


def names(folder: Path) -> list[str]:
    """Returns `lcbench-<OpenML task>` for each task of the bounds' file, less those left out."""
    [tasks] = [one for one in _bounds(folder) if one["name"] == "OpenML_task_id"]
    return [f"lcbench-{task}" for task in tasks["choices"] if task not in LEFT_OUT]


def load(folder: Path, name: str) -> Task:
    """Returns a task."""
    code = check(folder, name)
    session = _session(folder / "model.onnx")
    bounds = {one["name"]: one for one in _bounds(folder)}
    epochs = np.arange(FIRST_EPOCH, bounds["epoch"]["upper"] + 1)

    def outputs(epoch: Array, points: Array) -> Array:
        inputs = np.column_stack([epoch, points]).astype(np.float32)
        fed = {"x_cat": np.full((len(inputs), 1), code, np.int32), "x_cont": inputs}
        found: Array = session.run(None, fed)[0].astype(np.float64)
        return found

    def space(trial: Any) -> dict[str, Any]:
        config = {}
        for parameter in INPUTS:
            one = bounds[parameter]
            suggest = trial.suggest_int if one["type"] == "uniform_int" else trial.suggest_float
            config[parameter] = suggest(parameter, one["lower"], one["upper"], log=one["log"])
        return config

    def curve(config: dict[str, Any]) -> Curve:
        found = outputs(epochs, np.tile([config[parameter] for parameter in INPUTS], (len(epochs), 1)))
        accuracy = found[:, ACCURACY].clip(0, 100) / 100
        return Curve(np.maximum.accumulate(accuracy), np.maximum.accumulate(found[:, SECONDS]))

    def final(units: Array, looks: Array, output: int) -> Array:
        points = np.column_stack([_from_unit(units[:, i], bounds[p]) for i, p in enumerate(INPUTS)])
        seen = outputs(np.tile(looks, len(points)), np.repeat(points, len(looks), axis=0))[:, output]
        found: Array = seen.reshape(len(points), len(looks)).max(axis=1)
        return found

    generator = np.random.default_rng(0)
    points = generator.random((RANDOM_POINTS, len(INPUTS)))
    looks = epochs[::-EPOCHS_BETWEEN_LOOKS]
    accuracies = final(points, looks, ACCURACY)
    median, seconds = float(np.median(accuracies)), float(np.median(final(points, epochs[-1:], SECONDS)))
    points = climb(lambda units: final(units, looks, ACCURACY), points, accuracies, generator)
    best = float(final(points, epochs, ACCURACY).max())
    table = fingerprint(name.encode(), *((folder / file).read_bytes() for file in FILES))
    return Task(name, len(epochs), space, curve, min(best, 100.0) / 100, median / 100, seconds, table=table)


def check(folder: Path, name: str) -> int:
    """Returns the code of a task, as the model has it.

    Raises:
        UserError: A file is missing, or has not what this reader needs of it.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise UserError(f"{folder} must have the files {', '.join(FILES)}, but {file} is missing.")
    known = {one["name"] for one in _bounds(folder)}
    if lacks := [each for each in ("epoch", *INPUTS) if each not in known]:
        raise UserError(f"{folder / 'config_space.json'} must have bounds of {lacks[0]}, but has none.")
    codes = files.read_json(folder / "encoding.json").get("OpenML_task_id", {})
    task = name.removeprefix("lcbench-")
    if task not in codes:
        raise UserError(f"{folder / 'encoding.json'} must have a code of the task {task}, but has none.")
    return int(codes[task])


def climb(function: Any, points: Array, values: Array, generator: np.random.Generator) -> Array:
    """Returns the best points found of a function on the unit cube, by ever smaller steps from points with values."""
    for step in range(STEPS):
        best = np.argsort(values)[-20:]
        points, values = points[best], values[best]
        moved = np.repeat(points, 15, axis=0)
        moves = generator.normal(0, 0.3 * 0.8**step, moved.shape) * (generator.random(moved.shape) < 0.5)
        moved = (moved + moves).clip(0, 1)
        points, values = np.concatenate([points, moved]), np.concatenate([values, function(moved)])
    return points[np.argsort(values)[-20:]]


def _from_unit(units: Array, one: dict[str, Any]) -> Array:
    low, high = one["lower"], one["upper"]
    values: Array = low * (high / low) ** units if one["log"] else low + (high - low) * units
    return values.round() if one["type"] == "uniform_int" else values


def _bounds(folder: Path) -> list[dict[str, Any]]:
    file = folder / "config_space.json"
    bounds = files.read_json(file).get("hyperparameters")
    if not isinstance(bounds, list) or "OpenML_task_id" not in [one.get("name") for one in bounds]:
        raise UserError(f"{file} must have the bounds of YAHPO Gym's LCBench, OpenML_task_id among them, but has not.")
    return bounds


@functools.cache
def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it would keep what the largest call took
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
