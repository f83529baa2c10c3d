"""Plots of fitted models with the API of scikit-learn's displays; matplotlib is imported when they are drawn."""

from .cluster_evolution import ClusterEvolutionDisplay
from .cluster_profile import ClusterProfileDisplay
from .cluster_samples import ClusterSamplesDisplay
from .latent_space import LatentSpaceDisplay
from .manifold import ManifoldDisplay
from .mixture_selection import MixtureSelectionDisplay
from .reconstructions import ReconstructionDisplay
from .training_curves import TrainingCurveDisplay

__all__ = [
    "ClusterEvolutionDisplay",
    "ClusterProfileDisplay",
    "ClusterSamplesDisplay",
    "LatentSpaceDisplay",
    "ManifoldDisplay",
    "MixtureSelectionDisplay",
    "ReconstructionDisplay",
    "TrainingCurveDisplay",
]
