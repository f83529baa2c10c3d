"""Fits of a group of two processes, over the loopback interface, compared with those of one process."""

import json
import os
import socket
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import joint_fits
import numpy as np
import pytest
import torch
from filelock import FileLock
from joint_fits import CLASSES, EQUAL_NETS, FITS, NETS, ODD_NETS, OTHER_DRAWS, ROWS, Shard

from skvae import TorchGMM
from skvae.distributed import shard
from skvae.fitting.batches import batch_sizes, count_batches, count_steps, step_weights
from skvae.fitting.data_parallel import AveragedGradients
from skvae.fitting.distributed import _destroy_group
from skvae.fitting.training import TrainingData, _EpochLoop

pytestmark = pytest.mark.first
HERE = Path(__file__).parent
LOCAL = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(HERE.parent)}
# With components initialized from one row, the linear form of the density loses digits.
ROUNDING = {"lower_bounds_": 1e-8}


def start_processes(folder):
    """Start two processes that make all fits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(HERE / "joint_fits.py"), str(folder)]
    return [subprocess.Popen(command, env={**os.environ, **LOCAL, **group, "RANK": str(rank)}) for rank in range(2)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of each of two processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "processes"
    with FileLock(str(shared / "processes.lock")):  # once for all workers
        if not folder.exists():
            folder.mkdir()
            running = start_processes(folder)
            try:
                assert [process.wait(timeout=240) for process in running] == [0, 0]
            finally:
                for process in running:
                    process.kill()
                    process.wait()
    return [torch.load(folder / f"results_{rank}.pt", weights_only=False) for rank in range(2)]


def fit_alone(fit):
    """Return the results of a fit in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(Shard(0, 1))


def assert_equal(one, other, but=()):
    """Raise if the results of two processes differ in any bit."""
    assert one.keys() == other.keys()
    for name in one.keys() - {*but}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_close(actual, expected, rtol, but=()):
    """Raise if arrays differ by more than a share of their largest value."""
    assert actual.keys() == expected.keys()
    for name in expected.keys() - {*but}:
        largest = max(np.abs(expected[name]).max(initial=0.0), np.finfo(float).tiny)
        atol = max(rtol, ROUNDING.get(name, 0.0)) * largest
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", FITS)
def test_two_processes_fit_the_model_of_one(name, results):
    one, two = results[0][name], results[1][name]
    assert_equal(one, two, but=["labels_"])
    expected = fit_alone(FITS[name])
    assert_close(one, expected, 1e-5 if "float32" in name else 1e-10, but=["labels_"])
    if "labels_" in expected:
        np.testing.assert_array_equal(np.concatenate([one["labels_"], two["labels_"]]), expected["labels_"])


@pytest.mark.parametrize("name", OTHER_DRAWS)
def test_fits_with_other_draws_are_as_good(name, results):
    one, two = results[0][name], results[1][name]
    assert_equal(one, two, but=["labels_"])
    assert one["inertia_"] == pytest.approx(fit_alone(OTHER_DRAWS[name])["inertia_"], rel=0.05)


@pytest.mark.parametrize("name", EQUAL_NETS)
def test_averaged_gradients_are_those_of_all_rows(name, results):
    assert_equal(results[0][name], results[1][name])
    assert_close(results[0][name], fit_alone(EQUAL_NETS[name]), 1e-4)


@pytest.mark.parametrize("name", NETS)
def test_networks_are_as_good(name, results):
    assert_equal(results[0][name], results[1][name], but=["labels_"])
    expected = fit_alone(NETS[name])
    assert results[0][name]["score"] == pytest.approx(expected["score"], rel=0.05)
    if "init_losses_" in expected:
        n_joint, n_alone = (len(values["init_losses_"]) for values in (results[0][name], expected))
        # After four and two initializations, splits and merges may be accepted in one of both alone.
        assert n_joint == n_alone or min(n_joint, n_alone) >= 6
        assert len(results[0][name]["prior.means"]) == 1


@pytest.mark.parametrize("name", ODD_NETS)
def test_all_processes_end_with_the_same_networks(name, results):
    assert_equal(results[0][name], results[1][name], but=["warnings"])
    assert np.isfinite(results[0][name]["loss_curve"]).all()


def test_failed_epochs_are_repeated_by_all(results):
    """The second process ran out of memory, and then had NaN; the first emits the warnings."""
    texts = results[0]["failing"]["warnings"]
    assert [text.split(" with ")[0] for text in texts[:1]] == ["The device ran out of memory"]
    assert any("continues from epoch" in text and "half the learning rate" in text for text in texts)
    assert results[1]["failing"]["warnings"] == []


def test_an_error_of_one_process_is_raised_by_all(results):
    (theirs, kept), (own, own_kept) = (part["a_bad_value"] for part in results)
    assert kept
    assert own_kept
    for (error, text), (own_error, own_text) in zip(theirs, own, strict=True):
        assert error == own_error == "ValueError"
        assert "contains infinity" in own_text
        assert text == f"Process 1 of 2 has failed: {own_text}"
    assert results[1]["a_late_error"] == ("ZeroDivisionError", "no such number")
    assert results[0]["a_late_error"] == (
        "RuntimeError",
        "Process 1 of 2 has failed: ZeroDivisionError: no such number",
    )


def test_different_parameters_raise_in_all_processes(results):
    assert results[0]["different_parameters"] == results[1]["different_parameters"]
    names = ["n_components", "n_features", "dtype", "estimator"]
    for name, (error, text) in zip(names, results[0]["different_parameters"], strict=True):
        assert error == "ValueError"
        assert text.startswith(f"{name} should be the same in all processes")
    assert results[0]["out_of_step"] == results[1]["out_of_step"]
    assert "2 processes are out of step" in results[0]["out_of_step"][1]


