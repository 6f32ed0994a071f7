import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from em_cases import CASES, READINGS, Case, Inputs, furthest, inputs_of, layer_of, ours, outcome
from torch import Tensor

from capsrepro.models.capsule_layers import Capsules
from capsrepro.models.gpu.em_launches import TILES
from capsrepro.models.gpu.em_routing_cuda import supported
from capsrepro.models.receptive_fields import ReceptiveFields

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Of layer, reading, iterations and dtype; every branch of every kernel once.
INTERPRETED = (
    "overlaps text 2 float64",
    "unseen mixing 2 float64",
    "classes code-mean 3 float64",
    "unseen text-mean 1 float64",
    "classes text 2 float32",
)


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    """Of the interpreted kernels from written votes.

    Triton reads the variable when it is imported, hence a process of its own.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    program = Path(__file__).with_name("interpreted_em_routing.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), *INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", INTERPRETED)
def test_interpreted_kernels_are_the_routing_of_written_votes_gradients_included(
    differences: dict[str, dict[str, float]], case: str
) -> None:
    bound = 1e-12 if case.endswith("float64") else 1e-4
    assert max(differences[case].values()) < bound, differences[case]


def test_where_there_is_no_gpu_or_indices_are_too_long_kernels_are_not_used() -> None:
    fields, how = ReceptiveFields(14, 3, 2), READINGS["text"]
    poses = torch.empty(1, 196, 32, 4, 4)
    assert not supported(poses, 32, fields, how)
    for shape, dtype in (((1, 196, 32, 1, 16), torch.float32), ((1, 196, 32, 4, 4), torch.float64)):
        on_meta = torch.empty(shape, dtype=dtype, device="meta")
        assert not supported(on_meta, 32, fields, how)


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_are_as_exact_as_float32(name: str, reading: str) -> None:
    case = replace(CASES[name], images=TILES.images + 3, parents=TILES.parents[0] + 3)
    how = READINGS[reading]
    inputs = inputs_of(case, 0.2).cast(torch.float64)
    want = outcome(ours(case, how, inputs, way="written"), inputs)
    on_gpu = inputs.cast(torch.float32)
    got = outcome(_fused(case, reading, on_gpu), on_gpu)
    assert max(furthest(got, want).values()) < 1e-4


@pytest.mark.gpu
@ON_CUDA
def test_kernels_give_the_same_bits_each_time() -> None:
    case = Case(6, 3, 1, images=TILES.images, children=32, parents=32)
    inputs = inputs_of(case, 0.2).cast(torch.float32)
    first, second = (outcome(_fused(case, "text", inputs), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _fused(case: Case, reading: str, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Parents by the kernels, back on the CPU, so that gradients arrive at the inputs there."""
    layer = layer_of(case, READINGS[reading], torch.float32).cuda()
    parameters = {name: value.cuda() for name, value in inputs.parameters.items()}
    children = Capsules(inputs.poses.cuda(), inputs.activations.cuda())
    assert supported(children.poses, case.parents, layer.fields, layer.how)
    poses, activations = torch.func.functional_call(layer, parameters, (children,))
    return poses.cpu(), activations.cpu()
