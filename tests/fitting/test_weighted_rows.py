"""Draws of weighted rows, against the distribution they should have."""

import pytest
import torch
from helpers import generator
from torch.testing import assert_close

from skvae.fitting.weighted_rows import WeightedRows, draw_indices, draw_rows, sample_indices


@pytest.fixture
def x():
    return torch.randn(1000, 3, dtype=torch.float64, generator=generator()) + 5


def test_draws_are_proportional_to_weight():
    weight = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    drawn = draw_rows(torch.arange(5), weight, 4000, generator())
    counts = drawn.bincount(minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert abs(int(counts[1]) - 1000) < 120  # four standard deviations
    stratified = draw_rows(torch.arange(5), weight, 4000, generator(), stratified=True)
    assert stratified.bincount(minlength=5).tolist() == [0, 1000, 0, 3000, 0]


def test_draws_that_round_up_to_the_total_weight(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.ones(*size, dtype=torch.float64))
    weight = torch.tensor([1.0, 0.1, 0.0, 0.0], dtype=torch.float64)
    assert draw_rows(torch.arange(4), weight, 3, None).tolist() == [1, 1, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_indices_are_ascending_and_proportional_to_weight(x, weighted):
    weight = torch.arange(1000).remainder(3).double() if weighted else torch.ones(1000, dtype=torch.float64)
    rows, counts = WeightedRows(x, weight if weighted else None), torch.zeros(1000)
    for seed in range(400):
        indices = draw_indices(rows, 100, generator(seed))
        assert (indices.diff() >= 0).all()
        counts += torch.bincount(indices, minlength=1000)
    assert not counts[weight == 0].any()
    expected = 400 * 100 * weight / weight.sum()
    assert ((counts - expected).abs() <= 6 * expected.sqrt()).all()


def test_sample_of_few_rows_is_all_of_them(x):
    rows = WeightedRows(x, torch.rand(1000, generator=generator()))
    indices, weight = sample_indices(rows, 3, generator())
    assert_close(indices, torch.arange(1000))
    assert weight is rows.weight


def test_sample_has_rows_for_every_cluster(x, monkeypatch):
    monkeypatch.setattr("skvae.fitting.weighted_rows.MAX_SAMPLE_ROWS", 10)
    indices, weight = sample_indices(WeightedRows(x, torch.ones(1000)), 5, generator())
    assert (len(indices), weight) == (200, None)
