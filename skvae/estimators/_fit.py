"""Wrappers of fitting methods, and checks that fits share: arguments, transactions, streams, callbacks, processes."""

import functools
import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from sklearn import config_context
from sklearn.base import _fit_context
from sklearn.utils import check_scalar
from skorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset

from ..data.arrays import host_array, seed_from
from ..data.torch_datasets import without_labels
from ..fitting.distributed import current_group, distributed_fit
from ..fitting.training import Interrupted

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn is older

    class CallbackSupportMixin:
        """Empty base class of estimators where scikit-learn has no callbacks."""

    def with_callbacks(method):
        """Return the method itself."""
        return method


MIN_SIMILARITY = 0.75  # of names of parameters: epochs is like max_epochs, weights is not like weight_decay


def fit_method(method):
    """Wrap a fitting method: check the parameters of the estimator first, then call it as `transactional` does."""
    return _fit_context(prefer_skip_nested_validation=True)(transactional(method))


def transactional(method):
    """Wrap a fitting method: tensors become arrays, and a fit that does not finish changes nothing.

    An exception or an interrupt leaves the estimator exactly as it was before the call; or, where training continues
    that of networks which were trained before, as it was after the last whole epoch. Fitted attributes are arrays with
    scikit-learn's ``array_api_dispatch``, too. Callbacks of scikit-learn, if there are any, are notified of a fit. The
    processes of a group fit together, and if one of them fails, all do.
    """
    reported = with_sklearn_callbacks(method)

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        bind_arguments(self, method, args, kwargs)
        before = dict(vars(self))
        args, kwargs = map(host_array, args), {name: host_array(value) for name, value in kwargs.items()}
        has_callbacks = isinstance(self, CallbackSupportMixin) and (
            hasattr(self, "_skl_callbacks") or hasattr(self, "_parent_callback_ctx")
        )
        try:
            with config_context(array_api_dispatch=False), distributed_fit():
                return (reported if has_callbacks else method)(self, *args, **kwargs)
        except Interrupted as interrupted:
            reason = interrupted.__cause__
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        raise reason  # here, where it has no other context

    return wrapper


def bind_arguments(estimator, method, args, kwargs):
    """Return the arguments of a call of a method, with defaults, in the order of its signature.

    Raises
    ------
    TypeError
        If the method cannot be called so.
    """
    signature = inspect.signature(method)
    call = f"{type(estimator).__name__}.{method.__name__}()"
    unexpected = kwargs.keys() - signature.parameters.keys()
    if unexpected and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        name = next(name for name in kwargs if name in unexpected)
        raise TypeError(
            f"{call} got an unexpected keyword argument {name!r}; {argument_advice(estimator, signature, name)}."
        )
    try:
        bound = signature.bind(estimator, *args, **kwargs)
    except TypeError as error:
        names = ", ".join(list(signature.parameters)[1:])
        raise TypeError(f"{call} was called wrongly: {error}; its arguments are {names}.") from None
    bound.apply_defaults()
    return bound.arguments


def argument_advice(estimator, signature, name):
    """Return advice about an argument that a method does not have."""
    arguments, params = list(signature.parameters)[1:], list(estimator.get_params(deep=False))
    if name in ("covariates", "size_factors"):
        return f"VAEEmbedder.fit takes {name}, and its latent codes can be clustered (TorchGMM)"
    is_plural = f"{name}s" in arguments  # of a parameter: one value for each sample
    if (is_plural or name not in params) and (similar := get_close_matches(name, arguments, n=1)):
        return f"{similar[0]} is one of its arguments"
    if similar := get_close_matches(name, params, n=1, cutoff=MIN_SIMILARITY):
        return f"{similar[0]} is a parameter of the estimator: {type(estimator).__name__}({similar[0]}=...)"
    return f"its arguments are {', '.join(arguments)}"


def batch_by_batch(method):
    """Wrap ``partial_fit``: of a `DataLoader` or an iterator, call it with one batch after another.

    Each call is a fit of its own: if one fails, the estimator is as it was after the batches before.
    """

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        X, y, sample_weight = list(bind_arguments(self, method, args, kwargs).values())[1:]
        if isinstance(X, IterableDataset):
            raise TypeError(
                f"X is an IterableDataset ({type(X).__name__}), which gives rows and not batches; give "
                "DataLoader(X, batch_size=...)."
            )
        is_list_of_batches = isinstance(X, list | tuple) and bool(X) and getattr(X[0], "ndim", 0) == 2
        if is_list_of_batches and getattr(self, "image_shape", None) is None:
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
            method(self, without_labels(batch))
        if not n_batches:
            raise ValueError("X is a stream without batches; an iterator can be used once only, make another one.")
        return self

    return wrapper


