from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from glia_rt.backends.base import Backend, BackendOptions
from glia_rt.backends.choose import AUTO, CPU_BACKENDS, GPU_BACKENDS, default_precision, open_backend
from glia_rt.bundle import Bundle
from glia_rt.contract import IMAGE
from glia_rt.errors import BackendError, UsageError
from glia_rt.machine import cpu_count
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.verify import SCORE_LIMITS
from glia_rt.versions import install_command
from glia_train.models.base import Model

Scores = npt.NDArray[np.float32]
Inputs = Mapping[str, npt.NDArray[np.uint8]]

# OpenVINO refuses bf16 where the processor lacks it, so what runs here is what the processor has.
PRECISIONS = {
    "onnxruntime": ["fp32"],
    "openvino": ["fp32", *({default_precision("openvino")} - {"fp32"})],
}
ENGINES = [(name, precision) for name in CPU_BACKENDS for precision in PRECISIONS[name]]


@pytest.fixture(scope="module", params=["plain", pytest.param("tiny", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    """Which model: what holds for an engine holds for both."""
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(kind: str, request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(f"{kind}_bundle"))


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Backend]:
    name, precision = request.param
    backend, _ = open_backend(name, bundle, BackendOptions(precision=precision))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def views(bundle: Bundle, selftest_pictures: list[Path]) -> Inputs:
    """Views of the six photographs, and of two that are all one colour."""
    pictures = [read_image(path) for path in selftest_pictures]
    pictures += [np.full((300, 400, 3), level, np.uint8) for level in (0, 255)]
    sampled = [make_inputs(picture, bundle.contract) for picture in pictures]
    return {one.name: np.stack([inputs[one.name] for inputs in sampled]) for one in bundle.contract.inputs}


@pytest.fixture(scope="module")
def reference(kind: str, request: pytest.FixtureRequest, views: Inputs) -> Scores:
    model: Model = request.getfixturevalue(f"{kind}_model")
    with torch.inference_mode():
        return model.score(*(torch.from_numpy(view) for view in views.values())).numpy()


def taken(inputs: Inputs, pictures: Any) -> Inputs:
    return {name: array[pictures] for name, array in inputs.items()}


# Scores


def test_nothing_is_loaded_or_compiled_after_the_warm_up(
    engine: Backend, bundle: Bundle, views: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy.glia"))
    warm, _ = open_backend(engine.name, copy, BackendOptions(precision=engine.precision))
    warm.warm_up()
    shutil.rmtree(copy.path)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    for count in (1, 3, 4):
        np.testing.assert_array_equal(warm.run(taken(views, np.s_[:count])), engine.run(taken(views, np.s_[:count])))
    warm.close()


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_scores_are_those_of_pytorch(engine: Backend, views: Inputs, reference: Scores, batch: int) -> None:
    assert np.ptp(reference[:6]) > 3, "a range this narrow would hide nothing but errors"
    scores = np.concatenate([engine.run(taken(views, np.s_[i : i + batch])) for i in range(0, 8, batch)])
    assert scores.dtype == np.float32
    assert scores.shape == (8,)
    limit = SCORE_LIMITS[engine.precision] * 4  # the range is 1 to 5
    np.testing.assert_allclose(scores, reference, rtol=0, atol=limit)


def test_bfloat16_is_what_it_says(bundle: Bundle, views: Inputs, reference: Scores) -> None:
    """A backend that said bf16 and ran fp32 would pass every other test."""
    assert default_precision("openvino") == PRECISIONS["openvino"][-1]
    for precision in PRECISIONS["openvino"]:
        backend, _ = open_backend("openvino", bundle, BackendOptions(precision=precision))
        off = np.abs(backend.run(views) - reference).max() / 4
        assert (off > 1e-4) == (precision == "bf16")
        backend.close()


def test_a_score_is_the_same_to_the_bit_at_every_place_of_a_batch(engine: Backend, views: Inputs) -> None:
    scores = engine.run(views)
    for shift in range(1, 8):
        moved = engine.run(taken(views, np.roll(np.arange(8), shift)))
        np.testing.assert_array_equal(np.roll(moved, -shift), scores)


def test_other_pictures_in_the_batch_do_not_matter(engine: Backend, views: Inputs) -> None:
    scores = engine.run(views)
    for i in (0, 3, 7):
        among_copies = engine.run(taken(views, [i] * 8))
        assert set(among_copies.tolist()) == {float(scores[i])}


def test_what_was_compiled_for_one_setting_is_not_taken_for_another(
    bundle: Bundle, views: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO 2026.4 itself took what was compiled in FP32 for BF16, and crashed or gave NaN."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def scores(precision: str) -> list[Scores]:
        backend, _ = open_backend("openvino", bundle, BackendOptions(precision=precision))
        try:
            return [backend.run(taken(views, np.s_[:count])) for count in (1, 8)]
        finally:
            backend.close()

    compiled = [scores(precision) for precision in PRECISIONS["openvino"]]
    assert len(list(tmp_path.rglob("*.blob"))) == len(PRECISIONS["openvino"]) * len({1, cpu_count()})
    from_cache = [scores(precision) for precision in reversed(PRECISIONS["openvino"])]
    for one, other in zip(compiled, reversed(from_cache), strict=True):
        for batch, again in zip(one, other, strict=True):
            assert np.isfinite(batch).all()
            np.testing.assert_array_equal(again, batch)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS["openvino"])
def test_a_compiled_model_from_the_cache_gives_the_same_scores(
    bundle: Bundle, views: Inputs, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def compiled_anew() -> Scores:
        backend, _ = open_backend("openvino", bundle, BackendOptions(precision=precision))
        try:
            return backend.run(views)
        finally:
            backend.close()

    first = compiled_anew()
    cached = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert cached, "nothing was cached"
    times = [path.stat().st_mtime_ns for path in cached]
    np.testing.assert_array_equal(compiled_anew(), first)
    assert [path.stat().st_mtime_ns for path in cached] == times
    for path in cached:
        os.truncate(path, 1000)  # as a killed process leaves it
    np.testing.assert_array_equal(compiled_anew(), first)


def test_a_home_that_cannot_be_written_costs_the_cache_and_nothing_else(
    bundle: Bundle, views: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    backend, _ = open_backend("openvino", bundle, BackendOptions())
    assert np.isfinite(backend.run(views)).all()
    backend.close()


def test_nothing_is_written_into_the_bundle(engine: Backend, bundle: Bundle, views: Inputs) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    engine.run(views)
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before


# Threads


def test_threads_share_an_engine(engine: Backend, views: Inputs) -> None:
    expected = [engine.run(taken(views, [i, i])) for i in range(8)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: engine.run(taken(views, [i % 8, i % 8])), range(24)))
    for i, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[i % 8])


FIRST_USE = """
import sys, threading
import numpy as np
from glia_rt.backends.base import BackendOptions
from glia_rt.backends.choose import open_backend
from glia_rt.bundle import Bundle

backend, _ = open_backend(sys.argv[1], Bundle.open(sys.argv[2]), BackendOptions())
start, scores = threading.Barrier(8), []

def work():
    views = np.zeros((2, 224, 224, 3), np.uint8)
    start.wait()
    scores.extend(backend.run({"global_view": views, "fragments": views}))

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(scores), len(set(scores)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_many_threads_at_once_are_the_first_use_of_an_engine(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """OpenVINO's binding deadlocks about every other time if two threads are the first to pass it an array.

    Only fresh processes can show it, and three of them hardly all escape it.
    """
    command = [sys.executable, "-c", FIRST_USE, name, str(tiny_bundle)]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / str(i))}
        )
        for i in range(3)
    ]
    try:
        assert [process.communicate(timeout=60)[0] for process in processes] == ["16 1\n"] * 3
    finally:
        for process in processes:
            process.kill()
            process.communicate()


# Errors


def test_a_closed_engine_says_so(bundle: Bundle, views: Inputs) -> None:
    for name in CPU_BACKENDS:
        backend, _ = open_backend(name, bundle, BackendOptions())
        backend.run(views)
        backend.close()
        backend.close()
        with pytest.raises(BackendError, match=f"backend {name}: closed"):
            backend.run(views)


def test_an_engine_that_fails_says_why_and_goes_on(engine: Backend, views: Inputs) -> None:
    first, *others = views
    wrong = [({**views, first: views[first][:, :, :8]}, "(dim|shape)"), ({IMAGE: views[first]}, "image")]
    if others:
        wrong.append(({**taken(views, np.s_[:3]), first: views[first][:2]}, "(3|shape)"))
    for inputs, reason in wrong:
        with pytest.raises(BackendError, match=f"backend {engine.name}: .*{reason}"):
            engine.run(inputs)
    assert len(engine.run(views)) == 8


def test_failures_use_nothing_up(engine: Backend, views: Inputs) -> None:
    """A request that is not given back after a failure would leave the next run to wait for ever."""

    def fail_often_then_run() -> None:
        for _ in range(engine.parallel + 1):
            with contextlib.suppress(BackendError):
                engine.run({IMAGE: next(iter(views.values()))})
        engine.run(views)

    thread = threading.Thread(target=fail_often_then_run, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_no_such_backend(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no backend 'tensorflow'; there are auto, tensorrt, .*openvino, onnxruntime"):
        open_backend("tensorflow", bundle, BackendOptions())


@pytest.mark.parametrize(
    ("name", "input", "precision", "reason"),
    [
        ("onnxruntime", "views", "bf16", "computes in fp32 on a CPU, not bf16"),
        ("onnxruntime", "views", "fp16", "computes in fp32 on a CPU, not fp16"),
        ("openvino", "views", "fp16", "computes in fp32 or bf16, not fp16"),
        ("openvino", "views", "int8", "computes in fp32 or bf16, not int8"),
        ("openvino", "image", None, "32 bits, the rules need 64; take input views"),
    ],
)
def test_a_precision_that_a_backend_lacks_is_refused(
    bundle: Bundle, name: str, input: Any, precision: str | None, reason: str
) -> None:
    with pytest.raises(BackendError, match=reason):
        open_backend(name, bundle, BackendOptions(input, precision))


def test_auto_says_why_it_passed_over_a_backend_that_lacks_the_precision(bundle: Bundle) -> None:
    with pytest.raises(
        BackendError, match=r"no backend works here\. .*; openvino: .*not fp16; onnxruntime: .*not fp16"
    ):
        open_backend(AUTO, bundle, BackendOptions(precision="fp16"))


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_a_backend_on_the_cpu_has_no_device(bundle: Bundle, name: str) -> None:
    with pytest.raises(BackendError, match=f"backend {name} runs on the CPU; --device is for GPUs"):
        open_backend(name, bundle, BackendOptions(device=0))


# Choice


def names(passed_over: list[str]) -> list[str]:
    return [reason.partition(":")[0] for reason in passed_over]


def test_auto_takes_the_first(bundle: Bundle) -> None:
    backend, passed_over = open_backend(AUTO, bundle, BackendOptions())
    assert (backend.name, backend.precision, backend.device) == ("openvino", default_precision("openvino"), "cpu")
    assert names(passed_over) == list(GPU_BACKENDS)
    backend.close()


def test_auto_passes_over_a_backend_that_cannot_sample(bundle: Bundle) -> None:
    backend, passed_over = open_backend(AUTO, bundle, BackendOptions("image"))
    assert backend.name == "onnxruntime"
    assert names(passed_over) == [*GPU_BACKENDS, "openvino"]
    backend.close()


CHOOSE = """
import json, sys
from glia_rt.backends.base import BackendOptions
from glia_rt.backends.choose import open_backend
from glia_rt.bundle import Bundle
from glia_rt.errors import GliaError
try:
    options = BackendOptions(precision=sys.argv[3] or None)
    backend, passed_over = open_backend(sys.argv[2], Bundle.open(sys.argv[1]), options)
    print(json.dumps([backend.name, passed_over]))
except GliaError as error:
    print(json.dumps([error.exit_status, str(error)]))
"""


@pytest.fixture
def choose(tiny_bundle: Path, without_packages: Callable[..., dict[str, str]]) -> Callable[..., list[Any]]:
    """open_backend in an environment that lacks packages: [name, passed over], or [exit status, message]."""

    def run(*missing: str, name: str = AUTO, precision: str = "") -> list[Any]:
        command = [sys.executable, "-S", "-c", CHOOSE, str(tiny_bundle), name, precision]
        environment = without_packages(*missing)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        found: list[Any] = json.loads(done.stdout)
        return found

    return run


OPENVINO = f"openvino is not installed: {install_command('cpu')}"
ONNXRUNTIME = f"onnxruntime is not installed: {install_command('cpu')}"


def test_auto_says_what_it_passed_over(choose: Callable[..., list[Any]]) -> None:
    name, passed_over = choose("openvino")
    assert name == "onnxruntime"
    assert names(passed_over) == [*GPU_BACKENDS, "openvino"]
    assert passed_over[-1] == f"openvino: {OPENVINO}"


def test_with_no_engine_the_error_names_the_extra(choose: Callable[..., list[Any]]) -> None:
    status, message = choose("openvino", "onnxruntime")
    assert status == 6
    assert message.startswith("no backend works here. tensorrt: ")
    assert message.endswith(f"; openvino: {OPENVINO}; onnxruntime: {ONNXRUNTIME}")


def test_an_explicit_choice_never_falls_back(choose: Callable[..., list[Any]]) -> None:
    assert choose("openvino", name="openvino") == [6, f"backend openvino: {OPENVINO}"]


def test_auto_passes_over_a_faster_backend_without_the_precision(choose: Callable[..., list[Any]]) -> None:
    status, message = choose("openvino", precision="bf16")
    assert status == 6
    assert message.endswith("onnxruntime: backend onnxruntime computes in fp32 on a CPU, not bf16")
