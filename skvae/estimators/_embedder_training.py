"""The fit of an autoencoder: from samples to an initial model, its training, and the fitted attributes."""

import copy
import hashlib
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..data.arrays import named_in_errors, resolve_device
from ..data.columns import Columns
from ..data.conditions import ConditionCodec
from ..data.frames import FrameCodec
from ..data.samples import features_of
from ..data.weights import resample_by_weight
from ..fitting.augment import resolve_augment
from ..fitting.batches import count_batches, subsample
from ..fitting.checkpoint import epoch_records, make_checkpoint, read_checkpoint
from ..fitting.devices import is_out_of_memory, seeded_rng_state
from ..fitting.distributed import current_group
from ..fitting.evaluation import posterior_of
from ..fitting.net import unwrapped_module
from ..fitting.rows import is_lazy
from ..fitting.training import Interrupted, Plan, TrainingData, average_models
from ..fitting.warnings import warn
from ..models import CovariateInputs, LatentModel, MaskedLikelihood, Support
from ..models.images import check_image_shape
from ..models.networks import row_width
from ..models.priors import Posterior
from ._callbacks import check_callbacks, training_callbacks
from ._column_likelihoods import ListedColumns, choose_column_likelihoods
from ._fit import EpochTasks, check_enough_rows, check_processes, fit_seed, row_count
from ._likelihood_choice import (
    build_likelihood,
    check_support,
    check_totals,
    choose_likelihood,
    has_size_factors,
    hint_at_counts,
    likelihood_name,
    set_dispersions,
    stored_rows,
)
from ._networks import has_user_modules, make_networks, pretrained_model

SKORCH_RECORDS = ("train_batch_count", "valid_batch_count", "train_loss_best", "valid_loss_best")  # not in history_
MAX_DIAGNOSTIC_ROWS = 5_000  # rows from which latent statistics are computed


class TrainingSamples(NamedTuple):
    """Samples of a fit, and whether its training resumes."""

    X: object  # array or lazy samples to train on: repeated by their weights, without held-out ones
    original: object  # as validated: fitted attributes of samples, such as labels, are in this order
    seed: int
    resume: bool  # from the networks of the last fit, or of the batches before
    X_val: object = None  # samples whose loss is recorded
    is_batch: bool = False  # of a stream, whose networks are averaged, and not written to a checkpoint
    whole: object = None  # X and the samples that were held out of it, which together have the units of the features

    @property
    def typical(self):
        """Samples from which the likelihood and the units of the features are chosen."""
        return self.X if self.whole is None else self.whole


def prepare_samples(estimator, X, sample_weight, X_val=None):
    """Draw the seed of a fit, which is stored as ``_first_seed``, and repeat samples by their weights."""
    seed = fit_seed(estimator.random_state)
    if estimator.checkpoint is not None and estimator.random_state is None:
        content = read_checkpoint(estimator.checkpoint)  # an interrupted fit resumes with its own seed
        seed = current_group().all_gather_int(seed if content is None else content["seed"])[0]
    repeated = resample_by_weight(X, sample_weight, seed)
    check_enough_rows(repeated, getattr(estimator, estimator._min_samples), estimator._min_samples)
    estimator._first_seed = seed
    return TrainingSamples(repeated, X, seed, estimator.warm_start and hasattr(estimator, "module_"), X_val)


def prepare_batch(estimator, X, sample_weight):
    """Return the `TrainingSamples` of a call of ``partial_fit``."""
    is_first = not hasattr(estimator, "module_")
    first_seed = fit_seed(estimator.random_state) if is_first else estimator._first_seed
    seed = first_seed + (0 if is_first else estimator.n_iter_)
    repeated = resample_by_weight(X, sample_weight, seed)
    if is_first:
        check_enough_rows(repeated, getattr(estimator, estimator._min_samples), estimator._min_samples)
        estimator._first_seed = first_seed
    return TrainingSamples(repeated, X, seed, not is_first, is_batch=True)


