"""What to score: files, folders, patterns, lists, tar archives and Parquet, as one lazy stream in a fixed order."""

from __future__ import annotations

import glob
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from glia_rt.errors import GliaError, SourceError, UsageError
from glia_rt.faults import is_machine_fault
from glia_rt.listing.folders import Found, is_table, match, parts_of_table, walk
from glia_rt.listing.frozen import ENDING, FrozenListing, is_frozen
from glia_rt.listing.lists import list_entries, names
from glia_rt.listing.parquet import RowGroup, row_groups
from glia_rt.listing.pieces import (
    OTHER_ARCHIVES,
    PARQUET_ENDING,
    TAR_ENDINGS,
    File,
    Picture,
    Piece,
    Refused,
    archive_ending,
    read_pieces,
)
from glia_rt.listing.tar import TarArchive
from glia_rt.pixels.names import display_name, is_picture_name

STANDARD_INPUT: Final = "-"
DEFAULT_COLUMN: Final = "path"
#: Names of files that a process has opened.
_OPENED: Final = re.compile(r"/dev/stdin|/dev/fd/|/proc/[^/]+/fd/")


@dataclass(frozen=True)
class Sources:
    """What to score, as a user names it. Each walk finds what is there then. `frozen.freeze` keeps what one has found.

    Each path is, by what is there,

    - a folder: every picture in it and below it, as `folders.walk` has them; or if its name ends in .parquet, a table
      in parts, as `folders.parts_of_table` has them;
    - a file whose name ends in .tar, .tar.gz or .tgz: an archive, its pictures in the archive's order;
    - a file whose name ends in .parquet: a column of pictures, row group by row group;
    - any other file: a picture, even if it is not there;
    - where nothing has that name and it holds *, ? or [: a pattern, for the pictures, tar and Parquet files that match,
      as `folders.match` has them;
    - "-": one path a line on standard input, each a file as above.

    Attributes:
        paths: As above, in order.
        list_file: A file with a path a line, or a .csv or .tsv file with a column of paths, each a file as above and
            relative to the list's folder. It comes after `paths`. Or a frozen listing, whose name ends in .jsonl.zst,
            with paths as they were named when it was made.
        column: Of a Parquet file, the column of pictures, or of paths relative to its folder; of a .csv, of paths.
        shard: (i, n), 1 <= i <= n: only every n-th piece, from the i-th. A piece is a picture of its own, a tar shard,
            or a row group. Shards are of a frozen listing, so that all machines cut the same one.
        null_separated: Names in a list that is no .csv, and on standard input, end in NUL instead of a line break.
        left_out: What looks like pictures and was left out by the last walk so far, by kind.
        left_out_of_archives: Likewise, of the tar archives that were read last.
    """

    paths: Sequence[str | os.PathLike[str]] = ()
    list_file: str | os.PathLike[str] | None = None
    column: str = DEFAULT_COLUMN
    shard: tuple[int, int] = (1, 1)
    null_separated: bool = False
    left_out: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)
    left_out_of_archives: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.paths, (str, bytes)) or not isinstance(self.paths, Sequence):
            raise UsageError(f"paths are a list, which can be walked twice, not {self.paths!r}")
        if wrong := [path for path in self.paths if not isinstance(path, (str, bytes, os.PathLike))]:
            raise UsageError(f"paths are str or PathLike, not {type(wrong[0]).__name__}")
        paths = tuple(os.fspath(path) for path in self.paths)
        if not all(isinstance(path, str) for path in paths):
            raise UsageError(f"paths are str or PathLike: decode {self.paths!r} by os.fsdecode")
        object.__setattr__(self, "paths", paths)
        if self.list_file is not None and os.fspath(self.list_file) == STANDARD_INPUT:
            raise UsageError("for names on standard input give - as a path, not as a list")
        i, n = self.shard
        if not 1 <= i <= n:
            raise UsageError(f"shard {i}/{n}: shards are numbered from 1, as 1/{max(n, 1)}")
        if n > 1 and (paths or not self.is_frozen):
            raise UsageError(
                f"shard {i}/{n}: machines that list for themselves may find different things, and score some twice and "
                f"others never. Make a listing first, glia-rt list PATH... -o listing{ENDING}, and give every machine "
                f"--list listing{ENDING}"
            )

    @property
    def is_frozen(self) -> bool:
        """Whether all of it is a frozen listing."""
        return not self.paths and self.list_file is not None and is_frozen(os.fspath(self.list_file))

    @property
    def is_stream(self) -> bool:
        """Whether it can be walked once only, as standard input and a list that comes through a pipe can.

        /dev/stdin and its like count, whatever they are: in a run that goes on they may be something else.
        """
        return STANDARD_INPUT in self.paths or self._has_stream_of_names

    @property
    def _has_stream_of_names(self) -> bool:
        if self.list_file is None:
            return False
        is_opened = _OPENED.match(os.fspath(self.list_file)) is not None
        return is_opened or (os.path.exists(self.list_file) and not os.path.isfile(self.list_file))

    def pieces(self) -> Iterator[Piece]:
        """The pieces of this shard, lazily, in an order that depends on names only.

        Raises:
            UsageError: A pattern matches nothing, a list is none, a column is missing.
            SourceError: A list cannot be read, or the machine fails at a folder or an archive.
        """
        i, n = self.shard
        return itertools.islice(self._all_pieces(), i - 1, None, n)

    def pictures(self) -> Iterator[Picture]:
        """The pictures in order, as they are found; raises as `pieces` and `read_pieces` do."""
        self.left_out_of_archives.clear()
        return (picture for _, picture in read_pieces(self.pieces(), left_out=self.left_out_of_archives))

    def __str__(self) -> str:
        named = [display_name(path) for path in [*self.paths, *([self.list_file] if self.list_file else [])]]
        return ", ".join(named if len(named) <= 3 else [*named[:2], f"{len(named) - 2} more"])

    def hint(self) -> str:
        """What to say where nothing was found."""
        said = self.say_left_out()
        return f"; {said}" if said else ""

    def say_left_out(self) -> str:
        """Return what the last walk and reading left out, for people; an empty text if nothing."""
        left_out = self.left_out + self.left_out_of_archives
        if not left_out:
            return ""
        counts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(left_out.items())]
        said = f"left out: {', '.join(counts)}"
        if any(kind.startswith((".hei", ".hif")) for kind in left_out):
            said += " (pip install pillow-heif, and HEIC is read)"
        endings = (archive_ending(kind.removesuffix(" file")) for kind in sorted(self.left_out))
        if ending := next(filter(None, endings), None):
            folders = [path for path in map(str, self.paths) if os.path.isdir(path)]
            pattern = os.path.join(*map(glob.escape, folders[:1]), "**", f"*{ending}")
            said += f" (archives are read if they are named, as '{display_name(pattern)}')"
        return said.replace("link to a folders", "links to folders")

    def _all_pieces(self) -> Iterator[Piece]:
        self.left_out.clear()
        walk_once = _Walk(self.column, self.left_out)
        for found in self._found():
            yield from walk_once.pieces(found)
        if self.list_file is not None and is_frozen(list_file := os.fspath(self.list_file)):
            yield from FrozenListing(Path(list_file)).pieces()

    def _found(self) -> Iterator[Found | Refused]:
        for path in (os.fspath(path) for path in self.paths):
            if path == STANDARD_INPUT:
                if sys.stdin is None:
                    raise UsageError("standard input is closed: send names there, or name files")
                yield from self._standard_input()
            elif os.path.isdir(path) and not is_table(path):
                yield from walk(path, self.left_out)
            elif glob.has_magic(path) and not os.path.lexists(path):
                yield from self._matches(path)
            else:
                yield Found(path, None)
        if self.list_file is not None and not is_frozen(list_file := os.fspath(self.list_file)):
            # A list that comes through a pipe lies in no folder of its own: its names are of the working folder.
            folder = "" if self._has_stream_of_names else os.path.dirname(list_file)
            for entry in list_entries(list_file, self.column, self.null_separated):
                yield entry if isinstance(entry, Refused) else Found(os.path.join(folder, entry), None)

    def _standard_input(self) -> Iterator[Found]:
        try:
            for name in names(sys.stdin.buffer, "standard input", self.null_separated):  # type: ignore[arg-type]
                yield Found(name, None)
        except OSError as error:
            raise SourceError(f"standard input cannot be read: {error.strerror}") from error

    def _matches(self, pattern: str) -> Iterator[Found | Refused]:
        try:
            yield from match(pattern, self.left_out)
        except UsageError:
            # It may be the name of a picture that is missing, with brackets in it.
            if "*" in pattern or "?" in pattern or not is_picture_name(pattern):
                raise
            yield Found(pattern, None)


