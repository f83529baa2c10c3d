"""Each likelihood beside torch's and SciPy's distributions: normalised, in the data's units, finite at the extremes."""

import copy
import functools
import math
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special, stats
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Normal
from torch.testing import assert_close

from skvae.models import LIKELIHOODS, FixedGaussian
from skvae.models.counts import stirling_error
from skvae.models.likelihoods import LogSinhc, langevin

FeatureSummary = namedtuple("FeatureSummary", "mean scale maximum")

D, N = 4, 30
GAUSSIANS = ["gaussian", "gaussian_fixed", "gaussian_features", "gaussian_samples"]
COUNTS = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
UNIT = ["bernoulli", "continuous_bernoulli"]
over_likelihoods = pytest.mark.parametrize("name", LIKELIHOODS)


def summary(mean=2.0, scale=3.0, maximum=2.0, n_features=D):
    steps = torch.linspace(1.0, 1.5, n_features, dtype=torch.float64)
    return FeatureSummary(mean * steps, scale * steps, maximum + torch.arange(n_features, dtype=torch.float64) % 2)


def make(name, **settings):
    likelihood = LIKELIHOODS[name].from_data(summary(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # learned scales that are not their starting values
        for parameter in likelihood.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return likelihood


def draw_rows(name, likelihood, generator, n=N, d=D):
    """Rows within the support."""
    uniform = torch.rand(n, d, dtype=torch.float64, generator=generator)
    if name in UNIT:
        return uniform.round() if name == "bernoulli" else uniform
    if name in COUNTS:
        return (20 * uniform**2).floor()
    if name == "categorical":
        return (uniform * likelihood.counts).floor()
    return 5 * torch.randn(n, d, dtype=torch.float64, generator=generator)


def draw_params(likelihood, generator, n=N, d=D):
    return torch.randn(n, likelihood.n_outputs(d), dtype=torch.float64, generator=generator)


def case(name, generator, **settings):
    """A likelihood, rows in the data's units and outputs of a decoder."""
    likelihood = make(name, **settings)
    return likelihood, draw_rows(name, likelihood, generator), draw_params(likelihood, generator)


def test_the_groups_are_all():
    assert sorted([*GAUSSIANS, *COUNTS, *UNIT, "categorical"]) == sorted(LIKELIHOODS)


@over_likelihoods
def test_shapes_and_dtypes(name, generator):
    likelihood, x, params = case(name, generator)
    u = likelihood.standardize(x)
    assert u.shape == (N, D)
    assert likelihood.inputs(u).shape == (N, likelihood.n_inputs(D))
    assert likelihood.log_prob(u, params).shape == (N,)
    assert likelihood.mean(params).shape == likelihood.sample(params, generator).shape == (N, D)
    single = likelihood.log_prob(u.float(), params.float())
    assert single.dtype == torch.float32
    assert likelihood.inputs(u.float()).dtype == torch.float32
    assert_close(single, likelihood.log_prob(u, params).float(), rtol=1e-5, atol=1e-5)


@over_likelihoods
def test_rows_do_not_depend_on_the_others(name, generator):
    likelihood, x, params = case(name, generator)
    u = likelihood.standardize(x)
    assert_close(likelihood.log_prob(u[4:9], params[4:9]), likelihood.log_prob(u, params)[4:9])
    assert_close(likelihood.inputs(u[4:9]), likelihood.inputs(u)[4:9])
    assert_close(likelihood.mean(params[4:9]), likelihood.mean(params)[4:9])


@over_likelihoods
def test_copies_and_precisions(name, generator):
    likelihood, x, params = case(name, generator)
    u = likelihood.standardize(x)
    expected = likelihood.log_prob(u, params)
    for twin in (copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood)), copy.deepcopy(likelihood).double()):
        assert_close(twin.log_prob(u, params), expected, rtol=1e-6, atol=1e-6)
        assert twin.support == likelihood.support


