"""Variational autoencoders and deep clustering with the scikit-learn API, built on PyTorch.

Names are imported when they are first used: importing the package alone imports neither torch nor scikit-learn.
"""

import importlib
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
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
_PERSISTENCE = ("load", "save", "to_onnx")
_MODULES = ("callbacks", "datasets", "displays", "distributed", "estimators", "metrics", "persistence", "selection")


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(".persistence" if name in _PERSISTENCE else ".estimators", __name__)
    value = globals()[name] = getattr(module, name)
    return value


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES} - {"TYPE_CHECKING", "importlib"})
