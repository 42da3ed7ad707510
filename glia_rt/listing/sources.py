"""What to score: files, folders, patterns, lists, tar archives and Parquet, as one lazy stream in a fixed order."""

from __future__ import annotations

import glob
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from glia_rt.errors import GliaError, SourceError, UsageError
from glia_rt.faults import is_machine_fault
from glia_rt.listing.folders import is_table, match, walk
from glia_rt.listing.frozen import ENDING, FrozenListing, is_frozen
from glia_rt.listing.lists import list_entries, names
from glia_rt.listing.parquet import row_groups
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
            relative to the list's folder. It comes after `paths`. Or a frozen listing, whose name ends in .jsonl.zst,
            with paths as they were named when it was made.
        column: Of a Parquet file, the column of pictures, or of paths relative to its folder; of a .csv, of paths.
        shard: (i, n), 1 <= i <= n: only every n-th piece, from the i-th. A piece is a picture of its own, a tar shard,
            or a row group. Shards are of a frozen listing, so that all machines cut the same one.
        null_separated: Names in a list that is no .csv, and on standard input, end in NUL instead of a line break.
        left_out: What looks like pictures and was left out by the last walk so far, by kind.
    """

    paths: Sequence[str | os.PathLike[str]] = ()
    list_file: str | os.PathLike[str] | None = None
    column: str = DEFAULT_COLUMN
    shard: tuple[int, int] = (1, 1)
    null_separated: bool = False
    left_out: Counter[str] = field(default_factory=Counter, init=False, repr=False, compare=False)

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
        """Whether it can be walked once only, as standard input and a list that comes through a pipe can."""
        if STANDARD_INPUT in self.paths:
            return True
        return self.list_file is not None and os.path.exists(self.list_file) and not os.path.isfile(self.list_file)

    def pieces(self) -> Iterator[Piece]:
        """The pieces of this shard, lazily, in an order that depends on names only.

        Raises:
            UsageError: A folder may not be listed, a pattern matches nothing, a list is none, a column is missing.
            SourceError: A folder, a list or a Parquet file cannot be read.
        """
        i, n = self.shard
        return itertools.islice(self._all_pieces(), i - 1, None, n)

    def pictures(self) -> Iterator[Picture]:
        """The pictures in order, as they are found; raises as `pieces` and `read_pieces` do."""
        return (picture for _, picture in read_pieces(self.pieces()))

    def __str__(self) -> str:
        named = [display_name(path) for path in [*self.paths, *([self.list_file] if self.list_file else [])]]
        return ", ".join(named if len(named) <= 3 else [*named[:2], f"{len(named) - 2} more"])

    def hint(self) -> str:
        """What to say where nothing was found: a folder's tar and Parquet files want to be named."""
        hints = []
        for path in map(str, self.paths):
            found = sorted(os.listdir(path)) if os.path.isdir(path) else []
            if ending := next((ending for name in found if (ending := archive_ending(name))), None):
                pattern = os.path.join(glob.escape(path), f"*{ending}")
                hints.append(f"; for the {ending} files in {display_name(path)} say '{display_name(pattern)}'")
        return "".join([*hints[:1], f"; {self.say_left_out()}" if self.left_out else ""])

    def say_left_out(self) -> str:
        """Return what the last walk left out, for people; an empty text if nothing."""
        if not self.left_out:
            return ""
        counts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(self.left_out.items())]
        said = f"left out: {', '.join(counts)}"
        if any(kind.startswith((".hei", ".hif")) for kind in self.left_out):
            said += " (pip install pillow-heif, and HEIC is read)"
        return said.replace("link to a folders", "links to folders")

    def _all_pieces(self) -> Iterator[Piece]:
        self.left_out.clear()
        walk_once = _Walk(self.column)
        for path in (os.fspath(path) for path in self.paths):
            if path == STANDARD_INPUT:
                if sys.stdin is None:
                    raise UsageError("standard input is closed: send names there, or name files")
                for name in names(sys.stdin.buffer, "standard input", self.null_separated):  # type: ignore[arg-type]
                    yield from walk_once.file(name)
            elif os.path.isdir(path) and not is_table(path):
                for found in walk(path, self.left_out):
                    yield found if isinstance(found, Refused) else File(found, folder=path)
            elif glob.has_magic(path) and not os.path.lexists(path):
                for found in self._matches(path):
                    yield from walk_once.file(found)
            else:
                yield from walk_once.file(path)
        if self.list_file is not None:
            list_file = os.fspath(self.list_file)
            if is_frozen(list_file):
                yield from FrozenListing(Path(list_file)).pieces()
                return
            # A list that comes through a pipe lies in no folder of its own: its names are of the working folder.
            folder = "" if _OPENED.match(list_file) or self.is_stream else os.path.dirname(list_file)
            for entry in list_entries(list_file, self.column, self.null_separated):
                yield from walk_once.file(entry if isinstance(entry, Refused) else os.path.join(folder, entry))

    def _matches(self, pattern: str) -> Iterator[str | Refused]:
        try:
            yield from match(pattern, self.left_out)
        except UsageError:
            # It may be the name of a picture that is missing, with brackets in it.
            if "*" in pattern or "?" in pattern or not is_picture_name(pattern):
                raise
            yield pattern


class _Walk:
    """Turns names into pieces. The first Parquet file shows whether the column is right."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._has_table = False

    def file(self, path: str | Refused) -> Iterator[Piece]:
        """Yield the pieces of a file, or of a folder that is a table. One that cannot be opened is refused."""
        if isinstance(path, Refused):
            yield path
            return
        ending = archive_ending(path)
        if ending in TAR_ENDINGS:
            yield from self._opened(path, lambda: iter([TarArchive.at(path)]))
        elif ending == PARQUET_ENDING:
            for part in parts_of_table(path):
                yield from self._table(part)
        elif path.lower().endswith(OTHER_ARCHIVES) and os.path.isfile(path):
            yield Refused(path, "an archive of a kind that is not read: make it .tar or .tar.gz, or unpack it")
        else:
            yield File(path)

    def _table(self, path: str) -> Iterator[Piece]:
        try:
            for piece in self._opened(path, lambda: row_groups(path, self._column)):
                self._has_table = self._has_table or not isinstance(piece, Refused)
                yield piece
        except UsageError as error:
            if not self._has_table:
                raise
            yield _refused(path, error)

    def _opened(self, path: str, open_pieces: Callable[[], Iterator[Piece]]) -> Iterator[Piece]:
        try:
            yield from open_pieces()
        except SourceError as error:
            if is_machine_fault(error):
                raise
            yield _refused(path, error)


def parts_of_table(path: str) -> list[str]:
    """Return the Parquet files in a folder and below it, in order; the path itself if it is no folder, or has none."""
    if not os.path.isdir(path):
        return [path]
    inner = os.path.join(glob.escape(path), "**", f"*{PARQUET_ENDING}")
    return sorted(part for part in glob.glob(inner, recursive=True) if os.path.isfile(part)) or [path]


def _refused(path: str, error: GliaError) -> Refused:
    return Refused(path, str(error).removeprefix(f"{display_name(path)}: "))
