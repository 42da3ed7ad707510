"""What the backends on NVIDIA GPUs share: memory on the host and on the GPU, streams, and their synchronisation.

A lane is a stream with memory of its own: for each shape of batch, pinned memory on the host and memory on the GPU.
There are two lanes. While one lane computes, the other copies its next batch to the GPU or its last scores back. A call
of `run` takes a free lane, so the pipeline calls `run` from as many threads as there are lanes.

Batches are padded to a few sizes, because a context or a captured CUDA graph that an engine prepares is for one shape
at one address. Arrays that are on the GPU already are therefore copied, too, within the GPU: a copy takes microseconds,
and a run without a CUDA graph takes milliseconds longer.

Every call makes its GPU the current one of the thread and restores the one that was current before.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import queue
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from glia_rt.backends.base import why_not_importable
from glia_rt.backends.cuda.arrays import GpuArray, on_gpu
from glia_rt.backends.cuda.device import Gpu, why_no_gpu
from glia_rt.contract import IMAGE, Contract, GraphKind
from glia_rt.errors import BackendError, UsageError

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream

    from glia_rt.backends.cuda.views import CudaViews

LANES: Final = 2
#: Shapes of batch that a lane keeps ready, by the graph's input. The contract's inputs have about eight shapes, one for
#: each padded batch size. With decoded pictures, every size of picture is another shape.
_SHAPES: Final[Mapping[str, int]] = {"views": 16, "image": 2}

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


class Engine(Protocol):
    """A loaded engine.

    Attributes:
        batches: Smallest and largest batch that it takes.
    """

    batches: tuple[int, int]

    def prepare(self, shapes: Shapes, addresses: Addresses, score: int, stream: Stream) -> Callable[[], None]:
        """Prepare to run repeatedly on inputs of these shapes at these addresses.

        Args:
            shapes: Shape of each input, with N.
            addresses: Address on the GPU of each input, uint8.
            score: Address on the GPU to write the scores to, float32 (N,).
            stream: The stream to run on.

        Returns:
            A function that starts one run on the stream and does not wait for it.
        """

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
        self._views: Any = None
        with cuda_errors(self.name, self.batch_size):
            from cuda.core import Device

            self._device = Device(gpu.index)
            with current(self._device):
                for _ in range(LANES):
                    self._idle.put(_Lane(self._device, engine, _SHAPES[input]))

    def run(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Score a batch; see `Backend.run`.

        The inputs may also be arrays on the GPU, with DLPack or `__cuda_array_interface__`. They are copied within the
        GPU. All inputs must then be on the GPU.
        """
        if len(counts := {array.shape[0] for array in inputs.values()}) > 1:
            raise UsageError(f"arrays of {sorted(counts)} pictures: all inputs need the same number")
        padded = self._padded(*counts)
        with self._lane() as lane:
            if any(not isinstance(array, np.ndarray) for array in inputs.values()):
                inputs = {name: lane.find(array, (None, *self._shapes[name])) for name, array in inputs.items()}
            return lane.run(inputs, padded)

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
                return np.concatenate([lane.run({IMAGE: image}, 1) for image in alone])
            if self._views is None:  # two lanes may do this at once; one of the two objects is then dropped
                from glia_rt.backends.cuda.views import CudaViews

                self._views = CudaViews(self._contract, self._device)
            shapes = {one.name: (padded, *one.shape) for one in self._contract.inputs}
            return lane.run_images(found, shapes, self._views)

    def prepare(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """Run every lane once, because the first run of a lane is slow."""
        padded = self._padded(len(next(iter(inputs.values()))))
        with contextlib.ExitStack() as lanes:
            for lane in [lanes.enter_context(self._lane()) for _ in range(LANES)]:
                lane.run(inputs, padded)

    def close(self) -> None:
        """Free the engine after all runs have ended."""
        lanes = [self._idle.get() for _ in range(LANES)]
        try:
            with cuda_errors(self.name, self.batch_size), current(self._device):
                for lane in lanes:
                    if lane is not None:
                        lane.close()
                if any(lanes):
                    self._engine.close()
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
    """A stream, and the batches that are ready to run on it."""

    def __init__(self, device: Device, engine: Engine, shapes: int) -> None:
        self._device = device
        self._engine = engine
        self._stream = device.create_stream()
        self._batches: OrderedDict[tuple[tuple[int, ...], ...], _Batch] = OrderedDict()
        self._most = shapes

    def find(self, array: Any, shape: Sequence[int | None]) -> GpuArray:
        """Return where another library's array is, for the lane's stream to read; see `on_gpu`."""
        return on_gpu(array, self._stream, self._device, shape)

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8] | GpuArray], padded: int) -> npt.NDArray[np.float32]:
        """Score a batch. The padding holds arbitrary pictures, whose scores are dropped."""
        batch = self._batch({name: (padded, *array.shape[1:]) for name, array in inputs.items()})
        for name, array in inputs.items():
            batch.write(name, array, self._stream)
        batch.launch()
        return batch.scores(next(iter(inputs.values())).shape[0], self._stream)

    def run_images(self, images: Sequence[GpuArray], shapes: Shapes, views: CudaViews) -> npt.NDArray[np.float32]:
        """Score pictures on the GPU. Their inputs are made directly in the memory of the batch."""
        batch = self._batch(shapes)
        for i, image in enumerate(images):
            height, width, _ = image.shape
            outputs = {name: batch.address(name) + i * math.prod(shape[1:]) for name, shape in shapes.items()}
            views.make(image.ptr, height, width, outputs, self._stream)
        batch.launch()
        return batch.scores(len(images), self._stream)

    def close(self) -> None:
        for batch in self._batches.values():
            batch.close(self._stream)
        self._batches.clear()
        self._stream.sync()
        self._stream.close()

    def _batch(self, shapes: Shapes) -> _Batch:
        key = tuple(shapes.values())
        if key not in self._batches:
            while len(self._batches) >= self._most:
                self._batches.popitem(last=False)[1].close(self._stream)
            self._batches[key] = _Batch(self._device, self._engine, shapes, self._stream)
        self._batches.move_to_end(key)
        return self._batches[key]


