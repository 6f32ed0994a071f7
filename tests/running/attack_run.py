"""Attacks of every kind on the embedded digits."""

from __future__ import annotations

from typing import Any

RUN = "digits/capsnet-r3-recon/seed-0"
BASELINE = "digits/cnn-baseline/seed-0"


def add_attacks(document: dict[str, Any]) -> None:
    """Ask for them in params.yaml, on few images."""
    models = ["cnn-baseline", "capsnet-r3-recon"]
    same = {"models": models, "loss": "own", "epsilons": [0, "16/255", "64/255"], "images": 60}
    several = {"steps": 4, "step_share": 0.4}
    document["protocols"]["digits"]["attacks"].update(
        {
            "bim": {**same, "method": "bim", **several},
            "pgd": {**same, "method": "pgd", **several, "restarts": 2, "loss": "logit-difference"},
            "fgsm-targeted": {**same, "method": "fgsm", "goal": "targeted"},
            "fgsm-standardised": {**same, "method": "fgsm", "epsilon_unit": "standardised-pixels"},
            "transfer-cnn": {**same, "method": "fgsm", "source": "cnn-baseline"},
        }
    )
