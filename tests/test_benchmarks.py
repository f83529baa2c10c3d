"""The tables of the benchmarks page are those of the kept records."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
MODULES = ("plan", "page", "run")  # they import one another, and the standard library alone


@pytest.fixture
def benchmarks(monkeypatch):
    """Modules by name, imported as the scripts in their folder import them, and forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def test_tables_are_those_of_the_records(benchmarks):
    page = benchmarks["page"]
    text = page.PAGE.read_text()
    assert page.filled(text) == text, "run `python benchmarks/run.py --tables`"


def test_every_table_has_one_place(benchmarks):
    page = benchmarks["page"]
    assert sorted(name for _, name, _ in page.MARKED.findall(page.PAGE.read_text())) == sorted(page.TABLES)


def test_old_tables_are_replaced_and_the_rest_is_kept(benchmarks):
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


@pytest.mark.parametrize("folder", ["vade", "clustering_peers"])
def test_records_of_rows_have_the_names_that_are_looked_for(benchmarks, folder):
    plan = benchmarks["plan"]
    paths = list((plan.RESULTS / folder).glob("*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text())
        assert path.name == plan.file_name(record["row"], record["seed"])
        assert record["versions"]["torch"]


def test_benchmarks_are_scripts_that_exist(benchmarks):
    plan = benchmarks["plan"]
    for benchmark in plan.BENCHMARKS.values():
        script = benchmark.arguments()[0]
        assert (plan.ROOT / script).is_file(), script
        assert benchmark.minutes > 0
        assert benchmark.records


def test_what_is_lacking_is_told(benchmarks, monkeypatch, tmp_path, capfd):
    plan, run = benchmarks["plan"], benchmarks["run"]
    monkeypatch.setattr(plan, "RESULTS", tmp_path)
    monkeypatch.setenv("SKVAE_DATA_HOME", str(tmp_path))
    (tmp_path / "there.json").write_text("{}")
    needy = plan.Benchmark("plan.py", 1, ("there.json", "not_*.json"), ("no_such_module",), ("no_such.npz",))
    assert needy.missing_records() == ["not_*.json"]
    assert run.run("needy", needy) == "needs the module no_such_module, no_such.npz in the folder SKVAE_DATA_HOME"
    assert run.run("silent", plan.Benchmark("plan.py", 1, ("not_*.json",))) == "did not write not_*.json"
    assert run.run("failing", plan.Benchmark("run.py --nonsense", 1, ("not_*.json",))) == "ended with status 2"
    assert run.run("done", plan.Benchmark("plan.py", 1, ("there.json",))) is None
    assert "required" in capfd.readouterr().err  # what the one that failed had to say
