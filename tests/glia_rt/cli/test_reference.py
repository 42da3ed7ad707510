"""docs/cli.md is what the commands' help says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from glia_rt.cli.main import cli

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def make_cli() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(make_cli: ModuleType) -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == make_cli.make_page(), "run make docs"


def test_every_command_is_in_it(make_cli: ModuleType) -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    commands = dict(make_cli.all_commands(cli))
    assert set(commands) >= {"train", "export", "build", "verify", "score", "info", "doctor", "demo", "data check"}
    assert {name.partition(" ")[0] for name in commands} == set(cli.commands)
    for name, command in commands.items():
        assert f"## {name}\n" in page
        assert command.help
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), parameter.name
