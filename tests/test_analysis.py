import copy
import dataclasses
import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis import (
    example,
    figures,
    frame,
    memory,
    models,
    pages,
    provenance,
    quality,
    records,
    render,
    report,
    selection,
    styles,
    tables,
)
from analysis.__main__ import main
from analysis.curve import Curve
from analysis.statistics import Summary, summarise
from harness.checks.names import AFTER_TRAINING, BEFORE_TRAINING
from harness.config.errors import RecordError
from harness.records.code import checks_digest

ROOT = Path(__file__).resolve().parent.parent
CONTEXTS = (1024, 32768, 131072)
CLEAN = {"commit": "c" * 40, "dirty": False}


def digest_of(modules):
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()[:16]


def state_bytes(model, context):
    return 2 * 4 * 128 * 4 * context if model == "transformer" else {"ltc": 2048, "mamba": 73728}.get(model, 4096)


def generated(name: str, folder: Path) -> str:
    """A page's section of this name, made of no records; it must have the same bytes when it is made again."""

    def rendered(text: str) -> str:
        made = report.build(records.Records(), folder / "bench")
        return pages.render(text, {name: render.markdown(getattr(made, name))})

    once = rendered(f"<!-- generated:{name} -->\n<!-- /generated:{name} -->")
    assert rendered(once) == once
    return once


