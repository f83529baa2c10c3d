"""Fit with a checkpoint, whose second process is killed in the first attempt of ``torchrun``.

Run as ``torchrun ... killed_fit.py FOLDER``. The first process writes its results to the folder, and the error that it
raised when the other process was gone.
"""

import atexit
import json
import os
import signal
import sys
import time
import weakref
from pathlib import Path

import torch
from joint_fits import Shard, long_fit
from skorch.callbacks import Callback

KILLED_EPOCH = 4


class Kill(Callback):
    """Callback that kills its process within an epoch, and records the time."""

    def __init__(self, folder, active):
        self.folder, self.active = folder, active

    def on_batch_end(self, net, **kwargs):
        """Kill the process in the third batch of the epoch."""
        if self.active and len(net.history) == KILLED_EPOCH and len(net.history[-1]["batches"]) == 3:
            (self.folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def record_exit(folder, rank, groups):
    """Record the exit of the interpreter, and the number of process groups, with their threads, that are left."""
    (folder / f"left_{rank}").write_text(str(sum(group() is not None for group in groups)))


def main(folder):
    """Fit; the first process records its results or its error, and each process the groups that are left at exit."""
    rank, size, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    groups = []
    if attempt == 0:  # the launcher also ends the other process, which may not have noticed the failure yet
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit.register(record_exit, folder, rank, groups)  # called after the handlers that a fit registers
    kill = Kill(folder, active=rank == 1 and attempt == 0)
    try:
        results = long_fit(Shard(rank, size), callbacks=[kill], checkpoint=folder / "training.pt")
    except RuntimeError as error:
        if rank == 0:
            left = (folder / "training.pt").exists()
            (folder / "error.json").write_text(json.dumps({"text": str(error), "at": time.time(), "left": left}))
        raise
    groups.append(weakref.ref(torch.distributed.group.WORLD))
    if rank == 0:
        torch.save(results | {"attempt": attempt}, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
