"""The subject `models`: the time of an update and of a generated token of whole models, all of one size."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.bench import Row
from bench.products import Products, update_flops
from bench.store import Store, absent
from bench.timing import LEAST_ROUNDS, Limits, in_turn, undisturbed
from harness.config.configure import locate
from harness.generation.decode import Decoder
from harness.measurement.latency import now
from harness.model import sizing
from harness.model.backbone import LanguageModel
from harness.model.block import TransformerBlock
from harness.training.optimizer import parameter_groups

MODELS = Path(__file__).resolve().parents[1] / "conf" / "model"
VOCAB = 256
DECODED = 64  # tokens of one timed round of generation


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures what the store lacks: training at each length, then generation after the context."""
    peers = {name: peer for name, peer in config["peers"].items() if _present(name, peer, device, store, say)}
    decoders = {name: peer for name, peer in config["decoders"].items() if _present(name, peer, device, store, say)}
    models = contestants(config)
    build = partial(_build, locate(config["compose"], "compose"), config.get("size", []), device)
    store.note(tokens=config["tokens"], context=config["context"])
    for length in config["lengths"]:
        if not store.holds([*models, *peers], what="training", length=length):
            racers = [Racer(name, build(overrides), config["tokens"], length) for name, overrides in models.items()]
            mixers = {name: build(peer["model"], peer["mixer"]) for name, peer in peers.items()}
            racers += [Racer(name, model, config["tokens"], length, peer=True) for name, model in mixers.items()]
            store.add(_train(racers, limits, say))
    if not store.holds([*models, *decoders], what="decoding"):
        steps = {name: _decoder(build(given).eval(), config["context"]) for name, given in models.items()}
        for name, peer in decoders.items():
            steps[name] = _other_decoder(locate(peer["decoder"], name)(build(peer["model"]).eval()))
        store.add(_decode(steps, config["context"], device, limits, say))
    store.write()


def contestants(config: dict) -> dict[str, list[str]]:
    """The overrides of every architecture of conf/model, and of the variants that the configuration names."""
    models = sorted(path.stem for path in MODELS.glob("*.yaml"))
    return {model: [f"model={model}"] for model in models} | config["variants"]


def _present(name: str, peer: dict, device: torch.device, store: Store, say: Callable[[str], None]) -> bool:
    reason = absent(peer["needs"])
    if peer.get("device", device.type) != device.type:
        reason = f"it runs on {peer['device']} only"
    if reason:
        store.skip(name, reason, say)
    return not reason


def _build(
    compose: Callable, size: list[str], device: torch.device, overrides: list[str], mixer: str = ""
) -> LanguageModel:
    """The model of a command; mixer: dotted path of a class that replaces its mixer at the same widths."""
    spec, budget = compose([*overrides, *size])
    width = sizing.solve(spec, VOCAB, budget)
    if mixer:
        whole = TransformerBlock(depth_factor=spec.block.depth_factor)  # the other brings what surrounds its recurrence
        spec = replace(spec, mixer=locate(mixer, "mixer"), channel_mixer=None, block=whole)
    torch.manual_seed(0)
    return spec.build(VOCAB, budget.n_layers, width).to(device)


class Racer:
    """A model that is trained on random tokens, `tokens` an update, and the seconds each update took.

    rounds: the seconds of each round's update, None for a round that it sat out. The first update is not timed; its
    matrix products are noted, and timed by themselves beside the others. peer: a mixer of another package, which does
    not state its operations.
    """

    def __init__(self, name: str, model: LanguageModel, tokens: int, length: int, peer: bool = False):
        self.name, self.model, self.batch, self.length = name, model, max(1, tokens // length), length
        self.peer = peer
        self.optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), 1e-4, fused=True)
        self.rounds: list[float | None] = []
        self.product_seconds: list[float] = []
        with Products() as self.products:
            self.update()

    def race(self) -> None:
        """Times an update, and then its products."""
        self.rounds.append(self.update())
        self.product_seconds.append(self.products.seconds(self.model.head.weight.device))

    @property
    def seconds(self) -> list[float]:
        """Of the updates that it made."""
        return [taken for taken in self.rounds if taken is not None]

    def update(self) -> float:
        """Makes one update as the trainer does; returns its seconds."""
        device = self.model.head.weight.device
        tokens = torch.randint(VOCAB, (self.batch, self.length + 1), device=device)
        start = now(device)
        logits, _ = self.model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return (now(device) - start) / 1e9

    def row(self) -> Row:
        tokens = self.batch * self.length
        rate = tokens / median(self.seconds)
        row = {"what": "training", "contestant": self.name, "length": self.length}
        row |= {"parameters": sizing.count(self.model).total, "rounds": len(self.seconds)}
        row["range_us"] = [1e6 * seconds / tokens for seconds in (min(self.seconds), max(self.seconds))]
        row["each_us"] = [taken and 1e6 * taken / tokens for taken in self.rounds]
        if not self.peer:
            unseen = update_flops(self.model, self.length) * tokens / self.products.flops
            row["limit_us"] = 1e6 * median(self.product_seconds) * max(1.0, unseen) / tokens
        return row | {"tokens_per_second": rate, "training_us": 1e6 / rate}


def _train(racers: list[Racer], limits: Limits, say: Callable[[str], None]) -> list[Row]:
    """Updates all models interleaved; a slow one is updated fewer times."""
    with undisturbed():
        for turn in range(limits.rounds):
            for racer in in_turn(racers, turn):
                if turn < LEAST_ROUNDS or sum(racer.seconds) * (turn + 1) / turn < limits.seconds:
                    racer.race()
                else:
                    racer.rounds.append(None)
    rows = [racer.row() for racer in racers]
    for row in rows:
        say(f"training at {row['length']:5}  {row['contestant']:24} {row['tokens_per_second']:9,.0f} tokens/s")
    return rows


def _decoder(model: LanguageModel, context: int) -> Callable[[int], None]:
    """Returns what generates some tokens greedily and goes on where its last call ended."""
    decoder = Decoder(model, model.init_state(1, context))
    token = torch.zeros(1, dtype=torch.long, device=model.head.weight.device)

    def generate(count: int) -> None:
        nonlocal token
        for _ in range(count):
            token = decoder.step(token).argmax(-1)

    return generate


def _other_decoder(step: Callable[[int], Tensor]) -> Callable[[int], None]:
    token = 0

    def generate(count: int) -> None:
        nonlocal token
        for _ in range(count):
            token = int(step(token).argmax())

    return generate


@torch.inference_mode()
def _decode(
    steps: dict[str, Callable[[int], None]], context: int, device: torch.device, limits: Limits, say: Callable
) -> list[Row]:
    """Milliseconds a token of each decoder, interleaved."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    with undisturbed():
        for turn in range(limits.rounds + 1):
            for name, generate in in_turn(list(steps.items()), turn):
                start = now(device)
                generate(DECODED)
                if turn:  # the first compiles
                    taken[name].append((now(device) - start) / 1e6 / DECODED)
    rows = []
    for name, values in taken.items():
        ms = median(values)
        row = {"what": "decoding", "contestant": name, "length": context, "decode_ms": ms}
        rows.append(row | {"rounds": len(values), "range_ms": [min(values), max(values)], "each_ms": values})
        say(f"decoding after {context:,}  {name:24} {ms:9.3f} ms a token")
    return rows