def train(estimator, samples, max_epochs):
    """Initialize and train the networks of an estimator, and set its fitted attributes.

    With ``device="auto"``, the CPU replaces the GPU of a Mac where this lacks an operation.

    Returns
    -------
    problem : str or None
        A warning about the latent codes.
    """
    check_processes(estimator, samples.X)
    device = resolve_device(estimator.device)
    check_precision(estimator.precision, device)
    check_callbacks(estimator.callbacks)
    try:
        return _train_on(device, estimator, samples, max_epochs)
    except (RuntimeError, TypeError) as error:
        if estimator.device != "auto" or not is_missing_on_mps(error, device):
            raise
        if estimator.checkpoint is not None and current_group().rank == 0:
            Path(estimator.checkpoint).unlink(missing_ok=True)  # it has random states of mps
        warn(
            f"The GPU of this Mac lacks what the training needs ({str(error).splitlines()[0]}); device='auto' takes "
            "the CPU instead.",
            RuntimeWarning,
        )
        return _train_on(torch.device("cpu"), estimator, samples, max_epochs)


def _train_on(device, estimator, samples, max_epochs):
    """Train on a device; after an interruption, publish the completed epochs, then raise it."""
    # User modules may draw random numbers wherever they are called.
    private = torch.Generator(device).manual_seed(samples.seed)
    with seeded_rng_state(private) if has_user_modules(estimator) else nullcontext():
        seeds, interruption = torch.Generator().manual_seed(samples.seed), None
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=seeds)))
        initial = _resumed_model(estimator, samples) if samples.resume else _new_model(estimator, samples, seeds)
        exact_buffers = _exact_buffers(initial.model.likelihood)
        data = _training_data(estimator, samples, initial, generator)
        try:
            net = estimator._fit_networks(to_device(initial.model, device), data, max_epochs)
        except Interrupted as interrupted:
            net, interruption = interrupted.net, interrupted
        if data.checkpoint is not None:
            data.checkpoint.remove()
        if device.type == "mps":
            device = net.device = torch.device("cpu")
            _restore_buffers(initial.model.cpu(), exact_buffers)
        problem = _publish(estimator, samples, initial, data, net, device)
        if interruption is not None:
            raise interruption
        return problem


class InitialModel(NamedTuple):
    """The model from which a training starts, and which it changes."""

    model: LatentModel
    X: object  # training samples, within the support of the likelihood
    likelihood_name: str
    history: list  # records of the epochs before
    optimizer_state: dict | None


def _new_model(estimator, samples, generator):
    """Choose a likelihood, and initialize the networks."""
    features, codec = features_of(samples.typical), condition_codec(estimator)
    columns = Columns(features, current_group(), column_names(estimator))
    if estimator._pretrained is None:
        chosen = choose_column_likelihoods(estimator.likelihood, listed_columns(estimator), columns)
        if chosen is None:
            chosen = choose_likelihood(estimator.likelihood, columns)
            hint_at_counts(estimator, chosen, columns)
    else:
        chosen = pretrained_model(estimator).likelihood
    typical = check_support(chosen, samples.typical, columns)
    size_factors = "given" if codec is not None and codec.n_sizes else estimator.size_factor
    if estimator._pretrained is not None:
        check_size_factor(estimator, chosen, columns, "pretrained was")
        size_factors = None  # they are those of the pretrained model
    likelihood, prior = build_likelihood(chosen, features_of(typical), columns, size_factors), estimator._make_prior()
    covariates, n_features = None, features.shape[1]
    if estimator._shifts_dispersions() and (codec is None or not codec.covariates):
        raise ValueError("dispersion='covariates' needs covariates in fit; give some, or dispersion='feature'.")
    if codec is not None and codec.n_levels:
        n_dispersions = set_dispersions(likelihood, n_features) if estimator._shifts_dispersions() else 0
        covariates = CovariateInputs(n_features + codec.n_sizes, codec.n_levels, n_dispersions)
    n_covariates = 0 if covariates is None else covariates.n_outputs
    networks = make_networks(estimator, likelihood, prior.n_statistics, n_features, generator, n_covariates)
    model = LatentModel(*networks, likelihood, prior, covariates)
    X = typical if samples.whole is None else check_support(chosen, samples.X, columns)
    return InitialModel(model, X, likelihood_name(likelihood), [], None)


