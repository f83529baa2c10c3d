"""Base classes of autoencoders as estimators: parameters, training, latent codes and their inverse."""

import copy
import os
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..data.arrays import FLOATS, compute_dtype, host_array, named_in_errors, resolve_device
from ..data.chunks import map_samples
from ..data.columns import Columns
from ..data.conditions import ConditionCodec, Given, make_condition_codec
from ..data.frames import library_of
from ..data.inputs import as_matrix
from ..data.samples import ConditionedSamples, features_of
from ..fitting.augment import AUGMENTATIONS
from ..fitting.net import COMPILE_MODES, LR_SCHEDULES, OPTIMIZERS
from ..fitting.warnings import warn
from ..models import ACTIVATIONS, LIKELIHOODS, MaskedLikelihood
from ..models.images import check_channels_first
from ..models.networks import NETWORKS
from ..models.serialize import converted_copy
from ._base import LatentMixin, TorchEstimator
from ._callbacks import NamedCallbacksMixin
from ._column_likelihoods import list_columns
from ._embedder_training import (
    column_names,
    condition_codec,
    listed_columns,
    prepare_batch,
    prepare_samples,
    train,
    training_plan,
    user_callbacks,
)
from ._fit import batch_by_batch, check_sample_size, fit_method
from ._likelihood_choice import (
    check_support,
    check_totals,
    column_groups,
    has_size_factors,
    likelihood_name,
    outside_counter,
    warn_of_outside,
)
from ._training_length import hold_out, overfitting, training_length
from .export import Encoder

POSITIVE_INT = Interval(Integral, 1, None, closed="left")
NOT_NEGATIVE = Interval(Real, 0.0, None, closed="left")


