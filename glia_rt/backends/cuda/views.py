"""A picture in GPU memory -> a model's inputs, where it lies: rules of the contract as CUDA kernels, equal to the bit.

What depends on the size of a picture alone is worked out here, in tables of whole numbers: which pixels each pixel of
an input is made of, and their weights. The kernels, in views.cu, do the arithmetic on the pixels. A rule without a
twin in `TWINS` is refused: its inputs are made on the host.
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
    """One kernel over so many rows of pixels; its arguments are addresses and numbers, 64 bits each."""

    kernel: str
    rows: int
    arguments: tuple[int, ...]


class ResizePlan(NamedTuple):
    """What makes an input of the rule `resize` of pictures of one size.

    Attributes:
        height: Of the picture, pixels.
        width: Of the picture, pixels.
        size: Of the input, pixels.
        across: Table of the horizontal pass, int32 (1 + taps, size); see `bicubic_table`.
        down: Table of the vertical pass, likewise.
    """

    height: int
    width: int
    size: int
    across: Table
    down: Table

    @property
    def table(self) -> Table:
        """Both tables, one after the other: what the GPU has to be given."""
        return np.concatenate([self.across, self.down])

    @property
    def scratch(self) -> int:
        """Bytes of room that the kernels need: the picture resized horizontally, uint8 (height, size, 3)."""
        return self.height * self.size * 3

    def launches(self, image: int, table: int, scratch: int, out: int) -> list[Launch]:
        """Return the kernels to run, in order; see `Plan.launches`."""
        down = table + self.across.nbytes
        return [
            Launch("resize_across", self.height, (image, scratch, table, self.width, len(self.across) - 1)),
            Launch("resize_down", self.size, (scratch, out, down, len(self.down) - 1)),
        ]


class FragmentsPlan(NamedTuple):
    """What makes an input of the rule `fragments` of pictures of one size.

    Attributes:
        width: Of the picture, pixels.
        size: Of the input, pixels.
        table: int32 (6, size): for each row of the mosaic the two rows of the picture to blend and the second one's
            weight times 2**22, then the same for its columns.
    """

    width: int
    size: int
    table: Table
    scratch: int = 0

    def launches(self, image: int, table: int, scratch: int, out: int) -> list[Launch]:
        """Return the kernels to run, in order; see `Plan.launches`."""
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
    # Of a picture that is not enlarged every weight is 0.
    table = np.array([*neighbours(rows.ravel(), height, tall), *neighbours(columns.ravel(), width, wide)], np.int32)
    return FragmentsPlan(width, rule.size, table)


#: How each rule that has kernels is planned, by the rule's name.
TWINS: Final[Mapping[str, Callable[[int, int, Any], Plan]]] = {
    Resize.rule: plan_resize,
    Fragments.rule: plan_fragments,
}


def require_twins(contract: Contract) -> None:
    """Refuse a model one of whose inputs no kernel makes.

    Raises:
        UsageError: It names the input and the rule.
    """
    for one in contract.inputs:
        if one.rule.rule not in TWINS:
            raise UsageError(
                f"input {one.name} is made by the rule {one.rule.rule}, which has no CUDA kernel; give pictures as "
                "numpy arrays, or make the inputs yourself for score_views"
            )


def plan(height: int, width: int, model_input: ModelInput) -> Plan:
    """Work out how an input is made of pictures of height x width.

    Raises:
        UsageError: A side is under 1 or over 65,535 pixels.
    """
    if min(height, width) < 1 or max(height, width) > MAX_SIDE:
        raise UsageError(f"a picture of {height} x {width}: sides of 1 to {MAX_SIDE} pixels are taken")
    return TWINS[model_input.rule.rule](height, width, model_input.rule)


def compile_kernels(arch: str, size: int) -> ObjectCode:
    """Compile the kernels with NVRTC, which needs no GPU.

    Args:
        arch: The GPU to compile for: "sm_90", say.
        size: Height and width of the input they make, pixels.

    Raises:
        BackendError: NVRTC is not there, or does not know the GPU.
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
    """The inputs of a model, made of pictures that are on the GPU already.

    Threads may share it, each on a stream of its own. The device must be current in all of them.
    """

    def __init__(self, contract: Contract, device: Device) -> None:
        """Compile the kernels for a GPU.

        Args:
            contract: Which inputs, and by which rules.
            device: The GPU, current in this thread.

        Raises:
            UsageError: An input's rule has no kernels.
            BackendError: They cannot be compiled for this GPU.
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
        """Start the making of all inputs of a picture. It waits neither for its end nor for earlier work on the stream.

        Args:
            image: Address of the picture on the GPU, uint8 (height, width, 3), RGB, C-contiguous.
            height: 1 to 65,535.
            width: 1 to 65,535.
            outputs: Addresses on the GPU to write to, by input name: room for uint8 of the input's shape.
            stream: Where the work is queued. Not one that is being captured into a graph: tables are uploaded.

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
        tables.close(stream)  # freed in the order of the stream, after the kernels
        scratch.close(stream)

    def _upload(self, tables: Sequence[Table]) -> Buffer:
        from cuda.core import Buffer

        # On a stream of its own: there a copy from pageable memory, and the wait for its end, after which the array may
        # go, do not wait for the work on the caller's stream.
        flat = np.concatenate([table.ravel() for table in tables])
        buffer = self._device.allocate(flat.nbytes, stream=self._uploads)
        buffer.copy_from(Buffer.from_handle(flat.ctypes.data, flat.nbytes, owner=flat), stream=self._uploads)
        self._uploads.sync()
        return buffer
