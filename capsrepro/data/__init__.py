"""The table of data sets; importing it needs neither torch nor scikit-learn."""

from __future__ import annotations

from capsrepro.data import digits, mnist, multimnist, smallnorb
from capsrepro.data.dataset import Dataset

DATASETS: dict[str, Dataset] = {
    "digits": digits.DATASET,
    "mnist": mnist.DATASET,
    "multimnist": multimnist.TEXT,
    "multimnist-relative": multimnist.RELATIVE,
    "multimnist-code": multimnist.CODE,
    "smallnorb": smallnorb.DATASET,
    "smallnorb-azimuth": smallnorb.AZIMUTH,
    "smallnorb-elevation": smallnorb.ELEVATION,
}