def write_run(folder, model="ltc", seed=0, bits=2.0, solver=None, status="finished", accuracy=None, **more):
    """Writes one small record as a run leaves it.

    more: learning_rate, device_name, passed, tokens, speed, validation (bits per byte; as on test), size, code
    ({module: digest}), busy (None: not known), policy (what a prediction may see), memory (bytes that generation adds),
    git.
    """
    passed, task = more.get("passed", True), "mqar" if accuracy is not None else "sotu"
    config = {"model": {"name": model}, "trainer": {"learning_rate": more.get("learning_rate", 0.001)}, "seed": seed}
    config |= {"records": str(folder)} | ({"solver": {"name": solver}} if solver else {})
    machine = {"device": "cpu", "device_name": more.get("device_name", "CPU of tests"), "threads": 2}
    environment = {"cpu": machine["device_name"], "gpu": None, "threads": 2, "git": more.get("git", CLEAN)}
    rows = [{"context": c, "state_bytes": state_bytes(model, c), "decode_ms_p50": 1.5} for c in CONTEXTS]
    for row in rows if "memory" in more else ():
        row["generation_memory_bytes"] = more["memory"]
    test = {"accuracy": accuracy, "loss": 0.1} if accuracy is not None else {"bits_per_byte": bits}
    longer = [{"length": length} | test for length in (512, 2048)]
    validation = test | ({"bits_per_byte": more["validation"]} if "validation" in more else {})
    if accuracy is None:
        test |= {"loss_by_position": [{"position": p, "bits_per_byte": bits + 1 / p} for p in (1, 2, 4, 8)]}
    size = more.get("size", "1m")
    name = "-".join(filter(None, [model, solver, size, task, f"seed{seed}"]))
    key = hashlib.sha256(json.dumps([config, status, name, machine]).encode()).hexdigest()[:8]
    tokens = more.get("tokens", 1_000_000)
    training = {
        "tokens": tokens,
        "updates": 500,
        "epochs": None if accuracy is not None else tokens / 1e7,
        "tokens_per_second": more.get("speed", 9000),
    }
    result = {
        "schema_version": records.SCHEMA_VERSION,
        "key": key,
        "name": name,
        "status": status,
        "model": model,
        "solver": solver,
    }
    result |= {"gradient": None, "size": size, "task": task, "seed": seed, "data": {"digest": "b2023cac2b1df6e6"}}
    result |= {"parameters": {"total": 1_000_448, "non_embedding": 934_912}, "training": training}
    result |= {"evaluation": {"validation": validation, "test": test, "extrapolation": longer}}
    result |= {"measurement": machine | {"contexts": rows}}
    if (busy := more.get("busy", False)) is not None:
        load = {"other_cpu": 0.4 if busy else 0.01, "busy": busy}
        training["load"] = result["measurement"]["load"] = load
    if "code" in more:
        result["code"] = {"digest": digest_of(more["code"]), "modules": more["code"]}
    if "policy" in more:
        result["context_policy"] = more["policy"]
    checks = [{"name": "causality", "passed": passed}, {"name": "oracle", "passed": None}]
    known = {check["name"] for check in checks}
    checks += [{"name": name, "passed": True} for name in (*BEFORE_TRAINING, *AFTER_TRAINING) if name not in known]
    result |= {"checks": {"passed": passed, "results": checks}}
    if status == "diverged":
        result |= {"evaluation": None, "measurement": None}
        training |= {"divergence": {"update": 120, "reason": "loss is not finite", "value": None}}
    path = Path(folder) / f"{name}-{key}"
    path.mkdir(parents=True)
    for stem, content in (("config", config), ("environment", environment), ("result", result)):
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three seeds of one model, two solvers, a baseline and a diverged run."""
    for seed, bits in enumerate((2.0, 2.1, 2.3)):
        write_run(tmp_path / "runs", "mamba", seed, bits)
    write_run(tmp_path / "runs", "ltc", 0, 2.2, solver="rk4")
    write_run(tmp_path / "runs", "ltc", 0, 2.15, solver="euler")
    write_run(tmp_path / "runs", "ltc", 1, solver="euler", status="diverged")
    write_run(tmp_path / "runs", "transformer", 0, 1.9)
    return tmp_path / "runs"


@pytest.fixture
def undrawn(monkeypatch):
    """The command draws no figures, which take most of its time."""
    for plots in ("_memory_plots", "_quality_plots"):
        monkeypatch.setattr(report, plots, lambda *records: {})


def comparison(folder):
    return tables.comparisons(frame.runs(records.load([folder]).runs))


def cells(table):
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_every_recorded_run_is_in_the_table(folder):
    (table,) = comparison(folder)
    keys = {json.loads((path / "result.json").read_text())["key"] for path in folder.iterdir()}
    assert len(keys) == 7
    assert {key for listed in table.data["runs"] for key in listed.split()} == keys
    assert sum(int(row["seeds"]) for row in cells(table)) == 7
    named = [[json.loads((Path(path) / "result.json").read_text())["key"] for path in paths] for paths in table.runs]
    assert [" ".join(sorted(keys)) for keys in named] == list(table.data["runs"])


def test_seeds_are_one_row_with_mean_and_spread(folder):
    (table,) = comparison(folder)
    row = next(row for row in cells(table) if row["model"] == "mamba")
    assert row["seeds"] == "3"
    assert row["bits per byte (test)"] == "2.133 ± 0.153"
    assert row["state at 1k"] == row["state at 32k"] == "73.7 kB"
    assert row["decode ms/token at 1k"] == "1.50 ± 0.00"
    exact = table.data[table.data["model"] == "mamba"].iloc[0]
    assert exact["test_bits_per_byte"] == pytest.approx(6.4 / 3)
    assert exact["test_bits_per_byte_std"] == pytest.approx(math.sqrt((0.4**2 + 0.1**2 + 0.5**2) / 9 / 2))
    assert (exact["test_bits_per_byte_min"], exact["test_bits_per_byte_max"]) == (2.0, 2.3)


def test_best_comes_first_and_the_diverged_run_last_but_there(folder):
    (table,) = comparison(folder)
    assert [row["model"] for row in cells(table)] == ["transformer", "mamba", "ltc, euler", "ltc, rk4", "ltc, euler"]
    assert cells(table)[-1]["bits per byte (test)"] == "diverged at update 120"
    assert cells(table)[-1]["seeds"] == "1"


def test_notes_name_data_tokens_epochs_and_machine(folder):
    (table,) = comparison(folder)
    notes = " ".join(table.notes)
    for fact in ("b2023cac2b1d", "1,000,000 tokens", "0.10 epochs", "CPU of tests, 2 threads", "standard deviation"):
        assert fact in notes


def test_a_small_part_of_an_epoch_is_not_shown_as_none(tmp_path):
    write_run(tmp_path, "ltc", 0, tokens=8192)
    write_run(tmp_path, "ltc", 1, tokens=20_000_000)
    (table,) = comparison(tmp_path)
    assert "8,192 to 20,000,000 tokens, 0.00082 to 2.00 epochs" in " ".join(table.notes)


def test_machines_are_told_apart(tmp_path):
    write_run(tmp_path, "ltc", 0, 2.0, speed=1000)
    write_run(tmp_path, "ltc", 1, 2.0, speed=3000, device_name="Other CPU")
    (table,) = comparison(tmp_path)
    assert {(row["machine"], row["train tokens/s"]) for row in cells(table)} == {("A", "1,000"), ("B", "3,000")}
    assert "B is Other CPU" in " ".join(table.notes)


def test_runs_of_other_settings_are_never_averaged(tmp_path):
    write_run(tmp_path, "ltc", 0, 2.0, learning_rate=0.001)
    write_run(tmp_path, "ltc", 0, 3.0, learning_rate=0.003)
    (table,) = comparison(tmp_path)  # of all runs, before any is chosen
    assert [row["model"] for row in cells(table)] == ["ltc (learning_rate=0.001)", "ltc (learning_rate=0.003)"]


def test_other_budgets_of_tokens_become_a_column(tmp_path):
    write_run(tmp_path, "ltc", 0, tokens=1_000_000)
    write_run(tmp_path, "mamba", 0, tokens=2_000_000)
    (table,) = comparison(tmp_path)
    assert {row["trained tokens"] for row in cells(table)} == {"1,000,000", "2,000,000"}


def test_synthetic_tasks_have_their_own_table(tmp_path):
    write_run(tmp_path, "ltc", 0, accuracy=0.5)
    write_run(tmp_path, "mamba", 0, accuracy=0.875)
    write_run(tmp_path, "ltc", 0, 2.0)
    runs = frame.runs(records.load([tmp_path]).runs)
    (synthetic,) = tables.comparisons(runs, "test_accuracy")
    assert "epochs" not in " ".join(synthetic.notes)  # no example is seen twice
    assert [(row["model"], row["accuracy (test)"]) for row in cells(synthetic)] == [
        ("mamba", "0.8750"),
        ("ltc", "0.5000"),
    ]
    (text,) = tables.comparisons(runs)
    assert len(text.rows) == 1


def _of_data(path, digest, **task):
    """Gives a record data of its own, made by these settings."""
    for stem, change in (("result", {"data": {"digest": digest}}), ("config", {"task": task})):
        file = path / f"{stem}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))


def test_tables_of_one_task_are_told_apart_by_what_made_their_data_and_follow_text(tmp_path):
    _of_data(write_run(tmp_path, "ltc", 0, accuracy=0.5), "a" * 16, name="mqar", at=None, elapsed=True, pairs=4)
    _of_data(write_run(tmp_path, "ltc", 1, accuracy=0.4), "b" * 16, name="mqar", at=2, elapsed="permuted", pairs=4)
    write_run(tmp_path, "ltc", 0, 2.0)
    write_run(tmp_path, "mamba", 0, 2.0)
    known = records.load([tmp_path])
    made = report.build(known, tmp_path / "bench")
    assert [table.title for table in made.synthetic] == [
        "mqar (elapsed=True), 1m parameters",
        "mqar (elapsed=permuted), 1m parameters",
    ]
    assert [name.split("-")[0] for name, _ in tables.groups(made.runs)] == ["sotu", "mqar", "mqar"]
    # of one model alone there is nothing to compare
    assert [table.title for table in made.verdict.tables["quality"]] == ["Quality, sotu, 1m parameters"]


def test_a_note_that_all_tables_of_a_section_have_stands_once(folder):
    (table,) = comparison(folder)
    first, second = (dataclasses.replace(table, notes=[own, "For all."]) for own in ("The first.", "The second."))
    one, other, shared = render.together([first, second])
    assert [part.strip().rpartition("\n")[2] for part in (one, other)] == ["The first.", "The second."]
    assert shared == "Of all these tables: For all.\n"
    assert render.together([first]) == [render.markdown(first)]


def test_rates_that_were_not_chosen_in_their_table_are_named(tmp_path):
    write_run(tmp_path, "ltc", 0, learning_rate=0.002)
    write_run(tmp_path, "gru", 0, learning_rate=0.002)
    table, _ = chosen_table(tmp_path)
    assert "Every row has the learning rate 0.002; others were not tried in this table." in table.notes
    write_run(tmp_path, "mamba", 0, learning_rate=0.004)
    table, _ = chosen_table(tmp_path)
    assert "Learning rates were not chosen among runs of this table: 0.002 to 0.004." in table.notes
    write_run(tmp_path, "gru", 0, 1.5, learning_rate=0.008)
    table, _ = chosen_table(tmp_path)
    assert "Learning rates not chosen among runs of this table: ltc; mamba." in table.notes
    assert not any(note.startswith("Every row has") for note in table.notes)


def test_unchecked_runs_are_refused_and_named(folder, capsys):
    path = write_run(folder, "leaky", 0, 0.1, passed=False)
    known = records.load([folder])
    assert known.refused == [(path, "checks failed: causality")]
    assert len(known.runs) == 7
    target = folder.parent / "README.md"
    target.write_text("nothing generated\n")
    assert main([str(folder), "--pages", str(target), "--check"]) == 0
    assert f"refused {path}" in capsys.readouterr().out


@pytest.mark.parametrize("checks", [{}, {"passed": "true"}, {"passed": None, "results": None}, None])
def test_only_true_passes(tmp_path, checks):
    path = write_run(tmp_path)
    result = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps(result | {"checks": checks}))
    assert records.load([tmp_path]).refused == [(path, "not checked")]


def test_a_record_that_lacks_a_check_is_refused_and_the_check_named(tmp_path):
    path = write_run(tmp_path)
    result = json.loads((path / "result.json").read_text())
    every = result["checks"]["results"]
    for lacking in ("scan", "hidden_memory"):
        untried = [check | {"passed": None} if check["name"] == lacking else check for check in every]
        for results in (untried, [check for check in every if check["name"] != lacking]):
            result["checks"]["results"] = results
            (path / "result.json").write_text(json.dumps(result))
            assert records.load([tmp_path]).refused == [(path, f"checks not tried: {lacking}")]
    result["checks"]["results"] = []
    (path / "result.json").write_text(json.dumps(result))
    ((_, reason),) = records.load([tmp_path]).refused
    assert reason == "checks not tried: contract, causality, causality_by_perturbation and 28 more"


def test_a_diverged_run_has_no_checks_of_trained_weights(tmp_path):
    path = write_run(tmp_path, status="diverged")
    result = json.loads((path / "result.json").read_text())
    kept = [check for check in result["checks"]["results"] if check["name"] not in AFTER_TRAINING]
    result["checks"]["results"] = kept
    (path / "result.json").write_text(json.dumps(result))
    assert len(records.load([tmp_path]).runs) == 1


@pytest.mark.usefixtures("undrawn")
def test_runs_that_passed_other_checks_are_counted(tmp_path, capsys):
    paths = [write_run(tmp_path / "runs", model, code={"arch.ltc": "a"}) for model in ("ltc", "gru", "lstm")]
    for path, digest in zip(paths, (checks_digest(), "0" * 16), strict=False):
        result = json.loads((path / "result.json").read_text())
        result["code"]["checks"] = digest
        (path / "result.json").write_text(json.dumps(result))
    assert main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    assert "older checks: 2 of 3 runs passed others" in capsys.readouterr().out


def test_one_failed_check_outweighs_a_verdict_that_all_passed(tmp_path):
    path = write_run(tmp_path)
    result = json.loads((path / "result.json").read_text())
    result["checks"]["results"].append({"name": "decoder_after_training", "passed": False})
    (path / "result.json").write_text(json.dumps(result))
    assert records.load([tmp_path]).refused == [(path, "checks failed: decoder_after_training")]


def test_a_run_refused_after_training_is_refused_and_named(tmp_path, capsys):
    path = write_run(tmp_path)
    result = json.loads((path / "result.json").read_text())
    result["checks"] = {"passed": False, "results": [{"name": "evaluation_equals_decoding", "passed": False}]}
    (path / "result.json").unlink()
    (path / "refused.json").write_text(json.dumps(result))
    main([str(tmp_path)])
    assert f"refused {path}: checks failed: evaluation_equals_decoding" in capsys.readouterr().out
    assert records.load([tmp_path]).unfinished == []


def test_unfinished_folders_are_listed_and_others_ignored(tmp_path):
    (write_run(tmp_path, "ltc") / "result.json").unlink()
    (tmp_path / "notes").mkdir()
    known = records.load([tmp_path])
    assert [path.name[:3] for path in known.unfinished] == ["ltc"]
    assert known.runs == []


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ('{"error": "OSError", "message": "The disk is full.\\nMore."}', "The disk is full."),
        ("[]", "no result.json"),
        ('{"message": ""}', "no result.json"),
    ],
)
def test_an_unfinished_run_is_listed_with_what_ended_it(tmp_path, capsys, noted, said):
    (path := write_run(tmp_path / "runs", "gru")).joinpath("result.json").unlink()
    write_run(tmp_path / "runs", "ltc")
    (path / "failure.json").write_text(noted)
    page = tmp_path / "README.md"
    page.write_text("nothing generated\n")
    assert main([str(tmp_path / "runs"), "--pages", str(page), "--check"]) == 0
    assert f"unfinished {path}: {said} (" in capsys.readouterr().out


def test_a_run_found_twice_counts_once(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    copied = next((tmp_path / "a").iterdir()).rename(tmp_path / "b" / "copy")
    write_run(tmp_path / "a")
    known = records.load([tmp_path / "a", tmp_path / "b"])
    assert len(known.runs) == 1
    assert known.repeated == [copied]


def damage(path, what):
    """Does to the record in `path` what a full disk, a hand or a bug may do."""
    result = path / "result.json"
    content = json.loads(result.read_text())
    if what == "torn":
        result.write_bytes(result.read_bytes()[:200])
    elif what == "empty":
        result.write_bytes(b"")
    elif what == "no object":
        result.write_text("[]")
    elif what == "bytes":
        result.write_bytes(b"\x00\xff")
    elif what == "nested":
        result.write_text("[" * 100_000)
    elif what == "gutted":
        result.write_text(json.dumps({key: content[key] for key in ("schema_version", "key", "status")}))
    elif what == "emptied":
        result.write_text(json.dumps(content | {"training": {}, "evaluation": {"test": None}, "parameters": None}))
    elif what == "not evaluated":
        result.write_text(json.dumps(content | {"evaluation": None}))
    elif what == "older schema":
        result.write_text(json.dumps(content | {"schema_version": 1}))
    elif what == "newer schema":
        result.write_text(json.dumps(content | {"schema_version": 99}))
    elif what == "folder":
        result.unlink()
        result.mkdir()
    elif what == "metrics":
        (path / "metrics.jsonl").mkdir()
    elif what == "config":
        (path / "config.json").unlink()
    elif what == "no model":
        (path / "config.json").write_text('{"model": null, "seed": 0}')
    elif what == "environment":
        (path / "environment.json").unlink()


DAMAGES = {
    "torn": "result.json cannot be read",
    "empty": "result.json cannot be read",
    "no object": "result.json holds no JSON object",
    "bytes": "result.json cannot be read",
    "nested": "result.json cannot be read",
    "gutted": "name: Field required",
    "emptied": "training.tokens: Field required",
    "not evaluated": "a finished run has an evaluation",
    "older schema": "python -m harness.records.migrate",
    "newer schema": "repeat the run with this version",
    "folder": "result.json cannot be read",
    "metrics": "metrics.jsonl is a folder",
    "config": "config.json is missing",
    "no model": "model: ",
    "environment": "environment.json is missing",
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_record_is_named_and_the_rest_goes_on(folder, capsys, what):
    path = write_run(folder, "gru")
    damage(path, what)
    known = records.load([folder])
    assert len(known.runs) == 7
    (error,) = known.damaged
    assert str(path) in str(error)
    assert DAMAGES[what] in str(error)
    page = folder.parent / "README.md"
    page.write_text("nothing generated\n")
    assert main([str(folder), "--pages", str(page), "--check"]) == 2
    said = capsys.readouterr()
    assert str(path) in said.err
    assert "README.md: up to date" in said.out


def places(node, path=()):
    """The path to every value in a nest of JSON objects; of a list the first member stands for all."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node[:1]) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(content, place, value):
    """A copy of the content with another value at a place, or with none."""
    node = content = copy.deepcopy(content)
    for key in place[:-1]:
        node = node[key]
    if value is DELETED:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return content


