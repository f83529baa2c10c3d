"""Batches, objective and the training loop."""

import gc

import pytest
import torch
from skorch.callbacks import Callback

from skvae.fitting.batches import RowDataset, TrainingBatches
from skvae.fitting.evaluation import balanced_points
from skvae.fitting.net import EpochNet, NegativeELBO
from skvae.fitting.training import Plan, TrainingData, fit_module
from skvae.models import ELBO, NETWORKS, Bernoulli, LatentModel, StandardNormal
from skvae.models.networks import NetworkConfig


def make_model(seed=0, n_features=4):
    generator = torch.Generator().manual_seed(seed)
    config = NetworkConfig("relu", generator, hidden_layer_sizes=(8,), batch_norm=True)
    nets = NETWORKS["mlp"](n_features, 2, n_features, config)
    return LatentModel(*nets, Bernoulli(), StandardNormal())


def train(model, rows, **settings):
    plan = Plan(**{"max_epochs": 3, "latent_dim": 2, "batch_size": 16, "lr": 1e-2} | settings)
    data = TrainingData(rows, torch.Generator().manual_seed(1), torch.device("cpu"))
    return fit_module(model, plan, data)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
@pytest.mark.parametrize("n_rows", range(2, 18))
def test_batches_deal_every_row_once_and_never_alone(n_rows, batch_size):
    rows = torch.arange(n_rows, dtype=torch.float32)[:, None]
    batches = TrainingBatches(
        RowDataset(rows),
        batch_size,
        noise_shape=(3,),
        generator=torch.Generator().manual_seed(0),
        standardize=torch.clone,
    )
    sizes = []
    for _ in range(2):
        inputs = [batch for batch, _ in batches]
        sizes = [len(batch["u"]) for batch in inputs]
        assert sorted(torch.cat([batch["u"] for batch in inputs]).flatten().tolist()) == list(range(n_rows))
        assert [tuple(batch["noise"].shape) for batch in inputs] == [(size, 3) for size in sizes]
    assert len(sizes) == len(batches)
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)


@pytest.mark.parametrize("n_rows", range(2, 34))
def test_every_number_of_rows_trains_with_batch_norm(n_rows):
    net = train(make_model(), torch.rand(n_rows, 4, generator=torch.Generator().manual_seed(0)))
    assert len(net.history) == 3


def test_blocks_of_batches_are_the_batches():
    """Rows that are too large for a device come to it in blocks; nothing else changes."""
    rows = torch.rand(23, 4, generator=torch.Generator().manual_seed(0))

    def batches(n_block):
        generator = torch.Generator().manual_seed(1)
        found = TrainingBatches(RowDataset(rows), 4, (3,), generator, standardize=torch.clone, n_block=n_block)
        return [batch for _ in range(2) for batch, _ in found]

    for alone, blocked in zip(batches(1), batches(4), strict=True):
        assert all(torch.equal(alone[name], blocked[name]) for name in ("u", "noise"))


def test_whole_numbers_are_standardised_a_batch_at_a_time():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 2, (50, 4), generator=generator, dtype=torch.uint8)
    nets = [train(make_model(), form, max_epochs=2) for form in (rows, rows.float())]
    assert nets[0].history[:, "train_loss"] == nets[1].history[:, "train_loss"]


def test_losses_that_stay_on_the_device_are_the_same(monkeypatch):
    """On an accelerator, the losses of batches are read when the epoch is over."""
    rows, histories = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)), []
    for later in (False, True):
        monkeypatch.setattr(EpochNet, "_reads_losses_later", lambda self, later=later: later)
        generator = torch.Generator().manual_seed(1)
        data = TrainingData(rows, generator, torch.device("cpu"), validation_rows=rows[:20])
        net = fit_module(make_model(), Plan(max_epochs=2, latent_dim=2, batch_size=16), data)
        batches = [batch for epoch in net.history for batch in epoch["batches"]]
        assert all(isinstance(batch.get("train_loss", 0.0), float) for batch in batches)
        histories.append([net.history[:, name] for name in ("train_loss", "valid_loss", "train_batch_count")])
    assert histories[0] == histories[1]


class CountTensors(Callback):
    """How many tensors there are after some batches of the first epoch."""

    def __init__(self, batches):
        self.batches, self.counts = batches, []

    def on_batch_end(self, net, **kwargs):
        if len(net.history[-1]["batches"]) in self.batches:
            gc.collect()
            self.counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))


def test_no_tensor_of_a_batch_is_kept():
    """Memory would grow with the rows, by much more than the tensors: they leave holes that nothing else fits into."""
    count = CountTensors(batches=(5, 20))
    train(make_model(), torch.rand(320, 4), max_epochs=1, callbacks=(count,))
    assert len(count.counts) == 2
    assert count.counts[0] == count.counts[1]


def test_loss_does_not_depend_on_the_batch_size():
    elbo = ELBO(torch.tensor([-1.0, -3.0]), torch.tensor([[0.5], [1.5]]))
    twice = ELBO(*(torch.cat([term, term]) for term in elbo[:2]))
    assert NegativeELBO(2.0)(elbo, None).item() == NegativeELBO(2.0)(twice, None).item() == 4.0


def test_loss_falls_and_its_terms_add_up():
    rows = (torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) > 0.8).float()
    net = train(make_model(), rows, beta=0.5, max_epochs=30)
    first, last = net.history[0], net.history[-1]
    assert last["train_loss"] < first["train_loss"]
    for row in net.history:
        assert row["train_loss"] == pytest.approx(0.5 * row["train_kl"] - row["train_log_likelihood"], rel=1e-5)


