"""What the backends on NVIDIA GPUs share: memory on the host and on the GPU, streams, and their synchronisation.

A lane is a stream with memory of its own. There are two lanes. While one lane computes, the other copies its next batch
to the GPU or its last scores back. A call of `run` takes a free lane, so the pipeline calls `run` from as many threads
as there are lanes.

Batches are padded to a few sizes, because a context or a captured CUDA graph that an engine prepares is for one shape
at one address. Arrays that are on the GPU already are therefore copied, too, within the GPU: a copy takes microseconds,
and a run without a CUDA graph takes milliseconds longer.

The runs of a lane follow each other, so they share its memory, whatever their sizes: a block on the GPU for the inputs
and the scores of the largest batch so far, a pinned one on the host that is laid out alike, and the engine's scratch.

Every call makes its GPU the current one of the thread and restores the one that was current before.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from glia_rt.backends.base import why_not_importable
from glia_rt.backends.cuda.arrays import GpuArray, on_gpu
from glia_rt.backends.cuda.device import Gpu, why_no_gpu
from glia_rt.contract import IMAGE, SCORE, Contract, GraphKind
from glia_rt.errors import BackendError, UsageError

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream

    from glia_rt.backends.cuda.views import CudaViews

LANES: Final = 2
_ALIGNMENT: Final = 256
_SCORE_SIZE: Final = np.dtype(np.float32).itemsize
#: Shapes of batch that a lane keeps ready, by the graph's input. The contract's inputs have about eight shapes, one for
#: each padded batch size. With decoded pictures, every size of picture is another shape.
_SHAPES: Final[Mapping[str, int]] = {"views": 16, "image": 2}

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


class Engine(Protocol):
    """A loaded engine.

    Attributes:
        batches: Smallest and largest batch that it takes.
        scratch: Bytes on the GPU that a run needs beside its inputs and scores. 0 for an engine that allocates them.
    """

    batches: tuple[int, int]
    scratch: int

    def prepare(self, shapes: Shapes, addresses: Addresses, scratch: int, stream: Stream) -> Callable[[], None]:
        """Prepare to run repeatedly on inputs of these shapes at these addresses.

        Args:
            shapes: Shape of each input, with N.
            addresses: Address on the GPU of each input, uint8, and of `SCORE`, float32 (N,), which a run writes.
            scratch: Address on the GPU of `scratch` bytes. All runs on this stream share them.
            stream: The stream to run on.

        Returns:
            A function that starts one run on the stream and does not wait for it.
        """

    def keep(self) -> None:
        """Keep what was compiled since the engine was loaded, so that the next start finds it."""

    def close(self) -> None:
        """Free the engine. All runs have ended before this call."""


class GpuBackend:
    """An engine on a GPU as a `Backend`. Threads may share it."""

    parallel = LANES

    def __init__(
        self,
        name: str,
        precision: str,
        engine: Engine,
        gpu: Gpu,
        contract: Contract,
        input: GraphKind,
        batch_size: int,
        library: str,
    ) -> None:
        self.name = name
        self.precision = precision
        self.library = library
        self.device = f"cuda:{gpu.index} ({gpu.name})"
        self.device_type = gpu.name
        self.batch_size = batch_size
        self._engine = engine
        self._contract = contract
        self._input = input
        self._shapes = contract.shapes(input)
        self._sizes = padded_sizes(*engine.batches, batch_size)
        self._idle: queue.SimpleQueue[_Lane | None] = queue.SimpleQueue()
        self._taking_all = threading.Lock()  # two threads that had a lane each would wait for each other
        self._views: CudaViews | None = None
        with cuda_errors(self.name, self.batch_size):
            from cuda.core import Device

            self._device = Device(gpu.index)
            with current(self._device):
                for _ in range(LANES):
                    self._idle.put(_Lane(self._device, engine, _SHAPES[input]))

    def run(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Score a batch; see `Backend.run`.

        The inputs may also be arrays on the GPU, with DLPack or `__cuda_array_interface__`, of any number of pictures.
        They are copied within the GPU, and run in batches of `batch_size`. All inputs must then be on the GPU.
        """
        if len(counts := {array.shape[0] for array in inputs.values()}) > 1:
            raise UsageError(f"arrays of {sorted(counts)} pictures: all inputs need the same number")
        [count] = counts
        with self._lane() as lane:
            if all(isinstance(array, np.ndarray) for array in inputs.values()):
                return lane.run(inputs, self._padded(count))
            found = {name: lane.find(array, (None, *self._shapes[name])) for name, array in inputs.items()}
            parts = []
            for first in range(0, count, self.batch_size):
                part = {name: array.part(first, self.batch_size) for name, array in found.items()}
                parts.append(lane.run(part, self._padded(min(self.batch_size, count - first))))
            return np.concatenate(parts)

    def run_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Score pictures that are on the GPU. The GPU also makes the model's inputs.

        Args:
            images: The pictures: arrays on the GPU with DLPack or `__cuda_array_interface__`, uint8 (H, W, 3), RGB, of
                any sizes. At most as many as the engine's largest batch.

        Returns:
            Scores, float32 (N,), in the order of the pictures.

        Raises:
            BackendError: The engine failed, or there are too many pictures.
            UsageError: A picture is not such an array, or a rule of the model has no CUDA kernels.
        """
        padded = self._padded(len(images))
        with self._lane() as lane:
            found = [lane.find(image, (None, None, 3)) for image in images]
            if self._input == "image":  # the graph makes the inputs itself, of one picture per run
                alone = [image._replace(shape=(1, *image.shape)) for image in found]
                return np.concatenate([lane.run({IMAGE: image}, self._padded(1)) for image in alone])
            shapes = {one.name: (padded, *one.shape) for one in self._contract.inputs}
            return lane.run_images(found, shapes, self._make_views())

    def _make_views(self) -> CudaViews:
        if self._views is None:  # two threads may do this at once; one of the two objects is then dropped
            from glia_rt.backends.cuda.views import CudaViews

            self._views = CudaViews(self._contract, self._device)
        return self._views

    def prepare(self, *counts: int) -> None:
        """Run batches of so many black pictures on every lane, and keep what was compiled for them.

        With input="image" this does nothing: what is compiled there is for one size of picture.

        Raises:
            BackendError: The engine failed, or a batch is over its largest.
        """
        padded = [self._padded(count) for count in counts]
        if self._input == "image":
            return
        with self._taking_all, contextlib.ExitStack() as stack:
            lanes = [stack.enter_context(self._lane()) for _ in range(LANES)]
            for size in padded:
                black = {one.name: np.zeros((size, *one.shape), np.uint8) for one in self._contract.inputs}
                for lane in lanes * 2:  # the first run compiles, and an engine may capture its CUDA graph in the second
                    lane.run(black, size)
            self._engine.keep()

    def warm_up(self) -> None:
        """Prepare every padded size up to that of `batch_size`; see `Backend.warm_up`.

        The kernels that make the inputs of pictures in the GPU's memory are compiled, too, if the model's rules have
        any. If they cannot be compiled, the first such picture says why.
        """
        largest = self._padded(self.batch_size)
        self.prepare(*(size for size in reversed(self._sizes) if size <= largest))
        if self._input == "views":
            with (
                contextlib.suppress(UsageError, BackendError),
                cuda_errors(self.name, self.batch_size),
                current(self._device),
            ):
                self._make_views()

    def close(self) -> None:
        """Free the engine after all runs have ended, and give the memory back that CUDA keeps for the process."""
        with self._taking_all:
            lanes = [self._idle.get() for _ in range(LANES)]
        try:
            with cuda_errors(self.name, self.batch_size), current(self._device):
                for lane in lanes:
                    if lane is not None:
                        lane.close()
                if any(lanes):
                    self._engine.close()
                    self._views = None
                    trim_pool(self._device)
        finally:
            for _ in range(LANES):
                self._idle.put(None)  # a later call takes None and raises "closed"

    def _padded(self, count: int) -> int:
        for size in self._sizes:
            if count <= size:
                return size
        raise BackendError(
            f"backend {self.name}: a batch of {count} is over the engine's largest, {self._sizes[-1]}: take a smaller "
            f"one, or build an engine with --batch 1:{self._sizes[-1]}:{count}"
        )

    @contextlib.contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._idle.get()
        try:
            if lane is None:
                raise BackendError(f"backend {self.name}: closed")
            with cuda_errors(self.name, self.batch_size), current(self._device):
                yield lane
        finally:
            self._idle.put(lane)


@contextlib.contextmanager
def current(device: Device) -> Iterator[None]:
    """Make a GPU the current one of this thread, and afterwards restore the one that was current before.

    CUDA keeps the current GPU per thread. Other libraries in the thread, such as PyTorch, rely on theirs.
    """
    from cuda.bindings import driver

    status, before = driver.cuCtxGetCurrent()
    device.set_current()  # this also starts the driver
    try:
        yield
    finally:
        driver.cuCtxSetCurrent(before if status == driver.CUresult.CUDA_SUCCESS else driver.CUcontext(0))


@contextlib.contextmanager
def cuda_errors(name: str, batch_size: int) -> Iterator[None]:
    """Turn errors that CUDA raises in the block into BackendError.

    Args:
        name: Name of the backend, for the message.
        batch_size: Its batch size. If memory runs out, the message suggests half of it.
    """
    try:
        yield
    except cuda_error() as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "OUT_OF_MEMORY" in reason:
            raise out_of_memory(name, batch_size) from error
        raise BackendError(f"backend {name}: {reason}") from error


def cuda_error() -> type[Exception]:
    """Return the exception of cuda-core, which has no public name for it."""
    from cuda.core._utils.cuda_utils import CUDAError

    found: type[Exception] = CUDAError
    return found


class _Lane:
    """A stream with memory of its own, and the runs that are prepared there.

    Args:
        runs: How many runs stay prepared: those of the shapes that were used last.
    """

    def __init__(self, device: Device, engine: Engine, runs: int) -> None:
        self._device = device
        self._engine = engine
        self._stream = device.create_stream()
        self._scratch = device.allocate(max(1, engine.scratch), stream=self._stream)
        self._host: Buffer | None = None
        self._gpu: Buffer | None = None
        self._runs: OrderedDict[tuple[tuple[str, tuple[int, ...]], ...], Callable[[], None]] = OrderedDict()
        self._most = runs

    def find(self, array: Any, shape: Sequence[int | None]) -> GpuArray:
        """Return where another library's array is, for the lane's stream to read; see `on_gpu`."""
        return on_gpu(array, self._stream, self._device, shape)

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8] | GpuArray], padded: int) -> npt.NDArray[np.float32]:
        """Score a batch. The padding is whatever the memory holds; its scores are dropped."""
        shapes = {name: (padded, *array.shape[1:]) for name, array in inputs.items()}
        launch, at, host = self._prepared(shapes)
        for name, array in inputs.items():
            size = math.prod(array.shape)
            if isinstance(array, GpuArray):
                source = array.ptr
            else:
                source = host[name]
                _host_array(source, size, np.uint8).reshape(array.shape)[:] = array
            self._copy(at[name], source, size)
        launch()
        return self._scores(at, host, next(iter(inputs.values())).shape[0])

    def run_images(self, images: Sequence[GpuArray], shapes: Shapes, views: CudaViews) -> npt.NDArray[np.float32]:
        """Score pictures on the GPU. Their inputs are made directly in the memory of the batch."""
        launch, at, host = self._prepared(shapes)
        for i, image in enumerate(images):
            height, width, _ = image.shape
            outputs = {name: at[name] + i * math.prod(shape[1:]) for name, shape in shapes.items()}
            views.make(image.ptr, height, width, outputs, self._stream)
        launch()
        return self._scores(at, host, len(images))

    def close(self) -> None:
        self._free()
        self._scratch.close(self._stream)
        self._stream.sync()
        self._stream.close()

    def _prepared(self, shapes: Shapes) -> tuple[Callable[[], None], Addresses, Addresses]:
        """Return a run on these shapes, and where its inputs and its scores are: on the GPU, and on the host."""
        offsets, size = layout(shapes)
        if self._gpu is None or self._host is None or self._gpu.size < size:
            from cuda.core import LegacyPinnedMemoryResource

            self._free()
            self._host = LegacyPinnedMemoryResource().allocate(size)
            self._gpu = self._device.allocate(size, stream=self._stream)
        at, host = (
            {name: int(block.handle) + offset for name, offset in offsets.items()} for block in (self._gpu, self._host)
        )
        key = tuple(shapes.items())
        if key not in self._runs:
            while len(self._runs) >= self._most:
                self._stream.sync()
                self._runs.popitem(last=False)
            self._runs[key] = self._engine.prepare(shapes, at, int(self._scratch.handle), self._stream)
        self._runs.move_to_end(key)
        return self._runs[key], at, host

    def _copy(self, to: int, source: int, size: int) -> None:
        _wrap(to, size).copy_from(_wrap(source, size), stream=self._stream)

    def _scores(self, at: Addresses, host: Addresses, count: int) -> npt.NDArray[np.float32]:
        size = count * _SCORE_SIZE
        self._copy(host[SCORE], at[SCORE], size)
        self._stream.sync()
        return _host_array(host[SCORE], size, np.float32).copy()

    def _free(self) -> None:
        """Free the blocks, and drop the runs, which are for these addresses."""
        self._stream.sync()
        self._runs.clear()
        if self._gpu is not None and self._host is not None:
            self._gpu.close(self._stream)
            self._host.close(self._stream)
        self._gpu = self._host = None


def layout(shapes: Shapes) -> tuple[dict[str, int], int]:
    """Return where a batch's arrays start in a block of memory: each input, uint8, and `SCORE`, float32 (N,).

    Args:
        shapes: Shape of each input, with N.

    Returns:
        The offset of each in bytes, a multiple of 256, as TensorRT requires; and the size of the block in bytes.
    """
    count = next(iter(shapes.values()))[0]
    sizes = {name: math.prod(shape) for name, shape in shapes.items()} | {SCORE: count * _SCORE_SIZE}
    padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values()]
    return dict(zip(sizes, itertools.accumulate(padded, initial=0), strict=False)), sum(padded)


def padded_sizes(least: int, greatest: int, batch_size: int) -> list[int]:
    """Return the sizes that batches are padded to: powers of two, the usual batch, and the engine's own limits."""
    powers = (1 << i for i in range(greatest.bit_length()))
    return sorted(size for size in {*powers, least, greatest, batch_size} if least <= size <= greatest)


