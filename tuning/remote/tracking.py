"""Logs a search to MLflow: one MLflow run a trial, for as long as the run folder lives.

What is sent is read from the frames, so that what the tracker missed is sent when it answers again, or when the search
is resumed. Nothing here ends or slows down a search: a thread of its own does the sending. No password is written down.
"""

import importlib.util
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, registries
from tuning.base.errors import UserError
from tuning.base.masking import masked
from tuning.runs import run_folder, schema

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# The tags by which a trial's MLflow run is found again: the run's id, the trial's number, and the last epoch sent.
RUN, TRIAL, EPOCH = "tuning.run", "tuning.trial", "tuning.epoch"
EVERY, PAUSE = 2.0, 60.0  # Seconds between two looks at the frames, and at most between two tries that fail.
PATIENCE = 20.0  # Seconds for which the end of a search waits for a tracker that takes nothing.
_EPOCHS_A_REQUEST = 100  # MLflow takes at most 1,000 values in a request.
_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "paused": "RUNNING", "running": "RUNNING"}
_METRICS = [name for name in schema.EPOCH_COLUMNS if name not in ("trial", "epoch")]
# A slow server costs one try, not the two minutes of MLflow's own retries.
_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def check(uri: str) -> str:
    """Returns a tracking URI as it may be written down, after asking the tracker; see `without_secret`.

    Raises:
        UserError: MLflow is not installed, or nothing answers at the URI within some seconds.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise UserError("--mlflow needs the package mlflow, which is not installed. Run `pip install mlflow-skinny`.")
    recorded = without_secret(uri)
    try:
        _client(recorded).search_experiments(max_results=1)
    except Exception as error:  # A library's many ways to say that it cannot.
        raise UserError(
            f"--mlflow must be the URI of a store that answers, but got {recorded!r}: {_reason(error)}"
        ) from error
    return recorded


def without_secret(uri: str) -> str:
    """Returns a tracking URI without its password; this process keeps it in the environment, where MLflow looks.

    The name and the password of a server go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, a token into
    MLFLOW_TRACKING_TOKEN. Any other URI that holds a secret goes into MLFLOW_TRACKING_URI as it is.
    """
    from urllib.parse import unquote

    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https") and "@" in rest.partition("/")[0]:
        user, _, host = rest.partition("/")[0].rpartition("@")
        name, colon, password = (unquote(part) for part in user.partition(":"))
        if colon:
            os.environ |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
        elif "MLFLOW_TRACKING_PASSWORD" in os.environ:
            os.environ["MLFLOW_TRACKING_USERNAME"] = name
        elif name != "***":
            os.environ["MLFLOW_TRACKING_TOKEN"] = name
        uri = f"{scheme}://{host}{rest[len(rest.partition('/')[0]) :]}"
    if masked(uri) != uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    return masked(uri)


def needed(uri: str) -> str:
    """Returns what a resumed search needs in its environment to reach the tracker of this session; "" for nothing."""
    names = ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"]
    if not uri.startswith(("http://", "https://")):
        names = []
    if "***" in uri:
        names.append("MLFLOW_TRACKING_URI")
    found = [name for name in names if os.environ.get(name)]
    return (
        f"The password of --mlflow is not written down. Set {' and '.join(found)} to resume this run." if found else ""
    )


@contextmanager
def logged(uri: str | None, path: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Logs the trials of a run folder to the tracker, if the run has one, while something is going on in it.

    Args:
        uri: As `check` returned it, or as a run of version 0.2.0 wrote it down.
        path: The run folder.
        note: Is told once that the tracker fails, and once that it is back.
    """
    if uri is None:
        yield
        return
    tracker = Tracker(path, uri, note)
    tracker.start()
    try:
        yield
    finally:
        tracker.finish()


@dataclass(frozen=True)
class _Sent:
    """What MLflow has of a trial."""

    run_id: str
    status: str
    epoch: int
    params: frozenset[str]