def _resumed_model(estimator, samples):
    """Copy the model of the last fit; of a stream, the last one and not the mean of models."""
    features = features_of(samples.typical)
    n_features, columns = features.shape[1], Columns(features, current_group(), column_names(estimator))
    sizes = estimator._n_trained_features, estimator._n_features_out
    if sizes != (n_features, latent_dim(estimator)):
        raise ValueError(
            f"The networks to continue from embed {sizes[0]} features in {sizes[1]} dimensions, but X has {n_features} "
            f"features and {estimator._latent_dim_parameter} is {latent_dim(estimator)}; fit a clone."
        )
    if columns.n_missing and not isinstance(estimator.module_.likelihood, MaskedLikelihood):
        raise ValueError(
            "X has missing values, but the networks to continue from were trained on rows without any, and have no "
            "mask of them; fit a clone."
        )
    check_size_factor(estimator, estimator.module_.likelihood, columns, "the networks to continue from were")
    covariates = estimator.module_.covariates
    if covariates is not None and estimator._shifts_dispersions() != bool(covariates.n_dispersions):
        raise ValueError("The networks to continue from were fitted with another value of dispersion; fit a clone.")
    module, optimizer_state = estimator.module_, None
    if hasattr(estimator, "net_"):
        optimizer_state = copy.deepcopy(estimator.net_.optimizer_.state_dict())
        if samples.is_batch and vars(estimator).get("_n_batches"):
            module = unwrapped_module(estimator.net_)
    X = check_support(module.likelihood, samples.X, columns)
    return InitialModel(copy.deepcopy(module), X, estimator.likelihood_, estimator.history_, optimizer_state)


def check_size_factor(estimator, likelihood, columns, what):
    """Raise if a trained model has no size factors, although there should be some, or if counts are missing."""
    if estimator.size_factor is not None and not has_size_factors(likelihood):
        raise ValueError(
            f"size_factor={estimator.size_factor!r} is given, but {what} fitted without size factors; fit a clone, or "
            "give size_factor=None."
        )
    check_totals(likelihood, columns)


def _training_data(estimator, samples, initial, generator):
    """Store samples in the form in which networks are trained on them, and open the checkpoint."""
    likelihood, group, checkpoint = initial.model.likelihood, current_group(), None
    augments_images = isinstance(estimator.augment, str) and estimator.augment != "auto"
    if augments_images and np.any(Support(*likelihood.support).integers):
        raise ValueError(
            f"augment={estimator.augment!r} interpolates pixels, but likelihood={initial.likelihood_name!r} needs "
            "whole numbers; use a callable that keeps them, or another likelihood."
        )
    rows, validation_rows = stored_rows(likelihood, initial.X, generator.device), None
    if samples.X_val is not None:
        validation_rows = _validation_rows(estimator, likelihood, samples.X_val, generator.device)
    if estimator.checkpoint is not None and not samples.is_batch:
        folder = Path(estimator.checkpoint).resolve().parent
        if group.rank == 0 and not folder.is_dir():
            raise ValueError(
                f"checkpoint={str(estimator.checkpoint)!r} is in a folder that does not exist; make it first."
            )
        identity = fingerprint(estimator, samples.seed, len(initial.history), rows, validation_rows)
        checkpoint = make_checkpoint(estimator.checkpoint, identity, samples.seed, group)
    return TrainingData(
        rows,
        group.rank_generator(generator),
        generator.device,
        validation_rows,
        seed=samples.seed,
        group=group,
        optimizer_state=initial.optimizer_state,
        checkpoint=checkpoint,
        resume=samples.resume,
    )


