"""The version of glia-rt, those of the packages that took part in what is written down, and what installs more."""

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


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra of glia-rt, or of several as "export,cpu".

    It names the packages themselves, because no index has glia-rt.
    """
    import importlib.metadata
    import shlex

    try:
        required = importlib.metadata.requires("glia-rt") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources, without being installed
        return f'pip install ".[{extra}]", in a clone of glia-rt'
    markers = {f"extra == '{one}'" for one in extra.split(",")}
    lines = [line.replace('"', "'").partition(";") for line in required]
    packages = dict.fromkeys(package.strip() for package, _, marker in lines if marker.strip() in markers)
    return f"pip install {' '.join(map(shlex.quote, packages))}"
