"""Garbage among imports; each in a process of its own, as it is the whole process's."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest


def run(program: str) -> str:
    """What a program prints, on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_what_was_imported_is_not_looked_through_again_and_the_rest_is() -> None:
    program = """
import gc
from capsrepro.imports import lasting_imports
with lasting_imports():
    print(gc.isenabled())
    import json
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert run(program).split() == ["False", "True", "True"]


def test_a_failed_import_leaves_collection_on() -> None:
    program = """
import gc
from capsrepro.imports import lasting_imports
try:
    with lasting_imports():
        import no_such_module
except ModuleNotFoundError:
    print(gc.isenabled())
"""
    assert run(program).split() == ["True"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_triton_has_nothing_to_complain_of() -> None:
    program = """
from capsrepro.imports import lasting_imports
with lasting_imports():
    import triton
with lasting_imports():
    import json
"""
    assert run(program) == ""
