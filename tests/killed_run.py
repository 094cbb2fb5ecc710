"""python killed_run.py ROOT KILLS SEED: trains once in peace, and once through KILLS kill -9 at random moments.

Prints how many ended a process, and what of the two runs differs: nothing should. `make kills` does it 100 times.

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
from harness.training import checkpoint


def train_in_child(root: Path, updates: int) -> int:
    child = os.fork()
    if child == 0:
        tiny.run_once(root, tokens=16 * updates, checkpoint_every=3)
        os._exit(0)
    return child


def wait_for(child: int) -> int:
    """Returns the child's exit status, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lines(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.glob("tiny-*/metrics.jsonl"))


def differences(whole: Path, killed: Path) -> list[str]:
    """What two runs of the same command do not have in common to the bit."""
    one, other = (checkpoint.load(path / checkpoint.NAME, path.name.split("-")[-1]) for path in (whole, killed))
    assert one is not None
    assert other is not None
    found = [name for name, tensor in one["model"].items() if not torch.equal(tensor, other["model"][name])]
    lines = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, killed)]
    found += ["losses"] * (one["ledger"]["losses"] != other["ledger"]["losses"])
    return found + ["metrics"] * (tiny.untimed(lines[0]) != tiny.untimed(lines[1]))


def main(root: Path, kills: int, seed: int) -> None:
    choose, updates = random.Random(seed), max(45, kills)
    torch.optim.AdamW(tiny.model().parameters())  # imports what torch puts off
    assert wait_for(train_in_child(root / "whole", updates)) == 0
    deaths = []
    for logged in sorted(choose.choices(range(updates - 5), k=kills)):
        child = train_in_child(root / "killed", updates)
        deadline = time.monotonic() + 60
        while lines(root / "killed") < logged and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.02))  # somewhere in an update, a line or a checkpoint
        os.kill(child, signal.SIGKILL)
        deaths.append(wait_for(child))
    assert wait_for(train_in_child(root / "killed", updates)) == 0
    assert set(deaths) <= {0, -signal.SIGKILL}
    found = differences(*(next((root / part).glob("tiny-*")) for part in ("whole", "killed")))
    print(json.dumps({"seed": seed, "kills": deaths.count(-signal.SIGKILL), "differences": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
