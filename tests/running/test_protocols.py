"""Every protocol of params.yaml end to end: tiny networks, two steps, data in the official formats.

MNIST is real. The other official files are not to be had here, so the test writes files of their
exact format and size, with a few random pixels per image, and pins them in place of the real ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from capsrepro.config import load_params, resolve_run
from capsrepro.data import DATASETS, affnist, cifar10, multimnist, svhn
from capsrepro.files import sha256_of_file
from capsrepro.metrics import METRICS
from capsrepro.project import find_project
from capsrepro.records import MATCHED, Record, read_history, read_record, write_record
from capsrepro.running import assembly, weights

ROOT = Path(__file__).parents[2]
MIRROR = ROOT.parent / "shared/datasets"
PROTOCOLS = yaml.safe_load((ROOT / "params.yaml").read_text())["protocols"]
# The last model of every protocol, and once for every size of images the plain CNN.
RUNS = [f"{name}/{protocol['run_models'][-1]}/seed-0" for name, protocol in PROTOCOLS.items()]
RUNS += [f"{name}/cnn-baseline/seed-0" for name in ("digits", "mnist", "multimnist", "affnist")]
VIEWPOINTS = ("matcaps-azimuth", "matcaps-elevation")
RUNS += [f"{name}/cnn-baseline/seed-0" for name in (*VIEWPOINTS, "solids-azimuth")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_data,
    pytest.mark.skipif(
        not (MIRROR / "mnist").is_dir(), reason=f"{MIRROR} with the files of MNIST is not here"
    ),
]

CPU = torch.device("cpu")
STEPS = 2
FEWEST = {"instances": 1, "lightings": 1}
MORE_COMPOSITES = 12_000
SMALL = {
    "conv1_channels": 4,
    "primary_types": 2,
    "primary_stride": 4,
    "conv_types": [2, 2],
    "conv_channels": [4, 4, 2],
    "dense_widths": [8],
    "decoder_widths": [8, 8],
}


def cut_model(model: dict[str, Any]) -> dict[str, Any]:
    """The same network, narrow; what it does not have, such as a decoder, stays out."""
    small = {key: value for key, value in SMALL.items() if model.get(key)}
    if model["family"] == "pooled-cnn":
        small["conv_channels"] = [4, 4]
    if model["family"] == "matrix-capsules":
        # Fewer places: tens of thousands of images are tested.
        small |= {"conv1_stride": 6, "conv_kernels": [3, 1]}
    return model | small


def cut(params: dict[str, Any]) -> None:
    """Small models, two steps, the same share of the full budget, and rules that end at once.

    Of solids there is one body of each shape in one light.
    """
    for block in params["models"].values():
        block |= {name: cut_model(model) for name, model in block.items()}
    for protocol in params["protocols"].values():
        recipe = protocol["recipe"]
        protocol["full_steps"] = STEPS * protocol["full_steps"] // recipe["steps"]
        changes: dict[str, Any] = {"steps": STEPS}
        if recipe["precision"] == "tf32":
            changes["precision"] = "float32"  # a CPU has no other
        if "accuracy_pct" in recipe.get("stop", {}):
            changes["stop"] = recipe["stop"] | {"accuracy_pct": 0.01}
        protocol["recipe"] = recipe | changes
        if "crops" in protocol.get("evaluations", {}):
            protocol["evaluations"]["crops"]["offsets_px"] = [1]
        if "test_images" in protocol:
            protocol["test_images"] = MORE_COMPOSITES
    solids = {name: block for name, block in params["datasets"].items() if "solids" in name}
    params["datasets"] |= {name: block | FEWEST for name, block in solids.items()}


def sparse(count: int, *shape: int) -> np.ndarray:
    """Black images with a few random pixels in the middle, (count, channels, height, width)."""
    images = np.zeros((count, *shape), np.uint8)
    middle = images[..., shape[1] // 2 - 2 :, shape[2] // 2 - 2 :][..., :4, :4]
    middle[:] = np.random.default_rng(0).integers(0, 256, middle.shape, np.uint8)
    return images


def coloured(count: int) -> tuple[np.ndarray, np.ndarray]:
    return sparse(count, 3, 32, 32), (np.arange(count) % 10).astype(np.uint8)[:, None]


def write_cifar10(raw: Path) -> None:
    from official_files import write_cifar10

    write_cifar10(raw, {split: coloured(count) for split, count in cifar10.COUNTS.items()})


def write_svhn(raw: Path) -> None:
    from official_files import write_svhn

    for split, count in svhn.COUNTS.items():
        write_svhn(raw, split, *coloured(count))


def write_smallnorb(raw: Path) -> None:
    from smallnorb_files import official_metadata, write_split

    for split in ("train", "test"):
        write_split(raw / "smallnorb", split, sparse(24_300, 2, 96, 96), *official_metadata(split))


def write_affnist(raw: Path) -> None:
    """MNIST's test digits, once each instead of in 32 versions."""
    from test_affnist import fields, mat, zipped

    test = dict(affnist.mnist.prepare(MIRROR, {}))["test"]
    (raw / "affnist").mkdir(parents=True)
    content = zipped(mat(fields(affnist.placed(test.images), test.labels)))
    (raw / "affnist/test.mat.zip").write_bytes(content)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Iterator[Path]:
    """A data root with the official files that are not MNIST's, pinned as they are."""
    data = tmp_path_factory.mktemp("protocols") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests/data")
        for write in (write_cifar10, write_svhn, write_smallnorb, write_affnist):
            write(data / "raw")
        names = ("affnist", "cifar10", "svhn", "smallnorb")
        for name in (*names, *(f"smallnorb-{by}" for by in ("azimuth", "elevation", "monocular"))):
            patch.setitem(DATASETS, name, repinned(name, data / "raw"))
        patch.setattr(affnist, "TRANSFORMS", 1)
        patch.setitem(affnist.COUNTS, "test", 10_000)
        patch.setattr(multimnist, "MEASURED", 1_000)
        yield data
    shutil.rmtree(data)


