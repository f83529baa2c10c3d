"""Codes in their own units, mixtures to start from, and the fall of the worst of them."""

import math

import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.testing import assert_close

from skvae.fitting.batches import count_batches
from skvae.fitting.evaluation import mean_elbo
from skvae.fitting.net import NegativeELBO
from skvae.fitting.training import Plan, TrainingData, fit_module
from skvae.fitting.vade import (
    ConsistencyDecay,
    HeldOut,
    Proposals,
    PruneMixtures,
    held_out_objective,
    held_out_terms,
    hold_out_indices,
    neighbor_views,
    one_cycle,
    partition_mixture,
    replace_parameters,
    soft_mixtures,
    standardize_codes,
)
from skvae.models import (
    COVARIANCES,
    ELBO,
    NETWORKS,
    FixedGaussian,
    Flat,
    GaussianMixturePrior,
    LatentModel,
)
from skvae.models.networks import LogScaleHead, NetworkConfig
from skvae.models.priors import mutual_information

D, M, K = 2, 4, 3
over_kinds = pytest.mark.parametrize("kind", ["full", "diag"])


@pytest.fixture
def rows(generator):
    return torch.randn(40, M, generator=generator)


def make_model(prior=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    nets = NETWORKS["mlp"](M, D, M, NetworkConfig("tanh", generator, hidden_layer_sizes=(8,)))
    likelihood = FixedGaussian(torch.zeros(M), torch.ones(M))
    return LatentModel(*nets, likelihood, Flat(2) if prior is None else prior)


def make_prior(kind="full", n_mixtures=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(30, D, generator=generator)
    return GaussianMixturePrior(soft_mixtures(z, n_mixtures, K, COVARIANCES[kind], generator), COVARIANCES[kind])


def two_noisy_views(u, generator):
    return u[:, None] + 0.1 * torch.randn(len(u), 2, u.shape[1], generator=generator)


def train(model, rows, *callbacks, **settings):
    settings = {"max_epochs": 4, "batch_size": 10, "lr": 1e-2} | settings
    plan = Plan(callbacks=callbacks, latent_dim=D, **settings)
    return fit_module(model, plan, TrainingData(rows, torch.Generator().manual_seed(1), torch.device("cpu")))


def test_units_of_codes_change_nothing_that_is_decoded(rows):
    model = make_model().double()
    with torch.no_grad():
        for layer in (model.encoder[-1], model.decoder[0]):
            layer.weight.mul_(30)
            layer.bias.add_(7)
        u = rows.double()
        before = model.posterior(u)
        decoded = model.decode(before.mean)
        z = standardize_codes(model, before.mean, before.log_scale)
        after = model.posterior(u)
    assert_close(model.decode(z), decoded)
    assert_close(after.mean, z)
    assert_close(z.mean(0), torch.zeros(D).double())
    assert_close(z.std(0, correction=0), torch.ones(D).double())


def test_posteriors_begin_with_a_tenth_of_the_variance_of_codes(rows):
    """A stated constant, whatever the head of the log-scales happened to give."""
    model = make_model().double()
    with torch.no_grad():
        model.encoder[-1].bias[D:] += 3
        q = model.posterior(rows.double())
        raw = model.encoder(rows.double())[:, D:]
        standardize_codes(model, q.mean, raw)
        variances = model.posterior(rows.double()).variance
    assert_close(variances.log().mean(0).exp(), torch.full((D,), 0.1).double(), rtol=0.02, atol=0)


def test_codes_that_are_constant_stay_finite(rows):
    model = make_model()
    with torch.no_grad():
        model.encoder[-1].weight[:1] = 0
        q = model.posterior(rows)
        decoded = model.decode(q.mean)
        z = standardize_codes(model, q.mean, q.log_scale)
        assert torch.isfinite(z).all()
        assert_close(model.decode(model.posterior(rows).mean), decoded)


@over_kinds
def test_soft_mixtures(kind, generator):
    z = torch.randn(50, D, generator=generator, dtype=torch.float64) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]).double()
    mixtures = soft_mixtures(z, 5, K, COVARIANCES[kind], generator)
    covariance = torch.cov(z.T, correction=0)
    assert len(mixtures) == 5
    for mixture in mixtures:
        assert_close(mixture.log_weights.exp(), torch.full((K,), 1 / K).double())
        assert mixture.means.shape == (K, D)
        assert len(mixture.means.unique(dim=0)) == K, "two components began at the same row"
        assert all((z == mean).all(1).any() for mean in mixture.means)
        for found in mixture.covariances:
            assert_close(found, covariance if kind == "full" else covariance.diagonal(), atol=0.01, rtol=0.01)
        assert_close(COVARIANCES[kind].covariances(mixture.factor), mixture.covariances)
    starts = torch.stack([mixture.means for mixture in mixtures])
    assert len(starts.flatten(1).unique(dim=0)) == 5


