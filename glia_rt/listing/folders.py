"""Pictures in folders: all those below a folder, or those that match a pattern.

They are listed lazily, in an order that depends on names alone.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.pieces import is_archive
from glia_rt.pixels.names import display_name, is_picture_name


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """List pictures in files of their own.

    A path that is not a folder is yielded as it was given, whatever its extension and even if nothing is there. The
    caller finds out what is wrong by opening it. A folder stands for every picture in it and below it, as `walk` lists
    them.

    Args:
        paths: Files and folders.

    Yields:
        Paths that begin with the argument they came from. Bytes that are not UTF-8 stand as lone surrogates, as
        everywhere in `os`.

    Raises:
        UsageError: `paths` is one path, not several. Or a folder cannot be listed, which is raised when its turn comes.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise UsageError(f"paths are a list: give [{paths!r}]")
    for path in paths:
        if os.path.isdir(path):
            yield from walk(os.fspath(path))
        else:
            yield os.fspath(path)


def walk(folder: str) -> Iterator[str]:
    """Yield every picture in a folder and below it.

    - A picture is a name with the extension of a format that Pillow decodes, in upper or lower case. A folder, or a
      link to one, is not a picture.
    - Files and subfolders are sorted together, by the bytes of their names (`os.fsencode`).
    - Names that start with a dot are left out.
    - Links to folders are not followed, because they can form cycles.

    Raises:
        UsageError: A folder cannot be listed.
        SourceError: A folder has gone since its name was read.
    """
    return _search(folder, folder, ())


def match(pattern: str) -> Iterator[str]:
    """Yield the pictures and archives that match a pattern, in the order of `walk`.

    Between separators, *, ? and [...] mean what they mean in `fnmatch`. A part that is ** stands for any number of
    folders, or none. A folder that matches stands for the pictures in it and below it. Names that start with a dot
    match nothing. A link to a folder is followed only if it is named by a part of the pattern that is neither the last
    part nor **.

    Raises:
        UsageError: A folder cannot be listed, or nothing matches.
        SourceError: A folder has gone since its name was read.
    """
    parts = pattern.replace("/", os.sep).split(os.sep)
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    top = os.sep.join([*parts[:first], ""])
    found = False
    for path in _search(top or os.curdir, top, parts[first:]):
        found = True
        yield path
    if not found:
        raise UsageError(f"{display_name(pattern)}: no picture, tar or Parquet file matches this pattern")


def _search(folder: str, prefix: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield what is below a folder and matches the parts of a pattern; every picture, if there are no parts.

    The search is an automaton over names. Its state is the numbers of the parts that may match the next name. Each
    pending name carries its own state.
    """
    end = len(parts)
    # The pending names are a stack, because folders may nest deeper than Python recurses.
    try:
        pending = [(prefix, entry, _or_none(0, parts)) for entry in _last_to_first(folder)]
    except OSError as error:
        raise _not_listed(folder, error) from error
    while pending:
        parent, entry, before = pending.pop()
        path = os.path.join(parent, entry.name)
        matching = _step(before, entry.name, parts)
        now = matching | before & {end}  # everything below a folder that matched does, too
        is_folder = os.path.isdir(path) if entry.is_symlink() else entry.is_dir()
        if is_folder:
            if now and not (entry.is_symlink() and (end in now or _is_any(before, parts))):
                try:
                    pending += [(path, inner, now) for inner in _last_to_first(path)]
                except PermissionError as error:
                    raise _not_listed(path, error) from error
                except OSError as error:  # the folder was there a moment ago
                    raise SourceError(f"{display_name(path)}: can no longer be listed: {error.strerror}") from error
        elif end in (matching if is_archive(path) else now):
            yield path


def _step(before: frozenset[int], name: str, parts: Sequence[str]) -> frozenset[int]:
    now: frozenset[int] = frozenset()
    for i in before - {len(parts)}:
        if parts[i] == "**":
            now |= _or_none(i, parts)
        elif fnmatchcase(name, parts[i]):
            now |= _or_none(i + 1, parts)
    return now


def _or_none(i: int, parts: Sequence[str]) -> frozenset[int]:
    """Return the number of a part, and of each part after it that is reached if a ** stands for no folder."""
    last = i
    while last < len(parts) and parts[last] == "**":
        last += 1
    return frozenset(range(i, last + 1))


def _is_any(states: frozenset[int], parts: Sequence[str]) -> bool:
    return any(i == len(parts) or parts[i] == "**" for i in states)


def _last_to_first(folder: str) -> list[os.DirEntry[str]]:
    """Return the pictures, archives and folders directly in a folder, in reverse order, so that the first pops first.

    Hidden names and other files are left out.
    """
    with os.scandir(folder) as entries:
        found = [
            entry
            for entry in entries
            if not entry.name.startswith(".")
            and (is_picture_name(entry.name) or is_archive(entry.name) or os.path.isdir(entry))
        ]
    return sorted(found, key=lambda entry: os.fsencode(entry.name), reverse=True)


def _not_listed(folder: str, error: OSError) -> UsageError:
    return UsageError(
        f"{display_name(folder)}: this folder cannot be listed: {error.strerror}; "
        "make it readable, or name only what is to be scored"
    )
