"""A budget of memory that pictures share while they are decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from glia_rt.machine import memory_left

#: Called with the bytes that a picture takes, before it takes them; it may wait.
Reserve = Callable[[int], None]


class NoRoomError(MemoryError):
    """A picture takes more memory than the machine has."""


class Budget:
    """Bytes that may be held at once, by threads. A picture that is over the budget goes on alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._most = memory_left()
        self._held = 0
        self._shares = 0
        self._wanted = -1
        self._changed = threading.Condition()
        self._is_closed = False

    def share(self) -> Share:
        """Return the share of the next picture, which holds nothing yet."""
        self._shares += 1
        return Share(self, self._shares - 1)

    @contextmanager
    def hold(self) -> Iterator[Reserve]:
        """Yield what reserves bytes until the block ends."""
        share = self.share()
        try:
            yield share.take
        finally:
            share.release()

    def want_next(self) -> None:
        """Let the oldest picture that is not yet taken go on, whatever is held.

        Results leave in order. If that picture waited for room, it would wait for pictures that are behind it.
        """
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


class Share:
    """What one picture holds of a budget."""

    def __init__(self, budget: Budget, number: int) -> None:
        self._budget = budget
        self._number = number
        self._held = 0

    def take(self, size: int, *, waits: bool = True) -> None:
        """Hold so many bytes, in place of those held before; wait until there is room.

        Raises:
            CancelledError: The budget is closed.
            NoRoomError: The machine, or the container, has less memory. The system would end the process.
        """
        self.release()
        budget = self._budget
        if size > budget._most:
            raise NoRoomError(
                f"decoding takes up to {size / 1e6:,.0f} MB, and {budget._most / 1e6:,.0f} MB are left: score it where "
                "there is more memory"
            )
        with budget._changed:
            budget._changed.wait_for(lambda: budget._is_closed or not waits or self._fits(size))
            if budget._is_closed:
                raise CancelledError
            budget._held += size
            self._held = size

    @property
    def held(self) -> int:
        """Bytes that it holds."""
        return self._held

    def release(self) -> None:
        """Hold nothing any more."""
        with self._budget._changed:
            self._budget._held -= self._held
            self._held = 0
            self._budget._changed.notify_all()

    def _fits(self, size: int) -> bool:
        budget = self._budget
        return not budget._held or budget._held + size <= budget._size or self._number <= budget._wanted
