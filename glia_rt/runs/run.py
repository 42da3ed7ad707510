"""Scoring a listing into a file: resumable, in order, and whole or not there.

Rows go into OUTPUT.parts/ while the run lasts (`journal`), and from there into OUTPUT at its end (`outputs`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glia_rt import files
from glia_rt.errors import GliaError, MissingPackageError, OutputExistsError, SourceError, UsageError
from glia_rt.listing.frozen import ENDING, FrozenListing, Summary, freeze
from glia_rt.listing.pieces import Picture, Position
from glia_rt.listing.sources import Sources
from glia_rt.results import Result
from glia_rt.runs.journal import Parts, upgraded
from glia_rt.runs.outputs import listing_path, metadata_path, read_rows, sink_format
from glia_rt.runs.retry import pictures_to_retry, pieces_with_errors
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
        new: How many files have appeared since the listing was made. They are not of this run.
    """

    rows: int
    bad: int
    new: int = 0


def score_to_file(
    scorer: Scorer,
    sources: Sources,
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    retry_errors: bool = False,
    report: str | os.PathLike[str] | None = None,
    on_start: Callable[[Summary | None, Progress], None] = lambda summary, progress: None,
    on_row: Callable[[Progress, Result], None] = lambda progress, result: None,
) -> Outcome:
    """Score a listing into a file, which appears once it is whole, with OUTPUT.meta.json beside it.

    What is to be scored is listed once, at the start. The listing is kept in OUTPUT.parts/, and in the end beside the
    output. A run that is resumed goes on with it, whatever is in the folders then.

    Args:
        scorer: What to score with.
        sources: What to score.
        output: Ends in .csv, .jsonl or .parquet. If it is a link, all is written where that points to.
        workers: Decoding threads; None for one a core.
        resume: Go on where a run that broke off stopped; if there is none, start; if the output is there, check that it
            is that of this run, and leave it.
        overwrite: Replace the output, and drop a run that broke off.
        retry_errors: Score the rows of a whole output again that are errors, and replace it by a new whole one. The
            other rows stay as they are, and so does the listing. If this breaks off, the same call goes on.
        report: Write a page about the scores there, too (`runs.page.write_report`).
        on_start: Called once, with the listing's size and where the run goes on.
        on_row: Called after each row.

    Raises:
        OutputExistsError: The output, or a run that broke off, is there and neither flag was given; or another process
            is writing it.
        UsageError: The arguments do not go together, there is nothing to score, or the run there is another one.
        GliaError: The disk is full, or what is to be scored has gone, or the engine failed. What was scored is kept.
    """
    require_output(output, resume=resume, overwrite=overwrite, retry_errors=retry_errors, report=report)
    output = files.link_target(Path(output))
    run = describe(scorer, sources)
    kept = None
    if retry_errors:
        kept, whole = _require_kept(output, run)
        if not whole.bad:
            _require_written(output, report)
            return whole
    facts = run if kept is None else run | {"retries_errors": True}
    with Parts(
        output,
        facts,
        resume=resume or retry_errors,
        overwrite=overwrite,
        is_stream=sources.is_stream,
        option="--resume" if kept is None else "--retry-errors",
    ) as parts:
        if kept is not None:
            parts.replace_output()
        # The output is looked for while the lock is held: before, another run might still have made it. A run that may
        # replace the output goes on with its rows, whatever the output is.
        if os.path.lexists(output) and not parts.replaces:
            if not resume or parts.rows or (finished := _finished(output, run)) is None:
                raise _exists(output, ", and is not of this run" if resume else "")
            _require_written(output, report)
            return finished
        with step("list what is to be scored"):
            summary = parts.freeze((kept or sources).pieces(), str(sources))
        listing = parts.listing
        if not summary.pieces and sources.shard == (1, 1):
            raise _nothing_in(sources)
        on_start(summary, Progress(parts.rows, parts.start.piece))

        def keep(position: Position, progress: Progress, result: Result) -> None:
            parts.write(position, result)
            on_row(progress, result)

        with step("score"):
            if kept is None:
                pictures = listing.pictures(parts.start, sources.left_out_of_archives)
            else:
                errors = pieces_with_errors(kept, read_rows(output))
                pictures = pictures_to_retry(kept, read_rows(output), errors, parts.start)
            score_each(scorer, pictures, keep, rows=parts.rows, workers=workers, read_from=parts.folders())
        parts.commit()
        if not parts.rows and sources.shard == (1, 1):
            raise _nothing_in(sources)
        run = described(run, summary)
        if report is not None:
            from glia_rt.runs.page import write_report

            write_report(report, parts.read(), listing, scorer, run)
        with step(f"write {output}"):
            rows, bad = _merge(parts, output, run)
        parts.remove()
    with step("look for what is new"):
        new = count_new(sources, FrozenListing(listing_path(output)))
    return Outcome(rows, bad, new)


