"""The closed loop: what it counts, in which threads it calls, and that it leaves the process as it was."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from glia_rt.bench import LEAST_WARM_UP_CALLS, Timings, closed_loop


def test_percentiles_and_rate() -> None:
    timings = Timings(calls=tuple(float(i) for i in range(101)), elapsed=202.0)
    assert [timings.percentile(share) for share in (50, 90, 99)] == [50, 90, 99]
    assert timings.rate == 0.5


def test_every_call_is_timed_whole() -> None:
    timings = closed_loop(lambda: time.sleep(0.004), seconds=0.05)
    assert min(timings.calls) >= 0.004
    assert len(timings.calls) >= 10
    assert timings.elapsed == pytest.approx(sum(timings.calls))
    assert timings.elapsed >= 0.05
    assert timings.rate == pytest.approx(1 / np.mean(timings.calls))


def test_the_warm_up_is_not_timed() -> None:
    calls = 0

    def first_calls_compile() -> None:
        nonlocal calls
        calls += 1
        if calls <= LEAST_WARM_UP_CALLS:
            time.sleep(0.2)

    timings = closed_loop(first_calls_compile, seconds=0.0, least=3)
    assert len(timings.calls) == 3
    assert calls == 3 + LEAST_WARM_UP_CALLS
    assert sum(timings.calls) < 0.2


def test_callers_call_at_once() -> None:
    both = threading.Barrier(2, timeout=10)  # which one caller alone would never pass
    timings = closed_loop(both.wait, seconds=0.0, least=4, callers=2)
    assert len(timings.calls) == 8
    assert timings.elapsed < sum(timings.calls)


def test_one_caller_is_this_thread() -> None:
    threads = set()
    closed_loop(lambda: threads.add(threading.get_ident()), seconds=0.0)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("callers", [1, 2])
def test_what_the_call_raises_comes_out(callers: int) -> None:
    def fail() -> None:
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        closed_loop(fail, seconds=0.01, callers=callers)
    assert gc.isenabled()


def test_no_garbage_is_collected_while_timing() -> None:
    enabled: set[bool] = set()
    closed_loop(lambda: enabled.add(gc.isenabled()), seconds=0.0)
    assert enabled == {False}
    assert gc.isenabled()
    gc.disable()
    try:
        closed_loop(lambda: None, seconds=0.0)
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()
