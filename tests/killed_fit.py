"""A fit with a checkpoint, whose second process is killed in the middle the first time that ``torchrun`` starts it.

``torchrun ... killed_fit.py FOLDER``: the first process writes what it found, and the error that it got when the other
was gone, to files in the folder.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from joint_fits import Shard, long_fit
from skorch.callbacks import Callback

KILLED_IN = 4  # epoch


class Kill(Callback):
    """Kill this process after some batches of an epoch, and note when the others will have to see it."""

    def __init__(self, folder, active):
        self.folder, self.active = folder, active

    def on_batch_end(self, net, **kwargs):
        """Kill if it is time."""
        if self.active and len(net.history) == KILLED_IN and len(net.history[-1]["batches"]) == 3:
            (self.folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder):
    """Fit; the first process writes down how that ended."""
    rank, size, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    kill = Kill(folder, active=rank == 1 and attempt == 0)
    try:
        found = long_fit(Shard(rank, size), callbacks=[kill], checkpoint=folder / "training.pt")
    except RuntimeError as error:
        if rank == 0:
            left = (folder / "training.pt").exists()
            (folder / "error.json").write_text(json.dumps({"text": str(error), "at": time.time(), "left": left}))
        raise
    if rank == 0:
        torch.save(found | {"attempt": attempt}, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