DELETED = object()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param("result", 100, marks=pytest.mark.long),
        pytest.param("config", 5, marks=pytest.mark.long),
        ("environment", 5),
    ],
)
def test_no_value_of_a_record_breaks_the_analysis_whatever_it_is_replaced_by(tmp_path, name, least):
    more = {"code": {"arch.ltc": "a"}, "policy": {"kind": "full", "tokens": None}, "busy": False}
    file = write_run(tmp_path, "ltc", solver="rk4", **more) / f"{name}.json"
    original = json.loads(file.read_text())
    if name == "result":
        original["evaluation"]["sample"] = {"prompt": "A", "text": "b"}
    if name == "config":
        original |= {"block": {"name": "gated", "d_conv": 4, "_target_": "a.B"}}
        original["model"]["names"] = {"block": "transformer"}
    assert not made_with(file, original).damaged
    found = [made_with(file, replaced(original, p, v)) for p in places(original) for v in (DELETED, None, "x", [None])]
    assert sum(len(known.damaged) for known in found) > least


def made_with(file, content):
    """Reads the record with another content of one file, and makes all that is made of it but the drawings."""
    file.write_text(json.dumps(content))
    known = records.load([file.parent.parent])
    report.sections(report.build(known, file.parent), file.parent, file)
    return known


def test_a_missing_folder_is_named(folder):
    with pytest.raises(RecordError, match="no folder"):
        records.load([folder / "nowhere"])


