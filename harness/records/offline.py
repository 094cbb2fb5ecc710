"""Records out of W&B's offline files: `python -m harness.records.offline runs/wandb restored`.

A run that was logged to W&B left its configuration, curve, result and environment in one file, `run-KEY.wandb`. Where
the record itself is gone, or the file is all that came from another machine, the same record is made from it again, and
`python -m analysis restored` reads it like any other.

The file is a log of records in LevelDB's format (blocks of 32 KiB; a record that crosses their border is in pieces),
each a message of wandb's own protocol (wandb.proto.wandb_internal_pb2).
"""

import argparse
import json
import struct
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.config.errors import RecordError, UserError
from harness.records import curve
from harness.records.files import replacing
from harness.records.identity import to_json

MAGIC, PREAMBLE, BLOCK = b":W&B", 7, 32 * 1024
PIECE = struct.Struct("<IHB")
"""Checksum, length and kind of a piece."""
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
WANDBS_OWN = {"_wandb", "_runtime", "_timestamp", "_step"}
"""What wandb adds to what it is given."""


def restore(files: Iterable[Path], folder: Path) -> Path | None:
    """Writes the record that a run's .wandb files hold below `folder`; None for a run that did not finish.

    files: one for each time that the run was taken up, the oldest first. Raises RecordError for a file that cannot be
    read, and for a record that is there already.
    """
    config: dict[str, Any] = {}
    result: dict[str, Any] = {}
    rows: dict[int, dict[str, Any]] = {}
    for record in (record for file in files for record in _records(file)):
        config |= _items(record.run.config.update) | _items(record.config.update)
        result |= _items(record.summary.update)
        if row := _items(record.history.item):
            rows.setdefault(row["_step"], {"update": row["_step"]}).update(row)
    lines = [_without_wandbs_own(row) for _, row in sorted(rows.items())]
    logged = {name for line in lines for name in line}  # the summary has the last of each, too
    result = {name: value for name, value in _without_wandbs_own(result).items() if name not in logged}
    if "schema_version" not in result:
        return None
    made = folder / f"{result['name']}-{result['key']}"
    if (made / "result.json").exists():
        raise RecordError(f"{made} is there already.", "a folder without this record.", "name another folder.")
    made.mkdir(parents=True, exist_ok=True)
    (made / curve.METRICS).write_text("".join(f"{to_json(line)}\n" for line in lines))
    parts = {"config": _without_wandbs_own(config), "environment": result.pop("environment"), "result": result}
    for name, content in parts.items():
        with replacing(made / f"{name}.json") as written:
            written.write(to_json(content, indent=1).encode())
    curve.lighten(made, result)
    return made


def _without_wandbs_own(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in WANDBS_OWN}


def _records(file: Path) -> Iterator[Any]:
    try:
        message = import_module("wandb.proto.wandb_internal_pb2").Record
    except ImportError as error:
        raise RecordError(f"{file} cannot be read without wandb.", "wandb installed.", "pip install wandb.") from error
    try:
        for content in _pieces(file.read_bytes()):
            record = message()
            record.ParseFromString(content)
            yield record
    except Exception as error:  # protobuf's DecodeError, OSError, ValueError
        raise RecordError(
            f"{file} cannot be read: {' '.join(str(error).split())}.",
            "a file that wandb wrote offline.",
            "leave it out, or log the run again.",
        ) from error


def _pieces(data: bytes) -> Iterator[bytes]:
    """The records' bytes; a last one that a kill cut short is left out."""
    if not data.startswith(MAGIC):
        raise ValueError("it does not begin as W&B's files do")
    place, parts = PREAMBLE, b""
    while place + PIECE.size <= len(data):
        if BLOCK - place % BLOCK < PIECE.size:  # the rest of a block that is too small for a header
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = PIECE.unpack_from(data, place)
        place += PIECE.size
        piece, place = data[place : place + length], place + length
        if place > len(data):
            return
        parts = piece if kind in (WHOLE, FIRST) else parts + piece
        if kind in (WHOLE, LAST):
            yield parts


def _items(items: Iterable[Any]) -> dict[str, Any]:
    """Names and values of an update; a nested name, as parts of it, has one value of its own."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 where a file could not be read."""
    made = argparse.ArgumentParser("python -m harness.records.offline", description=__doc__.splitlines()[0])
    made.add_argument("source", type=Path, help="a .wandb file, or a folder below which they lie")
    made.add_argument("folder", type=Path, help="where the records are written")
    options = made.parse_args(arguments)
    files = [options.source] if options.source.is_file() else sorted(options.source.rglob("run-*.wandb"))
    status = 0 if files else 1
    if not files:
        print(f"error: there is no run-*.wandb below {options.source}", file=sys.stderr)
    for name in dict.fromkeys(file.name for file in files):
        try:
            record = restore([file for file in files if file.name == name], options.folder)
            print(f"{name}: {record or 'the run did not finish'}")
        except UserError as error:
            print(error.paragraph(), file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
