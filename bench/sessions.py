"""The subject `sessions`: the memory of many sessions of a model at once, and a token's time among them."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from analysis.bench import Row
from bench.models import VOCAB
from bench.store import Store
from bench.timing import Limits
from harness.config.configure import locate
from harness.generation.decode import Decoder
from harness.generation.library import Past, TrainedModel
from harness.machine.memory import Increase
from harness.model import sizing
from harness.model.context import FULL
from harness.model.state import map_tensors
from harness.serve.sessions import Limits as Held
from harness.serve.sessions import Sessions


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the models at the contexts that the store lacks; their weights are untrained, which changes no size."""
    store.note(sessions=config["sessions"], tokens=config["tokens"])
    for name in config["models"]:
        for context in config["contexts"]:
            cell = {"contestant": name, "context": context}
            if not store.holds([name], **cell):
                row = cell | measured(_model(name, config), config["sessions"], context, config["tokens"])
                store.add([row])
                say(f"{name:12} after {context:6,} tokens, {config['sessions']:,} sessions: {row}")
    store.write()


def _model(name: str, config: dict) -> TrainedModel:
    spec, budget = locate(config["compose"], "compose")([f"model={name}", *config["size"]])
    torch.manual_seed(0)
    model = spec.build(VOCAB, budget.n_layers, sizing.solve(spec, VOCAB, budget)).eval()
    return TrainedModel(model, {}, {}, FULL, reads_text=True, path=Path(name))


def measured(trained: TrainedModel, count: int, context: int, tokens: int) -> Row:
    """Bytes that `count` sessions hold after `context` tokens, what the process grew by, and a token's milliseconds.

    One session reads the context; the others begin with a copy of what it remembers, and all then generate.
    """
    first = trained.generate([at % VOCAB for at in range(context)], 1, temperature=0)
    list(first)
    decoder = Decoder(trained.model, first.past.state)  # one for all: each would hold a copy of the weights
    decoder.step(torch.tensor([0]))  # compiles
    increase = Increase()
    sessions, spent = Sessions(trained, Held(sessions=count, state_bytes=2**50)), 0.0
    for name in [sessions.open() for _ in range(count)]:
        with sessions.claimed(name) as session:
            session.keep(Past(map_tensors(torch.clone, first.past.state), context, first.past.last))
    held = sessions.state_bytes
    for name in list(sessions):
        with sessions.claimed(name) as session:
            decoder.state, token = session.past.state, torch.tensor([session.past.last])
            start = perf_counter()
            for _ in range(tokens):
                token = decoder.step(token).argmax(-1)
            spent += perf_counter() - start
            session.keep(Past(decoder.state, context + tokens, int(token)))
    row: Row = {"sessions": count, "state_bytes": held, "state_bytes_after": sessions.state_bytes}
    return row | {"memory_bytes": increase.bytes(), "decode_ms": 1e3 * spent / (count * tokens)}
