"""Pictures in folders: all those below a folder, or those that match a pattern.

They are listed lazily, in an order that depends on names alone.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from glia_rt.errors import SourceError, UsageError
from glia_rt.faults import is_machine_fault
from glia_rt.listing.pieces import PARQUET_ENDING, Refused, is_archive
from glia_rt.pixels.names import UNREAD_PICTURES, display_name, is_picture_name


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
        if not os.path.isdir(path):
            yield os.fspath(path)
            continue
        for found in walk(os.fspath(path), Counter()):
            if isinstance(found, Refused):
                raise UsageError(f"{display_name(found.path)}: {found.reason}")
            yield found


def walk(folder: str, left_out: Counter[str]) -> Iterator[str | Refused]:
    """Yield every picture in a folder and below it. A folder in it that cannot be listed is refused.

    - A picture is a name with the extension of a format that Pillow decodes, in upper or lower case. A folder, or a
      link to one, is not a picture.
    - Files and subfolders are sorted together, by the bytes of their names (`os.fsencode`).
    - Names that start with a dot are left out.
    - Links to folders are not followed, because they can form cycles.

    Args:
        folder: The folder.
        left_out: Counts what is left out, by kind.

    Raises:
        UsageError: The folder itself cannot be listed.
        SourceError: The machine fails to list a folder.
    """
    return _search(folder, folder, (), left_out)


def match(pattern: str, left_out: Counter[str]) -> Iterator[str | Refused]:
    """Yield the pictures and archives that match a pattern, in the order of `walk`.

    Between separators, *, ? and [...] mean what they mean in `fnmatch`. A part that is ** stands for any number of
    folders, or none. A folder that matches stands for the pictures in it and below it. Names that start with a dot
    match nothing. A link to a folder is followed only if it is named by a part of the pattern that is neither the last
    part nor **. Folders at the beginning that are there by their very names are these folders, whatever the names hold.

    Args:
        pattern: The pattern.
        left_out: Counts what is left out of folders that match, by kind.

    Raises:
        UsageError: The first folder cannot be listed, or nothing matches.
        SourceError: The machine fails to list a folder.
    """
    parts = pattern.replace("/", os.sep).split(os.sep)
    first = next(
        i for i, part in enumerate(parts) if glob.has_magic(part) and not os.path.isdir(os.sep.join(parts[: i + 1]))
    )
    top = os.sep.join([*parts[:first], ""])
    found = False
    for path in _search(top or os.curdir, top, parts[first:], left_out):
        found = True
        yield path
    if not found:
        raise UsageError(f"{display_name(pattern)}: no picture, tar or Parquet file matches this pattern")


def _search(folder: str, prefix: str, parts: Sequence[str], left_out: Counter[str]) -> Iterator[str | Refused]:
    """Yield what is below a folder and matches the parts of a pattern; every picture, if there are no parts.

    The search is an automaton over names. Its state is the numbers of the parts that may match the next name. Each
    pending name carries its own state.
    """
    end = len(parts)
    # The pending names are a stack, because folders may nest deeper than Python recurses.
    try:
        first = _or_none(0, parts)
        pending = [(prefix, entry, first) for entry in _last_to_first(folder, left_out if end in first else None)]
    except OSError as error:
        raise UsageError(f"{display_name(folder)}: {_why_not_listed(error)}") from error
    while pending:
        parent, entry, before = pending.pop()
        path = os.path.join(parent, entry.name)
        matching = _step(before, entry.name, parts)
        now = matching | before & {end}  # everything below a folder that matched does, too
        is_folder = os.path.isdir(path) if entry.is_symlink() else entry.is_dir()
        if is_folder and not (end in matching and is_table(path)):
            if now and entry.is_symlink() and (end in now or _is_any(before, parts)):
                left_out["link to a folder"] += 1
            elif now:
                try:
                    pending += [(path, inner, now) for inner in _last_to_first(path, left_out if end in now else None)]
                except OSError as error:
                    if is_machine_fault(error):
                        raise SourceError(f"{display_name(path)}: {_why_not_listed(error)}") from error
                    yield Refused(path, _why_not_listed(error))
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


def is_table(path: str) -> bool:
    """Return whether a folder is a table: its name ends in .parquet, and its files are the parts of one."""
    return path.lower().endswith(PARQUET_ENDING)


def _last_to_first(folder: str, left_out: Counter[str] | None) -> list[os.DirEntry[str]]:
    """Return the pictures, archives and folders directly in a folder, in reverse order, so that the first pops first.

    Hidden names and other files are left out. Those of them that look like pictures are counted, unless a pattern is
    still to say which names of the folder are meant.
    """
    left_out = Counter() if left_out is None else left_out
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_hidden, is_picture = entry.name.startswith("."), is_picture_name(entry.name)
            if not is_hidden and (is_picture or is_archive(entry.name) or os.path.isdir(entry)):
                found.append(entry)
            elif is_hidden and (is_picture or entry.is_dir()):
                left_out["hidden folder" if entry.is_dir() else "hidden picture"] += 1
            elif (ending := os.path.splitext(entry.name)[1].lower()) in UNREAD_PICTURES:
                left_out[f"{ending} file"] += 1
    return sorted(found, key=lambda entry: os.fsencode(entry.name), reverse=True)


def _why_not_listed(error: OSError) -> str:
    return f"this folder cannot be listed: {error.strerror}; make it readable, or name only what is to be scored"
