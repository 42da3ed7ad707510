"""Scoring the rows of an output again that have no score, with the listing that lies beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest

from glia_rt.listing.frozen import FrozenListing
from glia_rt.listing.pieces import START, Picture, Position, read_piece
from glia_rt.results import Result


def pictures_to_retry(
    listing: FrozenListing, rows: Iterable[Result], errors: bytearray, start: Position = START
) -> Iterator[tuple[Position, Picture]]:
    """Yield a picture for each row of an output, in order: to be scored if the row is an error, else with its row.

    An archive without an error is not opened. An archive that has changed since keeps its rows. Where an archive has
    more pictures now than rows, because it could not be read to its end before, they follow.

    Args:
        listing: The output's listing, with the number of rows of each piece.
        rows: The output's rows.
        errors: What `pieces_with_errors` returns for them.
        start: Where to begin.

    Raises:
        UsageError: As of `FrozenListing.pieces`.
        SourceError: As of `Piece.pictures`.
    """
    rows = iter(rows)
    for number, (piece, count) in enumerate(listing.pieces_and_rows()):
        first = 0 if number > start.piece else count if number < start.piece else min(start.picture, count)
        for _ in islice(rows, first):
            pass
        if number < start.piece:
            continue
        old = islice(rows, count - first)
        is_read = errors[number] and piece.changed() is None
        pictures = read_piece(number, piece, first) if is_read else ()
        for i, (row, found) in enumerate(zip_longest(old, pictures), first):
            if row is not None and (row.status == "ok" or found is None or found[1].failed):
                yield Position(number, i), Picture(row.path, None, row=row)
            else:
                yield found


def pieces_with_errors(listing: FrozenListing, rows: Iterable[Result]) -> bytearray:
    """Return for each piece of an output's listing whether a row of it is an error, as 0 or 1."""
    rows = iter(rows)
    errors = (sum(row.status != "ok" for row in islice(rows, count)) for _, count in listing.pieces_and_rows())
    return bytearray(count > 0 for count in errors)
