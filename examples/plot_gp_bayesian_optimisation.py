"""
Settings of a VAE by Bayesian optimisation
==========================================

How good a variational autoencoder is depends on its settings, and every answer costs a training and is noisy. A
Gaussian process is a model of such a function: it says what to expect between the settings that were tried, and how
sure that is. Bayesian optimisation asks it where to look next. Here `Pyro <https://pyro.ai>`_ fits one to the score of
a VAE as a function of its learning rate, and `Optuna <https://optuna.org>`_'s sampler, which is based on one too,
searches four settings, beside a random search of as many trainings. (``pip install pyro-ppl optuna greenlet``)
"""

# %%
# What is searched
# ----------------
# The score is the evidence lower bound of digits that were held out, in nats per image: higher is better. It needs no
# labels.

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

parser = argparse.ArgumentParser(description="Search the settings of a VAE.")
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
    """Held-out bound of a VAE with these settings; a training that diverges is as bad as knowing nothing."""
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
# A Gaussian process for one setting
# ----------------------------------
# The learning rate alone, at random and each time with another seed, so that the score is noisy. The kernel's length
# and height and the variance of the noise are those that maximise the evidence.

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
print(f"best learning rate by the Gaussian process: {best:.4f}, where it expects {mean.max():.2f} nats")

# %%
# Four settings, two searches
# ---------------------------
# Both searches draw from the same ranges, and have the same number of trainings; Optuna's Gaussian process begins with
# ten random ones. What counts is the best score so far. The seed of a training is that of its search, so that luck is
# no setting.


def objective(seed):
    """What a search with this seed maximises."""

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
# The first ten trainings are the same in both. After them the Gaussian process knows where to look: the best of three
# searches with 20 trainings each are -25.2 nats in the mean, those of the random searches -26.6.

colors = {"Gaussian process": "#0072B2", "random": "#D55E00"}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(rates, scores, "o", color="black", markersize=4, label="trainings")
left.plot(10**grid, mean, color=colors["Gaussian process"], label="expected")
left.fill_between(
    10**grid, mean - 2 * spread, mean + 2 * spread, color=colors["Gaussian process"], alpha=0.2, label="2 sd"
)
left.axvline(best, color="gray", linestyle="--", linewidth=1)
left.annotate(f" {best:.4f}", (best, 0.02), xycoords=("data", "axes fraction"))
left.set(xscale="log", xlabel="learning rate", ylabel="held-out bound (nats per image)", title="One setting")
left.legend(loc="upper left", fontsize="small")
for name, searches in best_so_far.items():
    steps = np.arange(1, args.trials + 1)
    right.plot(steps, searches.mean(0), color=colors[name], label=f"{name}, mean of {args.seeds}")
    right.fill_between(steps, searches.min(0), searches.max(0), color=colors[name], alpha=0.15)
lowest = min(searches[:, min(9, args.trials - 1)].min() for searches in best_so_far.values())
highest = max(searches.max() for searches in best_so_far.values())
right.set(xlabel="trainings", ylabel="best so far (nats per image)", title="Four settings")
right.set_ylim(lowest - 0.3, highest + 0.15)
right.legend(loc="upper left", fontsize="small")
right.xaxis.get_major_locator().set_params(integer=True)
figure.savefig(args.output, dpi=120)
print(f"best of {args.trials} trainings: " + ", ".join(f"{k} {v[:, -1].mean():.2f}" for k, v in best_so_far.items()))
