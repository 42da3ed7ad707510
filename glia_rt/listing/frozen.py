"""A listing as it was at one moment, in a file: what a run scores, whatever happens to the folders meanwhile.

The file is JSON Lines in zstd: a header, a line for each piece, and a last line with the totals. A million pictures
take about 3 MB on the disk, and none of them stays in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from glia_rt import files
from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.parquet import RowGroup, first_line, open_arrow
from glia_rt.listing.pieces import START, File, Picture, Piece, Position, Refused, gone, read_pieces
from glia_rt.listing.tar import TarArchive
from glia_rt.pixels.names import display_name

ENDING: Final = ".jsonl.zst"
SCHEMA: Final = 1
_KINDS: Final[dict[str, type[Any]]] = {"file": File, "refused": Refused, "tar": TarArchive, "row_group": RowGroup}
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
#: By the annotation of a field.
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "str | None": (str, type(None)), "int | None": (int, type(None)),
}  # fmt: skip
Made = TypeVar("Made")
#: Lines that are compressed at once.
_LINES: Final = 4096


@dataclass(frozen=True)
class Summary:
    """What a listing comes to.

    Attributes:
        pieces: Number of pieces.
        pictures: Number of pictures; None where a tar archive is among the pieces, which does not say.
        sha256: Of the lines of the pieces, without numbers of rows.
    """

    pieces: int
    pictures: int | None
    sha256: str


def is_frozen(path: str) -> bool:
    """Return whether a list of this name is a frozen listing."""
    return path.lower().endswith(ENDING)


def freeze(path: Path, pieces: Iterable[Piece], sources: str, rows: Iterable[int] | None = None) -> Summary:
    """Write a listing, which appears at `path` once it is whole and on the disk.

    Args:
        path: The file.
        pieces: The pieces, in order.
        sources: What they are the pieces of, for people.
        rows: For each piece the number of its rows in an output; None if there is no output.

    Raises:
        OSError: The file cannot be written.
        GliaError: As `pieces` raises.
    """
    import pyarrow as pa

    digest, count = hashlib.sha256(), 0
    pictures: int | None = 0
    entries = map(_entry, pieces, itertools.repeat(None) if rows is None else rows)
    with (
        files.whole_file(path) as file,
        # Arrow closes the file that it is given, and this one is still to be forced to the disk.
        pa.CompressedOutputStream(os.fdopen(os.dup(file.fileno()), "wb"), "zstd") as stream,
    ):
        stream.write(_line({"glia_rt_listing": SCHEMA, "sources": sources}))
        while part := list(itertools.islice(entries, _LINES)):
            stream.write(b"".join(map(_line, part)))
            digest.update(b"".join(_line({**entry, "rows": None}) for entry in part))
            count += len(part)
            counts = [entry.get("count", _KINDS[entry["kind"]].count) for entry in part]
            pictures = None if pictures is None or None in counts else pictures + sum(counts)
        summary = Summary(count, pictures, digest.hexdigest())
        stream.write(_line(dataclasses.asdict(summary)))
    return summary


class FrozenListing:
    """A listing in a file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def summary(self) -> Summary:
        """Read the listing to its end, and return what it comes to; raises as `pieces` does."""
        [last] = deque(self._lines(), maxlen=1)
        return self._made(Summary, last)

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces in order.

        Raises:
            UsageError: The file is no listing, or was written by a newer glia-rt.
            SourceError: The file cannot be read, or is cut off.
        """
        return (piece for piece, _ in self.pieces_and_rows())

    def pieces_and_rows(self) -> Iterator[tuple[Piece, int]]:
        """Yield the pieces with the numbers of their rows, 0 where no output was written; raises as `pieces` does."""
        lines = self._lines()
        next(lines)
        for count, line in enumerate(lines):
            if "kind" not in line:  # the totals
                if self._made(Summary, line).pieces != count or next(lines, None) is not None:
                    raise self._damaged("its totals are others")
                return
            rows = line.pop("rows", 0)
            if (kind := _KINDS.get(str(line.pop("kind")))) is None or not isinstance(rows, int):
                raise self._damaged("a line of a kind that is not known")
            yield self._made(kind, line), rows

    def count_new(self, pieces: Iterable[Piece]) -> int:
        """Return how many files of other pieces are not in this listing; raises as `pieces` does.

        Refused pieces are no files. If `pieces` raises, the files before that count. Eight bytes for each piece are
        held in memory.
        """
        known = np.sort(np.fromiter((_digest(piece.path) for piece in self.pieces()), np.uint64))
        paths = _paths_of_files(pieces)
        new = 0
        while part := [_digest(path) for path in itertools.islice(paths, _LINES)]:
            new += int(np.isin(np.array(part, np.uint64), known, invert=True).sum())
        return new

    def pictures(
        self, start: Position = START, left_out: Counter[str] | None = None
    ) -> Iterator[tuple[Position, Picture]]:
        """Yield the pictures in order, as `read_pieces` does for these pieces; raises as `pieces` does."""
        return read_pieces(self.pieces(), start, left_out)

    def _made(self, kind: type[Made], values: dict[str, Any]) -> Made:
        types = {field.name: _TYPES[str(field.type)] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if wrong := [name for name, value in values.items() if not isinstance(value, types.get(name, ()))]:
            raise self._damaged(f"{wrong[0]} is {values[wrong[0]]!r}")
        try:
            return kind(**values)
        except TypeError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> UsageError:
        return UsageError(
            f"{display_name(str(self.path))}: a damaged listing ({reason[:200]}): make it with `glia-rt list`"
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield all lines, the header and the totals too."""
        import pyarrow as pa

        name, line = display_name(str(self.path)), {}
        try:
            with open_arrow(str(self.path)) as file, pa.CompressedInputStream(file, "zstd") as stream:
                for number, text in enumerate(io.BufferedReader(stream)):
                    line = json.loads(text)
                    if not isinstance(line, dict):
                        raise ValueError("a line that is no object")
                    if number == 0 and line.get("glia_rt_listing") != SCHEMA:
                        raise UsageError(f"{name}: not a listing that this glia-rt reads: make it with `glia-rt list`")
                    yield line
        except UsageError:
            raise
        except (OSError, ValueError, AttributeError) as error:
            if getattr(error, "errno", None) is not None:
                raise gone(str(self.path), error) from error
            raise self._damaged(first_line(error)) from error
        if "pieces" not in line:
            raise UsageError(f"{name}: a listing that is cut off: make it with `glia-rt list`")


def _paths_of_files(pieces: Iterable[Piece]) -> Iterator[str]:
    files_only = (piece.path for piece in pieces if not isinstance(piece, Refused))
    with suppress(SourceError, UsageError):
        for path, _ in itertools.groupby(files_only):
            yield path


def _digest(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest())


def _entry(piece: Piece, rows: int | None) -> dict[str, Any]:
    values = ((field.name, getattr(piece, field.name)) for field in dataclasses.fields(piece))  # type: ignore[arg-type]
    entry = {"kind": _NAMES[type(piece)]} | {name: value for name, value in values if value is not None}
    return entry if rows is None else entry | {"rows": rows}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"  # names that are not UTF-8 stay as they are, as escapes
