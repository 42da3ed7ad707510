"""The backends on a GPU, each as far as its package is installed; nothing of this runs without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cuda.bindings import driver
from cuda.core import Device

from glia_engines.build import build, capability_names
from glia_rt import Scorer
from glia_rt.backends.choose import GPU_BACKENDS, unavailable
from glia_rt.backends.cuda.device import Gpu, why_no_gpu
from glia_rt.backends.cuda.engine import find_engines
from glia_rt.backends.cuda.lanes import GpuBackend, trim_pool
from glia_rt.bundle import Bundle
from glia_rt.errors import BackendError, EngineError, UsageError
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.verify import SCORE_LIMITS, require, selftest
from glia_train.models.glianet import FRAGMENTS, GLOBAL_VIEW, GLIANet

pytestmark = pytest.mark.gpu

RTX = "tensorrt-rtx"
INSTALLED = [name for name in GPU_BACKENDS if why_no_gpu() is not None or unavailable(name) is None]


def is_for_rtx() -> bool:
    """Return whether TensorRT for RTX builds for this GPU. It does not for some data-centre GPUs."""
    import tensorrt_rtx

    return Gpu.open(0).capability in capability_names(tensorrt_rtx)


NOT_FOR_RTX = why_no_gpu() is None and RTX in INSTALLED and not is_for_rtx()
RUN_HERE = [name for name in INSTALLED if not (name == RTX and NOT_FOR_RTX)]
needs_rtx = pytest.mark.skipif(RTX not in RUN_HERE, reason="TensorRT for RTX does not run here")
#: Smallest, usual and largest picture of the engines that take pictures: those of the selftest are within.
SIZES = ((128, 128), (512, 512), (1024, 1024))
SPAN = 4.0  # of the tiny model's range, 1 to 5

Views = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with an engine for each target that is installed."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("gpu") / "tiny.glia")
    for target in set(INSTALLED) & {"tensorrt", RTX}:
        named = ["8.0" if NOT_FOR_RTX else Gpu.open(0).capability] if target == RTX else []
        build(folder, target, capabilities=named)
        build(folder, target, capabilities=named, precision="fp32")
        build(folder, target, capabilities=named, input="image", sizes=SIZES, batch=(1, 2, 8))
    return folder


@pytest.fixture(scope="module", params=RUN_HERE)
def scorer(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Scorer]:
    with Scorer.open(bundle, request.param, batch_size=8) as opened:
        yield opened


@pytest.fixture
def backend(scorer: Scorer) -> GpuBackend:
    assert isinstance(scorer.backend, GpuBackend)
    return scorer.backend


@pytest.fixture(scope="module")
def views(tiny_bundle: Path, selftest_pictures: list[Path]) -> Views:
    contract = Bundle.open(tiny_bundle).contract
    sampled = [make_inputs(read_image(path), contract) for path in selftest_pictures]
    sampled += [make_inputs(np.full((300, 400, 3), level, np.uint8), contract) for level in (0, 255)]
    return {name: np.stack([inputs[name] for inputs in sampled]) for name in (GLOBAL_VIEW, FRAGMENTS)}


def taken(views: Views, which: Any) -> Views:
    return {name: array[which] for name, array in views.items()}


def on_gpu(views: Views, device: int = 0) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(f"cuda:{device}") for name, array in views.items()}


def test_some_backend_is_installed() -> None:
    assert RUN_HERE, "a GPU, and nothing of glia-rt[gpu,rtx,tensorrt] to run on it"


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_scores_are_those_of_pytorch(backend: GpuBackend, views: Views, tiny_model: GLIANet, batch: int) -> None:
    with torch.inference_mode():
        reference = tiny_model.score(*(torch.from_numpy(views[name]) for name in (GLOBAL_VIEW, FRAGMENTS))).numpy()
    scores = np.concatenate([backend.run(taken(views, np.s_[i : i + batch])) for i in range(0, 8, batch)])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, reference, rtol=0, atol=SCORE_LIMITS[backend.precision] * SPAN)


def test_the_selftest_passes(scorer: Scorer) -> None:
    require(selftest(scorer))


def test_a_score_is_the_same_at_every_place_of_a_batch(backend: GpuBackend, views: Views) -> None:
    scores = backend.run(views)
    for shift in range(1, 8):
        moved = backend.run(taken(views, np.roll(np.arange(8), shift)))
        np.testing.assert_array_equal(np.roll(moved, -shift), scores)


def test_after_the_warm_up_no_size_of_batch_takes_more_memory(bundle: Path, backend: GpuBackend, views: Views) -> None:
    with Scorer.open(bundle, backend.name, batch_size=8) as warm:
        warm.warm_up()
        free, _ = torch.cuda.mem_get_info()
        for count in range(1, 9):
            warm.score_views(**taken(views, np.s_[:count]))
        assert free - torch.cuda.mem_get_info()[0] < 16 << 20  # others may use the GPU, too


def test_a_batch_that_is_over_the_memory_so_far_gets_more(bundle: Path, backend: GpuBackend, views: Views) -> None:
    """What was prepared before is prepared again, at the new addresses."""
    expected = [backend.run(taken(views, np.s_[:count])) for count in (1, 8)]
    with Scorer.open(bundle, backend.name, batch_size=1) as growing:
        for _ in range(3):  # on both lanes
            for count, scores in zip((1, 8), expected, strict=True):
                np.testing.assert_array_equal(growing.backend.run(taken(views, np.s_[:count])), scores)


def test_a_padded_batch_scores_as_a_full_one(backend: GpuBackend, views: Views) -> None:
    """Five pictures run as eight; what fills the batch does not matter, and later runs are not disturbed."""
    full = backend.run(views)
    np.testing.assert_array_equal(backend.run(taken(views, np.s_[:5])), full[:5])
    np.testing.assert_array_equal(backend.run(views), full)


def test_threads_share_a_backend(backend: GpuBackend, views: Views) -> None:
    expected = [backend.run(taken(views, [i, i])) for i in range(8)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: backend.run(taken(views, [i % 8, i % 8])), range(48)))
    for i, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[i % 8])


def test_the_pipeline_gives_the_same_scores(scorer: Scorer, pictures: Path) -> None:
    files = sorted(pictures.iterdir())
    expected = np.concatenate([scorer.score_batch(files[i : i + 8]) for i in range(0, len(files), 8)])
    found = [result.score for result in scorer.score_files([pictures])]
    np.testing.assert_array_equal(found, expected)


# Data on the GPU


def test_arrays_on_the_gpu_are_read_where_they_lie(scorer: Scorer, views: Views) -> None:
    expected = scorer.score_views(**views)
    there = on_gpu(views)
    for _ in range(3):
        np.testing.assert_array_equal(scorer.score_views(**there), expected)


class Interface:
    """The same by __cuda_array_interface__ alone, as PyCUDA has it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), np.dtype(np.uint8)
        self.__cuda_array_interface__ = dict(tensor.__cuda_array_interface__)


