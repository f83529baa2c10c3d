"""How the models are used: the scikit-learn faces."""

from .embedders import VAEEmbedder
from .gmm import TorchGMM

ESTIMATORS = {estimator.__name__: estimator for estimator in (TorchGMM, VAEEmbedder)}

__all__ = ["ESTIMATORS", "TorchGMM", "VAEEmbedder"]
