import copy
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis import figures, frame, memory, pages, quality, records, render, report, tables
from analysis.__main__ import main
from analysis.statistics import Summary, summarise
from harness.errors import RecordError

ROOT = Path(__file__).resolve().parent.parent
CONTEXTS = (1024, 32768, 131072)


def state_bytes(model, context):
    return 2 * 4 * 128 * 4 * context if model == "transformer" else {"ltc": 2048, "mamba": 73728}.get(model, 4096)


def write_run(folder, model="ltc", seed=0, bits=2.0, solver=None, status="finished", accuracy=None, **more):
    """Writes one small record as a run leaves it; `more`: learning_rate, device_name, passed, tokens, speed."""
    passed, task = more.get("passed", True), "mqar" if accuracy is not None else "sotu"
    config = {"model": {"name": model}, "trainer": {"learning_rate": more.get("learning_rate", 0.001)}, "seed": seed}
    config |= {"records": str(folder)} | ({"solver": {"name": solver}} if solver else {})
    machine = {"device": "cpu", "device_name": more.get("device_name", "CPU of tests"), "threads": 2}
    environment = {"cpu": machine["device_name"], "gpu": None, "threads": 2}
    rows = [{"context": c, "state_bytes": state_bytes(model, c), "decode_ms_p50": 1.5} for c in CONTEXTS]
    test = {"accuracy": accuracy, "loss": 0.1} if accuracy is not None else {"bits_per_byte": bits}
    longer = [{"length": length} | test for length in (512, 2048)]
    if accuracy is None:
        test |= {"loss_by_position": [{"position": p, "bits_per_byte": bits + 1 / p} for p in (1, 2, 4, 8)]}
    name = "-".join(filter(None, [model, solver, "1m", task, f"seed{seed}"]))
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
    result |= {"gradient": None, "size": "1m", "task": task, "seed": seed, "data": {"digest": "b2023cac2b1df6e6"}}
    result |= {"parameters": {"total": 1_000_448, "non_embedding": 934_912}, "training": training}
    result |= {"evaluation": {"test": test, "extrapolation": longer}, "measurement": machine | {"contexts": rows}}
    checks = [{"name": "causality", "passed": passed}, {"name": "oracle", "passed": None}]
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
    (table,) = comparison(tmp_path)
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


def test_unfinished_folders_are_listed_and_others_ignored(tmp_path):
    (write_run(tmp_path, "ltc") / "result.json").unlink()
    (tmp_path / "notes").mkdir()
    known = records.load([tmp_path])
    assert [path.name[:3] for path in known.unfinished] == ["ltc"]
    assert known.runs == []


def test_a_run_found_twice_counts_once(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    copied = next((tmp_path / "a").iterdir()).rename(tmp_path / "b" / "copy")
    write_run(tmp_path / "a")
    known = records.load([tmp_path / "a", tmp_path / "b"])
    assert len(known.runs) == 1
    assert known.repeated == [copied]


@pytest.mark.parametrize(
    "content", ["", '{"schema_version": 2, "ke', "[]", '{"schema_version": 1}', "\x00", '{"schema_version": 2}']
)
def test_a_corrupt_record_is_named_with_its_remedy(folder, capsys, content):
    path = write_run(folder, "gru") / "result.json"
    path.write_text(content)
    with pytest.raises(RecordError, match="Remedy"):
        records.load([folder])
    assert main([str(folder), "--output", str(folder.parent / "out")]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_missing_part_or_folder_is_named(folder):
    path = write_run(folder, "gru") / "config.json"
    path.unlink()
    with pytest.raises(RecordError, match=r"config\.json is missing"):
        records.load([folder])
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
    assert curves == {m: {c: state_bytes(m, c) for c in CONTEXTS} for m in ("ltc", "mamba", "transformer")}
    table = memory.table(frame.contexts(runs, labels), "1m")
    assert table.rows[0] == ["transformer", "4.19 MB", "134 MB", "537 MB"]


def test_variants_that_hold_different_states_have_a_line_each():
    rows = [("ltc", "ltc a", 1, 10), ("ltc", "ltc b", 1, 20), ("ltc", "ltc c", 1, 10), ("ltc", "ltc c", 2, 10)]
    table = pd.DataFrame(rows, columns=["model", "label", "context", "state_bytes"]).assign(size="1m")
    assert memory.curves(table, "1m") == {"ltc a": {1: 10, 2: 10}, "ltc b": {1: 20}}
    assert memory.table(table, "4m") is None


def test_labels_are_spread_apart_and_keep_their_order():
    assert figures.spread_apart([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    assert figures.spread_apart([0.5, 0.5], 0.1) == pytest.approx([0.55, 0.45])
    moved = figures.spread_apart([0.50, 0.52, 0.53, 0.9], 0.05)
    assert moved == pytest.approx([0.51666667 - 0.05, 0.51666667, 0.51666667 + 0.05, 0.9])


def test_what_coincides_is_one_line_under_all_its_names():
    curves = {"gru": {1: 5, 2: 5}, "lstm": {1: 9}, "ltc": {1: 5, 2: 5}}
    assert figures.merged(curves) == {"gru, ltc": {1: 5, 2: 5}, "lstm": {1: 9}}


def test_quality_curves_are_means_over_seeds(folder):
    runs = records.load([folder]).runs
    metric, curves = quality.curves(runs, frame.runs(runs)["label"], "loss_by_position")
    assert metric == "bits_per_byte"
    assert set(curves) == {"mamba", "ltc, rk4", "ltc, euler", "transformer"}
    assert curves["mamba"] == {p: pytest.approx(6.4 / 3 + 1 / p) for p in (1, 2, 4, 8)}
    assert quality.curves(runs, frame.runs(runs)["label"], "extrapolation")[1]["transformer"] == {512: 1.9, 2048: 1.9}


def test_ticks_leave_room_for_each_other():
    assert figures.apart([0, 1, 2, 3, 4, 512, 600]) == [1, 2, 4, 600]
    assert [figures.short_count(n) for n in (512, 1024, 1500, 131072)] == ["512", "1k", "1,500", "128k"]


def test_the_figure_has_the_curves_and_the_same_bytes_again(folder, tmp_path):
    curves = {"transformer": {1024: 1000, 32768: 32000}, "ltc": {1024: 2048, 32768: 2048}}
    figure = figures.memory(curves, "title")
    lines = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [[1000, 32000], [2048, 2048]]
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    first = [path.read_bytes() for path in figures.save(figure, tmp_path, "one")]
    again = [path.read_bytes() for path in figures.save(figures.memory(curves, "title"), tmp_path, "two")]
    assert first == again
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")


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
    assert frame._differing_keys([frame.flatten(one), frame.flatten(other)]) == ["gradient.name"]


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
    assert written == {"runs.csv", *(f"{stem}.{suffix}" for stem in drawn for suffix in ("png", "pdf"))} | {
        f"{stem}.{suffix}" for stem in ("sotu-1m", "memory-1m") for suffix in ("md", "tex", "csv")
    }
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 7
