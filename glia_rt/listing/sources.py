"""What to score: files, folders, patterns, lists, tar archives and Parquet, as one lazy stream in a fixed order."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from glia_rt.errors import UsageError
from glia_rt.listing.folders import match, walk
from glia_rt.listing.lists import list_entries, names
from glia_rt.listing.parquet import row_groups
from glia_rt.listing.pieces import PARQUET_ENDING, TAR_ENDINGS, File, Picture, Piece, archive_ending
from glia_rt.listing.tar import TarArchive
from glia_rt.pixels.names import display_name

STANDARD_INPUT: Final = "-"
DEFAULT_COLUMN: Final = "path"


class Position(NamedTuple):
    """Where a picture stands: the number of its piece in the listing, and its own number in the piece."""

    piece: int
    picture: int


START: Final = Position(0, 0)
READ_ONCE: Final = "standard input, or a pipe, is read once: put the names into a --list file"


class Summary(NamedTuple):
    """What a listing comes to.

    Attributes:
        pieces: How many pieces, of the shard alone.
        pictures: How many pictures, of the shard alone; None where a tar file is among them, which does not say.
        digest: SHA-256 of what the pieces of the whole listing are, in order: names, and of tar and Parquet files size
            and modification time. Equal for all shards of one listing.
    """

    pieces: int
    pictures: int | None
    digest: str


class Tally:
    """What a listing comes to, as it is walked."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._pieces = 0
        self._pictures: int | None = 0

    def add(self, piece: Piece, is_own: bool) -> None:
        """Count a piece, which is of this shard or of another; raises as `Piece.key` does."""
        self._digest.update(os.fsencode(piece.key()) + b"\0")
        if is_own:
            self._pieces += 1
            self._pictures = None if self._pictures is None or piece.count is None else self._pictures + piece.count

    def summary(self) -> Summary:
        """Of what was walked so far."""
        return Summary(self._pieces, self._pictures, self._digest.hexdigest())


@dataclass(frozen=True)
class Sources:
    """What to score, as a user names it. Walked anew each time, so that nothing of it is held in memory.

    Each path is, by what is there,

    - a folder: every picture in it and below it, as `folders.walk` has them;
    - a file whose name ends in .tar, .tar.gz or .tgz: an archive, its pictures in the archive's order;
    - a file whose name ends in .parquet: a column of pictures, row group by row group;
    - any other file: a picture, even if it is not there;
    - where nothing has that name and it holds *, ? or [: a pattern, for the pictures, tar and Parquet files that match,
      as `folders.match` has them;
    - "-": one path a line on standard input, each a file as above.

    Attributes:
        paths: As above, in order.
        list_file: A file with a path a line, or a .csv or .tsv file with a column of paths, each a file as above and
            relative to the list's folder. It comes after `paths`.
        column: Of a Parquet file, the column of pictures, or of paths relative to its folder; of a .csv, of paths.
        shard: (i, n), 1 <= i <= n: only every n-th piece, from the i-th. A piece is a picture of its own, a tar shard,
            or a row group.
        null_separated: Names in a list that is no .csv, and on standard input, end in NUL instead of a line break.
    """

    paths: Sequence[str | os.PathLike[str]] = ()
    list_file: str | os.PathLike[str] | None = None
    column: str = DEFAULT_COLUMN
    shard: tuple[int, int] = (1, 1)
    null_separated: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.paths, (str, bytes)) or not isinstance(self.paths, Sequence):
            raise UsageError(f"paths are a list, which can be walked twice, not {self.paths!r}")
        paths = tuple(os.fspath(path) for path in self.paths)
        if not all(isinstance(path, str) for path in paths):
            raise UsageError(f"paths are str or PathLike: decode {self.paths!r} by os.fsdecode")
        object.__setattr__(self, "paths", paths)
        if self.list_file is not None and os.fspath(self.list_file) == STANDARD_INPUT:
            raise UsageError("for names on standard input give - as a path, not as a list")
        i, n = self.shard
        if not 1 <= i <= n:
            raise UsageError(f"shard {i}/{n}: shards are numbered from 1, as 1/{max(n, 1)}")

    @property
    def is_repeatable(self) -> bool:
        """Whether it can be walked twice: standard input cannot, nor can a list that comes through a pipe."""
        if self.list_file is not None and os.path.exists(self.list_file):
            return STANDARD_INPUT not in self.paths and stat.S_ISREG(os.stat(self.list_file).st_mode)
        return STANDARD_INPUT not in self.paths

    def pieces(self, tally: Tally | None = None) -> Iterator[Piece]:
        """The pieces of this shard, lazily, in an order that depends on names only.

        Args:
            tally: Where all pieces are counted, those of other shards too.

        Raises:
            UsageError: A folder may not be listed, a pattern matches nothing, a list is none, a column is missing.
            SourceError: A folder, a list or a Parquet file cannot be read.
        """
        for number, piece in enumerate(self._all_pieces()):
            is_own = number % self.shard[1] == self.shard[0] - 1
            if tally is not None:
                tally.add(piece, is_own)
            if is_own:
                yield piece

    def pictures(self, start: Position = START, tally: Tally | None = None) -> Iterator[tuple[Position, Picture]]:
        """The pictures in order, from a position on; else as `pieces`, and raises as `Piece.pictures` does, too."""
        for number, piece in enumerate(self.pieces(tally)):
            if number >= start.piece:
                first = start.picture if number == start.piece else 0
                for i, picture in enumerate(piece.pictures(first), first):
                    yield Position(number, i), picture

    def summary(self) -> Summary:
        """Walk the listing once, without reading a picture; raises as `pieces` does.

        Raises:
            UsageError: It can be walked only once.
            SourceError: An archive cannot be read.
        """
        if not self.is_repeatable:
            raise UsageError(READ_ONCE)
        tally = Tally()
        for _ in self.pieces(tally):
            pass
        return tally.summary()

    def __str__(self) -> str:
        named = [display_name(path) for path in [*self.paths, *([self.list_file] if self.list_file else [])]]
        return ", ".join(named if len(named) <= 3 else [*named[:2], f"{len(named) - 2} more"])

    def hint(self) -> str:
        """What to say where nothing was found: a folder's tar and Parquet files want to be named."""
        for path in map(str, self.paths):
            found = sorted(os.listdir(path)) if os.path.isdir(path) else []
            if ending := next((ending for name in found if (ending := archive_ending(name))), None):
                pattern = os.path.join(glob.escape(path), f"*{ending}")
                return f"; for the {ending} files in {display_name(path)} say '{display_name(pattern)}'"
        return ""

    def _all_pieces(self) -> Iterator[Piece]:
        for path in (os.fspath(path) for path in self.paths):
            if path == STANDARD_INPUT:
                for name in names(sys.stdin.buffer, "standard input", self.null_separated):  # type: ignore[arg-type]
                    yield from self._file(name)
            elif os.path.isdir(path):
                yield from (File(picture, folder=path) for picture in walk(path))
            elif glob.has_magic(path) and not os.path.lexists(path):
                for name in match(path):
                    yield from self._file(name)
            else:
                yield from self._file(path)
        if self.list_file is not None:
            list_file = os.fspath(self.list_file)
            for name in list_entries(list_file, self.column, self.null_separated):
                yield from self._file(os.path.join(os.path.dirname(list_file), name))

    def _file(self, path: str) -> Iterator[Piece]:
        ending = archive_ending(path)
        if ending in TAR_ENDINGS:
            yield TarArchive(path)
        elif ending == PARQUET_ENDING:
            yield from row_groups(path, self.column)
        else:
            yield File(path)