def repinned(name: str, raw: Path) -> Any:
    dataset = DATASETS[name]
    sources = tuple(
        replace(source, sha256=sha256_of_file(path), size_bytes=path.stat().st_size)
        if (path := raw / source.key).is_file()
        else source
        for source in dataset.sources
    )
    return replace(dataset, sources=sources)


@dataclass
class Trials:
    """One project in which all runs of this file are made, each when it is first asked for."""

    workplace: Any

    def record(self, run: str, *command: str) -> Record:
        """The record of a run, or of an evaluation of it."""
        reference = self.inside(run)[1].reference
        if reference is not None and not self.workplace.record(run=run).exists():
            self.make_poor(reference.name)
        for words in (("run",), command) if command else (("run",),):
            result = self.workplace.call(*words, run)
            assert result.code == 0, result
        kind = command[-1] if command else "train"
        return read_record(self.workplace.record(kind, run))

    def make_poor(self, run: str) -> None:
        """Let a run be right about one familiar image alone: any other run is as good as that."""
        record = self.record(run)
        wrong = record.metrics["familiar_test_images"] - 1
        found = {"familiar_test_errors": wrong}
        found["familiar_test_error_pct"] = 100 * wrong / (wrong + 1)
        poor = record.model_copy(update={"metrics": record.metrics | found})
        write_record(self.workplace.record(run=run).parent, poor)

    def history(self, run: str) -> list[dict[str, float]]:
        return read_history(self.workplace.record(run=run).parent, self.record(run))

    def arrays(self, run: str, kind: str) -> dict[str, np.ndarray]:
        record = self.record(run, kind)
        path = self.workplace.record(kind, run).with_suffix(".npz")
        assert record.outputs == {path.name: sha256_of_file(path)}
        with np.load(path) as arrays:
            return dict(arrays)

    def inside(self, run: str) -> tuple[Any, Any]:
        """Project and specification of a run, as its command resolves them."""
        with self.workplace.inside():
            project = find_project()
        return project, resolve_run(load_params(project.params), run)


