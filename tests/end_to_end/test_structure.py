"""The packages and their folders: imports point one way, folders say what they offer, and no module names a view.

All imports count, those inside functions and those that only type checkers see, too.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
#: The rooms of glia_rt, files and folders, from the ground up: each imports rooms before it only.
RUNTIME = (
    *("versions", "errors", "faults", "steps", "files", "machine", "budget", "bench", "upgrades", "contract"),
    *("pixels", "results", "starter", "bundle"),
    *("backends", "listing", "samples", "pipeline", "scorer", "verify", "doctor", "html", "runs", "cli", "__main__"),
)
#: Folders, not packages; an editable install puts the root on the path, where they would import by accident.
BARE = {"train", "export", "engines", "tests", "benchmarks"}
SOURCES = [(package, path) for package, folder in FOLDERS.items() for path in sorted(folder.rglob("*.py"))]
IDS = [path.relative_to(ROOT).as_posix() for _, path in SOURCES]
#: Words that only GLIANet's inputs have.
VIEWS = re.compile(r"global_?view|\bfragments?\b", re.IGNORECASE)
#: The rules and the family; and records of a version that knew no other family.
MAY_NAME_VIEWS = {
    "glia_rt/contract.py",
    "glia_rt/pixels/views.py",
    "glia_rt/backends/cuda/views.py",
    "glia_rt/upgrades.py",
    "export/glia_export/views.py",
    "train/glia_train/models/glianet.py",
}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST, *, inside_functions: bool = True, for_types: bool = True) -> Iterator[tuple[str, str]]:
    """Module and name of what is imported; the name is empty where a module is imported whole."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif not for_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, inside_functions=inside_functions, for_types=for_types)


def module_name(package: str, path: Path) -> str:
    return ".".join(path.relative_to(FOLDERS[package].parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(package, path): path for package, path in SOURCES}


def imported_modules(path: Path) -> Iterator[str]:
    """The modules of this project that one imports."""
    for module, name in imports(parse(path)):
        if f"{module}.{name}" in MODULES:
            yield f"{module}.{name}"
        elif module in MODULES:
            yield module


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_package_is_looked_at() -> None:
    assert {package for package, _ in SOURCES} == set(FOLDERS)
    assert len(SOURCES) > 60


def test_a_circle_would_be_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not cycle({"a": {"b"}, "b": {"c"}})


def test_modules_form_no_circle() -> None:
    assert cycle({name: set(imported_modules(path)) for name, path in MODULES.items()}) == []


def room_of(module: str) -> str:
    """A file or folder right in a package: what a newcomer opens first."""
    return ".".join(module.split(".")[:2])


def test_rooms_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        found = {room_of(other) for other in imported_modules(path) if "." in other}
        graph.setdefault(room_of(name), set()).update(found - {room_of(name)})
    assert cycle(graph) == []


def test_rooms_of_the_runtime_stand_on_those_before_them() -> None:
    rooms = {
        path.stem for path in FOLDERS["glia_rt"].iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__pycache__"} == set(RUNTIME)
    for name, path in MODULES.items():
        if not name.startswith("glia_rt."):
            continue
        place = RUNTIME.index(name.split(".")[1])
        for other in imported_modules(path):
            if other.startswith("glia_rt."):
                assert RUNTIME.index(other.split(".")[1]) <= place, f"{name} imports {other}"


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_imports_point_one_way(package: str, path: Path) -> None:
    def packages(*, inside_functions: bool) -> set[str]:
        found = imports(parse(path), inside_functions=inside_functions)
        return {module.partition(".")[0] for module, _ in found} & set(FOLDERS)

    allowed = MAY[package] | {package}
    if path.parent == FOLDERS["glia_rt"] / "cli":
        # The command line calls the others, each from inside the function that needs it.
        assert packages(inside_functions=False) <= {"glia_rt"}
        allowed = set(FOLDERS)
    if path.parent == FOLDERS["glia_export"] / "demo":
        allowed |= {"glia_engines"}  # the demo goes through the whole chain
    assert packages(inside_functions=True) <= allowed


@pytest.mark.parametrize("path", sorted(FOLDERS["glia_rt"].rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runtime_imports_little_on_import_and_no_torch_ever(path: Path) -> None:
    at_start = imports(parse(path), inside_functions=False, for_types=False)
    found = {module.partition(".")[0] for module, _ in at_start} - sys.stdlib_module_names
    # Modules of an extra are imported by whoever asks for them.
    extra = {
        "html/kit.py": {"jinja2", "markupsafe", "matplotlib"},
        "runs/page.py": {"markupsafe", "matplotlib"},
        "runs/ray_data.py": {"ray"},
    }
    allowed = extra.get(path.relative_to(FOLDERS["glia_rt"]).as_posix(), set())
    assert found <= {"glia_rt", "numpy", "PIL", "click", "simplejpeg", "filelock"} | allowed
    anywhere = {module.partition(".")[0] for module, _ in imports(parse(path))}
    assert not anywhere & {"torch", "timm", "onnx", "onnxscript", "scipy", "skimage", "sklearn"}


ROOMS = {module_name(package, path): path for package, path in SOURCES if path.name == "__init__.py"}


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"glia_rt"}))  # which is the API, and imports it
def test_a_room_says_what_it_is_for_and_what_others_may_use(room: str) -> None:
    text = ast.get_docstring(parse(ROOMS[room])) or ""
    said, _, offered = text.partition("Other folders use:")
    assert "In: " in said, "what comes in"
    assert "Out: " in said, "what goes out"
    assert not list(imports(parse(ROOMS[room]))), "names are imported from their modules"
    used = {
        name or module.rpartition(".")[2]
        for other, path in MODULES.items()
        if not f"{other}.".startswith(f"{room}.")
        for module, name in imports(parse(path))
        if f"{module}.".startswith(f"{room}.") and innermost(module) == room
    }
    words = set(re.findall(r"\w+", offered))
    assert used <= words, f"{sorted(used - words)} are used elsewhere"
    assert used, "a room that nobody enters"


def innermost(module: str) -> str:
    """The folder that a module, or a folder itself, belongs to."""
    while module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_no_module_names_a_view(package: str, path: Path) -> None:
    if path.relative_to(ROOT).as_posix() not in MAY_NAME_VIEWS:
        found = [line for line in path.read_text().splitlines() if VIEWS.search(line)]
        assert found == []


def test_modules_that_may_name_a_view_do() -> None:
    assert all(VIEWS.search((ROOT / path).read_text()) for path in MAY_NAME_VIEWS)


def test_folders_are_no_packages() -> None:
    for folder in BARE:
        assert not (ROOT / folder / "__init__.py").exists()
    for path in [*(path for _, path in SOURCES), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        assert not {module.partition(".")[0] for module, _ in imports(parse(path))} & BARE, path


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_statements_without_a_place_in_a_package(package: str, path: Path) -> None:
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert is no validation"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: a library does not print"


@pytest.mark.parametrize(("package", "path"), SOURCES, ids=IDS)
def test_every_module_imports(package: str, path: Path) -> None:
    if path.name != "__main__.py":  # which is a program
        importlib.import_module(module_name(package, path))
