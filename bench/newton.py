"""The subject `newton`: Newton's method over time against the fused sequential scan and against pararnn-torch."""

from collections.abc import Callable

import torch

from bench.store import Store, absent
from bench.timing import Limits
from harness.config.configure import locate


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the cells that the store lacks, one batch and length at a time."""
    store.note(channels=config["channels"])
    for what, part in config["parts"].items():
        if reason := absent(part["needs"]):
            store.skip(part["contestant"], reason, say)
            continue
        measure = locate(part["measure"], what)
        for batch, length in config["cells"]:
            cell = {"what": what, "batch": batch, "length": length}
            if not store.holds([part["contestant"]], **cell):
                row = measure(batch, length, config["channels"], device, limits)
                store.add([cell | {"contestant": part["contestant"]} | row])
                say(f"{what} {row}")
