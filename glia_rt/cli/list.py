"""glia-rt list: what there is to score, as a file that stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from glia_rt.cli.console import say
from glia_rt.cli.options import ListingOptions, listing_options, overwrite_option
from glia_rt.cli.score import SOME_BAD
from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.pixels.names import display_name

if TYPE_CHECKING:
    from glia_rt.listing.pieces import Piece

#: How many of the places that cannot be read are named.
SHOWN: Final = 10


@click.command("list")
@listing_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A .jsonl.zst file.")
@overwrite_option
def list_pictures(listing: ListingOptions, output: Path, overwrite: bool) -> int:
    """List pictures once: files, folders, tar files, Parquet, patterns in quotes, or - for names on standard input.

    `score --list` then scores these and no others, whatever happens to the folders. Shards are of such a listing. Paths
    stay as they are named here, so name them as every machine finds them. The exit status is 3 if a place cannot be
    read, for example a folder or the row of a .csv.
    """
    from glia_rt.listing.frozen import ENDING, freeze, is_frozen
    from glia_rt.listing.pieces import Refused

    if not is_frozen(str(output)):
        raise UsageError(f"{output}: name the listing {output}{ENDING}")
    if os.path.lexists(output) and not overwrite:
        raise OutputExistsError(f"{output} exists; name another file, or give --overwrite to replace it")
    sources, refused = listing.sources(), 0

    def pieces() -> Iterator[Piece]:
        nonlocal refused
        for piece in sources.pieces():
            if isinstance(piece, Refused):
                refused += 1
                if refused <= SHOWN:
                    say(f"{display_name(piece.path)}: {piece.reason}")
            yield piece

    found = pieces()
    if (first := next(found, None)) is None:
        raise UsageError(f"no pictures in {sources}{sources.hint()}")
    try:
        summary = freeze(output, chain([first], found), str(sources))
    except OSError as error:
        raise GliaError(f"{output}: cannot be written: {error.strerror or error}") from error
    if summary.pictures is None:
        say(f"{summary.pieces - refused} pieces in {output}; tar files do not say how many pictures they have")
    else:
        say(f"{summary.pictures - refused} pictures in {output}")
    if left_out := sources.say_left_out():
        say(left_out)
    if refused:
        places = "1 place" if refused == 1 else f"{refused} places"
        say(f"{places} could not be read: each becomes a row that says so")
        return SOME_BAD
    return 0
