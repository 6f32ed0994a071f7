"""What a record says about the program and the machine that made it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from capsrepro.records import Code, Environment

_PACKAGE = Path(__file__).parents[1]
_SCIENCE = ("data", "models", "training", "evaluation", "running/assembly.py")


def science_digest() -> str:
    """SHA-256 over the source that decides what the numbers are."""
    hasher = hashlib.sha256()
    for name in _SCIENCE:
        place = _PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            hasher.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
            hasher.update(path.read_bytes() + b"\0")
    return hasher.hexdigest()


def describe_code(root: Path) -> Code:
    """Commit and state of the checkout; results and locks that a run itself writes do not count."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(
        root,
        "status",
        "--porcelain",
        "--",
        ".",
        ":!results",
        ":!dvc.lock",
        ":!pipelines/*dvc.lock",
    )
    return Code(
        git_commit=commit or None,
        git_dirty=None if changes is None else bool(changes),
        science_digest=science_digest(),
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What git answers, or None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe_environment(device: torch.device, precision: str) -> Environment:
    """Libraries, hardware and the settings that can change bits."""
    has_gpu = torch.cuda.is_available()
    cudnn = str(torch.backends.cudnn.version()) if has_gpu else None  # type: ignore[no-untyped-call]
    return Environment(
        versions={
            "capsrepro": _own_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": importlib.metadata.version("numpy"),
            "cuda": torch.version.cuda if has_gpu else None,
            "cudnn": cudnn,
        },
        platform=platform.platform(),
        device=_device_name(device),
        threads=torch.get_num_threads(),
        precision=precision,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _own_version() -> str | None:
    """None where the program runs from its folder without being installed."""
    try:
        return importlib.metadata.version("capsrepro")
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    )


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held at once: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # On Linux `getrusage` also counts what the parent held when it started this process.
    status = Path("/proc/self/status")
    told = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if told:
        return int(told[1]) / 2**10
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def energy_j(device: torch.device) -> float | None:
    """Energy the GPU has used since its driver started, where the driver tells."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except Exception:
        # A missing or refusing driver library must never cost a run.
        return None
