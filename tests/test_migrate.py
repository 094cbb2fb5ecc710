"""Records of an earlier schema become today's: found by the command that made them, with every figure as it was."""

import json
import shutil
from pathlib import Path

import pytest

import configs
import run
from harness.records import migrate
from harness.records.identity import SCHEMA_VERSION, run_key

DATA = Path(__file__).parent / "data"  # configurations as schema 1 recorded them
RECORDS = sorted(path.parent for path in (run.ROOT / "results").glob("*/result.json"))


def read(folder, name="result.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_record_is_found_by_the_command_that_made_it(folder):
    config = read(folder, "config.json")
    overrides = [f"model={config['model']['name']}", f"seed={config['seed']}"]
    overrides += [f"solver={config['solver']['name']}"] if "solver" in config else []
    assert folder.name.endswith(run_key(configs.resolved(*overrides), read(folder)["data"]["digest"]))


def original(folder, schema1: str):
    """Makes `folder` a record as schema 1 kept it, from today's of the same run, which it returns."""
    config = json.loads((DATA / f"{schema1}.json").read_text())
    solver, gradient = (config.get(group, {}).get("name") for group in ("solver", "gradient"))
    start = "-".join(filter(None, (config["model"]["name"], solver, gradient, "1m-")))
    (today,) = (path for path in RECORDS if path.name.startswith(start))
    shutil.copytree(today, folder)
    (folder / "checks.json").rename(folder / "certificates.json")
    (folder / "config.json").write_text(json.dumps(config))
    old = read(folder) | {"schema_version": migrate.FIRST_SCHEMA, "key": "0123456789abcdef"}
    old |= {"solver": solver, "gradient": gradient}
    checks = old.pop("checks")
    for group in ("block", "parallel"):
        old.pop(group, None)
    gates = [gate | {"name": "trusted"} if gate["name"] == "oracle" else gate for gate in checks["results"]]
    old["certificates"] = {"passed": checks["passed"], "gates": gates}
    (folder / "result.json").write_text(json.dumps(old))
    return today


@pytest.fixture
def old(tmp_path):
    """A record as schema 1 kept it."""
    folder = tmp_path / "ltc-tiny-0123456789abcdef"
    original(folder, "schema1_ltc")
    return folder


@pytest.mark.parametrize("schema1", ["schema1_ltc", "schema1_mamba"])
def test_migration_changes_the_key_and_no_figure(tmp_path, schema1):
    old = tmp_path / "ltc-tiny-0123456789abcdef"
    today = original(old, schema1)
    before, files = read(old), {path.name for path in old.iterdir()}
    checks = read(today, "checks.json")
    moved = migrate.migrate(old)
    after = read(moved)
    assert not old.exists()
    assert moved.name == f"ltc-tiny-{after['key']}"
    assert after == read(today)
    assert read(moved, "config.json") == read(today, "config.json")
    assert {path.name for path in moved.iterdir()} == files - {"certificates.json"} | {"checks.json"}
    assert read(moved, "checks.json") == after["checks"] == checks
    figures = before.keys() - {"certificates", "schema_version", "key", "solver", "gradient"}
    assert {name: after[name] for name in figures} == {name: before[name] for name in figures}
    assert migrate.migrate(moved) is None


@pytest.mark.parametrize("last", ["_write", "shutil.rmtree"])
def test_a_kill_on_the_way_loses_nothing_and_the_next_call_ends_it(old, monkeypatch, last):
    """Killed before the new folder has its name, and before the old one is gone."""
    place, _, name = last.rpartition(".")
    module = getattr(migrate, place) if place else migrate
    real = getattr(module, name)

    def killed(path, *rest, **options):
        if name == "_write" or path == old:
            raise KeyboardInterrupt
        return real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            migrate.main([str(old.parent)])
    assert old.exists()
    migrate.main([str(old.parent)])
    (left,) = old.parent.iterdir()
    after = read(left)
    assert left.name == f"ltc-tiny-{after['key']}"
    assert after["schema_version"] == SCHEMA_VERSION


def test_the_command_names_what_it_moved(old, capsys):
    migrate.main([str(old.parent)])
    assert old.name in capsys.readouterr().out
    migrate.main([str(old.parent)])
    assert not capsys.readouterr().out