@over_likelihoods
def test_draws_come_from_the_generator(name, generator):
    likelihood, _, params = case(name, generator)
    before = torch.get_rng_state()
    one, two, three = (likelihood.sample(params, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(before, torch.get_rng_state())


def twin_of(name, likelihood, params):
    """The same distribution, from SciPy or torch: log-density of rows (n, d)."""
    if name == "bernoulli":
        return lambda x: stats.bernoulli.logpmf(x, params.sigmoid())
    if name == "continuous_bernoulli":
        return TorchContinuousBernoulli(logits=params, lims=(0.49, 0.51)).log_prob
    if name == "categorical":
        blocks = params.split(likelihood.n_categories, dim=-1)
        return lambda x: torch.stack(
            [TorchCategorical(logits=block).log_prob(code) for block, code in zip(blocks, x.T, strict=True)], -1
        )
    if name == "poisson":
        return lambda x: stats.poisson.logpmf(x, likelihood.mean(params))
    if name == "negative_binomial":
        theta = likelihood.log_theta.double().exp()
        return lambda x: stats.nbinom.logpmf(x, theta, theta / (theta + likelihood.mean(params)))
    if name == "zero_inflated_negative_binomial":
        return functools.partial(zero_inflated, likelihood, params)
    log_scale = {
        "gaussian": lambda: likelihood.log_scale,
        "gaussian_features": lambda: likelihood.log_scale,
        "gaussian_fixed": lambda: torch.zeros(()),
        "gaussian_samples": lambda: math.log(1e3) * (params[:, -1:] / math.log(1e3)).tanh(),
    }[name]()
    return Normal(likelihood.mean(params), likelihood.feature_scale * log_scale.exp()).log_prob


def zero_inflated(likelihood, params, x):
    """A mixture of zeros and of negative binomial counts, from SciPy."""
    rates, logits = params.numpy().reshape(len(params), 2, -1).swapaxes(0, 1)
    share, theta = special.expit(logits - 2), likelihood.log_theta.double().exp().numpy()
    mean = likelihood.log_rate(torch.from_numpy(rates)).exp().numpy()
    with np.errstate(divide="ignore"):
        of_counts = np.log1p(-share) + stats.nbinom.logpmf(x, theta, theta / (theta + mean))
        return np.logaddexp(of_counts, np.where(x == 0, np.log(share), -np.inf))


@over_likelihoods
def test_log_prob_is_that_of_a_known_distribution(name, generator):
    likelihood, x, params = case(name, generator)
    with torch.no_grad():
        expected = torch.as_tensor(np.asarray(twin_of(name, likelihood, params)(x))).sum(-1)
        found = likelihood.log_prob(likelihood.standardize(x), params)
    # torch's continuous Bernoulli is a short Taylor series near 1/2.
    assert_close(found, expected, rtol=1e-6, atol=1e-4 if name == "continuous_bernoulli" else 1e-6)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_densities_integrate_to_one_in_the_units_of_the_data(name, generator):
    likelihood = make(name, n_features=1)
    params = draw_params(likelihood, generator, 1, 1)
    scale = likelihood.noise(params)[1].exp().item() * likelihood.feature_scale.item()
    steps = torch.linspace(-10, 10, 4_001, dtype=torch.float64)[:, None] * scale + likelihood.mean(params)
    log_prob = likelihood.log_prob(likelihood.standardize(steps), params.expand(4_001, -1))
    assert torch.trapezoid(log_prob.exp(), steps[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


NODES = [
    torch.tensor(found) for found in np.polynomial.legendre.leggauss(400)
]  # points and weights, which take a while


@given(logit=st.floats(-300, 300))
def test_continuous_bernoulli_integrates_to_one_with_its_mean(logit):
    likelihood = LIKELIHOODS["continuous_bernoulli"]()
    # Legendre's points, with the end where the mass is stretched.
    nodes, weights = NODES
    near = ((nodes + 1) / 2) ** 2
    x, weights = near if logit < 0 else 1 - near, weights * (nodes + 1) / 2
    params = torch.tensor([[logit]], dtype=torch.float64)
    density = likelihood.log_prob(x[:, None], params.expand(400, 1)).exp()
    assert (density * weights).sum().item() == pytest.approx(1.0, abs=1e-9)
    assert (density * x * weights).sum().item() == pytest.approx(likelihood.mean(params).item(), abs=1e-9)


@pytest.mark.parametrize("name", COUNTS)
@given(param=st.floats(-8, 3), mean=st.floats(0.01, 20), excess=st.floats(0.1, 30))
def test_counts_sum_to_one_with_their_mean(name, param, mean, excess):
    likelihood = make(name, mean=mean, scale=math.sqrt(mean + excess), n_features=1)
    params = torch.full((1, likelihood.n_outputs(1)), param, dtype=torch.float64)
    rate = likelihood.log_rate(params[:, :1]).exp().item()
    theta = likelihood.log_theta.exp().item() if name != "poisson" else math.inf
    n = int(rate + 60 * math.sqrt(rate + rate**2 / theta) + 100 * max(rate / theta, 1))
    assume(n < 200_000)
    x = torch.arange(n, dtype=torch.float64)
    probability = likelihood.log_prob(x[:, None], params.expand(n, -1)).exp().detach()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (probability * x).sum().item() == pytest.approx(likelihood.mean(params).item(), rel=1e-5)


@pytest.mark.parametrize("name", COUNTS)
def test_size_factors_multiply_rates(name, generator):
    likelihood, x, params = case(name, generator)
    sized = copy.deepcopy(likelihood)
    sized.size_factors = "total"
    total, mean = x.sum(1, keepdim=True), likelihood.log_mean.exp().sum()
    shifted = copy.deepcopy(likelihood)
    for row in range(3):
        shifted.log_mean = likelihood.log_mean + (total[row] / mean).log()
        expected = shifted.feature_log_prob(x[row : row + 1], params[row : row + 1])
        assert_close(sized.feature_log_prob(x[row : row + 1], params[row : row + 1]), expected)
    equal = x * mean / total  # samples with the mean total
    assert_close(sized.log_prob(equal, params), likelihood.log_prob(equal, params))
    assert_close(sized.inputs(equal), likelihood.inputs(equal))
    assert_close(sized.inputs(7 * x), sized.inputs(x))
    assert torch.equal(sized.mean(params), likelihood.mean(params))
    draws = [each.sample(params, torch.Generator().manual_seed(0)) for each in (sized, likelihood)]
    assert torch.equal(*draws)
    empty = torch.zeros(1, D, dtype=torch.float64)
    assert sized.log_prob(empty, params[:1]).isfinite().all()
    assert sized.inputs(empty).isfinite().all()


def test_categories_sum_to_one(generator):
    likelihood = make("categorical", maximum=3.0, n_features=2)
    params = draw_params(likelihood, generator, 1, 2)
    assert likelihood.n_categories == (4, 5)
    codes = torch.cartesian_prod(torch.arange(4.0), torch.arange(5.0))
    assert likelihood.log_prob(codes, params.expand(20, -1)).exp().sum().item() == pytest.approx(1.0)


def variance_of(name, likelihood, params):
    """Theoretical variance of the features of one row (d,)."""
    mean = likelihood.mean(params)
    if name == "bernoulli":
        return mean * (1 - mean)
    if name == "continuous_bernoulli":
        return TorchContinuousBernoulli(logits=params).variance
    if name == "poisson":
        return mean
    if name == "negative_binomial":
        return mean + mean**2 / likelihood.log_theta.exp()
    if name == "zero_inflated_negative_binomial":
        rates, logits = params.chunk(2)
        share, rate = torch.sigmoid(logits - 2), likelihood.log_rate(rates).exp()
        return (1 - share) * (rate + rate**2 / likelihood.log_theta.exp() + share * rate**2)
    return ((likelihood.noise(params)[1].exp()) * likelihood.feature_scale).square().expand(D)


@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"categorical"}))
def test_samples_have_the_mean_and_the_variance(name, generator):
    likelihood = make(name)
    params = draw_params(likelihood, generator, 1)
    with torch.no_grad():
        draws = likelihood.sample(params.expand(40_000, -1), generator)
        mean, variance = likelihood.mean(params)[0], variance_of(name, likelihood, params[0])
    squares = (draws - mean).square()
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / 200).all()
    assert ((squares.mean(0) - variance).abs() < 5 * squares.std(0) / 200).all()
    low, high, integers = likelihood.support
    assert draws.min() >= low
    assert draws.max() <= high
    assert not integers or torch.equal(draws, draws.round())


