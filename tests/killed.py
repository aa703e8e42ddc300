"""A run that is left alone, and the same one killed at random moments until it is done: for a test.

``python killed.py CONFIG FOLDER SEED`` leaves both in ``FOLDER/whole`` and ``FOLDER/killed`` and
prints how often the second was killed. Attempts are forks, so that one begins in milliseconds;
hence a single thread throughout.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from training import small_models

from pvt_ext.training.config import read_config
from pvt_ext.training.loop import train
from pvt_ext.training.processes import Processes


def attempt(config_path: Path, output: Path, patience: float) -> bool:
    """Go on with a run, for so many seconds at most; whether it was done by then."""
    child = os.fork()
    if child == 0:
        try:
            last = output / "last.pth"
            with small_models():
                config = read_config(config_path, [f"run.output={output}"])
                alone = Processes(0, 1, torch.device("cpu"))
                train(config, alone, resume=last if last.exists() else None)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(config_path: Path, folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    random.seed(seed)
    torch.optim.AdamW([torch.zeros(1)])  # imports that each attempt would make
    begun = time.monotonic()
    assert attempt(config_path, folder / "whole", patience=300)
    duration = time.monotonic() - begun
    kills = 0
    longest = 0.2  # of the duration, so that the first attempts cannot finish the run
    while not attempt(config_path, folder / "killed", random.uniform(0.05, longest) * duration):
        kills += 1
        longest = 0.2 if kills < 4 else 0.8
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
