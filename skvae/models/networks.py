"""Networks: pairs of an encoder and a decoder, from flat rows to codes and back.

Conventions
-----------
Starting values are those of torch, drawn from a private generator. Networks have no random state of their own: dropout
draws from a generator that `set_generator` hands over for training.
"""

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
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
IMAGE_CHANNELS = (1, 3, 4)  # of grey values, colours, and colours with opacity
MAX_ASPECT = 4  # of an image, height to width or width to height
STRIDE = 2


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
        """The values, some of them dropped in training."""
        if not self.training:
            return x
        if self.generator is None:
            raise ValueError("Dropout has no random generator to train with; call set_generator(module, generator).")
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * keep / (1 - self.p)

    def extra_repr(self):
        """What print shows."""
        return f"p={self.p}"

    def __getstate__(self):
        return {**self.__dict__, "generator": None}


def set_generator(module, generator):
    """Hand the generator to every `Dropout` inside a module; None takes it away.

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
    """Images (n, c, h, w) as rows, with the channels of a pixel side by side: their order in memory inside networks."""

    def forward(self, x):
        """The rows (n, h * w * c)."""
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
        """The images (n, c, h, w)."""
        channels, height, width = self.shape
        return x.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)

    def extra_repr(self):
        """What print shows."""
        return f"{self.shape}"


def start(layer, generator):
    """A linear or convolutional layer with torch's usual starting values, drawn from a private generator."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def linear(n_inputs, n_outputs, generator):
    """A linear layer with torch's usual starting values, drawn from a private generator."""
    return start(skip_init(nn.Linear, n_inputs, n_outputs), generator)


def finish(n_outputs, activation, batch_norm, layer_norm, dropout, *, images=False):
    """What follows a hidden layer: normalisation, activation and dropout."""
    layers = []
    if batch_norm:
        layers.append(nn.BatchNorm2d(n_outputs) if images else nn.BatchNorm1d(n_outputs))
    if layer_norm:
        # For images, one group is the layer norm over channels and pixels.
        layers.append(nn.GroupNorm(1, n_outputs) if images else nn.LayerNorm(n_outputs))
    layers.append(ACTIVATIONS[activation]())
    return [*layers, Dropout(dropout)] if dropout else layers


def hidden(sizes, generator, **settings):
    """Hidden layers through these sizes."""
    layers = []
    for n_inputs, n_outputs in pairwise(sizes):
        layers += [linear(n_inputs, n_outputs, generator), *finish(n_outputs, **settings)]
    return layers


class Heads(nn.Module):
    """Networks side by side on the same rows; their outputs are joined."""

    def __init__(self, heads):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x):
        """The outputs one after the other (n, sum of their sizes)."""
        return torch.cat([head(x) for head in self.heads], -1)


def statistics_of(n_inputs, head_layer_sizes, n_components, n_statistics, generator, **settings):
    """The end of an encoder: layers from hidden values to the statistics of the codes."""
    if not head_layer_sizes:
        return [linear(n_inputs, n_statistics * n_components, generator)]
    sizes = (n_inputs, *head_layer_sizes)
    last = sizes[-1], n_components, generator
    return [Heads(nn.Sequential(*hidden(sizes, generator, **settings), linear(*last)) for _ in range(n_statistics))]


