"""A process group of two, over the loopback interface, compared with one process with all samples."""

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

HERE = Path(__file__).parent
LOCAL = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(HERE.parent)}
# Where components start from one row, the linear form of the density leaves this much of its digits.
ROUNDING = {"lower_bounds_": 1e-8}


def processes(folder):
    """Start two processes that make all fits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(HERE / "joint_fits.py"), str(folder)]
    return [subprocess.Popen(command, env={**os.environ, **LOCAL, **group, "RANK": str(rank)}) for rank in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of each of two processes."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "processes"
    with FileLock(str(shared / "processes.lock")):  # once for all workers
        if not folder.exists():
            folder.mkdir()
            running = processes(folder)
            try:
                assert [process.wait(timeout=240) for process in running] == [0, 0]
            finally:
                for process in running:
                    process.kill()
                    process.wait()
    return [torch.load(folder / f"found_{rank}.pt", weights_only=False) for rank in range(2)]


def alone(fit):
    """Return the results of a fit in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(Shard(0, 1))


def assert_equal(one, other, but=()):
    """Compare the results of two processes, to the last bit."""
    assert one.keys() == other.keys()
    for name in one.keys() - {*but}:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def assert_close(found, expected, rtol, but=()):
    """Compare parameters, with a tolerance relative to the largest value of an array."""
    assert found.keys() == expected.keys()
    for name in expected.keys() - {*but}:
        largest = max(np.abs(expected[name]).max(initial=0.0), np.finfo(float).tiny)
        atol = max(rtol, ROUNDING.get(name, 0.0)) * largest
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", FITS)
def test_two_processes_agree_with_one(name, found):
    one, two = found[0][name], found[1][name]
    assert_equal(one, two, but=["labels_"])
    expected = alone(FITS[name])
    assert_close(one, expected, 1e-5 if "float32" in name else 1e-10, but=["labels_"])
    if "labels_" in expected:
        np.testing.assert_array_equal(np.concatenate([one["labels_"], two["labels_"]]), expected["labels_"])


@pytest.mark.parametrize("name", OTHER_DRAWS)
def test_other_draws_are_as_good(name, found):
    one, two = found[0][name], found[1][name]
    assert_equal(one, two, but=["labels_"])
    assert one["inertia_"] == pytest.approx(alone(OTHER_DRAWS[name])["inertia_"], rel=0.05)


@pytest.mark.parametrize("name", EQUAL_NETS)
def test_averaged_gradients_are_those_of_all_rows(name, found):
    assert_equal(found[0][name], found[1][name])
    assert_close(found[0][name], alone(EQUAL_NETS[name]), 1e-4)


@pytest.mark.parametrize("name", NETS)
def test_networks_are_as_good(name, found):
    assert_equal(found[0][name], found[1][name], but=["labels_"])
    expected = alone(NETS[name])
    assert found[0][name]["score"] == pytest.approx(expected["score"], rel=0.05)
    if "init_losses_" in expected:
        assert len(found[0][name]["init_losses_"]) == len(expected["init_losses_"])
        assert len(found[0][name]["prior.means"]) == 1


@pytest.mark.parametrize("name", ODD_NETS)
def test_all_processes_end_with_the_same_networks(name, found):
    assert_equal(found[0][name], found[1][name], but=["warnings"])
    assert np.isfinite(found[0][name]["loss_curve"]).all()


def test_bad_epochs_are_made_again_by_all(found):
    """The second process ran out of memory, and then had a NaN; the first warns."""
    texts = found[0]["moody"]["warnings"]
    assert [text.split(" with ")[0] for text in texts[:1]] == ["The device ran out of memory"]
    assert any("goes on from epoch" in text and "half the learning rate" in text for text in texts)
    assert found[1]["moody"]["warnings"] == []


