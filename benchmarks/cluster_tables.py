"""Tables of the runs of `clusters.py`, from their records alone."""

import json
import statistics

from markdown_tables import table, worst
from record import RESULTS, read_runs

RUNS, TUNING = RESULTS / "clusters.jsonl", RESULTS / "clusters_tuning.jsonl"
SETTINGS = RESULTS / "clusters_settings.json"
BASELINES = (
    "k-means",
    "mixture",
    "PCA + mixture",
    "UMAP + k-means",
    "UMAP + mixture",
    "autoencoder + UMAP + mixture",
)
OURS = ("VAEEmbedder + TorchGMM, defaults", "VAEEmbedder + TorchGMM", "VaDEClusterer")
METHODS = (*BASELINES, *OURS)
# `VaDEClusterer` with each of the initializations that it compares.
INITS = {f"VaDEClusterer, init={init}": {"init": init} for init in ("gmm", "kmeans", "neighbor_kmeans", "neighbor_gmm")}
ROLES = ("development", "held back", "opened last", "unbalanced")
REFERENCE = "UMAP + mixture"
MARGIN = 0.02  # of V, within which a method counts as equal to the best baseline


def read(path=RUNS):
    """Return the runs by set and method, each a list in the order of seeds; sets in the order of their roles."""
    rows = [[*runs.values()] for runs in read_runs(path).values()]
    by_cell = {(runs[0]["set"], runs[0]["method"]): runs for runs in rows}
    roles = {runs[0]["set"]: runs[0]["role"] for runs in rows}
    names = sorted(roles, key=lambda name: (ROLES.index(roles[name]), name))
    methods = (*METHODS, *INITS)
    return {name: {m: by_cell[name, m] for m in methods if (name, m) in by_cell} for name in names}


def initializations(path=RUNS):
    """Return the table of the V of each initialization of VaDE, and how often the choice is near the best one.

    Only sets and seeds with all initializations count, each of which was trained alone, without splits and merges.
    """
    lines, n_right, n_all = [], 0, 0
    for name, cells in read(path).items():
        runs = {method: {run["seed"]: run["v_measure"] for run in cells.get(method, ())} for method in INITS}
        chosen = {run["seed"]: run for run in cells.get("VaDEClusterer", ())}
        seeds = set(chosen).intersection(*runs.values())
        if not seeds:
            continue
        best = {seed: max(values[seed] for values in runs.values()) for seed in seeds}
        right = sum(chosen[seed]["v_measure"] >= best[seed] - MARGIN for seed in seeds)
        n_right, n_all = n_right + right, n_all + len(seeds)
        inits = sorted(chosen[seed]["reports"]["init_"] for seed in seeds)
        counts = ", ".join(f"{init} {inits.count(init)}" for init in dict.fromkeys(inits))
        values = [[values[seed] for seed in seeds] for values in runs.values()]
        values = [*values, [chosen[seed]["v_measure"] for seed in seeds], [*best.values()]]
        cells = (f"{statistics.mean(part):.3f}" for part in values)
        lines.append([name, len(seeds), *cells, counts, f"{right} of {len(seeds)}"])
    if lines:
        lines.append(["all", n_all, *[""] * 7, f"{n_right} of {n_all}"])
    names = [settings["init"] for settings in INITS.values()]
    return table(["set", "seeds", *names, "chosen", "best", "chosen initializations", f"within {MARGIN}"], lines)


def leaders(path=RUNS):
    """Return the table of how often the mixture that led when the first were dropped was the one that stayed.

    Mixtures that stay are in the order of their scores, the best first.
    """
    lines, n_kept, n_all = [], 0, 0
    for name, cells in read(path).items():
        losses = [run["reports"].get("init_losses_", ()) for run in cells.get("VaDEClusterer", ())]
        losses = [each for each in losses if len(each) > 1 and len(each[0]) == len(INITS)]
        if losses:
            kept = sum(each[1][0] <= each[1][1] for each in losses)
            n_kept, n_all = n_kept + kept, n_all + len(losses)
            lines.append([name, f"{kept} of {len(losses)}"])
    return table(["set", "fits in which the leader stayed"], [*lines, ["all", f"{n_kept} of {n_all}"]])


def mean(runs, score="v_measure"):
    """Return the mean score of runs."""
    return statistics.mean(run[score] for run in runs)


def present(by_set):
    """Return the methods that have runs, without the initializations of VaDE."""
    return [method for method in METHODS if any(method in methods for methods in by_set.values())]


