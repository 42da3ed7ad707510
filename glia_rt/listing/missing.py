"""Whether one file is missing, which is a row, or all of them have gone, which ends a run.

A folder tells. For a picture that a search has found, it is the folder that was searched. For a picture that was named,
it is the folder that the picture lies in, if others could be read from there. On a disk that was unmounted the folder
may still be there, with nothing in it, or with what the disk had covered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from glia_rt.errors import SourceError
from glia_rt.pixels.names import display_name

#: Folders that are remembered, or over so many rows of a run that goes on looked for.
FOLDERS: Final = 100_000


class Trail:
    """Folders that pictures could be read from. Shared by the threads that read."""

    def __init__(self, read_from: Iterable[str] = ()) -> None:
        self._folders = dict.fromkeys(read_from)  # of pictures that were named; the one read from last is the last
        self._devices: dict[str, int] = {}  # of folders that were searched
        self._lock = threading.Lock()

    def add(self, path: str, searched: str | None) -> None:
        """Note that a picture could be read, which a search of `searched` had found, or which was named."""
        if searched is None:
            folder = os.path.dirname(path)
            with self._lock:
                self._folders.pop(folder, None)
                self._folders[folder] = None
                if len(self._folders) > FOLDERS:
                    del self._folders[next(iter(self._folders))]
        elif searched not in self._devices:
            with suppress(OSError):  # if it has gone by now, the next picture tells
                self._devices[searched] = os.stat(searched).st_dev

    def check(self, path: str, searched: str | None) -> None:
        """After a file could not be opened, find out whether more is missing than this file.

        Args:
            path: The file.
            searched: The folder whose search had found it; None if it was named.

        Raises:
            SourceError: The searched folder has gone, nothing is in it any more, another disk is there, or the system
                fails to list it. Or all this is so of the folder of a file that was named, and other files could be
                read from there; or nothing is in that folder, and it is so of the folder that was read from last.
        """
        if searched is not None:
            self.require(searched)
            return
        own = os.path.dirname(path)
        with self._lock:
            is_known, last = own in self._folders, next(reversed(self._folders), None)
        if is_known:
            self.require(own)
        elif last is not None and self._why_gone(own) is not None:
            self.require(last)

    def require(self, folder: str) -> None:
        """Find out whether a folder is still there, with something in it; raises as `check` does."""
        if (reason := self._why_gone(folder)) is not None:
            raise SourceError(
                f"{display_name(folder)}: pictures can no longer be read from here: {reason}; bring them back; or if "
                "they are gone for good, put any file there, and each becomes a row that says so"
            )

    def _why_gone(self, folder: str) -> str | None:
        try:
            with os.scandir(folder or os.curdir) as entries:
                if not any(True for _ in entries):
                    return "everything in it has gone"
            device = os.stat(folder or os.curdir).st_dev
        except (PermissionError, NotADirectoryError):
            return None  # it may have been readable file by file; or rows of another run were named by a shard
        except OSError as error:
            return error.strerror or str(error)
        return None if self._devices.get(folder, device) == device else "another disk is there"
