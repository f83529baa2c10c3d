"""Checks of arguments: of methods, by the processes of a group, numbers of samples, seeds."""

import functools
import inspect
import types
from difflib import get_close_matches
from numbers import Integral, Real

import torch
from sklearn.utils import check_scalar

from ..data.arrays import seed_from
from ..fitting.distributed import current_group

LEAST_SIMILAR = 0.75  # of names of parameters: epochs is like max_epochs, weights is not like weight_decay


def bind_arguments(estimator, method, args, kwargs):
    """Return the arguments of a method of an estimator, with its defaults, in their order.

    Raises
    ------
    TypeError
        If the method can not be called so.
    """
    signature = inspect.signature(method)
    call = f"{type(estimator).__name__}.{method.__name__}()"
    takes_any = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    for name in kwargs:
        if name not in signature.parameters and not takes_any:
            raise TypeError(
                f"{call} got an unexpected keyword argument {name!r}; {advice(estimator, signature, name)}."
            )
    try:
        bound = signature.bind(estimator, *args, **kwargs)
    except TypeError as error:
        names = ", ".join(list(signature.parameters)[1:])
        raise TypeError(f"{call} was called wrongly: {error}; its arguments are {names}.") from None
    bound.apply_defaults()
    return bound.arguments


def advice(estimator, signature, name):
    """What may be meant by an argument that a method does not have."""
    arguments, params = list(signature.parameters)[1:], list(estimator.get_params(deep=False))
    if name not in params and (similar := get_close_matches(name, arguments, n=1)):
        return f"{similar[0]} is one of its arguments"
    if similar := get_close_matches(name, params, n=1, cutoff=LEAST_SIMILAR):
        return f"{similar[0]} is a parameter of the estimator: {type(estimator).__name__}({similar[0]}=...)"
    return f"its arguments are {', '.join(arguments)}"


def name_methods(cls):
    """Give a public class the methods of private bases under its own name, which Python's errors tell."""
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
            setattr(cls, name, renamed(method, f"{cls.__qualname__}.{name}"))


def is_private(cls):
    """Whether a class is of a private module of this package."""
    package, _, module = cls.__module__.rpartition(".")
    return package == __package__ and module.startswith("_")


def renamed(function, qualified_name):
    """A copy of a function with another name."""
    parts = (function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copied = functools.update_wrapper(types.FunctionType(*parts), function)
    copied.__kwdefaults__, copied.__qualname__ = function.__kwdefaults__, qualified_name
    del copied.__wrapped__
    return copied


def check_row_count(n_rows, n_needed, name):
    """Raise if a table has fewer rows than an estimator needs."""
    if n_rows < n_needed:
        raise ValueError(f"X has {n_rows} sample(s), but {name} needs at least {n_needed}; add rows.")


def check_enough_rows(X, n_components, name="n_components"):
    """Raise if there are fewer rows than components, in all processes that fit together."""
    n_samples = row_count(X)
    if n_samples < n_components:
        raise ValueError(f"{name}={n_components} is larger than n_samples={n_samples}; decrease {name}, or add rows.")


def row_count(X):
    """Rows of all processes that fit together."""
    return sum(current_group().all_gather_int(len(X)))


def check_processes(estimator, X):
    """Raise if the processes that fit together were given different parameters, or other kinds of rows."""
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
        found = [theirs.get(name) for theirs in all_facts]
        if any(other != value for other in found):
            raise ValueError(f"{name} should be the same in all processes, but is {', '.join(map(str, found))}.")


def fit_seed(random_state):
    """`seed_from` for a fit: that of the first of the processes that fit together."""
    return current_group().all_gather_int(seed_from(random_state))[0]


def fit_generator(random_state):
    """`generator_from` for a fit, the same in all processes that fit together."""
    return torch.Generator().manual_seed(fit_seed(random_state))


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


def check_index(name, value, size):
    """The index of a component or cluster, or an error.

    Raises
    ------
    ValueError
        If it is not an integer from 0 to ``size - 1``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value < size:
        raise ValueError(f"{name}={value!r} should be None or an integer from 0 to {size - 1}.")
    return int(value)
