"""Imports of engines that keep them from sending usage data, and from leaving an identifier in the user's home."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

#: The module by which OpenVINO, while it is imported, looks up an analytics host and writes to ~/intel. OpenVINO works
#: without it.
_OPENVINO_TELEMETRY: Final = "openvino_telemetry"
#: ONNX Runtime reads this when it loads. It would keep an identifier and events in the user's cache.
_ONNXRUNTIME_SWITCH: Final = "ORT_DISABLE_TELEMETRY"
_LOCK: Final = threading.RLock()


def import_engine(name: str) -> Any:
    """Import an engine's package, or a module of it, with its telemetry off.

    A value that the user has given ORT_DISABLE_TELEMETRY stays.

    Raises:
        ImportError: As of `importlib.import_module`.
    """
    os.environ.setdefault(_ONNXRUNTIME_SWITCH, "1")
    with _hidden(_OPENVINO_TELEMETRY):
        return importlib.import_module(name)


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Have imports of a module fail inside the block, unless the program has imported it before."""
    with _LOCK:
        if name in sys.modules:
            yield
            return
        sys.modules[name] = None  # type: ignore[assignment]  # which is how Python marks a module that is not to be had
        try:
            yield
        finally:
            sys.modules.pop(name, None)
