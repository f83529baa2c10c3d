"""One thread for small work, and as many as before afterwards."""

import threading

import numpy as np
import pytest
import torch

from skvae import TorchGMM, TorchMiniBatchKMeans
from skvae.fitting.threads import SERIAL_OPERATIONS, serial_if_small

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_work_has_one_thread():
    for size, n_threads in ((SERIAL_OPERATIONS / 2, 1), (SERIAL_OPERATIONS, 2)):
        with serial_if_small(size, CPU):
            assert torch.get_num_threads() == n_threads
        assert torch.get_num_threads() == 2
    with serial_if_small(0, torch.device("meta")):
        assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_error():
    with serial_if_small(0, CPU):
        with pytest.raises(ZeroDivisionError), serial_if_small(0, CPU):
            raise ZeroDivisionError
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_overlapping_fits_leave_the_number_as_it_was():
    inside, done = threading.Event(), threading.Event()

    def one():
        with serial_if_small(0, CPU):
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=one)
    with serial_if_small(0, CPU):
        thread.start()
        inside.wait(10)
    done.set()
    thread.join()
    with serial_if_small(0, CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("estimator", [TorchGMM(2, random_state=0), TorchMiniBatchKMeans(2, random_state=0)])
def test_fits_leave_the_number_as_it_was(estimator, monkeypatch):
    counts, matmul = [], torch.Tensor.argmax
    monkeypatch.setattr(
        torch.Tensor, "argmax", lambda *a, **k: counts.append(torch.get_num_threads()) or matmul(*a, **k)
    )
    X = np.random.default_rng(0).normal(size=(200, 3))
    estimator.fit(X).predict(X)
    estimator.partial_fit(X)
    with pytest.raises(ValueError, match="features"):
        estimator.partial_fit(X[:, :2])
    assert set(counts) <= {1}
    assert torch.get_num_threads() == 2
