"""A picture in GPU memory -> the two views, where it lies: `glia_rt.sampler` as CUDA kernels, equal to the bit.

What depends on a picture's size alone is worked out here, in tables of whole numbers: which pixels each pixel of a view
is made of, and their weights. The kernels, in cuda_sampler.cu, do the arithmetic on the pixels.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from glia_rt.bicubic import WEIGHT_BITS, bicubic_table
from glia_rt.contract import MAX_SIDE, Contract
from glia_rt.errors import BackendError, UsageError
from glia_rt.sampler import enlarged_side, fragment_positions, neighbours

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, ObjectCode, Stream

Table = npt.NDArray[np.int32]


class Launch(NamedTuple):
    """One kernel over so many rows of pixels; its arguments are addresses and numbers, 64 bits each."""

    kernel: str
    rows: int
    arguments: tuple[int, ...]


class Plan(NamedTuple):
    """What is to be done for pictures of one size.

    Attributes:
        height: Of the picture, pixels.
        width: Of the picture, pixels.
        across: Table of the horizontal pass, int32 (1 + taps, view_size); see `bicubic_table`.
        down: Table of the vertical pass, likewise.
        mosaic: Table of the fragments, int32 (6, view_size): for each row of the mosaic the two rows of the picture
            to blend and the second one's weight times 2**22, then the same for its columns.
    """

    height: int
    width: int
    across: Table
    down: Table
    mosaic: Table

    @property
    def tables(self) -> Table:
        """All three, one after the other: what the GPU has to be given."""
        return np.concatenate([self.across, self.down, self.mosaic])

    def launches(self, image: int, tables: int, rows: int, global_view: int, fragments: int) -> list[Launch]:
        """The kernels to run, in order.

        Args:
            image: Address of the picture, uint8 (height, width, 3).
            tables: Address of the tables.
            rows: Address of room for the picture resized horizontally, uint8 (height, view_size, 3).
            global_view: Address to write to, uint8 (view_size, view_size, 3).
            fragments: Address to write to, likewise.
        """
        view_size = self.mosaic.shape[1]
        down = tables + self.across.nbytes
        mosaic = down + self.down.nbytes
        return [
            Launch("resize_across", self.height, (image, rows, tables, self.width, len(self.across) - 1)),
            Launch("resize_down", view_size, (rows, global_view, down, len(self.down) - 1)),
            Launch("read_fragments", view_size, (image, fragments, mosaic, self.width)),
        ]


def plan(height: int, width: int, contract: Contract) -> Plan:
    """Work out the tables for pictures of height x width.

    Raises:
        UsageError: A side is under 1 or over 65,535 pixels.
    """
    shorter = min(height, width)
    if shorter < 1 or max(height, width) > MAX_SIDE:
        raise UsageError(f"a picture of {height} x {width}: sides of 1 to {MAX_SIDE} pixels are taken")
    tall, wide = (enlarged_side(side, shorter, contract.view_size) for side in (height, width))
    rows, columns = fragment_positions(tall, wide, contract)
    # Of a picture that is not enlarged every weight is 0.
    mosaic = np.array([*neighbours(rows.ravel(), height, tall), *neighbours(columns.ravel(), width, wide)], np.int32)
    across, down = (bicubic_table(side, contract.view_size) for side in (width, height))
    return Plan(height, width, across, down, mosaic)


def compile_kernels(arch: str, contract: Contract) -> ObjectCode:
    """Compile the kernels with NVRTC, which needs no GPU.

    Args:
        arch: The GPU to compile for: "sm_90", say.
        contract: Sizes of the views.

    Raises:
        BackendError: NVRTC is not there, or does not know the GPU.
    """
    from cuda.core import Program, ProgramOptions

    source = resources.files("glia_rt").joinpath("cuda_sampler.cu").read_text(encoding="utf-8")
    macros = [("VIEW_SIZE", str(contract.view_size)), ("WEIGHT_BITS", str(WEIGHT_BITS))]
    try:
        return Program(source, "c++", ProgramOptions(arch=arch, define_macro=macros)).compile("cubin")
    except Exception as error:  # cuda-core's exceptions are not public
        raise BackendError(
            f"the CUDA sampler cannot be compiled for {arch}: {' '.join(str(error).split())}; "
            'it needs compute capability 7.5 or later, and NVRTC: pip install "nvidia-cuda-nvrtc>=13,<14"'
        ) from error


class CudaSampler:
    """Views of pictures that are on the GPU already.

    Threads may share it, each on a stream of its own; the device must be current in all of them.
    """

    def __init__(self, contract: Contract, device: Device) -> None:
        """Compile the kernels for a GPU.

        Args:
            contract: Sizes of the views.
            device: The GPU, current in this thread.

        Raises:
            BackendError: They cannot be compiled for it.
        """
        self._contract = contract
        self._device = device
        code = compile_kernels(f"sm_{device.arch}", contract)
        self._kernels = {name: code.get_kernel(name) for name in ("resize_across", "resize_down", "read_fragments")}
        self._uploads = device.create_stream()

    def sample(
        self, image_pointer: int, height: int, width: int, global_view: int, fragments: int, stream: Stream
    ) -> None:
        """Start the making of both views of a picture; does not wait for it, nor for earlier work on the stream.

        Args:
            image_pointer: Address of the picture on the GPU, uint8 (height, width, 3), RGB, C-contiguous.
            height: 1 to 65,535.
            width: 1 to 65,535.
            global_view: Address on the GPU to write to, uint8 (view_size, view_size, 3).
            fragments: Address on the GPU to write to, likewise.
            stream: Where the work is queued. Not one that is being captured into a graph: tables are uploaded.

        Raises:
            UsageError: A side is out of range.
        """
        from cuda.core import LaunchConfig, launch

        view_size = self._contract.view_size
        work = plan(height, width, self._contract)
        tables = self._upload(work.tables)
        rows = self._device.allocate(height * view_size * 3, stream=stream)
        for kernel, count, arguments in work.launches(
            image_pointer, int(tables.handle), int(rows.handle), global_view, fragments
        ):
            launch(stream, LaunchConfig(grid=(3, count), block=view_size), self._kernels[kernel], *arguments)
        tables.close(stream)  # freed in the order of the stream, after the kernels
        rows.close(stream)

    def _upload(self, table: Table) -> Buffer:
        from cuda.core import Buffer

        # On a stream of its own: there a copy from pageable memory, and the wait for its end, after which the array may
        # go, do not wait for the work on the caller's stream.
        buffer = self._device.allocate(table.nbytes, stream=self._uploads)
        buffer.copy_from(Buffer.from_handle(table.ctypes.data, table.nbytes, owner=table), stream=self._uploads)
        self._uploads.sync()
        return buffer