def test_no_row_is_held_out():
    """skorch would keep a fifth of the rows for validation."""
    net = train(make_model(), torch.rand(50, 4))
    assert sum(batch["train_batch_size"] for batch in net.history[-1]["batches"]) == 50
    assert "valid_loss" not in net.history[-1]


def test_divergence_is_an_error_that_says_where():
    rows = torch.rand(64, 4)
    rows[0, 0] = torch.inf
    message = r"training loss became (nan|inf) in epoch 1, by its log-likelihood .* half of lr=0.01 too\. Decrease lr"
    with (
        pytest.warns(RuntimeWarning, match="continues from epoch 0 with half"),
        pytest.raises(ValueError, match=message),
    ):
        train(make_model(), rows)


class Poison(Callback):
    """Spoil the weights in an epoch, the first time that it is trained."""

    def __init__(self, epoch):
        self.epoch, self.rates = epoch, []

    def on_batch_end(self, net, training, **kwargs):
        if training:
            self.rates.append(net.optimizer_.param_groups[0]["lr"])
        if training and len(net.history) == self.epoch and len(net.history[-1]["batches"]) == 2:
            self.epoch = None
            with torch.no_grad():
                net.module_.encoder[0].weight.fill_(torch.nan)


@pytest.mark.parametrize("schedule", [None, "cosine"])
def test_one_bad_epoch_is_trained_again_with_half_the_rate(schedule):
    rows, poison = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)), Poison(3)
    model = make_model()
    with pytest.warns(RuntimeWarning, match=r"became nan in epoch 3, .* continues from epoch 2 with half"):
        net = train(model, rows, max_epochs=5, lr_schedule=schedule, callbacks=(poison,))
    assert [row["epoch"] for row in net.history] == [1, 2, 3, 4, 5]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    again = Poison(None)
    expected = train(make_model(), rows, max_epochs=5, lr_schedule=schedule, callbacks=(again,))
    assert [row["train_loss"] for row in net.history[:2]] == [row["train_loss"] for row in expected.history[:2]]
    bad, rates = poison.rates[8:12], poison.rates[:8] + poison.rates[12:]
    assert bad == again.rates[8:12]
    torch.testing.assert_close(rates[:8], again.rates[:8])
    torch.testing.assert_close(rates[8:], [0.5 * rate for rate in again.rates[8:]])


def test_batches_shrink_if_the_device_is_out_of_memory(monkeypatch):
    sizes, forward = [], LatentModel.forward

    def limited(self, u, noise, view=None):
        sizes.append(len(u))
        if len(u) > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(self, u, noise, view)

    monkeypatch.setattr(LatentModel, "forward", limited)
    rows = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        RuntimeWarning, match="out of memory with batches of 32 rows; the training continues with smaller"
    ):
        net = train(make_model(), rows, batch_size=32)
    assert len(net.history) == 3
    assert sizes[:2] == [32, 16]
    assert set(sizes[2:-1]) == {8}


def test_no_memory_even_for_small_batches_is_the_device_s_error(monkeypatch):
    def none(self, u, noise, view=None):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LatentModel, "forward", none)
    rows = torch.rand(64, 4)
    with pytest.warns(RuntimeWarning, match="out of memory"), pytest.raises(torch.cuda.OutOfMemoryError):
        train(make_model(), rows, batch_size=32)


def test_interrupts_are_not_swallowed(monkeypatch):
    def interrupt(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(NegativeELBO, "forward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), torch.rand(20, 4), progress="model")


def test_progress_bar_is_shown_only_when_asked(capsys):
    train(make_model(), torch.rand(20, 4))
    assert capsys.readouterr().err == ""
    train(make_model(), torch.rand(20, 4), progress="model")
    shown = capsys.readouterr().err
    assert "model" in shown
    assert "3/3" in shown
    assert "loss=" in shown


def test_model_is_left_in_evaluation_mode():
    model = make_model()
    train(model, torch.rand(20, 4))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("n_components", [1, 2, 7, 16, 17, 40, 128])
def test_balanced_points_have_the_moments_of_the_normal(n_components):
    points = balanced_points(n_components)
    n_points = max(32, 2 * n_components)
    assert points.shape == (n_points, n_components)
    assert torch.equal(points[: n_points // 2], -points[n_points // 2 :])
    torch.testing.assert_close(points.mT @ points / n_points, torch.eye(n_components, dtype=torch.float64))
    assert torch.equal(points, balanced_points(n_components))


def test_balanced_points_of_many_dimensions_are_orthogonal():
    points = balanced_points(300)
    assert points.shape == (256, 300)
    torch.testing.assert_close(points[:128] @ points[:128].mT, 300 * torch.eye(128, dtype=torch.float64))


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_batch_norm_knows_the_rows_after_training_with_views(shift):
    """Running statistics of training are those of views, which later rows do not have."""
    rows = torch.rand(3_000, 4, generator=torch.Generator().manual_seed(0))
    model = make_model()
    train(model, rows, max_epochs=1, view_of=lambda u, generator: u + shift)
    layer, norm = model.encoder[0], next(m for m in model.encoder if isinstance(m, torch.nn.BatchNorm1d))
    outputs = layer(rows)
    torch.testing.assert_close(norm.running_mean, outputs.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, outputs.var(0), rtol=1e-2, atol=1e-3)
    norm = next(m for m in model.decoder if isinstance(m, torch.nn.BatchNorm1d))
    codes = model.posterior(rows).mean
    torch.testing.assert_close(norm.running_mean, model.decoder[0](codes).mean(0), rtol=0.2, atol=0.1)