def test_soft_mixtures_begin_at_distinct_rows_where_many_are_equal(generator):
    z = torch.tensor([[0.0, 0.0]] * 8 + [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    for mixture in soft_mixtures(z, 5, K, COVARIANCES["full"], generator):
        assert len(mixture.means.unique(dim=0)) == K


@over_kinds
def test_soft_mixtures_depend_on_the_seed(kind):
    one, two, other = (make_prior(kind, seed=seed).means for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@over_kinds
@pytest.mark.parametrize("shape", ["line", "constant", "fewer rows than dimensions"])
def test_soft_mixtures_of_flat_codes_are_finite(kind, shape, generator):
    """Codes may lie in fewer dimensions than they have: the factor is that of a covariance nearby."""
    z = torch.randn(50, 5, generator=generator)
    z = {"line": z[:, :1] * z[:1], "constant": 0 * z, "fewer rows than dimensions": z[:4]}[shape]
    for mixture in soft_mixtures(z, 2, K, COVARIANCES[kind], generator):
        assert torch.isfinite(mixture.factor).all()
        found = COVARIANCES[kind].covariances(mixture.factor)[0]
        covariance = torch.cov(z.T, correction=0)
        assert_close(found, covariance if kind == "full" else covariance.diagonal(), atol=0.02, rtol=0.02)


class Watch(Callback):
    """Notes what mixtures cost in each step, and what they are afterwards."""

    def on_train_begin(self, net, **kwargs):
        self.costs, self.means, self.weights = [], [], []

    def on_batch_end(self, net, training, y_pred, **kwargs):
        cost = net.criterion_.beta * y_pred.kl_parts.detach().mean(0) * y_pred.kl_parts.shape[1]
        if y_pred.agreement is not None:
            cost = cost - net.criterion_.consistency * y_pred.agreement.detach()
        self.costs.append(cost)
        self.means.append(net.module_.prior.means.detach().clone())
        self.weights.append(net.criterion_.consistency)


class WatchAfter(Watch):
    """skorch puts callbacks of one class side by side."""


@over_kinds
@pytest.mark.parametrize("views", [False, True])
def test_mixtures_with_the_lowest_loss_stay(kind, views, rows):
    """At the steps asked for, by the mean over the later half of the steps since the last choice."""
    model = make_model(make_prior(kind))
    prune, before, after = PruneMixtures(model.prior, [(4, 3), (10, 1)]), Watch(), WatchAfter()
    settings = {"view_of": two_noisy_views, "consistency": 5.0} if views else {}
    train(model, rows, before, prune, after, beta=2.0, **settings)
    assert [len(cost) for cost in before.costs] == [4] * 4 + [3] * 6 + [1] * 6
    for number, (step, n_kept, window) in enumerate([(4, 3, 2), (10, 1, 3)]):
        scores = torch.stack(before.costs[step - window : step]).mean(0)
        assert_close(torch.tensor(prune.scores_[number]), scores)
        best = scores.argsort()[:n_kept]
        assert torch.equal(after.means[step - 1], before.means[step - 1][best])
    assert len(prune.scores_) == 2
    assert len(model.prior.means) == 1
    assert not torch.equal(model.prior.means, after.means[9]), "what stayed was not trained"


def test_mixtures_with_the_highest_score_stay(rows):
    model = make_model(make_prior())
    scores = iter([torch.tensor([[1.0, 4.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])])
    prune = PruneMixtures(model.prior, [(4, 3), (10, 1)], score=lambda: next(scores))
    train(model, rows, prune)
    assert prune.scores_ == [[-1.0, -4.0, -2.0, -3.0], [-1.0, -2.0, -3.0]]
    assert prune.parents_ == [[1, 3, 2], [2]]
    assert prune.survivor_ == 2, "the index is that among the initial mixtures"


def proposed(prior, *shifts):
    """Return mixtures like the first of a prior, at other places."""
    mixture = prior.mixture
    return [mixture._replace(means=mixture.means.detach() + shift) for shift in shifts]


def test_proposals_compete_in_rounds_until_one_loses(rows):
    """After four steps the best of both kinds stay, after three more one of them."""
    model = make_model(make_prior(n_mixtures=2))
    called, watch = [], Watch()

    def propose(n_round):
        assert len(model.prior.means) == 1
        called.append(n_round)
        return proposed(model.prior, 0.0, 1.0, 2.0)

    scores = iter([[1, 2], [0, 1, 5, 6], [2, 3], [0, 2, 5, 6], [3, 2]])
    prune = PruneMixtures(
        model.prior,
        [(2, 1)],
        score=lambda: torch.tensor([next(scores)] * 2, dtype=torch.float32),
        proposals=Proposals(propose, n_present=2, n_steps=(4, 3), n_rounds=5),
    )
    train(model, rows, watch, prune, max_epochs=9)
    assert called == [0, 1]
    assert [len(cost) for cost in watch.costs] == [2] * 2 + [4] * 4 + [2] * 3 + [4] * 4 + [2] * 3 + [1] * 20
    assert prune.parents_ == [[1], [0] * 4, [1, 3], [1], [0] * 4, [1, 3], [0]]
    assert prune.survivor_ == 1


@pytest.mark.parametrize(("spread", "expected"), [(0.5, [0, 1]), (20, [0])])
def test_a_proposal_stays_if_its_gain_is_larger_than_two_standard_errors(spread, expected, rows):
    """It gains one, and the standard errors of four rows are a quarter and ten."""
    model = make_model(make_prior(n_mixtures=2))
    prior, called = model.prior, []

    def propose(n_round):
        called.append(n_round)
        return proposed(prior, 0.0, 1.0)

    def score():
        gains = 1 + spread * torch.tensor([1.0, -1, 1, -1])
        return gains[:, None] * torch.arange(len(prior.means))

    train(model, rows, PruneMixtures(prior, [(2, 1)], score=score, proposals=Proposals(propose, 2, (1, 1), 2)))
    assert called == expected


@pytest.mark.parametrize(("n_rounds", "expected"), [(0, []), (1, [0]), (2, [0, 1])])
def test_rounds_of_proposals_end(n_rounds, expected, rows):
    model = make_model(make_prior(n_mixtures=2))
    called = []

    def propose(n_round):
        called.append(n_round)
        return proposed(model.prior, 0.0, 1.0)

    def score():  # the last one always wins
        return torch.arange(len(model.prior.means), dtype=torch.float32).expand(2, -1)

    proposals = Proposals(propose, n_present=2, n_steps=(1, 1), n_rounds=n_rounds)
    train(model, rows, PruneMixtures(model.prior, [(2, 1)], score=score, proposals=proposals))
    assert called == expected
    assert len(model.prior.means) == 1


@pytest.mark.parametrize(
    ("shifts", "n_steps", "kept"),
    [
        ([], (1_000, 1_000), []),
        ([0.0, 1.0], (1_000, 1_000), [[0] * 3, [0, 1], [1]]),
        ([0.0, 1.0], (1, 1_000), [[0] * 3, [1, 2], [1]]),
    ],
    ids=["no proposals", "ends at once", "ends among two"],
)
def test_a_training_that_ends_before_proposals_are_judged(shifts, n_steps, kept, rows):
    """The best of the present clusters stays, although others have a higher score, unless the best of these is left."""
    model = make_model(make_prior(n_mixtures=2))

    def score():
        return torch.arange(len(model.prior.means)).float().expand(5, -1)

    proposals = Proposals(lambda n_round: proposed(model.prior, *shifts), 2, n_steps, 3)
    prune = PruneMixtures(model.prior, [(2, 1)], score=score, proposals=proposals)
    train(model, rows, prune)
    assert len(model.prior.means) == 1
    assert prune.parents_ == [[1], *kept]


@over_kinds
def test_mixture_of_a_partition(kind, rows):
    labels = torch.tensor([0, 2, 2, 0] * 10)
    mixture = partition_mixture(rows, labels, K, COVARIANCES[kind])
    assert_close(mixture.log_weights.exp(), torch.tensor([20, 1, 20]) / 41)
    for label, part in ((0, rows[labels == 0]), (1, rows), (2, rows[labels == 2])):
        assert_close(mixture.means[label], part.mean(0))
        covariance = torch.cov(part.T, correction=0) + 0.01 * torch.eye(M)
        expected = covariance if kind == "full" else covariance.diagonal()
        assert_close(mixture.covariances[label], expected)


@pytest.mark.parametrize("n_rows", [1, 2, 30, 100_000])
def test_rows_held_out_are_others(n_rows):
    train_rows, held_out = hold_out_indices(n_rows, seed=0)
    assert len(held_out) == min(5_000, max(1, n_rows // 10))
    if n_rows > 1:
        assert torch.equal(torch.cat([train_rows, held_out]).sort().values, torch.arange(n_rows))
    assert not torch.equal(hold_out_indices(100, 0)[1], hold_out_indices(100, 1)[1])


def test_pairs_of_neighbors(generator):
    u, neighbors = torch.zeros(1_000, 3), torch.ones(1_000, 3)
    assert torch.equal(neighbor_views(None, u, neighbors, generator), torch.stack([u, neighbors], 1))
    views = neighbor_views(lambda u, generator: u + 2, u, neighbors, generator)
    assert (views[:, 0] == 2).all()
    assert 0.4 < (views[:, 1, 0] == 2).float().mean() < 0.6, "half of the pairs are of one row"


def test_terms_of_held_out_rows(rows):
    model = make_model(make_prior(n_mixtures=2))
    held_out = HeldOut(rows[:5], rows[5:15])
    data = TrainingData(rows, torch.Generator(), torch.device("cpu"))
    model.train()
    kl, agreement = held_out_terms(model, held_out, data)
    assert model.training
    model.eval()
    with torch.no_grad():
        q, near = model.posterior(rows[:5]), model.posterior(rows[5:15])
        assert_close(kl, 2 * model.prior.kl_parts(q, q.mean))
        resp = model.prior.log_responsibilities(near.mean).exp().unflatten(0, (5, 2)).mean(1)
        expected = mutual_information(model.prior.log_responsibilities(q.mean).exp(), resp)
        assert_close(agreement.mean(0), expected)
        assert agreement.shape == (5, 2)


def test_augmented_terms_are_repeatable(rows):
    model = make_model(make_prior())
    data = TrainingData(rows, torch.Generator(), torch.device("cpu"))

    def noisy(u, generator):
        return u + torch.randn(u.shape, generator=generator)

    one, two, plain = (held_out_terms(model, HeldOut(rows, rows), data, view) for view in (noisy, noisy, None))
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[1], plain[1])
    assert torch.equal(one[0], plain[0]), "the divergence is that of the rows"


def test_objective_of_held_out_rows_is_elbo_and_agreement_of_views(rows):
    model = make_model(make_prior())
    data = TrainingData(rows, torch.Generator(), torch.device("cpu"))

    def flipped(u, generator):
        return u * (2 * torch.randint(2, (), generator=generator) - 1)

    elbo = mean_elbo(model, rows, data.device)
    agreement = held_out_terms(model, HeldOut(rows, rows), data, flipped)[1].mean().item()
    assert held_out_objective(model, rows, data, 0.0, flipped) == pytest.approx(elbo)
    assert held_out_objective(model, rows, data, 3.0, flipped) == pytest.approx(elbo + 3 * agreement)
    assert agreement > 0


def test_a_mixture_that_fits_wins(rows):
    """The first components of a mixture far from all codes cost more."""
    prior = make_prior(n_mixtures=3)
    with torch.no_grad():
        prior.means[0] += 20
        prior.means[2] -= 20
        wanted = prior.means[1].clone()
    model = make_model(prior)
    train(model, rows, PruneMixtures(prior, [(8, 1)]), lr=1e-4)
    assert_close(model.prior.means[0], wanted, atol=0.05, rtol=0)


@pytest.mark.parametrize("stages", [[(1, 2), (1, 1)], [(2, 2), (2, 1)]])
def test_stages_at_the_same_step_all_happen(stages, rows):
    """In a short training, shares of it are rounded to the same step."""
    model = make_model(make_prior())
    prune = PruneMixtures(model.prior, stages)
    train(model, rows, prune)
    assert len(model.prior.means) == 1


def test_no_stages_drop_nothing(rows):
    model = make_model(make_prior())
    prune = PruneMixtures(model.prior, [])
    train(model, rows, prune)
    assert prune.scores_ == []
    assert len(model.prior.means) == 4


class NextStep(Callback):
    """Notes how the optimizer stands when the step after a choice begins."""

    def __init__(self, step):
        self.step, self.count = step, 0

    def on_batch_begin(self, net, **kwargs):
        self.count += 1
        if self.count == self.step + 1:
            self.parameters = list(net.module_.parameters())
            self.optimized = [p for group in net.optimizer_.param_groups for p in group["params"]]
            self.with_state = list(net.optimizer_.state)


def ids(parameters):
    return [id(parameter) for parameter in parameters]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimizer_goes_on_with_what_stays(optimizer, rows):
    model, look = make_model(make_prior()), NextStep(3)
    train(model, rows, PruneMixtures(model.prior, [(3, 1)]), look, optimizer=optimizer)
    assert ids(look.optimized) == ids(look.parameters) == ids(model.parameters())
    assert set(ids(look.with_state)) <= set(ids(look.parameters)), "the state of what was dropped is kept"
    if optimizer != "sgd":
        assert len(look.with_state) == len(look.parameters) - len(list(model.prior.parameters()))


@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"amsgrad": True}, {"foreach": False}])
def test_state_of_what_is_replaced_is_forgotten(settings, generator):
    """Gradients of a mixture are larger when there are fewer of them: old sums of squares would be too small."""
    prior, other = make_prior(), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([other, *prior.parameters()], lr=0.1, **settings)

    def step():
        optimizer.zero_grad()
        z = torch.randn(20, D, generator=generator)
        (other.square().sum() - prior.log_responsibilities(z).square().mean() - prior.log_prob(z).mean()).backward()
        optimizer.step()

    step(), step()
    names, untouched = [name for name, _ in prior.named_parameters()], optimizer.state[other]
    replace_parameters(optimizer, prior.keep(torch.tensor([3, 1])))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in (other, *prior.parameters())]
    assert optimizer.state[other] is untouched
    assert len(optimizer.state) == 1
    kept = {name: getattr(prior, name).detach().clone() for name in names}
    step()
    for name in names:
        assert not torch.equal(getattr(prior, name), kept[name]), f"{name} is not trained any more"


@pytest.mark.parametrize("n_epochs", [1, 2, 5])
def test_agreement_counts_less_in_the_last_quarter(n_epochs, rows):
    model, watch = make_model(make_prior(n_mixtures=1)), Watch()
    n_steps = n_epochs * count_batches(len(rows), 10)
    settings = {"view_of": two_noisy_views, "consistency": 2.0, "max_epochs": n_epochs}
    net = train(model, rows, ConsistencyDecay(n_steps), watch, **settings)
    assert watch.weights == pytest.approx([2.0] * (3 * n_epochs) + [0.2] * n_epochs)
    assert net.criterion_.consistency == pytest.approx(0.2)


def test_cycle_of_the_learning_rate():
    values = {0: 0.1, 0.05: 0.55, 0.1: 1.0, 0.55: 0.51, 1: 0.02}
    assert [one_cycle(share) for share in values] == pytest.approx(list(values.values()))
    shares = torch.linspace(0, 1, 1_001).tolist()
    factors = torch.tensor([one_cycle(share) for share in shares])
    assert (factors.diff()[:99] > 0).all()
    assert (factors.diff()[100:] < 0).all()
    assert factors.diff().abs().max() < 0.01, "it jumps"


def test_log_scales_beside_an_encoder_of_points(rows):
    points = nn.Linear(M, D)
    encoder = LogScaleHead(points, D)
    assert_close(encoder(rows), torch.cat([points(rows), torch.zeros(len(rows), D)], 1))
    encoder(rows).square().sum().backward()
    encoder(rows)[:, D:].sum().backward()
    assert encoder.log_scale.weight.grad.abs().min() > 0, "they can not learn"


def test_loss_is_less_what_views_agree_on():
    elbo = ELBO(torch.tensor([-3.0, -5.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, 1.5]))
    assert NegativeELBO(beta=2.0, consistency=10.0)(elbo, None).item() == pytest.approx(4 + 2 * 5 - 10 * 1.0)
    assert NegativeELBO(consistency=10.0)(elbo._replace(agreement=None), None).item() == pytest.approx(9.0)


def test_views_are_reconstructed_to_the_rows_and_agree(rows, generator):
    """The bound is that of the first view; the second only says whether they agree."""
    model, noise = make_model(make_prior()), torch.randn(40, D, generator=generator)
    view = two_noisy_views(rows, generator)
    pair, first = model(rows, noise, view), model(rows, noise, view[:, 0])
    assert_close(pair.log_likelihood, first.log_likelihood)
    assert_close(pair.kl_parts, first.kl_parts)
    assert first.agreement is None
    means = [model.posterior(view[:, number]).mean for number in (0, 1)]
    assert_close(pair.agreement, model.prior.agreement(*means))


def test_mean_bound_is_that_of_the_rows(rows, generator):
    model = make_model(make_prior(n_mixtures=1)).eval()
    whole = mean_elbo(model, rows, "cpu", n_points=256)
    assert mean_elbo(model, rows, "cpu", n_points=256, batch_size=7) == pytest.approx(whole)
    with torch.inference_mode():
        draws = [model(rows, torch.randn(40, D, generator=generator)).value.mean() for _ in range(200)]
    error = torch.stack(draws).std().item() / math.sqrt(200)
    assert whole == pytest.approx(torch.stack(draws).mean().item(), abs=5 * error)
