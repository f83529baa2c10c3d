import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from skvae import TorchGMM
from skvae.selection import select_mixture

MIXTURES = [TorchGMM(n_init=2, random_state=0), GaussianMixture(n_init=2, random_state=0)]
SMALL = {"n_components": [1, 2], "covariance_type": ["diag"]}


@pytest.fixture(scope="module")
def elongated():
    """Return three clusters, each elongated in another direction."""
    rng = np.random.default_rng(0)
    centers, angles = [(0, 0), (20, 0), (0, 20)], np.deg2rad([0, 60, 120])
    shapes = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) * [[4.0], [0.5]] for a in angles]
    return np.concatenate(
        [rng.normal(size=(200, 2)) @ shape + center for shape, center in zip(shapes, centers, strict=True)]
    )


@pytest.mark.parametrize("criterion", ["bic", "icl"])
def test_selects_the_true_mixture(elongated, criterion):
    selection = select_mixture(MIXTURES[0], elongated, n_components=range(1, 7), criterion=criterion)
    assert selection.best_params_ == {"n_components": 3, "covariance_type": "full"}
    assert selection.best_estimator_.means_.shape == (3, 2)
    assert repr(selection) == (
        f"MixtureSelection(criterion='{criterion}', best_params_={{'n_components': 3, 'covariance_type': 'full'}})"
    )


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: type(mixture).__name__)
def test_results_equal_those_of_single_fits(mixture, elongated):
    numbers, types = [3, 1, 2], ["tied", "full"]
    selection = select_mixture(mixture, elongated, n_components=numbers, covariance_type=types, criterion="aic")
    results = selection.results
    assert_array_equal(results["n_components"], numbers * 2)
    assert_array_equal(results["covariance_type"], np.repeat(types, 3))
    for index in range(6):
        params = {"n_components": numbers[index % 3], "covariance_type": types[index // 3]}
        single = clone(mixture).set_params(**params).fit(elongated)
        assert results["bic"][index] == single.bic(elongated)
        assert results["aic"][index] == single.aic(elongated)
        assert results["log_likelihood"][index] == single.score(elongated)
        assert results["converged"][index] == single.converged_
        assert results["n_iter"][index] == single.n_iter_
        if index == np.argmin(results["aic"]):
            assert_array_equal(selection.best_estimator_.means_, single.means_)
            assert selection.best_params_ == params
    assert (results["fit_time"] > 0).all()


def test_results_have_the_criteria_of_the_estimator(elongated):
    always = ["n_components", "covariance_type", "bic", "aic", "log_likelihood", "converged", "n_iter", "fit_time"]
    frame = pd.DataFrame(select_mixture(GaussianMixture(random_state=0), elongated, **SMALL).results)
    assert list(frame) == always
    assert len(frame) == 2
    results = select_mixture(TorchGMM(random_state=0), elongated, **SMALL).results
    assert set(results) == {*always, "icl", "n_regularized"}
    fitted = TorchGMM(2, covariance_type="diag", random_state=0).fit(elongated)
    uncertainty = -2 * np.log(fitted.predict_proba(elongated).max(axis=1)).sum()
    assert_allclose(results["icl"], [results["bic"][0], results["bic"][1] + uncertainty])
    frame = pd.DataFrame(results)
    assert frame["n_regularized"].tolist() == [0, 0]
    assert frame["converged"].dtype == bool


@pytest.mark.first
def test_results_do_not_depend_on_n_jobs(elongated):
    options = {"n_components": [2, 3, 4], "covariance_type": ["full", "diag"], "sample_weight": np.ones(600)}
    one, two = (select_mixture(MIXTURES[0], elongated, **options, n_jobs=n_jobs) for n_jobs in (None, 2))
    assert one.best_params_ == two.best_params_
    assert_allclose(one.best_estimator_.means_, two.best_estimator_.means_)
    for name in one.results.keys() - {"fit_time", "covariance_type"}:
        assert_allclose(one.results[name], two.results[name], err_msg=name)


def test_estimator_is_not_changed(elongated):
    mixture = TorchGMM(5, random_state=np.random.RandomState(0)).fit(elongated)
    before = {name: value for name, value in vars(mixture).items() if name != "random_state"}
    state = mixture.random_state.get_state()[1].copy()
    copies = {name: np.array(value) for name, value in before.items()}
    selection = select_mixture(mixture, elongated, **SMALL)
    assert selection.best_estimator_ is not mixture
    assert vars(mixture).keys() - {"random_state"} == before.keys()
    assert all(getattr(mixture, name) is value for name, value in before.items())
    for name, copy in copies.items():
        assert_array_equal(getattr(mixture, name), copy)
    assert_array_equal(mixture.random_state.get_state()[1], state)


def test_one_warning_names_fits_that_did_not_converge(elongated):
    mixture = TorchGMM(max_iter=2, tol=1e-8, init_params="random", random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = select_mixture(mixture, elongated, n_components=[1, 3, 4], covariance_type=["full", "tied"]).results
    assert_array_equal(results["converged"], [True, False, False] * 2)
    (warning,) = caught
    assert warning.category is ConvergenceWarning
    assert warning.filename == __file__
    assert str(warning.message).startswith("4 of 6 fits did not converge (full: 3, 4; tied: 3, 4); increase max_iter")


def test_warning_names_fits_with_singular_covariances():
    X = np.repeat([[0.0, 0], [1, 0], [5, 1], [9, 7]], [10, 10, 10, 1], axis=0)
    mixture = TorchGMM(reg_covar=0, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"1 of 2 fits have singular covariances \(full: 4\)") as caught:
        results = select_mixture(mixture, X, n_components=[1, 4], covariance_type=["full"]).results
    assert len(caught) == 1
    assert_array_equal(results["n_regularized"] > 0, [False, True])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_components": []}, ValueError, "n_components should have at least one value"),
        ({"n_components": range(1, 1)}, ValueError, "n_components should have at least one value"),
        ({"covariance_type": ()}, ValueError, "covariance_type should have at least one value"),
        ({"n_components": [2, 3, 2]}, ValueError, "n_components should have each value once, but 2 is repeated"),
        ({"covariance_type": ["full", "full"]}, ValueError, "each value once, but 'full' is repeated"),
        ({"n_components": 3}, TypeError, "n_components should be a sequence of values, but got 3; put it in a list"),
        ({"covariance_type": "full"}, TypeError, "covariance_type should be a sequence of values, but got 'full'"),
        ({"n_components": [1, 0]}, ValueError, "n_components should be integers from 1 on, but 0 is among them"),
        ({"n_components": [1, 2.0]}, ValueError, r"integers from 1 on, but 2\.0 is among them"),
        ({"criterion": "dic"}, ValueError, r"criterion should be one of \['aic', 'bic', 'icl'\], but got 'dic'"),
        ({"covariance_type": ["full", "round"]}, ValueError, "covariance_type.*round"),
        ({"n_components": [1, 601]}, ValueError, "601"),
    ],
)
def test_invalid_parameters(elongated, options, error, message):
    with pytest.raises(error, match=message):
        select_mixture(TorchGMM(random_state=0), elongated, **SMALL | options)


@pytest.mark.parametrize(
    ("estimator", "criterion", "message"),
    [
        (BayesianGaussianMixture(), "bic", "BayesianGaussianMixture: it has no information criterion"),
        (GaussianMixture(), "icl", "criterion='icl' .* GaussianMixture: it has bic and aic"),
        (PCA(), "bic", "PCA lacks covariance_type; give a mixture such as TorchGMM"),
        (TorchGMM, "bic", "class"),
    ],
)
def test_invalid_estimators(elongated, estimator, criterion, message):
    with pytest.raises(TypeError, match=message):
        select_mixture(estimator, elongated, **SMALL, criterion=criterion)


@pytest.mark.first
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_failing_fit_is_named(n_jobs):
    with pytest.raises(ValueError, match="4") as caught:
        select_mixture(
            TorchGMM(random_state=0), np.zeros((3, 2)), n_components=[1, 4], covariance_type=["full"], n_jobs=n_jobs
        )
    assert caught.value.__notes__ == ["This was the fit with n_components=4, covariance_type='full'."]


@pytest.mark.parametrize("criterion", ["bic", "aic", "icl"])
def test_integer_weights_are_repeated_samples(criterion):
    """A histogram of two peaks, whose bins without counts are best described by one component."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(-2, 1, size=3000), rng.normal(2, 1, size=3000)])
    counts, edges = np.histogram(samples, bins=60)
    X = (edges[1:, None] + edges[:-1, None]) / 2
    mixture = TorchGMM(max_iter=1000, random_state=0)
    options = {"n_components": [1, 2, 3], "covariance_type": ["full", "tied"], "criterion": criterion}
    weighted = select_mixture(mixture, X, sample_weight=counts, **options)
    repeated = select_mixture(mixture, np.repeat(X, counts, axis=0), **options)
    assert weighted.best_params_ == repeated.best_params_
    assert weighted.best_params_["n_components"] == 2
    for name in ("bic", "aic", "icl", "log_likelihood"):
        assert_allclose(weighted.results[name], repeated.results[name], rtol=1e-6, err_msg=name)
    best = weighted.best_estimator_
    assert weighted.results["bic"].min() == pytest.approx(best.bic(X, sample_weight=counts))
    assert best.bic(X) > TorchGMM().fit(X, sample_weight=counts).bic(X)


def test_samples_without_weight_do_not_count(elongated):
    weight = np.arange(len(elongated)) % 2
    X = np.where(weight[:, None] == 0, np.nan, elongated)
    one = select_mixture(MIXTURES[0], X, sample_weight=weight, **SMALL).results
    two = select_mixture(MIXTURES[0], elongated[weight == 1], **SMALL).results
    for name in ("bic", "aic", "icl", "log_likelihood"):
        assert_allclose(one[name], two[name], rtol=1e-9, err_msg=name)


def test_invalid_weights(elongated):
    with pytest.raises(TypeError, match="GaussianMixture does not in fit, score, bic, aic; give a TorchGMM"):
        select_mixture(MIXTURES[1], elongated, sample_weight=np.ones(600), **SMALL)
    for weight, message in ((np.ones(599), "expected"), ("balanced", "array of numbers"), (-np.ones(600), "egative")):
        with pytest.raises(ValueError, match=message):
            select_mixture(MIXTURES[0], elongated, sample_weight=weight, **SMALL)


def test_largest_mixtures_are_fitted_first(elongated):
    """So that more components than samples raise an error before the smaller ones are fitted."""
    fitted = []

    class Recorder(GaussianMixture):
        def fit(self, X, y=None):
            fitted.append((self.n_components, self.covariance_type))
            return super().fit(X, y)

    select_mixture(Recorder(random_state=0), elongated, n_components=[1, 3, 2], covariance_type=["tied", "diag"])
    assert fitted == [(3, "tied"), (3, "diag"), (2, "tied"), (2, "diag"), (1, "tied"), (1, "diag")]
