"""Tables of docs/benchmarks.md from the records in benchmarks/results; `run.py --tables` writes them.

The page has a pair of marks for each table, with its name in the first: ``<!-- table: gmm -->`` and ``<!-- end -->``.
"""

import math
import re
import statistics

import choice_tables
import cluster_tables
from markdown_tables import table, worst
from plan import BENCHMARKS
from record import RESULTS, ROOT, read_record, read_runs

PAGE = ROOT / "docs" / "benchmarks.md"
MARKED = re.compile(r"(<!-- table: (.+?) -->\n).*?(\n<!-- end -->)", re.DOTALL)
KINDS = ("full", "tied", "diag", "spherical")
NETWORKS = {
    "mlp 784-400-196-48-16-2": "784-400-196-48-16-2, tanh, batch norm",
    "mlp 784-500-500-2000-10": "784-500-500-2000-10",
    "conv 16-32-2": "convolutions 1-16-32, 2 latents",
}
DAMAGES = {
    "bytes": "bytes flipped, cut, inserted, repeated, exchanged",
    "plants": "pickles planted, alone or in the file",
    "forgeries": "forged: text, values or arrays changed, with a checksum that fits",
}
DEPTHS = ("depth", "depth_within_types")
VADE_ROWS = [
    "mnist, defaults",
    "mnist 20k, defaults",
    "mnist, 14 clusters",
    "mnist, conv, no views, 25 epochs",
    "mnist, conv, no views, 25 epochs, 14 clusters",
    "mnist, conv, neighbours, 25 epochs",
    "mnist, conv, neighbours, 14 clusters",
    "mnist, conv, neighbours, 100 epochs",
    "mnist, conv, no views, 100 epochs",
    "mnist, mlp, plain bound, 25 epochs",
    "mnist, mlp, plain bound, 300 epochs",
    "fashion, defaults",
    "letters, defaults",
    "digits, views, defaults",
    "digits, no views",
    "digits, mlp",
    "digits, full mixture",
    "digits, k-means",
]


def record(name):
    """Return the record of a script that writes one."""
    return read_record(RESULTS / f"{name}.json")


def runs_of_rows(name):
    """Return the runs of a script by row, those of each row in the order of the seeds."""
    return {row: [*runs.values()] for row, runs in read_runs(RESULTS / f"{name}.jsonl").items()}


def spread(row, digits=1):
    """Median, lowest and highest ratio."""
    return "{:.{n}f} ({:.{n}f}-{:.{n}f})".format(row["ratio"], row["lowest"], row["highest"], n=digits)


def by_shape(rows, head, works, cell):
    """A table of works and shapes; names of rows are the work and the shape."""
    shapes = list(dict.fromkeys(name[name.index("(") :] for name in rows if not name.startswith("whole")))
    lines = [
        [label, *(cell(rows[f"{work} {shape}"]) if f"{work} {shape}" in rows else "" for shape in shapes)]
        for label, work in works.items()
    ]
    return table([head, *(f"`{shape}`" for shape in shapes)], lines)


def gmm():
    """Ratios of times on one thread."""
    works = ["full float64", "full float32", *(f"{kind} float64" for kind in KINDS[1:])]
    return by_shape(record("gmm")["rows"], "work", {work: work for work in works}, spread)


def gmm_two_threads():
    """The same on two threads."""
    return by_shape(
        record("gmm_2_threads")["rows"], "work", {f"{kind} float64": f"{kind} float64" for kind in KINDS}, spread
    )


def gmm_busy():
    """The same with a thread for each core, on a quiet and on a busy machine."""
    works = {f"{kind}, {load}": f"{load} {kind}" for kind in ("full", "diag") for load in ("quiet", "busy")}
    return by_shape(record("gmm_busy")["rows"], "work", works, seconds_and_spread)


def seconds_and_spread(row):
    """Ratio of times with its range, and the seconds of both."""
    return spread(row) + ", {skvae:.2f} / {scikit-learn:.2f} s".format(**row["seconds"])


