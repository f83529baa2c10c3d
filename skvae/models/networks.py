"""Networks: pairs of an encoder and a decoder."""

import math
from itertools import pairwise

from torch import nn
from torch.nn.utils import skip_init

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}


def linear(n_inputs, n_outputs, generator):
    """A linear layer with torch's usual starting values, drawn from a private generator."""
    layer = skip_init(nn.Linear, n_inputs, n_outputs)
    bound = 1 / math.sqrt(n_inputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def stack(sizes, activation, batch_norm, generator):
    """Hidden layers through these sizes, then a linear layer to the last one."""
    layers = []
    for n_inputs, n_outputs in pairwise(sizes[:-1]):
        layers.append(linear(n_inputs, n_outputs, generator))
        layers += [nn.BatchNorm1d(n_outputs)] if batch_norm else []
        layers.append(ACTIVATIONS[activation]())
    layers.append(linear(sizes[-2], sizes[-1], generator))
    return nn.Sequential(*layers)


def mlp(n_features, n_components, n_outputs, *, hidden_layer_sizes, activation, batch_norm, generator):
    """Multi-layer perceptrons; the decoder mirrors the encoder.

    Returns
    -------
    encoder : Module, (n, n_features) -> (n, 2 * n_components)
    decoder : Module, (n, n_components) -> (n, n_outputs)
    """
    hidden = tuple(hidden_layer_sizes)
    encoder = stack((n_features, *hidden, 2 * n_components), activation, batch_norm, generator)
    decoder = stack((n_components, *hidden[::-1], n_outputs), activation, batch_norm, generator)
    return encoder, decoder


NETWORKS = {"mlp": mlp}
