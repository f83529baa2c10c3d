"""Tables of the benchmarks page agree with the records, and the plan with the scripts."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
# They import one another, and only the standard library; the others are imported by single tests.
MODULES = ("record", "markdown_tables", "cluster_tables", "choice_tables", "plan", "page", "run")
HEAVY_MODULES = ("clusters", "sets", "letters")


@pytest.fixture
def benchmarks(monkeypatch):
    """Modules by name, imported as the scripts in their folder import them, and removed afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in (*MODULES, *HEAVY_MODULES):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in (*MODULES, *HEAVY_MODULES):
        sys.modules.pop(name, None)


def test_tables_are_those_of_the_records(benchmarks):
    page = benchmarks["page"]
    text = page.PAGE.read_text()
    assert page.filled(text) == text, "run `python benchmarks/run.py --tables`"


def test_every_table_has_one_place(benchmarks):
    page = benchmarks["page"]
    assert sorted(name for _, name, _ in page.MARKED.findall(page.PAGE.read_text())) == sorted(page.TABLES)


def test_filling_a_page_replaces_only_its_tables(benchmarks):
    page = benchmarks["page"]
    text = "before\n\n<!-- table: kills -->\n| old |\n<!-- end -->\n\nafter\n"
    filled = page.filled(text)
    assert filled == f"before\n\n<!-- table: kills -->\n\n{page.kills()}\n\n<!-- end -->\n\nafter\n"
    assert page.filled(filled) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->\n\n<!-- end -->\n", "mark for the table 'nothing'"),
        ("<!-- table: kills -->\n\n| no end |\n", "without a mark of its end"),
        ("<!-- table: kills -->\n\n<!-- table: ppca -->\n\n<!-- end -->\n", "without a mark of its end"),
    ],
)
def test_wrong_marks_are_refused(benchmarks, text, message):
    with pytest.raises(ValueError, match=message):
        benchmarks["page"].filled(text)


def test_a_mean_of_several_seeds_has_its_deviation_and_the_worst(benchmarks):
    page = benchmarks["page"]
    assert page.worst([0.5]) == "0.500"
    assert page.worst([0.5, 0.7]) == "0.600 (0.141), 0.500"
    runs = [{"v_measure": v, "accuracy": 1 - v, "minutes": 0.001} for v in (0.25, 0.5)]
    assert page.scores(runs) == ["0.375 (0.177), 0.250", "0.625 (0.177), 0.500", "< 0.01"]


@pytest.mark.parametrize("name", ["vade", "clusters", "studies", "cells", "choice"])
def test_rows_of_runs_are_planned(benchmarks, name):
    file, plan = f"{name}.jsonl", benchmarks["plan"]
    rows = benchmarks["record"].read_runs(plan.RESULTS / file)
    assert rows
    assert set(rows) <= {
        row for benchmark in plan.BENCHMARKS.values() if benchmark.output == file for row in benchmark.seeds
    }
    assert all(run["versions"]["torch"] for runs in rows.values() for run in runs.values())


def test_a_run_replaces_that_of_the_same_row_and_seed(benchmarks, tmp_path):
    record, path = benchmarks["record"], tmp_path / "runs.jsonl"
    assert record.read_runs(path) == {}
    runs = [{"row": row, "seed": seed, "score": 0.5} for row, seed in (("b", 10), ("b", 9), ("a", 0))]
    for run in (*runs, runs[1] | {"score": 1.0}):
        record.write_run(path, run)
    assert record.read_runs(path) == {"a": {0: runs[2]}, "b": {9: runs[1] | {"score": 1.0}, 10: runs[0]}}
    assert list(record.read_runs(path)["b"]) == [9, 10]
    assert len(path.read_text().splitlines()) == 3


def test_settings_of_baselines_are_the_best_of_their_grids(benchmarks):
    tables, record = benchmarks["cluster_tables"], benchmarks["record"]
    frozen = record.read_record(tables.SETTINGS)
    assert frozen
    for method, groups in frozen.items():
        ranked = tables.ranked_settings(method)
        assert groups == {group: ranked[group][0][0] for group in groups}, method
    runs = [run for runs in record.read_runs(tables.RUNS).values() for run in runs.values()]
    for run in (run for run in runs if run["method"] in tables.BASELINES[1:]):
        assert run["settings"] == frozen[run["method"]][run["group"]], run["row"]


def test_benchmarks_of_clusterers_are_planned_for_sets_that_can_be_made(benchmarks):
    plan, sets = benchmarks["plan"], importlib.import_module("sets").SETS
    assert {*plan.SMALL_SETS, *plan.IMAGE_SETS, *plan.NEW_SETS, *plan.UNBALANCED_SETS} == {*sets}
    assert {sets[name].role for name in plan.NEW_SETS} == {"opened last"}


def test_benchmarks_are_scripts_that_exist(benchmarks):
    plan = benchmarks["plan"]
    for benchmark in plan.BENCHMARKS.values():
        script = benchmark.arguments()[0]
        assert (benchmarks["record"].ROOT / script).is_file(), script
        assert benchmark.minutes > 0
        assert benchmark.records()


def test_missing_needs_and_records_are_reported(benchmarks, monkeypatch, tmp_path, capfd):
    plan, run = benchmarks["plan"], benchmarks["run"]
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    monkeypatch.setenv("SKVAE_DATA_HOME", str(tmp_path))
    (tmp_path / "present.json").write_text('{"rows": {}}')
    (tmp_path / "runs.jsonl").write_text('{"row": "a", "seed": 1}\n')
    needy = plan.Benchmark("plan.py", 1, "runs.jsonl", {"a": 2}, ("no_such_module",), ("no_such.npz",))
    assert needy.missing_records() == ["a, seed 0"]
    assert run.run("needy", needy) == "needs the module no_such_module, no_such.npz in the folder SKVAE_DATA_HOME"
    assert run.run("silent", plan.Benchmark("plan.py", 1, "missing.json")) == "did not write missing.json"
    assert run.run("failing", plan.Benchmark("run.py --nonsense", 1, "missing.json")) == "ended with status 2"
    assert run.run("done", plan.Benchmark("plan.py", 1, "present.json")) is None
    assert "required" in capfd.readouterr().err  # the output of the benchmark that failed


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_rows_of_tables_have_the_cells_of_their_head(name):
    rows, n_cells = (Path(__file__).parents[1] / name).read_text().splitlines(), None
    for row in rows:
        if not row.startswith("|"):
            n_cells = None
            continue
        n_own = row.replace("\\|", "").count("|")
        assert n_cells in (None, n_own), row
        n_cells = n_own
