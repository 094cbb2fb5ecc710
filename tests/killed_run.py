"""python killed_run.py ROOT KILLS SEED: trains once in peace, and once through KILLS kill -9 at random moments.

The processes are forked, so that the imports are paid for once; no backward pass ran before, so forking is safe.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import tiny

UPDATES = 45


def train_in_child(root: Path) -> int:
    child = os.fork()
    if child == 0:
        tiny.run_once(root, tokens=16 * UPDATES, checkpoint_every=3)
        os._exit(0)
    return child


def wait_for(child: int) -> int:
    """Returns the child's exit status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lines(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.glob("tiny-*/metrics.jsonl"))


def main(root: Path, kills: int, seed: int) -> None:
    choose = random.Random(seed)
    torch.optim.AdamW(tiny.model().parameters())  # imports what torch puts off
    assert wait_for(train_in_child(root / "whole")) == 0
    deaths = []
    for logged in sorted(choose.sample(range(UPDATES - 5), kills)):
        child = train_in_child(root / "killed")
        deadline = time.monotonic() + 60
        while lines(root / "killed") < logged and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.02))  # somewhere in an update, a line or a checkpoint
        os.kill(child, signal.SIGKILL)
        deaths.append(wait_for(child))
    assert wait_for(train_in_child(root / "killed")) == 0
    print(json.dumps(deaths))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
