from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from capsrepro.cli.main import COMMANDS, _run, cli
from capsrepro.config import load_params

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "mlflow", "scipy.stats", "dvc", "sklearn", "pandas")


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")


ALL = dict(_commands(cli, "capsrepro"))


def _imported_by(*arguments: str) -> tuple[int, set[str], float]:
    """Exit code, heavy modules imported and seconds of a command in a process of its own."""
    program = (
        "import sys\n"
        "from capsrepro.cli.main import _run\n"
        "code = _run(sys.argv[1:])\n"
        f"print(code, *(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)\n"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    code, *modules = done.stderr.splitlines()[-1].split()
    return int(code), set(modules), seconds


def test_help_is_quick_and_imports_nothing_heavy():
    calls = [_imported_by("--help") for _ in range(3)]
    assert all((code, modules) == (0, set()) for code, modules, _ in calls)
    # 0.1 s on a quiet machine; the factor 4 is for a busy one.
    assert min(seconds for _, _, seconds in calls) < 4 * 0.3


@pytest.mark.parametrize("command", [["report", "mnist-short"], ["claims"], ["pending"]])
def test_tables_need_neither_torch_nor_a_tracker(command):
    code, modules, _ = _imported_by(*command)
    assert code == 0
    assert not modules & {"torch", "torchvision", "mlflow", "dvc"}


def test_dvc_learns_quickly_what_is_asked(empty):
    assert _imported_by("asked", "--help")[:2] == (0, set())
    assert empty.call("asked").code == 0
    written = {path.stem for path in (empty.root / "pipelines/asked").iterdir()}
    assert written == set(load_params(ROOT / "params.yaml").protocols)
    assert empty.call("asked").out.startswith("0 files written to ")


def test_a_wrong_name_is_said_before_torch_is_imported():
    code, modules, _ = _imported_by("run", "digits/nope/seed-0")
    assert (code, modules) == (2, set())


def test_the_listing_is_of_the_commands(capsys):
    assert _run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in shown
        assert text in shown


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_an_example(path):
    command = ALL[path]
    text = command.get_help(click.Context(command, info_name=path))
    example = text.partition("Example:\n")[2].split("\n\n")[0]
    assert f"{path} " in f"{example} ".replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "capsrepro: No such command 'nope'; see `capsrepro --help`."),
        (
            ["run"],
            "capsrepro: Missing argument 'PROTOCOL/MODEL/seed-N'; see `capsrepro run --help`.",
        ),
        (
            ["datasets", "nope"],
            "capsrepro: No such command 'nope'; see `capsrepro datasets --help`.",
        ),
        (
            ["run", "a/b/seed-0", "--threads", "0"],
            "capsrepro: Invalid value for '--threads': 0 is not in the range x>=1; "
            "see `capsrepro run --help`.",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(capsys, arguments, sentence):
    assert _run(arguments) == 2
    assert capsys.readouterr().err == f"{sentence}\n"


def test_no_command_shows_the_help(capsys):
    assert _run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_exit_code_and_streams_of_the_process(empty):
    result = empty.spawn("run", "digits/nope/seed-0")
    assert result.is_refusal(2, "unknown model 'nope'")
    assert result.out == ""


def test_an_unforeseen_error_is_one_sentence_and_can_be_traced(empty):
    # A folder in the place of params.yaml's reader is nothing that the program foresees.
    (empty.root / "README.md").mkdir()
    result = empty.call("report", "--readme")
    assert result.is_refusal(1, "an unforeseen IsADirectoryError", "CAPSREPRO_TRACEBACK=1")
    empty.env["CAPSREPRO_TRACEBACK"] = "1"
    with pytest.raises(IsADirectoryError):
        empty.call("report", "--readme")


def test_a_closed_pipe_is_no_traceback(empty):
    process = empty.start("claims", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
    process.stderr.close()