def gmm_memory():
    """Peak memory, ours and theirs."""
    works = {kind: f"{kind} float64" for kind in KINDS}
    cell = "{skvae:.0f} / {scikit-learn:.0f}"
    return by_shape(record("gmm")["rows"], "peak memory, MB", works, lambda row: cell.format(**row["peak_mb"]))


def gmm_whole():
    """Whole fits from defaults."""
    lines = []
    for name, row in record("gmm")["rows"].items():
        if name.startswith("whole fit"):
            shape, starts = re.fullmatch(r"whole fit (\(.+\))(?: (\d+) starts)?", name).groups()
            ours, theirs = row["mean_lower_bound"].values()
            seconds = "{skvae:.2f} / {scikit-learn:.2f}".format(**row["seconds"])
            lines.append([f"`{shape}`", starts or 1, spread(row), seconds, f"{ours - theirs:+.1g}"])
    return table(["shape", "n_init", "ratio", "seconds, skvae / scikit-learn", "difference of the lower bound"], lines)


def gmm_peers():
    """Time of an iteration of other packages over ours."""
    content = record("gmm_peers")
    names = ["scikit-learn", "scikit-learn on torch", "pomegranate", "tgmm", "torchgmm"]
    lines = []
    for work, row in content["rows"].items():
        cells = [
            f"{row[name]['ratio']:.1f}" if "ratio" in row[name] else row[name]["failed"].split(": ", 1)[1]
            for name in names
        ]
        lines.append([f"full {work}", *cells])
    versions = {name: content["versions"].get(name) for name in names}
    return table(["work", *(f"{name} {versions[name]}" if versions[name] else name for name in names)], lines)


def gmm_edges():
    """Cases in which ours gains least, or loses."""
    lines = []
    for name, row in record("gmm_edges")["rows"].items():
        seconds = [f"{1e3 * value:,.{0 if value > 0.1 else 2}f}" for value in row["seconds"].values()]
        ratio = spread(row, 2) if "lowest" in row else f"{row['ratio']:.2f}"
        lines.append([name, ratio, *seconds, f"{row['float32']:.0e}" if "float32" in row else ""])
    return table(["work", "ratio", "skvae, ms", "scikit-learn, ms", "float32 error of the lower bound"], lines)


def kmeans():
    """Ratios and inertias."""
    lines = []
    for name, row in record("kmeans")["rows"].items():
        ours, theirs = (f"{value:.2f}" for value in row["mean_inertia"].values())
        lines.append([name, spread(row, 2), ours, theirs])
    return table(["work", "ratio", "inertia, skvae", "inertia, scikit-learn"], lines)


def ppca():
    """Ratios, and errors of float32."""
    lines = []
    for name, row in record("ppca")["rows"].items():
        errors = [f"{value:.0e}" for value in row["errors"].values()] if name.startswith("float32") else ["", ""]
        lines.append([name.replace("q=", "") + " components", spread(row, 2), *errors])
    return table(["work", "ratio", "error of variances, skvae", "error, scikit-learn"], lines)


def vae():
    """Seconds of an epoch."""
    content, lines = record("vae"), []
    for name, label in NETWORKS.items():
        row = content["rows"][name]
        ours, plain = row["skvae"], row["plain loop"]
        ratio = spread({"ratio": plain["ratio"], "lowest": plain["ratio_lowest"], "highest": plain["ratio_highest"]}, 2)
        seconds = [f"{value:.2f}" for value in (ours["seconds"], plain["seconds"])]
        images = f"{row.get('n_images', content['n_images']):,}"
        lines.append([label, images, *seconds, ratio, f"{ours['bare_step']:.2f}", f"{100 * ours['beside']:.0f} %"])
    return table(["network", "images", "skvae", "plain loop", "ratio", "bare", "overhead"], lines)


