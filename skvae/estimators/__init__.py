"""How the models are used: the scikit-learn faces."""

from .embedders import AutoencoderEmbedder, VAEEmbedder
from .gmm import TorchGMM
from .kmeans import TorchMiniBatchKMeans
from .ppca import TorchPPCA

ESTIMATORS = {
    estimator.__name__: estimator
    for estimator in (AutoencoderEmbedder, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder)
}

__all__ = ["ESTIMATORS", "AutoencoderEmbedder", "TorchGMM", "TorchMiniBatchKMeans", "TorchPPCA", "VAEEmbedder"]
