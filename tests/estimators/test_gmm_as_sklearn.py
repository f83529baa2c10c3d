"""scikit-learn's own tests of GaussianMixture, with TorchGMM in its place.

They are taken from the installed scikit-learn when this module is imported. Types of errors and warnings are compared,
not their words.
"""

import importlib.util
import types

import numpy as np
import pytest
import sklearn
from sklearn.mixture import GaussianMixture
from sklearn.utils.fixes import parse_version

from skvae import TorchGMM

SOURCE = "sklearn.mixture.tests.test_gaussian_mixture"
pytest.importorskip(SOURCE, reason="scikit-learn is installed without its tests.")

PRIVATE = "It tests private functions of scikit-learn's module."
ARRAY_API = "TorchGMM takes and returns NumPy arrays; with `device` it computes elsewhere all the same."
TOGETHER = "It compares a start alone and among others to the last bit; TorchGMM fits restarts in common products."
LEFT_OUT = {
    "test_suffstat_sk_full": PRIVATE,
    "test_suffstat_sk_tied": PRIVATE,
    "test_suffstat_sk_diag": PRIVATE,
    "test_gaussian_suffstat_sk_spherical": PRIVATE,
    "test_compute_log_det_cholesky": PRIVATE,
    "test_gaussian_mixture_log_probabilities": PRIVATE,
    "test_gaussian_mixture_precisions_init": "It calls the private `_initialize` and `_set_parameters`.",
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": "It counts calls of a private function.",
    "test_gaussian_mixture_precisions_init_diag": "It needs the order in which scikit-learn's k-means finds clusters.",
    "test_regularisation": "A singular covariance is an error there; TorchGMM regularizes it with a warning.",
    "test_init": TOGETHER,
    "test_multiple_init": TOGETHER,
    "test_gaussian_mixture_array_api_compliance": ARRAY_API,
    "test_gaussian_mixture_raises_where_array_api_not_implemented": ARRAY_API,
}
# There a warning of scikit-learn's own is not an error, as it is here.
WARNS = {"test_gaussian_mixture_setting_best_params"}


def any_words(expect):
    """``pytest.raises`` or ``pytest.warns`` for a type, whatever the message says."""

    def expect_type(expected, *args, match=None, **kwargs):
        return expect(expected, *args, **kwargs)

    return expect_type


def almost_equal(actual, desired, **settings):
    """To 7 decimals, as there, or to the precision of float32: a mean of rows ends in other digits in another order."""
    if np.float32 in (np.asarray(actual).dtype, np.asarray(desired).dtype):
        np.testing.assert_allclose(actual, desired, rtol=16 * np.finfo(np.float32).eps)
    else:
        np.testing.assert_almost_equal(actual, desired, **settings)


def load():
    """A copy of the module, private to this one, with TorchGMM for GaussianMixture."""
    spec = importlib.util.find_spec(SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.GaussianMixture is GaussianMixture
    module.GaussianMixture = TorchGMM
    module.pytest = types.SimpleNamespace(**vars(pytest))
    module.pytest.raises, module.pytest.warns = any_words(pytest.raises), any_words(pytest.warns)
    module.assert_almost_equal = almost_equal
    return module


THEIRS = {name: value for name, value in vars(load()).items() if name.startswith("test_")}
for name in WARNS:
    THEIRS[name] = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")(THEIRS[name])
globals().update({name: test for name, test in THEIRS.items() if name not in LEFT_OUT})


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def global_dtype(request):
    """Their fixture, with all its values."""
    return request.param


@pytest.fixture(params=[0, 1, 42])
def global_random_seed(request):
    """Their fixture, with some of its values."""
    return request.param


@pytest.fixture(autouse=True)
def only_ours(request, monkeypatch):
    """A test of theirs must fit a TorchGMM and no GaussianMixture."""
    fits, fit = [], TorchGMM.fit

    def spy(self, *args, **kwargs):
        fits.append(self)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(TorchGMM, "fit", spy)
    monkeypatch.setattr(GaussianMixture, "fit", lambda *args: pytest.fail("A GaussianMixture was fitted."))
    yield
    assert fits or request.function not in THEIRS.values(), "No TorchGMM was fitted."


def test_all_of_their_tests_are_run_or_listed():
    """A new test of theirs runs; a listed one that is gone is an error."""
    here = {name for name, value in globals().items() if value in THEIRS.values()}
    assert here.isdisjoint(LEFT_OUT)
    assert here == set(THEIRS) - set(LEFT_OUT)
    if parse_version(sklearn.__version__) >= parse_version("1.8"):  # before, it had no array API tests to leave out
        assert set(LEFT_OUT) <= set(THEIRS)
    assert len(here) > len(LEFT_OUT)
