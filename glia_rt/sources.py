"""What to score: files, folders, patterns, lists, tar shards and Parquet, as one lazy stream in a fixed order."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from glia_rt.errors import SourceError, UsageError
from glia_rt.images import display_name, picture_extensions
from glia_rt.pieces import PARQUET_ENDING, TAR_ENDINGS, File, Picture, Piece, TarShard, row_groups

STANDARD_INPUT: Final = "-"
DEFAULT_COLUMN: Final = "path"


class Position(NamedTuple):
    """Where a picture stands: the number of its piece in the listing, and its own number in the piece."""

    piece: int
    picture: int


START: Final = Position(0, 0)


class Summary(NamedTuple):
    """What a listing comes to.

    Attributes:
        pieces: How many pieces.
        pictures: How many pictures; None where a tar shard is among them, which does not say.
        digest: SHA-256 of what the pieces are, in order: names, and of shards sizes and times of change.
    """

    pieces: int
    pictures: int | None
    digest: str


@dataclass(frozen=True)
class Sources:
    """What to score, as a user names it. Walked anew each time, so that nothing of it is held in memory.

    Each path is, by what is there,

    - a folder: every picture in it and below it, in the order of `find_images`;
    - a file whose name ends in .tar, .tar.gz or .tgz: a shard, its pictures in the archive's order;
    - a file whose name ends in .parquet: a column of pictures, row group by row group;
    - any other file: a picture, even if it is not there;
    - where nothing has that name and it holds *, ? or [: a pattern, for the pictures, tar and Parquet files that match,
      sorted by the bytes of their names; ** stands for folders at any depth;
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
        i, n = self.shard
        if not 1 <= i <= n:
            raise UsageError(f"shard {i}/{n}: shards are numbered from 1, as 1/{max(n, 1)}")

    @property
    def is_repeatable(self) -> bool:
        """Whether it can be walked twice: standard input cannot."""
        return STANDARD_INPUT not in self.paths

    def pieces(self) -> Iterator[Piece]:
        """The pieces of this shard, lazily, in an order that depends on names only.

        Raises:
            UsageError: A folder cannot be listed, a pattern matches nothing, a list or a Parquet file is not one.
            SourceError: A list or a Parquet file cannot be read.
        """
        i, n = self.shard
        for number, piece in enumerate(self._all_pieces()):
            if number % n == i - 1:
                yield piece

    def pictures(self, start: Position = START) -> Iterator[tuple[Position, Picture]]:
        """The pictures in order, from a position on; raises as `pieces` and `Piece.pictures` do."""
        for number, piece in enumerate(self.pieces()):
            if number >= start.piece:
                first = start.picture if number == start.piece else 0
                for i, picture in enumerate(piece.pictures(first), first):
                    yield Position(number, i), picture

    def summary(self) -> Summary:
        """Walk the listing once, without reading a picture; raises as `pieces` does.

        Raises:
            UsageError: It can be walked only once.
            SourceError: A shard cannot be read.
        """
        if not self.is_repeatable:
            raise UsageError("standard input is read once: put the names into a --list file")
        digest, pieces, pictures = hashlib.sha256(), 0, 0
        counted = True
        for piece in self.pieces():
            pieces += 1
            digest.update(os.fsencode(piece.key()) + b"\0")
            counted &= piece.count is not None
            pictures += piece.count or 0
        return Summary(pieces, pictures if counted else None, digest.hexdigest())

    def __str__(self) -> str:
        named = [display_name(path) for path in [*self.paths, *([self.list_file] if self.list_file else [])]]
        return ", ".join(named if len(named) <= 3 else [*named[:2], f"{len(named) - 2} more"])

    def hint(self) -> str:
        """What to say where nothing was found: a folder's tar and Parquet files want to be named."""
        for path in map(str, self.paths):
            archives = [name for name in os.listdir(path) if is_archive(name)] if os.path.isdir(path) else []
            if archives:
                ending = os.path.splitext(archives[0])[1]
                return f"; for the {ending} files in {display_name(path)} say '{os.path.join(path, '*' + ending)}'"
        return ""

    def _all_pieces(self) -> Iterator[Piece]:
        for path in (os.fspath(path) for path in self.paths):
            if path == STANDARD_INPUT:
                for name in _names(sys.stdin.buffer, self.null_separated):
                    yield from self._file(name)
            elif os.path.isdir(path):
                yield from (File(picture, folder=path) for picture in _walk(path))
            elif glob.has_magic(path) and not os.path.lexists(path):
                for name in _matches(path):
                    yield from self._file(name)
            else:
                yield from self._file(path)
        if self.list_file is not None:
            list_file = os.fspath(self.list_file)
            for name in _list_entries(list_file, self.column, self.null_separated):
                yield from self._file(os.path.join(os.path.dirname(list_file), name))

    def _file(self, path: str) -> Iterator[Piece]:
        name = path.lower()
        if name.endswith(TAR_ENDINGS):
            yield TarShard(path)
        elif name.endswith(PARQUET_ENDING):
            yield from row_groups(path, self.column)
        else:
            yield File(path)


def is_archive(name: str) -> bool:
    """Whether a file of this name holds pictures, and is none itself."""
    return name.lower().endswith((*TAR_ENDINGS, PARQUET_ENDING))


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """List pictures in files of their own, lazily, in an order that depends on names only.

    A path that is not a folder comes back as it was given, whatever its extension and even if nothing is there:
    opening it tells what is wrong. A folder stands for every picture in it and below it, where

    - a picture is a name with an extension of a format that Pillow decodes, in upper or lower case, unless it is a
      folder or a link to one;
    - files and subfolders are taken together, sorted by the bytes of their names (`os.fsencode`);
    - names that start with a dot are left out;
    - links to folders are not followed, since they can form cycles.

    Args:
        paths: Files and folders.

    Yields:
        Paths that begin with the argument they came from; bytes that are not UTF-8 stand as lone surrogates, as in
        all of `os`.

    Raises:
        UsageError: A folder cannot be listed; raised when its turn comes. `paths` is one path, not several.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise UsageError(f"paths are a list: give [{paths!r}]")
    for path in paths:
        if os.path.isdir(path):
            yield from _walk(os.fspath(path))
        else:
            yield os.fspath(path)


def _walk(folder: str) -> Iterator[str]:
    # A stack, because folders may nest deeper than Python recurses.
    pending = _last_to_first(folder)
    while pending:
        entry = pending.pop()
        if entry.is_dir(follow_symlinks=False):
            pending += _last_to_first(entry.path)
        else:
            yield entry.path


def _last_to_first(folder: str) -> list[os.DirEntry[str]]:
    """Pictures and subfolders right in a folder, in reverse order, ready to be popped."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _is_wanted(entry)]
    except OSError as error:
        raise UsageError(
            f"{display_name(folder)}: this folder cannot be listed: {error.strerror}; "
            "make it readable, or name only what is to be scored"
        ) from error
    return sorted(found, key=lambda entry: os.fsencode(entry.name), reverse=True)


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if entry.is_dir(follow_symlinks=False):
        return True
    is_picture = os.path.splitext(entry.name)[1].lower() in picture_extensions()
    return is_picture and not (entry.is_symlink() and os.path.isdir(entry))


def _matches(pattern: str) -> list[str]:
    found = [
        path
        for path in glob.glob(pattern, recursive=True)
        if (is_archive(path) or os.path.splitext(path)[1].lower() in picture_extensions()) and not os.path.isdir(path)
    ]
    if not found:
        raise UsageError(f"{pattern}: no picture, tar or Parquet file matches this pattern")
    return sorted(found, key=os.fsencode)


def _list_entries(path: str, column: str, null_separated: bool) -> Iterator[str]:
    try:
        if path.lower().endswith((".csv", ".tsv")):
            yield from _column(path, column, "excel-tab" if path.lower().endswith(".tsv") else "excel")
        else:
            with open(path, "rb") as file:
                yield from _names(file, null_separated)
    except OSError as error:
        raise SourceError(f"{display_name(path)}: this list cannot be read: {error.strerror}") from error


def _column(path: str, column: str, dialect: str) -> Iterator[str]:
    # Bytes that are not UTF-8 stand for themselves, as in all of `os`.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file, dialect=dialect)
        try:
            if column not in (rows.fieldnames or ()):
                raise UsageError(
                    f"{display_name(path)}: no column {column!r}; its first line has "
                    f"{', '.join(rows.fieldnames or ())}: name one with --column"
                )
            for row in rows:
                if not row[column]:
                    raise UsageError(f"{display_name(path)}, line {rows.line_num}: no value in column {column!r}")
                yield row[column]
        except csv.Error as error:
            raise UsageError(f"{display_name(path)}, line {rows.line_num}: {error}") from error


def _names(file: BinaryIO, null_separated: bool) -> Iterator[str]:
    """One name a line; empty lines are passed over."""
    for line in _until_null(file) if null_separated else (line.rstrip(b"\r\n") for line in file):
        if line:
            yield os.fsdecode(line)


def _until_null(file: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while block := file.read(1 << 16):
        *whole, rest = (rest + block).split(b"\0")
        yield from whole
    yield rest
