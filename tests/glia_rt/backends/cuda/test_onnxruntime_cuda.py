"""ONNX Runtime on CUDA, as far as it goes without a GPU; test_on_gpu.py has the rest."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from glia_rt.backends.cuda.onnxruntime import create_session, failure, require_cuda
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


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("Failed to allocate memory for requested buffer of size 4096", "the GPU's memory does not suffice"),
        ("CUDA failure 2: out of memory ; GPU=0", "the GPU's memory does not suffice"),
        ("CUBLAS failure 3: the resource allocation failed ; GPU=0", "the GPU's memory does not suffice"),
        ("CUDNN failure 8: EXECUTION_FAILED", "CUDNN failure 8: EXECUTION_FAILED"),
    ],
)
def test_what_onnxruntime_says_of_a_full_gpu(said: str, means: str) -> None:
    """An H100 whose memory was full gave the third one when a session was opened."""
    assert means in str(failure(RuntimeError(said), batch=8))
