"""A fit with a checkpoint, whose second process is killed in the middle the first time that ``torchrun`` starts it.

``torchrun ... killed_fit.py FOLDER``: the first process writes its results, and the error that it got when the other
was killed, to files in the folder.
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

KILLED_IN = 4  # epoch


class Kill(Callback):
    """Kill this process after some batches of an epoch, and write the time to a file."""

    def __init__(self, folder, active):
        self.folder, self.active = folder, active

    def on_batch_end(self, net, **kwargs):
        """Kill in the middle of the epoch."""
        if self.active and len(net.history) == KILLED_IN and len(net.history[-1]["batches"]) == 3:
            (self.folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def note_end(folder, rank, groups):
    """Write the number of groups, with their threads, that exist when the interpreter exits."""
    (folder / f"left_{rank}").write_text(str(sum(group() is not None for group in groups)))


def main(folder):
    """Fit; the first process writes down how that ended, and each what is left of its group at exit."""
    rank, size, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    groups = []
    if attempt == 0:  # the launcher ends the other process too, which on a busy machine may not have seen anything yet
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit.register(note_end, folder, rank, groups)  # before the fit, and so carried out after what a fit registers
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
        torch.save(results | {"attempt": attempt}, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
