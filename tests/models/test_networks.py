"""Networks: shapes for any image, initial parameters, dropout from a private generator."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from skvae.models import ACTIVATIONS, NETWORKS
from skvae.models import networks as networks_module
from skvae.models.images import check_image_shape
from skvae.models.networks import Dropout, LatentNorm, NetworkConfig, conv, mlp, row_width, set_generator

K = 3
IMAGE = {"image_shape": (2, 5, 6), "channels": (4, 3)}
EXTRAS = [
    {},
    {"batch_norm": True},
    {"layer_norm": True},
    {"dropout": 0.3},
    {"batch_norm": True, "layer_norm": True, "dropout": 0.1},
    {"head_layer_sizes": (6, 5)},
]
over_networks = pytest.mark.parametrize("name", NETWORKS)


def build(name, seed=0, n_outputs=60, **settings):
    """Return networks for samples of 60 features."""
    image = {} if name == "mlp" else {key: settings.pop(key, value) for key, value in IMAGE.items()}
    settings = {"activation": "tanh", "hidden_layer_sizes": (8, 7) if name == "mlp" else (7,)} | settings
    config = NetworkConfig(generator=torch.Generator().manual_seed(seed), **settings)
    return NETWORKS[name](60, K, n_outputs, config, **image)


@over_networks
@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("hidden", [(), (9,), (9, 8)])
def test_shapes_and_gradients(name, extras, hidden, generator):
    encoder, decoder = build(name, n_outputs=120, hidden_layer_sizes=hidden, **extras)
    for network in (encoder, decoder):
        set_generator(network, generator)
    codes = encoder(torch.rand(10, 60, generator=generator))
    params = decoder(codes[:, :K] * codes[:, K:])
    assert codes.shape == (10, 2 * K)
    assert params.shape == (10, 120)
    params.square().sum().backward()
    # A shift before batch normalisation has no effect, and its gradient is rounding.
    gradients = [p.grad for network in (encoder, decoder) for p in network.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert "batch_norm" in extras or all(gradient.abs().sum() > 0 for gradient in gradients)


@over_networks
def test_layers_of_every_activation(name):
    # Two convolutions and a hidden layer; back, the last transposed convolution has none.
    expected = {"mlp": [1, 1], "conv": [3, 3], "hybrid": [2, 1]}[name]
    for key, cls in ACTIVATIONS.items():
        networks = build(name, activation=key, hidden_layer_sizes=(9,))
        assert [sum(isinstance(layer, cls) for layer in network) for network in networks] == expected
    encoder, _ = build(name, batch_norm=True, layer_norm=True, dropout=0.1)
    order = [type(layer) for layer in encoder[-5:]]
    if name == "hybrid":
        assert order == [nn.GroupNorm, nn.Tanh, Dropout, networks_module.Flatten, nn.Linear]
    else:
        assert order == [nn.BatchNorm1d, nn.LayerNorm, nn.Tanh, Dropout, nn.Linear]


def test_batch_norm_of_hybrids_is_for_the_convolutions():
    """A decoder trained on the latent codes of batches is wrong about those of other samples."""
    encoder, decoder = build("hybrid", batch_norm=True)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in encoder) == 2
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in (*encoder[-1:], *decoder))


@over_networks
def test_equal_seeds_equal_networks(name):
    before = torch.get_rng_state()
    one, two, three = (build(name, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    for network, twin, other in zip(one, two, three, strict=True):
        states = zip(network.parameters(), twin.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(p, q) and not torch.equal(p, r) for p, q, r in states)


@over_networks
def test_copies_and_precision(name, generator):
    x = torch.rand(5, 60, generator=generator)
    for network, rows in zip(build(name, dropout=0.2), (x, x[:, :K]), strict=True):
        network.eval()
        expected = network(rows)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(rows), expected)
        assert_close(network.to(torch.float64)(rows.double()), expected.double(), rtol=1e-5, atol=1e-5)


@over_networks
def test_initial_parameters_are_distributed_as_in_torch(name):
    """Uniform within 1 / sqrt(fan in), which for transposed convolutions is that of their outputs, as in torch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for network in build(name, hidden_layer_sizes=(200,), **({"channels": (30, 40)} if name == "conv" else {})):
            for layer in network:
                if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    continue
                twin = copy.deepcopy(layer)
                twin.reset_parameters()
                for one, two in zip(layer.parameters(), twin.parameters(), strict=True):
                    assert one.abs().max().item() <= 1 / math.sqrt(layer.weight[0].numel())
                    if one.numel() > 500:
                        assert one.std().item() == pytest.approx(two.std().item(), rel=0.1)
                        assert one.abs().max().item() == pytest.approx(two.abs().max().item(), rel=0.02)


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 17), st.integers(1, 17)),
        st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    ),
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    kernel_size=st.sampled_from([1, 3, 5]),
    multiple=st.integers(1, 2),
)
def test_decoders_return_the_size_of_any_image(shape, channels, kernel_size, multiple):
    n = math.prod(shape)
    config = NetworkConfig("relu", torch.Generator().manual_seed(0))
    encoder, decoder = conv(n, K, multiple * n, config, image_shape=shape, channels=channels, kernel_size=kernel_size)
    assert encoder(torch.ones(2, n)).shape == (2, 2 * K)
    assert decoder(torch.ones(2, K)).shape == (2, multiple * n)


