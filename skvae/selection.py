"""How many components, and which covariances: mixtures compared by information criteria."""

import time
import warnings
from dataclasses import dataclass, field
from inspect import signature
from itertools import product
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.parallel import Parallel, delayed

from .data.messages import meant
from .fitting.warnings import warn

__all__ = ["CRITERIA", "MixtureSelection", "select_mixture"]

CRITERIA = {
    "bic": "Bayesian information criterion",
    "aic": "Akaike information criterion",
    "icl": "Integrated completed likelihood criterion",
}


@dataclass(frozen=True)
class MixtureSelection:
    """Result of `select_mixture`.

    Attributes
    ----------
    criterion : {"bic", "aic", "icl"}
        What was compared.
    best_params_ : dict
        ``n_components`` and ``covariance_type`` of the fit with the lowest criterion, the first of them if several are
        equal.
    best_estimator_ : estimator
        This fit itself.
    results : dict of ndarray of shape (n_fits,)
        One entry for each fit, by covariance type, then by number of components, in the order given:

        - ``n_components``, ``covariance_type``: what was fitted,
        - ``bic``, ``aic``, ``icl``: those criteria that the estimator has, in nats; lower is better,
        - ``log_likelihood``: (weighted) mean over samples, in nats,
        - ``converged``, ``n_iter``: whether EM reached its tolerance, and its iterations,
        - ``n_regularized``: number of components with a singular covariance, if the estimator says it,
        - ``fit_time``: in seconds.

        ``pandas.DataFrame(results)`` makes a table of it.
    """

    criterion: str
    best_params_: dict
    best_estimator_: object = field(repr=False)
    results: dict = field(repr=False)


def select_mixture(
    estimator,
    X,
    *,
    n_components=range(1, 11),
    covariance_type=("full", "tied", "diag", "spherical"),
    criterion="bic",
    sample_weight=None,
    n_jobs=None,
):
    """Fit a mixture for each number of components and covariance type, and find the lowest information criterion.

    The criteria are ``-2 log-likelihood`` with a penalty, on the data of the fit: no rows are held out. BIC adds
    ``log(n_samples)`` for each free parameter, AIC adds 2 and tends to more components. ICL adds to BIC how uncertain
    it is which component a row comes from, so that it counts clusters rather than the Gaussians that make up one. EM
    finds local optima: several starts (``n_init`` of the estimator) make the comparison steadier.

    Parameters
    ----------
    estimator : TorchGMM, GaussianMixture or alike
        Clones of it are fitted; it is not changed. It has the parameters ``n_components`` and ``covariance_type``, the
        methods ``score`` and ``criterion``, and, once fitted, ``converged_`` and ``n_iter_``.
    X : array-like of shape (n_samples, n_features)
        Data.
    n_components : sequence of int, default=range(1, 11)
        Numbers of components.
    covariance_type : sequence of str, default=("full", "tied", "diag", "spherical")
        Covariance types.
    criterion : {"bic", "aic", "icl"}, default="bic"
        What the best fit has the lowest of.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples, by which mixtures are fitted and compared: an integer weight is as many equal samples,
        and a weight of zero none. The estimator has to take them, as `TorchGMM` does.
    n_jobs : int, default=None
        Number of fits at the same time, by joblib; None means 1 unless in a :obj:`joblib.parallel_config` context, -1
        means all processors. The jobs are processes; ``joblib.parallel_config(backend="threading")`` makes them
        threads, which share one GPU better.

    Returns
    -------
    selection : MixtureSelection
        Results of all fits, and the best one.

    Raises
    ------
    TypeError
        If the estimator lacks one of these parameters or the criterion, if there are weights but its methods do not
        take them, or if ``n_components`` or ``covariance_type`` is not a sequence.
    ValueError
        If ``n_components`` or ``covariance_type`` is empty, repeats a value or has one that cannot be fitted, if the
        criterion is unknown, if X cannot be fitted, or if the weights are not finite, negative, all zero, or not one
        for each sample.

    Warns
    -----
    ConvergenceWarning
        Once, if fits did not converge or met singular covariances. It says which. The likelihood of a singular
        component is as high as the regularization lets it be, so its criteria should not be trusted.

    References
    ----------
    G. Schwarz, Estimating the dimension of a model, Annals of Statistics, 1978.

    H. Akaike, A new look at the statistical model identification, IEEE Transactions on Automatic Control, 1974.

    C. Biernacki, G. Celeux and G. Govaert, Assessing a mixture model for clustering with the integrated completed
    likelihood, IEEE Transactions on Pattern Analysis and Machine Intelligence, 2000.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from skvae import TorchGMM
    >>> from skvae.selection import select_mixture
    >>> X, _ = make_blobs(n_samples=300, centers=3, random_state=1)
    >>> mixture = TorchGMM(n_init=2, random_state=0)
    >>> select_mixture(mixture, X, n_components=range(1, 5), covariance_type=["full", "spherical"])
    MixtureSelection(criterion='bic', best_params_={'n_components': 3, 'covariance_type': 'spherical'})
    """
    criteria = _check_estimator(estimator, criterion)
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    if weights:
        _check_takes_weights(estimator, ["fit", "score", *criteria])
    numbers, types = _check_grid("n_components", n_components), _check_grid("covariance_type", covariance_type)
    if wrong := [number for number in numbers if not isinstance(number, Integral) or number < 1]:
        raise ValueError(f"n_components should be integers from 1 on, but {wrong[0]!r} is among them.")
    grid = [{"n_components": int(number), "covariance_type": kind} for kind, number in product(types, numbers)]

    # The largest first: they take longest, and what cannot be fitted fails before anything else was computed.
    order = sorted(range(len(grid)), key=lambda index: -grid[index]["n_components"])
    jobs = (delayed(_fit)(clone(estimator), X, weights, grid[index], criteria) for index in order)
    rows, best, lowest = [None] * len(grid), None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one summary at the end instead
        # A generator lets go of all fitted mixtures but the best.
        for index, (fitted, row) in zip(order, Parallel(n_jobs=n_jobs, return_as="generator")(jobs), strict=True):
            rows[index] = row
            if best is None or (row[criterion], index) < lowest:
                best, lowest = fitted, (row[criterion], index)

    results = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    _warn_about_convergence(results)
    return MixtureSelection(criterion, grid[lowest[1]], best, results)


