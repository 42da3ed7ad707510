"""Whether one file is missing, which is a row, or all of them have gone, which ends a run.

A folder that pictures could be read from tells: on a disk that was unmounted it may still be there, with nothing in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Final

from glia_rt.errors import SourceError
from glia_rt.pixels.names import display_name

#: Folders that are remembered, or over so many rows of a run that goes on looked for.
FOLDERS: Final = 100_000


class Trail:
    """Folders that pictures could be read from. Shared by the threads that read."""

    def __init__(self, read_from: Iterable[str] = ()) -> None:
        self._folders = dict.fromkeys(read_from)  # the one read from last is the last
        self._lock = threading.Lock()

    def add(self, path: str) -> None:
        """Note that a picture could be read."""
        folder = os.path.dirname(path)
        with self._lock:
            self._folders.pop(folder, None)
            self._folders[folder] = None
            if len(self._folders) > FOLDERS:
                del self._folders[next(iter(self._folders))]

    def check(self, path: str, searched: str | None) -> None:
        """After a file could not be opened, look at its folder, if that was read from, and at the one read from last.

        Before anything was read: at the folder that was searched.

        Raises:
            SourceError: It has gone, or nothing is in it any more, or the system fails to list it.
        """
        own = os.path.dirname(path)
        with self._lock:
            last = next(reversed(self._folders), searched)
            folders = {folder for folder in (own if own in self._folders else None, last) if folder is not None}
        for folder in folders:
            self.require(folder)

    def require(self, folder: str) -> None:
        """Find out whether a folder is still there, with something in it; raises as `check` does."""
        try:
            with os.scandir(folder or os.curdir) as entries:
                reason = None if any(True for _ in entries) else "everything in it has gone"
        except (PermissionError, NotADirectoryError):
            return  # it may have been readable file by file; or rows of another run were named by a shard
        except OSError as error:
            reason = error.strerror or str(error)
        if reason is not None:
            raise SourceError(f"{display_name(folder)}: pictures can no longer be read from here: {reason}")
