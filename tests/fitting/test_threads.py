"""One thread for small work, and as many as before afterwards."""

import threading

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClusterMixin

from skvae import TorchGMM, TorchMiniBatchKMeans
from skvae.fitting.devices import MAX_SERIAL_OPERATIONS, serial_if_small

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_work_has_one_thread():
    for size, n_threads in ((MAX_SERIAL_OPERATIONS / 2, 1), (MAX_SERIAL_OPERATIONS, 2)):
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


def test_a_thread_that_began_inside_changes_nothing_for_others():
    began, left, numbers = threading.Event(), threading.Event(), []

    def other():
        torch.ones(9).sum()
        began.set()
        left.wait(10)
        with serial_if_small(0, CPU):
            torch.ones(9).sum()

    thread = threading.Thread(target=other)
    with serial_if_small(0, CPU):
        thread.start()
        began.wait(10)
    left.set()
    thread.join()
    last = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    last.start()
    last.join()
    assert numbers == [2]
    assert torch.get_num_threads() == 2


def test_clusterers_of_the_user_keep_their_threads():
    numbers = []

    class Halves(ClusterMixin, BaseEstimator):
        def fit_predict(self, X, y=None):
            numbers.append(torch.get_num_threads())
            return (X[:, 0] > 0).astype(int)

    TorchGMM(2, init_params=Halves()).fit(np.random.default_rng(0).normal(size=(99, 2)))
    assert numbers == [2]


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
