"""Squared extrapolation of EM steps."""

import torch

from ..models.covariances import Mixture


class PlainSteps:
    """EM as it is: the next mixture is what the M-step gave."""

    is_extrapolated = keeps_path = False

    def __init__(self, family):
        pass

    def leap(self, before, after):
        """No mixture beyond."""
        return None

    def propose(self, before, after, leap):
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

    def leap(self, before, after):
        """The extrapolated mixture, and whether it is finite (), where an EM step completes a path; else None.

        It changes nothing, and does not wait for the device: see `propose`.
        """
        path = self._extended(before, after)
        return self._extrapolate(*map(self._coordinates, path)) if len(path) == 3 else None

    def propose(self, before, after, leap):
        """The mixture to go on from after an EM step, ``before`` being None where the path has a break.

        Parameters
        ----------
        before, after : Mixture
        leap : Mixture or None
            None where the path is incomplete, or the extrapolated mixture not finite.
        """
        path, self.fallback = self._extended(before, after), None
        self.path = path if len(path) < 3 else []
        if leap is None:
            return after
        self.fallback = after
        return leap

    def _extended(self, before, after):
        return [] if before is None else [*(self.path or [before]), after]

    def _coordinates(self, mixture):
        """Parameters without constraints but the sum of the weights."""
        return mixture.log_weights, mixture.means, self.family.log_factor(mixture.factor)

    def _extrapolate(self, start, middle, end):
        steps = [one - zero for zero, one in zip(start, middle, strict=True)]
        curvatures = [two - one - step for one, two, step in zip(middle, end, steps, strict=True)]
        lengths = [sum(part.square().sum() for part in parts).sqrt() for parts in (steps, curvatures)]
        scale = (lengths[0] / lengths[1]).clamp(min=1.0)
        parts = zip(start, steps, curvatures, strict=True)
        log_weights, means, log_factor = (zero + 2 * scale * step + scale**2 * curve for zero, step, curve in parts)
        factor = self.family.exp_factor(log_factor)
        mixture = Mixture(log_weights.log_softmax(0), means, self.family.covariances(factor), factor)
        return mixture, torch.stack([torch.isfinite(part).all() for part in (scale, *mixture)]).all()


ACCELERATIONS = {None: PlainSteps, "squarem": Squarem}