def test_samples_of_categories_have_their_probabilities(generator):
    likelihood = make("categorical")
    params = draw_params(likelihood, generator, 1)
    draws = likelihood.sample(params.expand(40_000, -1), generator)
    for feature, logits in enumerate(params[0].split(likelihood.n_categories)):
        found = torch.bincount(draws[:, feature].long(), minlength=len(logits)) / 40_000
        assert_close(found.double(), logits.softmax(0), rtol=0, atol=0.015)
        assert likelihood.mean(params)[0, feature] == logits.argmax()


@pytest.mark.parametrize("name", GAUSSIANS)
def test_units_move_the_log_density_by_the_jacobian(name, generator):
    """Rows times 1000 plus 7, and the likelihood fitted to those: the same codes, and d log 1000 less."""
    likelihood, x, params = case(name, generator)
    mean, scale, maximum = summary()
    moved = LIKELIHOODS[name].from_data(FeatureSummary(1000 * mean + 7, 1000 * scale, 1000 * maximum + 7))
    moved.load_state_dict({**moved.state_dict(), **dict(likelihood.named_parameters())})
    u = moved.standardize(1000 * x + 7)
    assert_close(u, likelihood.standardize(x))
    assert_close(moved.log_prob(u, params), likelihood.log_prob(likelihood.standardize(x), params) - D * math.log(1000))
    assert_close(moved.mean(params), 1000 * likelihood.mean(params) + 7)


