"""Trainings that are interrupted, and go on from a file to the same result."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import fit_quietly
from sklearn.base import clone
from skorch.callbacks import Callback, EarlyStopping

from skvae import AutoencoderEmbedder, VaDEClusterer, VAEEmbedder
from skvae.fitting.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("short_embedding")
SMALL = {"hidden_layer_sizes": (8,), "batch_size": 32, "max_epochs": 6, "dropout": 0.1, "random_state": 0}


class StopOnce(Callback):
    """Ctrl-C at the end of an epoch, counted over all trainings of a fit."""

    at = None

    def on_batch_begin(self, net, training, **kwargs):
        if StopOnce.at is not None and training:
            StopOnce.at -= 1
            if StopOnce.at < 0:
                StopOnce.at = None
                raise KeyboardInterrupt


def slow_to_stop():
    """No epoch is good enough, so that it stops after nine and takes the weights of the first."""
    return EarlyStopping("train_loss", patience=8, threshold=0.9, load_best=True)


EMBEDDERS = {
    "VAE": VAEEmbedder(2, lr_schedule="cosine", kl_warmup_epochs=3, callbacks=[StopOnce()], **SMALL),
    "VAE, normalized": VAEEmbedder(2, latent_norm_epochs=3, kl_warmup_epochs=2, callbacks=[StopOnce()], **SMALL),
    "VAE with early stopping": VAEEmbedder(2, early_stopping=True, n_iter_no_change=3, callbacks=[StopOnce()], **SMALL),
    "VAE with early stopping of skorch": VAEEmbedder(
        2, callbacks=[("stop", StopOnce()), ("early", slow_to_stop())], **SMALL | {"max_epochs": 12}
    ),
    "AE": AutoencoderEmbedder(2, corruption=0.2, batch_norm=True, callbacks=[StopOnce()], **SMALL),
    "VaDE": VaDEClusterer(3, latent_dim=2, n_init=4, pretrain_epochs=2, callbacks=[StopOnce()], **SMALL),
    "VaDE with views": VaDEClusterer(
        3, latent_dim=2, n_init=6, pretrain_epochs=2, image_shape=(3, 3), channels=(2,), callbacks=[StopOnce()], **SMALL
    ),
}


@pytest.fixture
def X():
    return np.random.default_rng(0).random((150, 9))


def assert_equal(one, other):
    for (name, mine), theirs in zip(one.module_.state_dict().items(), other.module_.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    without = [[{key: value for key, value in row.items() if key != "dur"} for row in e.history_] for e in (one, other)]
    assert without[0] == without[1]


WHOLE = {}  # fits that are not interrupted, which all interruptions are compared with


def without_interruption(name, X):
    if name not in WHOLE:
        StopOnce.at = None
        WHOLE[name] = fit_quietly(clone(EMBEDDERS[name]), X)
    return WHOLE[name]


@pytest.mark.parametrize("name", EMBEDDERS)
@pytest.mark.parametrize("stop", [7, 14, 17, 24, 40])
def test_an_interrupted_fit_goes_on_to_the_same_result(name, stop, X, tmp_path):
    path, expected = tmp_path / "training.pt", without_interruption(name, X)
    embedder = clone(EMBEDDERS[name]).set_params(checkpoint=path)
    StopOnce.at = stop
    try:
        fit_quietly(embedder, X)
    except KeyboardInterrupt:
        assert path.exists()
        assert not hasattr(embedder, "module_")
    assert StopOnce.at is None or "early" in str(expected.get_params()) or stop == 40
    StopOnce.at = None
    assert_equal(fit_quietly(embedder, X), expected)
    assert not path.exists()
    assert os.listdir(tmp_path) == []


def test_without_a_seed_the_interrupted_fit_goes_on_with_its_own(X, tmp_path):
    path = tmp_path / "training.pt"
    embedder = clone(EMBEDDERS["VAE"]).set_params(random_state=None, checkpoint=path)
    StopOnce.at = 17
    with pytest.raises(KeyboardInterrupt):
        fit_quietly(embedder, X)
    seed, done = read_checkpoint(path)["seed"], read_checkpoint(path)["current"]["epochs_done"]
    assert done == 3
    fit_quietly(embedder, X)
    assert embedder._first_seed == seed
    assert embedder.n_iter_ == 6


def test_a_file_of_another_fit_is_an_error(X, tmp_path):
    path = tmp_path / "training.pt"
    embedder = clone(EMBEDDERS["VAE"]).set_params(checkpoint=path, hidden_layer_sizes=[8])
    StopOnce.at = 17
    with pytest.raises(KeyboardInterrupt):
        fit_quietly(embedder, X)
    others = [clone(embedder).set_params(lr=0.1), clone(embedder).set_params(hidden_layer_sizes=[9])]
    for other, rows in ((clone(embedder), X + 1e-3 * (X < 0.5)), *((other, X) for other in others)):
        with pytest.raises(ValueError, match=r"is of another fit, .* remove the file"):
            fit_quietly(other, rows)
    assert path.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"cos\nsystem\n(S'touch hacked'\ntR."])
def test_a_file_that_is_no_checkpoint_is_an_error(content, X, tmp_path):
    path = tmp_path / "training.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint of this version of skvae, or damaged"):
        fit_quietly(clone(EMBEDDERS["VAE"]).set_params(checkpoint=path, random_state=None), X)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["training.pt"]


def test_the_folder_has_to_exist(X, tmp_path):
    with pytest.raises(ValueError, match="is in a folder that does not exist"):
        fit_quietly(clone(EMBEDDERS["VAE"]).set_params(checkpoint=tmp_path / "no" / "training.pt"), X)


LONG = {"hidden_layer_sizes": (64,), "max_epochs": 100, "batch_size": 32, "random_state": 0}
SCRIPT = f"""
import os
import sys
import numpy as np
import torch
from skvae import AutoencoderEmbedder
torch.optim.Adam([torch.zeros(1)])  # which imports more
for _ in range(2):
    process = os.fork()
    if process == 0:
        X = np.random.default_rng(0).random((300, 9))
        AutoencoderEmbedder(2, checkpoint=sys.argv[1], **{LONG}).fit(X)
        os._exit(0)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.mark.first
