"""Rows of a run that is not done yet, kept so that a crash at any moment loses seconds and no more.

OUTPUT.parts/ holds run.json, which says what the run is; the listing of what it scores; and parts: JSON Lines, named by
the number of their first row.
A part is written under another name, forced to the disk and renamed, so that one that is there is whole, whatever ended
the run: an exception, SIGKILL, or a power cut. Only one process at a time has the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from glia_rt import files, upgrades
from glia_rt.contract import SCHEMA as CONTRACT_SCHEMA
from glia_rt.errors import BundleError, GliaError, OutputExistsError, UsageError
from glia_rt.listing.frozen import ENDING, FrozenListing, Summary, freeze
from glia_rt.listing.missing import FOLDERS
from glia_rt.listing.pieces import START, Piece, Position
from glia_rt.pixels.names import named_path
from glia_rt.results import Result, count_rows

#: How long a row waits in memory until it is in a part.
PART_SECONDS: Final = 5.0

_RUN: Final = "run.json"
_LOCK: Final = "lock"
_LISTING: Final = f"listing{ENDING}"
_NAME_DIGITS: Final = 12
_OURS: Final = re.compile(r"\.?(run\.json|listing\.jsonl\.zst|merged|\d{12}\.jsonl)(\.partial(-[\da-f-]+)?)?")
_AGAIN: Final = "mend the cause, and give the same command again"
_ANEW: Final = "start anew, with --overwrite"
_REPLACES: Final = "replaces_output"
_STARTING: Final = "is_starting"


class _DamagedError(GliaError):
    """What was kept cannot be resumed."""


class Parts:
    """OUTPUT.parts/ of a run; a context manager. Not to be shared by threads.

    Leaving it keeps the rows. A run without rows is forgotten, but for what `_is_worth_keeping` says. `remove` drops
    rows that have been written elsewhere.

    Attributes:
        folder: OUTPUT.parts.
        listing: What the run scores; there once `freeze` was called.
        start: Where the run goes on.
        replaces: Whether the run may replace an output that is there: it was said so when the run began, or the output
            is its own.
    """

    def __init__(
        self,
        output: Path,
        run: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        is_stream: bool = False,
        option: str = "--resume",
    ) -> None:
        """Start a run, or resume one.

        Args:
            output: What the run is for.
            run: What the rows depend on, JSON types only. A run is resumed only if it says the same.
            resume: Go on with the run that is there; if there is none, start.
            overwrite: Drop the run that is there.
            is_stream: Whether what is scored can be listed once only. Such a run cannot go on before it is listed.
            option: The option with which the same command goes on, for messages.

        Raises:
            OutputExistsError: A run is there and neither was asked for, or another process has it.
            UsageError: The run that is there is another one, or the folder is not a run's, or cannot be written.
            GliaError: A part has been damaged or is missing.
        """
        self.folder = parts_folder(output)
        self.listing = FrozenListing(self.folder / _LISTING)
        self.start, self.replaces = START, overwrite
        self._output = output
        self._option = option
        self._run = json.loads(json.dumps(run))
        self._is_stream = is_stream
        self._committed = 0
        self._pending: list[str] = []
        self._last_commit = time.monotonic()
        self._removed = False
        try:
            self.folder.mkdir(exist_ok=True)
            files.sync_folder(self.folder.parent)
            self._lock = FileLock(self.folder / _LOCK)
            self._lock.acquire(blocking=False)
        except Timeout:
            left = f"; if none is, delete {self._lock.lock_file}" if self._may_be_dead() else ""
            raise OutputExistsError(
                f"{output}: another run is writing it; wait, or name another output{left}"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written: {error.strerror}") from error
        try:
            self._begin(output, resume=resume, overwrite=overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _may_be_dead(self) -> bool:
        """Whether the lock may be that of a process which has ended.

        The system frees a lock of its own with the process, and leaves the file empty. Where it has none, filelock
        writes the owner into the file, and the file stays when the owner is killed.
        """
        try:
            return os.stat(self._lock.lock_file).st_size > 0
        except OSError:
            return False

    def _begin(self, output: Path, *, resume: bool, overwrite: bool) -> None:
        run_file = self.folder / _RUN
        if not (self.folder / _LOCK).exists():
            raise OutputExistsError(f"{output}: another run onto it has just ended")
        if resume and run_file.exists():
            before = self._read_run()
            self.replaces, is_starting = before.pop(_REPLACES, False), before.pop(_STARTING, False)
            self._require_same(upgraded(before))
            if not is_starting:
                self._find_start()
                return
        elif run_file.exists() and not overwrite:
            raise OutputExistsError(
                f"{self.folder} has the rows of a run that broke off: give --resume to go on with it, or "
                "--overwrite to drop it"
            )
        left = [path for path in self.folder.iterdir() if path.name != _LOCK]
        if any(not _OURS.fullmatch(path.name) for path in left):
            raise UsageError(f"{self.folder} holds files that no run wrote: move them, or name another output")
        if left:  # this process may be killed before all are removed: the others must not pass for rows of this run
            self._write_run(is_starting=True, cause=_AGAIN)
        for path in left:
            if path.name != _RUN:
                files.remove(path)
        self._write_run(cause=_AGAIN)

    def freeze(self, pieces: Iterable[Piece], sources: str) -> Summary:
        """List what is to be scored, unless the run that is resumed has done so.

        Args:
            pieces: What is to be scored.
            sources: What these are the pieces of, for people.

        Raises:
            UsageError: As `pieces` raises; or the run that is resumed has rows, but no listing.
            SourceError: As `pieces` raises.
            GliaError: The disk is full, or failed otherwise.
        """
        if self.listing.path.exists():
            return self.listing.summary()
        if self._committed:
            raise _DamagedError(f"{self.listing.path} is missing, or an older glia-rt began this run: {_ANEW}")
        with self._reporting(_AGAIN):
            return freeze(self.listing.path, pieces, sources)

    @property
    def rows(self) -> int:
        """How many rows are in it, those in memory too."""
        return self._committed + len(self._pending)

    def replace_output(self) -> None:
        """Note that an output that is there is this run's from now on; raises as `write` does."""
        self.replaces = True
        self._write_run()

    def write(self, position: Position, result: Result) -> None:
        """Add the row of the picture at a position.

        Raises:
            GliaError: The disk is full, or failed otherwise. What is in parts stays there.
        """
        line = {"at": position, **result.to_row()}
        self._pending.append(json.dumps(line, ensure_ascii=False, allow_nan=False))
        if time.monotonic() - self._last_commit >= PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put all rows into parts, on the disk; raises as `write` does."""
        if self._pending:
            with self._reporting():
                files.write_whole(self._part(self._committed), "".join(f"{line}\n" for line in self._pending).encode())
            # In one statement: Ctrl-C between two would lose rows, or write them twice.
            self._committed, self._pending = self._committed + len(self._pending), []
        self._last_commit = time.monotonic()

    def read(self) -> Iterator[tuple[Position, Result]]:
        """All rows that are in parts, in order.

        Raises:
            GliaError: A part has been damaged or is missing.
        """
        rows = 0
        for part in self._parts():
            self._require_next(part, rows)
            found = _read_part(part)
            yield from found
            rows += len(found)

    def folders(self) -> list[str]:
        """Folders that pictures of the last rows were read from, the last one last; raises as `read` does."""
        found: dict[str, None] = {}
        rows = 0
        for part in reversed(self._parts()):
            results = _read_part(part)
            ok = (named_path(result.path) for _, result in reversed(results) if result.status == "ok")
            found |= {os.path.dirname(path): None for path in ok}
            rows += len(results)
            if rows >= FOLDERS:
                break
        return list(reversed(found))

    def remove(self) -> None:
        """Drop the folder, with all that is in it."""
        self._removed = True
        # run.json goes first: if this process is killed in between, the rest must not be taken for a whole run. The
        # lock goes last: a run that begins then has the folder for itself.
        turns = {_RUN: 0, _LOCK: 2}
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.iterdir(), key=lambda path: turns.get(path.name, 1)):
                files.remove(path)
            self.folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._removed:
                return
            with contextlib.suppress(GliaError):  # the disk that failed may be what ends the run
                self.commit()
            if not self._committed and not self._is_worth_keeping(error):
                self.remove()
            elif error is not None and not isinstance(error, _DamagedError):
                goes_on = f"the same command with {self._option} goes on"
                error.add_note(f"{count_rows(self._committed)} kept in {self.folder}: {goes_on}")
        finally:
            self._lock.release()
            if self._removed:
                with contextlib.suppress(OSError):  # over NFS the folder was not empty while the lock was open
                    self.folder.rmdir()

    def _is_worth_keeping(self, error: BaseException | None) -> bool:
        """Return whether a run without rows is kept.

        The names that came on standard input are there once. And if the run may replace an output, that output must
        not pass for its own when the same command is given again.
        """
        if error is None:
            return False
        if self._is_stream:
            return self.listing.path.exists() and not isinstance(error, UsageError)
        return self.replaces and os.path.lexists(self._output)

    def _require_same(self, before: Mapping[str, Any]) -> None:
        then, now = _flat(before), _flat(self._run)
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed:
            changes = "; ".join(_change(key, then.get(key), now.get(key)) for key in changed)
            raise UsageError(
                f"{self.folder} has rows of another run: {changes}. Go on as it began, or give --overwrite to drop them"
            )

    def _read_run(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _DamagedError(f"{self.folder / _RUN} is damaged ({error}): {_ANEW}") from error
        if not isinstance(found, dict):
            raise _DamagedError(f"{self.folder / _RUN} is damaged: {_ANEW}")
        return found

    def _write_run(self, *, is_starting: bool = False, cause: str | None = None) -> None:
        with self._reporting(cause):
            content = self._run | {_REPLACES: self.replaces, _STARTING: is_starting}
            files.write_whole(self.folder / _RUN, json.dumps(content, indent=2))

    def _find_start(self) -> None:
        """After the last row. Names of parts say how many rows come before: none may be missing."""
        for part in self._parts():
            self._require_next(part, self._committed)
            with part.open("rb") as file:
                rows = sum(1 for _ in file)
            if not rows:
                raise _DamagedError(f"{part} is damaged (no rows): {_ANEW}")
            self._committed += rows
        for part in self._parts()[-1:]:
            (piece, picture), _ = _read_part(part)[-1]
            self.start = Position(piece, picture + 1)

    def _require_next(self, part: Path, rows: int) -> None:
        if part != self._part(rows):
            raise _DamagedError(f"{self._part(rows)} is missing: {_ANEW}")

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _part(self, first_row: int) -> Path:
        return self.folder / f"{first_row:0{_NAME_DIGITS}}.jsonl"

    @contextlib.contextmanager
    def _reporting(self, cause: str | None = None) -> Iterator[None]:
        cause = cause or f"{_AGAIN} with {self._option}"
        try:
            yield
        except OSError as error:
            raise GliaError(f"{self.folder}: cannot be written: {error.strerror or error}; {cause}") from error


def parts_folder(output: Path) -> Path:
    """OUTPUT.parts."""
    return output.with_name(output.name + ".parts")


def _read_part(part: Path) -> list[tuple[Position, Result]]:
    try:
        lines = [json.loads(line) for line in part.read_bytes().splitlines()]
        rows = [(Position(*line.pop("at")), Result(**line)) for line in lines]
        if not rows:
            raise ValueError("no rows")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{part} is damaged ({error}): {_ANEW}") from error
    return rows


def upgraded(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a run that an older glia-rt began as this one writes them."""
    try:
        return {**run, "contract": upgrades.upgrade(run["contract"], "contract", CONTRACT_SCHEMA, upgrades.CONTRACT)}
    except (KeyError, BundleError):
        return dict(run)  # not what any version wrote: it will differ from the run of now


def _flat(run: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in run.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _change(key: str, then: Any, now: Any) -> str:
    if key == "listing.named":  # a hash
        return "the paths, the list or -0 were others"
    return f"{key} was {_short(then)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
