"""Records of an earlier schema become today's: found by the command that made them, with every figure as it was."""

import json
from pathlib import Path

import pytest

import run
from harness.records import migrate
from harness.records.identity import SCHEMA_VERSION, run_key

DATA = Path(__file__).parent / "data"  # configurations as schema 1 recorded them, and records of schema 2
RECORDS = sorted(path.parent for path in (run.ROOT / "results").glob("*/result.json"))


def read(folder, name="result.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_record_is_named_after_its_configuration(folder):
    result = read(folder)
    key = run_key(read(folder, "config.json"), result["data"]["digest"])
    assert (result["key"], folder.name.rpartition("-")[2]) == (key, key)


def original(folder, model: str, schema: int) -> dict:
    """Makes `folder` a record as that schema kept it, from one of schema 2, which it returns."""
    second = json.loads((DATA / f"schema2_{model}.json").read_text())
    config, result = second["config"], dict(second["result"])
    if schema == 1:
        config = json.loads((DATA / f"schema1_{model}.json").read_text())
        checks = result.pop("checks")
        gates = [gate | {"name": "trusted"} if gate["name"] == "oracle" else gate for gate in checks["results"]]
        result = {key: value for key, value in result.items() if key not in ("block", "parallel")}
        result |= {"solver": config.get("solver", {}).get("name"), "gradient": config.get("gradient", {}).get("name")}
        result |= {"schema_version": 1, "certificates": {"passed": checks["passed"], "gates": gates}}
    folder.mkdir(parents=True)
    checks_file = ("certificates" if schema == 1 else "checks", result.get("certificates") or result.get("checks"))
    result["key"] = folder.name.rpartition("-")[2]
    for name, value in (("config", config), ("result", result), ("environment", second["environment"]), checks_file):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text('{"update": 1, "loss": 5.5}\n')
    return second


@pytest.fixture(params=[1, 2])
def old(tmp_path, request):
    """A record as schema 1 or 2 kept it."""
    folder = tmp_path / "ltc-tiny-0123456789abcdef"
    original(folder, "ltc", request.param)
    return folder


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("model", ["ltc", "mamba"])
def test_migration_changes_the_key_and_no_figure(tmp_path, model, schema):
    old = tmp_path / "ltc-tiny-0123456789abcdef"
    second = original(old, model, schema)
    moved = migrate.migrate(old)
    after = read(moved)
    assert not old.exists()
    assert moved.name == f"ltc-tiny-{after['key']}"
    assert after["key"] == run_key(second["config"], after["data"]["digest"])
    assert after == second["result"] | {"schema_version": SCHEMA_VERSION, "key": after["key"], "code": None}
    assert read(moved, "config.json") == second["config"]
    assert read(moved, "checks.json") == after["checks"]
    files = {"config.json", "environment.json", "checks.json", "result.json", "metrics.jsonl"}
    assert {path.name for path in moved.iterdir()} == files
    assert migrate.migrate(moved) is None


def test_two_records_of_what_is_one_run_today_are_both_kept(tmp_path, capsys):
    """They differed in how often training was looked at; which of them counts is not for a program to say."""
    for name, log_every in (("ltc-0000000000000001", 10), ("ltc-0000000000000002", 1)):
        original(tmp_path / name, "ltc", 2)
        config, result = read(tmp_path / name, "config.json"), read(tmp_path / name)
        config["trainer"]["log_every"] = log_every
        result["training"]["seconds"] += log_every
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    original(tmp_path / "mamba-0000000000000003", "mamba", 2)
    with pytest.raises(SystemExit, match=r"ltc-0000000000000002 is the same run as ltc-\w+, which is there already"):
        migrate.main([str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "ltc-0000000000000002").exists()
    assert "mamba-0000000000000003 -> mamba-" in capsys.readouterr().out


def test_a_damaged_record_is_named_and_stops_no_other(old, capsys):
    (old.parent / "a-damaged").mkdir()
    (old.parent / "a-damaged" / "result.json").write_text("{")
    with pytest.raises(SystemExit, match=r"a-damaged has a result\.json that cannot be read"):
        migrate.main([str(old.parent)])
    assert old.name in capsys.readouterr().out


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
