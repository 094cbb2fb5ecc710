"""What a text costs without a model: exact in small cases, of the whole splits, and never a model among models."""

import json
import lzma
import math

import numpy as np
import pandas as pd
import pytest
import yaml

import run
from analysis import figures, references, report, tables
from analysis import records as recorded
from analysis.__main__ import main as analyse
from bench import __main__ as command
from bench import references as bench
from harness.config.errors import ConfigError, RecordError
from harness.tasks.parity import Parity
from harness.tasks.text import TextTask
from test_analysis import cells, write_run

CONFIG = yaml.safe_load((run.ROOT / "conf/bench/references.yaml").read_text())
CONFIG |= {"ppmd": CONFIG["ppmd"] | {"orders": [2, 4], "memory_bytes": 1 << 20}}
SOTU = "b2023cac2b1df6e6"
"""The digest that test_analysis.write_run gives the data of every record."""


def words(seed: int, count: int) -> bytes:
    """A text whose words recur."""
    generator = np.random.default_rng(seed)
    known = [bytes(generator.integers(97, 123, 5, np.uint8)) for _ in range(50)]
    return b" ".join(known[i] for i in generator.integers(0, 50, count))


def stream(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


class Small(TextTask):
    def __init__(self, leak: bytes = b""):
        super().__init__("small")
        self.leak = leak

    def load(self):
        return {"train": words(0, 2000) + self.leak, "validation": words(1, 99), "test": words(2, 300)}


def bits(train: bytes, test: bytes) -> dict[str, float]:
    """What each line spends on the test split."""
    return {row["name"]: row["bits"] for row in bench.lines(stream(train), stream(test), CONFIG)}


def test_a_compressor_pays_for_what_follows_the_train_split():
    train, test = words(0, 2000), words(2, 300)
    pyppmd = pytest.importorskip("pyppmd")
    given = {"max_order": 4, "mem_size": 1 << 20, "variant": CONFIG["ppmd"]["variant"]}
    sizes = [len(pyppmd.compress(data, **given)) for data in (train, train + test)]
    assert bits(train, test)["PPMd order 4"] == 8 * (sizes[1] - sizes[0])
    extreme = lzma.PRESET_EXTREME | 9
    sizes = [len(lzma.compress(data, preset=extreme)) for data in (train, train + test)]
    assert bits(train, test)["xz -9e"] == 8 * (sizes[1] - sizes[0])


def test_an_ngram_is_interpolated_as_written():
    """ "abab" then "ac": p_0(a) = (2 + 2/256) / (4 + 2), and of b's and a's followers there is one each."""
    p_0 = {byte: (count + 2 / 256) / 6 for byte, count in (("a", 2), ("c", 0))}
    assert bench.ngram_bits(stream(b"abab"), stream(b"ac"), 0) == pytest.approx(-math.log2(p_0["a"] * p_0["c"]))
    p_1 = [(1 + 1 * p_0["a"]) / (1 + 1), (0 + 1 * p_0["c"]) / (2 + 1)]  # a after b (ba once), c after a (ab twice)
    assert bench.ngram_bits(stream(b"abab"), stream(b"ac"), 1) == pytest.approx(-sum(map(math.log2, p_1)))


@pytest.mark.parametrize("longest", [0, 1, 3, bench.LONGEST])
def test_an_ngram_is_a_distribution_over_bytes(longest):
    """What all bytes that can follow the train split would cost sums to one."""
    train = words(0, 40)
    p = [2 ** -bench.ngram_bits(stream(train), stream(bytes([byte])), longest) for byte in range(256)]
    assert sum(p) == pytest.approx(1)


def test_an_ngram_of_many_contexts_is_that_of_a_dictionary():
    train, test = words(3, 80), words(4, 20)
    both, total = train[-3:] + test, 0.0
    for place in range(3, len(both)):
        p = 1 / 256
        for order in range(4):
            context = both[place - order : place]
            follow = [train[i + order] for i in range(len(train) - order) if train[i : i + order] == context]
            if follow:
                kinds = len(set(follow))
                p = (follow.count(both[place]) + kinds * p) / (len(follow) + kinds)
        total -= math.log2(p)
    assert bench.ngram_bits(stream(train), stream(test), 3) == pytest.approx(total)


def test_test_bytes_that_leak_into_the_train_split_show(tmp_path):
    pytest.importorskip("pyppmd")
    honest = bench.run(Small(), CONFIG, None, False, lambda line: None)
    leaking = bench.run(Small(leak=words(2, 300)), CONFIG, None, False, lambda line: None)
    for clean, leaked in zip(honest["rows"], leaking["rows"], strict=True):
        if clean["name"] != "byte frequencies":
            assert leaked["bits"] < 0.7 * clean["bits"], clean["name"]
    record = honest | {"rows": leaking["rows"], "train_bytes": leaking["train_bytes"]}
    (tmp_path / "small.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="other bytes than the train and the test split"):
        references.read(tmp_path)


def test_a_record_is_kept_and_repeated_only_for_other_facts(tmp_path, monkeypatch):
    pytest.importorskip("pyppmd")
    said = []
    made = bench.run(Small(), CONFIG, tmp_path, False, said.append)
    (path,) = tmp_path.iterdir()
    assert path.name == f"small-{Small().digest[:12]}.json"
    assert json.loads(path.read_text()) == made
    assert (made["train_bytes"], made["test_bytes"]) == (Small().tokens("train"), Small().tokens("test"))
    assert made["packages"].keys() == {"python", "numpy", "pyppmd"}
    assert made["data"]["digest"] == Small().digest
    assert len(said) == len(made["rows"]) == 5
    assert bench.run(Small(), CONFIG, tmp_path, False, said.append) == made
    assert "already" in said[-1]
    bench.run(Small(), CONFIG | {"xz": {"preset": 1, "extreme": False}}, tmp_path, False, said.append)
    assert any(line.startswith("xz -1 ") for line in said)
    monkeypatch.setattr(bench, "lines", lambda *given: iter([{"name": "x", "method": "x", "bits": 1.0}]))
    assert bench.run(Small(), CONFIG, tmp_path, True, said.append)["rows"][0]["name"] == "x"
    path.write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        bench.run(Small(), CONFIG, tmp_path, False, said.append)


def test_what_cannot_be_compressed_is_told(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="task=parity is no text"):
        bench.run(Parity(), CONFIG, None, False, print)
    monkeypatch.setattr(bench, "absent", lambda modules: "pyppmd not installed")
    with pytest.raises(ConfigError, match=r"pip install -c constraints\.txt pyppmd"):
        bench.run(Small(), CONFIG, None, False, print)
    with pytest.raises(SystemExit, match="2"):
        command.arguments(["kernels", "task=sotu"])


def test_the_command_measures_the_text_that_it_is_given(tmp_path, capsys):
    pytest.importorskip("pyppmd")
    (tmp_path / "book.txt").write_bytes(words(0, 3000))
    given = ["references", "task=text", f"task.path={tmp_path / 'book.txt'}"]
    command.main([*given, "--quick", "--out", str(tmp_path / "quick")])
    assert not (tmp_path / "quick").exists()  # it is of the beginning alone
    command.main([*given, "--out", str(tmp_path / "kept")])
    assert "| PPMd order 12  " in capsys.readouterr().out
    (line, *_) = next(iter(references.read(tmp_path / "kept" / "references").values()))
    assert line.label == "PPMd order 6 (no model)"


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 2}'])
def test_a_damaged_record_is_told(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RecordError, match=r"python -m bench references task=NAME --force"):
        references.read(tmp_path)
    assert references.read(tmp_path / "nowhere") == {}


def keep(measured, task="sotu", digest=SOTU, **spent):
    """A record of lines in the bench's folder. spent: bits per byte by name."""
    names = {"order_12": ("PPMd order 12", "ppmd"), "order_6": ("PPMd order 6", "ppmd"), "xz": ("xz -9e", "xz")}
    names["gram"] = ("6-gram", "ngram")
    rows = [{"name": names[name][0], "method": names[name][1], "bits": 100 * each} for name, each in spent.items()]
    record = {"schema_version": 1, "task": task, "train_bytes": 1000, "test_bytes": 100, "rows": rows}
    record |= {"data": {"digest": digest, "train_tokens": 1000, "test_tokens": 100}}
    (measured / "references").mkdir(parents=True, exist_ok=True)
    (measured / "references" / f"{task}-{digest}.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "runs", "mamba", 0, 1.3)
    write_run(tmp_path / "runs", "ltc", 0, 1.9)
    write_run(tmp_path / "runs", "ltc", 1, status="diverged")
    return tmp_path / "runs"


def test_lines_stand_below_every_model_and_are_none(folder):
    measured = folder / "bench"
    keep(measured, order_6=1.514, order_12=1.375, xz=1.758, gram=2.1)
    known = recorded.load([folder])
    plain, made = report.build(known, folder / "nothing"), report.build(known, measured)
    (table,) = made.comparison
    assert [row["model"] for row in cells(table)] == [
        *("mamba", "ltc", "ltc", "PPMd order 12 (no model)", "PPMd order 6 (no model)", "xz -9e (no model)"),
        "6-gram (counts alone)",
    ]
    line = cells(table)[3]
    assert line.pop("bits per byte (test)") == "1.375"
    assert {value for name, value in line.items() if name != "model"} == {"–"}
    assert references.NOTE in table.notes
    assert table.rows[:3] == plain.comparison[0].rows
    assert table.runs == [*plain.comparison[0].runs, [], [], [], []]
    assert made.runs.equals(plain.runs)
    shown = [row["model"] for row in cells(made.headline)]
    assert shown[3:] == ["PPMd order 12 (no model)", "xz -9e (no model)", "6-gram (counts alone)"]
    exact = pd.DataFrame(table.data)
    assert exact.to_csv(index=False).startswith(plain.comparison[0].data.to_csv(index=False))
    assert list(exact["status"][3:]) == [references.STATUS] * 4
    assert exact["runs"][3:].isna().all()


def test_the_headline_has_the_best_rows_and_the_models_that_the_question_names(tmp_path):
    for place in range(report.ROOM + 2):
        write_run(tmp_path, f"model{place:02}", 0, 1.0 + place / 100)
    write_run(tmp_path, "transformer", 0, 3.0)
    write_run(tmp_path, "mamba", 0, 1.005)
    made = report.build(recorded.load([tmp_path]), tmp_path / "bench")
    shown = [row["model"] for row in cells(made.headline)]
    assert shown == ["model00", "mamba", *(f"model{place:02}" for place in range(1, report.ROOM - 1)), "transformer"]
    assert made.headline.notes[-1] == "Rows left out: 3 (docs/baselines.md)."
    assert len(made.headline.runs) == len(made.headline.data) == report.ROOM + 1
    assert len(made.comparison[0].rows) == report.ROOM + 4


@pytest.mark.parametrize("other", [{"task": "stdlib"}, {"digest": "another"}])
def test_lines_of_another_text_are_not_shown(folder, other):
    keep(folder / "bench", order_12=1.375, **other)
    made = report.build(recorded.load([folder]), folder / "bench")
    assert "no model" not in str(made.comparison)
    drawn = [plot.draw.keywords for plot in made.figures.values()]
    assert [given["levels"] for given in drawn if "levels" in given] == [{}, {}]


def test_the_headline_is_the_table_of_the_most_models_and_not_of_the_most_lines(folder):
    for size in ("250k", "10m"):
        write_run(folder, "gru", 0, 1.8, size=size)
    keep(folder / "bench", order_6=1.514, order_12=1.375, xz=1.758)
    assert report.build(recorded.load([folder]), folder / "bench").headline.name == "sotu-1m"


def test_the_best_line_of_each_method_crosses_the_figures_of_loss(folder):
    keep(folder / "bench", order_6=1.514, order_12=1.375, xz=1.758)
    made = report.build(recorded.load([folder]), folder / "bench")
    plot = made.figures["loss-by-position-sotu-1m"]
    assert plot.draw.keywords["levels"] == {"PPMd order 12 (no model)": 1.375, "xz -9e (no model)": 1.758}
    figure = plot.draw(title=plot.title)
    (axes,) = figure.axes
    assert axes.get_ylim()[0] < 1.375
    legend = [text.get_text().replace("\n", "") for text in figure.legends[0].get_texts()]
    assert legend[-2:] == ["xz -9e (no model)  1.758", "PPMd order 12 (no model)  1.375"]
    assert not any("no model" in text for text in legend[:-2])
    assert sorted(line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1) == [1.375, 1.758]
    figures.plt.close(figure)


def test_the_shared_lines_are_of_the_shared_runs(monkeypatch, capsys):
    """Published lines are recorded for the data of the published runs."""
    known = references.read(run.ROOT / "results" / "bench" / "references")
    assert {task for task, _ in known} >= {"sotu", "stdlib"}
    runs = recorded.load([run.ROOT / "results"]).runs
    assert {(r.result["task"], r.result["data"]["digest"]) for r in runs if r.result["task"] == "sotu"} <= set(known)
    monkeypatch.chdir(run.ROOT)
    assert analyse(["--pages", "docs/baselines.md", "--check"]) < 2
    assert "| PPMd order 12 (no model)" in (run.ROOT / "docs/baselines.md").read_text()


def test_the_comparison_and_the_findings_show_the_lines_of_their_text(folder):
    plain = report.build(recorded.load([folder]), folder / "bench")
    keep(folder / "bench", order_6=1.514, order_12=1.375, xz=1.758, gram=2.1)
    made = report.build(recorded.load([folder]), folder / "bench")
    (before,), (table,) = plain.verdict.tables["quality"], made.verdict.tables["quality"]
    assert table.rows[: len(before.rows)] == before.rows
    assert [row[2] for row in table.rows[len(before.rows) :]] == ["1.3750", "1.5140", "1.7580", "2.1000"]
    assert list(table.data["mean"][len(before.rows) :]) == [1.375, 1.514, 1.758, 2.1]
    (said,) = [finding.sentence for finding in made.findings if finding.name == "compressors"]
    assert "PPMd order 12 1.375" in said
    assert "xz -9e 1.758" in said
    assert "counts of the train split alone, 6-gram 2.100" in said
    (said,) = [finding.sentence for finding in plain.findings if finding.name == "compressors"]
    assert "1.375" not in said


def test_ranking_and_frame_do_not_know_the_lines(folder):
    keep(folder / "bench", order_12=0.1)
    known = recorded.load([folder])
    made = report.build(known, folder / "bench")
    assert made.comparison[0].rows[0][0] == "mamba"
    assert "no model" not in made.runs.to_csv()
    assert "no model" not in str(tables.comparisons(made.runs))
