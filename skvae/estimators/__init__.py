"""Estimators with the scikit-learn API."""

from .embedders import AutoencoderEmbedder, VAEEmbedder
from .gmm import TorchGMM
from .kmeans import TorchMiniBatchKMeans
from .label_classifier import ClusterLabelClassifier
from .ppca import TorchPPCA
from .vade import VaDEClusterer

ESTIMATORS = {
    estimator.__name__: estimator
    for estimator in (
        AutoencoderEmbedder,
        ClusterLabelClassifier,
        TorchGMM,
        TorchMiniBatchKMeans,
        TorchPPCA,
        VAEEmbedder,
        VaDEClusterer,
    )
}

__all__ = [
    "ESTIMATORS",
    "AutoencoderEmbedder",
    "ClusterLabelClassifier",
    "TorchGMM",
    "TorchMiniBatchKMeans",
    "TorchPPCA",
    "VAEEmbedder",
    "VaDEClusterer",
]
