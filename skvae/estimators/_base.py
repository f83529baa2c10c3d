"""The border between arrays and tensors: validation, devices, dtypes, chunks of rows, seeds and pickles."""

import copy
import functools
from numbers import Integral

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn import config_context, get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array, check_random_state, check_scalar
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..fitting.lloyd import canonical_order
from ..fitting.rows import LINEAR_BYTES, RESIDUAL_BYTES, row_chunks
from ._descriptions import describe, foreign_part, rebuild
from ._missing import has_missing
from ._tables import Table, TensorRows, fits_in_memory, is_lazy, result_dtype, select_rows
from ._tasks import CallbackSupportMixin, is_watched, told_to_callbacks

FLOATS = (np.float64, np.float32)
DEVICES = ("cuda", "mps", "cpu")
SHORT_SUM = 128  # rows whose products are summed in the dtype of the data


def fit_method(method):
    """Wrap a fitting method: check the parameters first, and then as `guarded`."""
    return _fit_context(prefer_skip_nested_validation=True)(guarded(method))


def guarded(method):
    """Wrap a fitting method: tensors become arrays, and a fit that does not finish changes nothing.

    An exception or an interrupt leaves the estimator exactly as it was before the call. With scikit-learn's
    ``array_api_dispatch``, too, fitted attributes are arrays. If there are callbacks of scikit-learn, they are told of
    a fit.
    """
    told = told_to_callbacks(method)

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        before = dict(vars(self))
        args, kwargs = map(host_array, args), {name: host_array(value) for name, value in kwargs.items()}
        try:
            with config_context(array_api_dispatch=False):
                # Not always through the callbacks' frame: warnings point at the caller of fit.
                return (told if is_watched(self, method) else method)(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return wrapper


def host_array(value):
    """A tensor as an array on the host, in float64 where NumPy has no such dtype; anything else as it is.

    Raises
    ------
    TypeError
        If the tensor is sparse.
    """
    if not isinstance(value, torch.Tensor):
        return value
    check_dense(value)
    if value.is_floating_point() and value.dtype not in (torch.float64, torch.float32, torch.float16):
        value = value.detach().cpu().double()
    return value.numpy(force=True)


def check_dense(tensor):
    """Raise if a tensor is sparse."""
    if tensor.layout != torch.strided:
        raise TypeError(
            f"Got a tensor of layout {tensor.layout}; give tensor.to_dense(), or a CSR matrix of scipy.sparse, whose "
            "rows are made dense a chunk at a time."
        )


def resolve_device(device, *, dtype=torch.float32):
    """The torch device for a ``device`` parameter; "auto" is the first of cuda, mps and cpu that can be used.

    Parameters
    ----------
    device : str or torch.device
    dtype : torch.dtype, default=torch.float32
        What has to be computed there (mps has no float64).

    Raises
    ------
    ValueError
        If torch does not know the device, or the machine does not have it, or it can not compute in the dtype.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name in DEVICES if available[name] and not (name == "mps" and dtype == torch.float64)]
    try:
        resolved = torch.device(there[0] if device == "auto" else device)
        torch.empty(0, device=resolved, dtype=dtype)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(f"device={device!r} can not be used here; use 'auto' or one of {there}.") from error
    return resolved


def generator_from(random_state):
    """A private torch generator, seeded by an int, a RandomState or, for None, by the operating system."""
    return torch.Generator().manual_seed(seed_from(random_state))


def seed_from(random_state):
    """A seed below 2**31, from an int, a RandomState or, for None, the operating system."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def compute_dtype(dtype, device):
    """The torch dtype in which arrays of a dtype are computed with on a device."""
    single = dtype == np.float32 or torch.device(device).type == "mps"  # mps has no float64
    return torch.float32 if single else torch.float64


def to_tensor(array, dtype, device):
    """A copy of an array as a tensor; the array may be read-only or have negative strides."""
    return torch.tensor(np.asarray(array, order="C"), dtype=dtype, device=device)


def counted_rows(X, sample_weight):
    """Rows of positive weight, their weights (float64, None if all are one) and what selects them.

    Raises
    ------
    ValueError
        If the weights are not finite, negative, all zero, or not one for each row.
    """
    if sample_weight is None:
        return X, None, slice(None)
    weight = check_weights(sample_weight, X)
    counted = weight > 0
    return (X, weight, slice(None)) if counted.all() else (select_rows(X, counted), weight[counted], counted)


def check_weights(sample_weight, X):
    """Weights of rows in float64.

    Raises
    ------
    ValueError
        If they are not finite, negative, all zero, or not one for each row.
    """
    weight = _check_sample_weight(host_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)
    if not weight.any():
        raise ValueError("Every sample_weight is zero; at least one row should count.")
    return weight


def repeated_rows(X, sample_weight, seed):
    """Rows as often as their weights say; those of an array in an order that does not depend on where they stood.

    Whole weights are numbers of rows. Others are rounded up or down at random, so that their sum is kept; if they are
    smaller than one on average, they are scaled to be one.
    """
    X, weight, _ = counted_rows(X, sample_weight)
    order = np.arange(len(X)) if isinstance(X, Table) else order_of(X)
    if weight is None:
        return X if isinstance(X, Table) else X[order]
    ends = np.cumsum(weight[order] * max(1.0, len(weight) / weight.sum()))
    # The share of the last row that is cut off is no whole row: rounding of sums of whole numbers is none.
    counted = np.floor(ends + np.random.default_rng(seed).uniform(1e-9, 1)).astype(np.int64)
    return select_rows(X, np.repeat(order, np.diff(counted, prepend=0)))


def order_of(X):
    """Indices of the rows of an array, in an order that depends neither on where they stand nor on linear units."""
    x = torch.from_numpy(np.require(X, requirements=["C", "W"]))
    if x.is_floating_point() and np.isnan(X.min()):
        x = x.nan_to_num(nan=0.0)
    low, high = x.amin(0).double(), x.amax(0).double()
    span = high - low
    in_units = bool((low >= 0).all() and (high <= 1).all())  # already, as pixels and probabilities are
    return canonical_order(x, unit=1.0 if in_units else torch.where(span > 0, span, 1.0)).numpy()


def column_means(X, weight=None):
    """Weighted means of the features (n_features,), summed in float64; not finite if the sums overflow."""
    chunks = row_chunks(*X.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        if weight is None and isinstance(X, np.ndarray):
            return X.mean(axis=0, dtype=np.float64)
        if weight is None:
            return sum(X[rows].sum(axis=0, dtype=np.float64) for rows in chunks) / len(X)
        return sum(weight[rows] @ X[rows].astype(np.float64, copy=False) for rows in chunks) / weight.sum()


def centered(X, center, dtype, device):
    """Rows less a float64 centre, as a tensor."""
    x = torch.empty(X.shape, dtype=dtype, device=device)
    for rows in row_chunks(*X.shape, n_bytes=LINEAR_BYTES):
        x[rows] = torch.from_numpy(X[rows] - center)
    return x


def scatter_about(X, center, weight, dtype, device, chunk_size=None):
    """Weighted sum of outer products of rows about a centre (d, d), float64, in one pass with a copy of a chunk alone.

    The products of a chunk are made in the dtype; on a CPU by NumPy, which knows that they are symmetric. They are not
    finite if they overflow.
    """
    kind, n_features = np.float32 if dtype == torch.float32 else np.float64, X.shape[1]
    reference = center.astype(kind)
    # Longer sums in float32 would lose digits; adding their float64 total costs little while it fits into a cache.
    n_rows = SHORT_SUM if n_features <= 256 else 4 * SHORT_SUM
    n_rows = chunk_size or min(n_rows, max(1, RESIDUAL_BYTES // (8 * n_features)))
    buffer = np.empty((min(len(X), n_rows), n_features), kind)
    total = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, found in chunks_of(X, n_rows):
            part = np.subtract(found, reference, out=buffer[: len(found)], casting="same_kind")
            if weight is not None:
                part *= np.sqrt(weight[rows, None]).astype(kind)
            if total.device.type == "cpu":
                total += torch.from_numpy(part.T @ part)
            else:
                part = torch.from_numpy(part).to(device)
                total += part.mT @ part
    shift = torch.from_numpy(center - reference).to(total)
    n_samples = len(X) if weight is None else float(weight.sum())
    return total - n_samples * shift.outer(shift)


def chunks_of(X, n_rows):
    """Slices of so many rows, and these rows; a table is read in larger blocks, which its files may be made of."""
    blocks = [slice(0, len(X))] if isinstance(X, np.ndarray) else row_chunks(*X.shape)
    for block in blocks:
        found = X[block]
        for rows in row_chunks(len(found), X.shape[1], n_rows):
            part = found[rows]
            start = block.start + rows.start
            yield slice(start, start + len(part)), part


def check_row_count(n_rows, n_needed, name):
    """Raise if a table has fewer rows than an estimator needs."""
    if n_rows < n_needed:
        raise ValueError(f"X has {n_rows} sample(s), but {name} needs at least {n_needed}; add rows.")


def check_enough_rows(X, n_components, name="n_components"):
    """Raise if there are fewer rows than components."""
    if len(X) < n_components:
        raise ValueError(f"{name}={n_components} is larger than n_samples={len(X)}; decrease {name}, or add rows.")


def check_sample_size(n_samples):
    """The number of rows to draw, or an error.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is less than one.
    """
    return check_scalar(n_samples, "n_samples", Integral, min_val=1)


class TorchEstimator(CallbackSupportMixin, BaseEstimator):
    """What every estimator shares. Subclasses have ``device`` and ``random_state`` parameters."""

    _dtypes = FLOATS  # those of X that are not converted, which would be to the first
    _allows_nan = False  # whether values of X may be missing
    _streams_nan = True  # whether they may be in rows that are read a chunk at a time, too

    def _validate(self, X, *, reset, min_samples=1, allows_nan=False):
        """Check X against scikit-learn's rules; values may be missing in training, and where that was learned.

        Returns
        -------
        X : ndarray of shape (n, d), Table or TensorRows
            Of one of the dtypes. A table where rows should not be held as a whole: large ones that are sparse or on
            disk. Rows of a tensor where scikit-learn's ``array_api_dispatch`` is on, but not in a fit.
        """
        if not reset:
            check_is_fitted(self)
        allows_nan = self._allows_nan and (reset or allows_nan or self._knows_missing())
        settings = {"dtype": self._dtypes, "ensure_all_finite": "allow-nan" if self._allows_nan else True}
        if isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]:
            X = self._validated_tensor(X, settings)
        else:
            # The sums of large finite values may overflow in scikit-learn's search for values that are not finite.
            with config_context(array_api_dispatch=False), np.errstate(over="ignore", invalid="ignore"):
                X = self._validated_array(host_array(X), allows_nan and self._streams_nan, reset, min_samples, settings)
        if self._allows_nan and not allows_nan and has_missing(X):
            raise ValueError(
                f"X contains NaN, but {type(self).__name__} was fitted to rows without missing values; fit it to rows "
                "that have some, or fill them in."
            )
        return X

    def _validated_array(self, X, table_allows_nan, reset, min_samples, settings):
        """X as an array or a table."""
        if is_lazy(X, self._dtypes):
            first = self._flat_images(np.asarray(X[0 : min(X.shape[0], 2)]))
            validate_data(self, first, reset=reset, **settings)
            check_row_count(X.shape[0], min_samples, type(self).__name__)
            return Table(X, result_dtype(X.dtype, self._dtypes), allow_nan=table_allows_nan)
        settings |= {"ensure_min_samples": min_samples, "accept_sparse": "csr", "accept_large_sparse": True}
        X = validate_data(self, self._flat_images(X), reset=reset, **settings)
        if not issparse(X):
            return X
        return X.toarray() if fits_in_memory(X.shape, X.dtype) else Table(X, X.dtype, allow_nan=table_allows_nan)

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
        raise ValueError(
            f"X has images of shape {X.shape[1:]}, but image_shape={shape}; give rows, or images of this shape with "
            "channels first."
        )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan
        tags.input_tags.sparse = True
        return tags

    def _map(self, function, X, *, dtype, device, width, chunk_size=None):
        """Apply a tensor function to chunks of rows; return one array in the dtype of X, a tensor where X is one.

        Parameters
        ----------
        function : callable, Tensor (b, d) -> Tensor (b, ...)
            It returns new memory, because that of the rows is used again.
        X : ndarray, Table or TensorRows of shape (n, d)
        dtype : torch.dtype
        device : torch.device
        width : int
            Numbers that the function holds for each row at once.
        chunk_size : int, optional
            Rows in a chunk.
        """
        n_rows, result = min(len(X), row_chunks(len(X), width, chunk_size)[0].stop), None
        # Fresh memory for each chunk would cost as much as simple functions do.
        buffer = torch.empty((0 if isinstance(X, TensorRows) else n_rows, X.shape[1]), dtype=dtype)
        with torch.inference_mode():
            for rows, found in chunks_of(X, n_rows):
                if isinstance(found, torch.Tensor):
                    x = found.to(device, dtype, copy=True)
                else:
                    x = buffer[: len(found)]
                    np.copyto(x.numpy(), found, casting="same_kind")
                    x = x.to(device)
                result = put_rows(result, rows, function(x), X)
        return result

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
    """``score`` for estimators whose ``score_samples`` is the log-likelihood of each row, or a bound on it."""

    def score(self, X, y=None):
        """Mean of `score_samples` over the rows; higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        score : float
            In nats per row.
        """
        return float(host_array(self.score_samples(X)).mean(dtype=np.float64))


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


def put_rows(result, rows, part, X):
    """Write what a function gives for some rows of X into the array of all results; return this.

    Parameters
    ----------
    result : ndarray, Tensor or None
        None for the first rows, when it is made: a tensor on the device of X where X has one.
    rows : slice
    part : Tensor of shape (b, ...)
    X : ndarray, Table or TensorRows of shape (n, d)
    """
    # In one piece from the start: small results between chunks would keep their memory from being freed.
    if isinstance(X, TensorRows):
        if result is None:
            dtype = tensor_dtype(float_dtype(X.dtype)) if part.is_floating_point() else part.dtype
            with torch.inference_mode(False):  # the user may want to differentiate what is computed from it
                result = torch.empty((len(X), *part.shape[1:]), dtype=dtype, device=X.device)
    else:
        part = to_dtype(part.cpu().numpy(), X.dtype)
        result = np.empty((len(X), *part.shape[1:]), part.dtype) if result is None else result
    result[rows] = part
    return result


def tensor_dtypes(dtypes, device):
    """NumPy's dtypes as those of tensors, without what a device does not have."""
    found = [tensor_dtype(dtype) for dtype in dtypes]
    return [dtype for dtype in found if device.type != "mps" or dtype != torch.float64]


def tensor_dtype(dtype):
    """The dtype of tensors that is this one of NumPy."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def to_dtype(array, dtype):
    """The array in the floating dtype that belongs to data of a dtype; integers stay what they are."""
    return array.astype(float_dtype(dtype), copy=False) if array.dtype.kind == "f" else array


def float_dtype(dtype):
    """The dtype of what is computed from data of a dtype: the same, or float64 for integers."""
    return dtype if np.dtype(dtype).kind == "f" else np.dtype(np.float64)
