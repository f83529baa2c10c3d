"""Augmented views of training rows: images that are rotated, shifted, scaled and sheared a little."""

import functools
import math

import torch
import torch.nn.functional as F

from ..models.images import check_image_shape


def affine_views(u, image_shape, generator, *, rotation=10.0, shift=0.08, log_scale=0.1, shear=0.1):
    """Return random affine views of images, one draw for each image.

    Each amount is uniform between plus and minus its limit. Pixels from outside of an image are zero, and others are
    interpolated between their four neighbours.

    Parameters
    ----------
    u : Tensor of shape (n, d)
        Flat images.
    image_shape : tuple of int, (height, width) or (channels, height, width)
        Shape of a row as an image.
    generator : torch.Generator
        Source of the draws, on the device of u.
    rotation : float, default=10.0
        Largest angle in degrees.
    shift : float, default=0.08
        Largest shift along each axis, as a share of the height and width: about 2 pixels of 28.
    log_scale : float, default=0.1
        Largest logarithm of the magnification: about 10 percent.
    shear : float, default=0.1
        Largest horizontal displacement of pixels relative to their vertical distance from the centre.

    Returns
    -------
    views : Tensor of shape (n, d)
        In the dtype of u.
    """
    draws = torch.empty(5, len(u), dtype=u.dtype, device=u.device).uniform_(-1, 1, generator=generator)
    limits = math.radians(rotation), shift, shift, log_scale, shear
    return warp(u, image_shape, *(draw * limit for draw, limit in zip(draws, limits, strict=True)))


def warp(u, image_shape, angle, shift_x, shift_y, log_scale, shear):
    """Shear images, magnify them, rotate them about their centre and shift them.

    Parameters
    ----------
    u : Tensor of shape (n, d)
        Flat images.
    image_shape : tuple of int, (height, width) or (channels, height, width)
        Shape of a row as an image.
    angle : Tensor of shape (n,)
        Angles in radians, clockwise on a screen (the rows of an image go down).
    shift_x, shift_y : Tensor of shape (n,)
        Shifts to the right and down, as shares of the width and the height.
    log_scale : Tensor of shape (n,)
        Logarithms of the magnification.
    shear : Tensor of shape (n,)
        Displacement to the right of a pixel at unit distance below the centre.

    Returns
    -------
    views : Tensor of shape (n, d)
    """
    channels, height, width = check_image_shape(image_shape, u.shape[1])
    # Each pixel of the view is sampled from its origin, hence the inverse: shift, rotate, scale and shear back.
    cos, sin, shrink = angle.cos(), angle.sin(), (-log_scale).exp()
    turned = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)  # (n, 2, 2)
    sheared = torch.stack([turned[:, 0] - shear[:, None] * turned[:, 1], turned[:, 1]], 1)
    matrix = shrink[:, None, None] * sheared
    # Coordinates run from -1 to 1 along each side, so that a unit of width is not one of height.
    matrix[:, 0, 1].mul_(height / width)
    matrix[:, 1, 0].mul_(width / height)
    offset = -matrix @ torch.stack([2 * shift_x, 2 * shift_y], -1)[..., None]  # (n, 2, 1)
    shape = (len(u), channels, height, width)
    grid = F.affine_grid(torch.cat([matrix, offset], -1), shape, align_corners=False)
    return F.grid_sample(u.reshape(shape), grid, padding_mode="zeros", align_corners=False).flatten(1)


AUGMENTATIONS = {"affine": affine_views}


def resolve_augment(augment, image_shape, **limits):
    """Return a function that makes augmented views of rows, or None.

    Parameters
    ----------
    augment : None, {"affine"} or callable
        A callable takes rows (n, d) and a torch.Generator on their device, and returns views (n, d).
    image_shape : tuple of int or None
        Shape of a row as an image, which "affine" needs.
    **limits
        Limits of named augmentations in place of their defaults.

    Returns
    -------
    views : callable, (Tensor (n, d), torch.Generator) -> Tensor (n, d), or None

    Raises
    ------
    ValueError
        If the name is unknown or needs ``image_shape``. When called: if rows are no such images, or if a callable
        returns another shape.
    TypeError
        If it is neither a name nor callable. When called: if a callable does not return a tensor.
    """
    if augment is None:
        return None
    if callable(augment):
        return functools.partial(checked_views, augment)
    if not isinstance(augment, str):
        raise TypeError(f"augment={augment!r} should be None, one of {sorted(AUGMENTATIONS)} or callable.")
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment={augment!r} is unknown; use None, one of {sorted(AUGMENTATIONS)} or a callable.")
    if image_shape is None:
        raise ValueError(f"augment={augment!r} makes views of images, so it needs image_shape, such as (28, 28).")
    return functools.partial(image_views, functools.partial(AUGMENTATIONS[augment], **limits), tuple(image_shape))


def image_views(function, image_shape, u, generator):
    """Return augmented views of rows of images."""
    return function(u, image_shape, generator)


def checked_views(function, u, generator):
    """Return views from a function of the user's: a tensor of the same shape, or an error."""
    views = function(u, generator)
    if not isinstance(views, torch.Tensor):
        raise TypeError(f"augment should return a tensor of views, but returned {type(views).__name__}.")
    if views.shape != u.shape:
        raise ValueError(f"augment should return views of shape {tuple(u.shape)}, but returned {tuple(views.shape)}.")
    return views
