"""Scoring the rows of an output again that have no score, with the listing that lies beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice, zip_longest

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
        if number < start.piece:
            deque(islice(rows, count), maxlen=0)
            continue
        first = start.picture if number == start.piece else 0
        deque(islice(rows, min(first, count)), maxlen=0)
        old = islice(rows, max(0, count - first))
        is_read = errors[number] and piece.changed() is None
        pictures = read_piece(number, piece, first) if is_read else ()
        for i, (row, found) in enumerate(zip_longest(old, pictures), first):
            if row is not None and (row.status == "ok" or found is None or found[1].failed):
                yield Position(number, i), Picture(row.path, None, row=row)
            else:
                yield found


def pieces_with_errors(listing: FrozenListing, rows: Iterable[Result]) -> bytearray:
    """Return for each piece of an output's listing whether it has an error, as 0 or 1.

    An archive of several pieces that could not be read has one row, which counts to its last piece. The pieces before
    it that have no rows have its error, too.
    """
    rows = iter(rows)
    errors = bytearray()
    for _, group in groupby(listing.pieces_and_rows(), key=lambda item: item[0].path):
        without_rows: list[int] = []
        for _, count in group:
            errors.append(sum(row.status != "ok" for row in islice(rows, count)) > 0)
            if count == 0:
                without_rows.append(len(errors) - 1)
            elif errors[-1]:
                for number in without_rows:
                    errors[number] = 1
    return errors
