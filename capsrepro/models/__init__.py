from typing import Any

from torch import nn

from capsrepro.models.baselines import BaselineCNN, PooledCNN
from capsrepro.models.capsnet import CapsNet
from capsrepro.models.matrix_capsules import MatrixCapsNet

# Model family, as `family` in params.yaml, and the module that implements it. Every one takes
# image_shape and classes besides the keys of its params.yaml entry, returns class scores_BK when
# called, and has objective() for training and classification_loss for attacks.
MODELS: dict[str, type[nn.Module] | Any] = {
    "capsnet": CapsNet,
    "baseline-cnn": BaselineCNN,
    "pooled-cnn": PooledCNN,
    "matrix-capsules": MatrixCapsNet,
}
