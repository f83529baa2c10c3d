"""Base classes of estimators: validation of parameters and data, pickles, scores and latent codes."""

import copy
import functools
import inspect
import math
import types

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils._param_validation import InvalidParameterError, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted, validate_data

from ..data.arrays import FLOATS, check_dense, host_array, tensor_dtypes
from ..data.frames import library_of, refuse_repeated_names
from ..data.inputs import (
    as_matrix,
    explain_error,
    flatten_images,
    result_dtype,
    should_stream,
    sparse_samples,
    without_na,
)
from ..data.messages import meant, one_of
from ..data.samples import LazySamples, TensorSamples, has_missing, refuse_missing
from ..data.weights import positive_weight_samples, weighted_sum
from ..models.serialize import foreign_part, module_from_dict, module_to_dict
from ._fit import CallbackSupportMixin

MAX_SMALL = 100_000  # values of an array for which scikit-learn's checks take longer than ours


class CheckedParametersMixin:
    """Errors about parameters that list options in sorted order and suggest the one that a typo is close to."""

    def _validate_params(self):
        for name, value in self.get_params(deep=False).items():
            try:
                constraints = {name: self._parameter_constraints[name]} if name in self._parameter_constraints else {}
                validate_parameter_constraints(constraints, {name: value}, caller_name=type(self).__name__)
            except InvalidParameterError as error:
                raise InvalidParameterError(self._parameter_message(str(error), name, value)) from None

    def _parameter_message(self, message, name, value):
        """Return the message of an error about a parameter, with sorted options and a suggestion."""
        choices = [choice for choice in self._parameter_constraints[name] if isinstance(choice, StrOptions)]
        for choice in choices:
            message = message.replace(str(choice), f"a str among {one_of(choice.options)}")
        return message + meant(value, sorted(set().union(*(choice.options for choice in choices))))


