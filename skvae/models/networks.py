"""Networks: pairs of an encoder and a decoder, from flat samples to latent codes and back.

Conventions
-----------
Parameters are initialized as torch does it, but from a generator that is passed in. Networks have no random state of
their own: dropout draws from a generator that `set_generator` sets for training.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init

from .images import STRIDE, feature_map_shapes, padding, per_layer

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}

EPS, MOMENTUM = 1e-5, 0.1  # those of torch's batch normalization
NORMALIZED_VARIANCE = 0.5  # of posterior means at the beginning of a training


class NetworkConfig(NamedTuple):
    """Layers of an encoder and a decoder.

    Parameters
    ----------
    activation : str
        A key of ``ACTIVATIONS``.
    generator : torch.Generator
        Source of the initial parameters.
    hidden_layer_sizes : tuple of int, default=()
        Widths of the encoder's hidden layers; the decoder has them in reverse.
    head_layer_sizes : tuple of int, default=()
        Widths of further layers, which means and log-scales do not share. The decoder has them once.
    batch_norm, layer_norm : bool, default=False
        Whether hidden layers are followed by batch or layer normalization.
    dropout : float, default=0.0
        Probability that a hidden value is dropped in training.
    n_statistics : int, default=2
        Outputs of the encoder for each latent dimension: mean and log-scale, or the mean alone.
    n_covariates : int, default=0
        Inputs of the decoder beside the latent code.
    """

    activation: str
    generator: torch.Generator
    hidden_layer_sizes: tuple = ()
    head_layer_sizes: tuple = ()
    batch_norm: bool = False
    layer_norm: bool = False
    dropout: float = 0.0
    n_statistics: int = 2
    n_covariates: int = 0


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that draws from a private generator; it does nothing in evaluation mode.

    The generator comes from `set_generator`, and is not part of copies and pickles.

    Parameters
    ----------
    p : float
        Probability that a value is set to zero, at least 0 and less than 1; the others are multiplied by 1 / (1 - p).
    """

    def __init__(self, p):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout={p!r} should be a probability of at least 0 and less than 1.")
        self.p = p
        self.generator = None

    def forward(self, x):
        """Return the values, some of which are dropped in training."""
        if not self.training:
            return x
        if self.generator is None:
            raise ValueError("Dropout has no random generator to train with; call set_generator(module, generator).")
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep / (1 - self.p)

    def extra_repr(self):
        """Return the arguments that repr shows."""
        return f"p={self.p}"

    def __getstate__(self):
        return {**self.__dict__, "generator": None}


def set_generator(module, generator):
    """Set the generator of every `Dropout` inside a module; None removes it.

    Parameters
    ----------
    module : torch.nn.Module
    generator : torch.Generator or None
        On the device of the module.
    """
    for part in module.modules():
        if isinstance(part, Dropout):
            part.generator = generator


class Flatten(nn.Module):
    """Flatten images (n, c, h, w) with channels last, which is their order in memory inside networks."""

    def forward(self, x):
        """Return vectors (n, h * w * c)."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Unflatten(nn.Module):
    """The inverse of `Flatten`.

    Parameters
    ----------
    shape : tuple of int, (channels, height, width)
    """

    def __init__(self, shape):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x):
        """Return images (n, c, h, w)."""
        channels, height, width = self.shape
        return x.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)

    def extra_repr(self):
        """Return the arguments that repr shows."""
        return f"{self.shape}"


class Heads(nn.Module):
    """Networks with the same input, whose outputs are concatenated."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x):
        """Return the concatenated outputs (n, sum of their sizes)."""
        return torch.cat([head(x) for head in self.heads], -1)


class Affine(nn.Module):
    """Fixed affine map of each feature: ``scale * x + offset``."""

    def __init__(self, scale, offset):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x):
        """Return the mapped samples (n, d)."""
        return torch.addcmul(self.offset, self.scale, x)


class LatentNorm(nn.Module):
    """Batch normalization of posterior means until `freeze`, and the same map for all samples afterwards.

    Means have mean 0 and variance 1/2 in every batch (Zhu et al. 2020), so that no latent dimension collapses to the
    prior; latent codes have the variance 1 of the prior if that of the posteriors is 1/2, too. Log-scales are not
    changed. It is no layer of torch's, whose statistics would be computed again where those of batch normalization are.

    Parameters
    ----------
    n_components : int
        Size d of a latent code.
    """

    def __init__(self, n_components):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(n_components))
        self.register_buffer("running_var", torch.ones(n_components))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self.is_frozen = False

    def forward(self, statistics):
        """Return means and log-scales (n, 2 d)."""
        mean, log_scale = statistics.chunk(2, dim=-1)
        if not self.training or self.is_frozen:
            mean = F.batch_norm(mean, self.running_mean, self.running_var)
        else:
            mean = F.batch_norm(mean, None, None, training=True)
            self._track(statistics.detach()[:, : mean.shape[1]].float())
        return torch.cat([math.sqrt(NORMALIZED_VARIANCE) * mean, log_scale], -1)

    def _track(self, mean):
        """Update the running statistics; those of the first batches are their means, without initial values."""
        self.num_batches_tracked += 1
        share = (1 / self.num_batches_tracked).clamp(min=MOMENTUM)
        self.running_mean.lerp_(mean.mean(0), share)
        self.running_var.lerp_(mean.var(0), share)

    def freeze(self):
        """Take the running statistics from now on, in training too."""
        self.is_frozen = True

    def to_affine(self):
        """Return the map of the running statistics as an `Affine` of means and log-scales."""
        scale = math.sqrt(NORMALIZED_VARIANCE) * (self.running_var + EPS).rsqrt()
        offset = -self.running_mean * scale
        return Affine(torch.cat([scale, torch.ones_like(scale)]), torch.cat([offset, torch.zeros_like(offset)]))


