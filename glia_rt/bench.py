"""The closed loop: how long calls take, and how many there are in a second, when each waits for the one before it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

#: Enough for compilations, for the capture of a CUDA graph, and for clocks to rise.
LEAST_WARM_UP_CALLS: Final = 5


@dataclass(frozen=True)
class Timings:
    """What a closed loop took.

    Attributes:
        calls: Seconds of each call, as the caller waited for them.
        elapsed: Seconds from the first call's beginning to the last one's end.
    """

    calls: tuple[float, ...]
    elapsed: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return len(self.calls) / self.elapsed

    def percentile(self, share: float) -> float:
        """Seconds within which `share` percent of the calls were done."""
        return float(np.percentile(self.calls, share))


def closed_loop(
    call: Callable[[], object],
    *,
    seconds: float,
    least: int = 10,
    warm_up: int = LEAST_WARM_UP_CALLS,
    callers: int = 1,
) -> Timings:
    """Call again and again, after a warm-up of a quarter of the time.

    Args:
        call: Ends when its work has: on a GPU it must wait for the result.
        seconds: No call begins later than this.
        least: Calls of each caller that are made however long they take.
        warm_up: Calls of each caller that the warm-up has, however long they take.
        callers: Threads that call at once; one is the thread that called `closed_loop`.

    Raises:
        Exception: Whatever `call` raises.
    """

    def repeat(seconds: float, least: int) -> list[tuple[float, float]]:
        """When each call began and ended."""
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
