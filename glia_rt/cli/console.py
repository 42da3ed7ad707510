"""What the command line prints: tables and rows on stdout, diagnostics and progress on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeAlias

import click

from glia_rt.pixels.names import printable

#: Between lines of progress where there is no terminal.
LOG_SECONDS = 60.0

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glia_rt.backends.cuda.engine import EngineRecord
    from glia_rt.contract import Contract
    from glia_rt.listing.frozen import Summary
    from glia_rt.results import Result
    from glia_rt.runs import run
    from glia_rt.verify import Parity

    OnStart: TypeAlias = Callable[[Summary | None, run.Progress], None]
    OnRow: TypeAlias = Callable[[run.Progress, Result], None]


def tell(message: str) -> None:
    """Print lines on stdout, cleaned of what would command a terminal."""
    click.echo("\n".join(map(printable, message.split("\n"))))


def say(message: str) -> None:
    """Print a diagnostic on stderr, so that stdout holds nothing but what was asked for; cleaned as by `tell`."""
    try:
        click.echo("\n".join(map(printable, message.split("\n"))), err=True)
    except OSError:  # the reader went away or the disk is full, and neither is a reason to stop
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Send what is written from now on nowhere.

    Python would otherwise complain on exit about what the stream still holds.
    """
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@dataclass
class State:
    """What the options of all commands say.

    Attributes:
        debug: Print the traceback behind an error.
    """

    debug: bool = False
    _handler: logging.Handler | None = None
    _level: int = logging.NOTSET

    def log(self) -> None:
        """Say each step from now on, as `glia_rt.steps` logs them."""
        if self._handler is None:
            self._handler = _Say()
            logger = logging.getLogger("glia_rt")
            logger.addHandler(self._handler)
            self._level = logger.level
            logger.setLevel(logging.INFO)

    def close(self) -> None:
        """Say no more steps: a program may call the command line several times."""
        if self._handler is not None:
            logger = logging.getLogger("glia_rt")
            logger.removeHandler(self._handler)
            logger.setLevel(self._level)
            self._handler = None


class _Say(logging.Handler):
    """Log lines on stderr, by `say`."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def say_traceback(error: BaseException, state: State) -> None:
    """Print where an error came from, for those who asked."""
    if state.debug:
        say("".join(traceback.format_exception(error)).rstrip())


def say_notes(error: BaseException) -> None:
    """Print the notes of an error: they say where the rows are that were scored before it."""
    for note in getattr(error, "__notes__", ()):
        say(f"glia-rt: {note}")


class Opened(Protocol):
    """An opened model: a `glia_rt.Scorer`, or a checkpoint in PyTorch."""

    backend: Any
    passed_over: tuple[str, ...]
    contract: Contract


def say_backend(scorer: Opened) -> None:
    """Print which engine was taken, and why not each faster one."""
    backend = scorer.backend
    say(f"backend {backend.name}, {backend.precision}, {backend.device}")
    names_by_reason: dict[str, list[str]] = {}
    for passed_over in scorer.passed_over:
        name, _, reason = passed_over.partition(": ")
        names_by_reason.setdefault(reason, []).append(name)
    for reason, names in names_by_reason.items():
        say(f"  not {', '.join(names)}: {reason}")
    if scorer.contract.score.range is None:
        say("  this model was never trained: its scores mean nothing and have no unit")


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether people see a stream as it is written. FORCE_COLOR, which rich heeds, says nothing of that."""
    return stream is not None and stream.isatty()


