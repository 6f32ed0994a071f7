"""A whole run whose convolutions are products of Fourier amplitudes, small as its images are."""

from __future__ import annotations

import pytest

pytest.importorskip("llvmlite", reason="there is no compiler: torch's convolutions are used")

from capsrepro.models.cpu import convolution
from capsrepro.models.cpu.fourier_cuts import plan
from capsrepro.records import read_record

RUN = "digits/capsnet-r3-recon/seed-0"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_it_is_trained_tested_verified_and_attacked(prepared, monkeypatch, precision):
    taken = []

    def whatever_it_costs(images, weight, stride, reduced):
        if any(size % 16 for size in weight.shape[:2]):
            return None
        cut = plan(tuple(images.shape), tuple(weight.shape), stride, rate=1e-9)
        taken.append(cut)
        return cut

    monkeypatch.setattr(convolution, "_cut", whatever_it_costs)

    def set_precision(document):
        document["protocols"]["digits"]["recipe"]["precision"] = precision

    prepared.edit(set_precision)
    assert prepared.call("run", RUN).code == 0
    assert len(taken) > 40
    assert read_record(prepared.record()).metrics["train_loss"] < 0.6
    assert "the same bit for bit" in prepared.call("verify", RUN).out
    assert prepared.call("attack", "fgsm", RUN).code == 0
    run, attack = read_record(prepared.record()), read_record(prepared.record("fgsm"))
    assert attack.curves["accuracy_pct"][0] == 100 - run.metrics["test_error_pct"]
