"""The pipeline of many pictures through an engine: decode in threads, run batches, give results in order.

Both stages are `ordered_map` over a thread pool, with a bounded number of calls ahead. Memory therefore does not grow
with the number of pictures. Closing the iterator early ends both pools.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from glia_rt.budget import Budget, Reserve, Share
from glia_rt.errors import BackendError, MachineError
from glia_rt.faults import Gate, reported
from glia_rt.results import Result
from glia_rt.samples import Found, Inputs, Known, Sample, stack

Source = TypeVar("Source")
Out = TypeVar("Out")


#: While encoded pictures of more than this many bytes are held, no more are pulled ahead.
MAX_BYTES_AHEAD: Final = 1 << 28
#: Known results that wait until it is known whether the machine has failed for good.
_MOST_WAITING: Final = 10_000


#: That, and the memory that the picture may still hold.
_Read: TypeAlias = tuple[Found, Share]


def score_stream(
    sources: Iterable[Source],
    *,
    read: Callable[[Source, Reserve], Found],
    run: Callable[[Inputs], npt.NDArray[np.float32]],
    batch_size: int,
    parallel: int,
    workers: int,
    memory: int,
    whole_pictures: bool = False,
    size: Callable[[Source], int] = lambda _: 0,
) -> Generator[Result]:
    """Score pictures lazily, in order. Closing the generator early ends its threads.

    Args:
        sources: What to read. Sources are pulled only as far ahead as the engine needs.
        read: Source -> sample, or the result of a picture that cannot be read, or one that is known. Called in
            `workers` threads. Before it decodes, it calls what it is given with the bytes that this takes. If it raises
            MachineError, it is called once more, while nothing else is read or run.
        run: Inputs (N, ...) -> scores, float32 (N,). Called in threads: `parallel` calls at once, and one more waits.
        batch_size: N of every call of `run`. A shorter batch is padded, so that no score depends on the other pictures
            of its batch. Whole pictures are not padded: N is at most so many.
        parallel: Number of calls of `run` that are of use at once.
        workers: Number of threads that read.
        memory: Bytes that pictures may take while they are decoded. Larger ones are decoded one by one.
        whole_pictures: The inputs of samples are whole pictures, of different sizes, which hold their memory until they
            are scored. Those of one size share a run.
        size: Source -> bytes that it holds until it is read.

    Yields:
        A result for each source.

    Raises:
        BackendError: The engine failed, or gave a score that is not finite.
        MachineError: `read` raised it for two sources in a row, both times. Neither has a result then.
    """
    gate, budget = Gate(), Budget(memory)

    def read_gently(item: tuple[Source, Share]) -> _Read:
        source, share = item

        def reserve(taken: int) -> None:
            with gate.stepped_out():
                share.take(taken)

        try:
            try:
                with gate.beside_others():
                    result = read(source, reserve)
            except MachineError:
                with gate.alone():
                    result = read(source, partial(share.take, waits=False))
        except MachineError as error:
            result = Result(error.name, None, "machine_error", error.reason, None, None)
        if not whole_pictures or not isinstance(result, Sample):
            share.release()
        return result, share

    def wanted(samples: Iterator[_Read]) -> Iterator[_Read]:
        while True:
            if whole_pictures:
                budget.want_next()
            try:
                yield next(samples)
            except StopIteration:
                return

    def score(batch: Sequence[_Read]) -> list[Result | Known]:
        with gate.beside_others(), reported("a batch"):
            scored = _score_batch([one for one, _ in batch], run, None if whole_pictures else batch_size)
        for _, share in batch:
            share.release()
        return scored

    shared = ((source, budget.share()) for source in sources)
    with (
        ThreadPoolExecutor(workers, "glia-read") as readers,
        ThreadPoolExecutor(parallel + 1, "glia-run") as runners,
        _all_started(readers, workers),
        _all_started(runners, parallel + 1),
        closing(budget),  # before the threads are waited for, which may wait for it
        # Samples are read far enough ahead to fill a batch while the engine works on others.
        closing(
            ordered_map(readers, read_gently, shared, ahead=batch_size + workers, size=lambda item: size(item[0]))
        ) as samples,
        closing(_batches(wanted(samples), batch_size, memory // (parallel + 2))) as batches,
        closing(ordered_map(runners, score, batches, ahead=parallel + 1)) as scored,
    ):
        yield from _until_the_machine_fails(result for results in scored for result in results)


@contextmanager
def _all_started(pool: ThreadPoolExecutor, count: int) -> Iterator[None]:
    """Start all threads of a pool before the block: later there may be no memory for them.

    Raises:
        MachineError: One cannot be started.
    """
    together = threading.Barrier(count)
    try:
        for _ in range(count):
            pool.submit(together.wait)
    except RuntimeError as error:
        together.abort()
        raise MachineError(f"{error}: take fewer --workers", "the threads") from error
    yield


def _until_the_machine_fails(results: Iterable[Result | Known]) -> Iterator[Result]:
    """Yield results. One of a machine that failed waits for the next that was read.

    That one says whether the machine has failed for good.

    Raises:
        MachineError: Two in a row of those that were read are of a machine that failed. Neither is yielded.
    """
    waiting: list[Result] = []  # one of a machine that failed, and the known ones behind it
    for found in results:
        is_read = isinstance(found, Result)
        result = found if isinstance(found, Result) else found.result
        if waiting and is_read:
            if result.status == "machine_error":
                raise MachineError(f"{waiting[0].error}, and so for the next picture", waiting[0].path)
            yield from waiting
            waiting = []
        if waiting or (is_read and result.status == "machine_error"):
            waiting.append(result)
            if len(waiting) <= _MOST_WAITING:
                continue
            yield from waiting
            waiting = []
        else:
            yield result
    yield from waiting


def ordered_map(
    pool: ThreadPoolExecutor,
    call: Callable[[Source], Out],
    items: Iterable[Source],
    *,
    ahead: int,
    size: Callable[[Source], int] = lambda _: 0,
) -> Generator[Out]:
    """Yield the results of `map(call, items)`, computed in a pool, lazily and in order.

    At most `ahead` calls are begun beyond the one yielded. Fewer are begun while the items whose calls are not done
    hold more than `MAX_BYTES_AHEAD` by `size`. An error of `items` itself is raised after the results of all items
    before it. Closing the iterator, or an error, drops the calls that have not begun.
    """
    pending: deque[tuple[Future[Out], int]] = deque()
    iterator = iter(items)
    ended: Exception | None = None
    try:
        while True:
            while ended is None and len(pending) <= ahead and _held(pending) <= MAX_BYTES_AHEAD:
                try:
                    item = next(iterator)
                    pending.append((pool.submit(call, item), size(item)))
                    del item
                except Exception as error:  # noqa: BLE001 - StopIteration, or an error of `items`, raised in its turn
                    ended = error
            if not pending:
                break
            yield pending.popleft()[0].result()
        if ended is not None and not isinstance(ended, StopIteration):
            raise ended
    finally:
        for future, _ in pending:
            future.cancel()


def _held(pending: Iterable[tuple[Future[Out], int]]) -> int:
    return sum(size for future, size in pending if size and not future.done())


def _batches(samples: Iterable[_Read], batch_size: int, most_bytes: int) -> Generator[list[_Read]]:
    """Yield batches of at most `batch_size` samples, which end when their shares hold `most_bytes`.

    The results of pictures that cannot be read stay in their places between the samples.
    """
    batch: list[_Read] = []
    count = size = 0
    try:
        for sample, share in samples:
            batch.append((sample, share))
            if isinstance(sample, Sample):
                count, size = count + 1, size + share.held
            # The batch is full. Or it has so many unreadable pictures that the other results would wait too long.
            if count == batch_size or len(batch) == 4 * batch_size or size >= most_bytes:
                yield batch
                batch, count, size = [], 0, 0
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _score_batch(
    batch: Sequence[Found], run: Callable[[Inputs], npt.NDArray[np.float32]], padded: int | None
) -> list[Result | Known]:
    """Return the results of a batch. Samples of one shape share a run, padded to `padded` pictures if given."""
    by_shape: dict[tuple[tuple[int, ...], ...], list[Sample]] = {}
    for one in batch:
        if isinstance(one, Sample):
            by_shape.setdefault(tuple(array.shape for array in one.inputs.values()), []).append(one)
    results: dict[int, Result] = {}
    for samples in by_shape.values():
        scores = check_finite(run(stack([sample.inputs for sample in samples], padded))[: len(samples)])
        for sample, score in zip(samples, scores.tolist(), strict=True):
            results[id(sample)] = Result(sample.path, score, "ok", None, sample.width, sample.height)
    return [results[id(one)] if isinstance(one, Sample) else one for one in batch]


def check_finite(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the scores if all are finite.

    Raises:
        BackendError: A score is not finite, because the arithmetic overflowed.
    """
    if not np.isfinite(scores).all():
        raise BackendError("the engine gave a score that is not finite; take --precision fp32, and export again")
    return scores
