"""Snapshots of a training: to go back to after a bad epoch, and to resume from after a process was killed."""

import copy
from abc import abstractmethod
from pathlib import Path

import torch
from skorch.callbacks import Callback, EarlyStopping, LRScheduler

from .devices import random_states, set_random_states
from .files import atomic_write

FORMAT = 2
SKORCH_EARLY_STOPPING = ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_")  # its state
RANDOM_STATES = ("generator", "torch", "device")  # in a snapshot; each process has its own


class Resumable(Callback):
    """A callback with a state, which is part of the state of a training."""

    @abstractmethod
    def state(self, net):
        """Return the state that `resume` needs: numbers and tensors."""

    @abstractmethod
    def resume(self, net, state):
        """Continue from a state."""


def take_snapshot(net, model, generator):
    """Return the state of a training between two epochs, as numbers and copies of tensors."""
    on_cpu, on_device = random_states(generator.device)  # private ones where modules draw from them
    return {
        "model": copied(dict(model.state_dict())),
        "optimizer": copied(net.optimizer_.state_dict()),
        "generator": generator.get_state(),
        "torch": on_cpu,
        "device": on_device,
        "callbacks": [_callback_state(net, callback) for _, callback in net.callbacks_],
        "schedules": [callback.lr_scheduler_.state_dict() for callback in schedules(net)],
        "epochs_done": len(net.history),
    }


def copied(state):
    """Return a copy of a state; `copy.deepcopy` of a tensor would take longer than a small training step."""
    if type(state) is dict:
        return {name: copied(value) for name, value in state.items()}
    if type(state) is list:
        return [copied(value) for value in state]
    return state.detach().clone() if isinstance(state, torch.Tensor) else copy.deepcopy(state)


def restore(net, model, generator, snapshot, *, user_modules=False):
    """Continue a training from a snapshot, in place; a snapshot of another process contains the history, too.

    Raises
    ------
    ValueError
        If it was taken with other callbacks, or on another type of device, whose generators have other states.
    """
    if len(snapshot["generator"]) != len(generator.get_state()):
        raise ValueError(
            "The checkpoint was written by a training on another type of device, whose random numbers cannot be "
            f"continued on {generator.device.type}; set device as it was, or remove the file to begin anew."
        )
    if "history" in snapshot:
        net.history[:] = [{**row, "batches": []} for row in snapshot["history"]]
    del net.history[snapshot["epochs_done"] :]
    if len(net.callbacks_) != len(snapshot["callbacks"]):
        raise ValueError(
            f"The checkpoint was written with {len(snapshot['callbacks'])} callbacks, those of the training included, "
            f"but now there are {len(net.callbacks_)}; give callbacks as before, or remove the file to begin anew."
        )
    for (_, callback), state in zip(net.callbacks_, snapshot["callbacks"], strict=True):
        if state is not None and isinstance(callback, Resumable):
            callback.resume(net, state)
        elif state is not None and isinstance(callback, EarlyStopping):
            vars(callback).update(copied(state))
    model.load_state_dict(snapshot["model"])
    net.optimizer_.load_state_dict(copied(snapshot["optimizer"]))
    for callback, state in zip(schedules(net), snapshot["schedules"], strict=False):
        callback.lr_scheduler_.load_state_dict(state)
    generator.set_state(snapshot["generator"])
    if user_modules:
        set_random_states((snapshot["torch"], snapshot.get("device")), generator.device)


def _callback_state(net, callback):
    """Return the state of a callback as numbers and copies of tensors, None for a callback that cannot be resumed."""
    if isinstance(callback, Resumable):
        return callback.state(net)
    if type(callback) is EarlyStopping:
        state = {name: getattr(callback, name, None) for name in SKORCH_EARLY_STOPPING}
        if state["dynamic_threshold_"] is not None:  # perhaps a number of NumPy, which the file cannot store
            state["dynamic_threshold_"] = float(state["dynamic_threshold_"])
        return copied(state)
    return None


