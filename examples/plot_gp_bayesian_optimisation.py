"""
Hyperparameters of a VAE by Bayesian optimization
=================================================

The score of a variational autoencoder is a noisy function of its hyperparameters, and each evaluation needs a training.
A Gaussian process models such a function with its uncertainty, and Bayesian optimization selects the next evaluation by
this model. In this example, `Pyro <https://pyro.ai>`_ fits a Gaussian process to the score as a function of the
learning rate. Then the Gaussian process sampler of `Optuna <https://optuna.org>`_ searches four hyperparameters,
compared with a random search of the same number of trainings. (``pip install pyro-ppl optuna greenlet``)
"""

# %%
# Objective
# ---------
# The objective is the evidence lower bound (ELBO) of held-out digits, in nats per image. It needs no labels.

import argparse
import warnings

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pyro
import torch
from pyro.contrib import gp
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from skvae import VAEEmbedder

parser = argparse.ArgumentParser(description="Search the hyperparameters of a VAE.")
parser.add_argument("--trials", type=int, default=20, help="trainings of a search")
parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
parser.add_argument("--epochs", type=int, default=20, help="of each training")
parser.add_argument("--output", default="gp_bayesian_optimisation.png", help="where to save the figure")
args, _ = parser.parse_known_args()

X = load_digits().data / 16
X_train, X_test = train_test_split(X, random_state=0)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", category=ConvergenceWarning)  # bad settings are part of the search
optuna.logging.set_verbosity(optuna.logging.ERROR)


def score(lr, n_components=10, width=256, dropout=0.0, seed=0):
    """Return the held-out ELBO of a VAE, or that of uniform predictions if the training diverges."""
    settings = {
        "hidden_layer_sizes": (width, width),
        "lr": lr,
        "dropout": dropout,
        "batch_size": 64,
        "max_epochs": args.epochs,
    }
    try:
        return (
            VAEEmbedder(n_components, **settings, likelihood="bernoulli", random_state=seed).fit(X_train).score(X_test)
        )
    except ValueError:
        return -64 * np.log(2)


# %%
# Gaussian process of the learning rate
# -------------------------------------
# Learning rates are drawn at random, each with another seed of the training, so that the score is noisy. The length
# scale and the variance of the kernel and the variance of the noise maximize the marginal likelihood.

rng = np.random.default_rng(0)
rates = 10 ** rng.uniform(-4, -1.3, args.trials)
scores = np.array([score(rate, seed=seed) for seed, rate in enumerate(rates)])

pyro.clear_param_store()
x, y = torch.from_numpy(np.log10(rates)), torch.from_numpy((scores - scores.mean()) / scores.std())
kernel = gp.kernels.Matern52(1, variance=torch.tensor(1.0), lengthscale=torch.tensor(1.0))
process = gp.models.GPRegression(x, y, kernel.double(), noise=torch.tensor(0.1, dtype=torch.float64), jitter=1e-6)
process.double()
gp.util.train(process, torch.optim.Adam(process.parameters(), lr=0.05), num_steps=400)
grid = torch.linspace(-4, -1.3, 200, dtype=torch.float64)
with torch.no_grad():
    mean, variance = process(grid, full_cov=False, noiseless=False)
mean, spread = (scores.mean() + mean.numpy() * scores.std(), variance.sqrt().numpy() * scores.std())
best = float(10 ** grid[mean.argmax()])
print(f"best learning rate of the Gaussian process: {best:.4f}, with an expected score of {mean.max():.2f} nats")

# %%
# Bayesian optimization and random search
# ---------------------------------------
# Both searches have the same ranges and number of trainings. Optuna's Gaussian process sampler starts with ten random
# trainings. The searches are compared by the best score so far. All trainings of a search have its seed, so that it
# does not select a seed.


def objective(seed):
    """Return the objective of a search with this seed."""

    def of(trial):
        return score(
            trial.suggest_float("lr", 1e-4, 5e-2, log=True),
            trial.suggest_int("n_components", 2, 24),
            trial.suggest_int("width", 16, 256, log=True),
            trial.suggest_float("dropout", 0.0, 0.5),
            seed=seed,
        )

    return of


SAMPLERS = {"Gaussian process": optuna.samplers.GPSampler, "random": optuna.samplers.RandomSampler}
best_so_far = {}
for name, sampler in SAMPLERS.items():
    searches = []
    for seed in range(args.seeds):
        study = optuna.create_study(direction="maximize", sampler=sampler(seed=seed))
        study.optimize(objective(seed), n_trials=args.trials)
        searches.append(np.maximum.accumulate([trial.value for trial in study.trials]))
        found = {key: round(value, 4) for key, value in study.best_params.items()}
        print(f"{name:>17}, seed {seed}: {study.best_value:8.2f} nats with {found}")
    best_so_far[name] = np.array(searches)

# %%
# The first ten trainings of both searches are the same. The best scores of three searches with 20 trainings each are
# -25.2 nats on average with the Gaussian process, compared with -26.6 nats with random search.

colors = {"Gaussian process": "#0072B2", "random": "#D55E00"}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(rates, scores, "o", color="black", markersize=4, label="trainings")
left.plot(10**grid, mean, color=colors["Gaussian process"], label="expected")
left.fill_between(
    10**grid, mean - 2 * spread, mean + 2 * spread, color=colors["Gaussian process"], alpha=0.2, label="2 sd"
)
left.axvline(best, color="gray", linestyle="--", linewidth=1)
left.annotate(f" {best:.4f}", (best, 0.02), xycoords=("data", "axes fraction"))
left.set(xscale="log", xlabel="learning rate", ylabel="held-out ELBO (nats per image)", title="Learning rate")
left.legend(loc="upper left", fontsize="small")
for name, searches in best_so_far.items():
    steps = np.arange(1, args.trials + 1)
    right.plot(steps, searches.mean(0), color=colors[name], label=f"{name}, mean of {args.seeds}")
    right.fill_between(steps, searches.min(0), searches.max(0), color=colors[name], alpha=0.15)
lowest = min(searches[:, min(9, args.trials - 1)].min() for searches in best_so_far.values())
highest = max(searches.max() for searches in best_so_far.values())
right.set(xlabel="trainings", ylabel="best so far (nats per image)", title="Four hyperparameters")
right.set_ylim(lowest - 0.3, highest + 0.15)
right.legend(loc="upper left", fontsize="small")
right.xaxis.get_major_locator().set_params(integer=True)
figure.savefig(args.output, dpi=120)
print(f"best of {args.trials} trainings: " + ", ".join(f"{k} {v[:, -1].mean():.2f}" for k, v in best_so_far.items()))
