"""What a listing is made of: pictures in pieces that are each opened on their own and read in order.

A file is one here; `tar_shards` and `parquet_pieces` have the others.
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
        name: Its name in the results; always encodable.
        source: A path, or the bytes of an encoded file; None where it is refused.
        refused: Why it is not to be read.
        folder: The folder that was searched for it: if that is gone, so is the source.
        done: Share of its piece that is read once it is, in (0, 1].
    """

    name: str
    source: str | bytes | None
    refused: str | None = None
    folder: str | None = None
    done: float = 1.0


class Piece(Protocol):
    """A part of a listing that can be opened on its own.

    Attributes:
        count: Pictures in it; None for a tar shard, which does not say.
    """

    @property
    def count(self) -> int | None:
        """See above."""

    def key(self) -> str:
        """What it is: for a shard also its size and modification time.

        Raises:
            SourceError: It is gone.
        """

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """Its pictures in order, from the one numbered `first`.

        Raises:
            SourceError: It cannot be read. One that is damaged gives rows that say so instead.
        """


@dataclass(frozen=True, slots=True)
class File:
    """A picture in a file of its own; `folder` as `Picture` has it."""

    path: str
    folder: str | None = None
    count: ClassVar[int] = 1

    def key(self) -> str:
        """See `Piece`: its path. What is in it is not looked at."""
        return self.path

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        if first == 0:
            yield Picture(display_name(self.path), self.path, folder=self.folder)


@dataclass(frozen=True, slots=True)
class DamagedShard:
    """A shard of which nothing can be read; a row says so."""

    path: str
    reason: str
    count: ClassVar[int] = 1

    def key(self) -> str:
        """See `Piece`."""
        return shard_key(self.path)

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        if first == 0:
            yield Picture(display_name(self.path), None, self.reason)


def archive_ending(name: str) -> str | None:
    """By which a file holds pictures and is none itself, in lower case; None for other files."""
    return next((ending for ending in (*TAR_ENDINGS, PARQUET_ENDING) if name.lower().endswith(ending)), None)


def is_archive(name: str) -> bool:
    """Whether a file of this name holds pictures, and is none itself."""
    return archive_ending(name) is not None


def too_large(size: int) -> str | None:
    """Why a picture in a shard is not read; None if it is not too large."""
    if size <= MAX_ENCODED_BYTES:
        return None
    return f"{size} bytes, over the limit of {MAX_ENCODED_BYTES} for a picture in a shard"


def shard_key(path: str) -> str:
    """What `Piece.key` is of a shard; raises as `require_file` does."""
    found = require_file(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def require_file(path: str) -> os.stat_result:
    """What it is, if it is a regular file: opening a FIFO would wait for a writer.

    Raises:
        SourceError: It is not, or it is not there.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise gone(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{display_name(path)}: cannot be read: not a regular file")
    return found


def gone(path: str, error: BaseException) -> SourceError:
    """What to raise where a shard cannot be read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return SourceError(f"{display_name(path)}: cannot be read: {reason}")