def test_a_killed_process_is_replaced_by_another(tmp_path):
    """With SIGKILL, at no particular moment, twice; the third is this one. Both are forks after the imports."""
    path = tmp_path / "training.pt"
    command = [sys.executable, "-c", SCRIPT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        for delay in (0.03, 0.1):
            known = path.stat().st_mtime_ns if path.exists() else None
            process = int(parent.stdout.readline())
            while parent.poll() is None and (not path.exists() or path.stat().st_mtime_ns == known):
                time.sleep(0.002)
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
            assert int(parent.stdout.readline()) == -signal.SIGKILL
    assert 0 < read_checkpoint(path)["current"]["epochs_done"] < LONG["max_epochs"]
    X = np.random.default_rng(0).random((300, 9))
    resumed, whole = (AutoencoderEmbedder(2, checkpoint=file, **LONG).fit(X) for file in (path, None))
    np.testing.assert_array_equal(resumed.transform(X), whole.transform(X))
    assert not path.exists()


def test_a_checkpoint_of_a_fit_with_other_callbacks_is_refused(X, tmp_path):
    embedder = VAEEmbedder(2, callbacks=[("stop", StopOnce())], checkpoint=tmp_path / "training.pt", **SMALL)
    StopOnce.at = 12
    with pytest.raises(KeyboardInterrupt):
        embedder.fit(X)
    with pytest.raises(ValueError, match="was written with . callbacks.*give callbacks as before"):
        clone(embedder).set_params(callbacks__stop=None).fit(X)
    assert embedder.fit(X).n_iter_ == SMALL["max_epochs"]
