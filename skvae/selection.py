"""Selection of the number of components and the covariance type of mixtures by information criteria."""

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
        Criterion that was compared.
    best_params_ : dict
        ``n_components`` and ``covariance_type`` of the fit with the lowest criterion, of the first one in a tie.
    best_estimator_ : estimator
        Estimator of this fit.
    results : dict of ndarray of shape (n_fits,)
        One entry for each fit, by covariance type, then by number of components, in the order of the parameters:

        - ``n_components``, ``covariance_type``: parameters of the fit,
        - ``bic``, ``aic``, ``icl``: those criteria that the estimator has, in nats; lower is better,
        - ``log_likelihood``: (weighted) mean over samples, in nats,
        - ``converged``, ``n_iter``: whether EM reached its tolerance, and its number of iterations,
        - ``n_regularized``: number of components with a singular covariance, if the estimator has this attribute,
        - ``fit_time``: in seconds.

        ``pandas.DataFrame(results)`` converts it to a DataFrame.
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
    """Fit mixtures for all numbers of components and covariance types, and select by an information criterion.

    The criteria are ``-2 log-likelihood`` with a penalty, on the training data: no samples are held out. BIC adds
    ``log(n_samples)`` for each free parameter, AIC adds 2 and tends to more components. ICL adds to BIC an entropy term
    for uncertain assignments, so that it selects the number of clusters, each of which may need several Gaussians. EM
    finds local optima: several initializations (``n_init`` of the estimator) make the comparison more reliable.

    Parameters
    ----------
    estimator : TorchGMM, GaussianMixture or similar
        Clones of it are fitted; it is not changed. It has the parameters ``n_components`` and ``covariance_type``, the
        methods ``score`` and ``criterion``, and, once fitted, ``converged_`` and ``n_iter_``.
    X : array-like of shape (n_samples, n_features)
        Data.
    n_components : sequence of int, default=range(1, 11)
        Numbers of components.
    covariance_type : sequence of str, default=("full", "tied", "diag", "spherical")
        Covariance types.
    criterion : {"bic", "aic", "icl"}, default="bic"
        Criterion to minimize.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples, by which mixtures are fitted and compared: an integer weight is as many equal samples,
        and a weight of zero none. The estimator has to accept them, as `TorchGMM` does.
    n_jobs : int, default=None
        Number of parallel fits, by joblib; None means 1 unless in a :obj:`joblib.parallel_config` context, -1
        means all processors. The jobs are processes; ``joblib.parallel_config(backend="threading")`` makes them
        threads, which share one GPU better.

    Returns
    -------
    selection : MixtureSelection
        Results of all fits, and the best fit.

    Raises
    ------
    TypeError
        If the estimator lacks one of these parameters or the criterion, if there are weights but its methods do not
        accept them, or if ``n_components`` or ``covariance_type`` is not a sequence.
    ValueError
        If ``n_components`` or ``covariance_type`` is empty, repeats a value or has one that cannot be fitted, if the
        criterion is unknown, if X cannot be fitted, or if the weights are not finite, negative, all zero, or not one
        for each sample.

    Warns
    -----
    ConvergenceWarning
        Once, listing the fits that did not converge or have singular covariances. The likelihood of a singular
        component is only limited by the regularization, so that its criteria are not reliable.

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
        _check_accepts_weights(estimator, ["fit", "score", *criteria])
    numbers, types = _check_grid("n_components", n_components), _check_grid("covariance_type", covariance_type)
    if wrong := [number for number in numbers if not isinstance(number, Integral) or number < 1]:
        raise ValueError(f"n_components should be integers from 1 on, but {wrong[0]!r} is among them.")
    grid = [{"n_components": int(number), "covariance_type": name} for name, number in product(types, numbers)]

    # The largest first: they take longest, and those with too many components fail before the others are fitted.
    order = sorted(range(len(grid)), key=lambda index: -grid[index]["n_components"])
    jobs = (delayed(_fit)(clone(estimator), X, weights, grid[index], criteria) for index in order)
    entries, best, lowest = [None] * len(grid), None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one summary at the end instead
        # A generator, so that only the best mixture stays in memory.
        for index, (fitted, entry) in zip(order, Parallel(n_jobs=n_jobs, return_as="generator")(jobs), strict=True):
            entries[index] = entry
            if best is None or (entry[criterion], index) < lowest:
                best, lowest = fitted, (entry[criterion], index)

    results = {name: np.array([entry[name] for entry in entries]) for name in entries[0]}
    _warn_about_convergence(results)
    return MixtureSelection(criterion, grid[lowest[1]], best, results)


def _fit(estimator, X, weights, params, criteria):
    """Fit with these parameters; return the estimator and a dict of its results."""
    start = time.perf_counter()
    try:
        estimator.set_params(**params).fit(X, **weights)
    except Exception as error:
        error.add_note(f"This was the fit with {', '.join(f'{name}={value!r}' for name, value in params.items())}.")
        raise
    fit_time = time.perf_counter() - start
    entry = params | {name: getattr(estimator, name)(X, **weights) for name in criteria}
    entry |= {"log_likelihood": estimator.score(X, **weights)}
    entry |= {"converged": estimator.converged_, "n_iter": estimator.n_iter_}
    if hasattr(estimator, "n_regularized_"):
        entry["n_regularized"] = estimator.n_regularized_
    return estimator, entry | {"fit_time": fit_time}


def _check_estimator(estimator, criterion):
    """Return the criteria that the estimator has; raise if it cannot be selected by this one."""
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


def _check_accepts_weights(estimator, methods):
    """Raise unless all methods accept sample weights."""
    lacking = [name for name in methods if "sample_weight" not in signature(getattr(estimator, name)).parameters]
    if lacking:
        raise TypeError(
            f"sample_weight needs an estimator that accepts weights, but {type(estimator).__name__} does not in "
            f"{', '.join(lacking)}; give a TorchGMM, or repeat the samples."
        )


def check_criterion(criterion, available):
    """Raise a ValueError unless the criterion is available."""
    if criterion not in available:
        hint = meant(criterion, available)
        raise ValueError(f"criterion should be one of {sorted(available)}, but got {criterion!r}.{hint}")


def _check_grid(name, values):
    """Return the values as a list; raise if they are no sequence of distinct values."""
    if isinstance(values, (str, Integral)):
        raise TypeError(f"{name} should be a sequence of values, but got {values!r}; put it in a list.")
    values = list(values)
    if not values:
        raise ValueError(f"{name} should have at least one value, but it is empty.")
    if repeated := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"{name} should have each value once, but {repeated[0]!r} is repeated.")
    return values


def _warn_about_convergence(results):
    """Emit one warning for all fits with unreliable criteria."""
    n_fits, messages = len(results["converged"]), []
    if (unfinished := ~results["converged"]).any():
        messages.append(
            f"{unfinished.sum()} of {n_fits} fits did not converge ({_listed(results, unfinished)}); increase max_iter "
            "or tol of the estimator."
        )
    if "n_regularized" in results and (singular := results["n_regularized"] > 0).any():
        messages.append(
            f"{singular.sum()} of {n_fits} fits have singular covariances ({_listed(results, singular)}), which make "
            "their criteria too low; increase reg_covar of the estimator."
        )
    if messages:
        warn(" ".join(messages), ConvergenceWarning)


def _listed(results, mask):
    """Return the numbers of components of some fits by covariance type, as text."""
    types, numbers = results["covariance_type"][mask], results["n_components"][mask]
    return "; ".join(f"{name}: {', '.join(map(str, numbers[types == name]))}" for name in dict.fromkeys(types.tolist()))
