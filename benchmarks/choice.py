"""Rules that choose an initialization of `VaDEClusterer` without labels, beside one another.

    python benchmarks/choice.py --sets wine digits --seeds 0 1 2
    python benchmarks/choice.py --table

The clusterer is trained with each initialization alone, without splits and merges, on four fifths of the training
samples. The rules see the last fifth, without labels: the evidence lower bound (ELBO); the mutual information of the
clusters of samples and of their nearest training samples; sums of both; and the stability under resampling, which is
the adjusted Rand index of the clusters of two models, of which the second is trained on a random half of the samples of
the first. V is that of test samples. The sets are those of `clusters.py`.
"""

import argparse
import time
from pathlib import Path

import choice_tables
import numpy as np
import torch
from record import append_run, environment, read_runs
from sets import SETS, load
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, v_measure_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skvae import VaDEClusterer

N_NEIGHBORS = 5  # of a held-out sample
MAX_COMPONENTS = 50  # principal components in which neighbours are searched


def nearest(X, others, is_image):
    """Return the indices of the nearest samples of each other one, in the space in which VaDE searches them."""
    if not is_image:
        scaler = StandardScaler().fit(X)
        X, others = scaler.transform(X), scaler.transform(others)
    if X.shape[1] > MAX_COMPONENTS:
        pca = PCA(MAX_COMPONENTS, random_state=0).fit(X)
        X, others = pca.transform(X), pca.transform(others)
    return NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(X).kneighbors(others, return_distance=False)


def mutual_information(resp, neighbors):
    """Return the mutual information of the clusters of samples (n, k) and of their neighbours (n, m, k), in nats."""
    joint = resp.T @ neighbors.mean(1) / len(resp)
    joint = (joint + joint.T) / 2
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float((joint * np.log(np.maximum(joint, 1e-12) / np.maximum(expected, 1e-12))).sum())


def runs(name, seed, folder):
    """Train with each initialization; yield its name, its V and what the rules see."""
    X, X_test, y, y_test = load(name, folder)
    X, held_out = train_test_split(X, test_size=0.2, random_state=seed)
    half = np.random.default_rng(seed).permutation(len(X))[: len(X) // 2]
    near = nearest(X, held_out, SETS[name].image_shape is not None)
    settings = {"n_clusters": len(np.unique(y)), "image_shape": SETS[name].image_shape, "random_state": seed}
    for init in choice_tables.INITS:
        started = time.process_time()
        vade = VaDEClusterer(**settings, init=init).fit(X)
        minutes = (time.process_time() - started) / 60
        other = VaDEClusterer(**settings, init=init).fit(X[half])
        resp = vade.predict_proba(held_out)
        neighbors = vade.predict_proba(X[near.ravel()]).reshape(*near.shape, -1)
        yield (
            init,
            {
                "v_measure": v_measure_score(y_test, vade.predict(X_test)),
                "elbo": float(vade.score(held_out)),
                "information": mutual_information(resp, neighbors),
                "weight": vade.consistency_,
                "stability": adjusted_rand_score(vade.predict(held_out), other.predict(held_out)),
                "minutes": minutes,
            },
        )


def main():
    """Make the missing runs, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=[*SETS], metavar="NAME", default=["wine", "digits"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(3)])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, help='folder of the sets; by default "sets" below SKVAE_DATA_HOME')
    parser.add_argument("--output", type=Path, default=choice_tables.RUNS)
    parser.add_argument("--table", action="store_true", help="print the tables of recorded runs, and run nothing")
    args = parser.parse_args()
    if args.table:
        print(choice_tables.summary(args.output), choice_tables.by_set(args.output), sep="\n\n")
        return
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        for seed in args.seeds:
            for name in args.sets:
                done = read_runs(args.output)
                if all(seed in done.get(f"{name}, init={init}", {}) for init in choice_tables.INITS):
                    continue
                for init, run in runs(name, seed, args.data):
                    head = environment(args.threads) | {"row": f"{name}, init={init}", "seed": seed}
                    append_run(args.output, head | run)
                    print(f"{name}, {init}, seed {seed}: V {run['v_measure']:.3f}", flush=True)


if __name__ == "__main__":
    main()
