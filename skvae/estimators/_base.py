"""What estimators share: fits as transactions, validation, maps over rows, pickles, scores and codes."""

import copy
import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array
from sklearn.utils._param_validation import InvalidParameterError, StrOptions, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted, validate_data
from torch.utils.data import DataLoader, IterableDataset

from ..data.arrays import FLOATS, check_dense, check_one_matrix, host_array, tensor_dtypes
from ..data.chunks import map_chunks
from ..data.columns import name_columns_in_error
from ..data.messages import meant, one_of
from ..data.missing import has_missing
from ..data.tables import Table, TensorRows, is_lazy, result_dtype, sparse_rows
from ..data.torch_datasets import first_part, table_of
from ..data.weights import counted_rows, weighted_sum
from ..fitting.chunks import row_chunks
from ..fitting.distributed import distributed_fit
from ..fitting.training import Interrupted
from ..models.networks import has_channels_last
from ..models.serialize import describe, foreign_part, rebuild
from ..models.tensors import copy_to_device
from ._checks import bind_arguments, check_row_count, name_methods
from ._tasks import CallbackSupportMixin, is_watched, with_sklearn_callbacks


def fit_method(method):
    """Wrap a fitting method: check the parameters first, and then as `transactional`."""
    return _fit_context(prefer_skip_nested_validation=True)(transactional(method))


def transactional(method):
    """Wrap a fitting method: tensors become arrays, and a fit that does not finish changes nothing.

    An exception or an interrupt leaves the estimator exactly as it was before the call; or, where the training of
    networks went on from earlier, as it was after the last whole epoch. With scikit-learn's ``array_api_dispatch``,
    too, fitted attributes are arrays. If there are callbacks of scikit-learn, they are told of a fit. Where there are
    several processes they fit together, and if one of them fails, all do.
    """
    told = with_sklearn_callbacks(method)

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        bind_arguments(self, method, args, kwargs)
        before = dict(vars(self))
        args, kwargs = map(host_array, args), {name: host_array(value) for name, value in kwargs.items()}
        try:
            with config_context(array_api_dispatch=False), distributed_fit():
                # Not always through the callbacks' frame: warnings point at the caller of fit.
                return (told if is_watched(self, method) else method)(self, *args, **kwargs)
        except Interrupted as stopped:
            reason = stopped.__cause__
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        raise reason  # here, where it has no other context

    return wrapper


def batch_by_batch(method):
    """Wrap ``partial_fit``: of a `DataLoader` or an iterator, it is called with one batch after another.

    Each call is a fit of its own: if one fails, the estimator is what the batches before have made of it.
    """

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        X, y, sample_weight = list(bind_arguments(self, method, args, kwargs).values())[1:]
        if isinstance(X, IterableDataset):
            raise TypeError(
                f"X is an IterableDataset ({type(X).__name__}), which gives rows and not batches; give "
                "DataLoader(X, batch_size=...)."
            )
        if isinstance(X, list | tuple) and getattr(self, "image_shape", None) is None and _holds_tables(X):
            raise ValueError(
                f"X is a {type(X).__name__} of tables, and not one table; give iter(X) for a stream of batches, or "
                "put them together."
            )
        if not isinstance(X, DataLoader | Iterator):
            return method(self, X, y, sample_weight)
        if y is not None or sample_weight is not None:
            raise ValueError(
                "y and sample_weight belong to the rows of one batch, but X is a stream of batches; call partial_fit "
                "for each of them."
            )
        n_batches = 0
        for n_batches, batch in enumerate(X, 1):  # noqa: B007
            method(self, first_part(batch))
        if not n_batches:
            raise ValueError("X is a stream without batches; an iterator can be used once only, make another one.")
        return self

    return wrapper


def _holds_tables(X):
    return bool(X) and getattr(X[0], "ndim", 0) == 2


class CheckedParametersMixin:
    """Errors about parameters that list options in sorted order, and say which one a typo may have meant."""

    def _validate_params(self):
        for name, value in self.get_params(deep=False).items():
            try:
                constraints = {name: self._parameter_constraints[name]} if name in self._parameter_constraints else {}
                validate_parameter_constraints(constraints, {name: value}, caller_name=type(self).__name__)
            except InvalidParameterError as error:
                raise InvalidParameterError(self._explained(str(error), name, value)) from None

    def _explained(self, message, name, value):
        """The message with options in sorted order, and the one that was meant."""
        choices = [choice for choice in self._parameter_constraints[name] if isinstance(choice, StrOptions)]
        for choice in choices:
            message = message.replace(str(choice), f"a str among {one_of(choice.options)}")
        return message + meant(value, sorted(set().union(*(choice.options for choice in choices))))