def vae_quality():
    """Bounds and errors on MNIST."""
    content, lines = record("vae_quality"), []
    labels = {"skvae": "skvae", "plain loop": "plain PyTorch loop", "pythae": "pythae"}
    for work, network in (("mlp", "perceptrons"), ("conv", "convolutions")):
        for latents in (2, 10):
            row = content["rows"].get(f"{work}, {latents} latents", {})
            for name, results in row.items():
                less = "" if name == "skvae" else f"{results['against']:+.2f}"
                scores = [f"{results[s]:.{n}f} ({results[s + '_sd']:.{n}f})" for s, n in (("elbo", 2), ("mse", 4))]
                lines.append([network, latents, labels[name], len(results["runs"]), *scores, less])
            if f"{work}, {latents} latents" in content["published"]:
                elbo, mse = content["published"][f"{work}, {latents} latents"]
                lines.append([network, latents, "published comparison", "", f"{elbo:.2f}", f"{mse:.4f}", ""])
    return table(["network", "latents", "trainer", "seeds", "ELBO", "squared error", "skvae minus trainer"], lines)


def vae_tables():
    """Classifiers on codes."""
    lines = []
    for name, row in record("vae_tables")["rows"].items():
        for embedding, results in row["embeddings"].items():
            if embedding == "all features":
                continue
            scores = [
                f"{100 * results[s]['mean']:.1f} ± {100 * results[s]['sd']:.1f}"
                for s in ("k-NN", "logistic regression")
            ]
            bound = f"{results['bound']['mean']:.1f}" if embedding == "VAEEmbedder" else ""
            lines.append([name, embedding, row["n_components"], *scores, f"{results['units']['mean']:.1f}", bound])
    return table(["table", "embedding", "size", "k-NN", "logistic regression", "active units", "ELBO"], lines)


def scores(runs):
    """Cells of V-measure, accuracy and minutes."""
    minutes = statistics.mean(run["minutes"] + run.get("minutes_to_predict", 0) for run in runs)
    shown = f"{minutes:.2f}" if minutes >= 0.01 else "< 0.01"
    return [worst([run[score] for run in runs]) for score in ("v_measure", "accuracy")] + [shown]


def vade():
    """All settings of `VaDEClusterer`."""
    rows, lines = runs_of_rows("vade"), []
    for row in (row for row in VADE_ROWS if row in rows):
        runs = rows[row]
        bound = f"{statistics.mean(run['bound'] for run in runs):.1f}" if "bound" in runs[0] else ""
        lines.append([row, len(runs), *scores(runs), bound])
    head = ["data and settings", "seeds", "V: mean (sd), worst", "accuracy: mean (sd), worst", "minutes", "ELBO"]
    return table(head, lines)


def large_files():
    """Speed and memory of methods on a large file."""
    lines = []
    for name, methods in record("large_files")["visit"].items():
        for method, row in methods.items():
            sizes = [f"{row[size]:.0f}" for size in ("peak_mb", "growth_mb", "result_mb")]
            lines.append([f"`{name}.{method}`", f"{row['rows_per_second']:,.0f}", *sizes])
    return table(["method", "samples/s", "peak, MB", "growth, MB", "result, MB"], lines)


def kills():
    """Kills of each estimator, and the arrays that differ in the end."""
    content = record("kills")
    lines = [
        [f"`{name}`", len(row["stopped_in"]), ", ".join(row["different"]) or "none"]
        for name, row in content["rows"].items()
    ]
    return table(["estimator", "kills", "arrays that differ in the end"], lines)


def corrupted_files():
    """Outcomes of loading damaged files."""
    lines = []
    for kind, label in DAMAGES.items():
        counts = record("corrupted_files")["counts"][kind]
        other = sum(n for name, n in counts.items() if name.startswith("another model"))
        cells = [sum(counts.values()), *(counts.get(name, 0) for name in ("refused", "unchanged", "equal")), other]
        lines.append([label, *(f"{n:,}" for n in cells)])
    head = ["files", "refused", "the same bytes by chance", "an equal model", "another model"]
    return table(["modification", *head], lines)


def cells():
    """Counts of cells: likelihood, clusters, depth and batches."""
    lines = []
    for row, runs in runs_of_rows("cells").items():
        name, method = row.split(", ", 1)
        values = {score: [run[score] for run in runs] for score in ("log_likelihood", "v_measure", *DEPTHS, "mixing")}
        v, (score, *others) = values.pop("v_measure"), values.values()
        means = ["" if None in each else f"{statistics.mean(each):.2f}" for each in others]
        bound = "" if None in score else f"{statistics.mean(score):.1f}"
        lines.append(
            [name, method, len(runs), bound, worst(v), *means, f"{statistics.mean(r['seconds'] for r in runs):.0f}"]
        )
    head = ["data", "method", "seeds", "log-likelihood", "V: mean (sd), worst", "depth", "within types", "mixing", "s"]
    return table(head, lines)


