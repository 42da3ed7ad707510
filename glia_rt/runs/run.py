"""Scoring a listing into a file: resumable, in order, and whole or not there.

Rows go into OUTPUT.parts/ while the run lasts (`journal`), and from there into OUTPUT at its end (`outputs`).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glia_rt import files
from glia_rt.errors import (
    GliaError,
    ListingChangedError,
    MissingPackageError,
    OutputExistsError,
    SourceError,
    UsageError,
)
from glia_rt.listing.pieces import Picture
from glia_rt.listing.sources import START, Position, Sources, Summary, Tally
from glia_rt.results import Result
from glia_rt.runs.journal import Parts, upgraded
from glia_rt.runs.outputs import metadata_path, sink_format
from glia_rt.steps import step

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
    """What a run came to.

    Attributes:
        rows: How many there are.
        bad: How many of them are pictures that could not be read.
        has_changed: Whether the listing has changed meanwhile: the rows are of what was found when its turn came.
    """

    rows: int
    bad: int
    has_changed: bool = False


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
        report: Write a page about the scores there, too (`runs.page.write_report`).
        on_start: Called once, with the listing's size (None for standard input) and where the run goes on.
        on_row: Called after each row.

    Raises:
        OutputExistsError: The output, or a run that broke off, is there and neither flag was given; or another process
            is writing it.
        UsageError: The arguments do not go together, there is nothing to score, or the run there is another one.
        GliaError: The disk is full, or what is to be scored has gone, or the engine failed, or the listing of a shard
            has changed. What was scored is kept.
    """
    output = Path(output)
    require_output(sources, output, resume=resume, overwrite=overwrite, report=report)
    with step("walk the listing"):
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

        def keep(position: Position, progress: Progress, result: Result) -> None:
            parts.write(position, result)
            on_row(progress, result)

        with step("score"):
            walked = score_each(
                scorer,
                sources,
                keep,
                expected=summary,
                start=parts.start,
                rows=parts.rows,
                workers=workers,
                read_from=parts.folders(),
            )
        parts.commit()
        run = describe(scorer, sources, walked)
        if report is not None:
            from glia_rt.runs.page import write_report

            write_report(report, parts.read(), sources, scorer, run)
        with step(f"write {output}"):
            rows, bad = _merge(parts, output, run)
        parts.remove()
    return Outcome(rows, bad, has_changed(summary, walked))


def require_output(
    sources: Sources,
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: str | os.PathLike[str] | None = None,
) -> None:
    """Find out what `score_to_file` would refuse, as far as that takes no engine and no walk of the listing.

    Raises:
        OutputExistsError: As `score_to_file`.
        UsageError: Likewise.
        MissingPackageError: What a report takes is not installed.
    """
    output = Path(output)
    sink_format(output)
    if resume and overwrite:
        raise UsageError("resume and overwrite: give one of them")
    if (resume or report is not None) and not sources.is_repeatable:
        raise UsageError(
            "standard input, or a pipe, is read once: no run on it is resumed, and no report made; put the names into "
            "a --list file"
        )
    if os.path.lexists(output) and not (resume or overwrite):
        raise _exists(output)
    _require_name(metadata_path(output))
    if report is not None:
        _require_report(report, may_exist=resume or overwrite)


def summarize(sources: Sources) -> Summary | None:
    """What a listing comes to; None for standard input. An empty one is fine only as a shard of another.

    Raises:
        UsageError: There is nothing to score; and as `Sources.summary`.
    """
    if not sources.is_repeatable:
        return None
    summary = sources.summary()
    if not summary.pieces and sources.shard == (1, 1):
        raise _nothing_in(sources)
    return summary


def _nothing_in(sources: Sources) -> UsageError:
    return UsageError(f"no pictures in {sources}{sources.hint()}")