@pytest.mark.parametrize(("shape", "kernel_size"), [((28, 28), 4), ((9, 7), 2), ((3, 12, 10), 4)])
def test_even_kernels(shape, kernel_size):
    n = math.prod(shape)
    config = NetworkConfig("relu", torch.Generator().manual_seed(0))
    encoder, decoder = conv(n, K, n, config, image_shape=shape, channels=(2, 3), kernel_size=kernel_size)
    assert decoder(encoder(torch.ones(2, n))[:, :K]).shape == (2, n)
    with pytest.raises(ValueError, match=r"Images of \(1, 4\) pixels are too small for 2 convolutions"):
        conv(4, K, 4, config, image_shape=(1, 4), channels=(2, 3), kernel_size=kernel_size)


def test_pixels_keep_their_order(generator):
    """The first layers agree with torch's on reshaped samples; flat outputs are one image after the other."""
    encoder, decoder = build("conv", n_outputs=120)
    x = torch.rand(4, 60, generator=generator)
    assert_close(encoder[:2](x), encoder[1](x.view(4, 2, 5, 6)))
    z = torch.rand(4, K, generator=generator)
    images = decoder[:-1](z)
    assert images.shape == (4, 4, 5, 6)
    assert_close(decoder(z), images.reshape(4, 120))


def test_convolutions_are_local(generator):
    """A changed pixel changes the first feature maps only around it: images are not scrambled."""
    encoder, _ = conv(64, K, 64, NetworkConfig("relu", generator), image_shape=(8, 8))
    x = torch.rand(1, 64, generator=generator)
    y = x.clone().view(1, 8, 8)
    y[0, 4, 2] += 1
    changed = (encoder[:2](x) != encoder[:2](y.view(1, 64))).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 1]]


def test_heads_are_separate():
    """784-400-196-48 and two heads 48-16-2, back through 16-48-196-400: 810,012 parameters with batch norm."""
    config = NetworkConfig("tanh", torch.Generator().manual_seed(0), (400, 196, 48), (16,), batch_norm=True)
    encoder, decoder = mlp(784, 2, 784, config)
    assert sum(p.numel() for network in (encoder, decoder) for p in network.parameters()) == 810_012
    x = torch.rand(5, 784)
    mean, log_scale = encoder(x).chunk(2, -1)
    with torch.no_grad():
        encoder[-1].heads[1][-1].bias += 1  # of the log-scale
    changed = encoder(x).chunk(2, -1)
    assert_close(changed[0], mean)
    assert_close(changed[1], log_scale + 1)


def test_a_published_network_by_hand():
    """Convolutions 1 -> 16 -> 32, kernel 3, stride 2, padding 1; back with output padding 1; two latents."""
    config = NetworkConfig("relu", torch.Generator().manual_seed(0))
    networks = conv(784, 2, 784, config, image_shape=(28, 28), channels=(16, 32))
    encoder = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 4),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(2, 32 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 3, stride=2, padding=1, output_padding=1), nn.Flatten(),
    )  # fmt: skip
    for network, twin, rows in zip(networks, (encoder, decoder), (torch.rand(3, 784), torch.rand(3, 2)), strict=True):
        assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in twin.parameters())
        state = {name: channels_first(values) for name, values in network.state_dict().items()}
        twin.load_state_dict(state)
        assert_close(network(rows), twin(rows))


