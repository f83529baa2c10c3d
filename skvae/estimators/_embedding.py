"""What autoencoders share as estimators: parameters, training, codes and their inverse."""

import copy
import os
from abc import abstractmethod
from contextlib import nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..data.arrays import FLOATS, compute_dtype, generator_from, host_array, named_in_errors, resolve_device
from ..data.columns import Columns
from ..data.weights import repeated_rows
from ..fitting.augment import AUGMENTATIONS, resolve_augment
from ..fitting.batches import some_rows
from ..fitting.devices import own_randomness
from ..fitting.distributed import current_group
from ..fitting.epochs import Interrupted
from ..fitting.nets import COMPILE_MODES, OPTIMIZERS
from ..fitting.parallel import count_batches
from ..fitting.snapshots import checkpoint_of, read_checkpoint
from ..fitting.training import averaged, posterior_of
from ..fitting.warnings import warn
from ..models import ACTIVATIONS, LIKELIHOODS, LatentModel, MaskedLikelihood, Support
from ..models.images import check_channels_first, check_image_shape
from ..models.networks import NETWORKS, row_width
from ..models.priors import Posterior
from ._base import LatentMixin, TorchEstimator, batch_by_batch, fit_method
from ._callbacks import NamedCallbacksMixin, training_callbacks
from ._checks import check_processes, check_sample_size, fit_seed, row_count
from ._likelihood_choice import (
    build_likelihood,
    check_support,
    choose_likelihood,
    counter_of_outside,
    likelihood_name,
    stored_rows,
    warn_of_outside,
)
from ._networks import built_in_networks, make_network
from ._tasks import EpochTasks
from ._trainings import (
    ROWS_FOR_DIAGNOSTICS,
    Task,
    check_precision,
    exact_buffers,
    fingerprint,
    history_of,
    is_missing_on_mps,
    to_device,
    with_exact_buffers,
)
from .export import Encoder

POSITIVE_INT = Interval(Integral, 1, None, closed="left")
NOT_NEGATIVE = Interval(Real, 0.0, None, closed="left")


