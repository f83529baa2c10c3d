"""Run the benchmarks that lack records, and make the tables of docs/benchmarks.md from all records.

    python benchmarks/run.py --list
    python benchmarks/run.py --all
    python benchmarks/run.py --only "k-means" "gmm, peers"
    python benchmarks/run.py --tables

A benchmark with all of its records is not run; delete a record (a file, or a line of a ``.jsonl`` file) to measure it
again. One that needs missing packages or data is named and left out, and so is one that fails; then the exit status is
1. Benchmarks run one after the other, each in a process of its own, on one thread (except the one of two); nothing else
should run at the same time. After the runs, and with ``--tables`` without any, all tables of the page are written from
the records.
"""

import argparse
import os
import subprocess
import sys

from page import PAGE, filled
from plan import BENCHMARKS
from record import ROOT


def show(name, benchmark):
    """Print the minutes of a benchmark, its missing records and its needs."""
    missing, records = len(benchmark.missing_records()), benchmark.records()
    state = f"{missing} of {len(records)} records missing" if missing else "done"
    needs = ", ".join(benchmark.missing_needs())
    print(f"{name:22}{benchmark.minutes:5} min  {state:28}{'needs ' + needs if missing and needs else ''}")


def run(name, benchmark):
    """Run a benchmark; return the reason why it has no records, or None."""
    needs = benchmark.missing_needs()
    if needs:
        return f"needs {', '.join(needs)}"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | benchmark.variables | {"PYTHONPATH": os.pathsep.join(paths)}
    print(f"{name}: {benchmark.command} (about {benchmark.minutes} minutes)", flush=True)
    status = subprocess.run([sys.executable, *benchmark.arguments()], cwd=ROOT, env=variables, check=False).returncode
    if status:
        return f"ended with status {status}"
    missing = benchmark.missing_records()
    return f"did not write {', '.join(missing)}" if missing else None


def write_tables():
    """Update the tables of the page from the records."""
    page = PAGE.read_text()
    new = filled(page)
    if new != page:
        PAGE.write_text(new)
    print(f"{PAGE.relative_to(ROOT)}: {'tables written' if new != page else 'nothing new'}")


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="show all benchmarks")
    action.add_argument("--all", action="store_true", help="run all with missing records")
    action.add_argument("--only", nargs="+", choices=[*BENCHMARKS], metavar="NAME", help="run these if incomplete")
    action.add_argument("--tables", action="store_true", help="run nothing")
    args = parser.parse_args()
    if args.list:
        for name, benchmark in BENCHMARKS.items():
            show(name, benchmark)
        return 0
    failed = {}
    for name in [] if args.tables else args.only or BENCHMARKS:
        if BENCHMARKS[name].missing_records():
            failed[name] = run(name, BENCHMARKS[name])
    write_tables()
    failed = {name: reason for name, reason in failed.items() if reason}
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
