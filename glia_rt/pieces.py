"""What a listing is made of: files, tar shards and row groups of Parquet, each opened on its own and read in order."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Protocol

from glia_rt.errors import SourceError, UsageError
from glia_rt.images import MAX_ENCODED_BYTES, display_name, is_picture_name

TAR_ENDINGS: Final = (".tar", ".tar.gz", ".tgz")
PARQUET_ENDING: Final = ".parquet"
#: What a Parquet reader decodes at once, so that no row group is held whole: so many rows, or of large ones fewer.
_ROWS_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 1 << 26

#: Longest header of a tar member: tarfile reads one whole, and it may say that its name has gigabytes.
_MAX_HEADER: Final = 1 << 20
_LONG_HEADERS: Final = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)
#: What tarfile raises on hostile bytes: damaged numbers in headers are ValueErrors.
_DAMAGE: Final = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, ValueError, OverflowError)


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
class TarShard:
    """A tar file, also compressed with gzip, as WebDataset has them: the members with the extension of a picture.

    Members are named SHARD/MEMBER. What else a sample has (.json, .txt, .cls) and hidden files are passed over; links
    and names that lead out of the archive are rows that say so.
    """

    path: str
    count: ClassVar[None] = None

    def key(self) -> str:
        """See `Piece`."""
        return _key(self.path)

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        shard, number = display_name(self.path), 0
        try:
            _require_file(self.path)
            with open(self.path, "rb") as file, tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as tar:
                size = os.fstat(file.fileno()).st_size
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header that it has read
                    if not _is_picture(member):
                        continue
                    # The one before the first, too: if it is cut off, its row was the shard's last.
                    if number >= first - 1:
                        name, refused = f"{shard}/{display_name(member.name)}", _why_refused(member)
                        data = None if refused else _read(tar, member)
                        if number >= first:
                            yield Picture(name, data, refused, done=file.tell() / size)
                    number += 1
                _check_end(tar)
                if number == 0 and first == 0:
                    yield Picture(shard, None, "a tar file without a picture: no name in it has the extension of one")
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the system, not of a decompressor
                raise _gone(self.path, error) from error
            if number >= first:
                # Of a file that is none tarfile says, over several lines, what each kind of compression finds wrong.
                lines = str(error).splitlines() or [type(error).__name__]
                reason = lines[0] if len(lines) == 1 else "no tar file, or damaged at its start"
                yield Picture(shard, None, f"a damaged tar file, not read further ({reason})")


class _Member(tarfile.TarInfo):
    """A header; tarfile takes a damaged one after the first, and a missing one, for the end, and says nothing."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG_HEADERS and member.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if tarfile_.offset:
                raise tarfile.ReadError("cut off: its end is missing") from error
            raise


def _check_end(tar: tarfile.TarFile) -> None:
    """Read what comes after the end, which is zeros; of a compressed archive its checksum, too.

    Raises:
        ReadError: There is something else, which tarfile would not have read.
    """
    while block := tar.fileobj.read(1 << 16):
        if any(block):
            raise tarfile.ReadError("more after its end, such as a second archive")


def archive_ending(name: str) -> str | None:
    """By which a file holds pictures and is none itself, in lower case; None for other files."""
    return next((ending for ending in (*TAR_ENDINGS, PARQUET_ENDING) if name.lower().endswith(ending)), None)


def is_archive(name: str) -> bool:
    """Whether a file of this name holds pictures, and is none itself."""
    return archive_ending(name) is not None


def _is_picture(member: tarfile.TarInfo) -> bool:
    name = PurePosixPath(member.name).name
    return not member.isdir() and not name.startswith(".") and is_picture_name(name)


