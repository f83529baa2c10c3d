"""Records in benchmarks/results: one JSON file of a script, or a line of a ``.jsonl`` file for each of its runs."""

import importlib.metadata
import json
import platform
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def environment(threads, *packages):
    """Return the machine, the number of threads and the versions that results depend on."""
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    versions = {name: installed.get(name) for name in ("torch", "numpy", "scikit-learn", "skorch", *packages)}
    return {"machine": processor(), "threads": threads, "versions": versions}


def processor():
    """Return the name of the processor, or of its architecture where the system does not say."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_record(path):
    """Read a record; empty if the path is None or has no file."""
    return json.loads(path.read_text()) if path and path.exists() else {}


def write_record(path, record):
    """Write a record, unless the path is None; after every row, so that a run that is stopped loses nothing."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1))


def read_runs(path):
    """Read the runs of a ``.jsonl`` file: a dict of rows, each a dict of its runs by seed, both in order."""
    rows = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for run in sorted(map(json.loads, lines), key=lambda run: (run["row"], run["seed"])):
        rows.setdefault(run["row"], {})[run["seed"]] = run
    return rows


def write_run(path, run):
    """Add a run to a ``.jsonl`` file, in place of an earlier one of the same row and seed."""
    rows = read_runs(path)
    rows.setdefault(run["row"], {})[run["seed"]] = run
    lines = [json.dumps(rows[row][seed]) for row in sorted(rows) for seed in sorted(rows[row])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def append_run(path, run):
    """Add a run to the end of a ``.jsonl`` file; among runs of the same row and seed, the last one counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")
