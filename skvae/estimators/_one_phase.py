"""Embedders that are trained in one phase, with early stopping."""

from abc import abstractmethod
from numbers import Real
from typing import ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions

from ..data.arrays import named_in_errors
from ..data.samples import select_samples
from ..data.weights import resample_by_weight
from ..fitting.nets import LR_SCHEDULES
from ._checks import check_enough_rows, row_count
from ._embedding import NOT_NEGATIVE, POSITIVE_INT, Embedder
from ._fit import fit_method
from ._trainings import choose_epochs


class OnePhaseEmbedder(Embedder):
    """An embedder that is trained in one phase. Subclasses give the prior and its settings."""

    _parameter_constraints: ClassVar[dict] = {
        **Embedder._parameter_constraints,
        "n_components": [POSITIVE_INT],
        "lr_schedule": [StrOptions(set(LR_SCHEDULES)), callable, None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0.0, 1.0, closed="neither")],
        "n_iter_no_change": [POSITIVE_INT],
        "tol": [NOT_NEGATIVE],
    }

    @fit_method
    def fit(self, X, y=None, sample_weight=None, *, X_val=None):
        """Train the networks on X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row is seen in an epoch: whole numbers are repeated rows, others are rounded at random to
            whole numbers that have the same sum. Smaller weights than one on average are scaled up first.
        X_val : array-like of shape (n_validation_samples, n_features), default=None
            Rows whose loss is recorded for each epoch, and decides with ``early_stopping=True``. Without them, early
            stopping holds out ``validation_fraction`` of X.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table of at least two rows and ``n_components`` rows, if it does not fit the
            likelihood or the image shape, or if the training diverges.

        Notes
        -----
        A fit that is interrupted, by Ctrl-C or an exception of a callback, leaves the estimator as it was. If it goes
        on from the last fit (``warm_start``), it leaves it as it would be after its last whole epoch; but with a
        ``checkpoint`` as it was, because the file goes on from there.
        """
        X = self._validate(X, reset=True, min_samples=2)
        if X_val is not None:
            with named_in_errors("X_val"):
                X_val = self._validate(X_val, reset=False, allows_nan=True)
        seed = self._first_seed = self._draw_seed()
        given, X = X, resample_by_weight(X, sample_weight, seed)
        self._check_enough_rows(X)
        going_on = self.warm_start and hasattr(self, "module_")
        if X_val is None and self.early_stopping:
            X, X_val = self._hold_out(X, seed)
        epochs = choose_epochs(self.max_epochs, row_count(X), self.batch_size)
        self._train(X, X_val, seed, max_epochs=epochs, going_on=going_on, given=given)
        self._warn_if_collapsed()
        return self

    def _fit_networks(self, model, task):
        return task.train(model, self._plan(task.max_epochs, self._view_of(task)), self.n_components)

    def _check_enough_rows(self, X):
        check_enough_rows(X, self.n_components)

    def _stopping(self):
        """The part of the plan that embedders of one phase have beside the general one."""
        return {
            "lr": self.lr,
            "lr_schedule": self.lr_schedule,
            "patience": self.n_iter_no_change if self.early_stopping else None,
            "tol": self.tol,
            "validation_advice": "validation samples in fit (early_stopping=True, or X_val=...)",
        }

    @abstractmethod
    def _plan(self, max_epochs, view_of):
        """How to train."""

    def _hold_out(self, X, seed):
        """Training and validation rows, drawn at random."""
        n_held_out = max(1, round(self.validation_fraction * len(X)))
        if len(X) - n_held_out < 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {len(X)} rows leaves fewer than two for training; "
                "decrease it, or give more rows."
            )
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed)).numpy()
        return select_samples(X, order[n_held_out:]), select_samples(X, order[:n_held_out])
