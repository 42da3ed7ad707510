"""A picture in GPU memory -> a model's inputs: rules of the contract as CUDA kernels, equal to the bit.

This module works out what depends only on the size of a picture: which pixels each pixel of an input is made of, and
their weights. It puts them into tables of whole numbers. The kernels in views.cu do the arithmetic on the pixels.

A rule without a twin in `TWINS` is refused. Its inputs have to be made on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from glia_rt.contract import MAX_SIDE, Contract, Fragments, ModelInput, Resize
from glia_rt.errors import BackendError, UsageError
from glia_rt.pixels.bicubic import WEIGHT_BITS, bicubic_table
from glia_rt.pixels.views import enlarged_side, fragment_positions, neighbours

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, ObjectCode, Stream

Table = npt.NDArray[np.int32]


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: Name of the kernel in views.cu.
        rows: Number of rows of pixels that it makes.
        arguments: Addresses and numbers, 64 bits each.
    """

    kernel: str
    rows: int
    arguments: tuple[int, ...]


class ResizePlan(NamedTuple):
    """The plan that makes an input by the rule `resize` from pictures of one size.

    Attributes:
        height: Height of the picture, pixels.
        width: Width of the picture, pixels.
        size: Height and width of the input, pixels.
        across: Table of the horizontal pass, int32 (1 + taps, size); see `bicubic_table`.
        down: Table of the vertical pass, of the same form.
    """

    height: int
    width: int
    size: int
    across: Table
    down: Table

    @property
    def table(self) -> Table:
        """Both tables, one after the other, as they are copied to the GPU."""
        return np.concatenate([self.across, self.down])

    @property
    def scratch(self) -> int:
        """Bytes that the kernels need for the picture resized horizontally, uint8 (height, size, 3)."""
        return self.height * self.size * 3

    def launches(self, image: int, table: int, scratch: int, out: int) -> list[Launch]:
        """Return the kernels to run, in order.

        Args:
            image: Address on the GPU of the picture.
            table: Address on the GPU of `table`.
            scratch: Address on the GPU of `scratch` bytes.
            out: Address on the GPU to write the input to.
        """
        down = table + self.across.nbytes
        return [
            Launch("resize_across", self.height, (image, scratch, table, self.width, len(self.across) - 1)),
            Launch("resize_down", self.size, (scratch, out, down, len(self.down) - 1)),
        ]


class FragmentsPlan(NamedTuple):
    """The plan that makes an input by the rule `fragments` from pictures of one size.

    Attributes:
        width: Width of the picture, pixels.
        size: Height and width of the input, pixels.
        table: int32 (6, size). The first three rows are for the rows of the mosaic: the two rows of the picture to
            blend, and the weight of the second one times 2**22. The last three rows are the same for its columns.
        scratch: Bytes of further memory that the kernels need: none.
    """

    width: int
    size: int
    table: Table
    scratch: int = 0

    def launches(self, image: int, table: int, scratch: int, out: int) -> list[Launch]:
        """Return the kernels to run, in order; see `ResizePlan.launches`."""
        return [Launch("read_fragments", self.size, (image, out, table, self.width))]


Plan = ResizePlan | FragmentsPlan


def plan_resize(height: int, width: int, rule: Resize) -> ResizePlan:
    """Work out the tables of the rule `resize` for pictures of height x width."""
    across, down = (bicubic_table(side, rule.size) for side in (width, height))
    return ResizePlan(height, width, rule.size, across, down)


def plan_fragments(height: int, width: int, rule: Fragments) -> FragmentsPlan:
    """Work out the table of the rule `fragments` for pictures of height x width."""
    shorter = min(height, width)
    tall, wide = (enlarged_side(side, shorter, rule.size) for side in (height, width))
    rows, columns = fragment_positions(tall, wide, rule)
    # Every weight is 0 if the picture is not enlarged.
    table = np.array([*neighbours(rows.ravel(), height, tall), *neighbours(columns.ravel(), width, wide)], np.int32)
    return FragmentsPlan(width, rule.size, table)


#: Most threads in a block of CUDA. A kernel has a thread for each column of an input.
MAX_THREADS: Final = 1024
#: The function that plans each rule that has kernels, by the rule's name.
TWINS: Final[Mapping[str, Callable[[int, int, Any], Plan]]] = {
    Resize.rule: plan_resize,
    Fragments.rule: plan_fragments,
}


def require_twins(contract: Contract) -> None:
    """Refuse a model that has an input which no kernel makes.

    Raises:
        UsageError: The model has such an input, or one wider than a block of threads. The message names the input.
    """
    for one in contract.inputs:
        if one.rule.rule not in TWINS:
            raise UsageError(
                f"input {one.name} is made by the rule {one.rule.rule}, which has no CUDA kernel; give pictures as "
                "numpy arrays, or make the inputs yourself for score_views"
            )
        if one.shape[-2] > MAX_THREADS:
            raise UsageError(
                f"input {one.name} is {one.shape[-2]} pixels wide, and the CUDA kernels make up to {MAX_THREADS}; give "
                "pictures as numpy arrays"
            )