def test_markdown_latex_and_csv_tell_the_same(folder, tmp_path):
    (table,) = comparison(folder)
    lines = [line for line in render.markdown(table).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(table.rows)
    text = render.latex(table)
    assert text.count(r" \\") == 1 + len(table.rows)
    assert r"2.133 $\pm$ 0.153" in text
    assert render.escape("50% of a_b & {c}^2") == r"50\% of a\_b \& \{c\}\textasciicircum{}2"
    paths = render.write(table, tmp_path)
    assert [path.suffix for path in paths] == [".md", ".tex", ".csv"]
    assert list(pd.read_csv(paths[2])["seeds"]) == [1, 3, 1, 1, 1]


def test_figures_are_written_as_people_read_them():
    assert [render.si_bytes(n) for n in (0, 999, 1000, 73728, 999_600, 134_217_728, 2e9, None)] == [
        "0 B", "999 B", "1 kB", "73.7 kB", "1.00 MB", "134 MB", "2 GB", "–",
    ]  # fmt: skip
    assert render.spread(Summary(1, 2.0, None, 2.0, 2.0)) == "2.000"
    assert render.spread(summarise([])) == render.spread(summarise([None, math.nan])) == "–"


def test_memory_curves_are_one_line_a_model(folder):
    runs = records.load([folder]).runs
    labels = frame.runs(runs)["label"]
    curves = memory.curves(frame.contexts(runs, labels), "1m")
    assert curves == [Curve(m, m, {c: state_bytes(m, c) for c in CONTEXTS}) for m in ("ltc", "mamba", "transformer")]
    table = memory.table(frame.contexts(runs, labels), "1m")
    assert table.rows[0] == ["transformer", "4.19 MB", "134 MB", "537 MB"]
    assert [len(paths) for paths in table.runs] == [1, 3, 2]  # a diverged run held nothing
    assert {Path(path).name.split("-")[0] for path in table.runs[1]} == {table.rows[1][0]}


def test_variants_that_hold_different_states_have_a_line_each():
    rows = [("ltc", "ltc a", 1, 10), ("ltc", "ltc b", 1, 20), ("ltc", "ltc c", 1, 10), ("ltc", "ltc c", 2, 10)]
    table = pd.DataFrame(rows, columns=["model", "label", "context", "state_bytes"]).assign(size="1m")
    table["path"] = table["label"]
    assert memory.curves(table, "1m") == [Curve("ltc a", "ltc", {1: 10, 2: 10}), Curve("ltc b", "ltc", {1: 20})]
    assert memory.table(table, "4m") is None


def held(model, task, window, states, per_token=0.0, path="a"):
    where = {"path": path, "model": model, "size": "1m", "label": model, "task": task, "per_token": per_token}
    where["policy"] = "state" if window is None else f"window {window}"
    return [where | {"context": context, "state_bytes": size} for context, size in states.items()]


def test_a_cut_cache_is_said_to_be_cut_and_has_a_dashed_line_of_what_it_is_uncut():
    rows = held("transformer", "sotu", 512, {1024: 2048, 4096: 2048}, 4.0) + held(
        "ltc", "sotu", None, {1024: 8, 4096: 8}
    )
    curves = memory.curves(pd.DataFrame(rows), "1m")
    assert curves == [
        Curve("ltc", "ltc", {1024: 8, 4096: 8}),
        Curve("transformer (window 512)", "transformer", {1024: 2048, 4096: 2048}),
        Curve("transformer, uncut (computed)", "transformer", {1024: 4096.0, 4096: 16384.0}),
    ]
    lines = figures.memory(curves, styles.styles(["ltc", "transformer"]), "t").axes[0].get_lines()
    assert [line.is_dashed() for line in lines] == [False, False, True]


@pytest.mark.parametrize("order", [1, -1])
def test_tasks_that_hold_other_states_have_a_line_each_whatever_comes_last(order):
    runs = [
        held("transformer", "parity", 40, {128: 30, 1024: 24}, path="a"),
        held("transformer", "mqar", 64, {128: 64, 1024: 64}, path="b"),
        held("mamba", "parity", None, {128: 7}, path="c"),
        held("mamba", "mqar", None, {128: 9}, path="d"),
        held("gru", "parity", None, {128: 5}, path="e"),
        held("gru", "mqar", None, {128: 5}, path="f"),
    ]
    found = memory.curves(pd.DataFrame([row for run in runs[::order] for row in run]), "1m")
    assert {curve.label: curve.points for curve in found} == {
        "gru": {128: 5},
        "mamba, mqar": {128: 9},
        "mamba, parity": {128: 7},
        "transformer (window 40)": {128: 30, 1024: 24},
        "transformer (window 64)": {128: 64, 1024: 64},
    }


def test_the_bytes_a_token_are_those_of_the_check_in_float32(tmp_path):
    path = write_run(tmp_path, "transformer", policy={"kind": "window", "tokens": 512})
    result = json.loads((path / "result.json").read_text())
    check = next(check for check in result["checks"]["results"] if check["name"] == "state_growth")
    check["detail"] = "claimed to grow: 8192 bytes a token"
    (path / "result.json").write_text(json.dumps(result))
    known = frame.contexts(records.load([tmp_path]).runs, ["transformer"])
    assert set(known["per_token"]) == {4096.0}
    assert set(known["policy"]) == {"window 512"}


def test_the_table_of_models_has_the_states_of_one_size_and_says_what_a_window_cuts(tmp_path):
    for model, size in (("ltc", "1m"), ("transformer", "1m"), ("ltc", "250k"), ("mamba", "250k")):
        write_run(
            tmp_path, model, size=size, policy={"kind": "window", "tokens": 512} if model == "transformer" else None
        )
    write_run(tmp_path, "rwkv", size="1m")
    lines = models.table(records.load([tmp_path]).runs).splitlines()
    assert lines[0].split(" | ")[2] == "state at 1k / 32k, 1m"
    state = {line.split(" | ")[0].strip("| `"): line.split(" | ")[2] for line in lines[2:]}
    assert (state["ltc"], state["mamba"], state["transformer"]) == ("2.05 kB", "–", "4.19 MB / 134 MB (window 512)")


def test_quality_curves_are_means_over_seeds_with_their_spread_and_count_what_diverged(folder):
    runs = records.load([folder]).runs
    metric, curves = quality.curves(runs, frame.runs(runs)["label"], "loss_by_position")
    assert metric == "bits_per_byte"
    by_label = {curve.label: curve for curve in curves}
    assert set(by_label) == {"mamba", "ltc, rk4", "ltc, euler", "transformer"}
    assert by_label["mamba"].points == {p: pytest.approx(6.4 / 3 + 1 / p) for p in (1, 2, 4, 8)}
    assert by_label["mamba"].spread == {p: pytest.approx(math.sqrt(0.07 / 3)) for p in (1, 2, 4, 8)}
    assert by_label["transformer"].spread == {}
    assert by_label["ltc, euler"].note == "(1 of 2 diverged)"
    _, longer = quality.curves(runs, frame.runs(runs)["label"], "extrapolation")
    assert {curve.label: curve.points for curve in longer}["transformer"] == {512: 1.9, 2048: 1.9}


def test_a_model_that_diverged_everywhere_is_in_the_legend(tmp_path):
    write_run(tmp_path, "gru", 0, status="diverged")
    write_run(tmp_path, "ltc", 0)
    runs = records.load([tmp_path]).runs
    _, curves = quality.curves(runs, frame.runs(runs)["label"], "loss_by_position")
    assert curves[0] == Curve("gru", "gru", {}, {}, "diverged")
    figure = figures.quality(curves, styles.styles(["gru", "ltc"]), "title", "x", "y")
    assert len(figure.axes[0].get_lines()) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ltc  2.125", "gru  diverged"]


def test_every_model_of_the_catalogue_has_a_style_of_its_own_and_no_two_are_alike():
    assert set(models.catalogue()) <= set(styles.MODELS)
    many = styles.styles([*styles.MODELS, *(f"plugin{number}" for number in range(40))])
    assert len(many) == len(styles.MODELS) + 40
    assert len({(style.colour, style.marker) for style in many.values()}) == len(many)
    first = [many[model] for model in styles.MODELS]
    assert len({(style.marker, style.face) for style in first}) == len(first)  # told apart without colour
    assert len({first[0].variant(number) for number in range(20)}) == 20


def test_a_model_keeps_its_colour_and_marker_whoever_else_is_in_the_figure(tmp_path):
    def drawn(*curves):
        figure = figures.quality(list(curves), styles.styles(curve.model for curve in curves), "title", "x", "y")
        legend = figure.legends[0]
        names = [text.get_text().split()[0] for text in legend.get_texts()]
        looks = [(line.get_color(), line.get_marker()) for line in legend.get_lines()]
        return dict(zip(names, looks, strict=True))

    rwkv, gru = Curve("rwkv", "rwkv", {1: 1.0, 2: 1.0}), Curve("gru", "gru", {1: 2.0, 2: 3.0})
    plugin = Curve("mine", "mine", {1: 9.0, 2: 9.0})
    alone, among = drawn(rwkv), drawn(gru, plugin, rwkv)
    assert alone["rwkv"] == among["rwkv"]
    assert among["mine"] == drawn(plugin)["mine"]
    assert len(set(among.values())) == 3


def test_variants_of_a_model_share_its_colour_and_marker_and_differ_in_their_lines():
    looks = styles.styles(["ltc"])
    curves = [Curve(f"ltc, {solver}", "ltc", {1: 1.0}) for solver in ("euler", "heun", "rk4")]
    chosen = figures.variants(curves, looks)
    assert {(style.colour, style.marker) for style in chosen.values()} == {(looks["ltc"].colour, looks["ltc"].marker)}
    assert chosen["ltc, euler"] == looks["ltc"]
    assert len({(style.dash, style.face) for style in chosen.values()}) == 3


def test_models_that_hold_the_same_are_all_seen():
    looks = styles.styles(["cfc", "gru"])
    curves = [Curve(model, model, {1: 5, 2: 5, 4: 5}) for model in ("cfc", "gru")]
    one, other = figures.memory(curves, looks, "title").axes[0].get_lines()
    assert (one.get_color(), other.get_color()) == (looks["cfc"].colour, looks["gru"].colour)
    assert (one.get_markevery(), other.get_markevery()) == ((0, 2), (1, 2))


def test_a_band_shows_the_spread_over_seeds():
    curve = Curve("ltc", "ltc", {1: 2.0, 2: 3.0}, {1: 0.5, 2: 0.25})
    figure = figures.quality([curve], styles.styles(["ltc"]), "title", "x", "y")
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].get_extents().get_points().tolist() == [[1.0, 1.5], [2.0, 3.25]]
    assert "standard deviation" in figure.axes[0].get_xlabel()


