"""The subject `newton`: Newton's method over time against the fused sequential scan, and pararnn-torch's."""

from collections.abc import Callable

import torch

from harness.bench.store import Store
from harness.bench.timing import Limits
from harness.configure import locate


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the cells that the store lacks, one batch and length at a time."""
    store.note(channels=config["channels"])
    for what in ("study", "peer"):
        measure = locate(config[what], what)
        for batch, length in config["cells"]:
            if not store.has(what=what, batch=batch, length=length):
                rows = measure((batch,), (length,), config["channels"], device=device.type, repeats=limits.rounds)
                store.add([{"what": what} | row for row in rows])
                say("\n".join(f"{what} {row}" for row in rows) or f"skipped {what}: pararnn-torch is not installed")
