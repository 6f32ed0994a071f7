"""Class scores of every test image, as they stand beside a record, and the errors they amount to.

A file holds `scores` (N, K) float16 and `labels` (N, L) uint8: N images in the order of the test
split, K classes, L labels per image. Without torch, since ensembles are made when tables are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from capsrepro.errors import CapsreproError
from capsrepro.files import sha256_of_file

KIND = "scores"
"""Of the record."""
NAME = f"{KIND}.npz"
"""Of the file beside it."""

Scores = NDArray[np.floating[Any]]
Labels = NDArray[np.uint8]


def count_errors(scores_NK: Scores, labels_NL: Labels) -> int:
    """How many images do not have exactly their L labels as the L highest scores.

    Of equal scores the lower class comes first, as in the authors' program (TensorFlow's top_k).
    """
    L = labels_NL.shape[1]
    predicted_NL = np.argsort(-scores_NK, axis=1, kind="stable")[:, :L]
    return int((np.sort(predicted_NL, 1) != np.sort(labels_NL, 1)).any(1).sum())


def count_ties(scores_NK: Scores, labels_NL: Labels) -> int:
    """How many images have their L-th and their next score equal, so that the order decides."""
    L = labels_NL.shape[1]
    descending_NK = -np.sort(-scores_NK, axis=1)
    return int((descending_NK[:, L - 1] == descending_NK[:, L]).sum())


def read_scores(folder: Path, run: str, sha256: str) -> tuple[Scores, Labels]:
    """Read what `capsrepro scores` left in the folder of a run.

    Args:
        folder: Of the run's records.
        run: Its name.
        sha256: What the record says the file must be.

    Returns:
        Scores (N, K) and labels (N, L).

    Raises:
        CapsreproError: The file is missing, another one, or does not hold scores.
    """
    path = folder / NAME
    remedy = f"restore it with `git checkout`, or delete it and run `capsrepro {KIND} {run}`."
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise CapsreproError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    if found != sha256:
        raise CapsreproError(f"{path} does not hold the scores its record speaks of; {remedy}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            scores_NK, labels_NL = arrays["scores"], arrays["labels"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise CapsreproError(f"{path} holds no class scores and labels; {remedy}") from error
    return scores_NK, labels_NL
