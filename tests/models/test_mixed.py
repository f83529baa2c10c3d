"""Likelihoods of groups of features: sums of the likelihoods of the groups, in any order of the features."""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from skvae.data.columns import Columns
from skvae.models import LIKELIHOODS, MaskedLikelihood, MixedLikelihood
from skvae.models.missing import masked_inputs
from skvae.models.serialize import foreign_part, module_from_dict, module_to_dict

NAMES = ("gaussian_features", "categorical", "negative_binomial", "continuous_bernoulli", "gaussian_samples", "poisson")
FEATURES = [[3, 0], [5, 1, 8], [2], [4, 6], [7], [9]]
D, N = 10, 40


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = np.empty((N, D))
    for name, part in zip(NAMES, FEATURES, strict=True):
        shape = (N, len(part))
        values = {
            "categorical": rng.integers(4, size=shape),
            "continuous_bernoulli": rng.random(shape),
        }
        counts = rng.poisson(5, shape)
        X[:, part] = values.get(name, counts if name in ("poisson", "negative_binomial") else rng.normal(3, 2, shape))
    return X


@pytest.fixture(scope="module")
def mixed(rows):
    columns = Columns(rows)
    parts = [LIKELIHOODS[name].from_data(columns.select(part)) for name, part in zip(NAMES, FEATURES, strict=True)]
    return MixedLikelihood(parts, FEATURES)


@pytest.fixture(scope="module")
def case(rows, mixed):
    x = torch.from_numpy(rows)
    generator = torch.Generator().manual_seed(0)
    return mixed, x, torch.randn(N, mixed.n_outputs(D), dtype=torch.float64, generator=generator)


def split(mixed, params):
    return params.split([each.n_outputs(len(part)) for each, part in zip(mixed.likelihoods, FEATURES, strict=True)], -1)


def test_columns_of_a_group_are_those_of_its_features(rows):
    whole, part = Columns(rows, names=list("abcdefghij")), Columns(rows, names=list("abcdefghij")).select([5, 1, 8])
    assert_close(part.mean, whole.mean[[5, 1, 8]])
    assert_close(part.maximum, whole.maximum[[5, 1, 8]])
    assert part.named([0, 2]) == ["f", "i"]
    assert part.select([2]).named([0]) == ["i"]
    assert part.ranges.fraction is None
    assert whole.ranges.fraction is not None


def test_sums_of_the_groups(case):
    mixed, x, params = case
    u = mixed.standardize(x)
    parts = zip(mixed.likelihoods, FEATURES, split(mixed, params), strict=True)
    expected = sum(each.log_prob(each.standardize(x[:, part]), own) for each, part, own in parts)
    assert_close(mixed.log_prob(u, params), expected)
    assert_close(mixed.feature_log_prob(u, params).sum(1), expected)
    assert mixed.inputs(u).shape == (N, mixed.n_inputs(D))
    for each, part, own in zip(mixed.likelihoods, FEATURES, split(mixed, params), strict=True):
        assert_close(mixed.mean(params)[:, part], each.mean(own).to(params.dtype))
        assert_close(mixed.feature_log_prob(u, params)[:, part], each.feature_log_prob(u[:, part], own))


def test_permuted_features_permute_everything(rows, case):
    mixed, x, params = case
    order = torch.randperm(D, generator=torch.Generator().manual_seed(3))
    place = order.argsort().tolist()
    permuted = MixedLikelihood(copy.deepcopy(list(mixed.likelihoods)), [[place[f] for f in part] for part in FEATURES])
    u, v = mixed.standardize(x), permuted.standardize(x[:, order])
    assert torch.equal(u[:, order], v)
    assert_close(mixed.log_prob(u, params), permuted.log_prob(v, params))
    assert torch.equal(mixed.inputs(u), permuted.inputs(v))
    assert torch.equal(mixed.mean(params)[:, order], permuted.mean(params))
    draws = [each.sample(params, torch.Generator().manual_seed(0)) for each in (mixed, permuted)]
    assert torch.equal(draws[0][:, order], draws[1])
    assert permuted.support.integers == tuple(mixed.support.integers[f] for f in order)


def test_support_is_that_of_each_feature(mixed):
    assert mixed.support.integers == (False, True, True, False, False, True, False, False, True, True)
    assert mixed.support.low[4] == 0
    assert mixed.support.high[4] == 1
    assert mixed.support.high[5] == mixed.likelihoods[1].support.high[0]
    assert mixed.support.low[0] == -torch.inf


def test_samples_are_within_the_support(case):
    mixed, _, params = case
    draws = mixed.sample(params, torch.Generator().manual_seed(0))
    low, high = torch.tensor(mixed.support.low), torch.tensor(mixed.support.high)
    assert ((draws >= low) & (draws <= high)).all()
    whole = torch.tensor(mixed.support.integers)
    assert torch.equal(draws[:, whole], draws[:, whole].round())


def test_missing_values_count_nothing(case):
    mixed, x, params = case
    masked = MaskedLikelihood(mixed)
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    u = mixed.standardize(x).masked_fill(missing, torch.nan)
    log_prob = mixed.feature_log_prob(mixed.standardize(x), params)
    assert_close(masked.log_prob(u, params), log_prob.masked_fill(missing, 0.0).sum(1))
    inputs = masked.inputs(u)
    assert inputs.isfinite().all()
    assert inputs.shape[1] == masked.n_inputs(D) == mixed.n_inputs(D) + D
    assert_close(masked_inputs(mixed, u)[~missing.any(1)], mixed.inputs(u)[~missing.any(1)])
    codes = mixed.features[1]
    size = mixed.likelihoods[1].n_inputs(3)
    one_hot = inputs[:, 2 : 2 + size]
    assert_close(one_hot.sum(1), (~missing[:, codes]).sum(1).to(one_hot.dtype))


def test_averages_over_codes(case):
    """Expectations are averaged, and of categories the probabilities."""
    mixed, _, params = case
    other = params.flip(0)
    average = (mixed.statistics(params) + mixed.statistics(other)) / 2
    means = mixed.from_statistics(average)
    numbers = [feature for part in (0, 2, 3, 4, 5) for feature in FEATURES[part]]
    assert_close(means[:, numbers], ((mixed.mean(params) + mixed.mean(other)) / 2)[:, numbers])
    own, others = split(mixed, params)[1], split(mixed, other)[1]
    size = mixed.likelihoods[1].n_categories
    for feature, logits, more in zip(FEATURES[1], own.split(size, -1), others.split(size, -1), strict=True):
        assert torch.equal(means[:, feature].long(), (logits.softmax(-1) + more.softmax(-1)).argmax(-1))
    assert torch.equal(mixed.from_statistics(mixed.statistics(params)), mixed.mean(params))


def test_descriptions(case):
    mixed, x, params = case
    assert foreign_part(mixed) is None
    built = module_from_dict(module_to_dict(MaskedLikelihood(mixed)))
    u = mixed.standardize(x)
    assert torch.equal(built.log_prob(u, params), MaskedLikelihood(mixed).log_prob(u, params))
    description = module_to_dict(mixed)
    description["settings"]["features"] = [[0, 1], *FEATURES[1:]]
    with pytest.raises(ValueError, match="cannot be built|contradicts its settings"):
        module_from_dict(description)
