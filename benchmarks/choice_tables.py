"""Tables of the runs of `choice.py`, from their records alone: rules that choose an initialization of VaDE."""

import statistics

from cluster_tables import MARGIN
from markdown_tables import table
from record import RESULTS, read_runs

RUNS = RESULTS / "choice.jsonl"
INITS = ("gmm", "kmeans", "neighbor_kmeans", "neighbor_gmm")
RULES = {
    "ELBO": lambda run: run["elbo"],
    "mutual information": lambda run: run["information"],
    "ELBO + weight x information": lambda run: run["elbo"] + run["weight"] * run["information"],
    "ELBO + weight / 4 x information": lambda run: run["elbo"] + run["weight"] / 4 * run["information"],
    "stability": lambda run: run["stability"],
}


def choices(path=RUNS):
    """Return the runs of each set and seed that has all initializations, by the name of the initialization."""
    by_seed = {}
    for row, seeds in read_runs(path).items():
        name, init = row.split(", init=")
        for seed, run in seeds.items():
            by_seed.setdefault((name, seed), {})[init] = run
    return {key: by_init for key, by_init in by_seed.items() if len(by_init) == len(INITS)}


def chosen(rule, by_init):
    """Return the V of the initialization that a rule chooses."""
    return max(by_init.values(), key=RULES[rule])["v_measure"]


def summary(path=RUNS):
    """Return the table of rules: mean V of what they choose, and how often it is near the best initialization."""
    by_seed = choices(path)
    if not by_seed:
        return table(["rule"], [])
    values = {f"always {init}": [by_init[init]["v_measure"] for by_init in by_seed.values()] for init in INITS}
    values |= {rule: [chosen(rule, by_init) for by_init in by_seed.values()] for rule in RULES}
    best = [max(run["v_measure"] for run in by_init.values()) for by_init in by_seed.values()]
    values["the best by labels"] = best
    lines = []
    for name, scores in values.items():
        losses = [top - score for top, score in zip(best, scores, strict=True)]
        right = sum(loss <= MARGIN for loss in losses)
        lines.append([name, f"{statistics.mean(scores):.3f}", f"{right} of {len(losses)}", f"{max(losses):.3f}"])
    return table(["rule", "mean V", f"within {MARGIN} of the best", "largest loss"], lines)


def by_set(path=RUNS):
    """Return the table of mean V by set, of each initialization and of what each rule chooses."""
    grouped = {}
    for (name, _), by_init in choices(path).items():
        grouped.setdefault(name, []).append(by_init)
    lines = []
    for name, seeds in sorted(grouped.items()):
        values = [statistics.mean(by_init[init]["v_measure"] for by_init in seeds) for init in INITS]
        values += [statistics.mean(chosen(rule, by_init) for by_init in seeds) for rule in RULES]
        lines.append([name, len(seeds), *(f"{value:.3f}" for value in values)])
    return table(["set", "seeds", *INITS, *RULES], lines)