def channels_first(values, shape=(32, 7, 7)):
    """Return parameters of a linear layer next to images in the order of torch; ours has channels last."""
    c, h, w = shape
    if values.ndim == 2 and values.shape[1] == c * h * w:  # inputs are images
        return values.view(-1, h, w, c).permute(0, 3, 1, 2).flatten(1)
    if values.shape[0] == c * h * w:  # outputs are images
        return values.view(h, w, c, -1).permute(2, 0, 1, 3).reshape(values.shape)
    return values


def test_wrong_images():
    config = NetworkConfig("relu", torch.Generator())
    for wrong in (None, 8, (8,), (1, 2, 3, 4), (8, -8), (8.0, 8.0), (True, 64)):
        with pytest.raises(ValueError, match=r"should be \(height, width\) or \(channels, height, width\)"):
            conv(64, K, 64, config, image_shape=wrong)
    with pytest.raises(ValueError, match=r"Images of shape \(8, 9\) have 72 values, but rows have 64"):
        conv(64, K, 64, config, image_shape=(8, 9))
    with pytest.raises(ValueError, match="a multiple of 64 values, but the likelihood asks for 65"):
        conv(64, K, 65, config, image_shape=(8, 8))
    for wrong in ((), (0,), (2.5,)):
        with pytest.raises(ValueError, match="should be positive integers, one for each convolution"):
            conv(64, K, 64, config, image_shape=(8, 8), channels=wrong)
    assert check_image_shape([4, 5], 20) == (1, 4, 5)


def test_dropout_rate_and_scale(generator):
    dropout = Dropout(0.25)
    set_generator(dropout, generator)
    x = torch.full((200, 500), 3.0)
    before = torch.get_rng_state()
    out = dropout(x)
    assert torch.equal(before, torch.get_rng_state())
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out[out != 0].unique().tolist() == [4.0]
    assert not torch.equal(out, dropout(x))
    set_generator(dropout, torch.Generator().manual_seed(0))
    assert torch.equal(out, dropout(x))
    assert torch.equal(dropout.eval()(x), x)


@over_networks
def test_dropout_needs_a_generator_to_train(name, generator):
    encoder, _ = build(name, dropout=0.5)
    x = torch.rand(5, 60, generator=generator)
    with pytest.raises(ValueError, match="call set_generator"):
        encoder(x)
    set_generator(encoder, generator)
    encoder(x)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        with pytest.raises(ValueError, match="call set_generator"):
            twin(x)
        twin.eval()(x)
    set_generator(encoder, None)
    with pytest.raises(ValueError, match="call set_generator"):
        encoder(x)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 2.0, math.nan])
def test_wrong_dropout(wrong):
    with pytest.raises(ValueError, match="should be a probability"):
        build("mlp", dropout=wrong)


def test_width_of_a_row(generator):
    encoder, decoder = mlp(10, K, 30, NetworkConfig("relu", generator, hidden_layer_sizes=(20, 15)))
    assert row_width(encoder, 10) == 20
    assert row_width(decoder, K) == 30
    encoder, decoder = conv(784, 2, 784, NetworkConfig("relu", generator), image_shape=(28, 28))
    assert row_width(encoder, 784) == row_width(decoder, 2) == 32 * 14 * 14
    assert not any(part._forward_hooks for part in encoder.modules())


def test_width_of_users_networks():
    """Layers may return several tensors, and have no parameters."""

    class Last(nn.Module):
        def forward(self, outputs):
            return outputs[0]

    assert row_width(nn.Sequential(nn.GRU(4, 9), Last()), 4) == 9
    assert row_width(nn.Sequential(nn.Identity(), Last()), 4) == 4
    assert repr(Dropout(0.3)) == "Dropout(p=0.3)"


def test_latent_norm_of_a_batch_and_frozen(generator):
    norm, statistics = LatentNorm(K), 3 * torch.randn(500, 2 * K, generator=generator) + 1
    normalized = norm(statistics)
    assert_close(normalized[:, :K].mean(0), torch.zeros(K), atol=1e-5, rtol=0)
    assert_close(normalized[:, :K].std(0, correction=0), torch.full((K,), math.sqrt(0.5)), atol=1e-4, rtol=0)
    assert torch.equal(normalized[:, K:], statistics[:, K:])
    norm.freeze()
    before = copy.deepcopy(norm.state_dict())
    row = norm(statistics[:1])  # as it is among others
    assert_close(row, normalized[:1], atol=0.01, rtol=0)
    assert_close(norm.eval()(statistics), norm.to_affine()(statistics))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
