"""What autoencoders share as estimators: building, training, codes and their inverse."""

import copy
import functools
import hashlib
import math
import os
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils import check_scalar
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback
from torch import nn

from ..fitting.augment import AUGMENTATIONS, resolve_augment
from ..fitting.snapshots import Checkpoint, read_checkpoint
from ..fitting.training import (
    COMPILE_MODES,
    OPTIMIZERS,
    count_batches,
    fit_module,
    normal_points,
    own_randomness,
    some_rows,
    standardized,
)
from ..models import ACTIVATIONS, LIKELIHOODS, LatentModel, Observed, Support
from ..models.networks import NETWORKS, check_image_shape, row_width
from ._base import (
    FLOATS,
    LatentMixin,
    TorchEstimator,
    check_sample_size,
    compute_dtype,
    fit_method,
    generator_from,
    host_array,
    repeated_rows,
    resolve_device,
    seed_from,
    to_dtype,
)
from ._columns import Columns
from ._likelihoods import build_likelihood, check_support, choose_likelihood, likelihood_name, stored_rows
from ._tasks import EpochTasks

N_SCORE_DRAWS = 16
HISTORY_KEYS = ("epoch", "train_loss", "train_log_likelihood", "train_kl", "train_agreement", "valid_loss", "dur")
ROWS_FOR_DIAGNOSTICS = 5_000
POSITIVE_INT = Interval(Integral, 1, None, closed="left")
NOT_NEGATIVE = Interval(Real, 0.0, None, closed="left")