def test_the_older_interface_does_as_well(scorer: Scorer, views: Views) -> None:
    expected = scorer.score_views(**views)
    there = {name: Interface(tensor) for name, tensor in on_gpu(views).items()}
    np.testing.assert_array_equal(scorer.score_views(**there), expected)


def test_work_queued_before_is_waited_for(scorer: Scorer, views: Views) -> None:
    """The arrays are filled on torch's own stream, behind much work, just before they are scored."""
    expected = scorer.score_views(**views)
    there, work = on_gpu(views), torch.randn(4096, 4096, device="cuda")
    filled = {name: torch.zeros_like(tensor) for name, tensor in there.items()}
    torch.cuda.synchronize()
    for _ in range(20):
        work = work @ work
    for name, tensor in there.items():
        filled[name].copy_(tensor)
    np.testing.assert_array_equal(scorer.score_views(**filled), expected)


def test_pictures_on_the_gpu_are_sampled_there(scorer: Scorer, selftest_pictures: list[Path]) -> None:
    pixels = [read_image(path) for path in selftest_pictures] * 3  # more than one batch
    expected = np.concatenate([scorer.score_batch(pixels[i : i + 8]) for i in range(0, len(pixels), 8)])
    found = scorer.score_batch([torch.from_numpy(array.copy()).cuda() for array in pixels])  # type: ignore[misc]
    np.testing.assert_array_equal(found, expected)


def test_arrays_may_start_anywhere(scorer: Scorer, views: Views) -> None:
    """TensorRT takes addresses that are multiples of 256 alone."""
    expected = scorer.score_views(**views)
    shifted = {}
    for name, view in on_gpu(views).items():
        memory = torch.empty(view.numel() + 1, dtype=torch.uint8, device="cuda")
        shifted[name] = memory[1:].view(view.shape).copy_(view)
        assert shifted[name].data_ptr() % 2 == 1
    np.testing.assert_array_equal(scorer.score_views(**shifted), expected)