class TorchEstimator(CheckedParametersMixin, CallbackSupportMixin, BaseEstimator):
    """Base class of estimators with ``device`` and ``random_state`` parameters: validation of X, and pickles.

    Subclasses say what X may be by three class attributes and a method.
    """

    _dtypes = FLOATS  # dtypes of X that are not converted; others are converted to the first
    _allows_nan = False  # whether values of X may be missing
    _streams_nan = True  # whether they may be missing in samples that are read a chunk at a time, too

    def _handles_missing(self):
        """Return whether the fitted model, if there is one, takes missing values; else only a new fit does."""
        return True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name_methods(cls)

    def _validate(self, X, *, reset, min_samples=1, allows_nan=False, checks_finite=True):
        """Check X by the rules of scikit-learn.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        reset : bool
            Whether X is training data, which sets the number and the names of the features.
        min_samples : int, default=1
        allows_nan : bool, default=False
            Whether values may be missing although the fitted model does not take them.
        checks_finite : bool, default=True
            Whether to look for values that are not finite, which needs a pass over an array; else the caller does.

        Returns
        -------
        X : ndarray, LazySamples or TensorSamples of shape (n_samples, n_features)
            Of one of the dtypes. Sparse matrices and large files become lazy samples; tensors stay tensors where
            ``array_api_dispatch`` of scikit-learn is on, but not in a fit.
        """
        if not reset:
            if self._is_valid_array(X, min_samples):
                return X
            check_is_fitted(self)
        if library_of(X) is not None:
            refuse_repeated_names(X)
        X = as_matrix(X)
        allows_nan = self._allows_nan and (reset or allows_nan or self._handles_missing())
        settings = {
            "dtype": self._dtypes,
            "reset": reset,
            "ensure_all_finite": checks_finite and ("allow-nan" if self._allows_nan else True),
        }
        if isinstance(X, torch.Tensor):
            X = self._validate_tensor(X, settings)
        else:
            # The sums of large finite values may overflow in scikit-learn's search for values that are not finite.
            with config_context(array_api_dispatch=False), np.errstate(over="ignore", invalid="ignore"):
                validate = self._validate_lazy if should_stream(X, self._dtypes) else self._validate_array
                X = validate(X, min_samples, allows_nan, settings)
        if self._allows_nan and not allows_nan and has_missing(X):
            raise self._missing_error()
        return X

    def _is_valid_array(self, X, min_samples):
        """Return whether scikit-learn's checks, which are slow for small arrays, would find nothing in X."""
        if type(X) is not np.ndarray or X.ndim != 2 or X.dtype not in self._dtypes:
            return False
        if len(X) < min_samples or X.size > MAX_SMALL:
            return False
        if X.shape[1] != getattr(self, "n_features_in_", None) or hasattr(self, "feature_names_in_"):
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            return math.isfinite(X.sum())

    def _validate_tensor(self, X, settings):
        check_dense(X)
        if X.is_complex():
            raise ValueError(
                f"X has dtype {X.dtype}, but only real numbers can be used; give X.real, or other features."
            )
        settings |= {"dtype": tensor_dtypes(self._dtypes, X.device)}
        return TensorSamples(validate_data(self, flatten_images(X.detach(), self), **settings))

    def _validate_lazy(self, X, min_samples, allows_nan, settings):
        """Check the first samples; the others are checked when they are read."""
        n_samples = X.shape[0]
        validate_data(self, flatten_images(np.asarray(X[0 : min(n_samples, 2)]), self), **settings)
        if n_samples < min_samples:
            raise ValueError(
                f"X has {n_samples} sample(s), but {type(self).__name__} needs at least {min_samples}; add rows."
            )
        return LazySamples(X, result_dtype(X.dtype, self._dtypes), allow_nan=allows_nan and self._streams_nan)

    def _validate_array(self, X, min_samples, allows_nan, settings):
        settings |= {"ensure_min_samples": min_samples, "accept_sparse": "csr", "accept_large_sparse": True}
        try:
            X = validate_data(self, without_na(flatten_images(X, self)), **settings)
        except (ValueError, TypeError) as error:
            explanation = explain_error(error, X, self)
            if explanation is error:
                raise
            raise explanation from error
        return sparse_samples(X, allows_nan, self._streams_nan) if issparse(X) else X

    def _validate_weighted(self, X, sample_weight):
        """Check X and the weights of its samples, as a fit does, to score them.

        Returns
        -------
        X : ndarray, LazySamples or TensorSamples of shape (n, d)
            Samples of positive weight, as from `_validate`; the values of the others do not matter, as in a fit.
        weight : ndarray of shape (n,) or None
            Their weights in float64; None where ``sample_weight`` is None.
        """
        if sample_weight is None:
            return self._validate(X, reset=False), None
        X, weight, _ = positive_weight_samples(self._validate(X, reset=False, allows_nan=True), sample_weight)
        if self._allows_nan and not self._handles_missing():
            X = refuse_missing(X)
            if has_missing(X):
                raise self._missing_error()
        return X, weight

    def _missing_error(self):
        return ValueError(
            f"X contains NaN, but {type(self).__name__} was fitted to rows without missing values; fit it to rows that "
            "have some, or fill them in."
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("net_", None)  # holds the optimizer, and only training needs it
        if "_metadata_request" in state:  # of set_fit_request and others, as plain values
            state["_metadata_request"] = state["_metadata_request"]._serialize()
        if "module_" in state:
            module = state["module_"]
            # User modules have no description, and go into pickles as they are.
            state["module_"] = copy.deepcopy(module).cpu() if foreign_part(module) else module_to_dict(module)
        return state

    def __setstate__(self, state):
        if isinstance(state.get("module_"), dict):
            state = {**state, "module_": module_from_dict(state["module_"])}
        requests = state.get("_metadata_request")
        if isinstance(requests, dict):
            state = {name: value for name, value in state.items() if name != "_metadata_request"}
        super().__setstate__(state)
        if isinstance(requests, dict):
            with config_context(enable_metadata_routing=True):
                for method, request in requests.items():
                    getattr(self, f"set_{method}_request")(**request)


class ScoreMixin:
    """``score`` for estimators whose ``score_samples`` is the log-likelihood of each sample, or the ELBO.

    Subclasses have ``_score_valid``, which is ``score_samples`` of validated samples.
    """

    def score(self, X, y=None, sample_weight=None):
        """Mean of `score_samples` over the samples; higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.

        Returns
        -------
        score : float
            In nats per sample.

        Raises
        ------
        ValueError
            If the weights are not finite, negative, all zero, or not one for each sample.
        """
        total, n_samples = self._total_score(X, sample_weight)
        return total / n_samples

    def _total_score(self, X, sample_weight):
        """Return the weighted sum of `score_samples`, and the sum of the weights, or the number of samples."""
        if sample_weight is None:
            scores = host_array(self.score_samples(X))
            return weighted_sum(scores), len(scores)
        X, weight = self._validate_weighted(X, sample_weight)
        return weighted_sum(host_array(self._score_valid(X)), weight), float(weight.sum())


class LatentMixin(ScoreMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Base class of transformers into a latent space; they set ``_n_features_out`` when fitted."""

    def _validate_codes(self, Z):
        """Check latent codes Z; return an array of floats (n, q), or samples of a tensor, as `_validate` does."""
        check_is_fitted(self)
        if isinstance(Z, torch.Tensor) and get_config()["array_api_dispatch"]:
            check_dense(Z)
            Z = TensorSamples(check_array(Z.detach(), dtype=tensor_dtypes(FLOATS, Z.device), input_name="Z"))
        else:
            with config_context(array_api_dispatch=False):
                Z = check_array(host_array(Z), dtype=FLOATS, input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(
                f"Z has {Z.shape[1]} features, but {type(self).__name__} is expecting {self._n_features_out} latent "
                "features as input."
            )
        return Z

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def name_methods(cls):
    """Give a public class the methods of private bases under its own name, because errors of Python show it."""
    if is_private(cls):
        return
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        if name == "transform":  # scikit-learn wraps it, and will wrap the copy
            method = inspect.unwrap(method)
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if is_private(owner) and not hasattr(method, "__wrapped__"):
            setattr(cls, name, copy_function(method, f"{cls.__qualname__}.{name}"))


def is_private(cls):
    """Return whether a class is of a private module of this package."""
    package, _, module = cls.__module__.rpartition(".")
    return package == __package__ and module.startswith("_")


def copy_function(function, qualified_name):
    """Copy a function under another name."""
    parts = (function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copied = functools.update_wrapper(types.FunctionType(*parts), function)
    copied.__kwdefaults__, copied.__qualname__ = function.__kwdefaults__, qualified_name
    del copied.__wrapped__
    return copied