class Embedder(LatentMixin, TorchEstimator):
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

    @fit_method
    def partial_fit(self, X, y=None, sample_weight=None):
        """Train for one pass over the rows of X, from where the networks are.

        The first call fixes the likelihood and the units of the features, so its rows should be typical.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
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
        """
        first = not hasattr(self, "module_")
        X = self._validate(X, reset=first, min_samples=2)
        self._first_seed = seed_from(self.random_state) if first else self._first_seed
        seed = self._first_seed + (0 if first else self.n_iter_)
        rows = repeated_rows(X, sample_weight, seed)
        if first:
            self._check_enough_rows(rows)
        self._train(rows, None, seed, max_epochs=1, going_on=not first, checkpointed=False)
        self._describe(X)
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
        return self._map_array(lambda model, x: model.posterior(model.standardize(x)).mean, X)

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
        return self._map_array(lambda model, x: model.decode(model.posterior(model.standardize(x)).mean), X)

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
        ends = [self._validate(host_array(X), reset=False) for X in (X_from, X_to)]
        if len(ends[0]) != len(ends[1]):
            raise ValueError(
                f"X_from has {len(ends[0])} rows and X_to {len(ends[1])}; there should be one end for each beginning."
            )
        if check_sample_size(n_steps) < 2:
            raise ValueError(f"n_steps={n_steps} leaves no way to go; use 2 or more.")
        codes = [self._map_array(lambda model, x: model.posterior(model.standardize(x)).mean, X) for X in ends]
        shares = np.linspace(0, 1, n_steps, dtype=codes[0].dtype)[:, None]
        mixed = codes[0][:, None] * (1 - shares) + codes[1][:, None] * shares
        decoded = self._map_array(lambda model, z: model.decode(z.to(model.dtype)), mixed.reshape(-1, mixed.shape[2]))
        return decoded.reshape(len(ends[0]), n_steps, -1)

    def _knows_missing(self):
        return not hasattr(self, "module_") or isinstance(self.module_.likelihood, Observed)

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
        for callback in self.callbacks or ():
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks should be instances of skorch.callbacks.Callback, but one is {callback!r}.")
        return {
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.precision == "bf16",
            "compile": self.compile,
            "own_modules": self._has_own_modules(),
            "callbacks": (*copy.deepcopy(list(self.callbacks or ())), *self._epoch_tasks()),
            "progress": type(self).__name__ if self.verbose else None,
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

    def _train(self, X, X_val, seed, *, max_epochs, going_on, checkpointed=True):
        """Build the model, or take the one that there is, train it and publish the result."""
        device = resolve_device(self.device)
        check_precision(self.precision, device)
        seeds = torch.Generator().manual_seed(seed)
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        columns = Columns(X)
        if going_on:
            self._check_same_sizes(X)
            self._check_same_mask(columns)
            model, history = copy.deepcopy(self.module_), self.history_
            likelihood, name = model.likelihood, self.likelihood_
            X = check_support(likelihood, X, columns)
            optimizer_state = copy.deepcopy(self.net_.optimizer_.state_dict()) if hasattr(self, "net_") else None
        else:
            kind = self._choose_likelihood(columns)
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
        model = to_device(model, device)
        checkpoint = self._checkpoint_of(rows, held_out, seed, len(history)) if checkpointed else None
        task = Task(rows, held_out, generator, device, seed, max_epochs, going_on, optimizer_state, checkpoint, whole)
        net = self._fit_networks(model, task)
        if checkpoint is not None:
            checkpoint.remove()
        self.net_, self.module_, self.likelihood_ = net, model, name
        vars(self).update(self._sizes(model, X.shape[1], X.dtype))
        self._n_steps = len(net.history) * count_batches(len(rows), self.batch_size)
        self.history_ = [*history, *history_of(net, len(history))]
        self.loss_curve_ = [float(row["train_loss"]) for row in self.history_]
        self.n_iter_ = len(self.history_)
        with torch.inference_mode():
            some = some_rows(rows, ROWS_FOR_DIAGNOSTICS).to(device)
            self._diagnose(model.posterior(standardized(model, some)))

    def _draw_seed(self):
        """The seed of a fit: that of an interrupted one if it goes on."""
        seed = seed_from(self.random_state)
        if self.checkpoint is None or self.random_state is not None:
            return seed
        found = read_checkpoint(self.checkpoint)
        return seed if found is None else found["seed"]

    def _checkpoint_of(self, rows, held_out, seed, n_epochs_before):
        """The file that the training is written to, None if there is none."""
        if self.checkpoint is None:
            return None
        folder = Path(self.checkpoint).resolve().parent
        if not folder.is_dir():
            raise ValueError(f"checkpoint={str(self.checkpoint)!r} is in a folder that does not exist; make it first.")
        return Checkpoint(self.checkpoint, fingerprint(self, seed, n_epochs_before, rows, held_out), seed)

    def _choose_likelihood(self, columns):
        """The likelihood, or the name of one, for a table with these columns."""
        return choose_likelihood(self.likelihood, columns)

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
        columns = Columns(X_val)
        if columns.n_missing and not isinstance(likelihood, Observed):
            raise ValueError(
                "X_val has missing values, but X has none, so that no mask of them is learned; fill them in."
            )
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
            built = self._built_in(likelihood, n_features, prior.n_statistics, generator)
            pairs = zip((encoder, decoder), built, strict=True)
            encoder, decoder = (theirs if mine is None else mine for mine, theirs in pairs)
        return LatentModel(encoder, decoder, likelihood, prior)

    def _has_own_modules(self):
        """Whether parts of the model are the user's."""
        return any(not isinstance(part, str | None) for part in (self.encoder, self.decoder, self.likelihood))

    def _built_in(self, likelihood, n_features, n_statistics, generator):
        """The encoder and decoder that the parameters describe."""
        n_inputs, n_outputs = likelihood.n_inputs(n_features), likelihood.n_outputs(n_features)
        auto = self._image_architecture if self.image_shape is not None else "mlp"
        architecture = auto if self.architecture == "auto" else self.architecture
        batch_norm = architecture != "mlp" if isinstance(self.batch_norm, str) else self.batch_norm
        settings = {"activation": self.activation, "batch_norm": batch_norm, "layer_norm": self.layer_norm}
        settings |= {"dropout": self.dropout, "n_statistics": n_statistics, "generator": generator}
        if architecture != "mlp":
            if self.image_shape is None:
                raise ValueError(f"architecture={architecture!r} needs image_shape, such as (28, 28) or (3, 32, 32).")
            settings["image_shape"] = tuple(self.image_shape)
            if not isinstance(self.channels, str):  # "auto": those of the networks
                settings["channels"] = check_sizes("channels", self.channels)
        default = self._auto_sizes[architecture]
        sizes = default if isinstance(self.hidden_layer_sizes, str) else self.hidden_layer_sizes
        settings["hidden_layer_sizes"] = check_sizes("hidden_layer_sizes", sizes)
        settings["head_layer_sizes"] = check_sizes("head_layer_sizes", self.head_layer_sizes)
        build = functools.partial(NETWORKS[architecture], n_components=self._latent_size)
        if architecture == "mlp" or not isinstance(likelihood, Observed):
            return build(n_inputs, n_outputs=n_outputs, **settings)
        # The encoder sees the mask of missing values as further channels.
        channels, *size = check_image_shape(settings.pop("image_shape"), n_features)
        encoder, _ = build(n_inputs, n_outputs=n_inputs, image_shape=(2 * channels, *size), **settings)
        _, decoder = build(n_features, n_outputs=n_outputs, image_shape=(channels, *size), **settings)
        return encoder, decoder

    def _view_of(self, task, **limits):
        """What the encoder sees of rows in training, if not the rows; limits of named views may be given."""
        shape = None if self.image_shape is None else check_image_shape(tuple(self.image_shape), self.n_features_in_)
        augment = self.augment
        if isinstance(augment, str) and augment == "auto":
            augment = None if shape is None or task.whole_numbers else "affine"
        return resolve_augment(augment, shape, **limits)

    def _map_array(self, function, X):
        """Apply a function of the model and rows to chunks, in the precision of the rows."""
        check_is_fitted(self)
        device = resolve_device(self.device)
        model = to_device(copy.deepcopy(self.module_).cpu(), device)
        for network in (model.encoder, model.decoder, model.prior):
            network.to(compute_dtype(X.dtype, device))
        # Units need the full precision, whatever the networks compute in: offsets may be large.
        dtype = compute_dtype(np.float64, device)
        return self._map(lambda x: function(model, x), X, dtype=dtype, device=device, width=2 * self._widest)


@dataclass(frozen=True)
class Task:
    """What networks are to be trained on, and how far."""

    rows: torch.Tensor
    held_out: torch.Tensor | None
    generator: torch.Generator
    device: torch.device
    seed: int
    max_epochs: int
    going_on: bool  # with networks, and perhaps the state of their optimizer, that were trained before
    optimizer_state: dict | None
    checkpoint: Checkpoint | None
    whole_numbers: bool  # whether rows are, so that nothing can lie between them

    def train(self, model, plan, noise_size, **changes):
        """Train a model in place; return its net."""
        task = replace(self, **changes)
        return fit_module(
            model,
            task.rows,
            plan,
            noise_size=noise_size,
            generator=task.generator,
            device=task.device,
            validation_rows=task.held_out,
            optimizer_state=task.optimizer_state,
            checkpoint=task.checkpoint,
        )


def fingerprint(estimator, *facts):
    """A text that tells fits apart: a hash of the estimator's parameters and of facts, numbers or rows."""
    found = hashlib.blake2b(digest_size=16)
    passive = {"checkpoint", "device", "verbose"}
    params = {name: value for name, value in estimator.get_params(deep=False).items() if name not in passive}
    for name, value in [("class", type(estimator).__name__), *sorted(params.items())]:
        parts = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(part, str | Real | None) for part in parts)
        found.update(f"{name}={value if plain else type(value).__name__};".encode())
    for fact in facts:
        if fact is None or isinstance(fact, Real):
            found.update(f"{fact};".encode())
            continue
        found.update(f"{len(fact)};".encode())
        part = fact if isinstance(fact, torch.Tensor) else some_rows(fact, ROWS_FOR_DIAGNOSTICS)
        found.update(part.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def history_of(net, n_before):
    """The epochs of a net, numbered after those before."""
    epochs = [{key: row[key] for key in HISTORY_KEYS if key in row} for row in net.history]
    return [{**row, "epoch": n_before + row["epoch"]} for row in epochs]


def to_device(model, device):
    """The model on a device, its buffers in float64 where there is float64."""
    return model.to(torch.float32).to(device) if device.type == "mps" else model.to(device)


def check_precision(precision, device):
    """Raise if the networks would be slower in this precision than in float32.

    Raises
    ------
    ValueError
        If the device has no instructions for bfloat16.
    """
    if precision == "bf16" and not has_bf16(device):
        raise ValueError(
            f"precision='bf16' is far slower than float32 on this {device.type}, which has no instructions for it; use "
            "precision='float32', or another device."
        )


def has_bf16(device):
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and check() for check in checks)
    return False


