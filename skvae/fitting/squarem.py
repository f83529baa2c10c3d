"""Acceleration of EM: extrapolation of its steps by SQUAREM."""

from abc import ABC, abstractmethod

import torch

from ..models.covariances import Mixture


class PlainEM:
    """EM without acceleration: the next model is that of the M-step."""

    is_extrapolated = keeps_path = False

    def extrapolate(self, before, after):
        """Return None: no model is extrapolated."""

    def propose(self, before, after, extrapolated):
        """Return the model of the M-step."""
        return after


class Squarem:
    """SQUAREM (Varadhan and Roland 2008, scheme S3).

    After two EM steps from a model, their curvature determines how far to extrapolate. If the likelihood of the
    extrapolated model is lower than that of the last accepted model, EM falls back to its last plain step.

    Parameters
    ----------
    coordinates : Coordinates
    """

    keeps_path = True

    def __init__(self, coordinates):
        self.coordinates, self.path, self.fallback = coordinates, [], None

    @property
    def is_extrapolated(self):
        """Return whether the last proposed model is extrapolated, with an EM step to fall back to."""
        return self.fallback is not None

    def reject(self):
        """Discard the extrapolated model; return that of the last EM step."""
        model, self.fallback, self.path = self.fallback, None, []
        return model

    def extrapolate(self, before, after):
        """Return the extrapolated model and whether it is valid (), or None where the path has fewer than two steps.

        The path stays as it is, and the host does not wait for the device: see `propose`.
        """
        path = self._extended(before, after)
        if len(path) < 3:
            return None
        start, middle, end = map(self.coordinates.of, path)
        steps = [one - zero for zero, one in zip(start, middle, strict=True)]
        curvatures = list(map(self.coordinates.curvature, start, middle, end))
        scale = (self.coordinates.norm(steps) / self.coordinates.norm(curvatures)).clamp(min=1.0)
        parts = zip(start, steps, curvatures, strict=True)
        extrapolated = [zero + 2 * scale * step + scale**2 * curve for zero, step, curve in parts]
        return self.coordinates.model_at(extrapolated, after)

    def propose(self, before, after, extrapolated):
        """Return the model for the next E-step.

        Parameters
        ----------
        before, after : Mixture or PPCA
            The models before and after an EM step; ``before`` is None where the path is interrupted.
        extrapolated : Mixture or PPCA, optional
            None where the path is incomplete or the extrapolated model not valid.
        """
        path = self._extended(before, after)
        self.path = path if len(path) < 3 else []
        self.fallback = None if extrapolated is None else after
        return after if extrapolated is None else extrapolated

    def _extended(self, before, after):
        return [] if before is None else [*(self.path or [before]), after]


class Coordinates(ABC):
    """Unconstrained coordinates of models, in which EM steps are extrapolated."""

    @abstractmethod
    def of(self, model):
        """Return the coordinates of a model, a sequence of tensors."""

    @abstractmethod
    def model_at(self, coordinates, template):
        """Return the model at these coordinates, and whether it is finite ()."""

    # Subclasses may use other orders of operations, so that the last bits of seeded fits stay the same.
    def curvature(self, start, middle, end):
        """Return the difference of two consecutive steps."""
        return end - middle - (middle - start)

    def norm(self, tensors):
        """Return the Euclidean norm () of all tensors together."""
        return sum(part.square().sum() for part in tensors).sqrt()


class MixtureCoordinates(Coordinates):
    """Log-weights, means, and factors with the logarithm of their diagonal; only the sum of weights is constrained."""

    def __init__(self, family):
        self.family = family

    def of(self, mixture):
        """See `Coordinates`."""
        return mixture.log_weights, mixture.means, self.family.log_factor(mixture.factor)

    def model_at(self, coordinates, template):
        """See `Coordinates`."""
        log_weights, means, log_factor = coordinates
        factor = self.family.exp_factor(log_factor)
        mixture = Mixture(log_weights.log_softmax(0), means, self.family.covariances(factor), factor)
        return mixture, torch.stack([torch.isfinite(part).all() for part in mixture]).all()


ACCELERATIONS = {None: lambda family: PlainEM(), "squarem": lambda family: Squarem(MixtureCoordinates(family))}