def make_console(*, stderr: bool = False) -> Console:
    """Return the console that tables are printed on."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not is_terminal(sys.stderr if stderr else sys.stdout):
        console.width = 200  # lines are folded for people only
    return console


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table without lines. Its cells are printed as they are, cleaned as by `tell`."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(printable(cell).replace("[", "\\[") for cell in row))
    return table


def print_parity(console: Console, rows: Sequence[Parity]) -> None:
    """Print the parity table."""
    cells = [
        [row.what, f"{row.worst:.1e}", f"{row.limit:.0e}", row.unit, row.picture, "ok" if row.passed else "FAILED"]
        for row in rows
    ]
    console.print(make_table(["compared with PyTorch FP32", "worst", "limit", "measure", "worst picture", ""], cells))


def print_engine(console: Console, record: EngineRecord) -> None:
    """Print what an engine is, and what TensorRT made of the graph."""
    layers, kernels = record.layers, "the engine does not say"
    if layers:
        others = layers["other_kernels"] - layers["attention_kernels"]
        kernels = f"{layers['matrix_products']} matrix products, {layers['attention_kernels']} fused attentions"
        kernels += f", {others} others"
    rows = [
        ["engine", f"{record.engine_size / 1e6:.1f} MB in {record.build_seconds:.1f} s"],
        ["library", f"{record.target} {record.library_version}"],
        ["GPUs", ", ".join(record.capabilities) or "8.0 and later, those of GeForce and RTX"],
    ]
    for name, (low, _, high) in record.profile.items():
        rows.append([name, " to ".join("x".join(map(str, shape)) for shape in (low, high))])
    rows.append(["kernels", kernels])
    console.print(make_table(["", ""], rows))


def format_row(result: Result) -> str:
    """Return a result as one line under score, size, path."""
    if result.status != "ok":
        line = f"{'-':>10}  {'-':>11}  {result.path}: {result.error}"
    else:
        line = f"{result.score:>10.4f}  {result.width:>5}x{result.height:<5}  {result.path}"
    return printable(line)


@contextmanager
def show_progress(*, hidden: bool) -> Iterator[tuple[OnStart, OnRow]]:
    """Yield what `run.score_to_file` calls to tell how far it is.

    On a terminal this is a bar on stderr with rate and time left, unless hidden. Elsewhere it is a line per minute.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    console = make_console(stderr=True)
    in_log = not is_terminal(sys.stderr)
    with Progress(*columns, console=console, disable=hidden or in_log) as bar:
        task = bar.add_task("", total=None, text="")
        began, first, total, said = time.monotonic(), 0, "", time.monotonic()

        def on_start(summary: Summary | None, progress: run.Progress) -> None:
            nonlocal began, first, total
            began, first = time.monotonic(), progress.rows
            if first:
                say(f"going on after {first} pictures")
            if summary is not None:
                # The bar counts pieces, because a tar archive does not say how many pictures it has.
                bar.update(task, total=summary.pieces)
                total = "" if summary.pictures is None else f"/{summary.pictures}"

        def on_row(progress: run.Progress, _: Result) -> None:
            nonlocal said
            now = time.monotonic()
            rate = (progress.rows - first) / max(now - began, 1e-3)  # a mean, because rows come a batch at a time
            text = f"{progress.rows}{total} pictures {rate:.1f}/s"
            bar.update(task, completed=progress.pieces, text=text)
            if in_log and now - said >= LOG_SECONDS:
                said = now
                left = bar.tasks[0].time_remaining
                say(text if left is None else f"{text}, {timedelta(seconds=round(left))} left")

        yield on_start, on_row


@contextmanager
def show_count(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield what a command calls after each of so many pictures.

    On a terminal this is a bar on stderr with the time left. Elsewhere it is a line per minute.

    Args:
        what: What is done to the pictures, for example "reading".
        total: The number of pictures.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = make_console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    in_log = not is_terminal(sys.stderr)
    with Progress(*columns, console=console, disable=in_log) as bar:
        task = bar.add_task("", total=total)
        done, said = 0, time.monotonic()

        def advance() -> None:
            nonlocal done, said
            done += 1
            bar.advance(task)
            if in_log and time.monotonic() - said >= LOG_SECONDS:
                said = time.monotonic()
                say(f"{what}: {done} of {total} pictures")

        yield advance
