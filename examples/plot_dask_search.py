"""
Grid search on a Dask cluster
=============================

A grid search consists of many independent fits. joblib can run them on the workers of a
`Dask <https://distributed.dask.org>`_ cluster, on one or several machines. The results are identical to those of a
search in one process. (``pip install "dask[distributed]"``)
"""

# %%
# Pipeline and grid
# -----------------
# A VAE embeds digits, and a mixture clusters the latent codes. The grid varies the width of the networks and the
# covariance type. The score is the adjusted Rand index of clusters and classes of held-out digits; the fits do not use
# the classes. The likelihoods of the mixtures cannot be compared, because each VAE has other latent codes.

import argparse
import time
import warnings

import joblib
import matplotlib.pyplot as plt
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skvae import TorchGMM, VAEEmbedder

parser = argparse.ArgumentParser(description="Search the settings of a pipeline with two Dask workers.")
parser.add_argument("--epochs", type=int, default=20, help="of each VAE")
parser.add_argument("--output", help="where to save the figure")
args, _ = parser.parse_known_args()

X, y = load_digits(return_X_y=True)
X = X / 16
vae = VAEEmbedder(5, likelihood="bernoulli", max_epochs=args.epochs, device="cpu", random_state=0)
pipeline = Pipeline([("vae", vae), ("gmm", TorchGMM(10, device="cpu", random_state=0))])
grid = {"vae__hidden_layer_sizes": [(32,), (128, 128)], "gmm__covariance_type": ["diag", "tied", "full"]}
search = GridSearchCV(pipeline, grid, scoring="adjusted_rand_score", cv=3, refit=False, n_jobs=2)


def timed_search(backend):
    """Return the results of the search and its seconds with a joblib backend."""
    started = time.perf_counter()
    with joblib.parallel_config(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # mixtures that stop early are part of the search
        found = search.fit(X, y).cv_results_
    return found, time.perf_counter() - started


# %%
# One process and two workers
# ---------------------------
# Each worker is a process with one torch thread, because more threads than cores would be slower. On a machine with
# GPUs, start one worker for each GPU. Because new processes import this script, the code that starts them is protected
# by ``__name__ == "__main__"``.

if __name__ == "__main__":
    torch.set_num_threads(1)
    alone, seconds_alone = timed_search("sequential")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(torch.set_num_threads, 1)
        joint, seconds_joint = timed_search("dask")
        workers = len(client.scheduler_info()["workers"])

    scores, others = alone["mean_test_score"], joint["mean_test_score"]
    print(
        f"{len(scores)} candidates, 3 folds: {seconds_alone:.1f} s in one process, {seconds_joint:.1f} s by {workers}"
    )
    print(f"largest difference of a score: {np.abs(scores - others).max():.1g}")
    print(f"best: {joint['params'][np.argmax(others)]}")

# %%
# Results
# -------
# The figure shows mean scores and their standard deviations over the folds.

if __name__ == "__main__":
    labels = [f"{p['vae__hidden_layer_sizes']}\n{p['gmm__covariance_type']}" for p in joint["params"]]
    places = np.arange(len(labels))
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.errorbar(places - 0.08, scores, alone["std_test_score"], fmt="o", label="one process")
    axes.errorbar(places + 0.08, others, joint["std_test_score"], fmt="s", label="Dask, two workers")
    axes.set(xticks=places, xticklabels=labels, ylabel="adjusted Rand index")
    axes.legend()
    if args.output:
        figure.savefig(args.output)
