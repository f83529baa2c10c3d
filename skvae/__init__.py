"""Variational autoencoders and deep clustering with the scikit-learn API, built on PyTorch."""

from ._version import __version__
from .estimators import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from .persistence import load, save, to_onnx

__all__ = [
    "AutoencoderEmbedder",
    "ClusterLabelClassifier",
    "TorchGMM",
    "TorchMiniBatchKMeans",
    "TorchPPCA",
    "VAEEmbedder",
    "VaDEClusterer",
    "__version__",
    "load",
    "save",
    "to_onnx",
]