def test_a_band_ends_where_the_metric_does(tmp_path):
    for seed, accuracy in enumerate((0.5, 1.0, 1.0)):
        write_run(tmp_path, "ltc", seed, accuracy=accuracy)
    runs = records.load([tmp_path]).runs
    _, curves = quality.curves(runs, frame.runs(runs)["label"], "extrapolation")
    (band,) = figures.quality(curves, styles.styles(["ltc"]), "title", "x", "y").axes[0].collections
    assert band.get_paths()[0].get_extents().y1 == 1.0


def test_a_point_of_one_seed_among_others_of_several_is_open_and_said_to_be():
    several = Curve.over_seeds("ltc", "ltc", {10: [1.0, 2.0], 100: [3.0]})
    axes = figures.quality([several], styles.styles(["ltc"]), "title", "x", "y").axes[0]
    _, alone = axes.get_lines()
    assert (list(alone.get_xdata()), list(alone.get_ydata())) == ([100], [3.0])
    assert (alone.get_markerfacecolor(), alone.get_linestyle()) == ("white", "None")
    assert "open marker: one seed" in axes.get_xlabel()
    one = Curve.over_seeds("gru", "gru", {10: [1.0], 100: [3.0]})
    beside = figures.quality([several, one], styles.styles(["ltc", "gru"]), "title", "x", "y")
    assert [text.get_text().split("  ")[-1] for text in beside.legends[0].get_texts()] == ["(one\u00a0seed)", "3.000"]
    assert len(beside.axes[0].get_lines()) == 3
    assert figures.quality([one], styles.styles(["gru"]), "title", "x", "y").axes[0].get_xlabel() == "x\none seed each"


@pytest.mark.parametrize(("worst", "limits", "scale"), [(4.9, (0, math.inf), "log"), (0.9, (0, 1), "linear")])
def test_one_bad_model_does_not_hide_the_others_where_a_measure_has_no_end(worst, limits, scale):
    curves = [Curve(m, m, {1: y, 2: y}, limits=limits) for m, y in (("transformer", worst), ("ltc", worst / 4))]
    axes = figures.quality(curves, styles.styles(["transformer", "ltc"]), "title", "x", "y").axes[0]
    assert axes.get_yscale() == scale
    assert len(axes.get_yticks()) > 2


def test_models_of_one_colour_have_other_dashes_while_dashes_last():
    many = styles.styles(styles.MODELS)
    first = [many[model] for model in styles.MODELS[: len(styles.COLOURS) * len(styles.DASHES)]]
    assert len({(style.colour, style.dash) for style in first}) == len(first)


def test_a_figure_has_one_recipe_and_its_labels_no_lists_of_the_configuration(tmp_path):
    for model, tokens in (("ltc", 200), ("gru", 200), ("ltc", 100), ("gru", 100), ("lstm", 50), ("mamba", 200)):
        path = write_run(tmp_path, model, tokens=tokens, size=f"{tokens}k")
        config, result = (json.loads((path / f"{name}.json").read_text()) for name in ("config", "result"))
        config["trainer"] |= {"tokens": tokens}
        config["task"] = {"name": "sotu", "length_factors": [1, tokens]}
        result |= {"size": "1m", "key": f"{model}{tokens}"}
        (path / "config.json").write_text(json.dumps(config))
        (path / "result.json").write_text(json.dumps(result))
    runs = records.load([tmp_path]).runs
    found = quality.groups(runs, frame.runs(runs))
    assert [(name, trained) for name, trained, _ in found] == [
        ("sotu-1m", ", trained on 200 tokens"),
        ("sotu-1m-2", ", trained on 100 tokens"),
    ]
    assert [sorted(group["label"]) for *_, group in found] == [["gru", "ltc", "mamba"], ["gru", "ltc"]]


@pytest.mark.parametrize("values", [{256: 4.0, 2048: 3.0}, {256: 0.5, 2048: 0.25}])
def test_break_even_is_in_sight_whoever_wins(values):
    axes = figures.ratio([Curve("batch 1", "ltc", values)], styles.styles(["ltc"]), "title", "x", "y").axes[0]
    low, high = axes.get_ylim()
    assert low < 1 < high
    assert [list(line.get_ydata()) for line in axes.get_lines()][1] == [1, 1]
    assert "break-even" in [text.get_text() for text in axes.texts]


def test_a_legend_of_twenty_long_names_has_room():
    names = [
        f"model{number}, gated block, semi_implicit (substeps=6, coupling=dense, d_state=16)" for number in range(20)
    ]
    curves = [Curve(name, name[:8].rstrip(","), {1: 1.0 + number}) for number, name in enumerate(names)]
    figure = figures.quality(curves, styles.styles(curve.model for curve in curves), "title", "x", "y")
    figure.draw_without_rendering()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.x0 > axes.x1
    assert legend.y0 > 0
    assert legend.x1 < figure.bbox.x1
    assert axes.width > 400