def require_output(
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    retry_errors: bool = False,
    report: str | os.PathLike[str] | None = None,
) -> None:
    """Find out what `score_to_file` would refuse, as far as that takes no engine and no walk of the listing.

    Raises:
        OutputExistsError: As `score_to_file`.
        UsageError: Likewise.
        MissingPackageError: What a report takes is not installed.
    """
    named, output = Path(output), files.link_target(Path(output))
    sink_format(output)
    if resume + overwrite + retry_errors > 1:
        raise UsageError("resume, overwrite and retry_errors: give one of them")
    if os.path.lexists(named) and not (resume or overwrite or retry_errors):  # a link to what is gone is in the way
        raise _exists(named)
    _require_name(metadata_path(output))
    if report is not None:
        _require_report(report, may_exist=resume or overwrite or retry_errors)


def score_to_terminal(
    scorer: Scorer,
    sources: Sources,
    on_row: Callable[[Position, Progress, Result], None],
    *,
    on_start: Callable[[Summary | None, Progress], None],
    workers: int | None = None,
) -> Outcome:
    """Score a listing, picture by picture; arguments as for `score_to_file`.

    Names on standard input are scored as they come, and the size of their listing is None.

    Raises:
        UsageError: There is nothing to score; and as `Sources.pieces`.
        SourceError: What is to be scored has gone.
        BackendError: The engine failed.
    """
    if sources.is_stream:
        on_start(None, Progress(0, 0))
        numbered = ((Position(number, 0), picture) for number, picture in enumerate(sources.pictures()))
        outcome = score_each(scorer, numbered, on_row, workers=workers)
    else:
        with _writable(Path("a temporary folder"), "set TMPDIR to one that can"):
            temporary = tempfile.TemporaryDirectory(prefix="glia-rt-")
        with temporary as scratch:
            listing = FrozenListing(Path(scratch) / f"listing{ENDING}")
            with step("list what is to be scored"), _writable(listing.path, "make room, or set TMPDIR"):
                summary = freeze(listing.path, sources.pieces(), str(sources))
            on_start(summary, Progress(0, 0))
            with step("score"):
                pictures = listing.pictures(left_out=sources.left_out_of_archives)
                outcome = score_each(scorer, pictures, on_row, workers=workers)
            outcome = outcome._replace(new=count_new(sources, listing))
    if not outcome.rows and sources.shard == (1, 1):
        raise _nothing_in(sources)
    return outcome


