from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_core import PydanticUndefined

from capsrepro.config import load_params, requested_runs, resolve_run
from capsrepro.errors import UsageError
from capsrepro.schema import attacks, augmentation, base, evaluations, models, params

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "params.yaml"
LINES = SHIPPED.read_text().splitlines()
PARAMS = load_params(SHIPPED)


def line_of(text: str, after: str = "") -> int:
    """Number of the first line that starts with the text, behind one that starts with `after`."""
    stripped = [line.strip() for line in LINES]
    first = next(i for i, line in enumerate(stripped) if line.startswith(after))
    return next(i + 1 for i in range(first, len(LINES)) if stripped[i].startswith(text))


def refusal(tmp_path: Path, lines: list[str]) -> str:
    """The sentence about a params.yaml of these lines, without the path in front."""
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError) as caught:
        load_params(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence.removeprefix(str(path))


def with_line(number: int, text: str) -> list[str]:
    """The shipped file with one line replaced, its indentation kept."""
    indent = LINES[number - 1][: -len(LINES[number - 1].lstrip())]
    return [*LINES[: number - 1], indent + text, *LINES[number:]]


def test_shipped_file_is_whole():
    runs = requested_runs(PARAMS)
    assert len(runs) == len({run.name for run in runs}) == len({run.digest for run in runs}) == 271
    assert all(resolve_run(PARAMS, run.name) == run for run in runs)


# Wrong files: the sentence names the key and the line.


def test_unknown_key(tmp_path):
    number = line_of("confidence:")
    said = refusal(tmp_path, with_line(number, "confidense: 0.95"))
    assert said.startswith(f", line {line_of('margins:')}: margins.confidence is missing (1 more")
    lines = [*LINES[:number], "  speed: 3", *LINES[number:]]
    said = refusal(tmp_path, lines)
    assert said.startswith(f", line {number + 1}: margins.speed is not a known key; ")


def test_missing_key_is_said_of_the_block_it_belongs_in(tmp_path):
    number = line_of("title: MNIST, full recipe")
    said = refusal(tmp_path, LINES[: number - 1] + LINES[number:])
    assert said.startswith(f", line {line_of('mnist:', 'protocols:')}: protocols.mnist.title is ")


@pytest.mark.parametrize(
    ("line", "after", "wrong", "key", "why"),
    [
        ("steps: 300000", "", "steps: many", "protocols.mnist.recipe.steps", "valid integer"),
        ("steps: 300000", "", 'steps: "300000"', "protocols.mnist.recipe.steps", "valid integer"),
        ("steps: 300000", "", "steps: true", "protocols.mnist.recipe.steps", "valid integer"),
        ("steps: 300000", "", "steps: 0", "protocols.mnist.recipe.steps", "greater than 0"),
        ("confidence:", "", "confidence: .nan", "margins.confidence", "finite"),
        ("version:", "mnist:", "version: 1", "protocols.digits.version", "valid string"),
        ("epsilons:", "", "epsilons: [0, 8/0]", "protocols.digits.attacks.fgsm.epsilons.1", "8/25"),
        ("epsilons:", "", "epsilons: [-1]", "protocols.digits.attacks.fgsm.epsilons.0", "equal to"),
        ("padding:", "", "padding: full", "models.digits.cnn-baseline.padding", "'valid' or"),
        ("conv1_kernel: 9", "", "conv1_kernel: x", "models.mnist.capsnet-r1.conv1_kernel", "integ"),
        ("split_seed:", "", "split_seed: [1]", "datasets.digits.split_seed", "valid"),
    ],
)
def test_wrong_value(tmp_path, line, after, wrong, key, why):
    number = line_of(line, after)
    said = refusal(tmp_path, with_line(number, wrong))
    assert said.startswith(f", line {number}: {key} is wrong (")
    assert why in said


def test_unknown_family(tmp_path):
    said = refusal(tmp_path, with_line(line_of("family:"), "family: mlp"))
    number = line_of("cnn-baseline:")
    assert said.startswith(f", line {number}: models.digits.cnn-baseline is wrong (")
    assert "'capsnet', 'baseline-cnn'" in said


def test_key_that_overrides_a_merged_one_has_its_own_line(tmp_path):
    number = line_of("routing_iterations: 3")
    said = refusal(tmp_path, with_line(number, "routing_iterations: 0"))
    assert said.startswith(f", line {number}: models.digits.capsnet-r3-recon.routing_iterations ")


def test_key_that_is_only_merged_in_has_the_line_of_its_block(tmp_path):
    number = line_of("stands_for: capsnet-r3-recon")
    lines = with_line(number, "family: baseline-cnn")
    said = refusal(tmp_path, lines)
    block = line_of("capsnet-r3-recon:")
    assert lines[block].strip() == "<<: *digits-capsnet"
    assert said.startswith(f", line {block}: models.digits.capsnet-r3-recon.conv_channels is miss")


def test_merged_block_has_the_line_of_the_key_that_names_it(tmp_path):
    number = line_of("attacks: *solids-attacks")
    said = refusal(tmp_path, with_line(number, "attacks: *solids-models"))
    assert said.startswith(f", line {number}: protocols.solids-elevation.attacks is wrong (")


@pytest.mark.parametrize(
    ("line", "wrong", "key", "known"),
    [
        (
            "dataset: digits",
            "dataset: nist",
            "protocols.digits.dataset names nist",
            ", ".join(PARAMS.datasets),
        ),
        (
            "models: digits",
            "models: small",
            "protocols.digits.models names small",
            ", ".join(PARAMS.models),
        ),
        (
            "run_models: [cnn-baseline, capsnet-r1-recon,",
            "run_models: [cnn-baseline, capsnet-r9]",
            "protocols.digits.run_models names capsnet-r9",
            "cnn-baseline, capsnet-r1-recon, capsnet-r3-recon",
        ),
    ],
)
def test_undefined_name(tmp_path, line, wrong, key, known):
    number = line_of(line)
    said = refusal(tmp_path, with_line(number, wrong))
    assert said == f", line {number}: {key}, which is not defined; known: {known}."


def test_augmentation_of_an_undefined_data_set(tmp_path):
    number = line_of("svhn:", after="augmentations:")
    said = refusal(tmp_path, with_line(number, "street-numbers:"))
    known = ", ".join(PARAMS.datasets)
    assert said == (
        f", line {number}: augmentations names data set street-numbers, "
        f"which is not defined; known: {known}."
    )


def test_key_twice(tmp_path):
    number = line_of("steps: 1500")
    again = LINES[number - 1].replace("1500", "15")
    said = refusal(tmp_path, [*LINES[:number], again, *LINES[number:]])
    assert said == (
        f", line {number + 1}: steps stands here a second time after line {number}; "
        "keep one of them."
    )


def test_no_yaml(tmp_path):
    assert "is not valid YAML" in refusal(tmp_path, ["margins: [1", "datasets: 2"])
    assert "line 2" in refusal(tmp_path, ["margins: 1", "datasets: : 2"])
    assert "undefined alias" in refusal(tmp_path, ["margins: *nothing"])


def test_empty_file(tmp_path):
    assert refusal(tmp_path, [""]).startswith(", line 1: the file is wrong")


def test_missing_and_unreadable_file(tmp_path):
    with pytest.raises(UsageError, match=r"^cannot read .*: No such file .* checkout params.yaml"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UsageError, match=r"^cannot read .*: Is a directory; "):
        load_params(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"title: \xff\xfe")
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 7\); "):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            "nope/capsnet-r1/seed-0",
            ["unknown protocol 'nope'", f"has {', '.join(PARAMS.protocols)}, and each"],
        ),
        ("digits/capsnet-r1/seed-0", ["unknown model 'capsnet-r1'", "cnn-baseline, capsnet-r1-re"]),
        ("digits/cnn-baseline", ["no run name", "PROTOCOL/MODEL/seed-N"]),
        ("digits/cnn-baseline/seed--1", ["no run name"]),
        ("digits/cnn-baseline/seed-x", ["no run name"]),
        ("digits/cnn-baseline/seed-0/", ["no run name"]),
        ("../digits/cnn-baseline/seed-0", ["no run name"]),
        ("", ["'' is no run name"]),
    ],
)
def test_unknown_run(run, words):
    with pytest.raises(UsageError) as caught:
        resolve_run(PARAMS, run)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [
        ("models", "[cnn-baseline, no-such]", "capsnet-r3-recon-code"),
        ("source", "no-such", "capsnet-r3-recon-code"),
    ],
)
def test_an_attack_names_models_of_its_protocol(tmp_path, key, value, known):
    number = line_of("source: cnn-baseline", "mnist:")
    lines = with_line(number, f"{key}: {value}")
    if key == "models":
        lines = with_line(line_of("models: &compared"), "models: &compared [cnn-baseline, no-such]")
    said = refusal(tmp_path, lines)
    assert f"{key} names no-such, which is not defined" in said
    assert known in said