@over_likelihoods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e-3, 1.0, 50.0, 1e4, 1e8])
def test_extreme_outputs_are_finite(name, size, dtype, generator):
    likelihood, x, params = case(name, generator)
    params = (size * params.sign()).to(dtype).requires_grad_()
    u = likelihood.standardize(x).to(dtype)
    log_prob = likelihood.log_prob(u, params)
    log_prob.sum().backward()
    grads = [params.grad, *(parameter.grad for parameter in likelihood.parameters())]
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(grad).all() for grad in grads)
    with torch.no_grad():
        assert torch.isfinite(likelihood.mean(params)).all()
        assert torch.isfinite(likelihood.sample(params, generator)).all()


@over_likelihoods
@pytest.mark.parametrize("raw", [-100.0, 100.0])
def test_learned_scales_have_bounds(name, raw, generator):
    likelihood, x, params = case(name, generator)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.fill_(raw)
    if name == "gaussian_samples":
        params[:, -1] = 1000 * raw
    exact = likelihood.mean(params)
    for rows in (x, exact.round() if likelihood.support.integers else exact):
        assert torch.isfinite(likelihood.log_prob(likelihood.standardize(rows), params)).all()


@over_likelihoods
def test_gradients(name, generator):
    """Branches and series leave the gradients what they are."""
    likelihood, x, params = case(name, generator)
    u = likelihood.double().standardize(x)
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(u, p), (params.requires_grad_(),))
    learned = list(likelihood.parameters())
    if learned:

        def of_scales(scales):
            (key,) = (key for key, _ in likelihood.named_parameters())
            return torch.func.functional_call(Verb(likelihood), {f"likelihood.{key}": scales}, (u, params.detach()))

        assert torch.autograd.gradcheck(of_scales, (learned[0].detach().requires_grad_(),))


class Verb(torch.nn.Module):
    """log_prob as a forward, for functional_call."""

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, u, params):
        return self.likelihood.log_prob(u, params)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("count", [0.0, 1.0, 15.0, 16.0, 17.0, 1e3, 1e6, 1e7])
def test_large_counts_in_float32(name, count):
    """The naive formula has terms of 1e8 here, whose float32 rounding is several nats."""
    likelihood = make(name, mean=max(count, 1.0), scale=max(count, 1.0), n_features=1)
    with torch.no_grad():
        for param in (-0.01, 0.0, 1e-3):
            params = torch.full((1, likelihood.n_outputs(1)), param, dtype=torch.float64)
            exact = twin_of(name, likelihood, params)(torch.tensor([[count]], dtype=torch.float64))
            found = likelihood.log_prob(torch.tensor([[count]]), params.float())
            assert found.item() == pytest.approx(float(np.squeeze(exact)), rel=1e-3, abs=0.02)


@pytest.mark.parametrize(("theta", "param"), [(1e-4, 3.0), (1e-4, -9.0), (2e4, 0.0), (2e4, 5.0), (1.0, 18.0)])
@pytest.mark.parametrize("count", [0.0, 1.0, 7.0, 300.0])
def test_negative_binomial_at_its_bounds(theta, param, count):
    likelihood = make("negative_binomial", n_features=1)
    with torch.no_grad():
        likelihood.raw_log_dispersion.fill_(math.atanh(math.log(theta) / 10))
        params = torch.tensor([[param]], dtype=torch.float64)
        exact = twin_of("negative_binomial", likelihood, params)(torch.tensor([[count]], dtype=torch.float64))
        for dtype in (torch.float32, torch.float64):
            found = likelihood.log_prob(torch.tensor([[count]], dtype=dtype), params.to(dtype))
            assert found.item() == pytest.approx(float(np.squeeze(exact)), rel=2e-4, abs=2e-4)


def test_negative_binomial_starts_at_the_moments():
    mean, theta = 5.0, 2.0
    likelihood = LIKELIHOODS["negative_binomial"].from_data(summary(mean, math.sqrt(mean + mean**2 / theta), 9.0, 1))
    assert likelihood.log_theta.exp().item() == pytest.approx(theta, rel=1e-4)
    under = LIKELIHOODS["negative_binomial"].from_data(summary(5.0, 0.1, 9.0))
    assert (under.log_theta > 8).all()