def overview(score="v_measure", path=RUNS):
    """Return the table of mean and lowest scores, a row for each set and a column for each method."""
    by_set, lines = read(path), []
    methods = present(by_set)
    for name, runs in by_set.items():
        means = {method: mean(runs[method], score) for method in methods if method in runs}
        cells = dict.fromkeys(methods, "")
        for method, value in means.items():
            text = f"{value:.3f} ({min(run[score] for run in runs[method]):.3f})"
            is_best = len(means) > 1 and value == max(means.values())
            cells[method] = f"**{text}**" if is_best else text
        lines.append([name, next(iter(runs.values()))[0]["role"], *cells.values()])
    full = complete(by_set, methods)
    if full:
        means = {m: statistics.mean(mean(by_set[name][m], score) for name in full) for m in methods}
        lines.append([f"mean of {len(full)}", "", *(f"{means[m]:.3f}" for m in methods)])
    return table(["set", "role", *methods], lines)


def complete(by_set, methods):
    """Return the sets that have runs of all methods."""
    return [name for name, runs in by_set.items() if all(method in runs for method in methods)]


def minutes(path=RUNS):
    """Return the table of mean minutes of `fit`."""
    by_set = read(path)
    methods = present(by_set)
    lines = [
        [name, *(f"{mean(runs[m], 'minutes'):.2f}" if m in runs else "" for m in methods)]
        for name, runs in by_set.items()
    ]
    return table(["set", *methods], lines)


def one_set(name, path=RUNS):
    """Return the table of all methods on a set, the best mean V first."""
    cells, lines = read(path)[name], []
    for method in sorted(cells, key=lambda method: -mean(cells[method])):
        runs = cells[method]
        scores = [worst([run[score] for run in runs]) for score in ("v_measure", "accuracy")]
        lines.append([method, len(runs), *scores, f"{mean(runs, 'minutes'):.2f}"])
    return table(["method", "seeds", "V: mean (sd), worst", "accuracy: mean (sd), worst", "minutes"], lines)


def gaps(by_set, method):
    """Return by set the mean V of a method, less that of the best of the other baselines."""
    best = {
        name: max((mean(runs[b]) for b in BASELINES if b in runs and b != method), default=None)
        for name, runs in by_set.items()
        if method in runs
    }
    return {name: mean(by_set[name][method]) - value for name, value in best.items() if value is not None}


def is_compared(runs):
    """Return whether the runs of a set count in the summary: it is balanced, and has runs of the main baseline."""
    return REFERENCE in runs and runs[REFERENCE][0]["role"] != "unbalanced"


def summary(path=RUNS):
    """Return the table of comparisons with the best baseline of each balanced set, and with UMAP + mixture."""
    by_set, lines = {name: runs for name, runs in read(path).items() if is_compared(runs)}, []
    for method in present(by_set):
        differences = gaps(by_set, method)
        if not differences:
            continue
        lowest = min(differences, key=differences.get)
        shared = [name for name, runs in by_set.items() if method in runs and REFERENCE in runs]
        to_umap = [mean(by_set[name][method]) - mean(by_set[name][REFERENCE]) for name in shared]
        seeds = {
            name: min(run["v_measure"] for run in by_set[name][method]) - mean(by_set[name][method])
            for name in differences
        }
        worst_seed = min(seeds, key=seeds.get)
        lines.append(
            [
                method,
                f"{sum(gap >= -MARGIN for gap in differences.values())} of {len(differences)}",
                f"{differences[lowest]:+.3f} ({lowest})",
                f"{statistics.mean(to_umap):+.3f}" if to_umap and method != REFERENCE else "",
                f"{seeds[worst_seed]:+.3f} ({worst_seed})",
            ]
        )
    head = [f"V at least the best other baseline's - {MARGIN}", "largest deficit", f"V, less {REFERENCE}"]
    return table(["method", *head, "worst seed, less the mean"], lines)


def ranked_settings(method, path=TUNING):
    """Return, by group of sets, the settings of a method with their mean V by set, the best mean first.

    Only settings that were run on all sets of the group are ranked.
    """
    values = {}
    for runs in read_runs(path).values():
        for run in runs.values():
            if run["method"] == method:
                by_set = values.setdefault(run["group"], {}).setdefault(json.dumps(run["settings"]), {})
                by_set.setdefault(run["set"], []).append(run["v_measure"])
    ranked = {}
    for group, rows in values.items():
        names = sorted({name for by_set in rows.values() for name in by_set})
        means = {
            text: {name: statistics.mean(by_set[name]) for name in names}
            for text, by_set in rows.items()
            if len(by_set) == len(names)
        }
        order = sorted(means, key=lambda text: -statistics.mean(means[text].values()))
        ranked[group] = [(json.loads(text), means[text]) for text in order]
    return ranked


def described(settings):
    """Return settings as text."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def settings(n_best=1, path=TUNING):
    """Return the table of the best settings of each baseline."""
    lines = []
    for method in BASELINES:
        for group, rows in ranked_settings(method, path).items():
            for chosen, means in rows[:n_best]:
                by_set = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                lines.append(
                    [method, group, len(rows), described(chosen), f"{statistics.mean(means.values()):.3f}", by_set]
                )
    return table(["baseline", "group", "settings tried", "setting", "mean V", "V by set"], lines)
