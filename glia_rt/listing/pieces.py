"""The parts of a listing: pieces that are each opened on their own, and the pictures that are read from them in order.

A picture in a file of its own is a piece. An archive is a tar or Parquet file that holds pictures: `tar` and `parquet`
have the pieces of archives.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from glia_rt.errors import SourceError
from glia_rt.pixels.decode import MAX_ENCODED_BYTES
from glia_rt.pixels.names import display_name

TAR_ENDINGS: Final = (".tar", ".tar.gz", ".tgz")
PARQUET_ENDING: Final = ".parquet"


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to score, still encoded.

    Attributes:
        name: The picture's name in the results. It can always be encoded.
        source: A path, or the bytes of an encoded file; None if the picture is refused.
        refused: Why the picture is not to be read; None if it is.
        folder: The folder whose search found the picture; None if none was searched. If the folder is gone, so is what
            is to be scored.
        done: The share of its piece that is read once this picture is, in (0, 1].
    """

    name: str
    source: str | bytes | None
    refused: str | None = None
    folder: str | None = None
    done: float = 1.0


class Piece(Protocol):
    """A part of a listing that can be opened on its own.

    Attributes:
        count: The number of pictures in it; None for a tar archive, which does not record it.
    """

    @property
    def count(self) -> int | None:
        """The number of pictures, or None; see the class."""

    def key(self) -> str:
        """Return what identifies the piece: its path, and for an archive also its size and modification time.

        Raises:
            SourceError: The archive is gone.
        """

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """Yield the pictures of the piece in order, from the one numbered `first`.

        A damaged archive raises no error. It yields refused pictures, which become rows that say so.

        Raises:
            SourceError: The piece cannot be read.
        """


@dataclass(frozen=True, slots=True)
class File:
    """A picture in a file of its own. `folder` is that of `Picture`."""

    path: str
    folder: str | None = None
    count: ClassVar[int] = 1

    def key(self) -> str:
        """Return the path; see `Piece`. The content of the file does not count."""
        return self.path

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        if first == 0:
            yield Picture(display_name(self.path), self.path, folder=self.folder)


@dataclass(frozen=True, slots=True)
class DamagedArchive:
    """An archive from which nothing can be read. Its one picture is refused, and becomes a row that says why."""

    path: str
    reason: str
    count: ClassVar[int] = 1

    def key(self) -> str:
        """See `Piece`."""
        return archive_key(self.path)

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        if first == 0:
            yield Picture(display_name(self.path), None, self.reason)


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


def archive_key(path: str) -> str:
    """Return what `Piece.key` is for an archive. Raises as `require_file` does."""
    found = require_file(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


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
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return SourceError(f"{display_name(path)}: cannot be read: {reason}")