class LogScaleHead(nn.Module):
    """An encoder of means with a layer for log-scales, which is initialized to zero.

    Parameters
    ----------
    encoder : Module, (n, m) -> (n, d)
    n_components : int
        Size d of a latent code.
    """

    def __init__(self, encoder, n_components):
        super().__init__()
        self.encoder, self.log_scale = encoder, skip_init(nn.Linear, n_components, n_components)
        for parameter in self.log_scale.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        """Return means and log-scales (n, 2 d)."""
        mean = self.encoder(x)
        return torch.cat([mean, self.log_scale(mean)], -1)


def init_weights(layer, generator):
    """Initialize a linear or convolutional layer as torch does, from a generator."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def linear(n_inputs, n_outputs, config):
    """Return an initialized linear layer."""
    return init_weights(skip_init(nn.Linear, n_inputs, n_outputs), config.generator)


def activation_block(n_outputs, config, *, images=False):
    """Return the layers after a linear one or a convolution: normalization, activation and dropout."""
    layers = []
    if config.batch_norm:
        layers.append(nn.BatchNorm2d(n_outputs) if images else nn.BatchNorm1d(n_outputs))
    if config.layer_norm:
        # For images, one group is the layer norm over channels and pixels.
        layers.append(nn.GroupNorm(1, n_outputs) if images else nn.LayerNorm(n_outputs))
    layers.append(ACTIVATIONS[config.activation]())
    return [*layers, Dropout(config.dropout)] if config.dropout else layers


def hidden_layers(sizes, config):
    """Return hidden layers of these sizes, the first of which is that of the inputs."""
    layers = []
    for n_inputs, n_outputs in pairwise(sizes):
        layers += [linear(n_inputs, n_outputs, config), *activation_block(n_outputs, config)]
    return layers


def encoder_layers(sizes, n_components, config):
    """Return hidden layers of these sizes and the heads that return the statistics of latent codes."""
    layers = hidden_layers(sizes, config)
    if not config.head_layer_sizes:
        return [*layers, linear(sizes[-1], config.n_statistics * n_components, config)]
    sizes = (sizes[-1], *config.head_layer_sizes)
    heads = (
        nn.Sequential(*hidden_layers(sizes, config), linear(sizes[-1], n_components, config))
        for _ in range(config.n_statistics)
    )
    return [*layers, Heads(heads)]


def mlp_decoder(n_components, n_outputs, config):
    """Return a multi-layer perceptron that mirrors the hidden layers of an encoder."""
    sizes = (n_components + config.n_covariates, *config.head_layer_sizes[::-1], *config.hidden_layer_sizes[::-1])
    return nn.Sequential(*hidden_layers(sizes, config), linear(sizes[-1], n_outputs, config))


def mlp(n_inputs, n_components, n_outputs, config):
    """Return multi-layer perceptrons; the decoder mirrors the encoder.

    Parameters
    ----------
    n_inputs, n_components, n_outputs : int
        Sizes of a sample, of a latent code, and of the output of the decoder.
    config : NetworkConfig

    Returns
    -------
    encoder : Module, (n, n_inputs) -> (n, n_statistics * n_components)
    decoder : Module, (n, n_components) -> (n, n_outputs)
    """
    encoder = nn.Sequential(*encoder_layers((n_inputs, *config.hidden_layer_sizes), n_components, config))
    return encoder, mlp_decoder(n_components, n_outputs, config)


def conv(n_inputs, n_components, n_outputs, config, *, image_shape, channels=(32, 64), kernel_size=3):
    """Return convolutional networks for flat images; the decoder mirrors the encoder.

    Each convolution has stride 2 and halves the image (rounded up for odd kernels). Hidden linear layers may follow.
    Transposed convolutions double it again to exactly the input size of the mirrored convolution.

    Parameters
    ----------
    n_inputs, n_components, n_outputs : int
        Sizes of a sample, of a latent code, and of the output of the decoder: a multiple of ``n_inputs``, one image
        after the other.
    config : NetworkConfig
        Its hidden layers are between the convolutions and the latent code.
    image_shape : tuple of int, (height, width) or (channels, height, width)
        Shape of a sample as an image, in this order.
    channels : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions.
    kernel_size : int or tuple of int, default=3
        Height and width of the kernels, for all convolutions or for each.

    Returns
    -------
    encoder : Module, (n, n_inputs) -> (n, n_statistics * n_components)
    decoder : Module, (n, n_components) -> (n, n_outputs)

    Raises
    ------
    ValueError
        If samples are no such images, if there are no channels, if ``n_outputs`` is not a multiple of ``n_inputs``, or
        if images are too small for an even ``kernel_size``.
    """
    shapes = feature_map_shapes(image_shape, channels, kernel_size, n_inputs)
    if n_outputs % n_inputs:
        raise ValueError(
            f"A convolutional decoder gives whole images, a multiple of {n_inputs} values, but the likelihood asks for "
            f"{n_outputs}; use another likelihood, or architecture='mlp'."
        )
    widths = (math.prod(shapes[-1]), *config.hidden_layer_sizes)
    encoder = [*convolutions(shapes, kernel_size, config), *encoder_layers(widths, n_components, config)]
    widths = (n_components + config.n_covariates, *config.head_layer_sizes[::-1], *widths[::-1])
    decoder = [*hidden_layers(widths, config), Unflatten(shapes[-1])]
    targets = [(shapes[0][0] * (n_outputs // n_inputs), *shapes[0][1:]), *shapes[1:]][::-1]
    for size, (before, after) in zip(per_layer(kernel_size, channels)[::-1], pairwise(targets), strict=True):
        decoder += [transposed_convolution(before, after, size, config)]
        decoder += activation_block(after[0], config, images=True)
    n_last = len(activation_block(1, config, images=True))
    return to_channels_last(nn.Sequential(*encoder), nn.Sequential(*decoder[:-n_last], nn.Flatten()))


def hybrid(n_inputs, n_components, n_outputs, config, *, image_shape, channels=(16, 32, 64), kernel_size=None):
    """Return an encoder with convolutions and a decoder without: about half the time of `conv`.

    Batch normalization is for the convolutions alone: a decoder trained on the latent codes of a batch is wrong about
    those of other samples.

    Parameters
    ----------
    n_inputs, n_components, n_outputs : int
        As for `conv`; the decoder may have any number of outputs.
    config : NetworkConfig
        Its hidden layers are those of the decoder, in reverse.
    image_shape, channels : tuple of int
        As for `conv`.
    kernel_size : int or tuple of int, default=None
        As for `conv`; None is 5, and 3 for the last convolution.

    Returns
    -------
    encoder : Module, (n, n_inputs) -> (n, n_statistics * n_components)
    decoder : Module, (n, n_components) -> (n, n_outputs)

    Raises
    ------
    ValueError
        As for `conv`.
    """
    if kernel_size is None:
        kernel_size = (5,) * (len(channels) - 1) + (3,)
    shapes = feature_map_shapes(image_shape, channels, kernel_size, n_inputs)
    width = math.prod(shapes[-1])
    encoder = [*convolutions(shapes, kernel_size, config), *encoder_layers((width,), n_components, config)]
    decoder = mlp_decoder(n_components, n_outputs, config._replace(batch_norm=False))
    return to_channels_last(nn.Sequential(*encoder), decoder)


def convolutions(shapes, kernel_size, config):
    """Return convolutions through feature maps of these shapes (channels, height, width), from and to flat samples."""
    layers = [nn.Unflatten(1, shapes[0])]
    for size, (before, after) in zip(per_layer(kernel_size, shapes[1:]), pairwise(shapes), strict=True):
        layer = skip_init(nn.Conv2d, before[0], after[0], size, STRIDE, padding(size))
        layers += [init_weights(layer, config.generator), *activation_block(after[0], config, images=True)]
    return [*layers, Flatten()]


def transposed_convolution(small, large, kernel_size, config):
    """Return a transposed convolution from one shape (channels, height, width) to another, about twice as large."""
    pad = padding(kernel_size)
    lengths = (STRIDE * (length - 1) - 2 * pad + kernel_size for length in small[1:])
    output_padding = tuple(target - length for target, length in zip(large[1:], lengths, strict=True))  # 0 or 1
    layer = skip_init(nn.ConvTranspose2d, small[0], large[0], kernel_size, STRIDE, pad, output_padding)
    return init_weights(layer, config.generator)


def to_channels_last(*networks):
    """Return networks whose convolutions have their channels last in memory, which is faster on a CPU."""
    return tuple(network.to(memory_format=torch.channels_last) for network in networks)


def row_width(network, n_inputs):
    """Return the largest number of values in a layer of a network for one sample (n_inputs,), in evaluation mode."""
    widths = [n_inputs]

    def measure(part, inputs, output):
        if isinstance(output, torch.Tensor):  # layers of users' networks may return anything
            widths.append(output.numel())

    hooks = [part.register_forward_hook(measure) for part in network.modules()]
    like = next(network.parameters(), torch.empty(0))
    try:
        with torch.inference_mode():
            network(like.new_zeros(1, n_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return max(widths)


NETWORKS = {"mlp": mlp, "conv": conv, "hybrid": hybrid}
