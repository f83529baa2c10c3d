"""What fits leave in an estimator: taken out for a file, and checked when it comes back."""

import copy
import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..models.networks import row_width
from .container import CorruptFile

MOST_FEATURES, MOST_VALUES = 2**24, 2**26  # of a row, and that a layer may hold for one
SHAPES = {  # d features, q dimensions of codes, k components or clusters, m where these lie, c classes, n rows
    "feature_names_in_": "d",
    "labels_": "n",
    "weights_": "k",
    "means_": "km",
    "_exact_means": "km",
    "cluster_centers_": "kd",
    "_counts": "k",
    "components_": "qd",
    "_exact_components": "qd",
    "explained_variance_": "q",
    "_exact_variances": "q",
    "explained_variance_ratio_": "q",
    "mean_": "d",
    "_exact_mean": "d",
    "code_mean_": "q",
    "code_covariance_": "qq",
    "kl_per_dimension_": "q",
    "cluster_labels_": "n",
    "classes_": "c",
    "class_prior_": "c",
    "counts_": "kc",
    "table_": "kc",
}
ALIKE = ("covariances_", "precisions_", "precisions_cholesky_", "_exact_factor")  # of one shape
KINDS_OF_VALUES = {  # floats, if not these
    "feature_names_in_": "O",
    "labels_": "iu",
    "cluster_labels_": "iu",
    "classes_": "OUbiuf",
}
COUNTS = (
    *("n_features_in_", "n_iter_", "n_steps_", "n_components_", "active_units_", "n_regularized_"),
    *("_n_features_out", "_n_trained_features", "_widest", "_n_steps", "_n_batches", "_first_seed", "_partial_seed"),
)
MEASURES = (
    *("lower_bound_", "inertia_", "noise_variance_", "consistency_", "n_effective_clusters_"),
    *("_confidence", "_weight_seen"),
)
LISTS = ("history_", "pretrain_history_", "loss_curve_", "lower_bounds_", "init_losses_")
TYPES = {
    **dict.fromkeys(COUNTS, Integral),
    **dict.fromkeys(MEASURES, Real),
    **dict.fromkeys(LISTS, list),
    **dict.fromkeys((*SHAPES, *ALIKE), np.ndarray),
    "converged_": bool | np.bool_,
    "_in_float64": bool,
    "likelihood_": str,
    "held_out_scores_": dict,
    "module_": dict,
    "_fit_dtype": np.dtype,
}


def state_of(estimator):
    """Everything that an estimator has beside its parameters; a network as its description."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in estimator.__getstate__().items() if name not in params}


def restore_fitted(estimator, state):
    """Give an estimator what it had beside its parameters.

    Raises
    ------
    CorruptFile
        If attributes are not those of a fit, if they do not belong together, or if the estimator can not answer.
    """
    check_attributes(estimator, state)
    check_shapes(state)
    try:
        if state:
            estimator.__setstate__(state)
        if "module_" in state:
            check_widths(estimator)
        if "device" in estimator.get_params(deep=False) and is_fitted(estimator):
            smoke_test(estimator)
    except CorruptFile:
        raise
    except Exception as error:
        raise CorruptFile(
            f"what was fitted does not belong together ({type(error).__name__}: {str(error)[:300]})"
        ) from error


def check_attributes(estimator, state):
    """Raise if there are attributes that no fit sets, or of another type."""
    name, params = type(estimator).__name__, estimator.get_params(deep=False)
    for key, value in state.items():
        # What the class has itself, its methods above all, can not be covered up.
        if not key.isidentifier() or key.startswith("__") or key in params or hasattr(type(estimator), key):
            raise CorruptFile(f"a fitted {name} has no attribute {key!r:.80}")
        if not isinstance(value, TYPES.get(key, object)):
            raise CorruptFile(f"{key} of its {name} is a {type(value).__name__}")
        if key in COUNTS and not 0 <= value < 2**63:
            raise CorruptFile(f"{key} of its {name} is {value!r:.40}")
        if key in SHAPES and value.dtype.kind not in KINDS_OF_VALUES.get(key, "f"):
            raise CorruptFile(f"{key} of its {name} is an array of {value.dtype}")
    if not 0 < state.get("n_features_in_", 1) <= MOST_FEATURES:
        raise CorruptFile(f"its {name} has {state['n_features_in_']} features")


def check_shapes(state):
    """Raise if arrays are of shapes that contradict one another."""
    sizes = {"d": state.get("n_features_in_"), "q": state.get("_n_features_out")}
    sizes = {letter: size for letter, size in sizes.items() if size is not None}
    for name in SHAPES.keys() & state.keys():
        letters, shape = SHAPES[name], state[name].shape
        if len(shape) != len(letters) or any(sizes.setdefault(a, n) != n for a, n in zip(letters, shape, strict=True)):
            raise CorruptFile(f"{name} has the shape {shape}, which contradicts other arrays")
    if len({state[name].shape for name in ALIKE if name in state}) > 1:
        raise CorruptFile(f"{', '.join(ALIKE)} are of different shapes")


def check_widths(estimator):
    """Raise if a row would need more memory in the networks than the estimator expects, which needs none to be seen."""
    model = copy.deepcopy(estimator.module_).to("meta")
    inputs = model.likelihood.n_inputs(estimator.n_features_in_), estimator._n_features_out
    widest = max(row_width(network, n) for network, n in zip((model.encoder, model.decoder), inputs, strict=True))
    if not widest <= estimator._widest <= MOST_VALUES:
        raise CorruptFile(f"its networks hold {widest} values for a row, but {estimator._widest} are said")


def is_fitted(estimator):
    """Whether there is anything to ask."""
    try:
        check_is_fitted(estimator)
    except Exception:  # NotFittedError, and of attributes that it looks at
        return False
    return True


def smoke_test(estimator):
    """Ask for what a fitted estimator says of a row of zeros, on the CPU; errors are those of the methods."""
    row, device = np.zeros((1, estimator.n_features_in_)), estimator.device
    estimator.device = "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for method in ("predict", "transform", "score_samples"):
                if hasattr(estimator, method):
                    getattr(estimator, method)(row)
            if hasattr(estimator, "sample"):
                estimator.sample(1, random_state=0)
    finally:
        estimator.device = device