def _why_refused(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return "a name that leads out of the archive: not read"
    if member.issym() or member.islnk():
        return "a link: not followed"
    if not member.isreg():
        return "not a regular file"
    if member.size > MAX_ENCODED_BYTES:
        return _too_large(member.size)
    return None


def _too_large(size: int) -> str:
    return f"{size} bytes, over the limit of {MAX_ENCODED_BYTES} for a picture in a shard"


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with file:
        return file.read()


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a Parquet file: a column of encoded pictures, or of paths relative to the file's folder.

    A column of structs with a field `bytes`, or else `path`, as Hugging Face writes pictures, is read too. Rows are
    named FILE/NUMBER, counted from 0 through the file; pictures named by a path keep that path.
    """

    path: str
    column: str
    index: int
    first_row: int
    count: int

    def key(self) -> str:
        """See `Piece`."""
        return f"{_key(self.path)}/{self.index}"

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        import pyarrow as pa

        row = 0
        try:
            for cell in self._cells():
                if row >= first:
                    yield self._picture(row, cell)
                row += 1
        except (pa.ArrowException, OSError) as error:
            if not os.path.exists(self.path):
                raise _gone(self.path, error) from error
            reason = f"a damaged Parquet file ({str(error).splitlines()[0]})"
            for lost in range(max(row, first), self.count):
                yield Picture(self._name(lost), None, reason, done=(lost + 1) / self.count)

    def _cells(self) -> Iterator[Any]:
        """The column's Arrow scalars."""
        from pyarrow import parquet

        # Without pre_buffer, and with a buffer, pages are read when their turn comes.
        with (
            _open_arrow(self.path) as opened,
            parquet.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20) as file,
        ):
            mean = file.metadata.row_group(self.index).total_byte_size // self.count
            for batch in file.iter_batches(
                max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (mean + 1))),
                row_groups=[self.index],
                columns=[self.column],
                use_threads=False,
            ):
                yield from batch.column(0)

    def _picture(self, row: int, cell: Any) -> Picture:
        done, (source, refused) = (row + 1) / self.count, read_cell(cell)
        if refused is not None:
            return Picture(self._name(row), None, refused, done=done)
        if isinstance(source, bytes):
            if len(source) > MAX_ENCODED_BYTES:
                return Picture(self._name(row), None, _too_large(len(source)), done=done)
            return Picture(self._name(row), source, done=done)
        path = os.path.join(os.path.dirname(self.path), source)
        return Picture(display_name(path), path, done=done)

    def _name(self, row: int) -> str:
        return f"{display_name(self.path)}/{self.first_row + row}"


def row_groups(path: str, column: str) -> Iterator[RowGroup]:
    """The pieces of a Parquet file; only its footer is read.

    Raises:
        UsageError: It is no Parquet file, or has no such column of bytes, strings or structs of them.
        SourceError: It cannot be opened.
    """
    import pyarrow as pa
    from pyarrow import parquet

    _require_file(path)
    try:
        with _open_arrow(path) as opened, parquet.ParquetFile(opened) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except pa.ArrowInvalid as error:
        raise UsageError(f"{display_name(path)}: not a Parquet file ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise _gone(path, error) from error
    if column not in schema.names:
        raise UsageError(
            f"{display_name(path)}: no column {column!r}; it has {', '.join(schema.names)}: name one with --column"
        )
    if schema.names.count(column) > 1:
        raise UsageError(f"{display_name(path)}: several columns are called {column!r}; rename all but one")
    if not _holds_pictures(schema.field(column).type):
        raise UsageError(
            f"{display_name(path)}: column {column!r} is {schema.field(column).type}; pictures are bytes, or strings "
            "that are their paths: name such a column with --column, or cast this one to binary"
        )
    row = 0
    for index in range(metadata.num_row_groups):
        count = metadata.row_group(index).num_rows
        if count:
            yield RowGroup(path, column, index, row, count)
        row += count


def _open_arrow(path: str) -> Any:
    """A file for Arrow, which takes names that are not UTF-8 as bytes alone."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path))


def read_cell(cell: Any) -> tuple[Any, str | None]:
    """What an Arrow scalar has for a picture, of a struct `bytes`, or else `path`; or None, and why it has none."""
    try:
        value = cell.as_py()
    except UnicodeDecodeError:
        return None, "a path that is not UTF-8, as strings of Arrow are"
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or (isinstance(value, (bytes, str)) and not value):
        return None, "the row has no picture"
    return value, None


def _holds_pictures(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return any(name in names and _holds_pictures(kind.field(name).type) for name in ("bytes", "path"))
    if types.is_dictionary(kind):
        return _holds_pictures(kind.value_type)
    tests = (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _key(path: str) -> str:
    found = _require_file(path)
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def _require_file(path: str) -> os.stat_result:
    """What it is, if it is a regular file: opening a FIFO would wait for a writer.

    Raises:
        SourceError: It is not, or it is not there.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _gone(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{display_name(path)}: cannot be read: not a regular file")
    return found


def _gone(path: str, error: BaseException) -> SourceError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return SourceError(f"{display_name(path)}: cannot be read: {reason}")
