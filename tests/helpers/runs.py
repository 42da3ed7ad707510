"""What the tests of runs into a file share, beside the fixtures in conftest.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from glia_rt import Result
from glia_rt.listing.frozen import freeze
from glia_rt.listing.sources import Sources
from glia_rt.runs.run import Progress

FORMATS = ("csv", "jsonl", "parquet")
#: Of the fixture `listing`.
ROWS, BAD = 20, 3


class Stop(Exception):
    """What ends a run in these tests."""


def after(rows: int, error: BaseException) -> Callable[[Progress, Result], None]:
    """Raise once so many rows of this run are done."""
    count = itertools.count(1)

    def on_row(progress: Progress, result: Result) -> None:
        if next(count) == rows:
            raise error

    return on_row


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def frozen(sources: Sources, path: Path) -> Sources:
    """Freeze a listing into a file, and return what stands for it."""
    freeze(path, sources.pieces(), str(sources))
    return Sources(list_file=path)
