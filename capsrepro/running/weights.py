"""Trained weights: safetensors with their SHA-256 beside them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from capsrepro.errors import CapsreproError
from capsrepro.files import has_sha256, sha256_of_file, write_atomically, write_text
from capsrepro.records import Record

NAME = "weights.safetensors"


def save_weights(model: nn.Module, folder: Path) -> str:
    """Write a model's parameters; returns the SHA-256 of the file.

    Raises:
        CapsreproError: The folder cannot be written to.
    """
    from safetensors.torch import save

    content = save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    path = folder / NAME
    write_atomically(path, lambda file: file.write(content))
    sha256 = sha256_of_file(path)
    write_text(folder / f"{NAME}.sha256", f"{sha256}  {NAME}\n")
    return sha256


def has_weights(folder: Path, record: Record) -> bool:
    """Whether the weights that a train record speaks of are here."""
    return has_sha256(folder / NAME, record.outputs.get(NAME))


def load_weights(model: nn.Module, folder: Path, record: Record) -> None:
    """Put the weights that a train record speaks of into a model of the same specification.

    Raises:
        CapsreproError: They are not here, or are others than the record's.
    """
    path = folder / NAME
    remedy = f"run `capsrepro run {record.run} --weights` to train them again."
    if not path.is_file():
        raise CapsreproError(f"the trained weights of {record.run} are not here ({path}); {remedy}")
    found = sha256_of_file(path)
    if found != record.outputs.get(NAME):
        raise CapsreproError(
            f"{path} does not hold the weights that the record of {record.run} speaks of "
            f"(SHA-256 {found} instead of {record.outputs.get(NAME)}); {remedy}"
        )
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))
