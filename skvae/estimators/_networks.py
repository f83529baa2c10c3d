"""Initial networks: from the parameters of estimators, the user's own, or those of a pretrained estimator."""

import copy
import functools
from contextlib import nullcontext
from numbers import Integral

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..fitting.devices import seeded_rng_state
from ..models import LatentModel, MaskedLikelihood
from ..models.images import check_image_shape
from ..models.networks import NETWORKS, LogScaleHead, NetworkConfig, mlp


def make_networks(estimator, likelihood, n_statistics, n_features, generator, n_covariates=0):
    """Return an encoder and a decoder with initial weights.

    Parameters
    ----------
    estimator : BaseEmbedder
    likelihood : torch.nn.Module
    n_statistics : int
        Numbers of the posterior for each latent dimension.
    n_features : int
    generator : torch.Generator
        Source of the initial weights.
    n_covariates : int, default=0
        Inputs of the decoder beside the latent code.
    """
    if estimator._pretrained is not None:
        return _pretrained_networks(estimator, likelihood, n_features)
    latent_dim = getattr(estimator, estimator._latent_dim_parameter)
    sizes = {
        "encoder": (likelihood.n_inputs(n_features), n_statistics * latent_dim),
        "decoder": (latent_dim + n_covariates, likelihood.n_outputs(n_features)),
    }
    with seeded_rng_state(generator) if has_user_modules(estimator) else nullcontext():
        networks = [_user_network(name, getattr(estimator, name), *sizes[name]) for name in sizes]
    if any(network is None for network in networks):
        sizes = {"n_statistics": n_statistics, "n_covariates": n_covariates}
        defaults = _default_networks(estimator, likelihood, n_features, generator, **sizes)
        networks = [default if own is None else own for own, default in zip(networks, defaults, strict=True)]
    return networks


def has_user_modules(estimator):
    """Return whether parts of the model are the user's."""
    likelihood = estimator.likelihood
    likelihoods = [each for _, each, _ in likelihood] if isinstance(likelihood, list | tuple) else [likelihood]
    parts = (estimator.encoder, estimator.decoder, *likelihoods)
    return estimator._pretrained is not None or not all(isinstance(part, str | None) for part in parts)


def pretrained_model(estimator):
    """Return the model of the pretrained estimator.

    Raises
    ------
    NotFittedError
        If it is not fitted.
    TypeError
        If it has no networks.
    """
    check_is_fitted(estimator._pretrained)
    model = getattr(estimator._pretrained, "module_", None)
    if not isinstance(model, LatentModel):
        raise TypeError(
            f"pretrained should be a fitted AutoencoderEmbedder or VAEEmbedder, but is {estimator._pretrained!r}."
        )
    return model


def _pretrained_networks(estimator, likelihood, n_features):
    """Return copies of the networks of the pretrained estimator, with a head of log-scales where they have none."""
    model, latent_dim = estimator._pretrained.module_, getattr(estimator, estimator._latent_dim_parameter)
    if hasattr(estimator._pretrained, "_conditions"):
        raise ValueError(
            f"pretrained was fitted with covariates or size_factors, which {type(estimator).__name__} does not take; "
            "fit it without them, or cluster its latent codes (TorchGMM)."
        )
    if isinstance(likelihood, MaskedLikelihood) != isinstance(model.likelihood, MaskedLikelihood):
        raise ValueError(
            "X has missing values, but pretrained was fitted to rows without any, and its encoder has no mask of them; "
            "fit it to such rows too, or leave pretrained out."
        )
    sizes = estimator._pretrained.n_features_in_, estimator._pretrained._n_features_out
    if sizes != (n_features, latent_dim):
        raise ValueError(
            f"pretrained embeds {sizes[0]} features in {sizes[1]} dimensions, but X has {n_features} features and "
            f"latent_dim is {latent_dim}; they should be the same."
        )
    encoder, decoder = copy.deepcopy(model.encoder), copy.deepcopy(model.decoder)
    return (LogScaleHead(encoder, latent_dim) if model.prior.n_statistics == 1 else encoder), decoder


def _default_networks(estimator, likelihood, n_features, generator, **sizes_beside):
    """Return the encoder and decoder that the parameters of an estimator describe."""
    n_inputs, n_outputs = likelihood.n_inputs(n_features), likelihood.n_outputs(n_features)
    auto = estimator._image_architecture if estimator.image_shape is not None else "mlp"
    architecture = auto if estimator.architecture == "auto" else estimator.architecture
    default = estimator._auto_sizes[architecture]
    sizes = default if isinstance(estimator.hidden_layer_sizes, str) else estimator.hidden_layer_sizes
    config = NetworkConfig(
        estimator.activation,
        generator,
        hidden_layer_sizes=_check_sizes("hidden_layer_sizes", sizes),
        head_layer_sizes=_check_sizes("head_layer_sizes", estimator.head_layer_sizes),
        batch_norm=estimator.batch_norm,
        layer_norm=estimator.layer_norm,
        dropout=estimator.dropout,
        **sizes_beside,
    )
    latent_dim = getattr(estimator, estimator._latent_dim_parameter)
    if architecture == "mlp":
        return mlp(n_inputs, latent_dim, n_outputs, config)
    if estimator.image_shape is None:
        raise ValueError(f"architecture={architecture!r} needs image_shape, such as (28, 28) or (3, 32, 32).")
    settings = {"n_components": latent_dim, "config": config}
    if not isinstance(estimator.channels, str):  # "auto": those of the networks
        settings["channels"] = _check_sizes("channels", estimator.channels)
    build = functools.partial(NETWORKS[architecture], **settings)
    image_shape = tuple(estimator.image_shape)
    if not isinstance(likelihood, MaskedLikelihood):
        return build(n_inputs, n_outputs=n_outputs, image_shape=image_shape)
    # The encoder sees the mask of missing values as further channels.
    channels, *size = check_image_shape(image_shape, n_features)
    encoder, _ = build(n_inputs, n_outputs=n_inputs, image_shape=(2 * channels, *size))
    _, decoder = build(n_features, n_outputs=n_outputs, image_shape=(channels, *size))
    return encoder, decoder


def _check_sizes(name, sizes):
    """Return sizes as a tuple of positive integers."""
    sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    if not all(isinstance(size, Integral) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(f"{name} should be positive integers, but got {sizes}.")
    return tuple(map(int, sizes))


def _user_network(name, network, n_inputs, n_outputs):
    """Return the user's own network, copied or made, or None.

    Raises
    ------
    TypeError
        If a class or function makes no module.
    ValueError
        If its output has the wrong size.
    """
    if network is None:
        return None
    module = copy.deepcopy(network) if isinstance(network, nn.Module) else network(n_inputs, n_outputs)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} should be or make a torch.nn.Module, but {network!r} made {module!r}.")
    probe = copy.deepcopy(module).eval()
    try:
        with torch.inference_mode():
            shape = tuple(probe(torch.zeros(2, n_inputs)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be applied to rows of {n_inputs} numbers: {error}") from error
    if shape != (2, n_outputs):
        raise ValueError(
            f"{name} should turn 2 rows of {n_inputs} numbers into shape {(2, n_outputs)}, but gave {shape}."
        )
    return module
