"""Arguments of methods: errors name the public class, and the parameter that may be meant."""

import functools
import inspect
import types
from difflib import get_close_matches

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