def trials_in(folder: Path, data: Path, workplace_of: type) -> Trials:
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    workplace = workplace_of(folder)
    workplace.env |= {"CAPSREPRO_DATA": str(data), "CAPSREPRO_MIRROR": str(MIRROR)}
    workplace.edit(cut)
    return Trials(workplace)


@pytest.fixture(scope="module")
def trials(data, prepared_once, tmp_path_factory) -> Trials:
    return trials_in(tmp_path_factory.mktemp("trials") / "project", data, type(prepared_once))


@pytest.fixture
def others(data, prepared_once, tmp_path) -> Trials:
    """Another project with the same data, to change."""
    return trials_in(tmp_path / "project", data, type(prepared_once))


@pytest.mark.parametrize("run", RUNS)
def test_every_run_of_every_protocol_leaves_a_record(trials, run):
    record = trials.record(run)
    shipped = PROTOCOLS[record.protocol]
    assert (record.status, record.failure, record.budget.steps) == ("finished", None, STEPS)
    assert record.budget.fraction == shipped["recipe"]["steps"] / shipped["full_steps"]
    for metric in shipped.get("measured", {"test": "test_error_pct"}).values():
        stem = metric.removesuffix("_error_pct").removesuffix("_accuracy_pct")
        wrong, images = (record.metrics[f"{stem}_{name}"] for name in ("errors", "images"))
        error = record.metrics[metric] if metric.endswith("error_pct") else None
        error = 100 - record.metrics[metric] if error is None else error
        assert METRICS[metric].proportion
        assert error == pytest.approx(100 * wrong / images)
        asked = MORE_COMPOSITES if "test_images" in shipped else TEST_IMAGES[record.data.name]
        assert images == asked * (2 if stem.startswith("novel") else 1)
    (entry,) = trials.history(run)
    assert entry["step"] == STEPS
    assert np.isfinite(list(entry.values())).all()
    assert run not in [owed["run"] for owed in pending(trials)]


# Of novel views there are twice as many as of familiar ones.
TEST_IMAGES = {
    "digits": 500,
    "mnist": 10_000,
    "multimnist": 10_000,
    "multimnist-relative": 10_000,
    "multimnist-code": 10_000,
    "affnist": 10_000,
    "cifar10": 10_000,
    "svhn": 26_032,
    "smallnorb": 24_300,
    "smallnorb-azimuth": 8_100,
    "smallnorb-elevation": 8_100,
    "smallnorb-monocular": 48_600,
    "solids-azimuth": 270,
    "solids-elevation": 270,
}


def pending(trials: Trials) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(trials.workplace.call("pending", "--json").out)
    return found


def test_a_rule_that_is_met_ends_the_training_and_is_the_whole_budget(trials):
    """DR17 §5.2: both networks are stopped at one accuracy on shifted digits."""
    for protocol, split in (("affnist", "expanded"), ("affnist-clean", "validation")):
        run = f"{protocol}/capsnet-r3-recon/seed-0"
        record = trials.record(run)
        (entry,) = trials.history(run)
        assert (record.status, record.budget.fraction) == ("finished", 1)
        assert record.budget.full_steps == record.budget.steps == STEPS
        accuracies = {"expanded_mnist_accuracy_pct", "affnist_accuracy_pct"}
        assert accuracies <= record.metrics.keys()
        assert "test_error_pct" not in record.metrics
        assert {key for key in entry if key.endswith("_accuracy_pct")} == {f"{split}_accuracy_pct"}
    tested = trials.record("affnist/capsnet-r3-recon/seed-0").metrics
    (entry,) = trials.history("affnist/capsnet-r3-recon/seed-0")
    assert entry["expanded_accuracy_pct"] == tested["expanded_mnist_accuracy_pct"]
    # The test images here are the expanded ones, so the same network errs as often on both.
    assert tested["affnist_accuracy_pct"] == tested["expanded_mnist_accuracy_pct"]