def test_a_long_title_does_not_run_into_the_legend():
    title = "Beyond the trained length, parity, 100k parameters, trained on 10,240,000 tokens"
    figure = figures.quality([Curve("ltc", "ltc", {1: 1.0})], styles.styles(["ltc"]), title, "x", "y")
    figure.draw_without_rendering()
    (shown,) = [text for text in figure.axes[0].get_children() if getattr(text, "get_text", str)().startswith("Beyond")]
    assert shown.get_window_extent().x1 < figure.legends[0].get_window_extent().x0


def test_ticks_leave_room_for_each_other():
    assert figures.apart([0, 1, 2, 3, 4, 512, 600]) == [1, 2, 4, 600]
    assert [figures.short_count(n) for n in (512, 1024, 1500, 131072)] == ["512", "1k", "1,500", "128k"]


def test_the_figure_has_the_curves_and_the_same_bytes_again(folder, tmp_path):
    points = {"transformer": {1024: 1000, 32768: 32000}, "ltc": {1024: 2048, 32768: 2048}}
    curves, looks = [Curve(model, model, held) for model, held in points.items()], styles.styles(points)
    figure = figures.memory(curves, looks, "title")
    lines = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[1000, 32000], [2048, 2048]]
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    first = [path.read_bytes() for path in figures.save(figure, tmp_path, "one")]
    again = [path.read_bytes() for path in figures.save(figures.memory(curves, looks, "title"), tmp_path, "two")]
    assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")


def test_the_readers_own_settings_of_matplotlib_change_no_figure(tmp_path):
    curves, looks = [Curve("ltc", "ltc", {1024: 2048, 32768: 2048})], styles.styles(["ltc"])
    plain = [path.read_bytes() for path in figures.save(figures.memory(curves, looks, "title"), tmp_path, "one")]
    drawn = figures.svg(figures.memory(curves, looks, "title"), "memory")
    with figures.plt.rc_context({"font.sans-serif": ["serif"], "axes.facecolor": "red", "savefig.facecolor": "red"}):
        again = [path.read_bytes() for path in figures.save(figures.memory(curves, looks, "title"), tmp_path, "two")]
        assert figures.svg(figures.memory(curves, looks, "title"), "memory") == drawn
    assert plain == again


def test_an_svg_stands_beside_others_in_a_page_of_any_colour():
    curves = [Curve("transformer <b>", "transformer", {1024: 2048, 32768: 4096})]
    drawn = [
        figures.svg(figures.memory(curves, styles.styles(["transformer"]), "A & B"), name) for name in ("a", "b c")
    ]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in drawn]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, known in zip(drawn, ids, strict=True):
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(one, "") for one in known} | {
            ("", one) for one in known
        }
        assert "<title>transformer &lt;b&gt;\n1k: 2,048\n32k: 4,096</title>" in text
        assert "currentColor" in text
        assert not [colour for colour in figures.PAGE_COLOURS if colour in text]
        assert "<b>" not in text
        assert "metadata" not in text
        ElementTree.fromstring(text)


@pytest.mark.usefixtures("undrawn")
def test_sections_come_from_the_records_and_check_reports(folder, tmp_path, capsys):
    target = tmp_path / "README.md"
    target.write_text("# A\n<!-- generated:comparison -->\nold\n<!-- /generated:comparison -->\nend\n")
    arguments = [str(folder), "--output", str(tmp_path / "out"), "--pages", str(target)]
    assert main([*arguments, "--check"]) == 1
    assert "-old" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    text = target.read_text()
    assert text.startswith("# A\n<!-- generated:comparison -->\n**sotu, 1m parameters**")
    assert text.endswith("<!-- /generated:comparison -->\nend\n")
    assert main([*arguments, "--check"]) == 0
    write_run(folder, "gru", 0, 2.5)
    assert main([*arguments, "--check"]) == 1


def test_markers_that_do_not_fit_are_reported():
    with pytest.raises(RecordError, match="'other'"):
        pages.render("<!-- generated:other -->\n<!-- /generated:other -->", {"one": ""})
    for text in (
        "<!-- generated:one -->\n",
        "<!-- /generated:one -->",
        "<!-- generated:one --> <!-- /generated:one -->",
    ):
        with pytest.raises(RecordError, match="without its partner"):
            pages.render(text, {"one": ""})


