"""scikit-learn's callbacks (1.9 or later): a fit as a task, and each epoch of training as a task in it."""

import functools

from skorch.callbacks import Callback

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn is older

    class CallbackSupportMixin:
        """What estimators have before scikit-learn has callbacks: nothing."""

    def with_callbacks(method):
        """The method itself."""
        return method


def is_watched(estimator, method):
    """Whether callbacks of scikit-learn are to be told of a call of a method."""
    watched = hasattr(estimator, "_skl_callbacks") or hasattr(estimator, "_parent_callback_ctx")
    return watched and method.__name__ == "fit" and isinstance(estimator, CallbackSupportMixin)


def with_sklearn_callbacks(method):
    """Wrap ``fit``: callbacks of scikit-learn are told when it begins and ends."""

    @functools.wraps(method)
    def fit(self, X, y=None, *args, **kwargs):
        context = self._init_callback_context(max_subtasks=None if hasattr(self, "max_epochs") else 0)
        context.rows = X, y
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        method(self, X, y, *args, **kwargs)
        context.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes=lambda: fitted(self))
        return self

    return with_callbacks(fit)


def fitted(estimator):
    """The fitted attributes of an estimator."""
    return {name: value for name, value in vars(estimator).items() if not is_setting(estimator, name)}


def is_setting(estimator, name):
    """Whether an attribute is a parameter, or belongs to the callbacks."""
    return name in estimator.get_params(deep=False) or "callback" in name


class EpochTasks(Callback):
    """Tell callbacks of scikit-learn of every epoch.

    Parameters
    ----------
    estimator : estimator
        That is being fitted.
    attributes : callable, net -> dict
        Gives what an estimator fitted so far would have.
    """

    def __init__(self, estimator, attributes):
        self.estimator, self.attributes = estimator, attributes

    def on_train_begin(self, net, **kwargs):
        """Nothing has asked to stop."""
        self.stops_ = False

    def on_epoch_begin(self, net, **kwargs):
        """Begin a task."""
        context = self.estimator._callback_fit_ctx
        self.X_, self.y_ = context.rows
        self.task_ = context.subcontext(task_name="epoch")
        self.task_.call_on_fit_task_begin(estimator=self.estimator, X=self.X_, y=self.y_)

    def on_epoch_end(self, net, **kwargs):
        """End the task; a callback may ask to stop."""
        self.stops_ = self.task_.call_on_fit_task_end(
            estimator=self.estimator, X=self.X_, y=self.y_, reconstruction_attributes=lambda: self.attributes(net)
        )
