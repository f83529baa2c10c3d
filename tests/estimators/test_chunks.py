"""Methods that map over chunks of samples, where a device has too little memory for a chunk."""

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from helpers import QUICK, assert_same, some_classes
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skvae.data.chunks import map_chunks
from skvae.data.samples import LazySamples, TensorSamples
from skvae.estimators import kmeans

METHODS = ("transform", "predict", "predict_proba", "score_samples", "reconstruct", "impute", "log_likelihood")
N = 50


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(N, 3))


def limited(n_most, sizes):
    """Return a function of samples that runs out of memory with more than so many."""

    def function(rows):
        sizes.append(len(rows))
        if len(rows) > n_most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return torch.as_tensor(rows).sum(1, keepdim=True) ** 2

    return function


TYPES = {
    "array": lambda X: X,
    "lazy": lambda X: LazySamples(X, X.dtype),
    "tensor": lambda X: TensorSamples(torch.from_numpy(X)),
}


@pytest.mark.parametrize("convert", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("n_rows", [1, 7, 16, N, 2 * N])
@pytest.mark.parametrize("n_most", [1, 2, 3, 10, 49])
def test_chunks_are_halved_until_they_fit(convert, n_rows, n_most, X):
    sizes, rows = [], convert(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = map_chunks(limited(n_most, sizes), rows, n_rows)
    assert_array_equal(results, (X.sum(1, keepdims=True) ** 2))
    assert type(results) is (torch.Tensor if isinstance(rows, TensorSamples) else np.ndarray)
    too_large = [size for size in sizes if size > n_most]
    # The next chunks have the size that fitted.
    assert len(too_large) <= np.ceil(np.log2(max(1, min(n_rows, N) / n_most)))
    assert [str(warning.message) for warning in caught] == (
        [f"The device ran out of memory with chunks of {n_rows} rows; the call continues with smaller ones."]
        if too_large
        else []
    )


def test_a_sample_that_does_not_fit_raises_the_error_of_the_device(X):
    sizes = []
    with pytest.warns(RuntimeWarning, match="out of memory"), pytest.raises(torch.cuda.OutOfMemoryError):
        map_chunks(limited(0, sizes), X, 8)
    assert sizes == [8, 4, 2, 1]


def test_other_errors_are_not_about_memory(X):
    def broken(rows):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        map_chunks(broken, X, 8)


def test_memory_of_a_failed_chunk_is_freed(X):
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
@pytest.mark.filterwarnings("ignore:Clusters overlap")
@pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples")
def test_methods_continue_with_smaller_chunks(estimator, X, monkeypatch):
    fitted = clone(estimator).fit(X, some_classes(X))
    names = [name for name in METHODS if hasattr(fitted, name)]
    expected = {name: getattr(fitted, name)(X) for name in names}

    def small(copy):
        """A copy of samples to a device that is too small for more than seven."""

        def copied(*arrays, **settings):
            if max(map(len, filter(np.ndim, arrays))) > 7:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return copy(*arrays, **settings)

        return copied

    results = {}
    for name in names:
        with monkeypatch.context() as patched:
            patched.setattr(np, "copyto", small(np.copyto))
            patched.setattr(kmeans, "as_tensor", small(kmeans.as_tensor))
            with pytest.warns(RuntimeWarning, match="ran out of memory with chunks of") as caught:
                results[name] = getattr(fitted, name)(X)
        assert len(caught) == 1, name
        assert caught[0].filename == __file__, f"{name}: it does not point at the caller"
    assert_same(results, expected, rtol=1e-9, atol=1e-12)
