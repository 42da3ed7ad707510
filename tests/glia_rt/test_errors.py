from __future__ import annotations

import pickle

import pytest

from glia_rt.errors import BadImageError, GliaError, MachineError, MissingPackageError, ParityError


@pytest.mark.parametrize(
    "error",
    [
        BadImageError("empty file", "a.jpg"),
        MachineError("out of memory", "a.jpg"),
        MissingPackageError("ray", "ray"),
        ParityError("too far"),
    ],
)
def test_errors_cross_processes_whole(error: GliaError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
