"""Tar archives of pictures, in the layout of WebDataset.

An archive is read in one pass. Damaged or hostile bytes in it become rows.
"""

from __future__ import annotations

import gzip
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar, Final

from glia_rt.listing.pieces import Picture, changed_archive, gone, require_file, too_large
from glia_rt.pixels.names import UNREAD_PICTURES, display_name, is_picture_name

#: Longest header of a tar member, in bytes. tarfile reads a header whole, and a header may say that its name has
#: gigabytes.
_MAX_HEADER: Final = 1 << 20
_LONG_HEADERS: Final = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)
#: What tarfile raises on hostile bytes. A damaged number in a header raises a ValueError. A header that is cut off
#: raises an IndexError. Hundreds of headers that each announce the next raise a RecursionError.
_DAMAGE: Final = (
    tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, ValueError, OverflowError, IndexError,
    RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TarArchive:
    """A tar file of pictures, plain or compressed with gzip, in the layout of WebDataset.

    Its pictures are the members with the extension of a picture. They are named ARCHIVE/MEMBER. The other files of a
    sample (.json, .txt, .cls) are skipped. So are hidden pictures and those of formats that are not read, which are
    counted. Links, and names that lead out of the archive, become rows that say so.

    Attributes:
        path: The file.
        size: Its size in bytes, when it was listed.
        mtime_ns: Its modification time, likewise.
        folder: The folder whose search found it; None if it was named.
    """

    path: str
    size: int
    mtime_ns: int
    folder: str | None = None
    count: ClassVar[None] = None

    @classmethod
    def at(cls, path: str) -> TarArchive:
        """Return the archive at a path; raises as `require_file` does."""
        found = require_file(path)
        return cls(path, found.st_size, found.st_mtime_ns)

    def changed(self) -> Picture | None:
        """See `Piece`."""
        return changed_archive(self.path, self.size, self.mtime_ns, self.folder)

    def pictures(self, first: int = 0, left_out: Counter[str] | None = None) -> Iterator[Picture]:
        """See `Piece`."""
        archive, number = display_name(self.path), 0
        try:
            require_file(self.path)
            with open(self.path, "rb") as file, tarfile.open(fileobj=file, mode="r:*", tarinfo=_Member) as tar:
                size = os.fstat(file.fileno()).st_size
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it reads
                    if member.isdir():
                        continue
                    base = PurePosixPath(member.name).name
                    if base.startswith(".") or not is_picture_name(base):
                        if left_out is not None and number >= first and (kind := _left_out_as(base)) is not None:
                            left_out[kind] += 1
                        continue
                    # The picture before the first is read too. If it is cut off, its row was the archive's last.
                    if number >= first - 1:
                        name, refused = f"{archive}/{display_name(member.name)}", _why_refused(member)
                        data = None if refused else _read(tar, member)
                        if number >= first:
                            yield Picture(name, data, refused, done=file.tell() / size)
                    number += 1
                _check_end(tar)
                if number == 0 and first == 0:
                    yield Picture(archive, None, "a tar file without a picture: no member has a picture's extension")
        except (*_DAMAGE, OSError, MemoryError) as error:
            # An error of the system, not of a decompressor.
            if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
                raise gone(self.path, error) from error
            if number >= first:
                # If a file is not a tar file, the message has one line for each kind of compression that was tried.
                lines = str(error).splitlines() or [type(error).__name__]
                reason = lines[0] if len(lines) == 1 else "not a tar file, or damaged at its start"
                yield Picture(archive, None, f"a damaged tar file, not read further ({reason})")


class _Member(tarfile.TarInfo):
    """A header of a member, read more strictly than by tarfile.

    tarfile takes a damaged header after the first, and a missing one, for the end of the archive, and reports nothing.
    This class raises `tarfile.ReadError`.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG_HEADERS and not 0 <= member.size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        before = tarfile_.offset
        try:
            member = super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            if tarfile_.offset:
                raise tarfile.ReadError("cut off: its end is missing") from error
            raise
        # A negative size, in a header or in what extends it, leads back in the file. The archive would never end
        # (CVE-2025-8194).
        if member.size < 0 or tarfile_.offset <= before:
            raise tarfile.ReadError(f"{display_name(member.name)} has {member.size} bytes")
        return member


def _check_end(tar: tarfile.TarFile) -> None:
    """Read what follows the end of the archive, and check that it is zeros.

    This also reads the checksum of a compressed archive.

    Raises:
        ReadError: Something else follows, which tarfile would not have read.
    """
    while block := tar.fileobj.read(1 << 16):
        if any(block):
            raise tarfile.ReadError("more after its end, such as a second archive")


def _left_out_as(name: str) -> str | None:
    """Return the kind of a member that looks like a picture and is not read, as `folders.walk` counts it."""
    if name.startswith("."):
        return "hidden picture" if is_picture_name(name) else None
    ending = os.path.splitext(name)[1].lower()
    return f"{ending} file" if ending in UNREAD_PICTURES else None


def _why_refused(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return "a name that leads out of the archive: not read"
    if member.issym() or member.islnk():
        return "a link: not followed"
    if not member.isreg():
        return "not a regular file"
    return too_large(member.size)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with file:
        return file.read()