def schedules(net):
    """Return the callbacks that change the learning rate, once they have begun."""
    schedulers = [callback for _, callback in net.callbacks_ if isinstance(callback, LRScheduler)]
    return [callback for callback in schedulers if getattr(callback, "lr_scheduler_", None) is not None]


def epoch_records(net):
    """Return the history of the epochs of a net, without batches, as Python numbers and text."""
    records = []
    for row in net.history:
        values = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        records.append({key: value for key, value in values.items() if isinstance(value, int | float | str)})
    return records


class Checkpoint:
    """A file with the state of a fit: its finished training runs, and the current one.

    Files are read without running code from them, and are replaced atomically.

    Parameters
    ----------
    path : path-like
    fingerprint : str
        Identifies the fit; the file of another fit is an error.
    seed : int
        The seed of the fit.

    Raises
    ------
    ValueError
        If there is a file that is not a checkpoint, or is one of another fit.
    """

    def __init__(self, path, fingerprint, seed):
        self.path, self.n_begun = Path(path), 0
        self.content = {"format": FORMAT, "fingerprint": fingerprint, "seed": seed, "finished": [], "current": None}
        content = read_checkpoint(path)
        if content is None:
            return
        if content["fingerprint"] != fingerprint:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another fit, with other data or parameters; remove the file to begin "
                "anew, or name another one."
            )
        self.content = content

    def begin(self):
        """Return the snapshot that the next training of the fit resumes from, or None, and whether it is finished."""
        index, finished = self.n_begun, self.content["finished"]
        self.n_begun += 1
        if index < len(finished):
            return finished[index], True
        return self.content["current"] if index == len(finished) else None, False

    def save(self, snapshot, *, finished=False):
        """Write the state of the current training."""
        if finished:
            self.content["finished"].append(snapshot)
        self.content["current"] = None if finished else snapshot
        with atomic_write(self.path, mode=0o600) as file:
            torch.save(self.content, file)

    def remove(self):
        """Remove the file at the end of the fit."""
        self.path.unlink(missing_ok=True)


class JointCheckpoint:
    """A `Checkpoint` of a process group, with the random states of each process.

    The first process reads and writes the file.

    Parameters
    ----------
    path, fingerprint, seed
        As for `Checkpoint`.
    group : Group
    """

    def __init__(self, path, fingerprint, seed, group):
        self.group = group
        self.file = Checkpoint(path, fingerprint, seed) if group.rank == 0 else None

    def begin(self):
        """See `Checkpoint`."""
        snapshot, finished = self.group.all_gather_object(self.file.begin() if self.file else None)[0]
        return snapshot and snapshot | snapshot["processes"][self.group.rank], finished

    def save(self, snapshot, *, finished=False):
        """See `Checkpoint`."""
        states = self.group.all_gather_object({name: snapshot[name] for name in RANDOM_STATES})
        if self.file:
            self.file.save(snapshot | {"processes": states}, finished=finished)

    def remove(self):
        """See `Checkpoint`."""
        if self.file:
            self.file.remove()


def make_checkpoint(path, fingerprint, seed, group):
    """Return the checkpoint of a fit."""
    if group.size == 1:
        return Checkpoint(path, fingerprint, seed)
    return JointCheckpoint(path, "".join(group.all_gather_object(fingerprint)), seed, group)


def read_checkpoint(path):
    """Return the content of a checkpoint, None if there is no file.

    Raises
    ------
    ValueError
        If the file is not a checkpoint of this version.
    """
    if not Path(path).exists():
        return None
    problem = ValueError(
        f"checkpoint={str(path)!r} is no checkpoint of this version of skvae, or damaged; remove the file, or name "
        "another one."
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        is_valid = content["format"] == FORMAT and {"fingerprint", "seed", "finished", "current"} <= content.keys()
    except Exception as error:  # torch raises exceptions of many types for a file that it cannot read
        raise problem from error
    if not is_valid:
        raise problem
    return content