def test_only_fits_are_collective(results):
    n_results, error, same = results[0]["calls_of_one"]
    assert n_results == 6
    assert error[0] == "NotFittedError"
    assert not same  # the fit within `alone` had fewer samples


def test_seeds_and_numbers_of_samples_are_those_of_the_group(results):
    np.testing.assert_array_equal(results[0]["unseeded"], results[1]["unseeded"])
    for (error, text), shape in (part["too_few"] for part in results):
        assert error == "ValueError"
        assert "n_components=9 is larger than n_samples=8" in text
        assert shape == (7, 4)
    assert [part["shards"] for part in results] == [(True, 750, 750)] * 2


def test_only_the_first_process_prints_and_warns(results):
    printed, warned = results[0]["prints"]
    assert "Initialization 0, iteration 1" in printed
    assert "Step 1 of" in printed
    assert "VAEEmbedder: 100%" in printed
    assert ["did not converge" in text for text in warned] == [True]
    assert results[1]["prints"] == ("", [])


def test_a_process_that_fails_within_an_epoch_stops_the_others(results):
    (error, again, empty), (own, own_again, own_empty) = (part["interrupted"] for part in results)
    assert own == ("ZeroDivisionError", "no such number")
    assert error[0] == again[0] == own_again[0] == "RuntimeError"
    assert error[1].startswith("Another of the 2 processes has stopped or cannot be reached")
    assert "restart all of them" in own_again[1]
    assert empty
    assert own_empty


def test_a_killed_process_stops_the_others_and_a_restart_resumes(results, tmp_path):
    """Killed by SIGKILL in the middle of an epoch; the launcher starts both again."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    settings = ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.5"]
    command = [*launcher, *settings, str(HERE / "killed_fit.py"), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command, env={**environment, **LOCAL}, timeout=240, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["at"] - float((tmp_path / "killed").read_text()) < 60
    assert error["text"].startswith("Another of the 2 processes has stopped or cannot be reached")
    assert "a fit with checkpoint= resumes from its last epoch" in error["text"]
    assert error["left"]
    assert not (tmp_path / "training.pt").exists()
    restarted = torch.load(tmp_path / "found.pt", weights_only=False)
    assert restarted.pop("attempt") == 1
    assert [(tmp_path / f"left_{rank}").read_text() for rank in range(2)] == ["0", "0"]
    assert_equal(restarted, results[0]["long"])


def test_a_group_of_the_script_is_not_destroyed(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    _destroy_group(lambda: None)  # the group of a fit no longer exists
    assert torch.distributed.is_initialized()
    _destroy_group(lambda: torch.distributed.group.WORLD)
    assert not torch.distributed.is_initialized()


def test_gradient_averaging_is_deleted_before_the_group(monkeypatch):
    """Its deletion waits for threads of the group while it has the lock of the interpreter, for which they may wait."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        net = SimpleNamespace(averaged=AveragedGradients(uses_all=True))
        net.averaged(torch.nn.Linear(2, 2), input=torch.ones(3, 2)).sum().backward()
        wrapped, left = weakref.ref(net.averaged._wrapped), []
        group = SimpleNamespace(leave=lambda: left.append(wrapped()))
        data = TrainingData(torch.ones(3, 2), torch.Generator(), torch.device("cpu"), group=group)
        _EpochLoop(net, None, None, None, data)._leave_group()
        assert left == [None]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("n_rows", [[100, 57], [40, 40, 41], [1490, 10], [2, 2, 2], [7, 300, 2]])
@pytest.mark.parametrize("batch_size", [2, 16, 1000])
def test_steps_use_every_sample_once_with_equal_weight(n_rows, batch_size):
    n_steps = count_steps(n_rows, batch_size)
    sizes = [batch_sizes(n, n_steps) for n in n_rows]
    assert [int(part.sum()) for part in sizes] == n_rows
    assert all(len(part) == n_steps and not (part == 1).any() for part in sizes)
    whole = sum(sizes)
    assert whole.min() >= 2
    for rank, part in enumerate(sizes):
        weights = step_weights(n_rows, n_steps, Shard(rank, len(n_rows)))
        torch.testing.assert_close(weights * whole / len(n_rows), part.to(weights))


def test_steps_of_one_process_are_its_batches():
    for n in (2, 3, 129, 1000):
        n_steps = count_steps([n], 64)
        assert n_steps == count_batches(n, 64)
        assert batch_sizes(n, n_steps).tolist() == [len(part) for part in torch.arange(n).tensor_split(n_steps)]


def test_shards_of_a_single_process_are_all_samples(monkeypatch):
    X, y = shard(ROWS, CLASSES)
    assert X.shape == ROWS.shape
    assert len(y) == len(CLASSES)
    monkeypatch.setenv("WORLD_SIZE", "4")
    parts = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(shard(ROWS[:13]))
    np.testing.assert_array_equal(np.concatenate(parts), ROWS[:13])
    with pytest.raises(ValueError, match=r"equal length, but have \[1500, 1501\] samples"):
        shard(ROWS, np.zeros(1501))


def test_workers_of_a_launched_process_fit_alone(monkeypatch):
    """Processes that joblib or multiprocessing start inherit the environment of the launcher, but not its group."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joint_fits.torch.distributed, "init_process_group", None)
    monkeypatch.setattr("multiprocessing.current_process", lambda: type("Process", (), {"name": "LokyProcess-1"}))
    assert TorchGMM(2, random_state=0).fit(ROWS).converged_