def test_a_large_theta_is_a_poisson():
    one, two = make("poisson"), make("negative_binomial")
    with torch.no_grad():
        two.raw_log_dispersion.fill_(100.0)
        u, params = torch.arange(4.0, dtype=torch.float64)[None], torch.zeros(1, D, dtype=torch.float64)
        assert_close(two.log_prob(u, params), one.log_prob(u, params), rtol=0, atol=5e-3)


@given(x=st.floats(1e-4, 1e6))
def test_stirling_error(x):
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = stirling_error(value)
    found.backward()
    rounding = 1e-14 * max(1.0, x * math.log(x + 1))
    exact = math.lgamma(x + 1) - ((x + 0.5) * math.log(x) - x + 0.5 * math.log(2 * math.pi))
    assert found.item() == pytest.approx(exact, abs=1e-12 + rounding)
    assert stirling_error(value.float()).item() == pytest.approx(found.item(), rel=1e-5, abs=3e-6)
    slope = special.digamma(x + 1) - math.log(x) - 0.5 / x
    assert value.grad.item() == pytest.approx(slope, rel=1e-9, abs=1e-12)


@given(h=st.floats(1e-3, 300), sign=st.sampled_from([-1, 1]))
def test_log_sinhc_and_its_derivative(h, sign):
    value = torch.tensor(sign * h, dtype=torch.float64, requires_grad=True)
    found = LogSinhc.apply(value)
    found.backward()
    exact = h + math.log(-math.expm1(-2 * h) / (2 * h))
    assert found.item() == pytest.approx(exact, rel=1e-9, abs=1e-14)
    slope = sign * (1 / math.tanh(h) - 1 / h)
    assert value.grad.item() == pytest.approx(slope, rel=1e-9, abs=1e-12)
    assert langevin(value).item() == value.grad.item()
    assert torch.autograd.gradgradcheck(LogSinhc.apply, (value,))


def test_counts_enter_the_encoder_at_about_unit_variance(generator):
    likelihood = LIKELIHOODS["poisson"]
    x = torch.exp(torch.randn(5_000, 3, dtype=torch.float64, generator=generator) * 1.2 + 3).floor()
    x[:, 1] = torch.poisson(torch.full((5_000,), 0.05, dtype=torch.float64), generator=generator)
    x[:, 2] = 7.0
    fitted = likelihood.from_data(FeatureSummary(x.mean(0), torch.tensor([*x.std(0)[:2], 1.0]), x.amax(0)))
    seen = fitted.inputs(fitted.standardize(x))
    assert torch.isfinite(seen).all()
    assert ((seen[:, :2].std(0) > 0.5) & (seen[:, :2].std(0) < 2)).all()
    assert (seen.mean(0).abs() < 0.5).all()


def test_one_hot_inputs():
    likelihood = LIKELIHOODS["categorical"].from_data(FeatureSummary(None, None, torch.tensor([1.0, 0.0, 2.0])))
    seen = likelihood.inputs(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [5.0, -1.0, 0.5]]))
    assert seen.tolist() == [[0, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert likelihood.support == (0.0, (1.0, 0.0, 2.0), True)


def test_too_many_categories():
    with pytest.raises(ValueError, match="have 1000000001 categories in all, and 1048576 is the maximum"):
        LIKELIHOODS["categorical"].from_data(FeatureSummary(None, None, torch.tensor([1e9], dtype=torch.float64)))


def test_fixed_noise(generator):
    mean, scale, _ = summary()
    x = torch.randn(N, D, dtype=torch.float64, generator=generator)
    likelihood = FixedGaussian(mean, scale, noise_scale=0.5)
    twin = Normal(mean, 0.5 * scale)
    assert_close(likelihood.log_prob(likelihood.standardize(x), torch.zeros_like(x)), twin.log_prob(x).sum(-1))
    assert not list(likelihood.parameters())
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="should be a positive finite number"):
            FixedGaussian(mean, scale, noise_scale=wrong)


def test_each_feature_learns_its_noise():
    likelihood = LIKELIHOODS["gaussian_features"].from_data(summary())
    generator = torch.Generator().manual_seed(0)
    noise = torch.tensor([0.01, 0.1, 1.0, 3.0])
    u = noise * torch.randn(2_000, D, generator=generator)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (-likelihood.log_prob(u, torch.zeros_like(u)).mean()).backward()
        optimizer.step()
    assert_close(likelihood.log_scale.exp().detach(), noise, rtol=0.1, atol=0)
