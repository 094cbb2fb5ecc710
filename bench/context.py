"""The subject `context`: what trained models of texts gain from more context, to far beyond the trained length.

At every length the very same bytes are scored, in documents of the test split that have room for the longest context
before them; what differs is how many of the bytes before them the model has read, from a fresh state. A curve that is
flat from some length on is of a model that remembers no more than that, or makes no use of it; one that rises is of a
model that fails on contexts longer than training showed.

Every model reads its context as it is, nothing cut, as `extrapolation` does (harness/evaluation/text.py): a Transformer
beyond its trained length is then seen to fail, if it does. One whose cache the run's policy cuts is measured a second
time with the cuts, which is how the run's own losses were measured (harness/model/context.py): rows with `window`.
"""

import hashlib
import math
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import harness
from analysis.bench import Row
from analysis.frame import NEUTRAL, block
from analysis.records import Record
from bench.edge import text_of
from bench.store import Store, finite
from harness.config.configure import build, checked
from harness.config.errors import ConfigError
from harness.evaluation.text import token_losses
from harness.generation.library import TrainedModel
from harness.model.context import FULL, ContextPolicy
from harness.model.sizing import count
from harness.records.identity import meaning, to_json
from harness.tasks.local import LocalText, Survey, distinct_texts
from harness.tasks.sotu import Sotu
from harness.tasks.stdlib import SKIPPED, StandardLibrary
from harness.tasks.text import JOIN, TextTask

SLACK = 4
"""Of the bytes that are scored together, the first has read at most a part in so many less than the length."""


@dataclass(frozen=True)
class Places:
    """Where bytes are scored: documents (uint8), and of each the numbers of the first byte of every place in it."""

    documents: list[np.ndarray]
    starts: list[np.ndarray]

    def windows(self, document: int, length: int, scored: int) -> Tensor:
        """The windows (N, length + 1), int64, of a document: at every place its bytes, P at a time, and those before.

        P is `piece_of(length, scored)`: so a scored byte has read (1 - 1 / SLACK) length to length bytes, never more.
        """
        piece = piece_of(length, scored)
        firsts = (self.starts[document][:, None] + np.arange(0, scored, piece)).ravel()
        views = np.lib.stride_tricks.sliding_window_view(self.documents[document], length + 1)
        return torch.from_numpy(views[firsts + piece - 1 - length].astype(np.int64))