def test_no_records_is_an_error_and_an_empty_section(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "python run.py" in capsys.readouterr().err
    target = tmp_path / "README.md"
    target.write_text("<!-- generated:memory -->\n<!-- /generated:memory -->\n")
    assert main([str(tmp_path), "--pages", str(target)]) == 0
    assert report.NOTHING in target.read_text()


def test_differing_keys_are_named_once():
    one = {"model": {"mixer": {"gradient": {"name": "adjoint", "_target_": "A"}}}, "gradient": {"name": "adjoint"}}
    other = copy.deepcopy(one)
    other["gradient"]["name"] = other["model"]["mixer"]["gradient"]["name"] = "checkpoint"
    assert frame.differing_keys([frame.flatten(one), frame.flatten(other)]) == ["gradient.name"]


def test_the_command_writes_everything_and_never_imports_torch(folder, tmp_path):
    program = (
        "import sys; from analysis.__main__ import main; status = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    arguments = [str(folder), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    drawn = ("memory-1m", "loss-by-position-sotu-1m", "extrapolation-sotu-1m")
    judged = ("quality-sotu-1m", "scaling-sotu", "field", "liquid", "cost-measured", "cost-extrapolated")
    assert written == {"runs.csv", *(f"{stem}.{suffix}" for stem in drawn for suffix in ("png", "pdf"))} | {
        f"{stem}.{suffix}"
        for stem in ("sotu-1m", "memory-1m", "claims", "tracking", *judged)
        for suffix in ("md", "tex", "csv")
    }
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 7


def chosen_table(folder, tuned=selection.TUNED):
    """The comparison after selection, as the command makes it, and the table of what was tried."""
    made = report.build(records.load([folder]), folder, tuned)
    return made.comparison[0], made.tuning


def test_the_best_on_validation_is_shown_and_not_the_best_on_test(tmp_path):
    write_run(tmp_path, "ltc", 0, bits=1.5, validation=2.1, learning_rate=0.001)  # best on test, second on validation
    write_run(tmp_path, "ltc", 0, bits=1.9, validation=2.0, learning_rate=0.003)
    write_run(tmp_path, "ltc", 0, bits=1.8, validation=2.2, learning_rate=0.01)
    table, (tuning,) = chosen_table(tmp_path)
    (row,) = cells(table)
    assert (row["model"], row["bits per byte (test)"]) == ("ltc", "1.900")
    assert row["chosen on validation"] == "learning_rate=0.003, best of 3"
    shown = [(row["model"], row["bits per byte (validation)"], row[""]) for row in cells(tuning)]
    assert shown == [
        ("ltc (learning_rate=0.003)", "2.0000", "chosen"),
        ("ltc (learning_rate=0.001)", "2.1000", ""),
        ("ltc (learning_rate=0.01)", "2.2000", ""),
    ]


@pytest.mark.usefixtures("undrawn")
def test_no_file_shows_the_test_figure_of_what_was_not_chosen(tmp_path):
    write_run(tmp_path / "runs", "ltc", 0, bits=1.8764321, validation=2.1, learning_rate=0.001)
    write_run(tmp_path / "runs", "ltc", 0, bits=1.9, validation=2.0, learning_rate=0.003)
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--output", str(out)]) == 0
    texts = {path.name: path.read_text() for path in out.iterdir() if path.suffix in (".md", ".tex", ".csv")}
    assert not [name for name, text in texts.items() if "1.876" in text]
    assert [row for row in texts["runs.csv"].splitlines() if "1.9" in row]
    assert len(pd.read_csv(out / "runs.csv")) == 2


def test_validation_is_a_mean_over_the_seeds_that_all_ran(tmp_path):
    for seed, validation in enumerate((2.0, 3.0, 3.0)):
        write_run(tmp_path, "ltc", seed, 1.8, validation=validation, learning_rate=0.003)
    write_run(tmp_path, "ltc", 0, 1.7, validation=2.1, learning_rate=0.001)
    write_run(tmp_path, "ltc", 0, 1.7, validation=2.2, learning_rate=0.01)
    table, _ = chosen_table(tmp_path)
    assert [(row["seeds"], row["chosen on validation"]) for row in cells(table)] == [
        ("3", "learning_rate=0.003, best of 3")
    ]


def test_the_edge_of_a_grid_is_said(tmp_path):
    for rate, validation in ((0.001, 2.2), (0.003, 2.1), (0.01, 2.0)):
        write_run(tmp_path, "ltc", 0, validation=validation, learning_rate=rate)
    table, _ = chosen_table(tmp_path)
    assert cells(table)[0]["chosen on validation"] == "learning_rate=0.01, best of 3, at the edge"
    assert "the grid must be extended" in " ".join(table.notes)


def test_a_value_that_diverged_with_any_seed_comes_last_but_is_part_of_the_grid(tmp_path):
    write_run(tmp_path, "ltc", 0, validation=2.2, learning_rate=0.001)
    write_run(tmp_path, "ltc", 0, validation=2.1, learning_rate=0.003)
    write_run(tmp_path, "ltc", 0, validation=1.9, learning_rate=0.01)
    write_run(tmp_path, "ltc", 1, status="diverged", learning_rate=0.01)
    table, (tuning,) = chosen_table(tmp_path)
    assert [row["chosen on validation"] for row in cells(table)] == ["learning_rate=0.003, best of 3"]
    assert cells(tuning)[-1]["bits per byte (validation)"] == "diverged at update 120"


def test_accuracy_is_chosen_where_it_is_highest(tmp_path):
    for rate, accuracy in ((0.001, 0.2), (0.003, 0.9), (0.01, 0.5)):
        write_run(tmp_path, "ltc", 0, accuracy=accuracy, learning_rate=rate)
    made = report.build(records.load([tmp_path]), tmp_path)
    assert cells(made.synthetic[0])[0]["chosen on validation"] == "learning_rate=0.003, best of 3"


def test_variants_are_chosen_where_the_command_names_their_key(tmp_path):
    write_run(tmp_path, "ltc", 0, 1.5, solver="euler", validation=2.1, code={"arch.solvers": "a"})
    write_run(tmp_path, "ltc", 0, 1.9, solver="rk4", validation=2.0, code={"arch.solvers": "a", "arch.more": "b"})
    assert len(chosen_table(tmp_path)[0].rows) == 2
    table, _ = chosen_table(tmp_path, ("solver",))
    assert [(row["model"], row["chosen on validation"]) for row in cells(table)] == [
        ("ltc, rk4", "solver=rk4, best of 2")
    ]
    with pytest.raises(RecordError, match=r"'mixer\.nothing'"):
        chosen_table(tmp_path, ("mixer.nothing",))


def test_other_code_is_another_row_and_is_never_averaged(tmp_path):
    write_run(tmp_path / "a", "ltc", 0, 2.0, code={"arch.ltc": "old"})
    write_run(tmp_path / "b", "ltc", 0, 3.0, code={"arch.ltc": "new"})
    write_run(tmp_path / "b", "ltc", 1, 3.2, code={"arch.ltc": "new"})
    write_run(tmp_path / "b", "gru", 0, 2.5, code={"arch.gru": "new"})
    known = records.load([tmp_path / "a", tmp_path / "b"])
    assert known.repeated == []  # the same configuration, and yet another run
    (table,) = tables.comparisons(frame.runs(known.runs))
    old, new = (digest_of({"arch.ltc": version})[:8] for version in ("old", "new"))
    assert [(row["model"], row["bits per byte (test)"]) for row in cells(table)] == [
        (f"ltc (code {old})", "2.000"),
        ("gru", "2.500"),
        (f"ltc (code {new})", "3.100 ± 0.141"),
    ]


def test_a_value_is_chosen_within_one_version_of_the_code(tmp_path):
    write_run(tmp_path, "ltc", 0, 2.0, learning_rate=0.001, code={"arch.ltc": "old", "shared": "a"})
    write_run(tmp_path, "ltc", 0, 3.0, learning_rate=0.003, code={"arch.ltc": "new", "shared": "a"})
    table, tuning = chosen_table(tmp_path)
    assert len(table.rows) == 2
    assert tuning == []


@pytest.mark.usefixtures("undrawn")
def test_records_of_older_code_are_named(tmp_path, capsys, monkeypatch):
    old = write_run(tmp_path / "runs", "ltc", 0, code={"arch.ltc": "old"})
    write_run(tmp_path / "runs", "gru", 0, code={"arch.gru": "new"})
    write_run(tmp_path / "runs", "lstm", 0)

    def changed(code, root):
        return [name for name, digest in (code or {}).get("modules", {}).items() if digest == "old"]

    monkeypatch.setattr(provenance, "changed_modules", changed)
    assert main([str(tmp_path / "runs"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert f"older code {old}: arch.ltc changed since" in said
    assert "unknown code: 1 of 3 runs" in said
    assert said.count("older code") == 1
    assert "Recorded by older code than this checkout's: ltc." in (tmp_path / "out" / "sotu-1m.md").read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("git", "reason"),
    [({"commit": "a" * 40, "dirty": True}, "changes beyond commit aaaaaaaaaaaa"), (None, "no commit")],
)
def test_a_published_run_of_no_clean_commit_is_refused(folder, tmp_path, capsys, git, reason):
    page = tmp_path / "README.md"
    page.write_text("nothing generated\n")
    arguments = [str(folder), "--pages", str(page), "--check"]
    assert main(arguments) == 0
    path = write_run(folder, "gru", git=git)
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert f"{path} cannot be published" in said
    assert reason in said
    assert main([*arguments[:-1], "--output", str(tmp_path / "out")]) == 0  # pages are written, and the run is named
    assert f"{path} cannot be published" in capsys.readouterr().out


def test_speeds_of_a_busy_machine_are_left_out_of_means_and_marked(tmp_path):
    for seed, (speed, busy) in enumerate(((9000, False), (9200, False), (2000, True))):
        write_run(tmp_path, "ltc", seed, 2.0, speed=speed, busy=busy)
    write_run(tmp_path, "gru", 0, 2.1, speed=100, busy=True)
    write_run(tmp_path, "lstm", 0, 2.2, speed=8000, busy=None)  # recorded before the load was
    (table,) = comparison(tmp_path)
    shown = {row["model"]: (row["train tokens/s"], row["decode ms/token at 1k"]) for row in cells(table)}
    assert shown == {"ltc": ("9,100 ± 141*", "1.50 ± 0.00*"), "gru": ("busy", "busy"), "lstm": ("8,000?", "1.50?")}
    assert "* marks a mean without them" in " ".join(table.notes)
    assert "how busy the machine was are marked ?." in " ".join(table.notes)
    assert table.data.set_index("model").loc["ltc", "tokens_per_second"] == 9100


def test_a_quiet_machine_needs_no_note(folder):
    assert "busy" not in " ".join(comparison(folder)[0].notes)


def test_of_several_seeds_one_whose_load_is_not_known_marks_the_mean(tmp_path):
    for seed, busy in enumerate((False, None, True)):
        write_run(tmp_path, "ltc", seed, 2.0, busy=busy)
    write_run(tmp_path, "gru", 0, status="diverged", busy=None)
    (table,) = comparison(tmp_path)
    shown = {row["model"]: (row["train tokens/s"], row["decode ms/token at 1k"]) for row in cells(table)}
    assert shown == {"ltc": ("9,000 ± 0*?", "1.50 ± 0.00*?"), "gru": ("9,000?", "–")}


def test_the_run_kept_as_the_example_is_shown_and_in_no_table(tmp_path):
    def sampled(folder, loss):
        path = write_run(folder, "ltc", 0, loss)
        result = json.loads((path / "result.json").read_text())
        result["evaluation"]["sample"] = {"prompt": "A", "text": "b"}
        (path / "result.json").write_text(json.dumps(result))

    sampled(tmp_path, 2.0)
    assert "2.000 bits per byte" in report.build(records.load([tmp_path]), tmp_path / "bench").example
    sampled(tmp_path / example.FOLDER, 1.5)
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    assert "1.500 bits per byte" in made.example
    assert [len(table.rows) for table in made.comparison] == [1]


@pytest.mark.parametrize(("busy", "said"), [(True, " (busy machine)"), (False, ""), (None, " (load not known)")])
def test_the_example_says_what_is_known_of_the_machine_beside_its_speeds(tmp_path, busy, said):
    path = write_run(tmp_path, "ltc", 0, 2.0, speed=8000, busy=busy)
    result = json.loads((path / "result.json").read_text())
    result["evaluation"]["sample"] = {"prompt": "A", "text": "b"}
    (path / "result.json").write_text(json.dumps(result))
    lines = example.summary(records.load([tmp_path]).runs).splitlines()
    assert [line for line in lines if line.endswith(f"8,000 tokens/s{said}")]
    assert [line for line in lines if line.endswith(f"1.50 ms a token{said}")]


def test_rows_whose_code_is_not_named_are_told(tmp_path):
    write_run(tmp_path, "ltc", 0, 2.0)
    write_run(tmp_path, "gru", 0, 2.0, code={"arch.gru": "a"})
    (table,) = comparison(tmp_path)
    assert "Recorded without the name of the code: ltc." in table.notes


def test_context_policy_and_memory_of_generation_are_columns_where_they_are_known(tmp_path):
    write_run(tmp_path, "transformer", 0, 2.0, policy={"kind": "window", "tokens": 4096}, memory=12_000_000)
    write_run(tmp_path, "transformer_gqa", 0, 2.1, policy={"kind": "full", "tokens": None}, memory=None)
    write_run(tmp_path, "ltc", 0, 2.2, policy={"kind": "state", "tokens": None}, memory=1_000)
    write_run(tmp_path, "gru", 0, 2.3)
    (table,) = comparison(tmp_path)
    assert {row["model"]: (row["context"], row["memory at 32k"]) for row in cells(table)} == {
        "transformer": ("window 4,096", "12 MB"),
        "transformer_gqa": ("full", "–"),
        "ltc": ("state", "1 kB"),
        "gru": ("–", "–"),
    }


def test_sizes_are_in_order_of_what_they_mean(tmp_path):
    for size in ("10m", "250k", "1m", "2.5m"):
        write_run(tmp_path, "ltc", 0, size=size)
    made = report.build(records.load([tmp_path]), tmp_path)
    assert [table.name for table in made.comparison] == ["sotu-250k", "sotu-1m", "sotu-2.5m", "sotu-10m"]
    assert [table.name for table in made.memory] == ["memory-250k", "memory-1m", "memory-2.5m", "memory-10m"]
    assert tables.size_order("huge") > tables.size_order("9b")


def test_a_page_with_less_room_leaves_out_columns_and_the_notes_about_them_alone():
    notes = ["Context: what is seen.", "State: what is held.", "Memory: what it takes."]
    table = render.Table(
        "t", "T", ["model", "state at 1k", "state at 32k", "memory at 32k"], [list("abcd")], notes, None
    )
    brief = table.without(["state at 1k", "memory at 32k"])
    assert (brief.header, brief.rows, brief.notes) == (["model", "state at 32k"], [["a", "c"]], notes[:2])


def test_a_latex_table_has_its_first_column_to_the_left_and_the_others_to_the_right(folder):
    (table,) = comparison(folder)
    (columns,) = re.findall(r"\\begin{tabular}{(\w+)}", render.latex(table))
    assert columns == "l" + "r" * (len(table.header) - 1)


@pytest.mark.usefixtures("undrawn")
def test_the_headline_rests_on_the_most_seeds():
    def table(name, **seeds):
        data = pd.DataFrame(list(seeds.items()), columns=["model", "seeds"])
        return render.Table(name, name, ["model"], [[model] for model in seeds], [], data)

    many, few = table("many", a=1, b=1, c=1, d=1, e=1), table("few", a=3, b=3)
    assert report._largest([many, few]).name == "few"
    assert report._largest([many, table("again", a=1, b=2)]).name == "many"
    assert report._largest([]) is None


def test_a_page_shows_the_memory_of_the_models_in_its_headline(folder):
    made = report.build(records.load([folder]), Path("nowhere"))

    def figure(*sizes, headline):
        plots = {f"memory-{size}": report.Plot(f"memory, {size}", figures.memory) for size in sizes}
        table = render.Table(headline, headline, [""], [["ltc"]], [], pd.DataFrame())
        shown = dataclasses.replace(made, headline=table, figures=plots)
        return report.sections(shown, Path("out"), Path("README.md"))["figure"]

    assert figure("1m", "10m", headline="sotu-10m") == "![memory, 10m](out/memory-10m.png)"
    assert figure("1m", "10m", headline="sotu-1m") == "![memory, 1m](out/memory-1m.png)"
    assert figure("1m", "10m", headline="mqar-30m") == "![memory, 1m](out/memory-1m.png)"
    assert figure(headline="sotu-1m") == report.NOTHING


def test_the_line_of_break_even_is_named_at_its_right_end_and_below_it():
    figure = figures.ratio([Curve("batch 1", "ltc", {256: 0.5, 2048: 4.0})], styles.styles(["ltc"]), "title", "x", "y")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (name,) = [text for text in axes.texts if text.get_text() == "break-even"]
    box, room, line = name.get_window_extent(), axes.get_window_extent(), axes.transData.transform((256, 1))[1]
    assert room.x1 - box.width < box.x1 <= room.x1
    assert line - 2 * box.height < box.y1 <= line


def test_one_budget_of_tokens_is_a_note_and_no_column(folder):
    (table,) = comparison(folder)
    assert tables.TOKENS.heading not in table.header
    assert any("Trained on 1,000,000 tokens" in note for note in table.notes)


def test_a_recipe_is_the_same_in_whatever_order_its_keys_stand(tmp_path):
    path = write_run(tmp_path, "ltc")
    config = json.loads((path / "config.json").read_text())
    config["trainer"] = {"tokens": 1000, "beta2": 0.95, "clip_norm": None}
    (path / "config.json").write_text(json.dumps(config))
    (one,) = records.load([tmp_path]).runs
    config["trainer"] = {"beta2": 0.95, "tokens": 1000}
    (path / "config.json").write_text(json.dumps(config))
    (other,) = records.load([tmp_path]).runs
    assert frame.recipe(one) == frame.recipe(other)