@pytest.mark.parametrize("protocol", VIEWPOINTS)
def test_a_capsule_network_is_trained_until_it_is_as_good_as_the_cnn(protocol, trials):
    """EM18 §5.1: on familiar views; what then counts is the novel ones."""
    cnn, capsules = (f"{protocol}/{model}/seed-0" for model in PROTOCOLS[protocol]["run_models"])
    record = trials.record(capsules)
    (entry,), (plain,) = trials.history(capsules), trials.history(cnn)
    assert (record.status, record.budget.fraction) == ("finished", 1)
    wanted = 100 - trials.record(cnn).metrics["familiar_test_error_pct"]
    assert record.metrics[MATCHED] == wanted
    assert entry["familiar_accuracy_pct"] == 100 - record.metrics["familiar_test_error_pct"]
    assert [key for key in plain if key.endswith("_accuracy_pct")] == []


DIGITS = "digits/cnn-baseline/seed-0"


def test_a_rule_met_before_the_last_step_ends_the_training_there(others):
    """Of the 1,297 digits 273 are held out, so 16 batches of 64 are an epoch."""

    def with_a_rule(params: dict[str, Any]) -> None:
        recipe = {"steps": 40, "validation_images": 273}
        recipe["stop"] = {"split": "validation", "accuracy_pct": 0.01}
        params["protocols"]["digits"]["recipe"] |= recipe

    others.workplace.edit(with_a_rule)
    record = others.record(DIGITS)
    assert (record.status, record.budget.steps, record.budget.fraction) == ("finished", 16, 1)
    (entry,) = others.history(DIGITS)
    assert (entry["step"], entry["epoch"]) == (16, 1)


def test_a_rule_that_is_never_met_is_a_failed_record(others):
    def shipped_rule(params: dict[str, Any]) -> None:
        recipe = params["protocols"]["affnist"]["recipe"]
        stop = PROTOCOLS["affnist"]["recipe"]["stop"]
        params["protocols"]["affnist"]["recipe"] = recipe | {"stop": stop}

    others.workplace.edit(shipped_rule)
    run = "affnist/cnn-baseline/seed-0"
    record = others.record(run)
    assert record.failure is not None
    assert record.failure.reason == "never reached an accuracy of 99.22 % on expanded"
    assert (record.status, record.failure.step, record.metrics) == ("failed", STEPS, {})
    assert run not in [owed["run"] for owed in pending(others)]
    assert "never reached" in others.workplace.call("report", "affnist").out