class Embedder(NamedCallbacksMixin, LatentMixin, TorchEstimator):
    """An encoder, a decoder and a likelihood, trained by gradient steps.

    Subclasses give the prior and the size of a code, and train the networks.
    """

    _dtypes = (*FLOATS, np.uint8)
    _allows_nan = True
    _size_parameter = "n_components"
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
        "likelihood": [StrOptions({"auto", *LIKELIHOODS}), nn.Module, HasMethods("from_data")],
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
    _fitted_schema: ClassVar[dict] = {
        **{"module_": dict, "likelihood_": str, "history_": list, "loss_curve_": list, "n_iter_": int},
        **dict.fromkeys(("_n_features_out", "_n_trained_features", "_widest"), int),
        **{"_n_steps": int, "_n_batches": int, "_first_seed": int, "_fit_dtype": np.dtype},
    }

    def _export_module(self, dtype):
        return Encoder(self.module_, dtype)

    @batch_by_batch
    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Train for one pass over the rows of X, from where the networks are.

        The first call fixes the likelihood and the units of the features, so its rows should be typical. Networks know
        the last rows best; ``module_`` is therefore a mean over calls (Shamir and Zhang 2013), in which the last one
        counts less the more there were, a quarter after a hundred. The next call goes on from the networks in ``net_``,
        or where these are not kept, as in a pickle, from the mean.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows. A `torch.utils.data.DataLoader` or an iterator of batches is one pass for each.
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
        first = not hasattr(self, "module_")
        X = self._validate(X, reset=first, min_samples=2)
        self._first_seed = fit_seed(self.random_state) if first else self._first_seed
        seed = self._first_seed + (0 if first else self.n_iter_)
        rows = repeated_rows(X, sample_weight, seed)
        if first:
            self._check_enough_rows(rows)
        self._train(rows, None, seed, max_epochs=1, going_on=not first, given=X, streaming=True)
        return self

    def transform(self, X):
        """Embed rows: the mean of q(z | x). It is never random.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes.
        """
        X = self._validate(X, reset=False)
        return self._encode(posterior_mean, X)

    def inverse_transform(self, Z):
        """Decode codes into expected data.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected rows, in the units of the training data.
        """
        Z = self._validate_codes(Z)
        return self._map_array(lambda model, z: model.decode(z.to(model.dtype)), Z)

    def reconstruct(self, X):
        """Encode rows and decode their codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features)
            ``inverse_transform(transform(X))``.
        """
        X = self._validate(X, reset=False)
        return self._encode(lambda model, x: model.decode(posterior_mean(model, x)), X)

    def interpolate(self, X_from, X_to, n_steps=10):
        """Rows on the way between rows: their codes are mixed in equal steps, and decoded.

        Parameters
        ----------
        X_from, X_to : array-like of shape (n_samples, n_features)
            Where the ways begin and end.
        n_steps : int, default=10
            Rows on each way, the reconstructions of both ends among them.

        Returns
        -------
        X : ndarray of shape (n_samples, n_steps, n_features)
            Expected rows.

        Raises
        ------
        ValueError
            If the numbers of rows differ, or ``n_steps`` is less than two.
        """
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
        codes = self._encode(posterior_mean, ends[0]), self._encode(posterior_mean, ends[1])
        shares = np.linspace(0, 1, n_steps, dtype=codes[0].dtype)[:, None]
        mixed = codes[0][:, None] * (1 - shares) + codes[1][:, None] * shares
        decoded = self._map_array(lambda model, z: model.decode(z.to(model.dtype)), mixed.reshape(-1, mixed.shape[2]))
        return decoded.reshape(len(ends[0]), n_steps, -1)

    def _validate(self, X, *, reset, **settings):
        if reset:
            check_channels_first(self.image_shape)
        return super()._validate(X, reset=reset, **settings)

    def _knows_missing(self):
        return not hasattr(self, "module_") or isinstance(self.module_.likelihood, MaskedLikelihood)

    def _draws(self, n_samples, random_state):
        """The generator of a draw of so many rows, if it can be made."""
        check_is_fitted(self)
        check_sample_size(n_samples)
        return generator_from(self.random_state if random_state is None else random_state)

    @property
    def _latent_size(self):
        """Size of a code."""
        return getattr(self, self._size_parameter)

    @abstractmethod
    def _check_enough_rows(self, X):
        """Raise if there are too few rows to begin with."""

    def _describe(self, X):
        """Set the fitted attributes that belong to the rows of X."""

    @abstractmethod
    def _make_prior(self):
        """The prior over codes."""

    @abstractmethod
    def _fit_networks(self, model, task):
        """Train a model, in place but for its prior; return the net that trained it."""

    @abstractmethod
    def _diagnose(self, q):
        """Set the fitted attributes that posteriors of training rows give."""

    def _warn_if_collapsed(self):
        """Warn where the codes carry nothing of the data. Not every model can tell."""

    def _general_plan(self):
        """The part of the plan that every embedder has."""
        return {
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.precision == "bf16",
            "compile": self.compile,
            "own_modules": self._has_own_modules(),
            "callbacks": (*training_callbacks(self.callbacks), *self._epoch_tasks()),
            "progress": type(self).__name__ if self.verbose and current_group().rank == 0 else None,
        }

    def _epoch_tasks(self):
        """What tells callbacks of scikit-learn of epochs, if there are any."""
        if not hasattr(self, "_callback_fit_ctx"):
            return ()

        def attributes(net):
            model = copy.deepcopy(getattr(net.module_, "_orig_mod", net.module_)).eval()
            model.autocast = None
            found = {"module_": model, "n_features_in_": self.n_features_in_}
            return found | self._sizes(model, self.n_features_in_, np.dtype(np.float64))

        return (EpochTasks(self, attributes),)

    def _sizes(self, model, n_features, dtype):
        """What the use of a model needs to know beside it."""
        widths = (
            row_width(model.encoder, model.likelihood.n_inputs(n_features)),
            row_width(model.decoder, self._latent_size),
        )
        return {
            "_n_features_out": self._latent_size,
            "_n_trained_features": n_features,
            "_fit_dtype": dtype,
            "_widest": max(widths),
        }

    def _train(self, X, X_val, seed, **settings):
        """Build the model, or take the one that there is, train it and publish the result: see `_train_on`."""
        check_processes(self, X)
        device = resolve_device(self.device)
        check_precision(self.precision, device)
        try:
            self._train_privately(device, X, X_val, seed, **settings)
        except (RuntimeError, TypeError) as error:
            if self.device != "auto" or not is_missing_on_mps(error, device):
                raise
            if self.checkpoint is not None and current_group().rank == 0:
                Path(self.checkpoint).unlink(missing_ok=True)  # it holds states of mps
            warn(
                f"The GPU of this Mac lacks what the training needs ({str(error).splitlines()[0]}); device='auto' "
                "takes the CPU instead.",
                RuntimeWarning,
            )
            self._train_privately(torch.device("cpu"), X, X_val, seed, **settings)

    def _train_privately(self, device, X, X_val, seed, **settings):
        """Train on a device; modules of the user's draw from private random numbers."""
        # They may draw wherever they are called: in training, but also for starts and diagnostics.
        private = torch.Generator(device).manual_seed(seed)
        with own_randomness(private) if self._has_own_modules() else nullcontext():
            self._train_on(device, X, X_val, seed, **settings)

    def _train_on(self, device, X, X_val, seed, *, max_epochs, going_on, given, streaming=False):
        """Train on a device.

        If it is interrupted, but kept what was learnt before, this is raised when all is published.

        Parameters
        ----------
        device : torch.device
        X, X_val : ndarray or Table
            Rows to train on, and those whose loss is recorded, or None.
        seed, max_epochs : int
        going_on : bool
        given : ndarray or Table
            The rows as they were given, which attributes such as labels belong to.
        streaming : bool
            Whether the rows are a batch of a stream, whose networks are averaged, and not written to a file.
        """
        group, seeds = current_group(), torch.Generator().manual_seed(seed)
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        generator, columns = group.rank_generator(generator), Columns(X, group, self._column_names())
        if going_on:
            self._check_same_sizes(X)
            self._check_same_mask(columns)
            model, history = copy.deepcopy(self._module_to_train(streaming)), self.history_
            likelihood, name = model.likelihood, self.likelihood_
            X = check_support(likelihood, X, columns)
            optimizer_state = copy.deepcopy(self.net_.optimizer_.state_dict()) if hasattr(self, "net_") else None
        else:
            kind = self._choose_likelihood(columns)
            self._hint_at_counts(kind, columns)
            X, name = check_support(kind, X, columns), likelihood_name(kind)
            likelihood, history, optimizer_state = build_likelihood(kind, X, columns), [], None
            model = self._build(likelihood, X.shape[1], seeds)
        whole = Support(*likelihood.support).integers
        if whole and isinstance(self.augment, str) and self.augment != "auto":
            raise ValueError(
                f"augment={self.augment!r} interpolates pixels, but likelihood={name!r} needs whole numbers; "
                "use a callable that keeps them, or another likelihood."
            )
        rows = stored_rows(likelihood, X, device)
        held_out = None if X_val is None else self._validation_rows(likelihood, X_val, device)
        exact = exact_buffers(likelihood)
        model = to_device(model, device)
        checkpoint = self._checkpoint_of(rows, held_out, seed, len(history)) if not streaming else None
        task = Task(rows, held_out, generator, device, seed, max_epochs, going_on, optimizer_state, checkpoint, whole)
        stopped = None
        try:
            net = self._fit_networks(model, task)
        except Interrupted as found:
            net, stopped = found.net, found
        if checkpoint is not None:
            checkpoint.remove()
        if device.type == "mps":
            model, device = with_exact_buffers(model, exact), torch.device("cpu")
            net.device = device  # its weights are those of the model
        self._n_batches = self._batches_before() + 1 if streaming else 0
        if self._n_batches > 1:
            model = averaged(self.module_, model, self._n_batches)
        self.net_, self.module_, self.likelihood_ = net, model, name
        vars(self).update(self._sizes(model, X.shape[1], X.dtype))
        self._n_steps = len(net.history) * count_batches(row_count(rows), self.batch_size)
        self.history_ = [*history, *history_of(net, len(history))]
        self.loss_curve_ = [float(row["train_loss"]) for row in self.history_]
        self.n_iter_ = len(self.history_)
        with torch.inference_mode():
            some = some_rows(rows, ROWS_FOR_DIAGNOSTICS)
            q = posterior_of(model, some, device, net.batch_size)
            self._diagnose(Posterior(*(group.all_gather(part) for part in q)))
        self._describe(given)
        if stopped is not None:
            raise stopped

    def _batches_before(self):
        """Number of batches of a stream that were trained on since the last `fit` or the last copy."""
        return vars(self).get("_n_batches", 0) if hasattr(self, "net_") else 0

    def _module_to_train(self, streaming):
        """What a training goes on from: in a stream, not the mean of networks, but the last ones."""
        if streaming and self._batches_before():
            return getattr(self.net_.module_, "_orig_mod", self.net_.module_)
        return self.module_

    def _draw_seed(self):
        """The seed of a fit: that of an interrupted one if it goes on."""
        seed = fit_seed(self.random_state)
        if self.checkpoint is None or self.random_state is not None:
            return seed
        found = read_checkpoint(self.checkpoint)
        return current_group().all_gather_int(seed if found is None else found["seed"])[0]

    def _checkpoint_of(self, rows, held_out, seed, n_epochs_before):
        """The file that the training is written to, None if there is none."""
        if self.checkpoint is None:
            return None
        folder, group = Path(self.checkpoint).resolve().parent, current_group()
        if group.rank == 0 and not folder.is_dir():
            raise ValueError(f"checkpoint={str(self.checkpoint)!r} is in a folder that does not exist; make it first.")
        return checkpoint_of(self.checkpoint, fingerprint(self, seed, n_epochs_before, rows, held_out), seed, group)

    def _choose_likelihood(self, columns):
        """The likelihood, or the name of one, for a table with these columns."""
        return choose_likelihood(self.likelihood, columns)

    def _hint_at_counts(self, chosen, columns):
        """Warn if "auto" has chosen a likelihood of measurements for counts."""
        automatic = isinstance(self.likelihood, str) and self.likelihood == "auto" and self.image_shape is None
        if automatic and isinstance(chosen, str) and chosen == "gaussian" and columns.look_like_counts():
            if current_group().rank > 0:
                return
            warn(
                f"X holds counts (whole numbers from {np.nanmin(columns.ranges.low):g} to "
                f"{np.nanmax(columns.ranges.high):g} with a long tail), for which likelihood='auto' takes 'gaussian': "
                "likelihood='negative_binomial' (or 'poisson') models them; give 'gaussian' by name if it is meant.",
                UserWarning,
            )

    def _check_same_sizes(self, X):
        """Raise if the networks to go on with do not belong to these rows or parameters."""
        if self._n_features_out != self._latent_size or self._n_trained_features != X.shape[1]:
            raise ValueError(
                f"The networks to go on with embed {self._n_trained_features} features in {self._n_features_out} "
                f"dimensions, but X has {X.shape[1]} features and {self._size_parameter} is "
                f"{self._latent_size}; fit a clone."
            )

    def _validation_rows(self, likelihood, X_val, device):
        """Rows whose loss is recorded, in the form in which rows are stored."""
        columns = Columns(X_val, names=self._column_names())
        if columns.n_missing and not isinstance(likelihood, MaskedLikelihood):
            raise ValueError(
                "X_val has missing values, but X has none, so that no mask of them is learned; fill them in."
            )
        with named_in_errors("X_val"):
            return stored_rows(likelihood, check_support(likelihood, X_val, columns), device)

    def _check_same_mask(self, columns):
        """Raise if values are missing, but the networks to go on with have no mask for them."""
        if columns.n_missing and not self._knows_missing():
            raise ValueError(
                "X has missing values, but the networks to go on with were trained on rows without any, and have no "
                "mask of them; fit a clone."
            )

    def _build(self, likelihood, n_features, generator):
        """A new model with starting values from the generator."""
        prior = self._make_prior()
        n_encoded, n_outputs = prior.n_statistics * self._latent_size, likelihood.n_outputs(n_features)
        with own_randomness(generator) if self._has_own_modules() else nullcontext():
            encoder = make_network("encoder", self.encoder, likelihood.n_inputs(n_features), n_encoded)
            decoder = make_network("decoder", self.decoder, self._latent_size, n_outputs)
        if encoder is None or decoder is None:
            built = built_in_networks(self, likelihood, n_features, prior.n_statistics, generator)
            pairs = zip((encoder, decoder), built, strict=True)
            encoder, decoder = (theirs if mine is None else mine for mine, theirs in pairs)
        return LatentModel(encoder, decoder, likelihood, prior)

    def _has_own_modules(self):
        """Whether parts of the model are the user's."""
        return any(not isinstance(part, str | None) for part in (self.encoder, self.decoder, self.likelihood))

    def _view_of(self, task, **limits):
        """What the encoder sees of rows in training, if not the rows; limits of named views may be given."""
        shape = None if self.image_shape is None else check_image_shape(tuple(self.image_shape), self.n_features_in_)
        augment = self.augment
        if isinstance(augment, str) and augment == "auto":
            augment = None if shape is None or task.whole_numbers else "affine"
        return resolve_augment(augment, shape, **limits)

    def _column_names(self):
        return getattr(self, "feature_names_in_", None)

    def _within_support(self, X):
        """X after `check_support` of the fitted likelihood."""
        return check_support(self.module_.likelihood, X, Columns(X, names=self._column_names()))

    def _encode(self, function, X):
        """As `_map_array`, of rows that may have values which the likelihood can not produce: a warning tells it."""
        count, found = counter_of_outside(self.module_.likelihood, X.dtype), []
        if count is None:
            return self._map_array(function, X)

        def watched(model, x):
            outside = count(x)  # before anything could change the rows
            mapped = function(model, x)
            found.append(outside)  # a chunk too large for the device comes again in halves
            return mapped

        mapped = self._map_array(watched, X)
        warn_of_outside(self.module_.likelihood, found, len(X))
        return mapped

    def _map_array(self, function, X):
        """Apply a function of the model and rows to chunks, in the precision of the rows, on mps by the CPU."""
        check_is_fitted(self)
        device = resolve_device(self.device)
        device = torch.device("cpu") if device.type == "mps" else device
        model = to_device(copy.deepcopy(self.module_), device)
        for network in (model.encoder, model.decoder, model.prior):
            network.to(compute_dtype(X.dtype, device))
        # Units need the full precision, whatever the networks compute in: offsets may be large.
        dtype = compute_dtype(np.float64, device)
        return self._map(lambda x: function(model, x), X, dtype=dtype, device=device, width=2 * self._widest)


def posterior_mean(model, x):
    """Codes of rows: the means of their posteriors."""
    return model.posterior(model.standardize(x)).mean