def _validation_rows(estimator, likelihood, X_val, device):
    """Store validation samples in the form of training samples."""
    columns = Columns(features_of(X_val), names=column_names(estimator))
    if columns.n_missing and not isinstance(likelihood, MaskedLikelihood):
        raise ValueError("X_val has missing values, but X has none, so that no mask of them is learned; fill them in.")
    check_totals(likelihood, columns)
    with named_in_errors("X_val"):
        return stored_rows(likelihood, check_support(likelihood, X_val, columns), device)


def _publish(estimator, samples, initial, data, net, device):
    """Set the fitted attributes; return a warning about the latent codes, or None."""
    model, n_features = initial.model, features_of(initial.X).shape[1]
    n_batches_before = vars(estimator).get("_n_batches", 0) if hasattr(estimator, "net_") else 0
    estimator._n_batches = n_batches_before + 1 if samples.is_batch else 0
    if estimator._n_batches > 1:
        model = average_models(estimator.module_, model, estimator._n_batches)
    estimator.net_, estimator.module_, estimator.likelihood_ = net, model, initial.likelihood_name
    vars(estimator).update(fitted_sizes(estimator, model, n_features, initial.X.dtype))
    estimator._n_steps = len(net.history) * count_batches(row_count(data.rows), estimator.batch_size)
    estimator.history_ = [*initial.history, *history_of(net, len(initial.history))]
    estimator.loss_curve_ = [float(record["train_loss"]) for record in estimator.history_]
    estimator.n_iter_ = len(estimator.history_)
    with torch.inference_mode():
        q = posterior_of(model, subsample(data.rows, MAX_DIAGNOSTIC_ROWS), device, net.batch_size)
        return estimator._set_latent_statistics(Posterior(*map(data.group.all_gather, q)), samples.original)


def fitted_sizes(estimator, model, n_features, dtype):
    """Return the private fitted attributes with sizes, by name."""
    encoder, decoder = map(row_width, (model.encoder, model.decoder), model.n_inputs(n_features, latent_dim(estimator)))
    return {
        "_n_features_out": latent_dim(estimator),
        "_n_trained_features": n_features,
        "_fit_dtype": dtype,
        "_widest": max(encoder, decoder),
    }


def history_of(net, n_epochs_before):
    """Return the records of the epochs of a net, numbered after those before, without skorch's own."""
    history = []
    for record in epoch_records(net):
        values = {key: value for key, value in record.items() if key not in SKORCH_RECORDS}
        history.append({**values, "epoch": n_epochs_before + record["epoch"]})
    return history


def training_plan(estimator, max_epochs, phase="", **settings):
    """Return a plan with the parameters that all autoencoders have, and further settings.

    Parameters
    ----------
    estimator : BaseEmbedder
    max_epochs : int
    phase : str, default=""
        Name of a training among several, which the progress bar shows.
    **settings : dict
        Other fields of `Plan`.
    """
    description = f"{type(estimator).__name__}, {phase}" if phase else type(estimator).__name__
    common = {
        "latent_dim": latent_dim(estimator),
        "batch_size": estimator.batch_size,
        "optimizer": estimator.optimizer,
        "weight_decay": estimator.weight_decay,
        "max_grad_norm": estimator.max_grad_norm,
        "bf16": estimator.precision == "bf16",
        "compile": estimator.compile,
        "user_modules": has_user_modules(estimator),
        "progress": description if estimator.verbose and current_group().rank == 0 else None,
    }
    return Plan(max_epochs, **common | settings)


def user_callbacks(estimator):
    """Return copies of the user's callbacks, and the one that notifies scikit-learn's of epochs."""
    callbacks = training_callbacks(estimator.callbacks)
    if not hasattr(estimator, "_callback_fit_ctx"):
        return callbacks

    def attributes(net):
        model = copy.deepcopy(unwrapped_module(net)).eval()
        model.autocast, n_features = None, estimator.n_features_in_
        sizes = fitted_sizes(estimator, model, n_features, np.dtype(np.float64))
        return {"module_": model, "n_features_in_": n_features} | sizes

    return (*callbacks, EpochTasks(estimator, attributes))


