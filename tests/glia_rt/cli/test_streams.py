"""Standard streams that are closed, or do not know all characters, and processes without a home: each in a process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "import sys; from glia_rt.cli.main import main; sys.exit(main())"
GRIN = "\U0001f600"


def shell(line: str, *args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of sh in which "$@" stands for glia-rt with the arguments."""
    command = ["sh", "-c", line, "sh", sys.executable, "-c", PROGRAM, *map(str, args)]
    encoding = (env or {}).get("PYTHONIOENCODING", "utf-8")
    environment = os.environ | (env or {})
    done = subprocess.run(command, env=environment, capture_output=True, encoding=encoding, timeout=120)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def picture(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("named") / f"{GRIN} é.jpg"
    shutil.copy(pictures / "00.jpg", path)
    return path


def test_rows_for_a_closed_standard_output_are_an_error(plain_bundle: Path, picture: Path) -> None:
    done = shell('"$@" >&-', "score", plain_bundle, picture)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("glia-rt: standard output is closed: send it to a file")


@pytest.mark.parametrize("command", [("info",), ("info", "--json"), ("doctor",)])
def test_so_is_anything_else_that_is_printed(plain_bundle: Path, command: tuple[str, ...]) -> None:
    done = shell('"$@" >&-', *command, *([plain_bundle] if command[0] == "info" else []))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("command", [("info", "starter"), ("doctor",), ("info", "starter", "--json")])
def test_a_standard_output_without_room(command: tuple[str, ...]) -> None:
    done = shell('"$@" > /dev/full', *command)
    assert done.returncode == 1
    assert done.stderr == "glia-rt: standard output cannot be written: No space left on device\n"


def test_a_run_into_a_file_needs_no_streams(plain_bundle: Path, picture: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    assert shell('"$@" <&- >&- 2>&-', "score", plain_bundle, picture, "-o", output).returncode == 0
    [header, row] = output.read_text(encoding="utf-8").splitlines()
    assert header.startswith("path,")
    assert f"{GRIN} é.jpg" in row


def test_names_from_a_closed_standard_input(plain_bundle: Path, tmp_path: Path) -> None:
    done = shell('"$@" <&-', "score", plain_bundle, "-", "-o", tmp_path / "scores.csv")
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_characters_that_a_stream_lacks_are_escaped(plain_bundle: Path, picture: Path, encoding: str) -> None:
    missing = picture.with_name(f"{GRIN}.jpg")
    done = shell('"$@"', "score", plain_bundle, missing, picture, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 3
    assert "\\U0001f600 " in done.stdout.splitlines()[2]


def test_json_stays_json_there(plain_bundle: Path, picture: Path) -> None:
    env = {"PYTHONIOENCODING": "latin-1"}
    done = shell('"$@"', "score", plain_bundle, picture, "--json", env=env)
    assert done.returncode == 0
    assert json.loads(done.stdout)["path"] == str(picture)
    assert GRIN in shell('"$@"', "score", plain_bundle, picture, "--json", env={"PYTHONIOENCODING": "utf-8"}).stdout


def test_a_log_has_no_bar_when_colours_are_forced(plain_bundle: Path, picture: Path, tmp_path: Path) -> None:
    env = {"FORCE_COLOR": "1"}
    done = shell('"$@"', "score", plain_bundle, picture, "-o", tmp_path / "scores.csv", env=env)
    assert done.returncode == 0
    assert "\x1b" not in done.stderr


def test_no_home_and_no_such_user(plain_bundle: Path, picture: Path) -> None:
    """As in a container that runs as any number."""
    nobody = ("unshare", "--user", "--map-user=12345")
    if subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("there are no user namespaces here")
    for command in (("score", plain_bundle, picture), ("score", "starter", picture), ("doctor",), ("info", "starter")):
        done = shell(f'{" ".join(nobody)} env -u HOME "$@"', *command)
        assert done.returncode == 0, done.stderr
