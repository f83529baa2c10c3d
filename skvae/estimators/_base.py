"""The border between arrays and tensors: validation, devices, dtypes, chunks of rows, seeds and pickles."""

import copy
import functools
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils import check_array, check_random_state, check_scalar
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..fitting.lloyd import canonical_order
from ..fitting.rows import LINEAR_BYTES, RESIDUAL_BYTES, row_chunks

FLOATS = (np.float64, np.float32)
DEVICES = ("cuda", "mps", "cpu")
SHORT_SUM = 128  # rows whose products are summed in the dtype of the data


def fit_method(method):
    """Wrap a fitting method: check the parameters first, and undo everything if it does not finish.

    An exception or an interrupt leaves the estimator exactly as it was before the call.
    """

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return _fit_context(prefer_skip_nested_validation=True)(wrapper)


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
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    counted = weight > 0
    if not counted.any():
        raise ValueError("Every sample_weight is zero; at least one row should count.")
    return (X, weight, slice(None)) if counted.all() else (X[counted], weight[counted], counted)


def repeated_rows(X, sample_weight, seed):
    """Rows as often as their weights say, in an order that does not depend on where they stood.

    Whole weights are numbers of rows. Others are rounded up or down at random, so that their sum is kept; if they are
    smaller than one on average, they are scaled to be one.
    """
    X, weight, _ = counted_rows(X, sample_weight)
    order = canonical_order(torch.from_numpy(np.require(X, requirements=["C", "W"]))).numpy()
    if weight is None:
        return X[order]
    ends = np.cumsum(weight[order] * max(1.0, len(weight) / weight.sum()))
    # The share of the last row that is cut off is no whole row: rounding of sums of whole numbers is none.
    counted = np.floor(ends + np.random.default_rng(seed).uniform(1e-9, 1)).astype(np.int64)
    return X[np.repeat(order, np.diff(counted, prepend=0))]


def column_means(X, weight=None):
    """Weighted means of the features (n_features,), summed in float64."""
    if weight is None:
        return X.mean(axis=0, dtype=np.float64)
    total = sum(weight[rows] @ X[rows].astype(np.float64, copy=False) for rows in row_chunks(*X.shape))
    return total / weight.sum()


def centered(X, center, dtype, device):
    """Rows less a float64 centre, as a tensor."""
    x = torch.empty(X.shape, dtype=dtype, device=device)
    for rows in row_chunks(*X.shape, n_bytes=LINEAR_BYTES):
        x[rows] = torch.from_numpy(X[rows] - center)
    return x


def scatter_about(X, center, weight, dtype, device, chunk_size=None):
    """Weighted sum of outer products of rows about a centre (d, d), float64, in one pass with a copy of a chunk alone.

    The products of a chunk are made in the dtype; on a CPU by NumPy, which knows that they are symmetric.
    """
    kind, n_features = np.float32 if dtype == torch.float32 else np.float64, X.shape[1]
    reference = center.astype(kind)
    # Longer sums in float32 would lose digits; adding their float64 total costs little while it fits into a cache.
    n_rows = SHORT_SUM if n_features <= 256 else 4 * SHORT_SUM
    chunks = row_chunks(len(X), n_features, chunk_size or min(n_rows, max(1, RESIDUAL_BYTES // (8 * n_features))))
    buffer = np.empty((min(len(X), chunks[0].stop), n_features), kind)
    total = torch.zeros(n_features, n_features, dtype=torch.float64, device=device)
    for rows in chunks:
        part = np.subtract(X[rows], reference, out=buffer[: len(X[rows])], casting="same_kind")
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


class TorchEstimator(BaseEstimator):
    """What every estimator shares. Subclasses have ``device`` and ``random_state`` parameters."""

    _dtypes = FLOATS  # those of X that are not converted, which would be to the first
    _allows_nan = False  # whether values of X may be missing

    def _validate(self, X, *, reset, min_samples=1):
        """Check X against scikit-learn's rules; return a 2-D array of one of the dtypes."""
        if not reset:
            check_is_fitted(self)
        finite = "allow-nan" if self._allows_nan else True
        settings = {"dtype": self._dtypes, "ensure_all_finite": finite, "ensure_min_samples": min_samples}
        return validate_data(self, X, reset=reset, **settings)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan
        return tags

    def _map(self, function, X, *, dtype, device, width, chunk_size=None):
        """Apply a tensor function to chunks of rows; return one array in the dtype of X.

        Parameters
        ----------
        function : callable, Tensor (b, d) -> Tensor (b, ...)
            It returns new memory, because that of the rows is used again.
        X : ndarray of shape (n, d)
        dtype : torch.dtype
        device : torch.device
        width : int
            Numbers that the function holds for each row at once.
        chunk_size : int, optional
            Rows in a chunk.
        """
        chunks, result = row_chunks(len(X), width, chunk_size), None
        # Fresh memory for each chunk would cost as much as simple functions do.
        buffer = torch.empty((min(len(X), chunks[0].stop), X.shape[1]), dtype=dtype)
        with torch.inference_mode():
            for rows in chunks:
                x = buffer[: len(X[rows])]
                np.copyto(x.numpy(), X[rows], casting="same_kind")
                part = to_dtype(function(x.to(device)).cpu().numpy(), X.dtype)
                # In one piece from the start: small results between chunks would keep their memory from being freed.
                result = np.empty((len(X), *part.shape[1:]), part.dtype) if result is None else result
                result[rows] = part
        return result

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("net_", None)  # holds the optimizer, and only training needs it
        if "module_" in state:
            state["module_"] = copy.deepcopy(state["module_"]).cpu()
        return state


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
        return float(self.score_samples(X).mean(dtype=np.float64))


class LatentMixin(ScoreMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """What transformers into a latent space share; they set ``_n_features_out`` when fitted."""

    def _validate_codes(self, Z):
        """Check codes Z; return a 2-D float array."""
        check_is_fitted(self)
        Z = check_array(Z, dtype=FLOATS, input_name="Z")
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


def to_dtype(array, dtype):
    """The array in the floating dtype that belongs to data of a dtype; integers stay what they are."""
    return array.astype(float_dtype(dtype), copy=False) if array.dtype.kind == "f" else array


def float_dtype(dtype):
    """The dtype of what is computed from data of a dtype: the same, or float64 for integers."""
    return dtype if np.dtype(dtype).kind == "f" else np.dtype(np.float64)
