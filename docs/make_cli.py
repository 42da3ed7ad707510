"""Write docs/cli.md from the help of the commands: `make docs`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from glia_rt.cli.main import cli

HEAD = """\
# Commands

`make docs` writes this page from the help of each command.

| exit status | means |
|---|---|
| 0 | done |
| 1 | what is to be scored has gone, the machine fails, the disk is full, or the error is an unexpected one |
| 2 | usage, or the output exists |
| 3 | done, but some pictures are missing or cannot be read |
| 4 | parity |
| 5 | a checkpoint, a bundle or an engine is missing, damaged, or of another version |
| 6 | a backend cannot be used here, or a package is not installed |
| 130 | interrupted |

Where a command takes a bundle or a checkpoint, `starter` is the model that comes with glia-rt. A file or folder of that
name goes before it.

Every command, and `glia-rt` itself, also takes:

"""
SHARED = ("verbose", "debug")


def make_page() -> str:
    """Return the page."""
    lines = [
        HEAD + "\n".join(_table([one for one in cli.params if isinstance(one, click.Option) and one.name in SHARED]))
    ]
    for name, command in all_commands(cli):
        arguments = " ".join(_name(one) for one in command.params if isinstance(one, click.Argument))
        lines += ["", f"## {name}", ""]
        if not isinstance(command, click.Group):
            lines += [f"    glia-rt {name} [OPTIONS] {arguments}".rstrip(), ""]
        lines.append(inspect.cleandoc(command.help or ""))
        own = [one for one in command.params if isinstance(one, click.Option) and one.name not in SHARED]
        lines += ["", *_table(own)] if own else []
    return "\n".join(lines) + "\n"


def all_commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the commands of a group by their names, and those of the groups in it, as "data check"."""
    for name, command in sorted(group.commands.items()):
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{prefix}{name} ")


def _table(options: list[click.Option]) -> Iterator[str]:
    yield "| option | what it does |"
    yield "|---|---|"
    for one in options:
        default = f" Default: {one.default}." if one.show_default else ""
        required = " Required." if one.required else ""
        text = (one.help or "").replace("|", "\\|")
        yield f"| `{', '.join([*one.opts, *one.secondary_opts])}{_value(one)}` | {text}{default}{required} |"


def _value(option: click.Option) -> str:
    """Return what an option takes, as a user would type it."""
    if option.is_flag:
        return ""
    if option.metavar:
        return f" {option.metavar}"
    if isinstance(option.type, click.Choice):
        return " " + r"\|".join(map(str, option.type.choices))
    if isinstance(option.type, click.Tuple):
        return " " + " ".join("NUMBER" for _ in option.type.types)
    if isinstance(option.type, click.Path):
        return " PATH"
    return " NUMBER" if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType) else " TEXT"


def _name(argument: click.Parameter) -> str:
    name = argument.metavar or str(argument.name).upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(make_page(), encoding="utf-8")
