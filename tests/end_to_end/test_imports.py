"""Imports point one way, glia_rt <- glia_train <- glia_export and glia_rt <- glia_engines.

And some statements have no place in a package.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "glia_rt": ROOT / "glia_rt",
    "glia_train": ROOT / "train" / "glia_train",
    "glia_export": ROOT / "export" / "glia_export",
    "glia_engines": ROOT / "engines" / "glia_engines",
}
#: What each package may import of the others.
MAY = {
    "glia_rt": set(),
    "glia_train": {"glia_rt"},
    "glia_export": {"glia_rt", "glia_train"},
    "glia_engines": {"glia_rt"},
}
#: Folders, not packages; an editable install puts the root on the path, where they would import by accident.
BARE = {"train", "export", "engines", "tests", "benchmarks"}
SOURCES = [(package, path) for package, folder in FOLDERS.items() for path in sorted(folder.rglob("*.py"))]
IDS = [path.relative_to(ROOT).as_posix() for _, path in SOURCES]


def imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Top-level names of what is imported, without what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, inside_functions=inside_functions)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_every_package_is_looked_at() -> None:
    assert {package for package, _ in SOURCES} == set(FOLDERS)
    assert len(SOURCES) > 30


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_imports_point_one_way(package: str, path: Path) -> None:
    allowed = MAY[package] | {package}
    if path == FOLDERS["glia_rt"] / "cli.py":
        # The command line calls the others, each from inside the function that needs it.
        assert set(imports(parse(path), inside_functions=False)) & set(FOLDERS) == {"glia_rt"}
        allowed = set(FOLDERS)
    assert set(imports(parse(path), inside_functions=True)) & set(FOLDERS) <= allowed


@pytest.mark.parametrize("path", sorted(FOLDERS["glia_rt"].rglob("*.py")), ids=lambda path: path.stem)
def test_the_runtime_imports_little_on_import_and_no_torch_ever(path: Path) -> None:
    found = set(imports(parse(path), inside_functions=False)) - sys.stdlib_module_names
    # Modules of an extra are imported by whoever asks for them.
    extra = {"page": {"jinja2", "markupsafe", "matplotlib"}, "report": {"markupsafe", "matplotlib"}, "ray": {"ray"}}
    assert found <= {"glia_rt", "numpy", "PIL", "click", "simplejpeg", "filelock"} | extra.get(path.stem, set())
    anywhere = set(imports(parse(path), inside_functions=True))
    assert not anywhere & {"torch", "timm", "onnx", "onnxscript", "scipy", "skimage", "sklearn"}


def test_folders_are_no_packages() -> None:
    for folder in BARE:
        assert not (ROOT / folder / "__init__.py").exists()
    for path in [*(path for _, path in SOURCES), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        assert not set(imports(parse(path), inside_functions=True)) & BARE, path


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_statements_without_a_place_in_a_package(package: str, path: Path) -> None:
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert is no validation"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: a library does not print"


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_every_module_imports(package: str, path: Path) -> None:
    parts = path.relative_to(FOLDERS[package].parent).with_suffix("").parts
    if parts[-1] != "__main__":  # which is a program
        importlib.import_module(".".join(parts).removesuffix(".__init__"))
