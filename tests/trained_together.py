"""python trained_together.py ROOT: trains a tiny model by one process and by two, which share every batch.

ROOT/one: by one process. ROOT/two: by two. ROOT/sharded: by two that hold a part of every weight each. ROOT/stopped: by
two until the second is sent SIGTERM, then by one. ROOT/sharded and stopped: the same in parts, then by two.
Prints {name: {"statuses": of the two that were stopped, "at": the update behind which they stopped}}.
The processes are forked, so that the imports are paid for once; no backward pass ran before, so forking is safe.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch

import tiny
from harness.machine import processes
from harness.training import checkpoint
from harness.training.loggers import NoLogger
from harness.training.trainer import train

SETTINGS = {"batch_size": 4, "accumulate": 2, "tokens": 1920, "checkpoint_every": 100}  # 30 updates


class Stopping(tiny.Counting):
    """Sends its own process a signal to stop when the last process draws its 27th batch."""

    def batch(self, split, index, batch_size, length, seed):
        if (split, index, processes.rank()) == ("train", 26, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(split, index, batch_size, length, seed)


def start(root: Path, count: int, task: tiny.Counting, **changes) -> list[int]:
    """The processes, which train under `root`; the first one records.

    As in a run, whose first process then evaluates, it outlives the others: one whose peer has gone may wait for ever.
    """
    settings = SETTINGS | changes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    others_end, held_by_others = os.pipe()
    for rank in range(count):
        child = os.fork()
        if child == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            if count > 1:
                os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
            net = tiny.model(tie_embeddings=True, kernel="reference").double()
            if rank == 0:
                os.close(held_by_others)
                tiny.run_once(root, net, task, **settings)
                os.read(others_end, 1)  # nothing, once all others have closed theirs by ending
            else:
                train(net, task, tiny.config(**settings), 0, None, NoLogger(), progress=False)
            os._exit(0)
        children.append(child)
    os.close(others_end)
    os.close(held_by_others)
    return children


def wait(children: list[int]) -> list[int]:
    """Their exit statuses, negative where a signal ended one."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(root: Path) -> None:
    torch.optim.AdamW(tiny.model().parameters())  # imports what torch puts off
    assert wait(start(root / "one", 1, tiny.Counting())) == [0]
    assert wait(start(root / "two", 2, tiny.Counting())) == [0, 0]
    assert wait(start(root / "sharded", 2, tiny.Counting(), shard=True)) == [0, 0]
    stops = {}
    for name, shard, then in (("stopped", False, 1), ("sharded and stopped", True, 2)):
        statuses = wait(start(root / name, 2, Stopping(), shard=shard))
        (path,) = (root / name).glob("*/")
        at = checkpoint.load(path / checkpoint.NAME, path.name.removeprefix("tiny-"))["ledger"]["update"]
        stops[name] = {"statuses": statuses, "at": at}
        assert wait(start(root / name, then, tiny.Counting(), shard=shard)) == [0] * then
    print(json.dumps(stops))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
