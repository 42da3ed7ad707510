"""The folder of a training run: what it holds, what of it is needed to go on, and whether a run may go on there."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from glia_rt import files
from glia_rt.errors import BundleError, OutputExistsError, UsageError
from glia_rt.pixels.names import printable
from glia_train import curves
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.splits import Split
from glia_train.metrics import Metrics

if TYPE_CHECKING:
    from rich.console import Console

CHECKPOINT: Final = "checkpoint.pt"
RECORD: Final = "run.json"
SPLIT: Final = "split.csv"
METRICS: Final = "metrics.csv"
CURVES: Final = "curves.png"
#: What a run needs to go on where it was; it is there until the run is complete.
STATE: Final = "state.pt"
#: Options that may change when a run is resumed. No weight depends on the workers, and what the precision comes to is
#: compared instead.
FREE_OPTIONS: Final = frozenset({"workers", "precision"})


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        checkpoint: The checkpoint of the last epoch.
        split: The training, validation and test parts.
        metrics: Metrics of the calibrated scores after the last epoch: of the test part, or of the validation part if
            the test part was not measured.
        epochs: Number of epochs; fewer than asked for if the time ran out.
    """

    checkpoint: Path
    split: Split
    metrics: Metrics
    epochs: int


class RunFolder:
    """The folder of a run, and the console that says how it goes.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, console: Console | None) -> None:
        self.path = path
        self._console = console

    def say(self, line: str) -> None:
        """Print a line."""
        if self._console is not None:
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def require_room(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that holds a run, unless it is to be replaced or resumed.

        Raises:
            UsageError: It is to be replaced and resumed.
            OutputExistsError: It holds a run.
        """
        if overwrite and resume:
            raise UsageError("--overwrite begins anew, and --resume goes on: give one of them")
        if not overwrite and not resume and any((self.path / name).exists() for name in (CHECKPOINT, STATE)):
            raise OutputExistsError(
                f"{self.path} holds a run: name another folder, give --resume to go on with it, or --overwrite to "
                "replace it"
            )

    def start(self, record: Mapping[str, Any], split: Split) -> None:
        """Make the folder, and remove the files of an earlier run, which would pass for this run's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in (CHECKPOINT, RECORD, SPLIT, METRICS, CURVES, STATE):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot hold a run: {error.strerror}") from error
        files.write_whole(self.path / RECORD, json.dumps(record, indent=2) + "\n")
        files.write_whole(self.path / SPLIT, split.to_csv())

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the figures of every epoch, as a table and as curves."""
        files.write_whole(self.path / METRICS, curves.table(rows))
        files.write_whole(self.path / CURVES, curves.plot(rows))

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write what is needed to go on, tensors and plain types, among them the `record` of the run."""
        with files.whole_file(self.path / STATE) as file:
            torch.save(dict(state), file)

    def read_state(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the state of the run to go on with; None if there is none.

        Raises:
            UsageError: That run has another dataset, model or options.
            BundleError: The file is damaged.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self._require_same(state["record"], record)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise BundleError(f"{path}: damaged ({str(error).splitlines()[0][:200]}): give --overwrite") from error
        return state

    def finished(self, record: Mapping[str, Any], split: Split) -> TrainResult | None:
        """Return the result of the run if it is complete; None if there is no run.

        Raises:
            UsageError: That run has another dataset, model or options.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        checkpoint = Checkpoint.load(path)
        self._require_same(checkpoint.trained_on, record)
        self.say(f"{self.path} is complete")
        metrics: Any = checkpoint.metrics
        facts = {name: checkpoint.trained_on[name] for name in ("mapping", "note") if name in checkpoint.trained_on}
        return TrainResult(path, split, Metrics(**metrics, **facts), checkpoint.trained_on["epoch"])

    def _require_same(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for field in ("labels_sha256", "family", "config", "from", "backbone_weights", "score_range", "options"):
            then, now = (json.loads(json.dumps(record.get(field))) for record in (theirs, ours))
            if field == "options":
                for name in sorted(now):
                    if name not in FREE_OPTIONS and then.get(name) != now[name]:
                        raise UsageError(
                            f"{self.path}: the run was begun with {name} {then.get(name)}, not {now[name]}: give the "
                            "same, or --overwrite to begin anew"
                        )
            elif then != now:
                what = {"labels_sha256": "other labels", "from": "another checkpoint"}.get(field, f"another {field}")
                raise UsageError(f"{self.path}: the run was begun with {what}: give --overwrite to begin anew")
        then, now = theirs["machine"]["precision"], ours["machine"]["precision"]
        if then != now:
            raise UsageError(f"{self.path}: the run was begun in {then}, not in {now}: give --precision {then}")

    def finish(self, cache: Path | None) -> None:
        """Remove what only a run in progress needs."""
        (self.path / STATE).unlink(missing_ok=True)
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)
