"""Networks of matrix capsules small enough to be followed vote by vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from small_capsnets import PARAMS

from capsrepro.config import resolve_run
from capsrepro.models.matrix_capsules import MatrixCapsNet

NAMES = {
    "text": "matcaps-mnist-short/matcaps-small-em3/seed-0",
    "code": "matcaps-mnist-short/matcaps-small-em3-code/seed-0",
}
# 8×8 pixels, then 6×6 and 2×2 capsules: the class layer sees 4 places of 2 types.
SMALL = {
    "conv1_channels": 4,
    "conv1_kernel": 3,
    "conv1_stride": 1,
    "primary_types": 2,
    "conv_types": (2,),
    "conv_kernels": (3,),
    "conv_strides": (2,),
}


def matcaps(reading: str = "text", classes: int = 5, **changes: Any) -> MatrixCapsNet:
    """Untrained, with routing that decides: large weights and a temperature of 1.

    Its start is numpy's: torch's own differs from version to version.
    """
    fields = resolve_run(PARAMS, NAMES[reading]).model.model_dump(
        exclude={"family", "stands_for", "reading"}
    )
    fields |= {"image_shape": (1, 8, 8), "classes": classes, **SMALL, **changes}
    fields["routing"] = fields["routing"] | {"inverse_temperature": 1.0, "variance_floor": 0.05}
    model = MatrixCapsNet(**fields)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if "transforms" in name else 3 * parameter[0].numel() ** -0.5
            spread = 0.01 if "beta" in name else spread
            parameter.copy_(torch.from_numpy(random.normal(0, spread, parameter.shape)))
    return model
