"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parents[1] / "capsrepro"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_function_fits_on_a_screen(path):
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    too_long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in functions
        if (node.end_lineno or 0) - node.lineno + 1 > 60
    }
    assert too_long == {}


def test_the_usual_module_is_short():
    lengths = [len(path.read_text().splitlines()) for path in MODULES]
    assert median(length for length in lengths if length) <= 150


def test_no_module_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [name for name in NAMES if set(Path(name).with_suffix("").parts) & drawers] == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_package_file_holds_a_table_or_nothing(path):
    if path.name != "__init__.py":
        assert path.read_text().strip(), "a module without content"
        return
    body = ast.parse(path.read_text()).body
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.Expr
    assert [node for node in body if not isinstance(node, allowed)] == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_is_unpickled_or_printed_from_a_library(path):
    """`weights_only=False`, pickle.load and a stray print in the science are never wanted."""
    calls = {
        ast.unparse(node.func): node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not calls.keys() & {"pickle.load", "pickle.loads", "eval", "exec"}
    load = calls.get("torch.load")
    assert load is None or "weights_only=True" in ast.unparse(load)
    if path.parent.name in ("models", "evaluation", "report", "training"):
        assert "print" not in calls


@pytest.mark.slow
def test_reliability_page_counts_the_faults_there_are():
    root = PACKAGE.parent
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "fault", "tests"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120).stdout
    found = Counter(line.split("::")[0] for line in listed.splitlines() if "::" in line)
    page = (root / "docs/reliability.md").read_text()
    rows = re.findall(r"^\| `(tests/[\w/.]+)` \|.*\| (\d+) \|$", page, flags=re.MULTILINE)
    assert {name: int(count) for name, count in rows} == found
    assert f"**{found.total()} faults are tried and {found.total()} survived**" in page
