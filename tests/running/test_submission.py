"""Which runs are submitted, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsrepro.config import load_params, requested_runs, resolve_run
from capsrepro.errors import UsageError
from capsrepro.running.queue import Pending
from capsrepro.running.submission import choose_runs, packed

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def chosen(*patterns: str) -> list[str]:
    return [spec.name for spec in choose_runs(PARAMS, patterns)]


def job(name: str, cost_s: float | None = None, after: str | None = None) -> Pending:
    run = f"mnist/{name}/seed-0"
    return Pending(resolve_run(PARAMS, run), "no record", cost_s, after)


def test_without_a_pattern_all_that_is_asked_for():
    assert set(chosen()) == {spec.name for spec in requested_runs(PARAMS)}


def test_patterns():
    seeds = [f"digits/cnn-baseline/seed-{seed}" for seed in (0, 1, 2)]
    assert chosen("digits/cnn-baseline") == seeds
    assert len(chosen("digits")) == 9
    assert chosen("digits/*/seed-0")[0] == seeds[0]
    assert len(chosen("digits/*/seed-[01]")) == 6
    # In the order of the patterns, each once.
    assert chosen(seeds[2], "digits/cnn-baseline") == [seeds[2], *seeds[:2]]
    # `mnist` is a protocol, not the beginning of others.
    assert {name.split("/")[0] for name in chosen("mnist")} == {"mnist"}


@pytest.mark.parametrize("run", ["digits/cnn-baseline/seed-7", "mnist-validate/capsnet-r1/seed-0"])
def test_a_whole_name_need_not_be_asked_for(run):
    assert chosen(run) == [run]


@pytest.mark.parametrize("pattern", ["nope", "digits/nope", "nope/*", "*/*/seed-99", ""])
def test_a_pattern_without_a_run(pattern):
    with pytest.raises(UsageError, match=r"names none of the runs .* or a pattern such as"):
        choose_runs(PARAMS, [pattern])


def test_a_wrong_whole_name_is_told_what_is_known():
    with pytest.raises(UsageError, match=r"unknown model 'nope' in 'digits/nope/seed-0'"):
        choose_runs(PARAMS, ["digits/nope/seed-0"])


def test_one_at_a_time_runs_are_done_as_listed():
    jobs = [job("capsnet-r1-recon", 1), job("cnn-baseline", 2)]
    assert packed(jobs, 1) == jobs


def test_awaited_runs_first_then_the_longest_and_what_may_be_long():
    reference = job("cnn-baseline", 1)
    waits = job("capsnet-r3-recon", 9, after=reference.run)
    unknown, short, long = job("capsnet-r3"), job("capsnet-r1", 3), job("capsnet-r1-recon", 5)
    order = packed([short, long, waits, unknown, reference], 2)
    assert order == [reference, unknown, waits, long, short]