def test_an_error_of_one_process_is_one_of_all(found):
    (theirs, kept), (own, own_kept) = (part["a_bad_value"] for part in found)
    assert kept
    assert own_kept
    for (kind, text), (own_kind, own_text) in zip(theirs, own, strict=True):
        assert kind == own_kind == "ValueError"
        assert "contains infinity" in own_text
        assert text == f"Process 1 of 2 has failed: {own_text}"
    assert found[1]["a_late_error"] == ("ZeroDivisionError", "no such number")
    assert found[0]["a_late_error"] == (
        "RuntimeError",
        "Process 1 of 2 has failed: ZeroDivisionError: no such number",
    )


def test_processes_with_other_parameters_do_not_wait_for_one_another(found):
    assert found[0]["unlike"] == found[1]["unlike"]
    names = ["n_components", "n_features", "dtype", "estimator"]
    for name, (kind, text) in zip(names, found[0]["unlike"], strict=True):
        assert kind == "ValueError"
        assert text.startswith(f"{name} should be the same in all processes")
    assert found[0]["out_of_step"] == found[1]["out_of_step"]
    assert "2 processes are out of step" in found[0]["out_of_step"][1]


def test_other_methods_need_no_other_process(found):
    n_results, error, same = found[0]["calls_of_one"]
    assert n_results == 6
    assert error[0] == "NotFittedError"
    assert not same  # the fit within `alone` saw fewer rows


def test_seeds_and_sizes_are_those_of_all(found):
    np.testing.assert_array_equal(found[0]["unseeded"], found[1]["unseeded"])
    for (kind, text), shape in (part["too_few"] for part in found):
        assert kind == "ValueError"
        assert "n_components=9 is larger than n_samples=8" in text
        assert shape == (7, 4)
    assert [part["shards"] for part in found] == [(True, 750, 750)] * 2


def test_the_first_process_alone_prints_and_warns(found):
    printed, warned = found[0]["prints"]
    assert "Initialization 0, iteration 1" in printed
    assert "Step 1 of" in printed
    assert "VAEEmbedder: 100%" in printed
    assert ["did not converge" in text for text in warned] == [True]
    assert found[1]["prints"] == ("", [])


def test_a_process_that_fails_within_an_epoch_stops_the_others(found):
    (error, again, empty), (own, own_again, own_empty) = (part["broken_off"] for part in found)
    assert own == ("ZeroDivisionError", "no such number")
    assert error[0] == again[0] == own_again[0] == "RuntimeError"
    assert error[1].startswith("Another of the 2 processes has stopped or cannot be reached")
    assert "restart all of them" in own_again[1]
    assert empty
    assert own_empty


def test_a_killed_process_stops_the_others_and_a_restart_resumes(found, tmp_path):
    """A process is killed by SIGKILL within an epoch; the launcher restarts both."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    settings = ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "2"]
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
    assert_equal(restarted, found[0]["long"])


def test_a_group_that_the_script_made_is_left_to_it(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    _destroy_group(lambda: None)  # the one that a fit has made is gone
    assert torch.distributed.is_initialized()
    _destroy_group(lambda: torch.distributed.group.WORLD)
    assert not torch.distributed.is_initialized()


def test_a_group_outlives_what_averages_gradients(monkeypatch):
    """Whose end would wait for the threads of the group with Python's lock, for which they may wait."""
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
def test_steps_see_every_row_once_and_weigh_it_the_same(n_rows, batch_size):
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


def test_shards_without_other_processes_are_all_rows(monkeypatch):
    X, y = shard(ROWS, CLASSES)
    assert X.shape == ROWS.shape
    assert len(y) == len(CLASSES)
    monkeypatch.setenv("WORLD_SIZE", "4")
    parts = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(shard(ROWS[:13]))
    np.testing.assert_array_equal(np.concatenate(parts), ROWS[:13])
    with pytest.raises(ValueError, match=r"equal length, but they have \[1500, 1501\] rows"):
        shard(ROWS, np.zeros(1501))


def test_workers_of_a_launched_process_fit_alone(monkeypatch):
    """Processes that joblib or multiprocessing start inherit the environment of the launcher, but not its group."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joint_fits.torch.distributed, "init_process_group", None)
    monkeypatch.setattr("multiprocessing.current_process", lambda: type("Process", (), {"name": "LokyProcess-1"}))
    assert TorchGMM(2, random_state=0).fit(ROWS).converged_
