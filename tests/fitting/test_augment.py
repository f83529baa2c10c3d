"""Random views of images."""

import math

import pytest
import torch
from torch.testing import assert_close

from skvae.fitting.augment import AUGMENTATIONS, affine_views, resolve_augment, warp

STILL = {"rotation": 0.0, "shift": 0.0, "log_scale": 0.0, "shear": 0.0}


def blob(height=28, width=28):
    """A round bright spot in the middle of an image."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return torch.exp(-(x**2 + y**2) / (2 * (min(height, width) / 8) ** 2))


def move(images, **amounts):
    """Flat images (n, h * w) moved by the same known amounts."""
    n, height, width = images.shape
    names = ("angle", "shift_x", "shift_y", "log_scale", "shear")
    amounts = {name: torch.full((n,), float(amounts.get(name, 0.0))) for name in names}
    return warp(images.reshape(n, -1), (height, width), **amounts).view(n, height, width)


@pytest.mark.parametrize("shape", [(6, 9), (3, 7, 5), (1, 1), (2, 1, 4)])
def test_nothing_moves_if_the_limits_are_zero(shape, generator):
    u = torch.rand(20, math.prod(shape), generator=generator)
    assert_close(affine_views(u, shape, generator, **STILL), u, rtol=0, atol=1e-5)


def test_known_shifts(generator):
    images = torch.rand(4, 8, 10, generator=generator)
    right = move(images, shift_x=0.2)
    assert_close(right[:, :, 2:], images[:, :, :-2], rtol=0, atol=1e-5)
    assert_close(right[:, :, :2], torch.zeros(4, 8, 2), rtol=0, atol=1e-5)
    down = move(images, shift_y=0.25)
    assert_close(down[:, 2:], images[:, :-2], rtol=0, atol=1e-5)
    assert_close(down[:, :2], torch.zeros(4, 2, 10), rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles(turns, generator):
    images = torch.rand(4, 9, 9, generator=generator)
    turned = move(images, angle=turns * math.pi / 2)
    assert_close(turned, torch.rot90(images, -turns, (1, 2)), rtol=0, atol=1e-4)


def test_turning_keeps_the_form_of_wide_images():
    """Pixels are square, whatever the form of the image: a round spot stays round."""
    spot = blob(20, 44)[None]
    assert_close(move(spot, angle=0.7), spot, rtol=0, atol=0.03)


def test_magnification_and_shear():
    spot = blob(41, 41)[None]
    assert move(spot, log_scale=math.log(1.3)).sum().item() == pytest.approx(1.3**2 * spot.sum().item(), rel=0.01)
    sheared = move(spot, shear=0.5)[0]
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    mass = sheared / sheared.sum()
    assert ((mass * x * y).sum() / (mass * y * y).sum()).item() == pytest.approx(0.5, abs=0.01)


def test_turned_then_shifted():
    spot = torch.zeros(1, 21, 21)
    spot[0, 10, 15] = 1.0  # right of the centre by 5; turned, below it by 5; shifted, up by 3 and right by 2
    found = move(spot, angle=math.pi / 2, shift_x=2 / 21, shift_y=-3 / 21)
    assert divmod(int(found.argmax()), 21) == (12, 12)


def test_views_differ_by_image_and_follow_the_generator(generator):
    spots = blob().flatten().expand(30, -1)
    before = torch.get_rng_state()
    one, two, three = (affine_views(spots, (28, 28), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert len(one.unique(dim=0)) == 30
    assert one.dtype == torch.float32


def test_views_stay_near_the_images(generator):
    spots = blob().flatten().expand(200, -1)
    views = affine_views(spots, (28, 28), generator)
    ratio = views.sum(1) / spots.sum(1)
    assert ((ratio > math.exp(-0.2) - 0.05) & (ratio < math.exp(0.2) + 0.05)).all()
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.05)
    assert views.min() >= 0
    assert views.max() <= 1 + 1e-6
    rows = (views.view(-1, 28, 28).sum(2) @ torch.arange(28.0)) / views.sum(1) - 13.5
    assert rows.abs().max() < 0.08 * 28 + 0.1
    assert rows.abs().max() > 0.06 * 28


def test_channels_move_together(generator):
    one = torch.rand(5, 49, generator=generator)
    views = affine_views(torch.cat([one, 2 * one, -one], 1), (3, 7, 7), generator)
    first, second, third = views.split(49, dim=1)
    assert_close(second, 2 * first)
    assert_close(third, -first)


def test_each_limit_counts():
    u = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    defaults = {"rotation": 10.0, "shift": 0.08, "log_scale": 0.1, "shear": 0.1}
    assert defaults.keys() == STILL.keys()
    for name, value in defaults.items():
        view = affine_views(u, (8, 8), torch.Generator().manual_seed(0), **STILL | {name: value})
        assert (view - u).abs().max() > 0.01


def test_choices(generator):
    u = torch.rand(6, 12, generator=generator)
    assert resolve_augment(None, None) is None
    for name, function in AUGMENTATIONS.items():
        views = resolve_augment(name, [3, 4])(u, torch.Generator().manual_seed(3))
        assert torch.equal(views, function(u, (3, 4), torch.Generator().manual_seed(3)))
    noisy = resolve_augment(lambda u, generator: u + torch.randn(u.shape, generator=generator), None)
    assert noisy(u, generator).shape == u.shape


def test_wrong_choices(generator):
    u = torch.rand(6, 12, generator=generator)
    with pytest.raises(ValueError, match="augment='flip' is unknown"):
        resolve_augment("flip", (3, 4))
    with pytest.raises(ValueError, match="needs image_shape"):
        resolve_augment("affine", None)
    with pytest.raises(TypeError, match="augment=3 should be None"):
        resolve_augment(3, (3, 4))
    with pytest.raises(ValueError, match=r"Images of shape \(5, 4\) have 20 values, but rows have 12"):
        resolve_augment("affine", (5, 4))(u, generator)
    with pytest.raises(ValueError, match=r"views of shape \(6, 12\), but returned \(5, 12\)"):
        resolve_augment(lambda u, generator: u[1:], None)(u, generator)
    with pytest.raises(TypeError, match="should return a tensor of views, but returned ndarray"):
        resolve_augment(lambda u, generator: u.numpy(), None)(u, generator)
