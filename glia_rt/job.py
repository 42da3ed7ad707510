"""Scoring a listing into a file: resumable, in order, and whole or not there.

Rows go into OUTPUT.parts/ while the run lasts (`parts`), and from there into OUTPUT at its end (`sinks`).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glia_rt.errors import GliaError, MissingPackageError, OutputExistsError, UsageError
from glia_rt.parts import Parts, rename_durably, write_durably
from glia_rt.pieces import Picture
from glia_rt.results import Result
from glia_rt.sinks import metadata_path, sink_format
from glia_rt.sources import START, Position, Sources, Summary

if TYPE_CHECKING:
    from glia_rt.scorer import Scorer


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        rows: Pictures done, those of the run that it resumes too.
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
            "standard input, or a pipe, is read once: no run on it is resumed, and no report made; put the names into "
            "a --list file"
        )
    if os.path.lexists(output) and not (resume or overwrite):
        raise _exists(output)
    _require_name(output)
    write_report = _reporter(report, may_exist=resume or overwrite)
    summary = summarize(sources)
    run = describe(scorer, sources, summary)
    with Parts(output, run, resume=resume, overwrite=overwrite, repeatable=sources.is_repeatable) as parts:
        # Only now, since another run may have made it meanwhile. Of a run that may replace it there are rows to go on
        # with, whatever the output is.
        if os.path.lexists(output) and not parts.replaces:
            if not resume or parts.rows or (finished := _finished(output, run)) is None:
                raise _exists(output, ", and is not of this run" if resume else "")
            if report is not None and not os.path.exists(report):
                raise UsageError(
                    f"{output} is whole, and {report} was not asked for when it was made: give --overwrite"
                )
            return finished
        on_start(summary, Progress(parts.rows, parts.start.piece))
        at_least = 0 if summary is None else summary.pieces
        for position, done, result in score(
            scorer, sources, parts.start, at_least, workers=workers, read_from=parts.folders()
        ):
            parts.write(position, result)
            on_row(Progress(parts.rows, position.piece + done), result)
        if not parts.rows and sources.shard == (1, 1):
            raise nothing_in(sources)
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
        raise nothing_in(sources)
    return summary


def nothing_in(sources: Sources) -> UsageError:
    """What to raise where there is nothing to score."""
    return UsageError(f"no pictures in {sources}{sources.hint()}")


def score(
    scorer: Scorer,
    sources: Sources,
    start: Position = START,
    at_least: int = 0,
    *,
    workers: int | None = None,
    read_from: Iterable[str] = (),
) -> Iterator[tuple[Position, float, Result]]:
    """Score a listing of at least so many pieces lazily, from a position on; else as `Scorer.score_pictures`.

    Yields:
        Where a picture stands, the share of its piece that is done with it, and its result.
    """
    ahead: deque[tuple[Position, float]] = deque()  # of the pictures under way: there is a result for each, in order

    def pictures() -> Iterator[Picture]:
        for position, picture in sources.pictures(start, at_least):
            ahead.append((position, picture.done))
            yield picture

    with closing(scorer.score_pictures(pictures(), workers=workers, read_from=read_from)) as results:
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
        if not parts.replaces:
            if os.path.lexists(output):
                raise OutputExistsError(
                    f"{output} has appeared since this run began: move it, and give the same command with --resume"
                )
            parts.replace_output()
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
    """What is in an output of this run that is whole; None where it is of another."""
    try:
        before = json.loads(metadata_path(output).read_text(encoding="utf-8"))
        outcome = Outcome(before.pop("rows"), before.pop("bad_images"))
    except (OSError, ValueError, KeyError):
        return None
    return outcome if before == json.loads(json.dumps(run)) else None


def _exists(path: str | os.PathLike[str], what: str = "") -> OutputExistsError:
    return OutputExistsError(f"{path} exists{what}; name another file, or give --overwrite to replace it")


def _require_name(output: Path) -> None:
    """Find out now, not once all is scored, that a file of this name cannot be made."""
    longest = metadata_path(output)
    try:
        os.lstat(longest.with_name(longest.name + ".partial"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror}; name another file") from error


def _reporter(path: str | os.PathLike[str] | None, *, may_exist: bool) -> Callable[..., None] | None:
    """What writes the report; its path is looked at before the first picture is scored."""
    if path is None:
        return None
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: the report is a page; name it .html")
    if os.path.lexists(path) and not may_exist:
        raise _exists(path)
    if os.path.isdir(path):
        raise UsageError(f"{path}: a folder; name a file for the report")
    if not Path(path).parent.is_dir():
        raise UsageError(f"{path}: there is no folder {Path(path).parent}; make it first")
    try:
        from glia_rt.report import write_report
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "a package", "report") from error
    return partial(write_report, path)
