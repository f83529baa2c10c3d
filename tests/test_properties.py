"""Properties of every estimator on random data, and after random sequences of calls."""

import pickle

import numpy as np
import pytest
from helpers import METHODS, QUICK, assert_same, outputs, over_estimators, quietly, some_classes, with_parameter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.testing import assert_array_equal
from sklearn.base import clone

few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
BY_SAMPLE = (*METHODS, "reconstruct")  # methods with a result for each sample
pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:.* clusters have no labelled row"),
]


@st.composite
def arrays(draw):
    """Draw samples of integers, many of them equal, on some scale."""
    shape = draw(st.tuples(st.integers(6, 40), st.integers(2, 5)))
    dtype = draw(st.sampled_from([np.float64, np.float32, np.int16, np.uint8]))
    whole = draw(npst.arrays(np.int16, shape, elements=st.integers(0, 9)))
    kind = np.dtype(dtype).kind
    scale = draw(st.sampled_from([1, 2, 20])) if kind in "iu" else draw(st.sampled_from([1e-6, 0.1, 1, 1e5]))
    return (whole * scale).astype(dtype)


def close(X):
    """Return the tolerance of rounding for results on the scale of X."""
    tolerance = 1e-3 if X.dtype == np.float32 else 1e-7
    return {"rtol": tolerance, "atol": tolerance * max(1.0, float(np.abs(X).max()))}


def without_ties(found, other):
    """Drop predictions that differ only in the choice among equally near or equally probable clusters."""
    if "predict" not in found:
        return found, other
    differ = found["predict"] != other["predict"]
    if differ.any():
        near = found.get("predict_proba", found.get("transform"))[differ]
        rows = np.arange(len(near))
        gap = np.abs(near[rows, found["predict"][differ]] - near[rows, other["predict"][differ]])
        assert (gap <= 1e-3 * np.abs(near).max()).all()
    return ({name: value for name, value in part.items() if name != "predict"} for part in (found, other))


@over_estimators
@few
@given(X=arrays(), seed=st.integers(0, 3))
def test_outputs(estimator, X, seed):
    fitted = quietly(clone(estimator).fit, X, some_classes(X))
    found = outputs(fitted, X, BY_SAMPLE)
    for name, value in found.items():
        assert len(value) == len(X)
        assert np.isfinite(value).all(), name
        if name != "predict":
            assert value.dtype == (X.dtype if X.dtype.kind == "f" else np.float64), name
    if hasattr(fitted, "labels_"):
        assert_array_equal(fitted.labels_, found["predict"])
    if "predict_proba" in found:
        np.testing.assert_allclose(found["predict_proba"].sum(axis=1), 1, rtol=1e-5)
        assert (found["predict_proba"] >= 0).all()
    if hasattr(fitted, "score") and "score_samples" in found:
        np.testing.assert_allclose(fitted.score(X), found["score_samples"].mean(dtype=np.float64), rtol=1e-5)
    order = np.random.default_rng(seed).permutation(len(X))
    permuted = {name: value[order] for name, value in found.items()}
    assert_same(*without_ties(outputs(fitted, X[order], BY_SAMPLE), permuted), **close(X))
    few_rows = X[: 1 + seed]
    alone = {name: value[: 1 + seed] for name, value in found.items()}
    assert_same(*without_ties(outputs(fitted, few_rows, BY_SAMPLE), alone), **close(X))


CHUNKED = [e for e in QUICK if any(name.split("__")[-1] == "chunk_size" for name in e.get_params())]


@pytest.mark.parametrize("estimator", CHUNKED, ids=lambda estimator: type(estimator).__name__)
@few
@given(X=arrays(), chunk_size=st.integers(1, 50))
def test_chunks_change_nothing(estimator, X, chunk_size):
    y = some_classes(X)
    expected = outputs(quietly(clone(estimator).fit, X, y), X, BY_SAMPLE)
    found = outputs(quietly(with_parameter(estimator, chunk_size, "chunk_size").fit, X, y), X, BY_SAMPLE)
    tolerance = close(X) if X.dtype != np.float32 else {"rtol": 0.05, "atol": 0.05 * float(np.abs(X).max())}
    assert_same(*without_ties(found, expected), **tolerance)


CALLS = ("fit", "partial_fit", "outputs", "pickle", "clone", "set_params", "failed fit")


@over_estimators
@settings(few, max_examples=8)
@given(calls=st.lists(st.sampled_from(CALLS), min_size=2, max_size=6), X=arrays())
def test_sequences_of_calls(estimator, calls, X):
    """A fit depends on the parameters and the data, not on earlier calls."""
    X = X.astype(np.float64)
    X[:, 0] += 50 * (np.arange(len(X)) % 2)
    y = some_classes(X)
    expected = outputs(quietly(clone(estimator).fit, X, y), X, BY_SAMPLE)
    current, last = clone(estimator), None  # outputs after the last call, None before a fit
    for call in [*calls, "outputs", "fit", "outputs"]:
        if call == "fit":
            quietly(current.fit, X, y)
            last = expected
        elif call == "partial_fit" and hasattr(current, "partial_fit"):
            quietly(current.partial_fit, X)
            last = outputs(current, X, BY_SAMPLE)
        elif call == "outputs" and last is not None:
            assert_same(outputs(current, X, BY_SAMPLE), last)
            assert all(np.isfinite(value).all() for value in last.values())
        elif call == "pickle":
            current = pickle.loads(pickle.dumps(current))
        elif call == "clone":
            current, last = clone(current), None
        elif call == "set_params":
            current.set_params(**current.get_params(deep=False))
        elif call == "failed fit":
            with pytest.raises(ValueError, match="contains infinity"):
                current.fit(np.full_like(X, np.inf), y)
