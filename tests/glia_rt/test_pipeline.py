from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from glia_rt.budget import Reserve
from glia_rt.errors import BackendError, MachineError
from glia_rt.pipeline import ordered_map, score_stream
from glia_rt.results import Result
from glia_rt.samples import Found, Inputs, Known, Sample, stack

Scores = npt.NDArray[np.float32]

#: Longer than anything here should take; a test that reaches it fails.
LIMIT = 20.0


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


#: More than anything here should pull; not endless, so that what pulls it all fails and does not hang.
PLENTY = 5000


class Counter:
    """Source of 0, 1, 2... that knows how far it was read, and may end in an error."""

    def __init__(self, end: int = PLENTY, error: Exception | None = None) -> None:
        self.pulled = 0
        self._end, self._error = end, error

    def __iter__(self) -> Iterator[int]:
        for i in range(self._end):
            self.pulled += 1
            yield i
        if self._error:
            raise self._error


# ordered_map


def test_results_come_in_order_however_long_each_takes() -> None:
    delays = random.Random(0)

    def call(i: int) -> int:
        time.sleep(delays.random() / 200)
        return i * i

    with ThreadPoolExecutor(8) as pool:
        assert list(ordered_map(pool, call, range(100), ahead=20)) == [i * i for i in range(100)]


def test_calls_run_at_once() -> None:
    together = threading.Barrier(4, timeout=LIMIT)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(ordered_map(pool, lambda _: together.wait(), range(8), ahead=4))) == 8


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_items_are_pulled_as_far_ahead_as_asked_and_no_further(ahead: int) -> None:
    items = Counter()
    with ThreadPoolExecutor(2) as pool:
        results = ordered_map(pool, lambda i: i, items, ahead=ahead)
        assert items.pulled == 0, "lazy until the first result is asked for"
        for i in range(10):
            assert next(results) == i
            assert items.pulled == i + 1 + ahead
        results.close()
        assert items.pulled == 10 + ahead


@pytest.mark.parametrize("end", [0, 1, 3, 30])
def test_an_error_of_the_items_comes_after_the_results_of_those_before(end: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = ordered_map(pool, lambda i: i, Counter(end, OSError("disk")), ahead=5)
        assert [next(results) for _ in range(end)] == list(range(end))
        with pytest.raises(OSError, match="disk"):
            next(results)


def test_an_error_of_a_call_comes_at_its_place_and_drops_what_has_not_begun() -> None:
    begun, go = [], threading.Event()

    def call(i: int) -> int:
        begun.append(i)
        if i == 3:
            go.wait(LIMIT)
            raise ValueError(f"item {i}")
        time.sleep(0.05 if i > 3 else 0)
        return i

    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, call, range(100), ahead=50)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        go.set()
        with pytest.raises(ValueError, match="item 3"):
            next(results)
    assert len(begun) < 10


def test_an_error_of_the_items_keeps_its_place_in_the_source() -> None:
    """Where it was raised is what one needs to mend it."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="disk") as caught:
        list(ordered_map(pool, lambda i: i, Counter(2, OSError("disk")), ahead=5))
    assert caught.traceback[-1].name == "__iter__"


def test_fewer_large_items_are_pulled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts are those that no call is done with: here the first holds up the one thread."""
    monkeypatch.setattr("glia_rt.pipeline.MAX_BYTES_AHEAD", 1000)
    items, go = Counter(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, lambda i: go.wait(LIMIT), items, ahead=50, size=lambda i: 300)
        threading.Timer(0.2, go.set).start()
        assert next(results)
        assert items.pulled == 4
        assert all(itertools.islice(results, 40))
        assert 40 < items.pulled <= 92
        results.close()


# score_stream


def pixels(i: int, shape: tuple[int, int] = (2, 2)) -> npt.NDArray[np.uint8]:
    return np.full((*shape, 3), i % 256, np.uint8)