def mlp(
    n_inputs,
    n_components,
    n_outputs,
    *,
    hidden_layer_sizes,
    head_layer_sizes=(),
    activation,
    batch_norm=False,
    layer_norm=False,
    dropout=0.0,
    n_statistics=2,
    generator,
):
    """Multi-layer perceptrons; the decoder mirrors the encoder.

    Parameters
    ----------
    n_inputs, n_components, n_outputs : int
        Sizes of a row, of a code, and of what the decoder gives.
    hidden_layer_sizes : tuple of int
        Widths of the encoder's hidden layers.
    head_layer_sizes : tuple of int, default=()
        Widths of further layers, which the means and the log-scales have each for themselves. The decoder has them
        once.
    activation : str
        A key of ``ACTIVATIONS``.
    batch_norm, layer_norm : bool, default=False
        Whether hidden layers are followed by batch or layer normalisation.
    dropout : float, default=0.0
        Probability that a hidden value is dropped in training.
    n_statistics : int, default=2
        What the encoder gives for each dimension of a code: mean and log-scale, or the mean alone.
    generator : torch.Generator
        Source of the starting values.

    Returns
    -------
    encoder : Module, (n, n_inputs) -> (n, n_statistics * n_components)
    decoder : Module, (n, n_components) -> (n, n_outputs)
    """
    sizes = (n_inputs, *hidden_layer_sizes)
    settings = {"activation": activation, "batch_norm": batch_norm, "layer_norm": layer_norm, "dropout": dropout}
    encoder = hidden(sizes, generator, **settings)
    encoder += statistics_of(sizes[-1], head_layer_sizes, n_components, n_statistics, generator, **settings)
    sizes = (n_components, *head_layer_sizes[::-1], *sizes[:0:-1])
    decoder = [*hidden(sizes, generator, **settings), linear(sizes[-1], n_outputs, generator)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def conv(
    n_inputs,
    n_components,
    n_outputs,
    *,
    image_shape,
    channels=(32, 64),
    kernel_size=3,
    hidden_layer_sizes=(),
    head_layer_sizes=(),
    activation,
    batch_norm=False,
    layer_norm=False,
    dropout=0.0,
    n_statistics=2,
    generator,
):
    """Convolutional networks for flat rows of images; the decoder mirrors the encoder.

    Each convolution has stride 2 and halves the image (rounded up for odd kernels). Hidden linear layers may follow.
    Transposed convolutions double it again to exactly the size that the mirrored convolution had seen.

    Parameters
    ----------
    n_inputs, n_components, n_outputs : int
        Sizes of a row, of a code, and of what the decoder gives: a multiple of ``n_inputs``. The decoder then gives
        one image after the other.
    image_shape : tuple of int, (height, width) or (channels, height, width)
        Shape of a row as an image, in this order.
    channels : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions.
    kernel_size : int or tuple of int, default=3
        Height and width of the kernels, for all convolutions or for each.
    hidden_layer_sizes : tuple of int, default=()
        Widths of linear layers between the convolutions and the code.
    head_layer_sizes, activation, batch_norm, layer_norm, dropout, n_statistics, generator
        As for `mlp`.

    Returns
    -------
    encoder : Module, (n, n_inputs) -> (n, n_statistics * n_components)
    decoder : Module, (n, n_components) -> (n, n_outputs)

    Raises
    ------
    ValueError
        If rows are no such images, if there are no channels, if ``n_outputs`` is not a multiple of ``n_inputs``, or if
        images are too small for an even ``kernel_size``.
    """
    shapes = image_sizes(image_shape, channels, kernel_size, n_inputs)
    if n_outputs % n_inputs:
        raise ValueError(
            f"A convolutional decoder gives whole images, a multiple of {n_inputs} values, but the likelihood asks for "
            f"{n_outputs}; use another likelihood, or architecture='mlp'."
        )
    settings = {"activation": activation, "batch_norm": batch_norm, "layer_norm": layer_norm, "dropout": dropout}
    widths = (math.prod(shapes[-1]), *hidden_layer_sizes)
    encoder = [
        *convolutions(shapes, kernel_size, generator, **settings),
        *hidden(widths, generator, **settings),
        *statistics_of(widths[-1], head_layer_sizes, n_components, n_statistics, generator, **settings),
    ]

    widths = (n_components, *head_layer_sizes[::-1], *widths[::-1])
    decoder = [*hidden(widths, generator, **settings), Unflatten(shapes[-1])]
    targets = [(shapes[0][0] * (n_outputs // n_inputs), *shapes[0][1:]), *shapes[1:]][::-1]
    for size, (before, after) in zip(per_layer(kernel_size, channels)[::-1], pairwise(targets), strict=True):
        decoder += [upsampling(before, after, size, generator), *finish(after[0], images=True, **settings)]
    n_last = len(finish(1, images=True, **settings))
    return beside_channels(nn.Sequential(*encoder), nn.Sequential(*decoder[:-n_last], nn.Flatten()))


def hybrid(
    n_inputs,
    n_components,
    n_outputs,
    *,
    image_shape,
    channels=(16, 32, 64),
    kernel_size=None,
    hidden_layer_sizes=(512, 256),
    head_layer_sizes=(),
    activation,
    batch_norm=False,
    layer_norm=False,
    dropout=0.0,
    n_statistics=2,
    generator,
):
    """Convolutions in the encoder, perceptrons in the decoder: about half the time of `conv`.

    Batch normalisation is for the convolutions alone: a decoder that has learned from the codes of a batch is wrong
    about the codes of other rows.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(512, 256)
        Widths of the decoder's hidden layers, in reverse.
    kernel_size : int or tuple of int, default=None
        As for `conv`; None is 5, and 3 for the last convolution.
    n_inputs, n_components, n_outputs, image_shape, channels
        As for `conv`; the decoder may give any number of outputs.
    head_layer_sizes, activation, batch_norm, layer_norm, dropout, n_statistics, generator
        As for `mlp`.

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
    shapes = image_sizes(image_shape, channels, kernel_size, n_inputs)
    settings = {"activation": activation, "batch_norm": batch_norm, "layer_norm": layer_norm, "dropout": dropout}
    width = math.prod(shapes[-1])
    encoder = [
        *convolutions(shapes, kernel_size, generator, **settings),
        *statistics_of(width, head_layer_sizes, n_components, n_statistics, generator, **settings),
    ]
    sizes = (n_components, *head_layer_sizes[::-1], *hidden_layer_sizes[::-1])
    decoder = [*hidden(sizes, generator, **settings | {"batch_norm": False}), linear(sizes[-1], n_outputs, generator)]
    return beside_channels(nn.Sequential(*encoder), nn.Sequential(*decoder))


def beside_channels(*networks):
    """The networks, with the channels of a pixel side by side in memory: convolutions on a CPU take less time so."""
    return tuple(network.to(memory_format=torch.channels_last) for network in networks)


def convolutions(shapes, kernel_size, generator, **settings):
    """Convolutions through images of these shapes (channels, height, width), from rows and to rows."""
    layers = [nn.Unflatten(1, shapes[0])]
    sizes = per_layer(kernel_size, shapes[1:])
    for size, (before, after) in zip(sizes, pairwise(shapes), strict=True):
        layer = skip_init(nn.Conv2d, before[0], after[0], size, STRIDE, padding(size))
        layers += [start(layer, generator), *finish(after[0], images=True, **settings)]
    return [*layers, Flatten()]


def per_layer(kernel_size, layers):
    """The size of the kernels of each layer."""
    return (kernel_size,) * len(layers) if is_size(kernel_size) else tuple(kernel_size)


def image_sizes(image_shape, channels, kernel_size, n_inputs):
    """Shapes (channels, height, width) of images before and after each convolution."""
    image_shape = check_image_shape(image_shape, n_inputs)
    if not channels or not all(is_size(number) for number in channels):
        raise ValueError(f"channels={channels!r} should be positive integers, one for each convolution.")
    kernel_sizes = per_layer(kernel_size, channels)
    if len(kernel_sizes) != len(channels) or not all(is_size(size) for size in kernel_sizes):
        raise ValueError(
            f"kernel_size={kernel_size!r} should be a positive integer, or one for each of the {len(channels)} "
            "convolutions."
        )
    sizes = shrinking_sizes(image_shape[1:], kernel_sizes)
    return [(planes, *size) for planes, size in zip((image_shape[0], *channels), sizes, strict=True)]


def upsampling(small, large, kernel_size, generator):
    """A transposed convolution from images of one shape (channels, height, width) to another, about twice as large."""
    pad = padding(kernel_size)
    reached = (STRIDE * (length - 1) - 2 * pad + kernel_size for length in small[1:])
    missing = tuple(wanted - length for wanted, length in zip(large[1:], reached, strict=True))  # 0 or 1
    layer = skip_init(nn.ConvTranspose2d, small[0], large[0], kernel_size, STRIDE, pad, missing)
    return start(layer, generator)


def padding(kernel_size):
    """Rows of zeros on each side of an image."""
    return (kernel_size - 1) // 2


def shrinking_sizes(size, kernel_sizes):
    """Sizes (height, width) of images before and after each convolution."""
    sizes = [tuple(size)]
    for kernel_size in kernel_sizes:
        size = tuple((length + 2 * padding(kernel_size) - kernel_size) // STRIDE + 1 for length in size)
        if min(size) < 1:
            raise ValueError(
                f"Images of {sizes[0]} pixels are too small for {len(kernel_sizes)} convolutions with "
                f"kernel_size={kernel_size}; use an odd kernel_size, or fewer channels."
            )
        sizes.append(size)
    return sizes


def check_image_shape(image_shape, n_features):
    """The shape (channels, height, width) of rows of this length.

    Raises
    ------
    ValueError
        If it is not two or three positive integers, or if rows have another length.
    """
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    if len(shape) not in (2, 3) or not all(is_size(length) for length in shape):
        raise ValueError(
            f"image_shape={image_shape!r} should be (height, width) or (channels, height, width), positive integers."
        )
    shape = tuple(int(length) for length in shape)
    if math.prod(shape) != n_features:
        raise ValueError(
            f"Images of shape {shape} have {math.prod(shape)} values, but rows have {n_features}; change image_shape."
        )
    return (1, *shape)[-3:]


def check_channels_first(image_shape):
    """Raise a ValueError if a shape is (height, width, channels), as image libraries have it."""
    if has_channels_last(image_shape):
        height, width, channels = last = tuple(map(int, image_shape))
        raise ValueError(
            f"image_shape={last} has its channels last; give image_shape={(channels, height, width)}, and images with "
            f"channels first: np.moveaxis(X.reshape{(-1, *last)}, -1, 1)."
        )


def has_channels_last(shape):
    """Whether a shape is (height, width, channels), and can hardly be (channels, height, width).

    The last length is that of grey values, of colours, or of colours and opacity, and the first is larger. Long signals
    (channels, length, 1) do not count, nor small maps of many channels, (64, 4, 4) or (8, 3, 3).
    """
    shape = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(shape) != 3 or not all(is_size(length) for length in shape):
        return False
    height, width, channels = shape
    is_long = max(height, width) > MAX_ASPECT * min(height, width)
    return channels in IMAGE_CHANNELS and height > max(IMAGE_CHANNELS) and not is_long and width != channels


def is_size(number):
    """Whether it is a positive integer."""
    return hasattr(number, "__index__") and not isinstance(number, bool) and number > 0


def row_width(network, n_inputs):
    """The largest number of values that a layer of a network holds for one row (n_inputs,) in evaluation mode."""
    widths = [n_inputs]

    def measure(part, inputs, output):
        if isinstance(output, torch.Tensor):  # modules of the user's may give anything between
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


class Affine(nn.Module):
    """A fixed map of each feature: ``scale * x + offset``."""

    def __init__(self, scale, offset):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x):
        """The rows in other units (n, d)."""
        return torch.addcmul(self.offset, self.scale, x)


class LogScaleHead(nn.Module):
    """An encoder of points with log-scales beside them, which begin at zero.

    Parameters
    ----------
    encoder : Module, (n, m) -> (n, d)
    n_components : int
        Size d of a code.
    """

    def __init__(self, encoder, n_components):
        super().__init__()
        self.encoder, self.log_scale = encoder, skip_init(nn.Linear, n_components, n_components)
        for parameter in self.log_scale.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        """Means and log-scales (n, 2 d)."""
        mean = self.encoder(x)
        return torch.cat([mean, self.log_scale(mean)], -1)


NETWORKS = {"mlp": mlp, "conv": conv, "hybrid": hybrid}