def test_transferred_images_come_from_the_next_seed() -> None:
    for seed, of in ((0, 1), (1, 2), (2, 0), (7, 0)):
        run = resolve_run(PARAMS, f"mnist-short/capsnet-r3-recon/seed-{seed}")
        assert {name: source.name for name, source in run.sources.items()} == {
            "transfer-cnn": f"mnist-short/cnn-pooled/seed-{of}",
            "transfer-capsnet": f"mnist-short/capsnet-r3-recon/seed-{of}",
        }
        for source in run.sources.values():
            assert source.digest == resolve_run(PARAMS, source.name).digest


# Digests.


@pytest.mark.parametrize(
    ("run", "digest"),
    [
        (
            "mnist/capsnet-r3-recon/seed-0",
            "ecbcdcaff9ba59c636e0494cf4fd46412dc13af85fbc536930b71af1d50ceba9",
        ),
        (
            "mnist/cnn-baseline/seed-2",
            "abe53b33b5d2a722d5fb76638d0889cd3a87cfc1cccb97bc91168f541b914698",
        ),
    ],
)
def test_digest_is_frozen(run, digest):
    """When this fails, every record that was ever made has become stale: was that meant?"""
    assert resolve_run(PARAMS, run).digest == digest


def changed(tmp_path: Path, path: list[str], value: Any) -> str:
    """Digest of `mnist/capsnet-r3-recon/seed-0` with one value of params.yaml changed."""
    document = yaml.safe_load(SHIPPED.read_text())
    block = document
    for key in path[:-1]:
        block[key] = dict(block[key])
        block = block[key]
    assert block[path[-1]] != value
    block[path[-1]] = value
    changed_file = tmp_path / "params.yaml"
    changed_file.write_text(yaml.safe_dump(document))
    return resolve_run(load_params(changed_file), "mnist/capsnet-r3-recon/seed-0").digest


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("models.mnist.capsnet-r3-recon.routing_iterations", 2),
        ("models.mnist.capsnet-r3-recon.primary_scale", "1/32"),
        ("models.mnist.capsnet-r3-recon.initial.transform_std", 0.2),
        ("protocols.mnist.recipe.learning_rate", 0.002),
        ("protocols.mnist.recipe.precision", "bf16"),
        ("protocols.mnist.version", "1.1"),
        ("protocols.mnist.full_steps", 300001),
        ("datasets.mnist", {"shift": 1}),
    ],
)
def test_what_decides_the_numbers_is_in_the_digest(tmp_path, key, value):
    now = resolve_run(PARAMS, "mnist/capsnet-r3-recon/seed-0").digest
    assert changed(tmp_path, key.split("."), value) != now


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocols.mnist.attacks.fgsm.epsilons", [0]),
        ("protocols.mnist.run_seeds", [0, 1, 2, 3, 4]),
        ("protocols.mnist.run_models", []),
        ("protocols.mnist.title", "other words"),
        ("protocols.mnist.judged_as", None),
        ("margins.confidence", 0.9),
        ("models.mnist.capsnet-r1.routing_iterations", 7),
        ("datasets.digits.split_seed", 1),
    ],
)
def test_what_does_not_is_not(tmp_path, key, value):
    now = resolve_run(PARAMS, "mnist/capsnet-r3-recon/seed-0").digest
    assert changed(tmp_path, key.split("."), value) == now