def read(i: int) -> Sample | Result:
    return Sample(str(i), 20 + i, 10 + i, {"image": pixels(i)})


def bad(i: int) -> Result:
    return Result(str(i), None, "bad_image", "why not", None, None)


def run(inputs: Inputs) -> Scores:
    """An engine whose score of a picture is its grey level."""
    return inputs["image"][:, 0, 0, 0].astype(np.float32)


def stream(sources: Any, **changes: Any) -> Generator[Result]:
    options: dict[str, Any] = {"run": run, "batch_size": 4, "parallel": 2, "workers": 3, "memory": 1 << 30}
    read_one = changes.pop("read", read)

    def read_within(source: Any, reserve: Reserve) -> Found:
        found = read_one(source)
        if isinstance(found, Sample):
            reserve(sum(array.nbytes for array in found.inputs.values()))
        return found

    return score_stream(sources, read=read_within, **(options | changes))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 33])
def test_every_source_has_its_result_in_order(count: int) -> None:
    assert list(stream(range(count))) == [Result(str(i), i, "ok", None, 20 + i, 10 + i) for i in range(count)]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_every_run_is_of_one_size_filled_up_with_black(count: int) -> None:
    seen = []

    def watched(inputs: Inputs) -> Scores:
        seen.append(inputs["image"])
        return run(inputs)

    list(stream(range(1, count + 1), run=watched, parallel=1))
    assert {batch.shape for batch in seen} == {(4, 2, 2, 3)}
    levels = np.concatenate(sorted(seen, key=lambda batch: int(batch[0, 0, 0, 0])))[:, 0, 0, 0].tolist()
    assert levels == [*range(1, count + 1), *[0] * (len(levels) - count)]


