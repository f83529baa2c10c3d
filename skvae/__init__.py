"""Deep embeddings and deep clustering with the manners of scikit-learn, on torch."""

from .estimators import AutoencoderEmbedder, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder

__version__ = "0.1.0.dev0"

__all__ = [
    "AutoencoderEmbedder",
    "TorchGMM",
    "TorchMiniBatchKMeans",
    "TorchPPCA",
    "VAEEmbedder",
    "VaDEClusterer",
    "__version__",
]
