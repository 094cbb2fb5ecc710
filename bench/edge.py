"""The subject `edge`: one token under onnxruntime, in float32 and with weights of 8 bits, beside our own step."""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from safetensors.numpy import load_file

import harness
from analysis.bench import Row
from bench.models import MODELS, VOCAB
from bench.store import Store
from harness.config.configure import build, checked, locate
from harness.config.errors import ConfigError
from harness.evaluation.text import stream_loss
from harness.export.onnx_step import (
    GRAPH,
    STATE,
    OnnxStep,
    check_packages,
    cut,
    difference,
    in_plain_torch,
    quantize,
    write,
    write_state,
)
from harness.generation.decode import Decoder
from harness.generation.library import CHUNK, TrainedModel, build_model
from harness.model import sizing
from harness.model.context import FULL
from harness.model.state import state_bytes
from harness.tasks.text import TextTask

KINDS = ("ours", "onnx", "int8")
"""Our step with its kernels, the graph, and the graph with weights of 8 bits."""
ROOT = Path(__file__).resolve().parents[1]


def run(config: dict, store: Store, runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """Measures what the store lacks. runs: folders of trained runs, whose losses are measured; times need no training.

    Raises ConfigError where the packages of the extra `edge` are missing, and for a run of no text.
    """
    check_packages()
    runtime = version("onnxruntime")
    store.content["rows"] = [row for row in store.rows if row["onnxruntime"] == runtime]
    store.note(bytes=config["bytes"], tokens=config["tokens"])
    for what, name, measure in _cells(config, runs):
        cell = {"what": what, "contestant": name, "onnxruntime": runtime}
        if not store.holds([name], **cell):
            rows = [cell | row for row in measure()]
            store.add(rows)
            say("\n".join(map(str, rows)))
    store.write()


def _cells(config: dict, runs: Sequence[Path]) -> Iterator[tuple[str, str, Callable[[], list[Row]]]]:
    """What is measured, of whom, and what measures it."""
    for name in config["models"]:
        chosen = [f"model={name}", *config["size"]]
        yield "token", name, lambda chosen=chosen: token_rows(_untrained(chosen, config), config)
    for path in runs:
        yield "loss", path.name, lambda path=path: [loss_row(harness.load(path), config["bytes"])]
    names = config["graphs"] if config["graphs"] is not None else sorted(path.stem for path in MODELS.glob("*.yaml"))
    for chosen in [*([f"model={name}"] for name in names), *config["variants"]]:
        name = " ".join(chosen).removeprefix("model=")
        yield "graph", name, lambda chosen=chosen: [graph_row(_untrained([*chosen, *config["graph_size"]], config))]


def _untrained(overrides: list[str], config: dict) -> TrainedModel:
    """A model as a run with these overrides starts it."""
    composed = locate(config["compose"], "compose")(overrides)
    spec, budget = build(composed["model"]), build(composed["size"])
    width = sizing.solve(spec, VOCAB, budget)
    model = build_model(composed["model"], VOCAB, budget.n_layers * spec.block.depth_factor, width).eval()
    return TrainedModel(model, composed, {}, FULL, reads_text=True, path=Path(spec.name))


def graph_row(trained: TrainedModel) -> Row:
    """How far the graph of a model is from its step, over the largest logit, or why there is none."""
    with TemporaryDirectory() as home:
        try:
            write(trained, Path(home))
        except ConfigError as error:
            return {"reason": error.what}
        return {"difference": difference(in_plain_torch(trained), Path(home), 64)}


def token_rows(trained: TrainedModel, config: dict) -> list[Row]:
    """Milliseconds of a token, interleaved, and the resident bytes of a process that does nothing else, by context."""
    with TemporaryDirectory() as home:
        folders = {kind: Path(home) / kind for kind in KINDS}
        for folder in folders.values():
            folder.mkdir()
        write(trained, folders["onnx"])
        quantize(folders["onnx"], folders["int8"])
        model, rows = trained.model, []
        described = {"model": trained.config["model"], "n_layers": model.n_layers, "width": model.width}
        (folders["ours"] / "model.json").write_text(json.dumps(described))
        for context in config["contexts"]:
            state = model.init_state(1, context)
            for kind in ("onnx", "int8"):
                write_state(model, context, folders[kind])
            row: Row = {"context": context, "state_bytes": state_bytes(state)}
            row |= {f"{kind}_ms": ms for kind, ms in _times(trained, folders, context, config).items()}
            for kind in KINDS:
                row[f"{kind}_resident_bytes"] = _resident(folders[kind], context, config["tokens"])
            row |= {f"{kind}_graph_bytes": (folders[kind] / GRAPH).stat().st_size for kind in ("onnx", "int8")}
            rows.append(row)
        return rows


def _times(trained: TrainedModel, folders: dict[str, Path], context: int, config: dict) -> dict[str, float]:
    """The median milliseconds of a token after `context` tokens, in rounds that the contestants take in turn."""
    threads = torch.get_num_threads()
    graphs = {kind: OnnxStep(folders[kind] / GRAPH, threads) for kind in ("onnx", "int8")}
    states = {kind: load_file(folders[kind] / STATE) for kind in graphs}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round in range(config["rounds"] + 1):  # the first warms up
        decoder, token = Decoder(trained.model, trained.model.init_state(1, context)), torch.tensor([0])
        for _ in range(config["tokens"]):
            start = perf_counter()
            token = decoder.step(token).argmax(-1)
            times["ours"] += [perf_counter() - start] * bool(round)
        for kind, graph in graphs.items():
            state, read = states[kind], np.array([0])
            for _ in range(config["tokens"]):
                start = perf_counter()
                logits, state = graph(read, state)
                read = logits.argmax(-1)
                times[kind] += [perf_counter() - start] * bool(round)
    return {kind: 1e3 * statistics.median(taken) for kind, taken in times.items()}


def _resident(folder: Path, context: int, tokens: int) -> int:
    """Resident bytes of a fresh process that has generated so many tokens after so many."""
    command = [sys.executable, "-m", "bench.edge_process", str(folder), str(context), str(tokens)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def text_of(trained: TrainedModel) -> TextTask:
    """What the run was trained on; raises ConfigError where that is no text."""
    if not trained.reads_text:
        raise ConfigError(
            f"The run {trained.path} was trained on task={trained.config['task']['name']}, which is no text.",
            "a run of a text, such as task=sotu.",
            "name another run.",
        )
    return build(checked(trained.config["task"], "task"))


def loss_row(trained: TrainedModel, count: int) -> Row:
    """Bits per byte of `count` bytes of the test split, read as evaluation reads them, by each of KINDS."""
    stream = text_of(trained).streams["test"][: count + 1].astype(np.int64)
    row: Row = {"model": trained.model.spec.name, "bytes": len(stream) - 1, "ours_bits": bits(trained, stream)}
    with TemporaryDirectory() as home:
        folder = Path(home)
        write(trained, folder)
        for kind in ("onnx", "int8"):
            if kind == "int8":
                quantize(folder, folder)
            row[f"{kind}_bits"] = _bits(trained, folder, stream)
            row[f"{kind}_graph_bytes"] = (folder / GRAPH).stat().st_size
    return row


def bits(trained: TrainedModel, stream: np.ndarray) -> float:
    """Bits per byte of a stream, but for its first, read as evaluation reads it."""
    with torch.inference_mode():
        nats, scored = stream_loss(trained.model, torch.from_numpy(stream)[None], trained.policy, CHUNK)
    return nats / math.log(2) / scored


def _bits(trained: TrainedModel, folder: Path, stream: np.ndarray) -> float:
    """Bits per byte of a stream under a graph, its caches cut as the run's policy cuts them."""
    graph, first = OnnxStep(folder / GRAPH, torch.get_num_threads()), load_file(folder / STATE)
    policy = FULL if trained.model.constant_state else trained.policy
    state, nats = first, 0.0
    for read, (token, target) in enumerate(pairwise(stream)):
        if policy.window is not None and policy.stride is not None and read == policy.next_cut(read):
            state = cut(state, first, policy.window - policy.stride)
        logits, state = graph(np.array([token]), state)
        scores = logits[0].astype(np.float64)
        nats += np.logaddexp.reduce(scores) - scores[target]
    return float(nats) / math.log(2) / (len(stream) - 1)
