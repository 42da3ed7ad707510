"""The compiled pass is Pillow's to the bit, whatever the size; its weights are tested with the CUDA sampler's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.contracts import RESIZE
from PIL import Image

from glia_rt.pixels import bicubic
from glia_rt.pixels.bicubic import LARGE, has_compiler, resize_across
from glia_rt.pixels.views import resize

Pixels = bicubic.Pixels


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def by_pillow(image: Pixels, width: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("width", [1, 2, 5, 112, 223, 225, 448, 1000, 4000, 4001, 65_535])
def test_it_is_pillow_s(width: int) -> None:
    image = noise(3, width)
    np.testing.assert_array_equal(resize_across(image, 224), by_pillow(image, 224))


def test_it_is_pillow_s_where_weights_overshoot() -> None:
    """Black and white by turns, where sums leave 0..255 on both sides."""
    image = np.zeros((2, 4000, 3), np.uint8)
    image[:, ::2] = 255
    image[1] = np.where(np.arange(4000)[:, None] // 18 % 2, 255, 0)
    np.testing.assert_array_equal(resize_across(image, 224), by_pillow(image, 224))


def test_large_pictures_take_it_and_views_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = noise(1500, 1400), noise(1000, 2000)
    assert large.shape[0] * large.shape[1] >= LARGE > small.shape[0] * small.shape[1]
    compiled = [resize(large, RESIZE), resize(small, RESIZE)]
    monkeypatch.setattr(bicubic, "has_compiler", lambda: False)
    monkeypatch.setattr(bicubic, "resize_across", None)
    np.testing.assert_array_equal(compiled, [resize(large, RESIZE), resize(small, RESIZE)])
    monkeypatch.setattr(bicubic, "has_compiler", lambda: True)
    with pytest.raises(TypeError):
        resize(large, RESIZE)


def test_threads_compile_and_run_it_at_once() -> None:
    bicubic._compiled.cache_clear()
    images = [noise(5, 3000 + i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda image: resize_across(image, 224), images))
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result, by_pillow(image, 224))


def test_without_numba_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_compiler()
    has_compiler.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not has_compiler()
    has_compiler.cache_clear()


def test_it_compiles_where_the_caches_disk_is_full(tmp_path: Path) -> None:
    program = (
        "import numpy, resource; from glia_rt.pixels import bicubic;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000));"
        "print(bicubic.resize_across(numpy.full((2, 900, 3), 7, numpy.uint8), 4).tolist())"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == f"{[[[7] * 3] * 4] * 2}\n"


def test_it_compiles_where_nothing_can_be_cached(tmp_path: Path) -> None:
    """As in a container whose user has no home, and may not write where packages are."""
    shutil.copy(bicubic.__file__, tmp_path / "bicubic.py")
    (tmp_path / "__pycache__").touch()  # no folder can have this name then, not even for root
    program = "import numpy, bicubic; print(bicubic.resize_across(numpy.full((2, 900, 3), 7, numpy.uint8), 4).tolist())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "NUMBA_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment | {"HOME": str(tmp_path / "__pycache__"), "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert done.stdout == f"{[[[7] * 3] * 4] * 2}\n"
