"""Which pictures to score: the files and folders a user names, as one lazy stream of paths in a fixed order."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import Final

from PIL import Image

from glia_rt.errors import UsageError
from glia_rt.images import display_name

#: Formats that Pillow recognises and that are no pictures here: it has no decoder of its own (BUFR, GRIB, HDF5, MPEG),
#: decodes on Windows only (WMF), or may run a program (EPS, IPTC), which `glia_rt.images` refuses.
_NOT_PICTURES: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """List pictures, lazily, in an order that depends on names only.

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
    is_picture = os.path.splitext(entry.name)[1].lower() in _extensions()
    return is_picture and not (entry.is_symlink() and os.path.isdir(entry))


@functools.cache
def _extensions() -> frozenset[str]:
    known = Image.registered_extensions()  # loads every plugin, so Image.OPEN is complete after it
    return frozenset(ext for ext, name in known.items() if name in Image.OPEN and name not in _NOT_PICTURES)
