"""What the backends on NVIDIA GPUs share: memory on both sides, streams, and who waits for whom.

A lane is a stream with pinned memory on the host and memory on the GPU, for each shape of batch. There are two lanes:
while one computes, the other copies its next batch in or its last scores out. A call of `run` takes a free lane, so the
pipeline has only to call from as many threads as there are lanes.

Batches are padded to a few sizes, because what an engine prepares (a context, a captured CUDA graph) is for one shape.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import queue
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from glia_rt.backends import why_not_importable
from glia_rt.bundle import Input
from glia_rt.contract import FRAGMENTS, GLOBAL_VIEW, IMAGE, Contract
from glia_rt.cuda import Gpu, why_no_gpu
from glia_rt.errors import BackendError, UsageError

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream

LANES: Final = 2
#: Shapes a lane is ready for at once. Views have about eight, one a batch size; of pictures any size is one.
_SHAPES: Final[Mapping[Input, int]] = {"views": 16, "image": 2}

_DLPACK_CUDA: Final = (2, 13)  # kDLCUDA and kDLCUDAManaged

Shapes = Mapping[str, tuple[int, ...]]
Addresses = Mapping[str, int]


class Engine(Protocol):
    """A loaded engine.

    Attributes:
        batches: Least and greatest batch it takes.
    """

    batches: tuple[int, int]

    def prepare(
        self, shapes: Shapes, addresses: Addresses, score: int, stream: Stream, *, repeated: bool
    ) -> Callable[[], None]:
        """Get ready to run on inputs of these shapes at these addresses.

        Args:
            shapes: Of each input.
            addresses: On the GPU, of each input, uint8.
            score: Address on the GPU of room for the scores, float32 (N,).
            stream: Where to run.
            repeated: Whether it will run often, so that a captured CUDA graph pays.

        Returns:
            What starts one run on the stream, and does not wait for it.
        """

    def close(self) -> None:
        """Free it; nothing runs any more."""


class GpuBackend:
    """An engine on a GPU; see `Backend`. Threads may share it."""

    parallel = LANES

    def __init__(
        self,
        name: str,
        precision: str,
        engine: Engine,
        gpu: Gpu,
        contract: Contract,
        input: Input,
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
        self._sizes = padded_sizes(*engine.batches, batch_size)
        self._idle: queue.SimpleQueue[_Lane | None] = queue.SimpleQueue()
        self._sampler: Any = None
        with cuda_errors(self.name, self.batch_size):
            from cuda.core import Device

            self._device = Device(gpu.index)
            self._device.set_current()
            for _ in range(LANES):
                self._idle.put(_Lane(self._device, engine, _SHAPES[input]))

    def run(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Score a batch; see `Backend.run`.

        Arrays on the GPU, with DLPack or `__cuda_array_interface__`, are read where they lie, all inputs alike.
        """
        if any(not isinstance(array, np.ndarray) for array in inputs.values()):
            with self._lane() as lane:
                return lane.run_in_place(inputs)
        padded = self._padded(len(next(iter(inputs.values()))))
        with self._lane() as lane:
            return lane.run(inputs, padded)

    def run_images(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Score pictures that are on the GPU: the GPU makes their views as well.

        Args:
            images: Arrays on the GPU, with DLPack or `__cuda_array_interface__`, uint8 (H, W, 3), RGB, of any sizes;
                no more than the engine's largest batch.

        Returns:
            float32 (N,), in order.

        Raises:
            BackendError: The engine failed, or there are too many.
            UsageError: One is not such an array.
        """
        padded = self._padded(len(images))
        with self._lane() as lane:
            if self._input == "image":  # the engine samples, one picture a run
                return np.concatenate([lane.run_in_place({IMAGE: image}) for image in images])
            if self._sampler is None:  # two lanes that come here at once make two, and one is dropped
                from glia_rt.cuda_sampler import CudaSampler

                self._sampler = CudaSampler(self._contract, self._device)
            return lane.run_images(images, padded, self._contract.view_size, self._sampler)

    def prepare(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> None:
        """Run every lane once, so that what takes long the first time is done."""
        padded = self._padded(len(next(iter(inputs.values()))))
        with contextlib.ExitStack() as lanes:
            for lane in [lanes.enter_context(self._lane()) for _ in range(LANES)]:
                lane.run(inputs, padded)

    def close(self) -> None:
        """Free the engine, once all runs have ended."""
        lanes = [self._idle.get() for _ in range(LANES)]
        try:
            with cuda_errors(self.name, self.batch_size):
                self._device.set_current()
                for lane in lanes:
                    if lane is not None:
                        lane.close()
                if any(lanes):
                    self._engine.close()
        finally:
            for _ in range(LANES):
                self._idle.put(None)  # whoever comes now learns that it is closed

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
            with cuda_errors(self.name, self.batch_size):
                self._device.set_current()  # CUDA keeps it by thread
                yield lane
        finally:
            self._idle.put(lane)


@contextlib.contextmanager
def cuda_errors(name: str, batch_size: int) -> Iterator[None]:
    """Turn what CUDA raises into the project's own error, of a backend of this name."""
    from cuda.core._utils.cuda_utils import CUDAError  # cuda-core has no public name for it

    try:
        yield
    except CUDAError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "OUT_OF_MEMORY" in reason:
            raise out_of_memory(name, batch_size) from error
        raise BackendError(f"backend {name}: {reason}") from error


class _Lane:
    """A stream, and what is ready to run on it."""

    def __init__(self, device: Device, engine: Engine, shapes: int) -> None:
        self._device = device
        self._engine = engine
        self._stream = device.create_stream()
        self._batches: OrderedDict[tuple[tuple[int, ...], ...], _Batch] = OrderedDict()
        self._most = shapes

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]], padded: int) -> npt.NDArray[np.float32]:
        """Score arrays on the host; of the rows after the last one anything may be scored, and is dropped."""
        batch = self._batch({name: (padded, *array.shape[1:]) for name, array in inputs.items()})
        for name, array in inputs.items():
            batch.write(name, array, self._stream)
        batch.launch()
        return batch.scores(len(next(iter(inputs.values()))), self._stream)

    def run_images(self, images: Sequence[Any], padded: int, view_size: int, sampler: Any) -> npt.NDArray[np.float32]:
        """Score pictures on the GPU, sampled into the batch's own memory."""
        view = (view_size, view_size, 3)
        batch = self._batch({GLOBAL_VIEW: (padded, *view), FRAGMENTS: (padded, *view)})
        held = [_on_gpu(image, self._stream, self._device, ranks=(3,)) for image in images]
        for i, image in enumerate(held):
            height, width, _ = image.shape
            views = (batch.address(name) + i * math.prod(view) for name in (GLOBAL_VIEW, FRAGMENTS))
            sampler.sample(image.ptr, height, width, *views, self._stream)
        batch.launch()
        return batch.scores(len(images), self._stream)

    def run_in_place(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Score arrays on the GPU where they lie."""
        held = {name: _on_gpu(array, self._stream, self._device, ranks=(3, 4)) for name, array in inputs.items()}
        shapes = {name: (1,) * (4 - len(array.shape)) + tuple(array.shape) for name, array in held.items()}
        if len(counts := {shape[0] for shape in shapes.values()}) > 1:
            raise UsageError(f"arrays of {sorted(counts)} pictures: all inputs need the same number")
        [count] = counts
        score = self._device.allocate(4 * count, stream=self._stream)
        addresses = {name: array.ptr for name, array in held.items()}
        self._engine.prepare(shapes, addresses, int(score.handle), self._stream, repeated=False)()
        scores = np.empty(count, np.float32)
        score.copy_to(_wrap(scores), stream=self._stream)
        self._stream.sync()
        score.close(self._stream)
        return scores

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
    """Memory for batches of one shape, and the engine's run on it."""

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
        self.launch = engine.prepare(shapes, addresses, int(self._score_gpu.handle), stream, repeated=True)

    def address(self, name: str) -> int:
        return int(self._gpu[name].handle)

    def write(self, name: str, array: npt.NDArray[np.uint8], stream: Stream) -> None:
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
    """Sizes that batches are padded to: powers of two, the usual batch, and the engine's own limits."""
    powers = (1 << i for i in range(greatest.bit_length()))
    return sorted(size for size in {*powers, least, greatest, batch_size} if least <= size <= greatest)


def out_of_memory(name: str, batch_size: int) -> BackendError:
    """The error for a GPU whose memory does not suffice."""
    smaller = max(1, batch_size // 2)
    return BackendError(
        f"backend {name}: the GPU's memory does not suffice. Free it, or take smaller batches, --batch-size {smaller}; "
        f"TensorRT sets memory aside for the largest batch, so build the engine for less, --batch 1:{smaller}:{smaller}"
    )


def unavailable(package: str, extra: str) -> str | None:
    """Why a GPU backend cannot be used: driver and GPU first, then its package, then cuda-core."""
    return why_no_gpu() or why_not_importable(package, extra) or why_not_importable("cuda.core", extra)


class _GpuArray(NamedTuple):
    """An array of another library: uint8, C-contiguous; held until what reads it is done."""

    ptr: int
    shape: tuple[int, ...]
    owner: Any


def _on_gpu(array: Any, stream: Stream, device: Device, *, ranks: tuple[int, ...]) -> _GpuArray:
    """Where an array on the GPU lies; not copied. The stream is made to wait for what its owner has queued."""
    if hasattr(array, "__dlpack__"):
        found, dtype, strides = _from_dlpack(array, stream, device)
    elif hasattr(array, "__cuda_array_interface__"):
        found, dtype, strides = _from_cuda_array_interface(array, stream)
    else:
        raise UsageError(f"a {type(array).__name__} is no array on the GPU, by DLPack or __cuda_array_interface__")
    if dtype != "uint8" or len(found.shape) not in ranks or found.shape[-1] != 3:
        raise UsageError(f"a picture on the GPU must be uint8 (H, W, 3), views (N, H, W, 3), not {dtype} {found.shape}")
    if strides is not None and tuple(strides) != _contiguous(found.shape):
        raise UsageError("an array on the GPU must be C-contiguous: make it so first")
    return found


def _from_dlpack(array: Any, stream: Stream, device: Device) -> tuple[_GpuArray, str, Any]:
    from cuda.core.utils import StridedMemoryView

    kind, index = array.__dlpack_device__()
    if kind not in _DLPACK_CUDA or index != device.device_id:
        raise UsageError(f"an array is not in the memory of GPU {device.device_id}: move it there")
    try:
        view = StridedMemoryView.from_dlpack(array, stream_ptr=int(stream.handle))
        dtype = str(view.dtype)
    except (BufferError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"a {type(array).__name__} cannot be read where it lies: {error}") from error
    return _GpuArray(view.ptr, tuple(view.shape), view), dtype, view.strides


def _from_cuda_array_interface(array: Any, stream: Stream) -> tuple[_GpuArray, str, Any]:
    from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM, Stream

    interface = array.__cuda_array_interface__
    # Version 2 names no stream, and PyCUDA names none: both work on the default one unless they are told otherwise,
    # which a stream of ours does not wait for by itself.
    queued = interface.get("stream") or 1
    known = {1: LEGACY_DEFAULT_STREAM, 2: PER_THREAD_DEFAULT_STREAM}
    stream.wait(known[queued] if queued in known else Stream.from_handle(queued))
    address, _read_only = interface["data"]
    found = _GpuArray(int(address), tuple(interface["shape"]), array)
    return found, str(np.dtype(interface["typestr"])), interface.get("strides")


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _host_array(buffer: Buffer, dtype: Any) -> npt.NDArray[Any]:
    """Memory on the host as a flat array; it must not outlive the buffer."""
    memory = (ctypes.c_uint8 * buffer.size).from_address(int(buffer.handle))
    return np.frombuffer(memory, dtype)


def _wrap(array: npt.NDArray[Any]) -> Buffer:
    from cuda.core import Buffer

    return Buffer.from_handle(array.ctypes.data, array.nbytes, owner=array)