@pytest.mark.parametrize("bad_ones", [{0}, {9}, {3, 4}, {4, 5, 6, 7}, {0, 1, 2, 3, 4, 5}, set(range(10))])
def test_what_cannot_be_read_is_a_row_at_its_place(bad_ones: set[int]) -> None:
    sizes = []

    def watched(inputs: Inputs) -> Scores:
        sizes.append(len(inputs["image"]))
        return run(inputs)

    results = list(stream(range(10), read=lambda i: bad(i) if i in bad_ones else read(i), run=watched))
    assert results == [bad(i) if i in bad_ones else Result(str(i), i, "ok", None, 20 + i, 10 + i) for i in range(10)]
    assert sizes == [4] * -(-(10 - len(bad_ones)) // 4), "bad pictures take no place in a batch"


def test_nothing_but_bad_pictures_still_gives_rows() -> None:
    sources = Counter()
    results = stream(sources, read=bad)
    assert [next(results).path for _ in range(50)] == [str(i) for i in range(50)]
    assert sources.pulled < 50 + 100
    results.close()


def test_bad_pictures_do_not_hold_the_others_back() -> None:
    sources = Counter()
    results = stream(sources, read=lambda i: bad(i) if i else read(i))
    assert next(results).score == 0
    assert sources.pulled < 100
    results.close()


def test_an_error_of_the_source_comes_after_every_earlier_result() -> None:
    results = stream(Counter(10, OSError("disk")))
    assert [next(results).path for _ in range(10)] == [str(i) for i in range(10)]
    with pytest.raises(OSError, match="disk"):
        next(results)


@pytest.mark.parametrize("at", [0, 5, 30])
def test_an_error_while_reading_or_running_comes_out(at: int) -> None:
    def fail(i: int) -> Sample | Result:
        if i == at:
            raise RuntimeError(f"picture {i}")
        return read(i)

    def break_down(inputs: Inputs) -> Scores:
        if at in run(inputs):
            raise BackendError("out of memory")
        return run(inputs)

    with pytest.raises(RuntimeError, match=f"picture {at}"):
        list(stream(Counter(), read=fail))
    with pytest.raises(BackendError, match="out of memory"):
        list(stream(Counter(), run=break_down))


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(score: float) -> None:
    def overflow(inputs: Inputs) -> Scores:
        return np.where(run(inputs) == 5, np.float32(score), run(inputs))

    with pytest.raises(BackendError, match="not finite"):
        list(stream(range(8), run=overflow))


def test_only_scores_that_are_used_need_be_finite() -> None:
    """What an engine makes of the black pictures that fill up a batch is nobody's score."""

    def overflow(inputs: Inputs) -> Scores:
        return np.where(run(inputs) == 0, np.float32(np.nan), run(inputs))

    assert [result.score for result in stream(range(1, 3), run=overflow)] == [1, 2]


def test_the_engine_works_on_several_batches_at_once() -> None:
    together = threading.Barrier(3, timeout=LIMIT)

    def meet(inputs: Inputs) -> Scores:
        together.wait()
        return run(inputs)

    assert len(list(stream(range(24), run=meet, parallel=3))) == 24


def test_a_slow_engine_holds_the_reader_back() -> None:
    """What is in memory does not grow with what is to come."""
    sources, go, waiting = Counter(200), threading.Event(), threading.Semaphore(0)

    def slow(inputs: Inputs) -> Scores:
        waiting.release()
        assert go.wait(LIMIT)
        return run(inputs)

    def free() -> None:
        waiting.acquire()
        time.sleep(0.2)  # time to run ahead, if anything would
        pulled.append(sources.pulled)
        go.set()

    pulled: list[int] = []
    freeing = threading.Thread(target=free)
    freeing.start()
    assert len(list(stream(sources, run=slow))) == 200
    freeing.join()
    # Four batches of 4 at the engine or waiting for it; of those after them a batch, and one a worker, being read.
    assert pulled == [4 * 4 + 4 + 3]


def test_a_slow_consumer_holds_everything_back() -> None:
    sources = Counter()
    results = stream(sources)
    for i in range(40):
        assert next(results).path == str(i)
        assert sources.pulled <= i + 40
    time.sleep(0.05)
    assert sources.pulled <= 40 + 40
    results.close()


def test_closing_early_reads_no_more() -> None:
    begun = Counter()

    def slow(i: int) -> Sample | Result:
        begun.pulled += 1
        time.sleep(0.1 if i >= 130 else 0)
        return read(i)

    results = stream(Counter(), read=slow, batch_size=30)
    next(results)
    before = begun.pulled
    results.close()
    assert begun.pulled <= before + 3, "only what a worker held already"


def test_an_iterator_that_is_never_begun_costs_nothing() -> None:
    sources = Counter()
    stream(sources)
    assert sources.pulled == 0


def test_stack() -> None:
    samples = [{"a": pixels(1), "b": pixels(2)}, {"a": pixels(3), "b": pixels(4)}]
    exact, filled = stack(samples), stack(samples, 3)
    assert {name: array[:, 0, 0, 0].tolist() for name, array in exact.items()} == {"a": [1, 3], "b": [2, 4]}
    assert {name: array[:, 0, 0, 0].tolist() for name, array in filled.items()} == {"a": [1, 3, 0], "b": [2, 4, 0]}
    assert filled["a"].shape == (3, 2, 2, 3)
    assert filled["a"].dtype == np.uint8


# Memory, and whole pictures


def watched_shapes(shapes: list[tuple[int, int]], **changes: Any) -> list[tuple[int, ...]]:
    """The shapes of all runs over whole pictures."""
    seen: list[tuple[int, ...]] = []

    def watched(inputs: Inputs) -> Scores:
        seen.append(inputs["image"].shape[:3])
        return run(inputs)

    def shaped(i: int) -> Sample | Result:
        return Sample(str(i), 1, 1, {"image": pixels(i, shapes[i])})

    results = stream(range(len(shapes)), read=shaped, run=watched, whole_pictures=True, **changes)
    assert [result.score for result in results] == list(range(len(shapes)))
    return sorted(seen)


def test_whole_pictures_of_one_size_share_a_run_and_others_run_alone() -> None:
    shapes = [(2, 2), (3, 2), (2, 2), (2, 2), (2, 2), (5, 1), (7, 1), (7, 2), (7, 1)]
    expected = [(3, 2, 2), (1, 3, 2), (1, 2, 2), (1, 5, 1), (1, 7, 1), (1, 7, 2), (1, 7, 1)]
    assert watched_shapes(shapes) == sorted(expected)


def test_large_pictures_are_not_put_into_one_run() -> None:
    """Pictures of a batch take a share of the memory: here a picture takes 300 bytes, and the share has 400."""
    assert watched_shapes([(10, 10)] * 8, memory=400 * 4) == [(2, 10, 10)] * 4


@pytest.mark.parametrize("whole_pictures", [False, True])
@pytest.mark.parametrize("memory", [1, 1000, 2500])
def test_what_is_decoded_at_once_is_within_the_memory(whole_pictures: bool, memory: int) -> None:
    """One picture goes on in any case. Whole pictures count until they are scored; then the next one goes on, too."""
    lock, held, most = threading.Lock(), 0, 0

    def decode(i: int, reserve: Reserve) -> Sample | Result:
        nonlocal held, most
        time.sleep(0.001 * (i % 3))
        reserve(1000)
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.002)
        if not whole_pictures:
            with lock:
                held -= 1
        return read(i) if i % 5 else bad(i)

    results = score_stream(
        range(60), read=decode, run=run, batch_size=4, parallel=2, workers=8, memory=memory,
        whole_pictures=whole_pictures,
    )  # fmt: skip
    assert [result.path for result in results] == [str(i) for i in range(60)]
    if not whole_pictures:
        assert most == max(1, memory // 1000)


def test_a_machine_that_fails_while_others_wait_for_memory() -> None:
    """What is read again alone does not wait for what waits."""
    failed: set[int] = set()

    def decode(i: int, reserve: Reserve) -> Sample | Result:
        time.sleep(0.001 * (i % 4))
        reserve(1000)
        if i % 7 == 3 and i not in failed:
            failed.add(i)
            raise MachineError("out of memory", str(i))
        return read(i)

    for whole_pictures in (False, True):
        failed.clear()
        results = score_stream(
            range(50), read=decode, run=run, batch_size=4, parallel=2, workers=8, memory=1000,
            whole_pictures=whole_pictures,
        )  # fmt: skip
        assert [result.score for result in results] == list(range(50))


def test_known_results_say_nothing_of_the_machine() -> None:
    """Here all but the rows known before fail, as on a disk that is dead."""

    def dead(i: int, _: Reserve) -> Found:
        if i % 3:
            return Known(bad(i) if i % 2 else Result(str(i), None, "machine_error", "before", None, None))
        raise MachineError("Input/output error", str(i))

    results = score_stream(range(30), read=dead, run=run, batch_size=4, parallel=2, workers=3, memory=1 << 30)
    with pytest.raises(MachineError, match="0: Input/output error, and so for the next picture"):
        list(results)

    def once(i: int, reserve: Reserve) -> Found:
        return dead(i, reserve) if i % 3 or i == 9 else read(i)

    results = score_stream(range(30), read=once, run=run, batch_size=4, parallel=2, workers=3, memory=1 << 30)
    assert [result.path for result in results] == [str(i) for i in range(30)]


def test_a_stream_that_is_closed_does_not_wait_for_memory() -> None:
    def decode(i: int, reserve: Reserve) -> Sample | Result:
        reserve(1000)
        return read(i)

    results = score_stream(
        itertools.count(), read=decode, run=run, batch_size=4, parallel=2, workers=8, memory=1000, whole_pictures=True
    )
    assert next(results).score == 0
    results.close()