@contextmanager
def _writable(path: Path, advice: str) -> Iterator[None]:
    """Turn an error of the system into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise GliaError(f"{path}: cannot be written: {error.strerror or error}; {advice}") from error


def _nothing_in(sources: Sources) -> UsageError:
    return UsageError(f"no pictures in {sources}{sources.hint()}")


def score_each(
    scorer: Scorer,
    pictures: Iterable[tuple[Position, Picture]],
    on_row: Callable[[Position, Progress, Result], None],
    *,
    rows: int = 0,
    workers: int | None = None,
    read_from: Iterable[str] = (),
) -> Outcome:
    """Score pictures one by one.

    Args:
        scorer: What to score with.
        pictures: The pictures, with their positions.
        on_row: Called with each result in order, where its picture stands, and how far the run is.
        rows: How many there are already.
        workers: As for `Scorer.score_pictures`.
        read_from: As for `Scorer.score_pictures`.

    Raises:
        SourceError: What is to be scored has gone.
        BackendError: The engine failed.
    """
    ahead: deque[tuple[Position, float]] = deque()  # of the pictures under way: there is a result for each, in order
    bad = 0

    def without_positions() -> Iterator[Picture]:
        for position, picture in pictures:
            ahead.append((position, picture.done))
            yield picture

    with closing(scorer.score_pictures(without_positions(), workers=workers, read_from=read_from)) as results:
        for result in results:
            rows += 1
            bad += result.status != "ok"
            position, done = ahead.popleft()
            on_row(position, Progress(rows, position.piece + done), result)
    return Outcome(rows, bad)


def count_new(sources: Sources, listing: FrozenListing) -> int:
    """Return how many files are there now that the listing has not. What cannot be listed now counts as none."""
    if sources.is_stream or sources.is_frozen:
        return 0
    with suppress(SourceError, UsageError):
        return listing.count_new(sources.pieces())
    return 0


def describe(scorer: Scorer, sources: Sources) -> dict[str, Any]:
    """Return all that the rows depend on and that is known before anything is listed."""
    i, n = sources.shard
    list_file = None if sources.list_file is None or sources.is_stream else os.fspath(sources.list_file)
    named = json.dumps([[os.fspath(path) for path in sources.paths], list_file, sources.null_separated]).encode()
    listing = {"sources": str(sources), "named": hashlib.sha256(named).hexdigest()[:16]}
    listing |= {"shard": f"{i}/{n}", "column": sources.column}
    if sources.is_frozen and sources.list_file is not None:
        listing["of"] = FrozenListing(Path(sources.list_file)).summary().sha256
    return scorer.resolved | {"listing": listing}


def described(run: dict[str, Any], summary: Summary) -> dict[str, Any]:
    """Return what `describe` does, with what the listing came to."""
    return run | {"listing": run["listing"] | {"pieces": summary.pieces, "sha256": summary.sha256}}


def _merge(parts: Parts, output: Path, run: dict[str, Any]) -> tuple[int, int]:
    """Make the output of the parts, and its listing; how many rows it has, and how many are of bad pictures."""
    rows = bad = 0
    counts: array[int] = array("Q")
    merged = parts.folder / "merged"
    with _writable(output, "make room, and give the same command again with --resume"):
        with merged.open("wb") as file:
            sink = sink_format(output)(file)
            for position, result in parts.read():
                # A row that stands before the next piece is of this one.
                piece = position.piece if position.picture >= 0 else position.piece - 1
                counts.extend([0] * (piece + 1 - len(counts)))
                counts[piece] += 1
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
        freeze(listing_path(output), parts.listing.pieces(), run["listing"]["sources"], chain(counts, repeat(0)))
        files.write_whole(metadata_path(output), json.dumps(metadata, indent=2) + "\n")
    return rows, bad


def _require_kept(output: Path, run: dict[str, Any]) -> tuple[FrozenListing, Outcome]:
    """Return the listing that lies beside an output, and what the output came to.

    Raises:
        UsageError: There is no output, it is of another run, or it has no listing.
    """
    if not os.path.lexists(output):
        raise UsageError(f"{output} is not there yet: errors of a whole output are retried; give --resume instead")
    finished = _finished(output, run)
    if finished is None:
        raise UsageError(
            f"{output} is not of this run: give the command that made it, with --retry-errors; another "
            "version of a library makes another run, too"
        )
    kept = FrozenListing(listing_path(output))
    if not kept.path.exists():
        raise UsageError(f"{kept.path} is missing, which says what the rows of {output} are of: give --overwrite")
    return kept, finished


def _finished(output: Path, run: dict[str, Any]) -> Outcome | None:
    """What is in an output of this run that is whole; None where it is of another."""
    try:
        before = json.loads(metadata_path(output).read_text(encoding="utf-8"))
        outcome = Outcome(before.pop("rows"), before.pop("bad_images"))
        before["listing"] = {key: before["listing"][key] for key in run["listing"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outcome if upgraded(before) == json.loads(json.dumps(run)) else None


def _require_written(output: Path, report: str | os.PathLike[str] | None) -> None:
    if report is not None and not os.path.exists(report):
        raise UsageError(f"{output} is whole, and {report} was not asked for when it was made: give --overwrite")


def _exists(path: str | os.PathLike[str], what: str = "") -> OutputExistsError:
    return OutputExistsError(f"{path} exists{what}; name another file, or give --overwrite to replace it")


def _require_name(path: Path) -> None:
    """Find out now, not once all is scored, that a file of this name cannot be made."""
    try:
        os.lstat(files.longest_path(path))
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
    _require_name(files.link_target(Path(path)))
    try:
        import glia_rt.runs.page  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "a package", "report") from error