def test_validation_never_opens_the_test_images(others, data, monkeypatch):
    """Once the data are known to be prepared, the file of the test images is gone."""
    run = "mnist-short-validate/capsnet-r3-recon/seed-0"
    assembly.prepare_data(*others.inside(run))
    copy = others.workplace.root / "data"
    shutil.copytree(data / "prepared/mnist", copy / "prepared/mnist")
    others.workplace.env["CAPSREPRO_DATA"] = str(copy)
    prepare_data = assembly.prepare_data

    def prepare_and_remove(*arguments: Any) -> Any:
        manifest = prepare_data(*arguments)
        (copy / "prepared/mnist/test.npz").unlink()
        return manifest

    monkeypatch.setattr(assembly, "prepare_data", prepare_and_remove)
    record = others.record(run)
    (entry,) = others.history(run)
    monkeypatch.undo()
    assert not (copy / "prepared/mnist/test.npz").exists()
    assert record.metrics["validation_images"] == 10_000
    assert record.metrics["validation_error_pct"] == pytest.approx(
        100 - entry["validation_accuracy_pct"]
    )
    assert [name for name in record.metrics if name.startswith("test")] == []
    assert entry["epoch"] == STEPS * 128 / 50_000

    project, spec = others.inside(run)
    with np.load(data / "prepared/mnist/train.npz") as arrays:
        images = arrays["images"]
    trained_on = assembly.training_stream(project, spec, CPU).examples
    held_out = assembly.evaluation_split(project, spec, "validation", CPU)
    np.testing.assert_array_equal(trained_on.images.numpy(), images[10_000:])
    np.testing.assert_array_equal(held_out.examples.images.numpy(), images[:10_000])
    first = next(iter(held_out)).images
    np.testing.assert_array_equal((first * 255).round().numpy(), images[: len(first)])
    # Nothing of it is judged.
    assert run.split("/")[0] not in (others.workplace.root / "results/index.json").read_text()


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name.startswith("affnist")])
def test_validation_stops_by_the_held_out_images_too(protocol, others):
    """A rule that looked at test digits would let them into whatever is chosen this way."""
    run = f"{protocol}-validate/cnn-baseline/seed-0"
    record = others.record(run)
    (entry,) = others.history(run)
    assert {key for key in entry if key.endswith("_accuracy_pct")} == {"validation_accuracy_pct"}
    assert record.metrics["validation_error_pct"] == pytest.approx(
        100 - entry["validation_accuracy_pct"]
    )
    assert record.budget.fraction == 1


def test_more_images_to_hold_out_than_there_are(trials):
    refused = trials.workplace.call("run", DIGITS.replace("digits/", "digits-validate/"))
    assert refused.is_refusal(2, "digits has 1,297 images", "the first 10,000 are held out")


def test_single_images_cannot_be_multiplied(others):
    others.workplace.edit(lambda params: params["protocols"]["mnist"].update(test_images=12_000))
    refused = others.workplace.call("run", "mnist/capsnet-r1/seed-0")
    assert refused.is_refusal(2, "mnist.test_images", "12,000 composites", "has single images")


def test_routing_is_looked_at_after_every_epoch(trials):
    (entry,) = trials.history("mnist-short/capsnet-r3-recon/seed-0")
    probed = {key for key in entry if "_change_" in key or "_entropy_nat_" in key}
    names = ("logit_change", "agreement_change", "coupling_change", "coupling_entropy_nat")
    assert probed == {f"{name}_{step}" for name in names for step in range(1, 11)}
    assert entry["coupling_change_1"] == 0
    assert entry["coupling_entropy_nat_1"] == pytest.approx(np.log(10))  # uniform over ten parents
    assert all(entry[f"coupling_change_{step}"] > 0 for step in range(2, 11))
    (plain,) = trials.history("mnist/cnn-baseline/seed-0")
    assert [key for key in plain if "_change_" in key] == []


ASKED = [
    pytest.param(name, kind, id=f"{name}/{kind}")
    for name, protocol in PROTOCOLS.items()
    for kind in protocol.get("evaluations", {})
    if "multimnist" not in name or kind == "overlap" or name == "multimnist"
]


@pytest.mark.parametrize(("protocol", "kind"), ASKED)
def test_every_evaluation_leaves_a_record(protocol, kind, trials):
    settings = PROTOCOLS[protocol]["evaluations"][kind]
    run = f"{protocol}/{settings['models'][-1]}/seed-0"
    record = trials.record(run, kind)
    assert (record.kind, record.status) == (kind, "finished")
    assert record.inputs.keys() == {"weights.safetensors"}
    numbers = [*record.metrics.values(), *(x for values in record.curves.values() for x in values)]
    assert numbers
    assert np.isfinite(numbers).all()
    assert "nothing to do" in trials.workplace.call(kind, run).out


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name.startswith("multimnist")])
def test_two_digits_are_measured_by_overlap(protocol, trials):
    run = f"{protocol}/{PROTOCOLS[protocol]['evaluations']['overlap']['models'][-1]}/seed-0"
    overlap = trials.record(run, "overlap")
    assert sum(overlap.curves["composites"]) == 10_000
    error = overlap.metrics["test_error_pct"]
    if "test_images" not in PROTOCOLS[protocol]:  # else the run was tested on more composites
        assert error == trials.record(run).metrics["test_error_pct"]
    assert overlap.metrics["both_wrong_pct"] <= overlap.metrics["label_error_pct"] <= error


