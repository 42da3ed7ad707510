"""Scoring a listing into a file: resumable, in order, and whole or not there.

Rows go into OUTPUT.parts/ while the run lasts (`parts`), and from there into OUTPUT at its end (`sinks`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glia_rt.errors import GliaError, MissingPackageError, OutputExistsError, UsageError
from glia_rt.parts import Parts, parts_folder, rename_durably, write_durably
from glia_rt.pieces import Picture
from glia_rt.results import Result
from glia_rt.sinks import metadata_path, sink_format
from glia_rt.sources import START, Position, Sources, Summary

if TYPE_CHECKING:
    from glia_rt.scorer import Scorer


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        rows: Pictures done, those of the run it goes on with too.
        pieces: Pieces done, the started one in part.
    """

    rows: int
    pieces: float


class Outcome(NamedTuple):
    """What an output holds: rows, and how many of them are pictures that could not be read."""

    rows: int
    bad: int


def score_to_file(
    scorer: Scorer,
    sources: Sources,
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: str | os.PathLike[str] | None = None,
    on_start: Callable[[Summary | None, Progress], None] = lambda summary, progress: None,
    on_row: Callable[[Progress, Result], None] = lambda progress, result: None,
) -> Outcome:
    """Score a listing into a file, which appears once it is whole, with OUTPUT.meta.json beside it.

    Args:
        scorer: What to score with.
        sources: What to score.
        output: Ends in .csv, .jsonl or .parquet.
        workers: Decoding threads; None for one a core.
        resume: Go on where a run that broke off stopped; if there is none, start; if the output is there, check that it
            is that of this run, and leave it.
        overwrite: Replace the output, and drop a run that broke off.
        report: Write a page about the scores there, too (`report.write_report`).
        on_start: Called once, with the listing's size (None for standard input) and where the run goes on.
        on_row: Called after each row.

    Raises:
        OutputExistsError: The output, or a run that broke off, is there and neither flag was given; or another process
            is writing it.
        UsageError: The arguments do not go together, there is nothing to score, or the run there is another one.
        GliaError: The disk is full, or what is to be scored has gone, or the engine failed. What was scored is kept.
    """
    output = Path(output)
    make_sink = sink_format(output)
    if resume and overwrite:
        raise UsageError("resume and overwrite: give one of them")
    if (resume or report is not None) and not sources.is_repeatable:
        raise UsageError(
            "standard input is read once: no run on it is resumed, and no report made; put the names into a --list file"
        )
    write_report = _reporter(report)
    if os.path.lexists(output) and not (resume or overwrite):
        raise OutputExistsError(f"{output} exists; name another file, or give --overwrite to replace it")
    summary = summarize(sources)
    run = describe(scorer, sources, summary)
    if resume and (finished := _finished(output, run)) is not None:
        if report is not None and not os.path.exists(report):
            raise UsageError(f"{output} is whole, and {report} was not asked for when it was made: give --overwrite")
        # A crash after the output appeared may have left them.
        shutil.rmtree(parts_folder(output), ignore_errors=True)
        return finished
    with Parts(output, run, resume=resume, overwrite=overwrite) as parts:
        on_start(summary, Progress(parts.rows, parts.start.piece))
        for position, done, result in score(scorer, sources, parts.start, workers=workers):
            parts.write(position, result)
            on_row(Progress(parts.rows, position.piece + done), result)
        parts.commit()
        if write_report is not None:
            write_report(parts.read(), sources, scorer, run)
        outcome = _merge(parts, output, make_sink, run)
        parts.remove()
    return outcome


def summarize(sources: Sources) -> Summary | None:
    """What a listing comes to; None for standard input. An empty one is fine only as a shard of another.

    Raises:
        UsageError: There is nothing to score; and as `Sources.summary`.
    """
    if not sources.is_repeatable:
        return None
    summary = sources.summary()
    if not summary.pieces and sources.shard == (1, 1):
        raise UsageError(f"no pictures in {sources}{sources.hint()}")
    return summary


def score(
    scorer: Scorer, sources: Sources, start: Position = START, *, workers: int | None = None
) -> Iterator[tuple[Position, float, Result]]:
    """Score a listing lazily, from a position on; raises as `Scorer.score_files`.

    Yields:
        Where a picture stands, the share of its piece that is done with it, and its result.
    """
    ahead: deque[tuple[Position, float]] = deque()  # of the pictures under way: there is a result for each, in order

    def pictures() -> Iterator[Picture]:
        for position, picture in sources.pictures(start):
            ahead.append((position, picture.done))
            yield picture

    with closing(scorer.score_pictures(pictures(), workers=workers)) as results:
        for result in results:
            position, done = ahead.popleft()
            yield position, done, result


def describe(scorer: Scorer, sources: Sources, summary: Summary | None) -> dict[str, Any]:
    """All that the rows depend on: how they are computed, and of what."""
    i, n = sources.shard
    listing: dict[str, Any] = {"sources": str(sources), "shard": f"{i}/{n}", "column": sources.column}
    if summary is not None:
        listing |= {"pieces": summary.pieces, "sha256": summary.digest}
    return scorer.resolved | {"listing": listing}


def _merge(parts: Parts, output: Path, make_sink: Callable[[Any], Any], run: dict[str, Any]) -> Outcome:
    rows = bad = 0
    merged = parts.folder / "merged"
    try:
        with merged.open("wb") as file:
            sink = make_sink(file)
            for _, result in parts.read():
                sink.write(result)
                rows += 1
                bad += result.status != "ok"
            metadata = run | {"rows": rows, "bad_images": bad}
            sink.finish(metadata)
            file.flush()
            os.fsync(file.fileno())
        # In this order: killed in between, the metadata beside an output never promise what it does not hold.
        rename_durably(merged, output)
        write_durably(metadata_path(output), (json.dumps(metadata, indent=2) + "\n").encode())
    except OSError as error:
        raise GliaError(
            f"{output}: cannot be written: {error.strerror or error}; make room, and give the same command again with "
            "--resume"
        ) from error
    return Outcome(rows, bad)


def _finished(output: Path, run: dict[str, Any]) -> Outcome | None:
    """What is in an output of this run that is whole; None where there is none.

    Raises:
        OutputExistsError: There is an output, of another run, and nothing to go on with.
    """
    if not os.path.lexists(output):
        return None
    try:
        before = json.loads(metadata_path(output).read_text(encoding="utf-8"))
        outcome = Outcome(before.pop("rows"), before.pop("bad_images"))
    except (OSError, ValueError, KeyError):
        before, outcome = {}, Outcome(0, 0)
    if before == json.loads(json.dumps(run)):
        return outcome
    if parts_folder(output).is_dir():
        return None
    raise OutputExistsError(f"{output} exists, and is not of this run; give --overwrite to replace it")


def _reporter(path: str | os.PathLike[str] | None) -> Callable[..., None] | None:
    """What writes the report, looked for before the first picture is scored."""
    if path is None:
        return None
    if not Path(path).parent.is_dir():
        raise UsageError(f"{path}: there is no folder {Path(path).parent}; make it first")
    try:
        from glia_rt.report import write_report
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "a package", "report") from error
    return partial(write_report, path)
