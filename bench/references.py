"""The subject `references`: what a text costs without a model, the lines that a table of models is read against.

A compressor learns as it reads: given the train split first and then the test split, it spends
C(train + test) - C(train) on the test split, C being the size of what it writes. An n-gram has the counts of the train
split alone and learns nothing from the test split. Both are stated per byte of the test split, as a model's loss is.
The validation split, on which no model trains, is given to none of them.
"""

import json
import lzma
import platform
from collections.abc import Callable, Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from analysis.bench import Row
from bench.store import absent
from harness.config.errors import ConfigError, RecordError
from harness.machine.environment import environment
from harness.records import code
from harness.records.files import replacing
from harness.tasks.task import Task
from harness.tasks.text import TextTask

SCHEMA_VERSION = 1
LONGEST = 7
"""Bytes of context that fit into 64 bits with the byte that follows."""


def run(task: Task, config: dict, folder: Path | None, force: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the lines of a task, keeps them in `folder` (None: nowhere) and returns their record.

    A record of the same data, settings, code and packages is not repeated unless `force`. Raises UserError.
    """
    if not isinstance(task, TextTask):
        raise ConfigError(
            f"task={task.name} is no text, so nothing can compress it.",
            "a task whose splits are bytes.",
            "name one: python -m bench references task=sotu.",
        )
    if absent(["pyppmd"]):
        raise ConfigError(
            "PPMd's package is not installed.", "the package `pyppmd`.", "pip install -c constraints.txt pyppmd"
        )
    most = config.get("most_bytes")
    train, test = (task.streams[split][:most] for split in ("train", "test"))
    facts = {
        "schema_version": SCHEMA_VERSION,
        "task": task.name,
        "data": task.describe(),
        "settings": {method: config[method] for method in ("ppmd", "xz", "ngram")},
        "code": code.read(Path(__file__)).digest,
        "packages": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("numpy", "pyppmd")},
    }
    path = folder and folder / f"{task.name}-{task.digest[:12]}.json"
    if path and path.exists() and not force and (kept := _kept(path, facts)):
        say(f"{path} has these lines already; --force repeats them")
        return kept
    rows = []
    for row in lines(train, test, config):
        rows.append(row)
        say(f"{row['name']:24} {row['bits'] / len(test):.3f} bits per byte")
    made = facts | {
        "train_bytes": len(train),
        "test_bytes": len(test),
        "rows": rows,
        "date": date.today().isoformat(),
        "git": environment()["git"],
    }
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(made, indent=1, allow_nan=False).encode() + b"\n")
    return made


def lines(train: np.ndarray, test: np.ndarray, config: dict) -> Iterator[Row]:
    """Yields a row for each line: its name, its method, its settings, and the bits that it spends on the test split.

    train, test: the bytes of the splits, uint8.
    """
    import pyppmd

    ppmd, xz = config["ppmd"], config["xz"]
    for order in ppmd["orders"]:
        given = {"max_order": order, "mem_size": ppmd["memory_bytes"], "variant": ppmd["variant"]}
        spent = after(train, test, lambda data, given=given: pyppmd.compress(data, **given))
        facts = {"order": order, "memory_bytes": ppmd["memory_bytes"], "variant": ppmd["variant"]}
        yield {"name": f"PPMd order {order}", "method": "ppmd"} | facts | spent
    preset = xz["preset"] | (lzma.PRESET_EXTREME if xz["extreme"] else 0)
    spent = after(train, test, lambda data: lzma.compress(data, preset=preset))
    yield {"name": f"xz -{xz['preset']}{'e' * xz['extreme']}", "method": "xz"} | xz | spent
    for longest in config["ngram"]["context_bytes"]:
        name = f"{longest + 1}-gram" if longest else "byte frequencies"
        yield {"name": name, "method": "ngram", "context_bytes": longest, "bits": ngram_bits(train, test, longest)}


def after(train: np.ndarray, test: np.ndarray, compress: Callable[[bytes], bytes]) -> Row:
    """What a compressor spends on the test split once it has read the train split: sizes in bytes, and the bits."""
    first, both = train.tobytes(), train.tobytes() + test.tobytes()
    compressed = [len(compress(data)) for data in (first, both)]
    return {
        "train_compressed_bytes": compressed[0],
        "both_compressed_bytes": compressed[1],
        "bits": 8.0 * (compressed[1] - compressed[0]),
    }


def ngram_bits(train: np.ndarray, test: np.ndarray, longest: int) -> float:
    """Bits of the test split under an interpolated n-gram with the counts of the train split.

    Witten and Bell's interpolation (IEEE Transactions on Information Theory 37(4), 1991, method C, as Chen and Goodman
    1998 write it): of a context c of k bytes that occurs n(c) times before t(c) distinct bytes,

        p_k(b | c) = (n(cb) + t(c) p_{k-1}(b | c')) / (n(c) + t(c))

    where c' is c without its first byte; p_{k-1} itself where c does not occur, and p_{-1} = 1/256. The test split is
    read behind the train split, so that its first bytes have a context. longest: k, at most LONGEST and less than the
    train split has.
    """
    both = np.concatenate([train[len(train) - longest :], test])
    p = np.full(len(test), 1 / 256)
    for order in range(longest + 1):
        grams, counts = np.unique(_grams(train, order), return_counts=True)
        contexts, first, kinds = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
        asked = _grams(both[longest - order :], order)
        n_gram = _at(grams, counts, asked)
        n, t = (_at(contexts, values, asked >> np.uint64(8)) for values in (np.add.reduceat(counts, first), kinds))
        p = np.where(n > 0, (n_gram + t * p) / np.maximum(n + t, 1), p)
    return float(-np.log2(p).sum())


def _grams(stream: np.ndarray, order: int) -> np.ndarray:
    """Every byte of a stream with the `order` bytes before it as one number, uint64, from the first that has them."""
    codes = np.zeros(len(stream) - order, np.uint64)
    for place in range(order + 1):
        codes = codes << np.uint64(8) | stream[place : len(stream) - order + place].astype(np.uint64)
    return codes


def _at(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The value of each key that is asked for; 0 for one that is not among the sorted `keys`."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], 0)


def _kept(path: Path, facts: dict) -> dict | None:
    """The record at `path`, if it is of these facts; raises RecordError for one that cannot be read."""
    try:
        found = json.loads(path.read_text())
        same = found["data"]["digest"] == facts["data"]["digest"]
        return found if same and all(found.get(name) == facts[name] for name in facts if name != "data") else None
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise RecordError(
            f"{path} cannot be read ({error}).",
            "a file that `python -m bench references` wrote.",
            "give --force, or move the file away.",
        ) from error
