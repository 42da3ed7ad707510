"""Arrays of other libraries in GPU memory, found through DLPack or `__cuda_array_interface__`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from glia_rt.errors import UsageError

if TYPE_CHECKING:
    from cuda.core import Device, Stream

_DLPACK_CUDA: Final = (2, 13)  # kDLCUDA and kDLCUDAManaged


class GpuArray(NamedTuple):
    """An array of another library in GPU memory: uint8, C-contiguous.

    Attributes:
        ptr: Address on the GPU.
        shape: Shape of the array.
        owner: The object that keeps the memory alive. Hold it until the work that reads the array is done.
    """

    ptr: int
    shape: tuple[int, ...]
    owner: Any

    def part(self, first: int, most: int) -> GpuArray:
        """Return at most so many of the entries along the first axis, from the one numbered `first`."""
        count, *shape = self.shape
        return GpuArray(self.ptr + first * math.prod(shape), (min(most, count - first), *shape), self.owner)


def on_gpu(array: Any, stream: Stream, device: Device, shape: Sequence[int | None]) -> GpuArray:
    """Return the address and the shape of an array on the GPU.

    The array is not copied. The stream waits for the work that the array's owner has queued.

    Args:
        array: uint8, C-contiguous.
        stream: The stream that will read the array.
        device: The GPU that the array must be on.
        shape: The shape that the array must have. None stands for any length.

    Raises:
        UsageError: The array does not meet one of these conditions.
    """
    if hasattr(array, "__dlpack__"):
        found, dtype, strides = _from_dlpack(array, stream, device)
    elif hasattr(array, "__cuda_array_interface__"):
        found, dtype, strides = _from_cuda_array_interface(array, stream, device)
    else:
        raise UsageError(f"a {type(array).__name__} is no array on the GPU, by DLPack or __cuda_array_interface__")
    fits = len(found.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
    if dtype != "uint8" or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UsageError(f"an array on the GPU must be uint8 ({wanted}), not {dtype} {found.shape}")
    if strides is not None and not _is_contiguous(found.shape, strides):
        raise UsageError("an array on the GPU must be C-contiguous: make it so first")
    return found


def _from_dlpack(array: Any, stream: Stream, device: Device) -> tuple[GpuArray, str, Any]:
    from cuda.core.utils import StridedMemoryView

    kind, index = array.__dlpack_device__()
    if kind not in _DLPACK_CUDA or index != device.device_id:
        raise _elsewhere(device)
    try:
        view = StridedMemoryView.from_dlpack(array, stream_ptr=int(stream.handle))
        dtype = str(view.dtype)
    except (BufferError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"a {type(array).__name__} cannot be read where it lies: {error}") from error
    return GpuArray(view.ptr, tuple(view.shape), view), dtype, view.strides


def _from_cuda_array_interface(array: Any, stream: Stream, device: Device) -> tuple[GpuArray, str, Any]:
    from cuda.bindings import driver
    from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM, Stream

    interface = array.__cuda_array_interface__
    address, _read_only = interface["data"]
    # The interface does not say which GPU the memory is on, and a kernel that reads another one's ends the process.
    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, index = driver.cuPointerGetAttribute(ordinal, int(address))
    if status != driver.CUresult.CUDA_SUCCESS or index != device.device_id:
        raise _elsewhere(device)
    # Version 2 of the interface names no stream, and neither does PyCUDA. Both work on the default stream unless they
    # are told otherwise. A stream of ours does not wait for the default stream by itself.
    queued = interface.get("stream") or 1
    known = {1: LEGACY_DEFAULT_STREAM, 2: PER_THREAD_DEFAULT_STREAM}
    stream.wait(known[queued] if queued in known else Stream.from_handle(queued))
    found = GpuArray(int(address), tuple(interface["shape"]), array)
    return found, str(np.dtype(interface["typestr"])), interface.get("strides")


def _elsewhere(device: Device) -> UsageError:
    return UsageError(f"an array is not in the memory of GPU {device.device_id}: move it there")


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether strides, in bytes, are those of a C-contiguous array. Of an axis of length 1 they say nothing."""
    expected = (math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return all(n == 1 or stride == right for n, stride, right in zip(shape, strides, expected, strict=True))