def plan(height: int, width: int, model_input: ModelInput) -> Plan:
    """Work out how an input is made from pictures of height x width.

    Raises:
        UsageError: A side is under 1 or over 65,535 pixels.
    """
    if min(height, width) < 1 or max(height, width) > MAX_SIDE:
        raise UsageError(f"a picture of {height} x {width}: sides of 1 to {MAX_SIDE} pixels are taken")
    return TWINS[model_input.rule.rule](height, width, model_input.rule)


def compile_kernels(arch: str, size: int) -> ObjectCode:
    """Compile the kernels with NVRTC, which needs no GPU.

    Args:
        arch: The architecture of the GPU to compile for, for example "sm_90".
        size: Height and width of the inputs that the kernels make, pixels.

    Raises:
        BackendError: NVRTC is missing, or does not know the architecture.
    """
    from cuda.core import Program, ProgramOptions

    source = resources.files("glia_rt.backends.cuda").joinpath("views.cu").read_text(encoding="utf-8")
    macros = [("VIEW_SIZE", str(size)), ("WEIGHT_BITS", str(WEIGHT_BITS))]
    try:
        return Program(source, "c++", ProgramOptions(arch=arch, define_macro=macros)).compile("cubin")
    except Exception as error:  # cuda-core's exceptions are not public
        raise BackendError(
            f"the CUDA kernels cannot be compiled for {arch}: {' '.join(str(error).split())}; "
            'they need compute capability 7.5 or later, and NVRTC: pip install "nvidia-cuda-nvrtc>=13,<14"'
        ) from error


class CudaViews:
    """Makes a model's inputs from pictures that are already on the GPU.

    Threads may share it if each uses a stream of its own. The device must be current in every thread.
    """

    def __init__(self, contract: Contract, device: Device) -> None:
        """Compile the kernels for a GPU.

        Args:
            contract: The model's inputs and their rules.
            device: The GPU. It must be current in this thread.

        Raises:
            UsageError: The rule of an input has no kernels.
            BackendError: The kernels cannot be compiled for this GPU.
        """
        require_twins(contract)
        self._contract = contract
        self._device = device
        sizes = {one.shape[-2] for one in contract.inputs}
        names = ("resize_across", "resize_down", "read_fragments")
        self._kernels = {}
        for size in sizes:
            code = compile_kernels(f"sm_{device.arch}", size)
            self._kernels[size] = {name: code.get_kernel(name) for name in names}
        self._uploads = device.create_stream()

    def make(self, image: int, height: int, width: int, outputs: Mapping[str, int], stream: Stream) -> None:
        """Queue the work that makes all inputs of a picture.

        The call does not wait for this work to end, nor for earlier work on the stream.

        Args:
            image: Address of the picture on the GPU, uint8 (height, width, 3), RGB, C-contiguous.
            height: Height of the picture, 1 to 65,535 pixels.
            width: Width of the picture, 1 to 65,535 pixels.
            outputs: Addresses on the GPU to write the inputs to, by input name. Each has room for one array of the
                input's shape, uint8.
            stream: The stream to queue the work on. It must not be under capture into a CUDA graph, because tables are
                uploaded.

        Raises:
            UsageError: A side is out of range.
        """
        from cuda.core import LaunchConfig, launch

        plans = [(one, plan(height, width, one)) for one in self._contract.inputs]
        tables = self._upload([work.table for _, work in plans])
        scratch = self._device.allocate(max([1, *(work.scratch for _, work in plans)]), stream=stream)
        at = int(tables.handle)
        for one, work in plans:
            for kernel, rows, arguments in work.launches(image, at, int(scratch.handle), outputs[one.name]):
                config = LaunchConfig(grid=(3, rows), block=work.size)
                launch(stream, config, self._kernels[work.size][kernel], *arguments)
            at += work.table.nbytes
        tables.close(stream)  # freed in the order of the stream, so after the kernels
        scratch.close(stream)

    def _upload(self, tables: Sequence[Table]) -> Buffer:
        from cuda.core import Buffer

        # The array must live until the copy has ended, so this waits for the copy. Uploads have a stream of their own.
        # On the caller's stream, the copy from pageable memory and the wait would also wait for the caller's work.
        flat = np.concatenate([table.ravel() for table in tables])
        buffer = self._device.allocate(flat.nbytes, stream=self._uploads)
        buffer.copy_from(Buffer.from_handle(flat.ctypes.data, flat.nbytes, owner=flat), stream=self._uploads)
        self._uploads.sync()
        return buffer
