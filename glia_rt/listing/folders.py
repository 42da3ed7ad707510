"""Pictures in folders: all those below a folder, or those that match a pattern.

They are listed lazily, in an order that depends on names alone.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from glia_rt.errors import SourceError, UsageError
from glia_rt.faults import is_machine_fault
from glia_rt.listing.pieces import OTHER_ARCHIVES, PARQUET_ENDING, Refused, archive_ending, is_archive
from glia_rt.pixels.names import UNREAD_PICTURES, display_name, is_picture_name

#: Endings of pictures and archives that are not read. What .gz and .zst compress is mostly neither.
_UNREAD: Final = (*sorted(UNREAD_PICTURES), *(ending for ending in OTHER_ARCHIVES if ending not in (".gz", ".zst")))


class Found(NamedTuple):
    """A picture or an archive.

    Attributes:
        path: The file, or a folder that is a table.
        folder: The folder whose search found it; None if it was named. If another disk is mounted below the folder that
            was searched, it is the folder where that disk begins.
    """

    path: str
    folder: str | None


class _Name(NamedTuple):
    """A name in a folder that is still to be looked at.

    Attributes:
        parent: The folder.
        entry: The name.
        before: The numbers of the parts of the pattern that may match the name.
        top: The `folder` of what is found by it.
        device: The number of the disk that `top` is on.
    """

    parent: str
    entry: os.DirEntry[str]
    before: frozenset[int]
    top: str
    device: int


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
        SourceError: The machine fails to list a folder.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise UsageError(f"paths are a list: give [{paths!r}]")
    for path in paths:
        if not os.path.isdir(path):
            yield os.fspath(path)
            continue
        for found in walk(os.fspath(path), Counter()):
            if isinstance(found, Refused):
                raise UsageError(f"{display_name(found.path)}: {found.reason}")
            yield found.path


def walk(folder: str, left_out: Counter[str]) -> Iterator[Found | Refused]:
    """Yield every picture in a folder and below it. A folder that cannot be listed is refused.

    - A picture is a name with the extension of a format that Pillow decodes, in upper or lower case. A folder, or a
      link to one, is not a picture.
    - Files and subfolders are sorted together, by the bytes of their names (`os.fsencode`).
    - Names that start with a dot are left out. So are archives.
    - Links to folders are not followed, because they can form cycles.

    Args:
        folder: The folder.
        left_out: Counts what is left out, by kind.

    Raises:
        SourceError: The machine fails to list a folder.
    """
    return _search(folder, folder, (), left_out)


def parts_of_table(folder: str, left_out: Counter[str]) -> Iterator[Found | Refused]:
    """Yield the Parquet files in a folder and below it; the rest is as for `walk`.

    A folder in it that is a table itself is yielded, and not searched. Names that start with "_" are left out: what
    writes tables keeps its logs and what it has not finished there.
    """
    for found in _search(folder, folder, ("**",), left_out):
        if any(part.startswith("_") for part in os.path.relpath(found.path, folder).split(os.sep)):
            left_out["underscored part"] += 1
        elif isinstance(found, Refused) or is_table(found.path):
            yield found
        else:
            left_out[_file_kind(found.path)] += 1


def match(pattern: str, left_out: Counter[str]) -> Iterator[Found | Refused]:
    """Yield the pictures and archives that match a pattern, in the order of `walk`.

    Between separators, *, ? and [...] mean what they mean in `fnmatch`. A part that is ** stands for any number of
    folders, or none. A folder that matches stands for the pictures in it and below it. Names that start with a dot
    match nothing. A link to a folder is followed only if it is named by a part of the pattern that is neither the last
    part nor **. Folders at the beginning that are there by their very names are these folders, whatever the names hold.
    If nothing after them holds *, ? or [, the pattern is the name of one file.

    Args:
        pattern: The pattern.
        left_out: Counts what is left out of folders that match, by kind.

    Raises:
        UsageError: Nothing matches.
        SourceError: The machine fails to list a folder.
    """
    parts = pattern.replace("/", os.sep).split(os.sep)
    patterns = (
        i for i, part in enumerate(parts) if glob.has_magic(part) and not os.path.isdir(os.sep.join(parts[: i + 1]))
    )
    if (first := next(patterns, None)) is None:
        yield Found(pattern, None)
        return
    top = os.sep.join([*parts[:first], ""])
    is_any = False
    for found in _search(os.path.dirname(top) or os.curdir, top, parts[first:], left_out):
        is_any = True
        yield found
    if not is_any:
        raise UsageError(f"{display_name(pattern)}: no picture, tar or Parquet file matches this pattern")


def _search(folder: str, prefix: str, parts: Sequence[str], left_out: Counter[str]) -> Iterator[Found | Refused]:
    """Yield what is below a folder and matches the parts of a pattern; every picture, if there are no parts.

    The search is an automaton over names. Its state is the numbers of the parts that may match the next name. Each
    pending name carries its own state.
    """
    end = len(parts)
    # The pending names are a stack, because folders may nest deeper than Python recurses.
    pending: list[_Name] = []

    def push(path: str, parent: str, states: frozenset[int], above: _Name | None = None) -> Iterator[Refused]:
        """Add the names in a folder, or yield the folder if it cannot be listed."""
        try:
            entries = _last_to_first(path, left_out if end in states else Counter())
            device = os.stat(path).st_dev
        except OSError as error:
            reason = f"this folder cannot be listed: {error.strerror}"
            if is_machine_fault(error):
                raise SourceError(f"{display_name(path)}: {reason}") from error
            yield Refused(path, f"{reason}; make it readable, or name only what is to be scored")
        else:
            top = above.top if above is not None and above.device == device else path
            pending.extend(_Name(parent, entry, states, top, device) for entry in entries)

    yield from push(folder, prefix, _or_none(0, parts))
    while pending:
        name = pending.pop()
        entry = name.entry
        path = os.path.join(name.parent, entry.name)
        matching = _step(name.before, entry.name, parts)
        now = matching | name.before & {end}  # everything below a folder that matched does, too
        if _is_folder(entry) and not (end in matching and is_table(path) and not entry.is_symlink()):
            if now and entry.is_symlink() and (end in now or _is_any(name.before, parts)):
                left_out["link to a folder"] += 1
            elif now:
                yield from push(path, path, now, name)
        elif end in (matching if is_archive(path) else now):
            yield Found(path, name.top)
        elif end in now:
            left_out[_file_kind(path)] += 1


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


def is_table(path: str) -> bool:
    """Return whether a folder is a table: its name ends in .parquet, and its files are the parts of one."""
    return path.lower().endswith(PARQUET_ENDING)


def _last_to_first(folder: str, left_out: Counter[str]) -> list[os.DirEntry[str]]:
    """Return the pictures, archives and folders directly in a folder, in reverse order, so that the first pops first.

    Hidden names and other files are left out. Those of them that look like pictures are counted.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_hidden, is_picture = entry.name.startswith("."), is_picture_name(entry.name)
            if not is_hidden and (is_picture or is_archive(entry.name) or _is_folder(entry)):
                found.append(entry)
            elif is_hidden and (is_picture or _is_folder(entry)):
                left_out["hidden folder" if _is_folder(entry) else "hidden picture"] += 1
            elif entry.name.lower().endswith(_UNREAD):
                left_out[_file_kind(entry.name)] += 1
    return sorted(found, key=lambda entry: os.fsencode(entry.name), reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether a name is that of a folder, or of a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as that of a link which leads to itself
        return False


def _file_kind(name: str) -> str:
    """Return what a file is counted as where it is left out."""
    unread = next((ending for ending in _UNREAD if name.lower().endswith(ending)), None)
    return f"{archive_ending(name) or unread or os.path.splitext(name)[1].lower()} file"