def test_every_seed_and_model_has_its_own_digest():
    names = [
        f"{protocol}/{model}/seed-{seed}"
        for protocol, block in PARAMS.protocols.items()
        for model in PARAMS.models[block.models]
        for seed in (0, 1, 10)
    ]
    assert len({resolve_run(PARAMS, name).digest for name in names}) == len(names)


# Values.


def test_epsilon_is_exact_and_written_as_it_is_known(tmp_path):
    number = line_of("epsilons:")
    path = tmp_path / "params.yaml"
    written = {"0": "0", "8/255": "8/255", "5/51": "25/255", "0.1": "1/10", "1": "1"}
    path.write_text("\n".join(with_line(number, f"epsilons: [{', '.join(written)}]")))
    fgsm = load_params(path).protocols["digits"].attacks["fgsm"]
    assert fgsm.epsilons[1:4] == (Fraction(8, 255), Fraction(25, 255), Fraction(1, 10))
    assert fgsm.model_dump(mode="json")["epsilons"] == list(written.values())
    # What is written reads back as the same.
    assert attacks.AttackSpec.model_validate(fgsm.model_dump(mode="json")) == fgsm


def test_short_mnist_is_mnist_at_every_share_of_the_budget():
    pytest.importorskip("torch")
    from capsrepro.training.optimisation import learning_rate

    full, short = PARAMS.protocols["mnist"], PARAMS.protocols["mnist-short"]
    same = {"steps": 1, "decay_steps": 1, "precision": "float32"}
    assert full.recipe.model_copy(update=same) == short.recipe.model_copy(update=same)
    assert (full.dataset, full.models) == (short.dataset, short.models)
    # A full run of the small CNN would answer no claim.
    assert set(short.run_models) - set(full.run_models) == {"cnn-pooled"}
    assert set(full.run_models) < set(short.run_models)
    assert short.full_steps == full.recipe.steps
    assert (full.budget, short.budget) == (1, 1 / 100)
    for percent in range(0, 101, 5):
        there, here = (
            learning_rate(protocol.recipe, protocol.recipe.steps * percent // 100)
            for protocol in (full, short)
        )
        assert here == pytest.approx(there, rel=1e-9)


# The schema.


ENTRIES = [
    entry
    for module in (attacks, augmentation, base, evaluations, models, params)
    for entry in vars(module).values()
    if isinstance(entry, type) and issubclass(entry, base.Entry)
    if entry is not base.Entry and entry.__module__ == module.__name__
]
# Keys that no record of before has: their default is in no digest.
LATER = {
    "operations": (),
    "none_of_the_above": False,
    "validation_images": 0,
    "stop": None,
    "accuracy_pct": None,
    "accuracy_of": None,
    "every_epochs": 1,
    "margin": None,
    "weight_decay": 0,
    "learning_rates": {},
    "assignment": "sum",
    "measured": {},
    "test_images": None,
    "reconstruct": None,
    "overlap": None,
    "scores": None,
    "votes": None,
    "crops": None,
    "routing": None,
    "attacks": {},
    "goal": "untargeted",
    "epsilon_unit": "raw-pixels",
    "clip": "image-range",
    "steps": 1,
    "step_share": 1,
    "restarts": 1,
    "images": None,
    "source": None,
    "distortions": None,
    "evaluations": evaluations.Evaluations(),
}
FIELDS = [(entry, name) for entry in ENTRIES for name in entry.model_fields]


@pytest.mark.parametrize(("entry", "name"), FIELDS)
def test_every_key_is_explained_and_only_later_ones_have_a_default(entry, name):
    """Blocks and one-word choices are explained by the docstring of their class."""
    info = entry.model_fields[name]
    kind = str(info.annotation)
    explains_itself = "capsrepro.schema." in kind or kind.startswith("typing.Literal")
    assert info.description or explains_itself or name == "title"
    assert entry.__doc__
    assert info.default is PydanticUndefined or info.default == LATER[name]
    assert info.default_factory is None


def test_entries_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        PARAMS.margins.confidence = 0.5  # type: ignore[misc]


def test_line_numbers_hold_in_a_file_with_windows_line_ends(tmp_path):
    shutil.copy(SHIPPED, tmp_path)
    path = tmp_path / "params.yaml"
    number = line_of("confidence:")
    path.write_bytes("\r\n".join(with_line(number, "confidence: high")).encode())
    with pytest.raises(UsageError, match=f"line {number}: margins.confidence is wrong"):
        load_params(path)


def _keys(node: yaml.MappingNode) -> set[str]:
    """Of a block, those merged into it included."""
    keys: set[str] = set()
    for key, value in node.value:
        merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
        keys |= set().union(*map(_keys, merged)) if key.value == "<<" else {key.value}
    return keys


def _merges(node: yaml.Node) -> Iterator[list[yaml.MappingNode]]:
    """The blocks of every merge of several."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _merges(value)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "<<" and isinstance(value, yaml.SequenceNode):
                yield value.value
            yield from _merges(value)


def test_no_key_stands_in_two_blocks_that_are_merged() -> None:
    # Which of the two is taken depends on the version of PyYAML: every protocol of 6.0.4 was once
    # augmented as the digits are.
    merges = list(_merges(yaml.compose(SHIPPED.read_text(), Loader=yaml.SafeLoader)))
    assert len(merges) > 10
    for blocks in merges:
        sets = [_keys(block) for block in blocks]
        assert sum(map(len, sets)) == len(set().union(*sets)), blocks[0].start_mark
