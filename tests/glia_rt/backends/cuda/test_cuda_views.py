"""The kernels are compiled twice without a GPU: by g++, to run them, and by NVRTC, for every GPU they are meant for."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from helpers.contracts import CONTRACT, LARGE_SIZES, SIZES, VIEW_SIZE

from glia_rt.backends.cuda.views import TWINS, CudaViews, compile_kernels, plan, require_twins
from glia_rt.errors import BackendError, UsageError
from glia_rt.pixels.bicubic import WEIGHT_BITS, bicubic_table
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import RULES, make_inputs

Pixels = npt.NDArray[np.uint8]

SIZE = VIEW_SIZE

# What CUDA gives a kernel, for g++: the threads come one after the other.
ON_THE_CPU = """
#define __global__
#define __device__
static struct { unsigned x, y; } blockIdx, threadIdx;
#include SOURCE

template <typename... Types>
static void run(void (*kernel)(Types...), long long rows, Types... arguments) {
    for (blockIdx.y = 0; blockIdx.y < rows; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < 3; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < VIEW_SIZE; ++threadIdx.x) kernel(arguments...);
}
extern "C" void run_resize_across(long long rows, Level* in, Level* out, int* table, long long width, long long taps) {
    run<const Level*, Level*, const int*>(resize_across, rows, in, out, table, width, taps);
}
extern "C" void run_resize_down(long long rows, Level* in, Level* out, int* table, long long taps) {
    run<const Level*, Level*, const int*>(resize_down, rows, in, out, table, taps);
}
extern "C" void run_read_fragments(long long rows, Level* in, Level* out, int* table, long long width) {
    run<const Level*, Level*, const int*>(read_fragments, rows, in, out, table, width);
}
"""


def noise(height: int, width: int) -> Pixels:
    """Hard for a resize: every value occurs, and neighbours are far apart."""
    return np.random.default_rng(height * 100_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    assert compiler, "g++ is not installed; these tests compile the CUDA kernels with it: apt-get install g++"
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(ON_THE_CPU)
    with resources.as_file(resources.files("glia_rt.backends.cuda") / "views.cu") as source:
        defines = [f"-DVIEW_SIZE={SIZE}", f"-DWEIGHT_BITS={WEIGHT_BITS}", f'-DSOURCE="{source}"']
        flags = ["-std=c++17", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, *defines, "kernels.cpp", "-o", "kernels.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def views_on_the_cpu(kernels: ctypes.CDLL, image: Pixels) -> dict[str, Pixels]:
    """What `CudaViews.make` does, with the CPU as its GPU."""
    height, width, _ = image.shape
    made = {}
    for one in CONTRACT.inputs:
        work = plan(height, width, one)
        table, scratch = work.table, np.empty(max(1, work.scratch), np.uint8)
        made[one.name] = np.empty(one.shape, np.uint8)
        addresses = [array.ctypes.data for array in (image, table, scratch, made[one.name])]
        for kernel, count, arguments in work.launches(*addresses):
            kernels[f"run_{kernel}"](ctypes.c_longlong(count), *map(ctypes.c_longlong, arguments))
    return made


def assert_same(made: dict[str, Pixels], image: Pixels) -> None:
    expected = make_inputs(image, CONTRACT)
    assert list(made) == list(expected)
    for name, view in made.items():
        np.testing.assert_array_equal(view, expected[name])


@pytest.mark.parametrize(("height", "width"), [*SIZES, *LARGE_SIZES])
def test_the_kernels_give_the_cpu_samplers_views(kernels: ctypes.CDLL, height: int, width: int) -> None:
    image = noise(height, width)
    assert_same(views_on_the_cpu(kernels, image), image)


def test_the_kernels_on_photographs(kernels: ctypes.CDLL, selftest_pictures: list[Path]) -> None:
    for picture in selftest_pictures:
        image = read_image(picture)
        assert_same(views_on_the_cpu(kernels, image), image)


@pytest.mark.parametrize("side", [1, 2, 223, 224, 225, 640, 4000, 65535])
def test_no_weight_reads_outside_the_picture_and_no_sum_overflows(side: int) -> None:
    table = bicubic_table(side, SIZE)
    first, weights = table[0], table[1:]
    assert first.min() >= 0
    assert (first + len(weights)).max() <= side
    assert np.abs(weights.sum(axis=0) - 2**WEIGHT_BITS).max() <= len(weights)
    assert 255 * np.abs(weights).sum(axis=0).max() + 2 ** (WEIGHT_BITS - 1) < 2**31


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (65536, 5), (5, 65536)])
def test_sides_out_of_range_are_refused(height: int, width: int) -> None:
    with pytest.raises(UsageError, match=f"{height} x {width}: sides of 1 to 65535 pixels are taken"):
        plan(height, width, CONTRACT.inputs[0])


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_nvrtc_compiles_the_kernels(arch: str) -> None:
    code = compile_kernels(arch, SIZE).code
    assert code.startswith(b"\x7fELF")
    for kernel in (b"resize_across", b"resize_down", b"read_fragments"):
        assert b".text." + kernel in code


def test_a_gpu_that_nvrtc_does_not_know_is_refused() -> None:
    with pytest.raises(BackendError, match=r"compiled for sm_70: .*need compute capability 7\.5 or later"):
        compile_kernels("sm_70", SIZE)


def test_every_rule_has_a_twin_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(TWINS) <= set(RULES)
    require_twins(CONTRACT)
    monkeypatch.setattr("glia_rt.backends.cuda.views.TWINS", {"resize": TWINS["resize"]})
    with pytest.raises(UsageError, match="input fragments is made by the rule fragments, which has no CUDA kernel"):
        require_twins(CONTRACT)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    from cuda.core import Buffer, Device

    def on_the_host(array: Pixels) -> Buffer:
        return Buffer.from_handle(array.ctypes.data, array.nbytes, owner=array)

    device = Device()
    device.set_current()
    views = CudaViews(CONTRACT, device)
    streams = [device.create_stream(), device.create_stream()]
    images = [noise(height, width) for height, width in SIZES]
    made = []
    for i, image in enumerate(images):  # all are in flight at once, on two streams
        stream = streams[i % 2]
        picture = device.allocate(image.nbytes, stream=stream)
        picture.copy_from(on_the_host(image), stream=stream)
        buffers = {one.name: device.allocate(math.prod(one.shape), stream=stream) for one in CONTRACT.inputs}
        outputs = {name: int(buffer.handle) for name, buffer in buffers.items()}
        views.make(int(picture.handle), *SIZES[i], outputs, stream)
        picture.close(stream)
        made.append(buffers)
    device.sync()
    for image, buffers in zip(images, made, strict=True):
        found = {one.name: np.empty(one.shape, np.uint8) for one in CONTRACT.inputs}
        for name, buffer in buffers.items():
            buffer.copy_to(on_the_host(found[name]), stream=streams[0])
        streams[0].sync()
        assert_same(found, image)