class _Batch:
    """The memory for batches of one shape, and the prepared run on it."""

    def __init__(self, device: Device, engine: Engine, shapes: Shapes, stream: Stream) -> None:
        from cuda.core import LegacyPinnedMemoryResource

        pinned = LegacyPinnedMemoryResource()
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self._host = {name: pinned.allocate(size) for name, size in sizes.items()}
        self._gpu = {name: device.allocate(size, stream=stream) for name, size in sizes.items()}
        self._arrays = {name: _host_array(self._host[name], np.uint8).reshape(shapes[name]) for name in shapes}
        count = next(iter(shapes.values()))[0]
        self._score_host = pinned.allocate(4 * count)
        self._score_gpu = device.allocate(4 * count, stream=stream)
        self._scores = _host_array(self._score_host, np.float32)
        for array in self._arrays.values():
            array[:] = 0
        addresses = {name: self.address(name) for name in shapes}
        self.launch = engine.prepare(shapes, addresses, int(self._score_gpu.handle), stream)

    def address(self, name: str) -> int:
        return int(self._gpu[name].handle)

    def write(self, name: str, array: npt.NDArray[np.uint8] | GpuArray, stream: Stream) -> None:
        if isinstance(array, GpuArray):
            size = math.prod(array.shape)
            _wrap(self.address(name), size).copy_from(_wrap(array.ptr, size), stream=stream)
        else:
            self._arrays[name][: len(array)] = array
            self._gpu[name].copy_from(self._host[name], stream=stream)

    def scores(self, count: int, stream: Stream) -> npt.NDArray[np.float32]:
        self._score_host.copy_from(self._score_gpu, stream=stream)
        stream.sync()
        return self._scores[:count].copy()

    def close(self, stream: Stream) -> None:
        stream.sync()
        del self.launch
        self._arrays.clear()
        del self._scores
        for buffer in (*self._gpu.values(), *self._host.values(), self._score_gpu, self._score_host):
            buffer.close(stream)


def padded_sizes(least: int, greatest: int, batch_size: int) -> list[int]:
    """Return the sizes that batches are padded to: powers of two, the usual batch, and the engine's own limits."""
    powers = (1 << i for i in range(greatest.bit_length()))
    return sorted(size for size in {*powers, least, greatest, batch_size} if least <= size <= greatest)


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


def _host_array(buffer: Buffer, dtype: Any) -> npt.NDArray[Any]:
    """Return memory on the host as a flat array. The array must not outlive the buffer."""
    memory = (ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle))
    return np.frombuffer(memory, dtype)


def _wrap(address: int, size: int) -> Buffer:
    """Return memory that somebody else owns, as a buffer to copy from or to."""
    from cuda.core import Buffer

    return Buffer.from_handle(address, size)
