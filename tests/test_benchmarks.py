from __future__ import annotations

import json
import subprocess
import sys

import pytest
from benchmark_files import benchmark, scaling

from capsrepro.benchmarks import benchmark_path, read_benchmark, write_benchmark
from capsrepro.errors import CapsreproError


@pytest.mark.parametrize("make", [benchmark, scaling])
def test_what_is_written_is_read(tmp_path, make):
    written = make()
    path = benchmark_path(tmp_path, written)
    write_benchmark(path, written)
    assert read_benchmark(path) == written


def test_the_file_is_named_after_the_device(tmp_path):
    assert benchmark_path(tmp_path, benchmark()) == tmp_path / "benchmarks/made-up-gpu-80gb.json"
    scaled = benchmark_path(tmp_path, scaling())
    assert scaled == tmp_path / "benchmarks/made-up-gpu-80gb-scaling.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:100], ["is not JSON"]),
        (lambda text: text.replace('"rounds": 3', '"rounds": 0'), ["rounds", "greater than 0"]),
        (lambda text: text.replace('"steps": 10', '"stops": 10'), ["variants.0.turns.0"]),
        (lambda text: text.replace("1.0", "NaN"), ["finite"]),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, words):
    path = tmp_path / "one.json"
    write_benchmark(path, benchmark())
    assert json.loads(path.read_text())["rounds"] == 3
    path.write_text(change(path.read_text()))
    with pytest.raises(
        CapsreproError, match=r"make it again with `capsrepro bench --save`\.$"
    ) as e:
        read_benchmark(path)
    assert [word for word in ["one.json", "damaged", *words] if word not in str(e.value)] == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CapsreproError, match=r"cannot read benchmark .*none\.json: No such file"):
        read_benchmark(tmp_path / "none.json")


def test_a_kept_one_is_drawn_again_without_torch(empty):
    path = benchmark_path(empty.root / "results", benchmark())
    write_benchmark(path, benchmark())
    program = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'mlflow']);"
        "from capsrepro.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "bench", "--show", str(path)]
    done = subprocess.run(command, cwd=empty.root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    assert done.stdout == path.with_suffix(".md").read_text()
    assert {page.suffix for page in path.parent.iterdir()} == {".json", ".md", ".svg", ".png"}
