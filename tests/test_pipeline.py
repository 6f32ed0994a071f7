"""DVC end to end, in a copy of this checkout with the budgets cut to seconds."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MIRROR = ROOT.parent / "shared" / "datasets"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def call(folder: Path, *command: str, **environment: str) -> str:
    """Run a command of the environment in a folder; returns everything it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CAPSREPRO")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "MLFLOW_TRACKING_URI": "off", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return call(folder, "git", *identity, *arguments)


# Those whose data this machine has; the others are trained in tests/running/test_protocols.py.
PROTOCOLS = ("digits", "mnist", "mnist-short", "multimnist-short")


def cut(params: dict) -> None:
    """One small model, one seed and a few steps for these protocols."""
    params["protocols"] = {name: params["protocols"][name] for name in PROTOCOLS}
    used = {protocol["models"] for protocol in params["protocols"].values()}
    for name, block in [(name, params["models"][name]) for name in used]:
        params["models"][name] = {"capsnet-r3-recon": block["capsnet-r3-recon"]}
        if name != "digits":
            block["capsnet-r3-recon"] |= {"conv1_channels": 4, "primary_types": 2, "primary_dim": 4}
    for name, protocol in params["protocols"].items():
        protocol["run_models"], protocol["run_seeds"] = ["capsnet-r3-recon"], [0]
        protocol["recipe"]["steps"] = 12 if name == "digits" else 3
        attacks = protocol["attacks"]
        protocol["attacks"] = {
            name: attacks[name] for name in attacks if "source" not in attacks[name]
        }
        for attack in protocol["attacks"].values():
            attack |= {"models": ["capsnet-r3-recon"], "epsilons": [0, "8/255"], "images": 20}
        for kind, evaluation in protocol.get("evaluations", {}).items():
            evaluation["models"] = ["capsnet-r3-recon"]
            if kind == "distortions":
                evaluation["images"] = 20


def cut_root(pipeline: dict) -> None:
    """The root pipeline pulls in these protocols alone."""
    runs = pipeline["stages"]["runs"]
    runs["deps"] = [f"results/runs/{name}" for name in PROTOCOLS]


def cut_matrix(pipeline: dict) -> None:
    """The grid that is left of params.yaml."""
    for stage in pipeline["stages"].values():
        left = {"model": ["capsnet-r3-recon"], "seed": [0]}
        if "matrix" in stage:
            stage["matrix"] |= {key: left[key] for key in left if key in stage["matrix"]}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the files of this one, committed, and small budgets."""
    folder = tmp_path / "clone"
    listed = call(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        # Our own records belong to the full budgets.
        if (ROOT / name).is_file() and not name.startswith("results/") and "dvc.lock" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    cut(params)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    root = yaml.safe_load((folder / "dvc.yaml").read_text())
    cut_root(root)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(root, sort_keys=False))
    for pipeline in (folder / "pipelines").iterdir():
        if pipeline.is_dir() and pipeline.name not in (*PROTOCOLS, "datasets", "asked"):
            shutil.rmtree(pipeline)
    for path in (folder / "pipelines").rglob("dvc.yaml"):
        pipeline = yaml.safe_load(path.read_text())
        cut_matrix(pipeline)
        path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    for transfer in (folder / "pipelines").glob("*/transfer"):
        shutil.rmtree(transfer)  # there is no second seed to take images from
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "copy")
    return folder


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']*)'", output)


def test_one_protocol_runs_once_and_prints_its_table(checkout: Path) -> None:
    output = call(checkout, "dvc", "repro", "pipelines/digits/dvc.yaml")
    stages = [name.split(":")[-1] for name in stages_run(output)]
    # DVC does the first two in either order.
    assert {*stages[:2]} == {"asked", "prepare@digits"}
    assert stages[2:] == ["train@capsnet-r3-recon-0", "attack@capsnet-r3-recon-0", "report"]
    run = checkout / "results/runs/digits/capsnet-r3-recon/seed-0"
    assert {path.name for path in run.iterdir()} == {"train.json", "fgsm.json", "history.jsonl"}
    assert "| capsnet-r3-recon | text" in output
    assert stages_run(call(checkout, "dvc", "repro", "pipelines/digits/dvc.yaml")) == []


def test_a_change_of_params_reruns_what_depends_on_it_alone(checkout: Path) -> None:
    def rerun_after(change: Callable[[dict], object]) -> list[str]:
        params = yaml.safe_load((checkout / "params.yaml").read_text())
        change(params["protocols"])
        (checkout / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        output = call(checkout, "dvc", "repro", "pipelines/digits/dvc.yaml")
        return [re.split("[:@]", name)[1] for name in stages_run(output)]

    def set_steps(protocol: dict) -> None:
        protocol["recipe"]["steps"] += 1

    call(checkout, "dvc", "repro", "pipelines/digits/dvc.yaml")
    assert {path.stem for path in (checkout / "pipelines/asked").iterdir()} == set(PROTOCOLS)
    assert rerun_after(lambda protocols: set_steps(protocols["mnist"])) == ["asked"]
    attack = {"epsilons": [0, "16/255"]}
    assert rerun_after(lambda protocols: protocols["digits"]["attacks"]["fgsm"].update(attack)) == [
        "asked",
        "attack",
        "report",
    ]
    assert rerun_after(lambda protocols: set_steps(protocols["digits"])) == [
        "asked",
        "train",
        "attack",
        "report",
    ]


@pytest.mark.real_data
@pytest.mark.skipif(not MIRROR.is_dir(), reason=f"{MIRROR} with the files of MNIST is not here")
def test_everything_runs_once_and_a_clone_with_records_only_reports(checkout: Path) -> None:
    output = call(checkout, "dvc", "repro", CAPSREPRO_MIRROR=str(MIRROR))
    assert "nothing is pending" in output
    stages = stages_run(output)
    assert stages[-2:] == ["runs", "report"]
    # Asked, prepare, train, FGSM, the evaluations of the two on MNIST (three of them attacks) and
    # of MultiMNIST, root.
    assert len(stages) == len(set(stages)) == 1 + 3 + 4 + 4 + 2 * 6 + 2 + 2
    assert stages_run(call(checkout, "dvc", "repro", CAPSREPRO_MIRROR=str(MIRROR))) == []

    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "records")
    tables = {p.name: p.read_bytes() for p in (checkout / "results/tables").iterdir()}
    clone = checkout.parent / "fresh"
    git(checkout.parent, "clone", "-q", str(checkout), str(clone))
    shutil.rmtree(clone / "results/tables")
    # No mirror and no data: anything but the report would fail here.
    assert stages_run(call(clone, "dvc", "repro", "report")) == ["report"]
    assert {p.name: p.read_bytes() for p in (clone / "results/tables").iterdir()} == tables
    assert not (clone / "data").exists()
