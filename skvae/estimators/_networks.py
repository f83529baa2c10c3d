"""Networks from the parameters of estimators."""

import copy
import functools
from numbers import Integral

import torch
from torch import nn

from ..models import MaskedLikelihood
from ..models.images import check_image_shape
from ..models.networks import NETWORKS, NetworkConfig, mlp


def built_in_networks(estimator, likelihood, n_features, n_statistics, generator):
    """The encoder and decoder that the parameters of an estimator describe."""
    n_inputs, n_outputs = likelihood.n_inputs(n_features), likelihood.n_outputs(n_features)
    auto = estimator._image_architecture if estimator.image_shape is not None else "mlp"
    architecture = auto if estimator.architecture == "auto" else estimator.architecture
    default = estimator._auto_sizes[architecture]
    sizes = default if isinstance(estimator.hidden_layer_sizes, str) else estimator.hidden_layer_sizes
    config = NetworkConfig(
        estimator.activation,
        generator,
        hidden_layer_sizes=check_sizes("hidden_layer_sizes", sizes),
        head_layer_sizes=check_sizes("head_layer_sizes", estimator.head_layer_sizes),
        batch_norm=estimator.batch_norm,
        layer_norm=estimator.layer_norm,
        dropout=estimator.dropout,
        n_statistics=n_statistics,
    )
    if architecture == "mlp":
        return mlp(n_inputs, estimator._latent_size, n_outputs, config)
    if estimator.image_shape is None:
        raise ValueError(f"architecture={architecture!r} needs image_shape, such as (28, 28) or (3, 32, 32).")
    settings = {"n_components": estimator._latent_size, "config": config}
    if not isinstance(estimator.channels, str):  # "auto": those of the networks
        settings["channels"] = check_sizes("channels", estimator.channels)
    build = functools.partial(NETWORKS[architecture], **settings)
    image_shape = tuple(estimator.image_shape)
    if not isinstance(likelihood, MaskedLikelihood):
        return build(n_inputs, n_outputs=n_outputs, image_shape=image_shape)
    # The encoder sees the mask of missing values as further channels.
    channels, *size = check_image_shape(image_shape, n_features)
    encoder, _ = build(n_inputs, n_outputs=n_inputs, image_shape=(2 * channels, *size))
    _, decoder = build(n_features, n_outputs=n_outputs, image_shape=(channels, *size))
    return encoder, decoder


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
