"""`capsrepro attack` in every form, on runs of the embedded digits: records, inputs, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from attack_run import BASELINE, RUN, add_attacks

from capsrepro.config import load_params, resolve_run
from capsrepro.records import read_record
from capsrepro.running.attacking import attack_document

NEXT = "digits/cnn-baseline/seed-1"
WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="module")
def attackable_once(trained_once, tmp_path_factory):
    """The trained CapsNet, two trained CNNs, and every kind of attack asked for."""
    workplace = trained_once.copy(tmp_path_factory.mktemp("attackable") / "project")
    workplace.edit(add_attacks)
    for run in (BASELINE, NEXT):
        assert workplace.call("run", run).code == 0
    return workplace


@pytest.fixture
def attackable(attackable_once, tmp_path):
    return attackable_once.copy(tmp_path / "attackable")


def curves_of(workplace, name, run=RUN):
    result = workplace.call("attack", name, run)
    assert result.code == 0, result
    record = read_record(workplace.record(name, run))
    assert record.kind == name
    assert record.spec["attack"]["name"] == name
    assert result.out.startswith(f"{run}: ")
    assert f"under {name} on the {record.spec['attack']['loss']} loss" in result.out
    assert workplace.call("attack", name, run).out.startswith(f"{run}: nothing to do")
    return record, result.out


def test_a_record_says_everything_that_was_done(attackable):
    record, said = curves_of(attackable, "pgd")
    assert record.spec["attack"] == {
        "name": "pgd",
        "method": "pgd",
        "goal": "untargeted",
        "epsilons": ["0", "16/255", "64/255"],
        "epsilon_unit": "raw-pixels",
        "clip": "image-range",
        "steps": 4,
        "step_share": 0.4,
        "restarts": 2,
        "images": 60,
        "loss": "logit-difference",
        "split": "test",
    }
    assert record.inputs == {WEIGHTS: read_record(attackable.record()).outputs[WEIGHTS]}
    assert record.metrics["test_images"] == 60
    assert record.metrics["classes"] == 10
    names = {"accuracy_pct", "noise_accuracy_pct", "fgsm_accuracy_pct", "first_start_accuracy_pct"}
    assert record.curves.keys() == {"epsilon", *names}
    accuracy = record.curves["accuracy_pct"]
    assert accuracy[0] == record.metrics["clean_accuracy_pct"] > accuracy[2]
    assert f"accuracy under pgd on the logit-difference loss {accuracy[0]:.1f} % at ε = 0" in said
    assert f"{accuracy[2]:.1f} % at ε = 64/255; record results/runs/{RUN}/pgd.json" in said


def test_a_targeted_attack_tells_its_successes(attackable):
    record, said = curves_of(attackable, "fgsm-targeted")
    success = record.curves["targeted_success_pct"]
    assert success[0] == pytest.approx(10)
    assert f"success under fgsm-targeted on the margin loss {success[0]:.1f} % at ε = 0" in said


def test_a_transferred_attack_names_its_source_and_follows_its_loss(attackable):
    record, said = curves_of(attackable, "transfer-cnn")
    attack = record.spec["attack"]
    assert (attack["source"], attack["source_model"]) == (NEXT, "cnn-baseline")
    assert (attack["loss"], attack["white_box_loss"]) == ("cross-entropy", "margin")
    source = read_record(attackable.record("train", NEXT)).outputs[WEIGHTS]
    assert record.inputs[f"{NEXT}/{WEIGHTS}"] == source
    assert f"made on {NEXT}, " in said
    own, _ = curves_of(attackable, "transfer-cnn", BASELINE)
    assert own.spec["attack"]["source"] == NEXT
    curves = record.curves
    assert curves["transfer_accuracy_pct"][0] == curves["white_box_accuracy_pct"][0]
    assert curves["transfer_accuracy_pct"][2] > curves["white_box_accuracy_pct"][2]


def test_a_source_trained_anew_makes_its_attacks_stale(attackable):
    assert attackable.call("attack", "transfer-cnn", RUN).code == 0

    def shorter(document):
        digits = document["protocols"]["digits"]
        digits["recipe"] = digits["recipe"] | {"learning_rates": {"cnn-baseline": 0.0031}}

    attackable.edit(shorter)
    refused = attackable.call("attack", "transfer-cnn", RUN)
    assert refused.is_refusal(1, f"makes its images on {NEXT}", f"`capsrepro run {NEXT}`")
    assert attackable.call("run", NEXT).code == 0
    before = read_record(attackable.record("transfer-cnn"))
    result = attackable.call("attack", "transfer-cnn", RUN)
    assert "nothing to do" not in result.out
    assert read_record(attackable.record("transfer-cnn")).inputs != before.inputs


def test_transferred_attacks_travel_in_a_bundle(attackable, tmp_path):
    assert attackable.call("attack", "transfer-cnn", RUN).code == 0
    bundle = str(tmp_path / "bundle.tar.gz")
    exported = attackable.call("export", bundle)
    assert (exported.code, "left out" in exported.out + exported.err) == (0, False)
    there = attackable.record("transfer-cnn").read_bytes()
    for run in (RUN, BASELINE, NEXT):
        shutil.rmtree(attackable.record("train", run).parent)
    assert attackable.call("import", bundle).code == 0
    assert attackable.record("transfer-cnn").read_bytes() == there


def test_a_source_without_its_weights_is_one_sentence(attackable):
    (attackable.root / "checkpoints" / NEXT / WEIGHTS).unlink()
    refused = attackable.call("attack", "transfer-cnn", RUN)
    assert refused.is_refusal(1, NEXT, "are not here", f"`capsrepro run {NEXT} --weights`")
    assert not attackable.record("transfer-cnn").exists()


def test_a_source_that_was_never_trained_is_one_sentence(trained):
    trained.edit(add_attacks)
    refused = trained.call("attack", "transfer-cnn", RUN)
    assert refused.is_refusal(1, f"images on {NEXT}", "no record", f"`capsrepro run {NEXT}` first")


def test_one_seed_has_nothing_to_transfer_from_itself(attackable):
    attackable.edit(lambda document: document["protocols"]["digits"].update(run_seeds=[0]))
    refused = attackable.call("attack", "transfer-cnn", BASELINE)
    assert refused.is_refusal(2, "only seed 0", "protocols.digits.run_seeds")
    # Another model's run of the same seed is not the one attacked.
    record, _ = curves_of(attackable, "transfer-cnn")
    assert record.spec["attack"]["source"] == BASELINE


def test_standardised_pixels_where_nothing_is_standardised(attackable):
    refused = attackable.call("attack", "fgsm-standardised", RUN)
    assert refused.is_refusal(2, "standardised pixels", "`epsilon_unit: raw-pixels`")
    assert not attackable.record("fgsm-standardised").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"epsilons": [-0.1]}, ["fgsm.epsilons.0", "greater than or equal to 0"]),
        ({"loss": "hinge"}, ["fgsm.loss", "'margin', 'spread', 'cross-entropy'"]),
        ({"source": "cnn-who"}, ["fgsm.source names cnn-who", "cnn-baseline"]),
        ({"steps": 3}, ["protocols.digits.attacks.fgsm", "single step"]),
    ],
)
def test_wrong_parameters_are_one_sentence(trained, line, words):
    trained.edit(lambda document: document["protocols"]["digits"]["attacks"]["fgsm"].update(line))
    assert trained.call("attack", "fgsm", RUN).is_refusal(2, "params.yaml, line", *words)


def test_the_margin_of_the_spread_loss_is_that_at_the_end_of_training():
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    for run, margin, split in (
        ("matcaps-smallnorb/matcaps-em3/seed-0", 0.9, "test"),
        ("matcaps-smallnorb-code/matcaps-em3-code/seed-0", 0.99, "test"),
        ("solids-azimuth/matcaps-small-em2-short/seed-0", 0.9, "familiar"),
    ):
        document = attack_document(resolve_run(params, run), "fgsm")
        assert (document["loss"], document["spread_margin"]) == ("spread", margin)
        assert document["split"] == split
        assert document["epsilon_unit"] == "standardised-pixels"
        assert document["epsilons"][:5] == ["0", "0.05", "0.1", "0.15", "0.2"]
    document = attack_document(resolve_run(params, "matcaps-smallnorb/cnn-baseline/seed-0"), "fgsm")
    assert document["loss"] == "cross-entropy"
    assert "spread_margin" not in document