@dataclass(eq=False, repr=False, kw_only=True)
class BaseEmbedder(NamedCallbacksMixin, LatentMixin, TorchEstimator):
    """An encoder, a decoder and a likelihood, trained by gradient descent.

    Subclasses implement `_make_prior`, `_fit_networks` and `_set_latent_statistics`. Fields are the parameters that all
    have; a subclass may have another default.
    """

    _fitted_schema: ClassVar[dict] = {
        **{"module_": dict, "likelihood_": str, "history_": list, "loss_curve_": list, "n_iter_": int},
        **dict.fromkeys(("_n_features_out", "_n_trained_features", "_widest"), int),
        **{
            "_frame": list,
            "_conditions": list,
            "_listed_features": list,
            "_n_steps": int,
            "_n_batches": int,
            "_first_seed": int,
            "_fit_dtype": np.dtype,
        },
    }

    architecture: str = "auto"
    hidden_layer_sizes: Any = "auto"
    head_layer_sizes: Any = ()
    activation: str = "relu"
    batch_norm: bool = False
    layer_norm: bool = False
    dropout: float = 0.0
    image_shape: tuple | None = None
    channels: tuple | str = (32, 64)
    encoder: nn.Module | Callable | None = None
    decoder: nn.Module | Callable | None = None
    likelihood: Any = "auto"
    size_factor: str | None = None
    max_epochs: int | str = "auto"
    batch_size: int = 128
    lr: float = 1e-3
    optimizer: str | type = "adam"
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    callbacks: list | None = None
    augment: str | Callable | None = None
    warm_start: bool = False
    checkpoint: str | os.PathLike | None = None
    precision: str = "float32"
    compile: bool | str = False
    device: str | torch.device = "auto"
    random_state: Any = None
    verbose: int = 0

    _pretrained = None  # a fitted estimator whose networks are copied

    _dtypes = (*FLOATS, np.uint8)
    _allows_nan = True
    _latent_dim_parameter = "n_components"
    _min_samples = "n_components"  # the parameter whose value is the smallest number of samples of a fit
    _image_architecture = "conv"  # of "auto", if there is an image_shape
    _auto_sizes: ClassVar[dict] = {"mlp": (256, 128), "conv": (), "hybrid": (256, 128)}  # of hidden layers
    _parameter_constraints: ClassVar[dict] = {
        "architecture": [StrOptions({"auto", *NETWORKS})],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "head_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "batch_norm": ["boolean"],
        "layer_norm": ["boolean"],
        "dropout": [Interval(Real, 0.0, 1.0, closed="left")],
        "image_shape": ["array-like", None],
        "channels": ["array-like"],
        "encoder": [nn.Module, callable, None],
        "decoder": [nn.Module, callable, None],
        "likelihood": [StrOptions({"auto", *LIKELIHOODS}), nn.Module, HasMethods("from_data"), list, tuple],
        "size_factor": [StrOptions({"total"}), None],
        "max_epochs": [POSITIVE_INT, StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0.0, None, closed="neither")],
        "optimizer": [StrOptions(set(OPTIMIZERS)), type],
        "weight_decay": [NOT_NEGATIVE],
        "max_grad_norm": [Interval(Real, 0.0, None, closed="neither"), None],
        "callbacks": [list, tuple, None],
        "augment": [StrOptions(set(AUGMENTATIONS)), callable, None],
        "warm_start": ["boolean"],
        "checkpoint": [str, os.PathLike, None],
        "precision": [StrOptions({"float32", "bf16"})],
        "compile": ["boolean", StrOptions(set(COMPILE_MODES))],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _export_module(self, dtype):
        self._check_exportable()
        return Encoder(self.module_, dtype)

    def _check_exportable(self):
        """Raise if the encoder needs more than numbers of features."""
        if hasattr(self, "_frame"):
            raise TypeError(
                f"to_onnx writes graphs of numbers, but {type(self).__name__} was fitted to a data frame with "
                "categories; encode them before (OrdinalEncoder), and give likelihood=[('codes', 'categorical', "
                "columns)]."
            )
        codec = condition_codec(self)
        if codec is not None and codec.n_sizes:
            raise TypeError("to_onnx writes graphs of features alone, but the model was fitted with size_factors.")

    def _shifts_dispersions(self):
        """Return whether dispersions of counts depend on covariates."""
        return False

    @abstractmethod
    def _make_prior(self):
        """Return the initial prior over latent codes."""

    @abstractmethod
    def _fit_networks(self, model, data, max_epochs):
        """Train a model in place (its parts may be replaced), and return the net that trained it.

        Parameters
        ----------
        model : LatentModel
        data : TrainingData
        max_epochs : int
        """

    @abstractmethod
    def _set_latent_statistics(self, q, X):
        """Set the fitted attributes that depend on the latent codes; return a warning about them, or None.

        Parameters
        ----------
        q : Posterior
            Of (a sample of) the training samples of all processes.
        X : ndarray or lazy samples of shape (n_samples, n_features)
            Samples as `fit` got them.
        """

    @batch_by_batch
    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Train for one epoch on X, from the current networks.

        The first call fixes the likelihood and the units of the features, so its samples should be typical. Networks
        fit the last samples best; ``module_`` is therefore a mean over calls (Shamir and Zhang 2013), in which the last
        one counts less the more there were, a quarter after a hundred. The next call continues from the networks in
        ``net_``, or where these were not saved, as in a pickle, from the mean.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples. A `torch.utils.data.DataLoader` or an iterator of batches is one epoch for each.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        self : object
            The estimator; ``history_`` has one more epoch.

        Raises
        ------
        ValueError
            As for `fit`.

        References
        ----------
        O. Shamir and T. Zhang, Stochastic gradient descent for non-smooth optimization: convergence results and optimal
        averaging schemes, 2013.
        """
        if hasattr(self, "_conditions"):
            raise ValueError("partial_fit has no covariates or size_factors, with which the model was fitted; use fit.")
        X = self._validate(X, reset=not hasattr(self, "module_"), min_samples=2)
        train(self, prepare_batch(self, X, sample_weight), max_epochs=1)
        return self

    def transform(self, X):
        """Encode samples as the means of q(z | x); it is deterministic.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latent codes.
        """
        return self._encode(posterior_mean, self._validate(X, reset=False))

    def inverse_transform(self, Z):
        """Decode latent codes into expected data.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Latent codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected samples, in the units of the training data; a data frame if that was one with categories.
        """
        return self._in_frame(self._decode(Z))

    def reconstruct(self, X):
        """Encode samples and decode their latent codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features)
            ``inverse_transform(transform(X))``; a data frame if the training data was one with categories.
        """
        frame = X.X if isinstance(X, Given) else X
        index, X = frame.index if library_of(frame) == "pandas" else None, self._validate(X, reset=False)
        return self._in_frame(self._encode(reconstruction, X), index=index)

    def interpolate(self, X_from, X_to, n_steps=10):
        """Decode latent codes at equal steps between those of pairs of samples.

        Parameters
        ----------
        X_from, X_to : array-like of shape (n_samples, n_features)
            The two ends.
        n_steps : int, default=10
            Number of samples on each path, the reconstructions of both ends among them.

        Returns
        -------
        X : ndarray of shape (n_samples, n_steps, n_features)
            Expected samples. If the training data was a data frame with categories, a frame of ``n_samples * n_steps``
            rows, one path after the other.

        Raises
        ------
        ValueError
            If the numbers of samples differ, or ``n_steps`` is less than two.
        """
        return self._interpolate(X_from, X_to, n_steps)

    def _interpolate(self, X_from, X_to, n_steps, covariates=None):
        """Decode latent codes between those of samples, at a level of covariates."""
        ends = []
        for name, X in (("X_from", X_from), ("X_to", X_to)):
            with named_in_errors(name):
                ends.append(self._validate(host_array(X), reset=False))
        if len(ends[0]) != len(ends[1]):
            raise ValueError(
                f"X_from has {len(ends[0])} rows and X_to {len(ends[1])}; there should be one end for each beginning."
            )
        if check_sample_size(n_steps) < 2:
            raise ValueError(f"n_steps={n_steps} leaves no way to go; use 2 or more.")
        start, end = self._encode(posterior_mean, ends[0]), self._encode(posterior_mean, ends[1])
        shares = np.linspace(0, 1, n_steps, dtype=start.dtype)[:, None]
        codes = start[:, None] * (1 - shares) + end[:, None] * shares
        decoded = self._decode(codes.reshape(-1, codes.shape[2]), covariates)
        if hasattr(self, "_frame"):
            return self._in_frame(decoded)
        return decoded.reshape(len(start), n_steps, -1)

    def _validate(self, X, *, reset, **settings):
        given = X if isinstance(X, Given) else Given(X, has_decoder=False)
        X = given.X
        if reset:
            check_channels_first(self.image_shape)
            X = X if library_of(X) is not None else as_matrix(X)
            self._list_columns(X)
        X = super()._validate(self._as_numbers(X), reset=reset, **settings)
        is_new = reset or settings.get("allows_nan", False) or not hasattr(self, "module_")
        if not is_new and isinstance(self.module_.likelihood, MaskedLikelihood):
            self._check_totals(X)
        return self._with_conditions(X, given, reset)

    def _check_conditions(self):
        """Raise if the fitted attributes about covariates and size factors contradict the model."""
        codec, module = condition_codec(self) or ConditionCodec([], None), self.module_
        codec.check()
        n_levels = [] if module.covariates is None else module.covariates.n_levels
        n_sizes = int(getattr(module.likelihood, "size_factors", None) == "given")
        if (codec.n_levels, codec.n_sizes) != (n_levels, n_sizes):
            raise ValueError("Covariates and size factors are not those of the model.")

    def _with_conditions(self, X, given, reset):
        """Return validated samples, followed by columns of what is given beside them."""
        if reset and not (self.warm_start and hasattr(self, "module_")):
            vars(self).pop("_conditions", None)
            if given.covariates is not None or given.size_factors is not None:
                self._conditions = make_condition_codec(given, len(X)).to_lists()
        codec = condition_codec(self) or ConditionCodec([], None)
        conditions = codec.encode(given, len(X))
        return ConditionedSamples(X, conditions) if conditions.shape[1] else X

    def _check_totals(self, X):
        """Raise if counts with size factors are missing."""
        if has_size_factors(self.module_.likelihood):
            check_totals(self.module_.likelihood, Columns(X))

    def _list_columns(self, X):
        """Set what is known of the columns of training data, unless training continues."""
        if self.warm_start and hasattr(self, "module_"):
            return
        pretrained = self._pretrained
        codec, features = None, None
        if pretrained is None:
            codec, features = list_columns(self.likelihood, X, self.image_shape)
            codec = None if codec is None else codec.to_lists()
        for name, value in (("_frame", getattr(pretrained, "_frame", codec)), ("_listed_features", features)):
            vars(self).pop(name, None)
            if value is not None:
                setattr(self, name, value)

    def _as_numbers(self, X):
        """Return a data frame as numbers, if that of the training data had other values; warn of unknown categories."""
        codec = listed_columns(self).codec
        if codec is None or library_of(X) is None:
            return X
        encoded, unknown = codec.encode(X)
        if unknown:
            warn(
                f"X has categories that are not in the training data, {unknown}; they are encoded as none of the known "
                "ones. Fit with samples of them, or set them missing."
            )
        return encoded

    def _decode(self, Z, covariates=None):
        """Return expected samples of latent codes as numbers."""
        Z = self._validate_codes(Z)
        columns = self._encode_covariates(covariates, len(Z))
        return self._map_model(decode, ConditionedSamples(Z, columns) if columns.shape[1] else Z)

    def _encode_covariates(self, covariates, n_samples):
        """Return columns of covariates; size factors do not matter to expected samples."""
        codec = (condition_codec(self) or ConditionCodec([], None))._replace(mean_size=None)
        return codec.encode(Given(None, covariates), n_samples)

    def _in_frame(self, X, whole=False, index=None):
        """Return samples (n, d) as a data frame, if the training data was one that did not hold numbers alone."""
        codec = listed_columns(self).codec
        return X if codec is None else codec.decode(host_array(X), whole, index)

    def _filled(self, X, filled):
        """Return samples with their missing values replaced: a data frame if they are one that became numbers."""
        codec, X = listed_columns(self).codec, X.X if isinstance(X, Given) else X
        if codec is None or library_of(X) is None:
            return self._in_frame(filled, whole=True)
        return codec.fill(X, host_array(filled))

    @property
    def column_likelihoods_(self):
        """Names of the likelihoods of the features, by the name or index of the feature."""
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", range(self.n_features_in_))
        groups = column_groups(self.module_.likelihood, self.n_features_in_)
        by_index = {index: likelihood_name(each) for each, features in groups for index in features}
        return {name: by_index[index] for index, name in enumerate(names)}

    def _handles_missing(self):
        return not hasattr(self, "module_") or isinstance(self.module_.likelihood, MaskedLikelihood)

    def _within_support(self, X):
        """Return X after `check_support` of the fitted likelihood."""
        features = features_of(X)
        self._check_totals(features)
        return check_support(self.module_.likelihood, X, Columns(features, names=column_names(self)))

    def _encode(self, function, X):
        """Apply `_map_model`, and warn of samples with values that the likelihood cannot produce."""
        codec = listed_columns(self).codec
        unknown = None if codec is None else np.where(codec.n_categories > 0, codec.n_categories, np.nan)  # warned of
        count, counts = outside_counter(self.module_.likelihood, X.dtype, unknown), []
        if count is None:
            return self._map_model(function, X)

        def count_and_map(model, x):
            outside = count(x[:, : self.n_features_in_])  # before anything could change the rows
            mapped = function(model, x)
            counts.append(outside)  # only now: a chunk too large for the device comes again in halves
            return mapped

        mapped = self._map_model(count_and_map, X)
        warn_of_outside(self.module_.likelihood, counts, len(X))
        return mapped

    def _map_model(self, function, X):
        """Apply a function of the model and rows to chunks, in the precision of the rows (on mps, on the CPU)."""
        check_is_fitted(self)
        device = resolve_device(self.device)
        device = torch.device("cpu") if device.type == "mps" else device
        model = self._model_for(compute_dtype(X.dtype, device), device)
        # Units need the full precision, whatever the networks compute in: offsets may be large.
        dtype = compute_dtype(np.float64, device)
        return map_samples(lambda x: function(model, x), X, dtype=dtype, device=device, width=2 * self._widest)

    def _model_for(self, dtype, device):
        """Return a copy of the model on a device, with networks and prior of a dtype; units keep theirs."""

        def of_dtype(tensor):
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        model = copy.copy(self.module_)
        parts = dict.fromkeys(("encoder", "decoder", "prior"), of_dtype)
        vars(model)["_modules"] = {
            name: None if part is None else converted_copy(part, parts.get(name, lambda tensor: tensor.to(device)))
            for name, part in self.module_._modules.items()
        }
        return model


@dataclass(eq=False, repr=False, kw_only=True)
class SinglePhaseEmbedder(BaseEmbedder):
    """An autoencoder that is trained in a single phase, with early stopping."""

    _parameter_constraints: ClassVar[dict] = {
        **BaseEmbedder._parameter_constraints,
        "n_components": [POSITIVE_INT],
        "lr_schedule": [StrOptions(set(LR_SCHEDULES)), callable, None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0.0, 1.0, closed="neither")],
        "n_iter_no_change": [POSITIVE_INT],
        "tol": [NOT_NEGATIVE],
    }

    n_components: int = field(default=10, kw_only=False)
    lr_schedule: str | Callable | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10
    tol: float = 1e-4

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
            How often each sample is seen in an epoch: whole numbers are repeated samples, others are rounded at random
            to whole numbers that have the same sum. Weights with a mean below one are scaled up first.
        X_val : array-like of shape (n_validation_samples, n_features), default=None
            Samples whose loss is recorded for each epoch, and decides with ``early_stopping=True``. Without them, early
            stopping holds out ``validation_fraction`` of X.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a table of finite numbers (or, in a data frame, of numbers and categories), if it has fewer than
            two samples or ``n_components`` samples, if it is outside the support of the likelihood, if it has another
            image shape, or if the training diverges.

        Notes
        -----
        A fit that is interrupted, by Ctrl-C or an exception of a callback, leaves the estimator as it was. If it
        continues from the last fit (``warm_start``), it leaves it as it would be after its last whole epoch; but with a
        ``checkpoint`` as it was, because the next fit resumes from the file.
        """
        return self._fit(X, sample_weight, X_val)

    def _fit(self, X, sample_weight, X_val):
        """Train the networks on samples, or on what is `Given`."""
        X = self._validate(X, reset=True, min_samples=2)
        if X_val is not None:
            with named_in_errors("X_val"):
                X_val = self._validate(X_val, reset=False, allows_nan=True)
        samples = prepare_samples(self, X, sample_weight, X_val)
        if self.early_stopping and X_val is None:
            samples = hold_out(samples, self.validation_fraction)
        problem = train(self, samples, training_length(self, samples))
        if problem is None and samples.X_val is not None and not self.early_stopping:
            problem = overfitting(self)
        if problem:
            warn(problem, ConvergenceWarning)
        return self

    def _plan(self, max_epochs, **settings):
        """Return the plan of the training, with early stopping."""
        return training_plan(
            self,
            max_epochs,
            lr=self.lr,
            lr_schedule=self.lr_schedule,
            patience=self.n_iter_no_change if self.early_stopping else None,
            tol=self.tol,
            validation_advice="validation samples in fit (early_stopping=True, or X_val=...)",
            **{"callbacks": user_callbacks(self), **settings},
        )


def posterior_mean(model, x):
    """Return the latent codes of rows: the means of their posteriors."""
    return model.posterior(model.standardize(x)).mean


def reconstruction(model, x):
    """Return the expected rows at the latent codes of rows."""
    return model.decode(posterior_mean(model, x), model.covariates_of(x))


def decode(model, z):
    """Return the expected rows of latent codes, which columns of covariates may follow."""
    n_components = z.shape[1] - (0 if model.covariates is None else len(model.covariates.n_levels))
    z = z.to(model.dtype)
    return model.decode(z[:, :n_components], z[:, n_components:])