def test_more_arrays_than_a_batch_and_in_any_order(scorer: Scorer, backend: GpuBackend, views: Views) -> None:
    expected = scorer.score_views(**views)
    there = on_gpu({name: np.concatenate([array] * 3)[:20] for name, array in views.items()})
    np.testing.assert_array_equal(scorer.score_views(**there), np.resize(expected, 20))
    for inputs in (views, there):
        np.testing.assert_array_equal(backend.run(dict(reversed(inputs.items())))[:8], expected)


def test_threads_may_warm_up_at_once(scorer: Scorer) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: scorer.warm_up(), range(8), timeout=120)) == [None] * 8


def test_fewer_arrays_than_a_batch(scorer: Scorer, views: Views) -> None:
    expected = scorer.score_views(**views)
    for count in (1, 3, 5):
        there = on_gpu(taken(views, np.s_[:count]))
        np.testing.assert_array_equal(scorer.score_views(**there), scorer.score_views(**taken(views, np.s_[:count])))
        assert len(scorer.score_views(**there)) == count
    np.testing.assert_array_equal(scorer.score_views(**on_gpu(views)), expected)


def test_another_stream_of_the_caller_is_waited_for(scorer: Scorer, views: Views) -> None:
    expected = scorer.score_views(**views)
    there, work = on_gpu(views), torch.randn(4096, 4096, device="cuda")
    filled = {name: torch.zeros_like(tensor) for name, tensor in there.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            work = work @ work
        for name, tensor in there.items():
            filled[name].copy_(tensor)
        np.testing.assert_array_equal(scorer.score_views(**filled), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_arrays_of_another_gpu_are_refused(scorer: Scorer, views: Views) -> None:
    for there in (torch.from_numpy(views[GLOBAL_VIEW]).to("cuda:1"), Interface(on_gpu(views, 1)[GLOBAL_VIEW])):
        with pytest.raises(UsageError, match="is not in the memory of GPU 0: move it there"):
            scorer.score_views(**on_gpu(views) | {GLOBAL_VIEW: there})
    assert len(scorer.score_views(**on_gpu(views))) == 8


@pytest.mark.skipif(
    torch.cuda.device_count() < 2 or torch.cuda.get_device_name(0) != torch.cuda.get_device_name(1),
    reason="there are no two GPUs of one type",
)
def test_two_gpus_score_alike(bundle: Path, views: Views) -> None:
    with Scorer.open(bundle, RUN_HERE[0], batch_size=8, device=[0, 1]) as scorer:
        scores = [scorer.score_views(**views) for _ in range(4)]
    for found in scores[1:]:
        np.testing.assert_array_equal(found, scores[0])


def test_an_address_on_the_host_is_refused(scorer: Scorer, views: Views) -> None:
    """`__cuda_array_interface__` does not say where its address is, so the driver is asked."""
    there = on_gpu(views)
    lying = Interface(there[GLOBAL_VIEW])
    lying.__cuda_array_interface__["data"] = (views[GLOBAL_VIEW].ctypes.data, False)
    with pytest.raises(UsageError, match="is not in the memory of GPU 0: move it there"):
        scorer.score_views(**there | {GLOBAL_VIEW: lying})
    assert len(scorer.score_views(**there)) == 8


# The graph that makes the inputs itself, and FP32


def test_the_image_graph(bundle: Path, scorer: Scorer, backend: GpuBackend, selftest_pictures: list[Path]) -> None:
    pixels = [read_image(path) for path in selftest_pictures]
    expected = scorer.score_batch(pixels)
    with Scorer.open(bundle, backend.name, input="image", batch_size=2) as opened:
        found = opened.score_batch(pixels)
        there = opened.score_batch([torch.from_numpy(array.copy()).cuda() for array in pixels])  # type: ignore[misc]
    np.testing.assert_array_equal(there, found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * SCORE_LIMITS["fp16"] * SPAN)


@pytest.mark.parametrize("name", RUN_HERE)
def test_fp32(bundle: Path, views: Views, tiny_model: GLIANet, name: str) -> None:
    with torch.inference_mode():
        reference = tiny_model.score(*(torch.from_numpy(views[name]) for name in (GLOBAL_VIEW, FRAGMENTS))).numpy()
    with Scorer.open(bundle, name, precision="fp32", batch_size=8) as opened:
        require(selftest(opened))
        np.testing.assert_allclose(opened.score_views(**views), reference, rtol=0, atol=SCORE_LIMITS["fp32"] * SPAN)


# What a call leaves behind


SCORES = """
import sys
from glia_rt import Scorer
with Scorer.open(sys.argv[1], sys.argv[2], batch_size=8) as scorer:
    print(*(score.hex() for score in scorer.score_batch(sys.argv[3:]).tolist()))
"""


def test_scores_are_the_same_in_every_process(
    bundle: Path, scorer: Scorer, backend: GpuBackend, selftest_pictures: list[Path]
) -> None:
    expected = [score.hex() for score in scorer.score_batch(selftest_pictures).tolist()]
    command = [sys.executable, "-c", SCORES, str(bundle), backend.name, *map(str, selftest_pictures)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.split() == expected


def current_context() -> int:
    status, context = driver.cuCtxGetCurrent()
    assert status == driver.CUresult.CUDA_SUCCESS
    return int(context)


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_current_gpu_of_the_thread_is_left_alone(bundle: Path, views: Views, name: str) -> None:
    """Once without a current context, and once with a context of the caller's own."""
    pixels, there = torch.from_numpy(views[FRAGMENTS][0]).cuda(), on_gpu(views)

    def calls() -> Iterator[int]:
        with Scorer.open(bundle, name, batch_size=8) as opened:
            yield current_context()
            opened.score_views(**views)
            yield current_context()
            opened.score_views(**there)
            yield current_context()
            opened.score_batch([pixels])  # type: ignore[list-item]
            yield current_context()
            with pytest.raises(UsageError):
                opened.score_views(**views | {GLOBAL_VIEW: there[GLOBAL_VIEW]})
            yield current_context()
        yield current_context()

    def with_none() -> set[int]:
        assert current_context() == 0
        return set(calls())

    def with_another() -> set[int]:
        status, context = driver.cuCtxCreate(None, 0, 0)
        assert status == driver.CUresult.CUDA_SUCCESS
        try:
            return {found - int(context) for found in calls()}
        finally:
            driver.cuCtxDestroy(context)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(with_none).result() == {0}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(with_another).result() == {0}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda view: view.cpu(), "is not in the memory of GPU 0: move it there"),
        (lambda view: view.float(), "must be uint8"),
        (lambda view: view.permute(0, 2, 1, 3), "must be C-contiguous"),
    ],
    ids=["on the host", "float", "transposed"],
)
def test_other_arrays_are_refused(
    scorer: Scorer, views: Views, spoil: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    there = on_gpu(views)
    with pytest.raises(UsageError, match=reason):
        scorer.score_views(**there | {GLOBAL_VIEW: spoil(there[GLOBAL_VIEW])})
    assert len(scorer.score_views(**there)) == 8


# Errors and ends


def test_too_large_a_batch(backend: GpuBackend, views: Views) -> None:
    count = 5000
    with pytest.raises(BackendError, match=f"a batch of {count} is over the engine's largest"):
        backend.run(taken(views, np.zeros(count, np.intp)))


@pytest.mark.parametrize("name", RUN_HERE)
def test_a_closed_backend_says_so(bundle: Path, views: Views, name: str) -> None:
    scorer = Scorer.open(bundle, name, batch_size=8)
    scorer.backend.run(views)
    scorer.close()
    scorer.close()
    with pytest.raises(BackendError, match=f"backend {name}: closed"):
        scorer.backend.run(views)


@pytest.mark.parametrize("name", RUN_HERE)
def test_a_full_gpu_is_an_error_that_says_what_to_do(bundle: Path, name: str) -> None:
    trim_pool(Device(0))
    free, _ = torch.cuda.mem_get_info()
    taken_up = torch.empty(free - (2 << 20), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(BackendError, match="memory"):
            Scorer.open(bundle, name, batch_size=8)
    finally:
        del taken_up
        torch.cuda.empty_cache()
    with Scorer.open(bundle, name, batch_size=8) as scorer:
        assert scorer.backend.name == name


@pytest.mark.skipif(not NOT_FOR_RTX, reason="there is no GPU that TensorRT for RTX does not build for")
def test_rtx_says_that_it_is_not_for_this_gpu(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"compute capability .*take --target tensorrt"):
        Scorer.open(bundle, RTX)


@needs_rtx
def test_what_rtx_compiled_is_found_again(bundle: Path) -> None:
    from glia_rt.backends.cuda.tensorrt import driver_version, runtime_cache_file

    [(_, record)] = find_engines(Bundle.open(bundle), RTX, "views", "fp16")
    gpu = Gpu.open(0)
    cache = runtime_cache_file(record, gpu.name, driver_version(gpu))
    assert cache is not None
    cache.unlink(missing_ok=True)
    with Scorer.open(bundle, RTX, batch_size=8):
        written = cache.stat().st_size
        assert written > 0, "it is written when the engine is prepared, not only when it is closed"
    with Scorer.open(bundle, RTX, batch_size=8) as scorer:
        require(selftest(scorer))
