"""Brings records of an earlier schema to today's: `python -m harness.records.migrate results runs`.

Schema 2 (from 1): a run's key hashes names and values, where it hashed the dotted paths of classes too; `certificates`
and its `gates` are `checks` and `results`. Figures are never touched, and a migrated record is found by the command
that made it.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from harness.errors import UserError
from harness.records.files import replacing
from harness.records.record import SCHEMA_VERSION, run_key, to_json

FIRST_SCHEMA = 1


def migrate(folder: Path) -> Path | None:
    """Rewrites the finished record in `folder` and renames the folder after its new key; None where nothing is to do.

    The new folder is whole before it takes its name, and the old one goes last: a kill in between loses nothing.
    """
    result = json.loads((folder / "result.json").read_text())
    if result["schema_version"] == SCHEMA_VERSION:
        return None
    config = json.loads((folder / "config.json").read_text())
    key = run_key(config, result["data"]["digest"])
    target = folder.with_name(folder.name.removesuffix(result["key"]) + key)
    half_made = target.with_name(f".{target.name}.migrating")
    shutil.rmtree(half_made, ignore_errors=True)
    shutil.copytree(folder, half_made)
    checks = _checks(result.pop("certificates"))
    _write(half_made / "checks.json", checks)
    (half_made / "certificates.json").unlink(missing_ok=True)
    _write(half_made / "result.json", result | {"schema_version": SCHEMA_VERSION, "key": key, "checks": checks})
    half_made.rename(target)
    shutil.rmtree(folder)
    return target


def _checks(certificates: dict) -> dict:
    """The verdicts under today's names; the check `trusted` is `oracle`."""
    results = [gate | {"name": {"trusted": "oracle"}.get(gate["name"], gate["name"])} for gate in certificates["gates"]]
    return {"passed": certificates["passed"], "results": results}


def _write(path: Path, value: dict) -> None:
    with replacing(path) as file:
        file.write((to_json(value, indent=1) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    """The command: every finished record in the folders named."""
    parser = argparse.ArgumentParser("python -m harness.records.migrate", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    try:
        for root in parser.parse_args(arguments).folders:
            for path in sorted(root.glob("*/result.json")):
                if moved := migrate(path.parent):
                    print(f"{path.parent} -> {moved.name}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