def trim_pool(device: Device) -> None:
    """Give the memory back that CUDA keeps of what this process has freed."""
    from cuda.bindings import driver

    status, pool = driver.cuDeviceGetDefaultMemPool(device.device_id)
    if status == driver.CUresult.CUDA_SUCCESS:
        driver.cuMemPoolTrimTo(pool, 0)


def out_of_memory(name: str, batch_size: int) -> BackendError:
    """Return the error for a GPU without enough memory."""
    smaller = max(1, batch_size // 2)
    return BackendError(
        f"backend {name}: the GPU's memory does not suffice. Free it, or take smaller batches, --batch-size {smaller}; "
        f"TensorRT sets memory aside for the largest batch, so build the engine for less, --batch 1:{smaller}:{smaller}"
    )


def unavailable(package: str, extra: str) -> str | None:
    """Return why a GPU backend cannot be used here; None if it can.

    The driver and the GPU are checked first, then the backend's package, then cuda-core.
    """
    return why_no_gpu() or why_not_importable(package, extra) or why_not_importable("cuda.core", extra)


def _host_array(address: int, size: int, dtype: Any) -> npt.NDArray[Any]:
    """Return bytes on the host as a flat array, which must not outlive them."""
    memory: Any = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memory, dtype)


def _wrap(address: int, size: int) -> Buffer:
    """Return memory that somebody else owns, as a buffer to copy from or to."""
    from cuda.core import Buffer

    return Buffer.from_handle(address, size)
