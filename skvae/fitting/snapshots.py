"""States of a training: to go back to after a bad epoch, and to go on from after a process was killed."""

import copy
from pathlib import Path

import torch
from skorch.callbacks import EarlyStopping, LRScheduler

from .callbacks import Resumable
from .devices import random_states, set_random_states
from .files import atomic_write

FORMAT = 1
EARLY_STOPPING_STATE = ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_")  # of skorch
OWN_STATES = ("generator", "torch", "device")  # of random numbers, which each process has for itself


def take_snapshot(net, model, generator):
    """The state of a training between two epochs, as numbers and copies of tensors."""
    on_cpu, on_device = random_states(generator.device)  # private ones where modules draw from them
    return {
        "model": copied(dict(model.state_dict())),
        "optimizer": copied(net.optimizer_.state_dict()),
        "generator": generator.get_state(),
        "torch": on_cpu,
        "device": on_device,
        "callbacks": [callback_state(net, callback) for _, callback in net.callbacks_],
        "schedules": [callback.lr_scheduler_.state_dict() for callback in schedules(net)],
        "epochs_done": len(net.history),
    }


def copied(state):
    """A copy of a state, tensors and all; `copy.deepcopy` takes longer for a tensor than a small training step does."""
    if type(state) is dict:
        return {name: copied(value) for name, value in state.items()}
    if type(state) is list:
        return [copied(value) for value in state]
    return state.detach().clone() if isinstance(state, torch.Tensor) else copy.deepcopy(state)


def put_back(net, model, generator, snapshot, *, own_modules=False):
    """Let a training go on from a snapshot, in place; one of another process has the history beside it.

    Raises
    ------
    ValueError
        If it was taken with other callbacks, or on another kind of device, whose generators have other states.
    """
    if len(snapshot["generator"]) != len(generator.get_state()):
        raise ValueError(
            "The checkpoint was written by a training on another kind of device, whose random numbers cannot be "
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
    if own_modules:
        set_random_states((snapshot["torch"], snapshot.get("device")), generator.device)


def callback_state(net, callback):
    """The state of a callback as numbers and copies of tensors, None where it has none that is known."""
    if isinstance(callback, Resumable):
        return callback.state(net)
    if type(callback) is EarlyStopping:
        found = {name: getattr(callback, name, None) for name in EARLY_STOPPING_STATE}
        if found["dynamic_threshold_"] is not None:  # perhaps a number of NumPy, which the file can not hold
            found["dynamic_threshold_"] = float(found["dynamic_threshold_"])
        return copied(found)
    return None


def schedules(net):
    """The callbacks that change the learning rate, once they have begun."""
    found = [call for _, call in net.callbacks_ if isinstance(call, LRScheduler)]
    return [call for call in found if getattr(call, "lr_scheduler_", None) is not None]


def recorded(net):
    """What the history of a net holds of each epoch, without its batches, as numbers of Python."""

    def numbers(row):
        found = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
        return {key: value for key, value in found.items() if isinstance(value, int | float | str)}

    return [numbers(row) for row in net.history]


class Checkpoint:
    """A file with the state of a fit: trainings that are finished, and the one that is not.

    Files are read without running anything that is in them, and replaced as a whole, so that there is always one that
    can be read.

    Parameters
    ----------
    path : path-like
    fingerprint : str
        Says which fit it is; a file of another is an error.
    seed : int
        The seed of the fit.

    Raises
    ------
    ValueError
        If there is a file that is no checkpoint, or one of another fit.
    """

    def __init__(self, path, fingerprint, seed):
        self.path, self.n_begun = Path(path), 0
        self.content = {"format": FORMAT, "fingerprint": fingerprint, "seed": seed, "finished": [], "current": None}
        found = read_checkpoint(path)
        if found is None:
            return
        if found["fingerprint"] != fingerprint:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another fit, with other data or parameters; remove the file to begin "
                "anew, or name another one."
            )
        self.content = found

    def begin(self):
        """The snapshot that the next training of the fit can go on from, or None, and whether it is finished."""
        index, finished = self.n_begun, self.content["finished"]
        self.n_begun += 1
        if index < len(finished):
            return finished[index], True
        return self.content["current"] if index == len(finished) else None, False

    def keep(self, snapshot, *, finished=False):
        """Write the state of the training that was begun."""
        if finished:
            self.content["finished"].append(snapshot)
        self.content["current"] = None if finished else snapshot
        with atomic_write(self.path) as file:
            torch.save(self.content, file)

    def remove(self):
        """Remove the file: the fit is over."""
        self.path.unlink(missing_ok=True)


class JointCheckpoint:
    """A `Checkpoint` of several processes, with the states of the random numbers of each.

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

    def keep(self, snapshot, *, finished=False):
        """See `Checkpoint`."""
        states = self.group.all_gather_object({name: snapshot[name] for name in OWN_STATES})
        if self.file:
            self.file.keep(snapshot | {"processes": states}, finished=finished)

    def remove(self):
        """See `Checkpoint`."""
        if self.file:
            self.file.remove()


def checkpoint_of(path, fingerprint, seed, group):
    """The file that a training is written to."""
    if group.size == 1:
        return Checkpoint(path, fingerprint, seed)
    return JointCheckpoint(path, "".join(group.all_gather_object(fingerprint)), seed, group)


def read_checkpoint(path):
    """What a checkpoint holds, None if there is no file.

    Raises
    ------
    ValueError
        If the file is no checkpoint of this version.
    """
    if not Path(path).exists():
        return None
    problem = ValueError(
        f"checkpoint={str(path)!r} is no checkpoint of this version of skvae, or damaged; remove the file, or name "
        "another one."
    )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        known = found["format"] == FORMAT and {"fingerprint", "seed", "finished", "current"} <= found.keys()
    except Exception as error:  # torch raises many kinds for a file that it can not read
        raise problem from error
    if not known:
        raise problem
    return found
