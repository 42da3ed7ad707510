"""What a picture may be given as, what messages and rows call it, and which files are taken for pictures."""

from __future__ import annotations

import functools
import os
import re
from typing import Any, Final, TypeAlias

import numpy.typing as npt
from PIL import Image

#: A path, the bytes of an encoded file, a PIL image, or pixels: uint8 (H, W, 3), RGB.
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]

#: Formats that Pillow recognises and that are no pictures here: it has no decoder of its own (BUFR, GRIB, HDF5, MPEG),
#: decodes on Windows only (WMF), or may run a program (EPS, IPTC).
_NOT_PICTURES: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})

_ESCAPE: Final = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def display_name(source: ImageSource) -> str:
    r"""What messages and rows call a picture: its path, or "<bytes>", "<ndarray>", "<PngImageFile>"...

    Always encodable: bytes of a path that are not UTF-8 are written as backslashreplace writes them, \udcff for 0xff.
    """
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source).encode("utf-8", "backslashreplace").decode("utf-8")
    return f"<{type(source).__name__}>"


def named_path(name: str) -> str:
    """The path that `display_name` calls so, unless it holds the text of an escape itself."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)


@functools.cache
def picture_extensions() -> frozenset[str]:
    """Extensions, in lower case and with their dot, of the formats that are pictures here."""
    known = Image.registered_extensions()  # loads every plugin, so Image.OPEN is complete after it
    return frozenset(ext for ext, name in known.items() if name in Image.OPEN and name not in _NOT_PICTURES)


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture, by its extension."""
    return os.path.splitext(name)[1].lower() in picture_extensions()
