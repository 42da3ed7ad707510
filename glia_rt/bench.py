"""The closed loop: the time of each call, and the calls a second, when each call waits for the one before it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

#: Warm-up calls that are enough for compilations, for the capture of a CUDA graph, and for clocks to rise.
LEAST_WARM_UP_CALLS: Final = 5


@dataclass(frozen=True)
class Timings:
    """The timings of a closed loop.

    Attributes:
        calls: Seconds that the caller waited for each call.
        elapsed: Seconds from the beginning of the first call to the end of the last.
    """

    calls: tuple[float, ...]
    elapsed: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.calls) / self.elapsed

    def percentile(self, share: float) -> float:
        """Return the seconds within which `share` percent of the calls were done."""
        return float(np.percentile(self.calls, share))


def closed_loop(
    call: Callable[[], object],
    *,
    seconds: float,
    least: int = 10,
    warm_up: int = LEAST_WARM_UP_CALLS,
    callers: int = 1,
) -> Timings:
    """Return the timings of a call that is repeated, after a warm-up of a quarter of `seconds`.

    Args:
        call: Must end only when its work has ended. On a GPU it must wait for the result.
        seconds: No call begins later than this.
        least: Fewest calls of each caller, however long they take.
        warm_up: Fewest calls of each caller in the warm-up, however long they take.
        callers: Number of threads that call at once. A single caller is the thread that called `closed_loop`.

    Raises:
        Exception: Whatever `call` raises.
    """

    def repeat(seconds: float, least: int) -> list[tuple[float, float]]:
        """Return when each call began and ended, in seconds of `time.perf_counter`."""
        calls: list[tuple[float, float]] = []
        began = now = time.perf_counter()
        while len(calls) < least or now - began < seconds:
            call()
            before, now = now, time.perf_counter()
            calls.append((before, now))
        return calls

    with ThreadPoolExecutor(callers) as pool, _no_garbage_collection():
        at_once = pool.map if callers > 1 else map  # PyTorch's CUDA graphs belong to the thread that captured them
        list(at_once(lambda _: repeat(seconds / 4, warm_up), range(callers)))
        calls = [pair for pairs in at_once(lambda _: repeat(seconds, least), range(callers)) for pair in pairs]
    began, ended = (np.asarray(column) for column in zip(*calls, strict=True))
    return Timings(tuple((ended - began).tolist()), float(ended.max() - began.min()))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
