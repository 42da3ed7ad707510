"""Rows of a run that is not done yet, kept so that a crash at any moment loses seconds and no more.

OUTPUT.parts/ holds run.json, which says what the run is, and parts: JSON Lines, named by the number of their first row.
A part is written under another name, forced to the disk and renamed, so that one that is there is whole, whatever ended
the run: an exception, SIGKILL, or a power cut. Only one process at a time has the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.results import Result
from glia_rt.sources import START, Position

#: How long a row waits in memory until it is in a part.
PART_SECONDS: Final = 5.0

_RUN: Final = "run.json"
_LOCK: Final = "lock"
_NAME_DIGITS: Final = 12
_OURS: Final = re.compile(r"(run\.json|merged|\d{12}\.jsonl)(\.partial)?")
_CAUSE: Final = "mend the cause, and give the same command again with --resume"


class Parts:
    """OUTPUT.parts/ of a run; a context manager. Not to be shared by threads.

    Leaving it keeps the rows, and forgets a run without any; `remove` is for when they are elsewhere.

    Attributes:
        folder: OUTPUT.parts.
        rows: How many rows are in it, those in memory too.
        start: Where the run goes on.
    """

    def __init__(self, output: Path, run: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Start a run, or go on with one.

        Args:
            output: What the run is for.
            run: What the rows depend on, JSON types only. A run is gone on with only if it says the same.
            resume: Go on with the run that is there; if there is none, start.
            overwrite: Drop the run that is there.

        Raises:
            OutputExistsError: A run is there and neither was asked for, or another process has it.
            UsageError: The run that is there is another one, or the folder is not a run's, or cannot be written.
            GliaError: A part has been damaged or is missing.
        """
        self.folder = parts_folder(output)
        self._run = json.loads(json.dumps(run))
        self.rows, self.start = 0, START
        self._pending: list[str] = []
        self._last_commit = time.monotonic()
        was_there = self.folder.exists()
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = FileLock(self.folder / _LOCK)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise OutputExistsError(f"{output}: another run is writing it; wait, or name another output") from None
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written: {error.strerror}") from error
        try:
            self._begin(output, resume=resume and was_there, overwrite=overwrite or not was_there)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, output: Path, *, resume: bool, overwrite: bool) -> None:
        run_file = self.folder / _RUN
        if not (self.folder / _LOCK).exists():
            raise OutputExistsError(f"{output}: another run onto it has just ended")
        if resume and run_file.exists():
            self._require_same(json.loads(run_file.read_text(encoding="utf-8")))
            self._find_start()
            return
        if run_file.exists() and not overwrite:
            raise OutputExistsError(
                f"{self.folder} has the rows of a run that broke off: give --resume to go on with it, or --overwrite "
                "to drop it"
            )
        left = [path for path in self.folder.iterdir() if path.name != _LOCK]
        if any(not _OURS.fullmatch(path.name) for path in left):
            raise UsageError(f"{self.folder} holds files that no run wrote: move them, or name another output")
        # Run.json last and parts from the last: killed meanwhile, what is left is a run that can be gone on with.
        for path in sorted(left, key=lambda path: (path.name != _RUN, path.name), reverse=True):
            path.unlink()
        with self._reporting():
            write_durably(run_file, json.dumps(self._run, indent=2).encode())

    def write(self, position: Position, result: Result) -> None:
        """Add the row of the picture at a position.

        Raises:
            GliaError: The disk is full, or failed otherwise. What is in parts stays there.
        """
        line = {"at": position, **dataclasses.asdict(result)}
        self._pending.append(json.dumps(line, ensure_ascii=False, allow_nan=False))
        self.rows += 1
        if time.monotonic() - self._last_commit >= PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Put all rows into parts, on the disk; raises as `write` does."""
        if self._pending:
            first = self.rows - len(self._pending)
            with self._reporting():
                write_durably(self._part(first), "".join(f"{line}\n" for line in self._pending).encode())
            self._pending.clear()
        self._last_commit = time.monotonic()

    def read(self) -> Iterator[tuple[Position, Result]]:
        """All rows that are in parts, in order.

        Raises:
            GliaError: A part has been damaged or is missing.
        """
        rows = 0
        for part in self._parts():
            if part != self._part(rows):
                raise GliaError(f"{self._part(rows)} is missing: start anew, with --overwrite")
            for line in _lines(part):
                position = Position(*line.pop("at"))
                yield position, Result(**line)
                rows += 1

    def remove(self) -> None:
        """Drop the folder, with all that is in it."""
        self._pending.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with contextlib.suppress(GliaError):  # the disk that failed may be what ends the run
                self.commit()
            if error is not None and self.rows > len(self._pending):
                kept = self.rows - len(self._pending)
                error.add_note(f"{kept} rows are kept in {self.folder}: the same command with --resume goes on")
            elif self.rows == len(self._pending):
                self.remove()
        finally:
            self._lock.release()

    def _require_same(self, before: Mapping[str, Any]) -> None:
        then, now = _flat(before), _flat(self._run)
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed:
            changes = "; ".join(f"{key} was {_short(then.get(key))}, is {_short(now.get(key))}" for key in changed)
            raise UsageError(
                f"{self.folder} has rows of another run: {changes}. Go on as it began, or give --overwrite to drop them"
            )

    def _find_start(self) -> None:
        """From the last part, which its own name says how many rows come before."""
        for part in self._parts()[-1:]:
            lines = _lines(part)
            self.rows = int(part.stem) + len(lines)
            piece, picture = lines[-1]["at"]
            self.start = Position(piece, picture + 1)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _part(self, first_row: int) -> Path:
        return self.folder / f"{first_row:0{_NAME_DIGITS}}.jsonl"

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GliaError(f"{self.folder}: cannot be written: {error.strerror or error}; {_CAUSE}") from error


def parts_folder(output: Path) -> Path:
    """OUTPUT.parts."""
    return output.with_name(output.name + ".parts")


def write_durably(path: Path, content: bytes) -> None:
    """Make a file appear whole, and so that it outlives a power cut.

    Raises:
        OSError: It cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(partial, path)


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file within its folder, on the disk."""
    os.replace(source, target)
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lines(part: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in part.read_bytes().splitlines()]
        if not lines or not all(isinstance(line["at"], list) for line in lines):
            raise ValueError("no rows")
    except (ValueError, KeyError, TypeError) as error:
        raise GliaError(f"{part} is damaged ({error}): start anew, with --overwrite") from error
    return lines


def _flat(run: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in run.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
