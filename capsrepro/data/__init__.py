"""The table of data sets; importing it needs neither torch nor scikit-learn."""

from __future__ import annotations

from capsrepro.data import (
    affmnist,
    affnist,
    cifar10,
    cifar10_jpeg,
    digits,
    mnist,
    multimnist,
    smallnorb,
    solids,
    svhn,
)
from capsrepro.data.dataset import Dataset

DATASETS: dict[str, Dataset] = {
    "digits": digits.DATASET,
    "mnist": mnist.DATASET,
    "multimnist": multimnist.TEXT,
    "multimnist-relative": multimnist.RELATIVE,
    "multimnist-code": multimnist.CODE,
    "affnist": affnist.DATASET,
    "affmnist-generated": affmnist.DATASET,
    "cifar10": cifar10.DATASET,
    "cifar10-jpeg": cifar10_jpeg.DATASET,
    "svhn": svhn.DATASET,
    "smallnorb": smallnorb.DATASET,
    "smallnorb-azimuth": smallnorb.AZIMUTH,
    "smallnorb-elevation": smallnorb.ELEVATION,
    "smallnorb-monocular": smallnorb.MONOCULAR,
    "solids": solids.DATASET,
    "solids-azimuth": solids.AZIMUTH,
    "solids-elevation": solids.ELEVATION,
}
