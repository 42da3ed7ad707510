"""ONNX Runtime on CUDA, as far as it goes without a GPU; tests/glia_rt/test_on_gpu.py has the rest."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from glia_rt.backends.cuda.onnxruntime import create_session, require_cuda
from glia_rt.errors import BackendError


def test_a_session_that_fell_back_to_the_cpu_is_refused(tiny_bundle: Path) -> None:
    """onnxruntime-gpu without CUDA's libraries makes one, and logs a line."""
    session = onnxruntime.InferenceSession(tiny_bundle / "scorer.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider, because CUDA 13 or cuDNN 9"):
        require_cuda(session)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("hello")
    with pytest.raises(BackendError, match=f"backend onnxruntime-cuda: cannot load {tmp_path}"):
        create_session(tmp_path / "a.onnx", 0, capture=True)
