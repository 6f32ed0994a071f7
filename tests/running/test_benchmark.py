"""Measuring speed, on the smallest networks there are."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from capsrepro.benchmarks import Benchmark, read_benchmark
from capsrepro.config import load_params
from capsrepro.data import DATASETS
from capsrepro.errors import UsageError
from capsrepro.running import assembly
from capsrepro.running.benchmark_floor import MatrixPeak, find_products, make_floor_step
from capsrepro.running.benchmark_naive import naive_model
from capsrepro.running.benchmark_plan import (
    DEFAULT_MODELS,
    SCALING,
    Job,
    model_jobs,
    named_model,
    scaling_jobs,
    spec_of,
)
from capsrepro.running.benchmark_step import made_up_stream, make_step
from capsrepro.running.benchmark_worker import explain

ROOT = Path(__file__).parents[2]
PARAMS = load_params(ROOT / "params.yaml")
CPU = torch.device("cpu")
MODEL = "digits/capsnet-r3-recon"


def small(model: str, batch_size: int = 2, **more) -> tuple[Job, object]:
    job = Job(model, "step", ("float32",), batch_size, **more)
    return job, spec_of(PARAMS, job, job.points()[0])


# The plan.


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_model_that_is_measured_unasked_is_defined(kind):
    groups = model_jobs(PARAMS, DEFAULT_MODELS[kind], ("bf16",))
    assert [[job.what for job in jobs] for jobs in groups] == [["step", "naive", "floor"]] * len(
        DEFAULT_MODELS[kind]
    )
    first = groups[0]
    assert {job.batch_size for job in first} == {128}
    assert first[1].precisions == ("float32",)
    assert first[2].precisions == ("float32", "bf16")
    for jobs, (model, _, axis, values) in zip(
        scaling_jobs(kind, "bf16"), SCALING[kind], strict=True
    ):
        assert [(job.model, job.axis, job.values) for job in jobs] == [(model, axis, values)]


def test_a_batch_axis_is_of_batches_and_the_others_keep_theirs():
    batches, types, *_ = (jobs[0].points() for jobs in scaling_jobs("cpu", "float32"))
    assert [point.batch_size for point in batches] == [point.value for point in batches]
    assert {point.batch_size for point in types} == {16}
    assert [point.value for point in types] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("model", "axis", "value", "looked_at"),
    [
        (MODEL, "primary_types", 3, lambda m: m.primary.types),
        (MODEL, "routing_iterations", 7, lambda m: m.routing_iterations),
        (MODEL, "classes", 13, lambda m: m.classes),
        (
            "matcaps-mnist-short/matcaps-small-em3",
            "routing_iterations",
            1,
            lambda m: m.class_caps.how.iterations,
        ),
    ],
)
def test_an_axis_changes_the_network_and_its_step_runs(model, axis, value, looked_at):
    before = set(DATASETS)
    try:
        _, spec = small(model, axis=axis, values=(value,))
        assert looked_at(assembly.build_model(spec, CPU)) == value
        make_step(spec, CPU)()
    finally:
        for name in set(DATASETS) - before:
            del DATASETS[name]


@pytest.mark.parametrize("name", ["digits", "digits/a/b", "digits/capsnet-r3-recon/seed-0"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UsageError, match="write PROTOCOL/MODEL"):
        named_model(PARAMS, name)


# Steps.


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        "digits/cnn-baseline",
        pytest.param("multimnist/capsnet-r3-recon-code", marks=pytest.mark.slow),
        pytest.param("cifar10/capsnet-r3-recon", marks=pytest.mark.slow),
        "matcaps-mnist-short/matcaps-small-em3",
    ],
)
def test_the_naive_network_computes_the_same(model):
    _, spec = small(model)
    images, labels, targets = made_up_stream(spec, CPU).batch(0)
    found = []
    for build in (assembly.build_model, naive_model):
        network = build(spec, CPU).eval().double()
        loss = network.objective(images.double(), labels, targets.double()).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in network.parameters())])
    for ours, naive in zip(*found, strict=True):
        assert torch.allclose(ours, naive, rtol=1e-6, atol=1e-9 * float(ours.abs().max()))


def test_made_up_images_are_drawn_like_the_real_ones():
    _, spec = small("multimnist/capsnet-r3-recon", 5)
    images, labels, targets = made_up_stream(spec, CPU).batch(3)
    assert (images.shape, labels.shape) == ((5, 1, 36, 36), (5, 2))
    assert targets.shape == (5, 2, 1, 36, 36)
    assert (labels[:, 0] != labels[:, 1]).all()
    assert images.unique().numel() > 200


def test_products_of_a_cnn_are_counted():
    _, spec = small("digits/cnn-baseline", 64)
    products = find_products(spec, CPU)
    shapes = [call.shape for call in products.calls]
    # SAME convolutions of 8×8 images with kernels of 3, then 16·64 numbers to 64 to 10.
    assert shapes == [(64, 1, 10, 10), (64, 32, 10, 10), (64, 32, 10, 10), (64, 1024), (64, 64)]
    assert [call.needs_input_gradient for call in products.calls] == [False, True, True, True, True]
    forward = [64 * 9 * 32, 64 * 9 * 32 * 32, 64 * 9 * 32 * 16, 1024 * 64, 64 * 10]
    # Twice forward for the gradient of kernels, and of inputs where there is one.
    assert products.flop_per_image == 2 * (2 * forward[0] + 3 * sum(forward[1:]))


def test_products_of_capsules_are_those_of_both_convolutions_and_the_decoder():
    _, spec = small("digits/capsnet-r3-recon", 64)
    convolutions = [c for c in find_products(spec, CPU).calls if isinstance(c.layer, nn.Conv2d)]
    assert [call.layer.in_channels for call in convolutions] == [
        1,
        convolutions[0].layer.out_channels,
    ]
    assert [call.needs_input_gradient for call in convolutions] == [False, True]


def test_a_floor_runs_in_every_precision():
    _, spec = small(MODEL, 4)
    products = find_products(spec, CPU)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        for precision in ("float32", "bf16"):
            make_floor_step(products, precision, CPU)()
            assert all(p.grad is None for p in products.model.parameters())
    finally:
        torch.use_deterministic_algorithms(deterministic)


@pytest.mark.slow
def test_the_peak_is_faster_than_a_product_of_slivers():
    size, depth = 512, 2
    left, right = torch.rand(size, depth), torch.rand(depth, size)
    started = time.perf_counter()
    for _ in range(20):
        left @ right
    slivers = 20 * 2 * size * size * depth / (time.perf_counter() - started)
    assert MatrixPeak("float32", CPU).flop_per_s() > slivers


# The command.


def measured(result) -> Benchmark:
    assert result.code == 0, result
    return Benchmark.model_validate_json(result.out)


@pytest.mark.slow
def test_bench_measures_and_keeps(empty):
    result = empty.call(
        "bench", MODEL, "--precision", "float32", "--rounds", "2", "--batch", "8",
        "--threads", "1", "--json", "--save",
    )  # fmt: skip
    found = measured(result)
    assert [(v.what, v.batch_size, len(v.turns), v.failure) for v in found.variants] == [
        ("step", 8, 2, None),
        ("naive", 8, 2, None),
        ("floor", 8, 2, None),
    ]
    step, naive, _ = found.variants
    assert (step.deterministic, naive.deterministic) == (True, False)
    assert 100 < step.imports_mib < step.peak_memory_mib
    assert all(turn.wall_s > 0.05 and turn.cpu_s > 0 for turn in step.turns)
    cost = {v.what: min(t.cpu_s / t.steps for t in v.turns) for v in found.variants}
    assert cost["floor"] < cost["step"]
    assert len(found.matrix_flop_per_s["float32"]) == 2
    assert found.machine.threads == 1

    (path,) = (empty.root / "results/benchmarks").glob("*.json")
    assert read_benchmark(path) == found
    pages = [path.with_suffix(suffix) for suffix in (".md", ".svg", ".png")]
    before = [page.read_bytes() for page in pages]
    for page in pages:
        page.unlink()
    shown = empty.call("bench", "--show", str(path))
    assert shown.out == pages[0].read_text()
    assert [page.read_bytes() for page in pages] == before


@pytest.mark.slow
def test_a_bare_machine_measures_and_leaves_drawing_to_others(empty):
    lacking = (
        "import sys; sys.modules |= dict.fromkeys(['tabulate', 'matplotlib', 'mlflow', 'dvc'])"
    )
    command = [
        "bench",
        MODEL,
        "--rounds",
        "1",
        "--batch",
        "2",
        "--threads",
        "1",
        "--json",
        "--save",
    ]
    done = subprocess.run(
        [sys.executable, "-c", f"{lacking}; from capsrepro.cli.main import main; main()", *command],
        cwd=empty.root,
        env={**os.environ, **empty.env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    (path,) = (empty.root / "results/benchmarks").iterdir()
    assert read_benchmark(path) == Benchmark.model_validate_json(done.stdout)
    assert "not written without tabulate and matplotlib" in done.stderr
    assert f"`capsrepro bench --show {path.relative_to(empty.root)}`" in done.stderr


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_process_costs_its_own_row_alone(empty):
    process = empty.start(
        "bench", MODEL, "--precision", "float32", "--rounds", "3", "--batch", "8",
        "--threads", "1", "--json",
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(pids := children.read_text().split()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    _, naive, _ = map(int, pids)
    while b"benchmark_worker" not in Path(f"/proc/{naive}/cmdline").read_bytes():
        time.sleep(0.05)
    os.kill(naive, signal.SIGKILL)
    step, killed, floor = measured(empty.finish(process)).variants
    assert killed.what == "naive"
    assert "ended by SIGKILL, perhaps for want of memory" in killed.failure
    assert len(killed.turns) < 3
    assert [len(variant.turns) for variant in (step, floor)] == [3, 3]


def test_a_failure_is_one_phrase():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**50)
    assert explain(found.value) == "out of memory"
    assert explain(torch.OutOfMemoryError("CUDA out of memory. Tried")) == "out of memory"
    assert explain(ValueError("one\ntwo.")) == "ValueError: one"
    assert explain(UsageError("it is wrong.")) == "it is wrong"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits"], ["'digits'", "PROTOCOL/MODEL"]),
        (["digits/nope"], ["unknown model 'nope'"]),
        (["nope/capsnet-r1"], ["unknown protocol 'nope'"]),
        ([MODEL, "--precision", "tf32"], ["tf32 is a precision of GPUs", "--precision"]),
        ([MODEL, "--precision", "fp8"], ["'fp8' is not one of", "capsrepro bench --help"]),
        ([MODEL, "--device", "abacus"], ["'abacus'"]),
        ([MODEL, "--scaling"], ["--scaling has models and batches of its own"]),
        (["--rounds", "0"], ["'--rounds'"]),
    ],
)
def test_what_cannot_be_measured_is_refused(empty, arguments, words):
    assert empty.call("bench", *arguments).is_refusal(2, *words)


def test_a_file_that_is_no_benchmark_is_refused(empty):
    (empty.root / "one.json").write_text(json.dumps({"rounds": 3}))
    assert empty.call("bench", "--show", "one.json").is_refusal(1, "one.json is damaged")
    assert empty.call("bench", "--show", "two.json").is_refusal(1, "cannot read benchmark two.json")


def test_jobs_go_through_json_unchanged():
    for jobs in (*scaling_jobs("cpu", "bf16"), *model_jobs(PARAMS, {MODEL: 3}, ("bf16",))):
        for job in jobs:
            sent = json.loads(json.dumps(dataclasses.asdict(job)))
            back = {**sent, **{key: tuple(sent[key]) for key in ("precisions", "values")}}
            assert Job(**back) == job