def augmentation(estimator, likelihood, **limits):
    """Return the function that makes augmented views, or None; limits of named augmentations may be given."""
    shape, augment = None, estimator.augment
    if estimator.image_shape is not None:
        shape = check_image_shape(tuple(estimator.image_shape), estimator.n_features_in_)
    if isinstance(augment, str) and augment == "auto":
        augment = None if shape is None or np.any(Support(*likelihood.support).integers) else "affine"
    return resolve_augment(augment, shape, **limits)


def latent_dim(estimator):
    """Return the size of the latent space."""
    return getattr(estimator, estimator._latent_dim_parameter)


def column_names(estimator):
    """Return the names of the features, None if X had none."""
    return getattr(estimator, "feature_names_in_", None)


def listed_columns(estimator):
    """Return the `ListedColumns` of the training data."""
    codec = getattr(estimator, "_frame", None)
    features = getattr(estimator, "_listed_features", None)
    return ListedColumns(None if codec is None else FrameCodec.from_lists(codec), features)


def condition_codec(estimator):
    """Return the codec of what was given beside the features of the training data, None if nothing was."""
    lists = getattr(estimator, "_conditions", None)
    return None if lists is None else ConditionCodec.from_lists(lists)


def fingerprint(estimator, *facts):
    """Return a hash that identifies a fit: of the parameters of an estimator, and of numbers or rows."""
    digest = hashlib.blake2b(digest_size=16)
    passive = {"checkpoint", "device", "verbose"}
    params = {name: value for name, value in estimator.get_params(deep=False).items() if name not in passive}
    if isinstance(estimator.likelihood, list | tuple):
        likelihoods = [each if isinstance(each, str) else type(each).__name__ for _, each, _ in estimator.likelihood]
        params |= {"likelihood": likelihoods, "listed_features": str(estimator._listed_features)}
    for name in ("_frame", "_conditions"):
        if hasattr(estimator, name):
            params[name] = str(getattr(estimator, name))
    for name, value in [("class", type(estimator).__name__), *sorted(params.items())]:
        parts = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(part, str | Real | None) for part in parts)
        digest.update(f"{name}={value if plain else type(value).__name__};".encode())
    for fact in facts:
        if fact is None or isinstance(fact, Real):
            digest.update(f"{fact};".encode())
            continue
        digest.update(f"{len(fact)};".encode())
        rows = subsample(fact, MAX_DIAGNOSTIC_ROWS) if is_lazy(fact) else fact
        for part in rows.split(MAX_DIAGNOSTIC_ROWS // 5):
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def to_device(model, device):
    """Move a model to a device, with its buffers in float64 where there is float64."""
    return model.to(torch.float32).to(device) if device.type == "mps" else model.to(device)


def _exact_buffers(module):
    """Copy the buffers in float64, by name: the units of features need all their digits."""
    return {name: buffer.clone() for name, buffer in module.named_buffers() if buffer.dtype == torch.float64}


def _restore_buffers(model, buffers):
    """Set the buffers of a likelihood, in place, as they were before a training without float64."""
    for name, buffer in buffers.items():
        owner, _, own_name = name.rpartition(".")
        setattr(model.likelihood.get_submodule(owner), own_name, buffer)


def is_missing_on_mps(error, device):
    """Return whether an error names a limit of mps: a missing operation or dtype, or too large a size."""
    is_limit = isinstance(error, RuntimeError | TypeError) and not is_out_of_memory(error)
    return device.type == "mps" and is_limit and "MPS" in str(error)


def check_precision(precision, device):
    """Raise if the networks would be slower in this precision than in float32.

    Raises
    ------
    ValueError
        If the device has no instructions for bfloat16.
    """
    if precision == "bf16" and not _has_bf16(device):
        raise ValueError(
            f"precision='bf16' is far slower than float32 on this {device.type}, which has no instructions for it; use "
            "precision='float32', or another device."
        )


def _has_bf16(device):
    """Return whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and check() for check in checks)
    return False
