"""Shapes of images (channels, height, width): checks, and sizes of feature maps."""

import math
from collections.abc import Iterable

IMAGE_CHANNELS = (1, 3, 4)  # of grey values, colours, and colours with opacity
MAX_ASPECT = 4  # of an image, height to width or width to height
STRIDE = 2  # of convolutions


def feature_map_shapes(image_shape, channels, kernel_size, n_inputs):
    """Return shapes (channels, height, width) of the image and the feature maps after each convolution."""
    image_shape = check_image_shape(image_shape, n_inputs)
    if not channels or not all(is_size(number) for number in channels):
        raise ValueError(f"channels={channels!r} should be positive integers, one for each convolution.")
    kernel_sizes = per_layer(kernel_size, channels)
    if len(kernel_sizes) != len(channels) or not all(is_size(size) for size in kernel_sizes):
        raise ValueError(
            f"kernel_size={kernel_size!r} should be a positive integer, or one for each of the {len(channels)} "
            "convolutions."
        )
    shapes = [image_shape]
    for n_channels, size in zip(channels, kernel_sizes, strict=True):
        pixels = tuple((length + 2 * padding(size) - size) // STRIDE + 1 for length in shapes[-1][1:])
        if min(pixels) < 1:
            raise ValueError(
                f"Images of {image_shape[1:]} pixels are too small for {len(kernel_sizes)} convolutions with "
                f"kernel_size={kernel_sizes}; use an odd kernel_size, or fewer channels."
            )
        shapes.append((n_channels, *pixels))
    return shapes


def per_layer(kernel_size, layers):
    """Return the kernel size of each layer."""
    return (kernel_size,) * len(layers) if is_size(kernel_size) else tuple(kernel_size)


def padding(kernel_size):
    """Return the width of the zero padding on each side of an image."""
    return (kernel_size - 1) // 2


def check_image_shape(image_shape, n_features):
    """Return an image shape as (channels, height, width).

    Raises
    ------
    ValueError
        If it is not two or three positive integers, or if their product is not the number of features.
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
    """Raise a ValueError if a shape is (height, width, channels), as in image libraries."""
    if has_channels_last(image_shape):
        height, width, channels = last = tuple(map(int, image_shape))
        raise ValueError(
            f"image_shape={last} has its channels last; give image_shape={(channels, height, width)}, and images with "
            f"channels first: np.moveaxis(X.reshape{(-1, *last)}, -1, 1)."
        )


def has_channels_last(shape):
    """Return whether a shape is (height, width, channels), and can hardly be (channels, height, width).

    The last length is that of grey values, of colours, or of colours and opacity, and the first is larger. Long signals
    (channels, length, 1) do not count, nor small feature maps with many channels, (64, 4, 4) or (8, 3, 3).
    """
    shape = tuple(shape) if isinstance(shape, Iterable) else ()
    if len(shape) != 3 or not all(is_size(length) for length in shape):
        return False
    height, width, channels = shape
    is_long = max(height, width) > MAX_ASPECT * min(height, width)
    return channels in IMAGE_CHANNELS and height > max(IMAGE_CHANNELS) and not is_long and width != channels


def is_size(number):
    """Return whether a number is a positive integer."""
    return hasattr(number, "__index__") and not isinstance(number, bool) and number > 0