def run(config: dict, store: Store, runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """Measures what the store lacks of the runs, folders with trained weights; all are read before any is measured.

    Raises ConfigError for a run of no text, and for one whose test split has no document that is long enough.
    """
    loaded = {path: harness.load(path) for path in dict.fromkeys(runs)}
    missing = [(path, trained) for path, trained in loaded.items() if _lacking(store, path, trained, config)]
    at = {path: places(trained, config) for path, trained in missing}
    for path, trained in missing:
        facts = _facts(trained)
        for cell in _lacking(store, path, trained, config):
            policy = FULL if cell["window"] is None else trained.policy
            row = cell | facts | _measured(trained.model, at[path], cell["length"], policy, config)
            store.add([row])
            say(str(row))
    store.write()


def _lacking(store: Store, path: Path, trained: TrainedModel, config: dict) -> list[Row]:
    """What identifies the rows of a run that the store does not have."""
    window = None if trained.model.constant_state else trained.policy.window
    same = {"contestant": path.name, "longest": max(config["lengths"])}
    same |= {key: config[key] for key in ("scored", "places")}
    cells = [
        same | {"window": cut, "length": length}
        for cut in dict.fromkeys((None, window))
        for length in sorted(config["lengths"])
    ]
    return [cell for cell in cells if not store.holds([path.name], **cell)]


def _facts(trained: TrainedModel) -> Row:
    """What a run is. variant: the same for runs that differ in their seed alone."""
    config, model = trained.config, trained.model
    record = Record(trained.path, {"block": (config.get("block") or {}).get("name")} | trained.result, config, {})
    solver = (config.get("solver") or {}).get("name") or trained.result.get("solver")
    meant = {key: value for key, value in meaning(config).items() if key not in NEUTRAL}
    row: Row = {"model": model.spec.name, "label": ", ".join(filter(None, (model.spec.name, block(record), solver)))}
    row |= {"params": count(model).total, "size": build(checked(config["size"], "size")).label}
    row |= {"task": config["task"]["name"], "corpus": text_of(trained).digest[:16], "seed": config["seed"]}
    row |= {"variant": hashlib.sha256(to_json(meant, sort_keys=True).encode()).hexdigest()[:16]}
    row |= {"constant": model.constant_state, "train_length": config["trainer"]["length"]}
    return row | {"learning_rate": config["trainer"]["learning_rate"], "tokens": config["trainer"]["tokens"]}


def places(trained: TrainedModel, config: dict) -> Places:
    """Where a run's bytes are scored: the same for all runs of its corpus, without overlap, spread evenly.

    Raises ConfigError for a run of no text, or without a document that is long enough.
    """
    name, longest, scored = trained.config["task"]["name"], max(config["lengths"]), config["scored"]
    found = documents(text_of(trained))
    rooms = [max(0, (len(document) - longest) // scored) for document in found]
    if not any(rooms):
        known = max(map(len, found), default=0)
        raise ConfigError(
            f"The longest document in the test split of task={name} has {known:,} bytes ({trained.path}).",
            f"{longest + scored:,} at least: the longest of `lengths` and `scored` of conf/bench/context.yaml.",
            "name a run of a text with longer documents, such as task=sotu, or lower `lengths` there.",
        )
    slots = [(number, longest + scored * slot) for number, room in enumerate(rooms) for slot in range(room)]
    taken = np.linspace(0, len(slots) - 1, min(config["places"], len(slots))).round().astype(int)
    starts: dict[int, list[int]] = {}
    for number, start in (slots[index] for index in taken):
        starts.setdefault(number, []).append(start)
    return Places([found[number] for number in starts], [np.array(of_one) for of_one in starts.values()])


def documents(text: TextTask) -> list[np.ndarray]:
    """The documents, uint8, of a text's test split, in its order: what of the corpus's own stands in it as a whole.

    Of a single file, which is cut by position, the test split is a part of one document. Nothing of a corpus that does
    not tell where its documents begin (an archive, a data set of the hub).
    """
    stream = text.streams["test"]
    if isinstance(text, LocalText) and text.survey is None:
        return [stream]
    data, spans = stream.tobytes(), []
    for document in _texts(text):
        start = data.find(document)
        end = start + len(document)
        if start >= 0 and _at_joint(data[:start][-len(JOIN) :]) and _at_joint(data[end : end + len(JOIN)]):
            spans.append((start, end))
    return [stream[start:end] for start, end in sorted(spans)]


def _at_joint(beside: bytes) -> bool:
    """Whether the bytes beside a document are what joins two, or none at an end of the split."""
    return beside in (b"", JOIN)


def _texts(text: TextTask) -> Iterator[bytes]:
    """The documents of a corpus, of all splits."""
    if isinstance(text, Sotu):
        yield from text.documents()
    elif isinstance(text, LocalText):
        folder = Path(text.path).expanduser()
        matching = set(folder.rglob(text.pattern))
        yield from distinct_texts(folder, Survey(), lambda path: None if path in matching else "other").values()
    elif isinstance(text, StandardLibrary):
        folder = Path(sysconfig.get_path("stdlib"))
        found = distinct_texts(folder, Survey(), lambda path: None if path.suffix == ".py" else "no source", SKIPPED)
        yield from (data for name, data in found.items() if text.split(name) == "test")


def piece_of(length: int, scored: int) -> int:
    """How many of the bytes of a place are scored in one window: as many as divide them, length / SLACK at most."""
    most = max(1, min(scored, length // SLACK))
    return next(piece for piece in range(most, 0, -1) if scored % piece == 0)


def _measured(model, at: Places, length: int, policy: ContextPolicy, config: dict) -> Row:
    """Bits per byte, over all and by document; null where they are no finite number."""
    piece, sums = piece_of(length, config["scored"]), []
    for number in range(len(at.documents)):
        windows = at.windows(number, length, config["scored"])
        parts = windows.split(max(1, config["batch"] // length))
        sums.append(sum(losses(model, part, piece, policy).sum().item() for part in parts) / math.log(2))
    sizes = [config["scored"] * len(starts) for starts in at.starts]
    by_document = [finite(bits / size) for bits, size in zip(sums, sizes, strict=True)]
    row: Row = {"bits": finite(sum(sums) / sum(sizes)), "bytes": sum(sizes), "documents": len(sizes)}
    return row | {"by_document": by_document}


def losses(model, windows: Tensor, scored: int, policy: ContextPolicy) -> Tensor:
    """Nats (N, scored), float64, of the last bytes of windows (N, R), each read from a fresh state.

    policy: what of a state that grows is kept between chunks of its stride; with FULL a window is read at once.
    """
    inputs, targets = windows[:, :-1], windows[:, -scored:]
    stride = policy.stride or inputs.shape[1]
    reached = math.ceil(scored / stride) + 1  # chunks, at most, that the scored bytes reach into
    kept: list[Tensor] = []
    state = None
    with torch.inference_mode():
        for start in range(0, inputs.shape[1], stride):
            state = policy.cut(model, state, start)
            logits, state = model(inputs[:, start : start + stride], state)
            kept = [*kept, logits][-reached:]
        return token_losses(torch.cat(kept, dim=1)[:, -scored:], targets).double()
