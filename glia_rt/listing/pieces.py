"""The parts of a listing: pieces that are each opened on their own, and the pictures that are read from them in order.

A picture in a file of its own is a piece. An archive is a tar or Parquet file that holds pictures: `tar` and `parquet`
have the pieces of archives.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Protocol

from glia_rt.errors import SourceError
from glia_rt.faults import is_machine_fault
from glia_rt.pixels.decode import MAX_ENCODED_BYTES
from glia_rt.pixels.names import display_name
from glia_rt.results import Result

TAR_ENDINGS: Final = (".tar", ".tar.gz", ".tgz")
PARQUET_ENDING: Final = ".parquet"
#: Endings of archives that are not read.
OTHER_ARCHIVES: Final = (
    ".zip", ".7z", ".rar", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".gz", ".zst",
)  # fmt: skip


class Position(NamedTuple):
    """Where a picture stands: the number of its piece in the listing, and its own number in the piece."""

    piece: int
    picture: int


START: Final = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to score, still encoded.

    Attributes:
        name: The picture's name in the results. It can always be encoded.
        source: A path, or the bytes of an encoded file; None if the picture is refused.
        refused: Why the picture is not to be read; None if it is.
        folder: The folder that the picture lay in, or whose search found it; None if the picture was named. If the
            folder is gone, so is what is to be scored.
        done: The share of its piece that is read once this picture is, in [0, 1].
        row: The result that an earlier run has for it; None if it is to be read.
        failed: Why the machine failed to read it; None if it has not.
    """

    name: str
    source: str | bytes | None
    refused: str | None = None
    folder: str | None = None
    done: float = 1.0
    row: Result | None = None
    failed: str | None = None


class Piece(Protocol):
    """A part of a listing that can be opened on its own.

    It is a dataclass whose fields are JSON types, so that a listing can be kept in a file.

    Attributes:
        path: The file. Several pieces may be of one archive.
        count: The number of pictures in it; None for a tar archive, which does not record it.
    """

    @property
    def path(self) -> str:
        """The file; see the class."""

    @property
    def count(self) -> int | None:
        """The number of pictures, or None; see the class."""

    def changed(self) -> Picture | None:
        """Return the refused picture that stands for an archive that is not what the listing found; None if it is."""

    def pictures(self, first: int = 0, left_out: Counter[str] | None = None) -> Iterator[Picture]:
        """Yield the pictures of the piece in order, from the one numbered `first`.

        A damaged archive raises no error. It yields a refused picture for what it does not yield otherwise, which
        becomes a row that says so. If `left_out` is given, it counts by kind what looks like pictures and is left out.

        Raises:
            SourceError: The piece cannot be read.
        """


@dataclass(frozen=True, slots=True)
class File:
    """A picture in a file of its own. `folder` is that of `Picture`."""

    path: str
    folder: str | None = None
    count: ClassVar[int] = 1

    def changed(self) -> Picture | None:
        """Return None: whatever the file holds when its turn comes is the picture."""

    def pictures(self, first: int = 0, left_out: Counter[str] | None = None) -> Iterator[Picture]:
        """See `Piece`."""
        if first == 0:
            yield Picture(display_name(self.path), self.path, folder=self.folder)


@dataclass(frozen=True, slots=True)
class Refused:
    """A place in the listing from which nothing can be read. Its one picture is refused, and becomes a row."""

    path: str
    reason: str
    count: ClassVar[int] = 1

    def changed(self) -> Picture | None:
        """Return None."""

    def pictures(self, first: int = 0, left_out: Counter[str] | None = None) -> Iterator[Picture]:
        """See `Piece`."""
        if first == 0:
            yield Picture(display_name(self.path), None, self.reason)


def read_pieces(
    pieces: Iterable[Piece], start: Position = START, left_out: Counter[str] | None = None
) -> Iterator[tuple[Position, Picture]]:
    """Yield the pictures of pieces in order, with their positions, from a position on. `left_out` is as for `Piece`.

    An archive that has changed since it was listed, or has gone, is one picture, which is refused. What else is listed
    of it is passed over. The picture stands before the next piece.

    Raises:
        UsageError: As `pieces` raises.
        SourceError: As `pieces` raises.
    """
    for _, group in itertools.groupby(enumerate(pieces), key=lambda item: item[1].path):
        for number, piece in group:
            if number < start.piece:
                continue
            if (refused := piece.changed()) is not None:
                last = max([number, *(number for number, _ in group)])
                yield Position(last + 1, -1), refused
                break
            yield from read_piece(number, piece, start.picture if number == start.piece else 0, left_out)


def read_piece(
    number: int, piece: Piece, first: int = 0, left_out: Counter[str] | None = None
) -> Iterator[tuple[Position, Picture]]:
    """Yield the pictures of a piece, with their positions, from the one numbered `first`. `left_out` is as for `Piece`.

    If the machine fails to read an archive, it is read on once more. If it fails again, or the archive cannot be read
    for another reason, a picture says so, which stands before the next piece.
    """
    name = display_name(piece.path)
    for _ in range(2):
        try:
            for picture in piece.pictures(first, left_out):
                yield Position(number, first), picture
                first += 1
            return
        except SourceError as error:
            if is_machine_fault(error):
                picture = Picture(name, None, failed=str(error.__cause__), done=0.0)
            else:
                folder = getattr(piece, "folder", None) or os.path.dirname(piece.path) or os.curdir
                reason = str(error).removeprefix(f"{name}: ")
                picture = Picture(name, None, reason, folder=folder, done=0.0)
                break
    yield Position(number + 1, -1), picture


def archive_ending(name: str) -> str | None:
    """Return the ending by which a file of this name is an archive, in lower case; None for other files."""
    return next((ending for ending in (*TAR_ENDINGS, PARQUET_ENDING) if name.lower().endswith(ending)), None)


def is_archive(name: str) -> bool:
    """Return whether a file of this name is an archive, which holds pictures and is not a picture itself."""
    return archive_ending(name) is not None


def too_large(size: int) -> str | None:
    """Return why a picture of `size` encoded bytes in an archive is not read; None if it is not too large."""
    if size <= MAX_ENCODED_BYTES:
        return None
    return f"{size} bytes, over the limit of {MAX_ENCODED_BYTES} for a picture in an archive"


def changed_archive(path: str, size: int, mtime_ns: int, searched: str | None = None) -> Picture | None:
    """Return what `Piece.changed` does, for an archive that had this size and modification time.

    The folder of the picture is `searched`, or the archive's own if that is None.
    """
    name, folder = display_name(path), searched or os.path.dirname(path) or os.curdir
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        reason = "no longer there"
    except OSError as error:
        reason = error.strerror or str(error)
        if is_machine_fault(error):
            return Picture(name, None, failed=reason, folder=folder, done=0.0)
    else:
        if (found.st_size, found.st_mtime_ns) == (size, mtime_ns):
            return None
        reason = "changed since the listing was made: not read"
    return Picture(name, None, reason, folder=folder, done=0.0)


def require_file(path: str) -> os.stat_result:
    """Return the status of a regular file. Other kinds are not opened: opening a FIFO would wait for a writer.

    Raises:
        SourceError: The file is not there, or is not a regular file.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise gone(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{display_name(path)}: cannot be read: not a regular file")
    return found


def gone(path: str, error: BaseException) -> SourceError:
    """Return the error to raise for an archive that cannot be read."""
    number = getattr(error, "errno", None)  # Arrow's errors have one, and a message with the path once more
    reason = os.strerror(number) if number else str(error)
    return SourceError(f"{display_name(path)}: cannot be read: {reason}")
