"""The version of glia-rt, and those of the packages that took part in what is written down."""

from __future__ import annotations

__version__ = "0.1.0"


def installed_versions(*names: str) -> dict[str, str]:
    """Return the versions of glia-rt, of Python and of these distributions; those not installed are left out.

    Args:
        names: Distributions, as pip names them: "onnxruntime-gpu".
    """
    # These imports take longer than the rest of the start, so they wait until they are needed.
    import importlib.metadata
    import platform

    found = {"glia-rt": __version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"python": platform.python_version()}
