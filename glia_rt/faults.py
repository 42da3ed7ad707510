"""Whether the machine has failed, or a picture.

A picture that is damaged or missing stays so. A machine that is out of memory or of open files, or whose disk or
network fails, may read the same picture a moment later.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from glia_rt.errors import MachineError

_NAMES: Final = (
    "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EINTR",
    "EIO", "EMFILE", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENOBUFS", "ENODEV", "ENOLINK", "ENOMEM",
    "ENOSPC", "ENOTCONN", "ENXIO", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
)  # fmt: skip
#: Not every system has all of them.
_ERRNOS: Final = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))


def is_machine_fault(error: BaseException | None) -> bool:
    """Return whether an error is of the machine: a lack of memory, or a system call that failed for such a reason.

    An error that was caused by one of these is of the machine, too.
    """
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _ERRNOS):
            return True
        error = error.__cause__
    return False


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn a lack of memory or of threads into a MachineError about something."""
    try:
        yield
    except MemoryError as error:
        raise MachineError("out of memory", what) from error
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        raise MachineError(str(error), what) from error


class Gate:
    """Lets many threads work beside each other, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()  # the threads
        self._is_closed = False

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Wait until no thread is alone inside, and be inside beside others. Not to be nested."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._inside.add(threading.get_ident())
        try:
            yield
        finally:
            with self._changed:
                self._inside.discard(threading.get_ident())
                self._changed.notify_all()

    @contextmanager
    def stepped_out(self) -> Iterator[None]:
        """Count as outside while the block lasts.

        A thread that waits for memory steps out, so that it does not keep another one from being alone.
        """
        with self._changed:
            self._inside.discard(threading.get_ident())
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_closed)
                self._inside.add(threading.get_ident())

    def is_inside(self) -> bool:
        """Return whether this thread is inside beside others. If it is, it would wait for ever to be alone."""
        with self._changed:
            return threading.get_ident() in self._inside

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other thread is inside, and be alone inside."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._inside)
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()