def _fit(estimator, X, weights, params, criteria):
    """Fit with the parameters; return the estimator and its row of results. Weights are keywords, if there are any."""
    start = time.perf_counter()
    try:
        estimator.set_params(**params).fit(X, **weights)
    except Exception as error:
        error.add_note(f"This was the fit with {', '.join(f'{name}={value!r}' for name, value in params.items())}.")
        raise
    fit_time = time.perf_counter() - start
    row = params | {name: getattr(estimator, name)(X, **weights) for name in criteria}
    row |= {"log_likelihood": estimator.score(X, **weights)}
    row |= {"converged": estimator.converged_, "n_iter": estimator.n_iter_}
    if hasattr(estimator, "n_regularized_"):
        row["n_regularized"] = estimator.n_regularized_
    return estimator, row | {"fit_time": fit_time}


def _check_estimator(estimator, criterion):
    """The criteria that the estimator has."""
    name, params = type(estimator).__name__, clone(estimator).get_params(deep=False)
    if lacking := [param for param in ("n_components", "covariance_type") if param not in params]:
        raise TypeError(
            f"estimator should have the parameters n_components and covariance_type, but {name} lacks "
            f"{' and '.join(lacking)}; give a mixture such as TorchGMM."
        )
    check_criterion(criterion, CRITERIA)
    available = [method for method in CRITERIA if hasattr(estimator, method)]
    if criterion not in available:
        has = f"it has {' and '.join(available)}" if available else "it has no information criterion"
        raise TypeError(f"criterion={criterion!r} needs an estimator with this method, but got a {name}: {has}.")
    return available


def _check_takes_weights(estimator, methods):
    """Raise unless all of the methods take weights of samples."""
    lacking = [name for name in methods if "sample_weight" not in signature(getattr(estimator, name)).parameters]
    if lacking:
        raise TypeError(
            f"sample_weight needs an estimator that takes weights, but {type(estimator).__name__} does not in "
            f"{', '.join(lacking)}; give a TorchGMM, or repeat the rows of X."
        )


def check_criterion(criterion, available):
    """Raise an error unless the criterion is an available one."""
    if criterion not in available:
        hint = meant(criterion, available)
        raise ValueError(f"criterion should be one of {sorted(available)}, but got {criterion!r}.{hint}")


def _check_grid(name, values):
    """The values as a list, or an error that says what is wrong."""
    if isinstance(values, (str, Integral)):
        raise TypeError(f"{name} should be a sequence of values, but got {values!r}; put it in a list.")
    values = list(values)
    if not values:
        raise ValueError(f"{name} should have at least one value, but it is empty.")
    if repeated := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"{name} should have each value once, but {repeated[0]!r} is repeated.")
    return values


def _warn_about_convergence(results):
    """One warning for all fits whose criteria are to be read with care."""
    n_fits, parts = len(results["converged"]), []
    if (late := ~results["converged"]).any():
        parts.append(
            f"{late.sum()} of {n_fits} fits did not converge ({_listed(results, late)}); increase max_iter or tol of "
            "the estimator."
        )
    if "n_regularized" in results and (singular := results["n_regularized"] > 0).any():
        parts.append(
            f"{singular.sum()} of {n_fits} fits have singular covariances ({_listed(results, singular)}), which make "
            "their criteria too low; increase reg_covar of the estimator."
        )
    if parts:
        warn(" ".join(parts), ConvergenceWarning)


def _listed(results, chosen):
    """The chosen fits in words: numbers of components by covariance type."""
    types, numbers = results["covariance_type"][chosen], results["n_components"][chosen]
    return "; ".join(f"{kind}: {', '.join(map(str, numbers[types == kind]))}" for kind in dict.fromkeys(types.tolist()))