class TorchEstimator(CheckedParametersMixin, CallbackSupportMixin, BaseEstimator):
    """What every estimator shares. Subclasses have ``device`` and ``random_state`` parameters."""

    _dtypes = FLOATS  # those of X that are not converted, which would be to the first
    _allows_nan = False  # whether values of X may be missing
    _streams_nan = True  # whether they may be in rows that are read a chunk at a time, too

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name_methods(cls)

    def _validate(self, X, *, reset, min_samples=1, allows_nan=False):
        """Check X against scikit-learn's rules; values may be missing in training, and where that was learned.

        Returns
        -------
        X : ndarray of shape (n, d), Table or TensorRows
            Of one of the dtypes. A table where rows should not be held as a whole: sparse ones, and large ones on disk.
            Rows of a tensor where scikit-learn's ``array_api_dispatch`` is on, but not in a fit.
        """
        if not reset:
            check_is_fitted(self)
        check_one_matrix(X)
        X = table_of(X)
        allows_nan = self._allows_nan and (reset or allows_nan or self._knows_missing())
        settings = {"dtype": self._dtypes, "ensure_all_finite": "allow-nan" if self._allows_nan else True}
        if isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]:
            X = self._validated_tensor(X, settings)
        else:
            # The sums of large finite values may overflow in scikit-learn's search for values that are not finite.
            with config_context(array_api_dispatch=False), np.errstate(over="ignore", invalid="ignore"):
                X = self._validated_array(host_array(X), allows_nan, reset, min_samples, settings)
        if self._allows_nan and not allows_nan:
            self._refuse_missing(X)
        return X

    def _validate_weighted(self, X, sample_weight):
        """Check X and the weights of its samples, as a fit does, for what judges them.

        Returns
        -------
        X : ndarray of shape (n, d), Table or TensorRows
            Samples of positive weight, as from `_validate`; what the others hold does not matter, as in a fit.
        weight : ndarray of shape (n,) or None
            Their weights in float64; None where ``sample_weight`` is None.
        """
        if sample_weight is None:
            return self._validate(X, reset=False), None
        X, weight, _ = counted_rows(self._validate(X, reset=False, allows_nan=True), sample_weight)
        if self._allows_nan and not self._knows_missing():
            X = X.without_missing() if isinstance(X, Table) else X
            self._refuse_missing(X)
        return X, weight

    def _refuse_missing(self, X):
        """Raise if values are missing, for estimators that have not learned what that means."""
        if has_missing(X):
            raise ValueError(
                f"X contains NaN, but {type(self).__name__} was fitted to rows without missing values; fit it to rows "
                "that have some, or fill them in."
            )

    def _validated_array(self, X, allows_nan, reset, min_samples, settings):
        """X as an array or a table."""
        if is_lazy(X, self._dtypes):
            first = self._flat_images(np.asarray(X[0 : min(X.shape[0], 2)]))
            validate_data(self, first, reset=reset, **settings)
            check_row_count(X.shape[0], min_samples, type(self).__name__)
            return Table(X, result_dtype(X.dtype, self._dtypes), allow_nan=allows_nan and self._streams_nan)
        settings |= {"ensure_min_samples": min_samples, "accept_sparse": "csr", "accept_large_sparse": True}
        try:
            X = validate_data(self, self._flat_images(X), reset=reset, **settings)
        except (ValueError, TypeError) as error:
            told = (
                name_columns_in_error(error, X) if getattr(X, "ndim", 2) == 2 else self._explain_image_error(error, X)
            )
            if told is error:
                raise
            raise told from error
        return sparse_rows(X, allows_nan, together=not self._streams_nan) if issparse(X) else X

    def _explain_image_error(self, error, X):
        """An error about rows that may be images, with what to do; else the error itself."""
        known = getattr(self, "image_shape", None) is not None  # so that the error is about their shape
        if known or getattr(X, "ndim", 0) not in (3, 4) or not isinstance(error, ValueError):
            return error
        shape = tuple(X.shape[1:])
        first = (shape[-1], *shape[:-1])  # with channels first
        advice = f"image_shape={shape}, or " if hasattr(self, "image_shape") else ""
        if advice and has_channels_last(shape):
            advice = f"image_shape={first} and np.moveaxis(X, -1, 1), or "
        return ValueError(f"{error} If they are images, give {advice}rows: X.reshape({len(X)}, {math.prod(shape)}).")

    def _validated_tensor(self, X, settings):
        """X as rows of a tensor on its device."""
        check_dense(X)
        if X.is_complex():
            raise ValueError(
                f"X has dtype {X.dtype}, but only real numbers can be used; give X.real, or other features."
            )
        settings |= {"dtype": tensor_dtypes(self._dtypes, X.device)}
        return TensorRows(validate_data(self, self._flat_images(X.detach()), reset=False, **settings))

    def _knows_missing(self):
        """Whether rows with missing values mean something to what was fitted."""
        return True

    def _flat_images(self, X):
        """Images (n, h, w) or (n, c, h, w) as rows, where the estimator knows their shape."""
        shape = getattr(self, "image_shape", None)
        if shape is None or np.ndim(X) < 3:
            return X
        X, shape = X if isinstance(X, torch.Tensor) else np.asarray(X), tuple(shape)
        if X.shape[1:] in (shape, (1, *shape)) or (1, *X.shape[1:]) == shape:
            return X.reshape(len(X), -1)
        moved = X.shape[-1:] + X.shape[1:-1]
        if X.ndim == 4 and (moved == shape or moved == (1, *shape)):
            raise ValueError(
                f"X has images of shape {tuple(X.shape[1:])}, with channels last, but image_shape={shape}; give "
                f"np.moveaxis(X, -1, 1), whose images have the shape {tuple(moved)}."
            )
        raise ValueError(
            f"X has images of shape {tuple(X.shape[1:])}, but image_shape={shape}; give rows, or images of this shape "
            "with channels first."
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan
        tags.input_tags.sparse = True
        return tags

    def _map(self, function, X, *, dtype, device, width, chunk_size=None, parameters=(), incomplete=None):
        """Apply a tensor function to chunks of rows; return one array in the dtype of X, a tensor where X is one.

        Parameters
        ----------
        function : callable, Tensor (b, d) and the parameters -> Tensor (b, ...)
            It returns new memory, because that of the rows is used again.
        X : ndarray, Table or TensorRows of shape (n, d)
        dtype : torch.dtype
        device : torch.device
        width : int
            Numbers that the function holds for each row at once.
        chunk_size : int, optional
            Rows in a chunk.
        parameters : sequence of Tensor
            On the CPU and in the dtype; the function gets them on the device. They go there with the first chunk.
        incomplete : callable, optional
            The function for chunks with missing values.
        """
        n_rows = min(len(X), row_chunks(len(X), width, chunk_size)[0].stop)
        # Fresh memory for each chunk would cost as much as simple functions do.
        buffer = torch.empty((0 if isinstance(X, TensorRows) else n_rows, X.shape[1]), dtype=dtype)
        on_device = None

        def apply(found):
            nonlocal on_device
            if isinstance(found, torch.Tensor):
                found = found.cpu() if found.device.type == "mps" else found  # before it can be float64
                x = found.to(dtype, copy=True)
            else:
                x = buffer[: len(found)]
                np.copyto(x.numpy(), found, casting="same_kind")
            # A sum is cheap, but would have to be waited for on an accelerator.
            is_incomplete = incomplete is not None and bool(x.sum().isnan() and x.isnan().any())
            if on_device is None and len(parameters) and x.device == torch.device("cpu"):
                x, *on_device = copy_to_device([x, *parameters], device)
            elif on_device is None:
                on_device = copy_to_device(parameters, device) if len(parameters) else []
            return (incomplete if is_incomplete else function)(x.to(device), *on_device)

        return map_chunks(apply, X, n_rows)

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("net_", None)  # holds the optimizer, and only training needs it
        if "module_" in state:
            module = state["module_"]
            # Modules of the user's have no description, and go into pickles as they are.
            state["module_"] = copy.deepcopy(module).cpu() if foreign_part(module) else describe(module)
        return state

    def __setstate__(self, state):
        if isinstance(state.get("module_"), dict):
            state = {**state, "module_": rebuild(state["module_"])}
        super().__setstate__(state)


class ScoreMixin:
    """``score`` for estimators whose ``score_samples`` is the log-likelihood of each row, or a bound on it.

    Subclasses have ``_score_valid``, which is ``score_samples`` for validated rows.
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
        """Weighted sum of `score_samples`, and the sum of the weights: the number of samples if there are none."""
        if sample_weight is None:
            scores = host_array(self.score_samples(X))
            return weighted_sum(scores), len(scores)
        X, weight = self._validate_weighted(X, sample_weight)
        return weighted_sum(host_array(self._score_valid(X)), weight), float(weight.sum())


class LatentMixin(ScoreMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """What transformers into a latent space share; they set ``_n_features_out`` when fitted."""

    def _validate_codes(self, Z):
        """Check codes Z; return a 2-D float array, or rows of a tensor, as `_validate` does."""
        check_is_fitted(self)
        if isinstance(Z, torch.Tensor) and get_config()["array_api_dispatch"]:
            check_dense(Z)
            Z = TensorRows(check_array(Z.detach(), dtype=tensor_dtypes(FLOATS, Z.device), input_name="Z"))
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
