"""Pictures of fitted models, with the manners of scikit-learn's displays. matplotlib is imported when drawing."""

from .latent_space import LatentSpaceDisplay
from .mixture_selection import MixtureSelectionDisplay
from .reconstructions import ReconstructionDisplay

__all__ = ["LatentSpaceDisplay", "MixtureSelectionDisplay", "ReconstructionDisplay"]
