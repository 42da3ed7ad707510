"""glia-rt list: what there is to score, as a file that stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import click

from glia_rt.cli.console import say
from glia_rt.cli.options import ListingOptions, listing_options, overwrite_option
from glia_rt.errors import GliaError, OutputExistsError, UsageError


@click.command("list")
@listing_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A .jsonl.zst file.")
@overwrite_option
def list_pictures(listing: ListingOptions, output: Path, overwrite: bool) -> None:
    """List pictures once: files, folders, tar files, Parquet, patterns in quotes, or - for names on standard input.

    `score --list` then scores these and no others, whatever happens to the folders. Shards are of such a listing. Paths
    stay as they are named here, so name them as every machine finds them.
    """
    from glia_rt.listing.frozen import ENDING, freeze, is_frozen

    if not is_frozen(str(output)):
        raise UsageError(f"{output}: name the listing {output}{ENDING}")
    if os.path.lexists(output) and not overwrite:
        raise OutputExistsError(f"{output} exists; name another file, or give --overwrite to replace it")
    sources = listing.sources()
    try:
        summary = freeze(output, sources.pieces(), str(sources))
    except OSError as error:
        raise GliaError(f"{output}: cannot be written: {error.strerror or error}") from error
    if summary.pictures is None:
        say(f"{summary.pieces} pieces in {output}; tar files do not say how many pictures they have")
    else:
        say(f"{summary.pictures} pictures in {output}")
    if left_out := sources.say_left_out():
        say(left_out)