def with_sklearn_callbacks(method):
    """Wrap ``fit``: call callbacks of scikit-learn at its beginning and its end."""
    if method.__name__ != "fit":
        return method

    @with_callbacks
    @functools.wraps(method)
    def fit(self, X, y=None, *args, **kwargs):
        context = self._init_callback_context(max_subtasks=None if hasattr(self, "max_epochs") else 0)
        context.rows = X, y
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        method(self, X, y, *args, **kwargs)
        context.call_on_fit_task_end(
            estimator=self, X=X, y=y, reconstruction_attributes=lambda: fitted_attributes(self)
        )
        return self

    return fit


def fitted_attributes(estimator):
    """Return the attributes of an estimator that are neither parameters nor belong to callbacks."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in vars(estimator).items() if name not in params and "callback" not in name}


class EpochTasks(Callback):
    """Callback of skorch that reports every epoch to callbacks of scikit-learn.

    Parameters
    ----------
    estimator : estimator
        Estimator that is fitted.
    attributes : callable, net -> dict
        Fitted attributes that the estimator would have if the fit ended now.
    """

    def __init__(self, estimator, attributes):
        self.estimator, self.attributes = estimator, attributes

    def on_train_begin(self, net, **kwargs):
        """Start without a request to stop."""
        self.stops_ = False

    def on_epoch_begin(self, net, **kwargs):
        """Begin the task of an epoch."""
        context = self.estimator._callback_fit_ctx
        self.X_, self.y_ = context.rows
        self.task_ = context.subcontext(task_name="epoch")
        self.task_.call_on_fit_task_begin(estimator=self.estimator, X=self.X_, y=self.y_)

    def on_epoch_end(self, net, **kwargs):
        """End the task; a callback may ask to stop."""
        self.stops_ = self.task_.call_on_fit_task_end(
            estimator=self.estimator, X=self.X_, y=self.y_, reconstruction_attributes=lambda: self.attributes(net)
        )


def check_enough_rows(X, n_components, name="n_components"):
    """Raise if all processes that fit together have fewer samples than components."""
    n_samples = row_count(X)
    if n_samples < n_components:
        raise ValueError(f"{name}={n_components} is larger than n_samples={n_samples}; decrease {name}, or add rows.")


def row_count(X):
    """Return the number of samples of all processes that fit together."""
    return sum(current_group().all_gather_int(len(X)))


def check_processes(estimator, X):
    """Raise if the processes that fit together have different parameters, or numbers or dtypes of features."""
    group = current_group()
    if group.size == 1:
        return
    local = {"device", "verbose", "verbose_interval", "chunk_size", "checkpoint", "callbacks"}
    facts = {"estimator": type(estimator).__name__, "n_features": X.shape[1], "dtype": str(X.dtype)}
    for name, value in estimator.get_params(deep=False).items():
        parts = value if isinstance(value, list | tuple) else [value]
        if name not in local and all(isinstance(part, str | Real | None) for part in parts):
            facts[name] = repr(value)
    all_facts = group.all_gather_object(facts)
    for name, value in facts.items():
        values = [theirs.get(name) for theirs in all_facts]
        if any(other != value for other in values):
            raise ValueError(f"{name} should be the same in all processes, but is {', '.join(map(str, values))}.")


def fit_seed(random_state):
    """Return the `seed_from` of the first of the processes that fit together."""
    return current_group().all_gather_int(seed_from(random_state))[0]


def fit_generator(random_state):
    """Return a generator that is the same in all processes that fit together: see `fit_seed`."""
    return torch.Generator().manual_seed(fit_seed(random_state))


def check_sample_size(n_samples):
    """Return the number of samples to draw, if it is valid.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is less than one.
    """
    return check_scalar(n_samples, "n_samples", Integral, min_val=1)


def check_index(name, value, size):
    """Return the index of a component or cluster, if it is valid.

    Raises
    ------
    ValueError
        If it is not an integer from 0 to ``size - 1``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value < size:
        raise ValueError(f"{name}={value!r} should be None or an integer from 0 to {size - 1}.")
    return int(value)
