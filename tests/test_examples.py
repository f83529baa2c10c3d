"""Examples run on scikit-learn's digits, with trainings of a few epochs."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.first
EXAMPLES = sorted((ROOT / "examples").glob("plot_study_*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_study_runs(path, tmp_path, monkeypatch, capsys):
    """Without MNIST, it prints reported and recorded results, and draws figures."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("SKVAE_DATA_HOME", raising=False)
    monkeypatch.chdir(path.parent)  # as when the documentation is built
    monkeypatch.setattr(sys, "argv", [str(path), "--epochs", "2", "--output", str(tmp_path)])
    plt.switch_backend("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trainings of two epochs emit many
        runpy.run_path(str(path), run_name="__main__")
    plt.close("all")
    assert "reported" in capsys.readouterr().out
    figures = sorted(tmp_path.glob("*.png"))
    assert len(figures) >= 2
    assert all(figure.stat().st_size > 2_000 for figure in figures)


def test_workers_agree_with_one_process(tmp_path):
    """The workers of Dask import the example when they start, which is why it runs in a separate process."""
    pytest.importorskip("dask.distributed")
    figure = tmp_path / "search.png"
    script = [str(ROOT / "examples" / "plot_dask_search.py"), "--epochs", "1", "--output", str(figure)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 candidates, 3 folds" in done.stdout
    assert "largest difference of a score: 0\n" in done.stdout
    assert figure.stat().st_size > 2_000