def penguins():
    """Clusters of a table of numbers and categories."""
    rows = record("penguins")["rows"]
    return table(["method", "seeds", "V: mean (sd), worst"], [[name, len(v), worst(v)] for name, v in rows.items()])


def sizes():
    """Seconds and memory of fits to n, 10 n and 100 n samples."""
    lines = []
    for name, fits in record("memory")["fits"].items():
        numbers = [*map(int, fits)]
        seconds, growth = ([fit[key] for fit in fits.values()] for key in ("seconds", "growth_mb"))
        slope = math.log(seconds[-1] / seconds[0]) / math.log(numbers[-1] / numbers[0])
        cells = (f"{time:.1f} s, {memory:.0f} MB" for time, memory in zip(seconds, growth, strict=True))
        lines.append([f"`{name}`", *cells, f"{slope:.2f}"])
    return table(["fit", *(f"{number:,}" for number in numbers), "slope of the time"], lines)


def training_length():
    """Bounds of small tables by the number of epochs and the widths of layers."""
    rows, lines = record("training_length")["rows"], []
    names = list(next(iter(rows.values()))["settings"])
    for name, row in rows.items():
        epochs = row["settings"]["default"]["epochs"]
        epochs = f"{min(epochs)} to {max(epochs)}" if min(epochs) < max(epochs) else str(epochs[0])
        bounds = [f"{statistics.mean(row['settings'][each]['bounds']):.1f}" for each in names]
        lines.append([name, "{} x {}".format(*row["shape"]), epochs, *bounds])
    return table(["table", "shape", "epochs by default", *names], lines)


def plan():
    """Benchmarks with their scripts and minutes, and the versions of their records."""
    lines = []
    for name, benchmark in BENCHMARKS.items():
        records = benchmark.records()
        present = [record for record in records.values() if record]
        state = "all" if len(present) == len(records) else f"{len(present)} of {len(records)}"
        versions = {record.get("versions", {}).get("torch") for record in present} - {None}
        lines.append([name, f"`{benchmark.command.split()[0]}`", benchmark.minutes, state, ", ".join(sorted(versions))])
    return table(["name", "script", "minutes", "records", "torch"], lines)


TABLES = {
    "gmm": gmm,
    "gmm, memory": gmm_memory,
    "gmm, whole fits": gmm_whole,
    "gmm, 2 threads": gmm_two_threads,
    "gmm, busy": gmm_busy,
    "gmm, peers": gmm_peers,
    "gmm, edges": gmm_edges,
    "k-means": kmeans,
    "ppca": ppca,
    "vae": vae,
    "vae, quality": vae_quality,
    "vae, tables": vae_tables,
    "vade": vade,
    "clusters": cluster_tables.overview,
    "clusters, accuracy": lambda: cluster_tables.overview("accuracy"),
    "clusters, minutes": cluster_tables.minutes,
    "clusters, summary": cluster_tables.summary,
    "clusters, initializations": cluster_tables.initializations,
    "clusters, leaders": cluster_tables.leaders,
    "clusters, settings": cluster_tables.settings,
    "cells": cells,
    "penguins": penguins,
    "sizes": sizes,
    "choice": choice_tables.summary,
    "choice, sets": choice_tables.by_set,
    "training length": training_length,
    "large files": large_files,
    "kills": kills,
    "corrupted files": corrupted_files,
    "plan": plan,
}


def filled(page):
    """Return the page with all tables from the records."""

    def replace(match):
        before, name, after = match.groups()
        if name not in TABLES:
            raise ValueError(f"The page has a mark for the table {name!r}, but there are only {', '.join(TABLES)}.")
        return f"{before}\n{TABLES[name]()}\n{after}"

    if page.count("<!-- table: ") != len(MARKED.findall(page)):
        raise ValueError("The page has the mark of a table without a mark of its end.")
    return MARKED.sub(replace, page)