def choose_epochs(max_epochs, n_samples, batch_size):
    """Resolve "auto": about ``64 sqrt(n_samples)`` gradient steps, but not more than 100 epochs or 300 steps."""
    if max_epochs == "auto":
        n_batches = count_batches(n_samples, batch_size)
        # More epochs overfit small tables: on held-out rows their bound falls apart.
        return min(math.ceil(64 * math.sqrt(n_samples) / n_batches), max(100, math.ceil(300 / n_batches)))
    return max_epochs


def check_sizes(name, sizes):
    """Sizes as a tuple of positive integers."""
    sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    if not all(isinstance(size, Integral) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(f"{name} should be positive integers, but got {sizes}.")
    return tuple(map(int, sizes))


def make_network(name, given, n_inputs, n_outputs):
    """The user's own network, copied or made, or None.

    Raises
    ------
    TypeError
        If a class or function makes no module.
    ValueError
        If its output has the wrong size.
    """
    if given is None:
        return None
    network = copy.deepcopy(given) if isinstance(given, nn.Module) else given(n_inputs, n_outputs)
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name} should be or make a torch.nn.Module, but {given!r} made {network!r}.")
    probe = copy.deepcopy(network).eval()
    try:
        with torch.inference_mode():
            shape = tuple(probe(torch.zeros(2, n_inputs)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{name} can not be applied to rows of {n_inputs} numbers: {error}") from error
    if shape != (2, n_outputs):
        raise ValueError(
            f"{name} should turn 2 rows of {n_inputs} numbers into shape {(2, n_outputs)}, but gave {shape}."
        )
    return network


def elbo_at_points(points):
    """A function of a model and rows: their ELBO, the expectation over codes being taken at fixed points (m, k)."""

    def elbo(model, x):
        u = model.standardize(x)
        q = model.posterior(u)
        return sum(model.elbo(u, q, noise.expand_as(q.mean)).value for noise in points.to(u)) / len(points)

    return elbo


def fill_missing(model, x, points=None):
    """Rows with conditional means in the place of missing values; the codes are those at fixed points (m, k).

    Without points, and where values have no mean, the code is the mean of the posterior.
    """
    u = model.standardize(x)
    q = model.posterior(u)
    if points is None or not getattr(model.likelihood, "has_mean", True):
        return torch.where(x.isnan(), model.decode(q.mean).to(x.dtype), x)
    total = mean = None
    for noise in points.to(u):
        noise = noise.expand_as(q.mean)
        weight, decoded = model.log_weights(u, q, noise), model.decode(model.prior.draw(q, noise))
        if total is None:
            total, mean = weight, decoded
            continue
        total = torch.logaddexp(total, weight)
        mean = mean + (weight - total).exp()[:, None] * (decoded - mean)
    return torch.where(x.isnan(), mean.to(x.dtype), x)


def fixed_points(n_components):
    """The points at which scores are taken."""
    return normal_points(N_SCORE_DRAWS, n_components)


def draw_rows(estimator, codes_of, n_samples, generator):
    """Draw codes and then rows, in the units and the dtype of the training data.

    Parameters
    ----------
    codes_of : callable, (model, standard normal Tensor (n, k)) -> Tensor (n, k)
    """
    noise = torch.randn(n_samples, estimator._n_features_out, dtype=torch.float64, generator=generator)
    model = copy.deepcopy(estimator.module_).to("cpu", torch.float64)
    with torch.inference_mode():
        X = model.likelihood.sample(model.decoder(codes_of(model, noise)), generator).numpy()
    return to_dtype(X, estimator._fit_dtype)


class BoundMixin:
    """What embedders with a prior share: variances of codes, bounds on the log-likelihood, and conditional means."""

    def impute(self, X, n_importance_samples=100):
        """Fill in missing values (NaN) by their conditional means.

        The mean of p(x | z) is averaged over codes of a row, each weighted by how well it explains what is there
        (Mattei and Frellsen 2019, equation 13). The codes lie at quasi-random points, so the result is not random.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, like that of training in what is missing.
        n_importance_samples : int, default=100
            Codes for each row.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The rows; values that were there are unchanged.

        Raises
        ------
        ValueError
            If values are missing, but none were in the training data.

        References
        ----------
        P.-A. Mattei and J. Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, 2019.
        """
        X = self._validate(X, reset=False)
        X = check_support(self.module_.likelihood, X)
        check_scalar(n_importance_samples, "n_importance_samples", Integral, min_val=1)
        points = normal_points(2 * math.ceil(n_importance_samples / 2), self._n_features_out)
        return self._map_array(functools.partial(fill_missing, points=points), X)

    def posterior_variance(self, X):
        """Variances of q(z | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        variance : ndarray of shape (n_samples, n_components)
            Variances of the codes, whose means are ``transform(X)``.
        """
        X = self._validate(X, reset=False)
        return self._map_array(lambda model, x: model.posterior(model.standardize(x)).variance, X)

    def score_samples(self, X):
        """Evidence lower bound on the log-likelihood of each row.

        The expectation over codes is taken at a fixed set of quasi-random points, the same for every row, so that the
        result is reproducible and does not depend on the other rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            In nats, in the units of the data (the Jacobian of the internal standardisation is in it). For the
            Bernoulli likelihood on values between 0 and 1, the log-likelihood in it is minus the cross-entropy.

        Raises
        ------
        ValueError
            If X has values that the likelihood can not produce.
        """
        X = self._validate(X, reset=False)
        X = check_support(self.module_.likelihood, X)
        return self._map_array(elbo_at_points(fixed_points(self._n_features_out)), X)

    def log_likelihood(self, X, n_importance_samples=100, random_state=None):
        """Importance-weighted bound on the log-likelihood of each row (Burda et al. 2016, equation 8).

        It lies between the evidence lower bound and the log-likelihood, and comes nearer to this with more samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        n_importance_samples : int, default=100
            Codes drawn for each row.
        random_state : int, RandomState instance or None, default=None
            Seeds the draws, which are the same for every row; None uses the estimator's own ``random_state``.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats, in the units of the data. Higher is better.

        References
        ----------
        Y. Burda, R. Grosse and R. Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        X = self._validate(X, reset=False)
        X = check_support(self.module_.likelihood, X)
        check_scalar(n_importance_samples, "n_importance_samples", Integral, min_val=1)
        generator = generator_from(self.random_state if random_state is None else random_state)
        points = torch.randn(n_importance_samples, self._n_features_out, dtype=torch.float64, generator=generator)

        def bound(model, x):
            u = model.standardize(x)
            q, total = model.posterior(u), None
            for noise in points.to(u):
                weight = model.log_weights(u, q, noise.expand_as(q.mean))
                total = weight if total is None else torch.logaddexp(total, weight)
            return total - math.log(len(points))

        return self._map_array(bound, X)
