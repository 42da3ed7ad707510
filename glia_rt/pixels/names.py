"""The names of pictures: what a picture may be given as, its name in messages and rows, which files are pictures."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
from typing import IO, Any, Final, TypeAlias

import numpy.typing as npt
from PIL import Image

#: A path, the bytes of an encoded file, an open file, a PIL image, or pixels: uint8 (H, W, 3), RGB.
ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[Any]
)

#: Formats that Pillow recognises but that do not count as pictures here. Pillow has no decoder of its own for BUFR,
#: GRIB, HDF5 and MPEG. It decodes WMF on Windows only. It may run a program for EPS and IPTC.
_NOT_PICTURES: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})

#: Endings of pictures that Pillow does not read by itself: those of phones, and the raw formats of cameras.
UNREAD_PICTURES: Final = frozenset(
    {".heic", ".heif", ".hif", ".jxl", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2", ".pef", ".srw"}
)

_ESCAPE: Final = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def display_name(source: ImageSource) -> str:
    r"""Return the name of a picture in messages and rows: its path, or "<bytes>", "<ndarray>", "<PngImageFile>"...

    The name can always be encoded: bytes of a path that are not UTF-8 are written as backslashreplace writes them,
    \udcff for 0xff.
    """
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source).encode("utf-8", "backslashreplace").decode("utf-8")
    return f"<{type(source).__name__}>"


def printable(text: str) -> str:
    """Return a line whose characters that would command a terminal are escaped. Names of files may hold any."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def named_path(name: str) -> str:
    """Return the path that `display_name` shows as `name`.

    The result is wrong if the path itself holds the text of an escape.
    """
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)


@functools.cache
def register_heif() -> None:
    """Have Pillow read HEIC, if pillow-heif or pi-heif is installed."""
    for name in ("pillow_heif", "pi_heif"):
        with contextlib.suppress(Exception):  # code of others, which may raise anything where it does not fit
            importlib.import_module(name).register_heif_opener()
            return


@functools.cache
def picture_extensions() -> frozenset[str]:
    """Return the extensions of the formats that count as pictures here, in lower case and with their dot."""
    register_heif()
    known = Image.registered_extensions()  # loads every plugin, so Image.OPEN is complete after it
    return frozenset(ext for ext, name in known.items() if name in Image.OPEN and name not in _NOT_PICTURES)


def is_picture_name(name: str) -> bool:
    """Return whether a file of this name is taken for a picture, by its extension."""
    return os.path.splitext(name)[1].lower() in picture_extensions()
