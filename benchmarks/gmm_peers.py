"""Time of one EM iteration compared with other Gaussian mixtures on torch, and scikit-learn's on torch tensors.

    SCIPY_ARRAY_API=1 python benchmarks/gmm_peers.py --output benchmarks/results/gmm_peers.json

The packages count and start iterations differently, so a single iteration is compared: the difference between a fit
of many iterations and one of few, divided by the difference of their numbers. All start from the same means. The
log-likelihood that each reaches is shown, because more of them do not start from the same covariances. Fits take turns;
the median over repeats of the ratio to ours is shown. A package that is not installed, or cannot do the work, is named
with the reason: ``pip install pomegranate tgmm torchgmm`` (a separate environment is best).
"""

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from gmm import SHAPES, make_data, settings
from record import environment, write_record
from sklearn import config_context
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from skvae import TorchGMM

FEW, MANY = 2, 12


def fit_skvae(X, shape, iterations):
    """Ours."""
    _, means = make_means(shape)
    gmm = TorchGMM(**{**settings(shape, "full", means), "max_iter": iterations}).fit(X)
    return gmm.lower_bound_


def fit_scikit_learn(X, shape, iterations):
    """scikit-learn on NumPy arrays."""
    _, means = make_means(shape)
    parameters = {**settings(shape, "full", means), "max_iter": iterations}
    return GaussianMixture(**with_dtype(parameters, X.dtype, np.asarray)).fit(X).lower_bound_


def fit_scikit_learn_torch(X, shape, iterations):
    """scikit-learn on torch tensors, through the array API."""
    _, means = make_means(shape)
    parameters = {**settings(shape, "full", means), "max_iter": iterations}
    with config_context(array_api_dispatch=True):
        gmm = GaussianMixture(**with_dtype(parameters, X.dtype, torch.from_numpy), init_params="random")
        return float(gmm.fit(torch.from_numpy(X)).lower_bound_)


def fit_tgmm(X, shape, iterations):
    """The package tgmm."""
    from tgmm import GaussianMixture as Peer

    (_, d, k), (_, means) = shape, make_means(shape)
    x = torch.from_numpy(X)
    covariances = torch.eye(d, dtype=x.dtype).repeat(k, 1, 1)
    start = {"init_means": torch.from_numpy(means).to(x.dtype), "init_covariances": covariances}
    peer = Peer(k, d, covariance_type="full", max_iter=iterations, tol=1e-300, device="cpu", **start)
    return float(peer.fit(x).score(x))


def fit_pomegranate(X, shape, iterations):
    """The package pomegranate."""
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel as Peer

    (_, d, k), (_, means) = shape, make_means(shape)
    x = torch.from_numpy(X)
    eye, means = torch.eye(d, dtype=x.dtype), torch.from_numpy(means).to(x.dtype)
    parts = [Normal(mean, eye.clone(), covariance_type="full") for mean in means]
    peer = Peer(parts, priors=torch.full((k,), 1 / k, dtype=x.dtype), max_iter=iterations, tol=-float("inf"))
    return float(peer.fit(x).log_probability(x).mean())


def fit_torchgmm(X, shape, iterations):
    """The package torchgmm, which takes float32 alone."""
    from torchgmm.bayes import GaussianMixture as Peer

    if X.dtype != np.float32:
        raise TypeError("float32 only")
    _, means = make_means(shape)
    trainer = {"max_epochs": iterations, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    start = {"init_means": torch.from_numpy(means).float(), "convergence_tolerance": 0.0}
    peer = Peer(shape[2], covariance_type="full", trainer_params=trainer, **start)
    return -float(peer.fit(torch.from_numpy(X)).score(torch.from_numpy(X)))


PEERS = {
    "skvae": fit_skvae,
    "scikit-learn": fit_scikit_learn,
    "scikit-learn on torch": fit_scikit_learn_torch,
    "tgmm": fit_tgmm,
    "pomegranate": fit_pomegranate,
    "torchgmm": fit_torchgmm,
}


def make_means(shape):
    """Data and starting means of a shape, made once."""
    if shape not in make_means.known:
        make_means.known = {shape: make_data(*shape, np.float64)}
    return make_means.known[shape]


make_means.known = {}


def with_dtype(parameters, dtype, convert):
    """Starting parameters as arrays of a dtype."""
    arrays = {name: value for name, value in parameters.items() if name.endswith("_init")}
    return parameters | {name: convert(np.asarray(value, dtype=dtype)) for name, value in arrays.items()}


def seconds_per_iteration(fit, X, shape):
    """Seconds of one iteration, and the log-likelihood reached."""
    times = []
    for iterations in (FEW, MANY):
        started = time.perf_counter()
        reached = fit(X, shape, iterations)
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / (MANY - FEW), reached


def compare(shape, dtype, repeats, limit):
    """Interleaved measurements of all packages on one shape."""
    X = make_means(shape)[0].astype(dtype)
    results, failed = {}, {}
    for repeat in range(repeats):
        for name, fit in PEERS.items():
            if name in failed or (repeat > 0 and results[name][0][0] * (MANY + FEW) > limit):
                continue  # too slow to be repeated: one measurement is kept
            try:
                results.setdefault(name, []).append(seconds_per_iteration(fit, X, shape))
            except Exception as error:  # whatever a package of others raises is its result
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    rows = {name: {"failed": reason} for name, reason in failed.items()}
    for name, runs in results.items():
        if name in failed:
            continue
        ratios = [seconds / ours for (seconds, _), (ours, _) in zip(runs, results["skvae"], strict=False)]
        median = statistics.median(seconds for seconds, _ in runs)
        rows[name] = {
            "seconds": median,
            "ratio": statistics.median(ratios),
            "reached": float(runs[-1][1]),
            "n": len(runs),
        }
    return rows


def main():
    """Run the comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds beyond which a measurement is made once")
    parser.add_argument("--shapes", type=int, default=3, help="how many of the shapes")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    record = environment(args.threads, "tgmm", "pomegranate", "torchgmm") | {"rows": {}}
    print(f"{'work':28}{'package':24}{'ms':>10}{'over ours':>11}{'reached':>12}{'runs':>6}")
    with threadpool_limits(args.threads):
        for dtype in ("float64", "float32"):
            for shape in list(SHAPES)[: args.shapes]:
                rows = record["rows"][f"{dtype} {shape}"] = compare(shape, dtype, args.repeats, args.limit)
                for name, row in rows.items():
                    end = row.get("failed") or "{ratio:11.1f}{reached:12.4f}{n:6}".format(**row)
                    print(f"{dtype} {shape!s:20}{name:24}{1e3 * row.get('seconds', np.nan):10.1f}{end}", flush=True)
                write_record(args.output, record)


if __name__ == "__main__":
    main()