def test_pictures_of_two_digits_are_kept(trials):
    run = "multimnist/capsnet-r3-recon/seed-0"
    pictures = trials.arrays(run, "reconstruct")
    images, labels = pictures["images"], pictures["labels"]
    assert images.shape[1:] == (1, 36, 36)
    assert images.dtype == labels.dtype == np.uint8
    assert labels.shape == (len(images), 2)
    assert (labels[:, 0] != labels[:, 1]).all()
    assert pictures["drawn_labels"].shape == (len(images), 2, 1, 36, 36)


def test_pictures_of_perturbed_digits_are_kept(trials):
    pictures = trials.arrays("mnist/capsnet-r3-recon/seed-0", "reconstruct")
    found = len(pictures["perturbed_labels"])
    assert pictures["perturbed"].shape == (found, 16, 11, 1, 28, 28)


@pytest.mark.parametrize("run", [f"{name}/cnn-baseline/seed-0" for name in ("mnist", "multimnist")])
def test_what_a_network_cannot_show_is_refused(run, trials):
    trials.record(run)
    refused = trials.workplace.call("reconstruct", run)
    assert refused.is_refusal(1, "model cnn-baseline has no decoder")


def test_two_seeds_make_an_ensemble(trials):
    """What the report adds up from files is what the two networks give together."""
    runs = [f"cifar10/capsnet-r3-recon/seed-{seed}" for seed in range(2)]
    kept = [trials.arrays(run, "scores")["scores"] for run in runs]
    lengths = [scores_of(trials, run) for run in runs]
    for scores, length in zip(kept, lengths, strict=True):
        assert scores.dtype == np.float16
        np.testing.assert_array_equal(scores, length.astype(np.float16))
    labels = trials.arrays(runs[0], "scores")["labels"]
    total = kept[0].astype(np.float64) + kept[1]
    expected = 100 * np.mean(total.argmax(1) != labels[:, 0])

    shown = json.loads(trials.workplace.call("report", "cifar10", "--format", "json").out)
    rows = {row["model"]["name"]: row for row in shown["tables"][0]["rows"]}
    pair = rows["capsnet-r3-recon-ensemble2"]
    assert pair["test_error_pct"]["mean"] == pytest.approx(expected)
    assert (pair["test_error_pct"]["n"], pair["seeds"]["n"]) == (1, 2)
    assert pair["published"] is None
    single = rows["capsnet-r3-recon"]["test_error_pct"]
    assert single["n"] == 2
    assert single["mean"] == pytest.approx(
        np.mean([trials.record(run).metrics["test_error_pct"] for run in runs])
    )
    owed = rows["capsnet-r3-recon-ensemble7"]
    assert (owed["seeds"]["n"], owed["seeds"]["missing"]) == (0, "2, 3, 4, 5, 6")
    assert owed["verdict"] == "not run"


def scores_of(trials: Trials, run: str) -> np.ndarray:
    """Lengths of the class capsules for every test image, from the run's weights."""
    project, spec = trials.inside(run)
    model = assembly.build_model(spec, CPU)
    weights.load_weights(model, project.checkpoint_folder(run), trials.record(run))
    model.eval()
    with torch.inference_mode():
        batches = assembly.evaluation_split(project, spec, "test", CPU)
        return torch.cat([model(batch.images) for batch in batches]).numpy()
