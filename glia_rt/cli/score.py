"""glia-rt score: pictures -> rows, in a file or on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from glia_rt.cli.console import format_row, is_terminal, say, say_backend, show_progress
from glia_rt.cli.options import (
    DecodingOptions,
    EngineOptions,
    ListingOptions,
    OutputOptions,
    decoding_options,
    engine_options,
    listing_options,
    output_options,
)
from glia_rt.cli.streams import can_write_all
from glia_rt.pixels.decode import configure_pillow

if TYPE_CHECKING:
    from glia_rt.listing.pieces import Position
    from glia_rt.listing.sources import Sources
    from glia_rt.results import Result
    from glia_rt.runs.run import Outcome, Progress
    from glia_rt.scorer import Scorer

SOME_BAD = 3


@click.command()
@click.argument("bundle", type=click.Path())
@listing_options
@decoding_options
@output_options
@engine_options
def score(
    bundle: str, listing: ListingOptions, decoding: DecodingOptions, to: OutputOptions, engine: EngineOptions
) -> int:
    """Score pictures: files, folders, tar files, Parquet, patterns in quotes, or - for names on standard input.

    One row a picture, in order: path, score, status, error, width, height. A picture that cannot be read is a row
    too; the exit status is then 3.
    """
    from glia_rt.results import count_rows
    from glia_rt.runs import run

    sources = listing.sources(decoding.shard)
    if to.output:  # before the engine is opened, which takes seconds
        run.require_output(
            to.output, resume=to.resume, overwrite=to.overwrite, retry_errors=to.retry_errors, report=to.report
        )
    configure_pillow(decoding.max_pixels)
    with engine.open(bundle, decoding.max_pixels, decoding.memory) as scorer:
        say_backend(scorer)
        if to.output:
            with show_progress(hidden=False) as (on_start, on_row):
                outcome = run.score_to_file(
                    scorer,
                    sources,
                    to.output,
                    workers=decoding.workers,
                    resume=to.resume,
                    overwrite=to.overwrite,
                    retry_errors=to.retry_errors,
                    report=to.report,
                    on_start=on_start,
                    on_row=on_row,
                )
            say(f"{count_rows(outcome.rows)} in {to.output}" + (f"; {to.report} shows them" if to.report else ""))
        else:
            outcome = _score_to_terminal(scorer, sources, workers=decoding.workers, as_json=to.as_json)
    if left_out := sources.say_left_out():
        say(left_out)
    if outcome.new:
        are = "1 file has" if outcome.new == 1 else f"{outcome.new} files have"
        say(f"{are} appeared in {sources} since it was listed: not of this run")
    if outcome.bad:
        say(f"{outcome.bad} of {outcome.rows} pictures could not be read: see the status and error columns")
        return SOME_BAD
    return 0


def _score_to_terminal(scorer: Scorer, sources: Sources, *, workers: int | None, as_json: bool) -> Outcome:
    from glia_rt.runs import run
    from glia_rt.runs.outputs import json_line

    ascii_only = not can_write_all(sys.stdout)
    if not as_json:
        click.echo(f"{'score':>10}  {'size':>11}  path")
    # Rows on a terminal are progress enough, and a bar would run into them.
    with show_progress(hidden=is_terminal(sys.stdout)) as (on_start, show):

        def on_row(_: Position, progress: Progress, result: Result) -> None:
            click.echo(json_line(result, ascii_only=ascii_only) if as_json else format_row(result))
            show(progress, result)

        return run.score_to_terminal(scorer, sources, on_row, on_start=on_start, workers=workers)