class Tracker:
    """Sends what is new in a run's frames to MLflow, from a thread of its own.

    Args:
        path: The run folder.
        uri: The tracking URI.
        note: Is told once that the tracker fails, and once that it is back.
        every: Seconds between two looks at the frames.
    """

    def __init__(self, path: Path, uri: str, note: Callable[[str], None], *, every: float = EVERY) -> None:
        self._path, self._uri, self._note, self._every = path, without_secret(uri), note, every
        meta = run_folder.Run(path).meta
        self._run_id, self._began = meta.get("id", path.name), datetime.fromisoformat(meta["started"])
        self._sent: dict[int, _Sent] | None = None
        self._seen: list[tuple[int, int]] | None = None
        self._experiment = ""
        self._said, self._back = False, False
        self._end, self._moved = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def finish(self, patience: float = PATIENCE) -> None:
        """Sends what is left. A trial that has not ended is KILLED; waits while the tracker takes something."""
        self._moved = time.monotonic()
        self._end.set()
        while self._thread.is_alive() and time.monotonic() - self._moved < patience:
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._fail(TimeoutError(f"it took nothing for {patience:g} s"))

    def _work(self) -> None:
        pause = self._every
        while True:
            ended = self._end.is_set()
            try:
                self._send(ended)
            except Exception as error:  # A library's many ways to fail, none of which may end the search.
                self._sent = self._seen = None  # What arrived is asked of the tracker before the next try.
                self._fail(error)
                pause = min(2 * pause, PAUSE)
            else:
                if self._said and not self._back:
                    self._back = True
                    self._note(f"MLflow at {self._uri} is back, and what was missing is sent.")
                pause = self._every
            if ended:
                return
            self._end.wait(pause)

    def _fail(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            self._note(
                f"MLflow at {self._uri} fails: {_reason(error)}. The search goes on. What is missing is sent when "
                f"MLflow answers again, or with: python -m tuning.search --resume {files.quoted(self._path)}"
            )

    def _send(self, ended: bool) -> None:
        """Sends what the frames have and MLflow has not."""
        frames = [self._path / name for name in ("trials.csv", "epochs.csv")]
        seen = [(s.st_size, s.st_mtime_ns) for s in (frame.stat() for frame in frames if frame.exists())]
        if seen == self._seen and not ended:
            return
        run = run_folder.Run(self._path)
        trials, epochs = run.trials, run.epochs
        client = _client(self._uri)
        if self._sent is None:
            self._experiment, self._sent = self._found(client)
        rows = {int(str(number)): part.to_dict("records") for number, part in epochs.groupby("trial")}
        for row in trials[trials["attempt"].fillna(1) != 0].to_dict("records"):  # Not those whose result is another's.
            plain = schema.plain({str(name): value for name, value in row.items()})
            self._send_trial(client, plain, rows.get(row["trial"], []), ended)
        self._seen = seen

    def _send_trial(
        self, client: "MlflowClient", row: Mapping[str, Any], epochs: Sequence[Mapping[Any, Any]], ended: bool
    ) -> None:
        assert self._sent is not None
        from mlflow.entities import Param, RunTag

        number, status = int(row["trial"]), _STATUS[row["state"]]
        if status == "RUNNING" and ended:
            status = "KILLED"
        epochs = sorted(epochs, key=lambda epoch: int(epoch["epoch"]))
        sent = self._sent.get(number) or self._begun(client, row)
        params = {name: str(v) for name, v in row.items() if name.startswith("config/") or name in ("trial", "seed")}
        params = {name: v for name, v in params.items() if row[name] is not None and name not in sent.params}
        new = [epoch for epoch in epochs if epoch["epoch"] > sent.epoch]
        if sent.status == status and not new and not params:
            return
        if sent.status != "RUNNING":
            client.update_run(sent.run_id, status="RUNNING")
        metrics = _metrics(row, epochs, run_folder.Run(self._path).metric)
        for i in range(0, max(1, len(new)), _EPOCHS_A_REQUEST):
            part = new[i : i + _EPOCHS_A_REQUEST]
            values = [metric for epoch in part for metric in metrics[int(epoch["epoch"])]]
            tags = [RunTag(EPOCH, str(int(part[-1]["epoch"])))] if part else []
            if part or params:
                client.log_batch(sent.run_id, values, [Param(name, v) for name, v in params.items()], tags)
            params, self._moved = {}, time.monotonic()
        if row["error"]:
            client.set_tag(sent.run_id, "error", masked(str(row["error"]))[:500])
        if status != "RUNNING":
            client.set_terminated(sent.run_id, status, _milliseconds(row["ended"]))
        last = int(epochs[-1]["epoch"]) if epochs else 0
        known = sent.params | {name for name in row if row[name] is not None}
        self._sent[number] = _Sent(sent.run_id, status, max(last, sent.epoch), known)
        self._moved = time.monotonic()

    def _begun(self, client: "MlflowClient", row: Mapping[str, Any]) -> _Sent:
        """Returns the new MLflow run of a trial."""
        tags = {RUN: self._run_id, TRIAL: str(row["trial"])}
        started = _milliseconds(row["started"])
        run = client.create_run(self._experiment, started, tags, run_name=f"{self._path.name} trial {row['trial']}")
        return _Sent(run.info.run_id, "RUNNING", 0, frozenset())

    def _found(self, client: "MlflowClient") -> tuple[str, dict[int, _Sent]]:
        """Returns the experiment of this run, made where there is none, and what MLflow has of each trial."""
        ours = client.search_experiments(filter_string=f"tags.`{RUN}` = '{self._run_id}'")
        if ours:
            experiment = ours[0]
        else:
            named = client.get_experiment_by_name(self._path.name)
            # Version 0.2.0 set no tag; with one it is of another run. A name that was deleted stays taken.
            if named is None or RUN in named.tags or named.lifecycle_stage != "active":
                name = self._path.name if named is None else f"{self._path.name}-{self._run_id}"
                return client.create_experiment(name, tags={RUN: self._run_id}), {}
            experiment = named
        client.set_experiment_tag(experiment.experiment_id, RUN, self._run_id)
        found: dict[int, _Sent] = {}
        token = None
        while True:
            page = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"], page_token=token)
            for run in page:
                tags, params = run.data.tags, run.data.params
                number = tags.get(TRIAL, "") if tags.get(RUN) == self._run_id else ""
                # Version 0.2.0 set no tags, and began a new MLflow run for a trial that was retried.
                if RUN not in tags and run.info.start_time >= 1000 * self._began.timestamp():
                    number = params.get("trial", "")
                if not number.isdigit():
                    continue
                sent = _Sent(run.info.run_id, run.info.status, int(tags.get(EPOCH, 0)), frozenset(params))
                older = found.get(int(number))
                if older is not None and older.status == "RUNNING":
                    client.set_terminated(older.run_id, "KILLED")
                found[int(number)] = sent
                if RUN not in tags:
                    client.set_tag(sent.run_id, RUN, self._run_id)
                    client.set_tag(sent.run_id, TRIAL, number)
            token = page.token
            if not token:
                return experiment.experiment_id, found


def _metrics(
    row: Mapping[str, Any], epochs: Sequence[Mapping[Any, Any]], judged: registries.Metric
) -> dict[int, list["Metric"]]:
    """Returns the values of each epoch; their times follow from the record, so that sent twice they are there once."""
    from mlflow.entities import Metric

    clock, best = float(_milliseconds(row["started"]) or 0), -math.inf
    found: dict[int, list[Metric]] = {}
    for epoch in epochs:
        plain = schema.plain({str(name): value for name, value in epoch.items()})
        values = {name: value for name, value in plain.items() if name in _METRICS and value is not None}
        best = max(best, judged.sign * values.get(judged.column, -judged.sign * math.inf))
        clock += 1000 * values.get("epoch_seconds", 0.0)
        step = int(epoch["epoch"])
        values |= {f"best_{judged.column}": judged.sign * best} if math.isfinite(best) else {}
        found[step] = [Metric(name, float(value), int(clock), step) for name, value in values.items()]
    return found


def _milliseconds(moment: Any) -> int | None:
    """Returns a time of the frames as MLflow has it, None where there is none: MLflow then takes the present."""
    return None if moment is None else int(1000 * moment.timestamp())


def _client(uri: str) -> "MlflowClient":
    """Returns MLflow's client; raises where MLflow is missing, or where the URI needs a password that is not here."""
    os.environ |= {name: value for name, value in _TIMEOUTS.items() if name not in os.environ}
    if "***" in uri:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise UserError("its password is not written down. Set MLFLOW_TRACKING_URI to the whole URI")
    import mlflow

    for name in ("mlflow", "alembic"):  # Which print each step of making a database, and tracebacks of what we say.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow.MlflowClient(tracking_uri=uri)


def _reason(error: Exception) -> str:
    """Returns the first telling line of an error, and what mends it if it is a password that is missing."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]  # SQLAlchemy's
    said = masked(next(iter(lines), "") or type(error).__name__).rstrip(".")
    refused = re.search(r"\b40[13]\b|Unauthorized|UNAUTHENTICATED|PERMISSION_DENIED", said)
    return f"{said}. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN" if refused else said