class _Walk:
    """Turns what is found into pieces. The first Parquet file shows whether the column is right."""

    def __init__(self, column: str, left_out: Counter[str]) -> None:
        self._column = column
        self._left_out = left_out
        self._has_table = False

    def pieces(self, found: Found | Refused) -> Iterator[Piece]:
        """Yield the pieces of a file, or of a folder that is a table. One that cannot be opened is refused."""
        if isinstance(found, Refused):
            yield found
            return
        path = found.path
        ending = archive_ending(path)
        if ending in TAR_ENDINGS:
            yield from self._opened(found, lambda: iter([TarArchive.at(path)]))
        elif ending == PARQUET_ENDING and os.path.isdir(path):
            yield from self._parts(found)
        elif ending == PARQUET_ENDING:
            yield from self._table(found)
        elif path.lower().endswith(OTHER_ARCHIVES) and os.path.isfile(path):
            yield Refused(path, "an archive of a kind that is not read: make it .tar or .tar.gz, or unpack it")
        else:
            yield File(path, found.folder)

    def _parts(self, table: Found) -> Iterator[Piece]:
        is_any = False
        for found in parts_of_table(table.path, self._left_out):
            is_any = True
            if isinstance(found, Found) and table.folder is not None:
                found = Found(found.path, table.folder)
            yield from self.pieces(found)
        if not is_any:
            yield Refused(table.path, "a table without parts: no Parquet file is in this folder")

    def _table(self, found: Found) -> Iterator[Piece]:
        try:
            for piece in self._opened(found, lambda: row_groups(found.path, self._column)):
                self._has_table = self._has_table or not isinstance(piece, Refused)
                yield piece
        except UsageError as error:
            if not self._has_table:
                raise
            yield _refused(found.path, error)

    def _opened(
        self, found: Found, open_pieces: Callable[[], Iterator[TarArchive | RowGroup | Refused]]
    ) -> Iterator[Piece]:
        try:
            for piece in open_pieces():
                yield piece if isinstance(piece, Refused) else replace(piece, folder=found.folder)
        except SourceError as error:
            if is_machine_fault(error):
                raise
            yield _refused(found.path, error)


def _refused(path: str, error: GliaError) -> Refused:
    return Refused(path, str(error).removeprefix(f"{display_name(path)}: "))
