"""The processes that train one model together, as torchrun or `accelerate launch` started them: one run, one record.

The first of them checks, records, evaluates and measures; the others only train along. Each takes its own rows of every
batch, so that an update is what one process would have made of the whole batch.
"""

import os
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, get_int_from_env

from harness.config.errors import ConfigError

T = TypeVar("T")

COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where torchrun and the kinds of MPI say how many processes there are, and which one this is."""


def count() -> int:
    """How many processes there are."""
    return get_int_from_env(COUNT, 1)


def rank() -> int:
    """Which of them this one is, from 0."""
    return get_int_from_env(RANK, 0)


BY_ACCELERATE_ALONE = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and count() == 1
"""Whether `accelerate launch` started this process, and no other: on a CPU it starts more by MPI alone."""


def remarks() -> list[str]:
    """What the user should know about the processes before training, a line each."""
    if not BY_ACCELERATE_ALONE:
        return []
    return ["accelerate launch started one process: on a CPU, torchrun --nproc-per-node N starts several."]


def check(batch_size: int) -> None:
    """Raises ConfigError where the rows of a batch cannot be shared evenly."""
    if batch_size % count():
        raise ConfigError(
            f"trainer.batch_size={batch_size} cannot be shared by {count()} processes.",
            f"a multiple of {count()}: each process trains on as many rows of every batch.",
            "raise trainer.batch_size (a lower trainer.accumulate keeps the tokens of an update), or start fewer.",
        )


def rows(batch_size: int) -> slice:
    """The rows of a batch that are this process's."""
    share = batch_size // count()
    return slice(rank() * share, (rank() + 1) * share)


def from_first(value: T, device_type: str) -> T:
    """The first process's `value`, in all of them; waits for it. device_type: cpu or cuda."""
    if count() == 1:
        return value
    PartialState(cpu=device_type == "cpu")  # joins the others, unless this process already has
    values = [value]
    broadcast_object_list(values)
    return values[0]
