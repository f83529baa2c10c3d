"""Run the benchmarks that lack records, and make the tables of docs/benchmarks.md from all records.

    python benchmarks/run.py --list
    python benchmarks/run.py --all
    python benchmarks/run.py --only "k-means" "gmm, peers"
    python benchmarks/run.py --tables

A benchmark whose records are all there is not run; delete a record to have it measured again. One that needs a package
or data that are missing is named and left out, and so is one that fails; then the exit status is 1. Benchmarks run one
after the other, each in a process of its own, on one thread (but for the one of two); nothing else should run beside
them. After the runs, and with ``--tables`` without any, every table of the page is written as the records have it.
"""

import argparse
import os
import subprocess
import sys

from page import PAGE, filled
from plan import BENCHMARKS, ROOT


def show(name, benchmark):
    """Print what a benchmark takes, lacks and needs."""
    lacking = len(benchmark.missing_records())
    state = f"{lacking} of {len(benchmark.records)} records lacking" if lacking else "done"
    needs = ", ".join(benchmark.missing_needs())
    print(f"{name:22}{benchmark.minutes:5} min  {state:28}{'needs ' + needs if lacking and needs else ''}")


def run(name, benchmark):
    """Run a benchmark; why there are no records of it, or None."""
    needs = benchmark.missing_needs()
    if needs:
        return f"needs {', '.join(needs)}"
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | benchmark.variables | {"PYTHONPATH": os.pathsep.join(paths)}
    print(f"{name}: {benchmark.command} (about {benchmark.minutes} minutes)", flush=True)
    status = subprocess.run([sys.executable, *benchmark.arguments()], cwd=ROOT, env=variables, check=False).returncode
    if status:
        return f"ended with status {status}"
    lacking = benchmark.missing_records()
    return f"did not write {', '.join(lacking)}" if lacking else None


def write_tables():
    """Bring the page up to date with the records."""
    page = PAGE.read_text()
    new = filled(page)
    if new != page:
        PAGE.write_text(new)
    print(f"{PAGE.relative_to(ROOT)}: {'tables written' if new != page else 'nothing new'}")


def main():
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="show all benchmarks")
    what.add_argument("--all", action="store_true", help="run all that lack records")
    what.add_argument("--only", nargs="+", choices=[*BENCHMARKS], metavar="NAME", help="run these if they lack records")
    what.add_argument("--tables", action="store_true", help="run nothing")
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
