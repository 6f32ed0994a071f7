from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from capsrepro.running.provenance import peak_memory_mib

CHILD = """
import torch
from capsrepro.running.provenance import peak_memory_mib
before = peak_memory_mib(torch.device("cpu"))
held = torch.ones(100 * 2**18)
del held
print(before, peak_memory_mib(torch.device("cpu")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a child's own peak")
def test_peak_memory_is_of_this_process_alone_and_lasts() -> None:
    # A parent that holds more than the child ever will, pages and all.
    held = b"x" * 2**30
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert len(held) / 2**20 > after
    assert before + 80 < after
    assert peak_memory_mib(torch.device("cpu")) > 1024
