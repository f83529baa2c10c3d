"""SQUAREM and the coordinates in which it extrapolates."""

import pytest
import torch
from torch.testing import assert_close

from skvae.fitting.ppca import PPCACoordinates
from skvae.fitting.squarem import Coordinates, MixtureCoordinates, Squarem
from skvae.models import COVARIANCES, PPCA, Mixture

RANDN = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class IdentityCoordinates(Coordinates):
    """The model itself, a tensor."""

    def of(self, model):
        return [model]

    def model_at(self, coordinates, template):
        return coordinates[0], torch.isfinite(coordinates[0]).all()


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_linear_convergence_is_extrapolated_to_the_limit(rate):
    limit, error = RANDN[:2]
    path, squarem = [limit + rate**n * error for n in range(3)], Squarem(IdentityCoordinates())
    squarem.propose(path[0], path[1], None)
    extrapolated, is_valid = squarem.extrapolate(path[1], path[2])
    assert is_valid
    assert_close(extrapolated, limit)


def random_ppca(n_components):
    axes = torch.linalg.qr(RANDN[0]).Q.mT[:n_components]
    variances = torch.tensor([9.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    noise = variances.new_tensor(0.0 if n_components == 4 else 0.5)
    return PPCA(RANDN[1, 0], axes, variances[:n_components], noise)


@pytest.mark.parametrize("n_components", [1, 3, 4])
def test_coordinates_of_ppca_determine_the_model(n_components):
    model, coordinates = random_ppca(n_components), PPCACoordinates()
    copy, is_valid = coordinates.model_at(coordinates.of(model), model)
    assert is_valid
    assert_close(copy.as_mixture().covariances, model.as_mixture().covariances)
    assert_close((copy.mean, copy.variances, copy.noise_variance), (model.mean, model.variances, model.noise_variance))


def test_coordinates_of_mixtures_determine_the_model():
    family = COVARIANCES["full"]
    covariances = RANDN @ RANDN.mT + torch.eye(4, dtype=torch.float64)
    log_weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    mixture = Mixture(log_weights, RANDN[0, :3], covariances, family.factor(covariances)[0])
    copy, is_valid = MixtureCoordinates(family).model_at(MixtureCoordinates(family).of(mixture), mixture)
    assert is_valid
    assert_close(tuple(copy), tuple(mixture))
