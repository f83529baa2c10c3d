"""Squared extrapolation of EM steps."""

import torch

from ..models.covariances import Mixture


class PlainSteps:
    """EM as it is: the next mixture is what the M-step gave."""

    is_extrapolated = keeps_path = False

    def __init__(self, family):
        pass

    def propose(self, before, after):
        """The mixture to go on from."""
        return after


class Squarem:
    """SQUAREM (Varadhan and Roland 2008, scheme S3) on log-weights, means and factors with the log of their diagonal.

    After two EM steps from a mixture their curvature says how far to leap. The leap is kept if the likelihood there is
    no lower than at the last mixture that was looked at, else EM goes on from where it was.
    """

    keeps_path = True

    def __init__(self, family):
        self.family, self.path, self.fallback = family, [], None

    @property
    def is_extrapolated(self):
        """Whether the mixture proposed last is a leap, with an EM step to fall back to."""
        return self.fallback is not None

    def reject(self):
        """Give up the leap: the mixture that EM had reached."""
        mixture, self.fallback = self.fallback, None
        self.path = []
        return mixture

    def propose(self, before, after):
        """The mixture to go on from after an EM step, ``before`` being None where the path has a break."""
        self.fallback = None
        self.path = [] if before is None else [*(self.path or [before]), after]
        if len(self.path) < 3:
            return after
        leap = self._extrapolate(*map(self._coordinates, self.path))
        self.path = []
        if leap is None:
            return after
        self.fallback = after
        return leap

    def _coordinates(self, mixture):
        """Parameters without constraints but the sum of the weights."""
        return mixture.log_weights, mixture.means, self.family.log_factor(mixture.factor)

    def _extrapolate(self, start, middle, end):
        steps = [one - zero for zero, one in zip(start, middle, strict=True)]
        curvatures = [two - one - step for one, two, step in zip(middle, end, steps, strict=True)]
        lengths = [sum(part.square().sum() for part in parts).sqrt() for parts in (steps, curvatures)]
        scale = (lengths[0] / lengths[1]).clamp(min=1.0)
        if not torch.isfinite(scale):
            return None
        parts = zip(start, steps, curvatures, strict=True)
        log_weights, means, log_factor = (zero + 2 * scale * step + scale**2 * curve for zero, step, curve in parts)
        factor = self.family.exp_factor(log_factor)
        mixture = Mixture(log_weights.log_softmax(0), means, self.family.covariances(factor), factor)
        return mixture if all(torch.isfinite(part).all() for part in mixture) else None


ACCELERATIONS = {None: PlainSteps, "squarem": Squarem}