def score_each(
    scorer: Scorer,
    sources: Sources,
    on_row: Callable[[Position, Progress, Result], None],
    *,
    expected: Summary | None,
    start: Position = START,
    rows: int = 0,
    workers: int | None = None,
    read_from: Iterable[str] = (),
) -> Summary | None:
    """Score a listing, picture by picture.

    Args:
        scorer: What to score with.
        sources: What to score.
        on_row: Called with each result in order, where its picture stands, and how far the run is.
        expected: What the listing came to before; None for standard input.
        start: Where to begin.
        rows: How many there are before that.
        workers: As `Scorer.score_pictures` has it; so is `read_from`.
        read_from: See `workers`.

    Returns:
        What the listing came to now.

    Raises:
        UsageError: There is nothing to score; and as `Sources.pieces`.
        SourceError: What is to be scored has gone.
        ListingChangedError: The listing, one shard of which this is, has changed.
        BackendError: The engine failed.
    """
    tally = None if expected is None else Tally()
    ahead: deque[tuple[Position, float]] = deque()  # of the pictures under way: there is a result for each, in order

    def pictures() -> Iterator[Picture]:
        for position, picture in sources.pictures(start, tally):
            ahead.append((position, picture.done))
            yield picture

    with closing(scorer.score_pictures(pictures(), workers=workers, read_from=read_from)) as results:
        for result in results:
            rows += 1
            position, done = ahead.popleft()
            on_row(position, Progress(rows, position.piece + done), result)
    walked = None if tally is None else tally.summary()
    if expected is not None and walked is not None and walked.pieces < expected.pieces:
        lost = expected.pieces - walked.pieces
        raise SourceError(f"{sources}: {lost} of {expected.pieces} pieces are no longer there")
    if sources.shard != (1, 1) and has_changed(expected, walked):
        raise ListingChangedError(
            f"{sources}: the listing has changed meanwhile, and with it what each shard is: put the names into a "
            "--list file, and start all shards anew, with --overwrite"
        )
    if not rows and sources.shard == (1, 1):
        raise _nothing_in(sources)
    return walked


def has_changed(expected: Summary | None, walked: Summary | None) -> bool:
    """Whether these are of different listings."""
    return expected is not None and walked is not None and expected.digest != walked.digest


def describe(scorer: Scorer, sources: Sources, summary: Summary | None) -> dict[str, Any]:
    """All that the rows depend on: how they are computed, and of what."""
    i, n = sources.shard
    listing: dict[str, Any] = {"sources": str(sources), "shard": f"{i}/{n}", "column": sources.column}
    if summary is not None:
        listing |= {"pieces": summary.pieces, "sha256": summary.digest}
    return scorer.resolved | {"listing": listing}


def _merge(parts: Parts, output: Path, run: dict[str, Any]) -> tuple[int, int]:
    """Make the output of the parts; how many rows it has, and how many of them are of bad pictures."""
    rows = bad = 0
    merged = parts.folder / "merged"
    try:
        with merged.open("wb") as file:
            sink = sink_format(output)(file)
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
        files.rename(merged, output)
        files.write_whole(metadata_path(output), json.dumps(metadata, indent=2) + "\n")
    except OSError as error:
        raise GliaError(
            f"{output}: cannot be written: {error.strerror or error}; make room, and give the same command again with "
            "--resume"
        ) from error
    return rows, bad


def _finished(output: Path, run: dict[str, Any]) -> Outcome | None:
    """What is in an output of this run that is whole; None where it is of another."""
    try:
        before = json.loads(metadata_path(output).read_text(encoding="utf-8"))
        outcome = Outcome(before.pop("rows"), before.pop("bad_images"))
    except (OSError, ValueError, KeyError):
        return None
    return outcome if upgraded(before) == json.loads(json.dumps(run)) else None


def _exists(path: str | os.PathLike[str], what: str = "") -> OutputExistsError:
    return OutputExistsError(f"{path} exists{what}; name another file, or give --overwrite to replace it")


def _require_name(path: Path) -> None:
    """Find out now, not once all is scored, that a file of this name cannot be made."""
    try:
        os.lstat(files.partial_path(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}; name another file") from error


def _require_report(path: str | os.PathLike[str], *, may_exist: bool) -> None:
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: the report is a page; name it .html")
    if os.path.lexists(path) and not may_exist:
        raise _exists(path)
    if os.path.isdir(path):
        raise UsageError(f"{path}: a folder; name a file for the report")
    if not Path(path).parent.is_dir():
        raise UsageError(f"{path}: there is no folder {Path(path).parent}; make it first")
    _require_name(Path(path))
    try:
        import glia_rt.runs.page  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "a package", "report") from error
