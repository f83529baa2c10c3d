"""Calls that visit rows a chunk at a time, where a device has too little memory for a chunk."""

import gc
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUICK, assert_same, some_classes
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skvae.data import chunks
from skvae.data.chunks import map_chunks
from skvae.data.tables import Table, TensorRows

METHODS = ("transform", "predict", "predict_proba", "score_samples", "reconstruct", "impute", "log_likelihood")
N = 50


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(N, 3))


def limited(n_most, sizes):
    """A function of rows for which more than so many are too many."""

    def function(rows):
        sizes.append(len(rows))
        if len(rows) > n_most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return torch.as_tensor(rows).sum(1, keepdim=True) ** 2

    return function


KINDS = {
    "array": lambda X: X,
    "table": lambda X: Table(X, X.dtype),
    "tensor": lambda X: TensorRows(torch.from_numpy(X)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("n_rows", [1, 7, 16, N, 2 * N])
@pytest.mark.parametrize("n_most", [1, 2, 3, 10, 49])
def test_chunks_are_halved_until_they_fit(kind, n_rows, n_most, X):
    sizes, rows = [], kind(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = map_chunks(limited(n_most, sizes), rows, n_rows)
    assert_array_equal(found, (X.sum(1, keepdims=True) ** 2))
    assert type(found) is (torch.Tensor if isinstance(rows, TensorRows) else np.ndarray)
    too_large = [size for size in sizes if size > n_most]
    # The next chunks begin with the size that was found.
    assert len(too_large) <= np.ceil(np.log2(max(1, min(n_rows, N) / n_most)))
    assert [str(warning.message) for warning in caught] == (
        [f"The device ran out of memory with chunks of {n_rows} rows; the call goes on with smaller ones."]
        if too_large
        else []
    )


def test_a_row_that_does_not_fit_is_the_device_s_error(X):
    sizes = []
    with pytest.warns(RuntimeWarning, match="out of memory"), pytest.raises(torch.cuda.OutOfMemoryError):
        map_chunks(limited(0, sizes), X, 8)
    assert sizes == [8, 4, 2, 1]


def test_other_errors_are_not_about_memory(X):
    def broken(rows):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        map_chunks(broken, X, 8)


def test_what_failed_has_left_its_memory(X):
    """The error would hold the tensors of the chunk that was too large."""
    held = []

    def function(rows):
        x = torch.from_numpy(rows.copy())
        assert [part for part in held if part() is not None] == []
        held.append(weakref.ref(x))
        if len(rows) > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return x.sum(1)

    gc.disable()
    try:
        with pytest.warns(RuntimeWarning, match="out of memory"):
            map_chunks(function, X, N)
    finally:
        gc.enable()
    assert len(held) == 3 + 9  # 50, 25 and 12 are too many, 6 are not


@pytest.mark.parametrize("estimator", QUICK, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.filterwarnings("ignore:Rows belong to all clusters alike")
@pytest.mark.filterwarnings("ignore:Clusters .* have almost no rows")
def test_methods_go_on_with_smaller_chunks(estimator, X, monkeypatch):
    fitted = clone(estimator).fit(X, some_classes(X))
    names = [name for name in METHODS if hasattr(fitted, name)]
    expected = {name: getattr(fitted, name)(X) for name in names}
    attempted = chunks.attempted

    def small(function, rows):
        def checked(rows):
            if len(rows) > 7:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return function(rows)

        return attempted(checked, rows)

    monkeypatch.setattr(chunks, "attempted", small)
    found = {}
    for name in names:
        with pytest.warns(RuntimeWarning, match="ran out of memory with chunks of") as caught:
            found[name] = getattr(fitted, name)(X)
        assert len(caught) == 1, name
        package = Path(chunks.__file__).parents[1]
        assert package not in Path(caught[0].filename).parents, f"{name}: it does not point at the caller"
    assert_same(found, expected, rtol=1e-9, atol=1e-12)
