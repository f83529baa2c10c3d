"""skorch's callbacks as a parameter of estimators: their names, their own parameters, and copies for a training."""

import copy
import inspect
from collections import Counter

from skorch.callbacks import Callback

PREFIX = "callbacks__"
NAMES_OF_SKORCH = ("epoch_timer", "train_loss", "valid_loss", "print_log")  # callbacks that every net has


class NamedCallbacksMixin:
    """Parameters of the callbacks in ``callbacks``, as skorch's nets have them: ``callbacks__<name>__<parameter>``."""

    def get_params(self, deep=True):
        """Get parameters for this estimator.

        Parameters
        ----------
        deep : bool, default=True
            If True, return the parameters of contained estimators and of ``callbacks``, too: ``callbacks__<name>`` and
            ``callbacks__<name>__<parameter>``. A callback without a name has that of its class.

        Returns
        -------
        params : dict
            Parameter names mapped to their values.
        """
        params = super().get_params(deep=deep)
        if deep:
            for name, callback in name_callbacks(self.callbacks):
                params[PREFIX + name] = callback
                params.update({f"{PREFIX}{name}__{key}": value for key, value in params_of(callback).items()})
        return params

    def set_params(self, **params):
        """Set the parameters of this estimator.

        Parameters
        ----------
        **params : dict
            Estimator parameters. ``callbacks__<name>`` replaces a callback, or turns it off if it is None, and
            ``callbacks__<name>__<parameter>`` sets one of its parameters.

        Returns
        -------
        self : estimator instance
            Estimator instance.

        Raises
        ------
        ValueError
            If there is no such parameter or no such callback.
        """
        own = {name: params.pop(name) for name in list(params) if name.startswith(PREFIX)}
        super().set_params(**params)
        if own:
            self.callbacks = set_callback_params(self, own)
        return self


def name_callbacks(callbacks):
    """Return (name, callback) pairs with skorch's names; items that are not callbacks are skipped.

    Callbacks without a name have that of their class, with ``_1``, ``_2`` ... where there are several.
    """
    pairs = []
    for item in callbacks if isinstance(callbacks, list | tuple) else ():
        if is_named(item):
            pairs.append((*item, True))
        elif is_callback(item):
            pairs.append((item.__name__ if isinstance(item, type) else type(item).__name__, item, False))
    counts, seen, named = Counter(name for name, _, _ in pairs), Counter(), []
    for name, callback, by_user in pairs:
        seen[name] += 1
        named.append((name if by_user or counts[name] == 1 else f"{name}_{seen[name]}", callback))
    return named


def is_named(item):
    """Return whether an item of ``callbacks`` is a pair of a name and a callback, or None where it is turned off."""
    pair = isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str)
    return pair and (item[1] is None or is_callback(item[1]))


def is_callback(item):
    """Return whether an item of ``callbacks`` is a callback or a class of callbacks."""
    return isinstance(item, Callback) or (isinstance(item, type) and issubclass(item, Callback))


def params_of(callback):
    """Return the parameters of a callback, or the defaults of a class of callbacks."""
    if isinstance(callback, Callback):
        return callback.get_params(deep=True)
    params = inspect.signature(callback).parameters.values() if is_callback(callback) else ()
    return {param.name: param.default for param in params if param.default is not param.empty}


def set_callback_params(estimator, params):
    """Set ``callbacks__...`` parameters; return the list of callbacks, a new one if a callback was replaced.

    Callbacks are replaced first, and then their parameters are set, those of a class by making an instance.
    """
    named, settings = dict(check_callbacks(estimator.callbacks)), {}
    before = dict(named)
    for key, value in params.items():
        name, _, parameter = key.removeprefix(PREFIX).partition("__")
        if name not in named:
            raise ValueError(
                f"Invalid parameter {key!r} for estimator {estimator}. Its callbacks are named: {list(named)!r}."
            )
        if parameter:
            settings.setdefault(name, {})[parameter] = value
        else:
            named[name] = value
    for name, values in settings.items():
        if isinstance(named[name], Callback):
            named[name].set_params(**values)
        elif is_callback(named[name]):
            named[name] = instance_of(named[name], values)
        else:
            raise ValueError(
                f"Invalid parameter {PREFIX + name + '__' + next(iter(values))!r} for estimator {estimator}. The "
                f"callback {name!r} is {named[name]!r}; set {PREFIX + name} to a callback first."
            )
    unchanged = all(named[name] is callback for name, callback in before.items())
    return estimator.callbacks if unchanged else list(named.items())


def instance_of(cls, params):
    """Return an instance of a class of callbacks, with these parameters.

    Raises
    ------
    ValueError
        If the class has no such parameters.
    """
    try:
        inspect.signature(cls).bind_partial(**params)
    except TypeError as error:
        valid = list(inspect.signature(cls).parameters)
        raise ValueError(
            f"Invalid parameters {list(params)} for {cls.__name__}. Valid parameters are: {valid!r}."
        ) from error
    return cls(**params)


def check_callbacks(callbacks):
    """Return (name, callback) pairs of all callbacks.

    Raises
    ------
    TypeError
        If one is not a callback of skorch.
    ValueError
        If names are empty, not unique, those of skorch's own callbacks, or have ``__`` in them.
    """
    for item in callbacks or ():
        if not (is_named(item) or is_callback(item)):
            raise TypeError(
                f"callbacks should be instances of skorch.callbacks.Callback, but one is {item!r}; give instances, "
                "classes, or pairs of a name and one of these, in a list."
            )
    named = name_callbacks(callbacks)
    counts = Counter(name for name, _ in named)
    for name, count in counts.items():
        if count > 1:
            raise ValueError(f"{count} callbacks have the name {name!r}; give each of them a name of its own.")
        if not name or "__" in name or name in NAMES_OF_SKORCH:
            raise ValueError(
                f"A callback has the name {name!r}, but a name should not be empty, have __ in it, or be one of "
                f"{NAMES_OF_SKORCH}, which skorch uses; give it another one."
            )
    return named


def training_callbacks(callbacks):
    """Return named copies of callbacks for a training, without those that are turned off."""
    return tuple(
        (name, copy.deepcopy(callback)) for name, callback in check_callbacks(callbacks) if callback is not None
    )
