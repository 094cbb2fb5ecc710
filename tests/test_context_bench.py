"""Bits per byte against the context: the bench's subject `context`, its table and its figure."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import harness
import recorded_run
import run
from analysis import bench as tables
from analysis import context as analysis
from analysis import records, report
from bench import __main__ as command
from bench import context
from bench.store import Store
from harness.config.errors import ConfigError
from harness.model.context import FULL, ContextPolicy
from harness.tasks.hub import HubText
from harness.tasks.local import LocalText
from harness.tasks.sotu import Sotu
from harness.tasks.stdlib import StandardLibrary

CONFIG = yaml.safe_load((run.ROOT / "conf" / "bench" / "context.yaml").read_text())
QUICK = CONFIG | CONFIG["quick"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{model: a run of two updates}."""
    homes = {name: tmp_path_factory.mktemp(name) for name in ("gru", "transformer")}
    made = {name: recorded_run.make(home, f"model={name}", "trainer.length=16") for name, home in homes.items()}
    return {name: harness.load(path) for name, path in made.items()}


class Copying:
    """Says that the byte to come is the one `back` bytes before it, if it has read that, else any; its state grows."""

    constant_state = False

    def __init__(self, back: int):
        self.back = back

    def __call__(self, inputs, state=None):
        seen = inputs if state is None else torch.cat([state, inputs], dim=1)
        logits = torch.zeros(*seen.shape, 256)
        if seen.shape[1] >= self.back:
            logits[:, self.back - 1 :].scatter_(2, seen[:, : seen.shape[1] - self.back + 1, None], 30.0)
        return logits[:, -inputs.shape[1] :], seen

    def truncate_state(self, state, keep):
        return state[:, state.shape[1] - keep :]


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def planted(documents: list[np.ndarray], config: dict, monkeypatch) -> context.Places:
    """The places of a run whose corpus has these documents."""
    monkeypatch.setattr(context, "documents", lambda text: documents)
    monkeypatch.setattr(context, "text_of", lambda trained: None)
    return context.places(SimpleNamespace(config={"task": {"name": "text"}}, reads_text=True, path=Path("a")), config)


def test_every_length_scores_the_same_bytes_behind_no_more_than_its_context():
    document = np.arange(400)
    at = context.Places([document], [np.array([128, 144, 200])])
    for length in (1, 8, 64, 128):
        windows, piece = at.windows(0, length, 16), context.piece_of(length, 16)
        assert piece <= max(1, length / context.SLACK)
        scored = windows[:, -piece:].flatten().tolist()
        assert scored == [*range(128, 144), *range(144, 160), *range(200, 216)]
        assert windows.shape[1] == length + 1
        assert (windows.diff(dim=1) == 1).all()  # what stands before them in the document


def test_places_stay_within_documents_that_are_long_enough_and_are_all_used(monkeypatch):
    config = {"lengths": [8, 32], "scored": 8, "places": 5}
    documents = [random_bytes(39), random_bytes(40), np.full(1000, 7, np.uint8)]
    at = planted(documents, config, monkeypatch)
    assert [len(document) for document in at.documents] == [40, 1000]
    assert at.starts[0].tolist() == [32]
    assert sum(map(len, at.starts)) == 5
    assert at.starts[1].max() + 8 == 1000
    assert min(np.diff(at.starts[1])) >= 8  # no byte is scored twice
    assert (at.windows(1, 32, 8) == 7).all()  # no context crosses a document
    few = planted(documents[:2], config, monkeypatch)
    assert [starts.tolist() for starts in few.starts] == [[32]]


def test_what_remembers_n_bytes_back_has_a_curve_that_falls_at_n(monkeypatch):
    config = {"lengths": [8, 16, 32, 64], "scored": 16, "places": 6, "batch": 100}
    documents = [np.resize(random_bytes(20, seed), 500) for seed in (1, 2)]  # with a period of 20
    at = planted(documents, config, monkeypatch)

    def bits(policy):
        rows = [context._measured(Copying(20), at, length, policy, config) for length in config["lengths"]]
        assert {(row["bytes"], row["documents"]) for row in rows} == {(96, 2)}
        return [row["bits"] for row in rows]

    assert bits(FULL) == pytest.approx([8, 8, 0, 0], abs=1e-6)
    assert bits(ContextPolicy(20)) == pytest.approx([8, 8, 7, 7], abs=1e-6)  # of eight bytes one sees twenty
    assert bits(ContextPolicy(40)) == pytest.approx([8, 8, 0, 0], abs=1e-6)


def test_a_state_is_cut_as_the_policy_says():
    windows = torch.from_numpy(np.resize(random_bytes(12), 3 * 50).reshape(3, 50).astype(np.int64))
    policy, found = ContextPolicy(16), []
    for back in (9, 10, 12, 16):
        nats = context.losses(Copying(back), windows, 20, policy)
        seen = np.array([t - max(0, t // 8 * 8 - 8) + 1 for t in range(29, 49)])  # the policy's own words
        uniform = torch.isclose(nats[0], torch.tensor(math.log(256), dtype=torch.float64))
        assert uniform.tolist() == (seen < back).tolist()
        found.append(int(uniform.sum()))
    assert found[0] < found[1] < found[2] < found[3]


def test_a_window_read_in_chunks_is_the_window_read_at_once(trained):
    model = trained["transformer"].model
    windows = torch.from_numpy(random_bytes(2 * 60).reshape(2, 60).astype(np.int64))
    whole, parts = (context.losses(model, windows, 20, policy) for policy in (FULL, ContextPolicy(80)))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits = model(windows[:, :-1])[0][:, -20:]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, -20:], reduction="none")
    torch.testing.assert_close(whole, expected.double(), rtol=1e-5, atol=1e-5)


def test_documents_of_sotu_are_those_that_its_test_split_is_made_of():
    text = Sotu()
    assert b"\n\n".join(document.tobytes() for document in context.documents(text)) == text.streams["test"].tobytes()
    assert len(context.documents(text)) == 237 // 20


def test_documents_of_a_folder_are_its_files_and_of_one_file_its_part(tmp_path):
    for number in range(6):
        words = random_bytes(900, number) % 26 + 97
        (tmp_path / f"{number}.txt").write_bytes(words.tobytes()[:400] + b"\n\n" + words.tobytes()[400:])
    (tmp_path / "0.md").write_text("something else " * 50)
    found = context.documents(LocalText(str(tmp_path), holdout_every=3))
    assert [document.tobytes() for document in found] == [
        (tmp_path / f"{number}.txt").read_bytes() for number in (2, 5)
    ]
    single = LocalText(str(tmp_path / "0.md"))
    assert [document.tobytes() for document in context.documents(single)] == [single.streams["test"].tobytes()]


@pytest.mark.slow
def test_documents_of_the_library_are_its_files():
    text = StandardLibrary()
    found = context.documents(text)
    assert sum(map(len, found)) > 0.99 * (len(text.streams["test"]) - 2 * len(found))
    assert max(map(len, found)) > max(CONFIG["lengths"]) + CONFIG["scored"]


def test_a_corpus_that_tells_no_documents_has_none():
    text = HubText("hub", "nowhere")
    text.__dict__["streams"] = {"test": random_bytes(100)}
    assert context.documents(text) == []


def test_a_text_of_short_documents_and_what_is_no_text_are_refused(trained, monkeypatch):
    longest = re.escape(f"{max(CONFIG['lengths']) + CONFIG['scored']:,} at least: the longest of `lengths`")
    with pytest.raises(ConfigError, match=rf"test split of task=text has \d+ bytes .+{longest}.+lower `lengths`"):
        context.places(trained["gru"], CONFIG)
    other = replace(trained["gru"], reads_text=False, config=trained["gru"].config | {"task": {"name": "parity"}})
    with pytest.raises(ConfigError, match=r"task=parity, which is no text.+task=sotu.+name another run"):
        context.places(other, CONFIG)
    store, said = Store(None), []
    monkeypatch.setattr(context.harness, "load", lambda path: {"a": trained["gru"], "b": other}[path.name])
    with pytest.raises(ConfigError, match="parity"):
        context.run(QUICK, store, [Path("a"), Path("b")], said.append)
    assert (store.rows, said) == ([], [])  # refused before anything is measured


def test_runs_are_measured_once_and_the_page_shows_them(trained, tmp_path, capsys):
    folders = [str(one.path) for one in trained.values()]
    command.main(["context", *folders, "--quick", "--out", str(tmp_path)])
    content = tables.read(tmp_path / "context.json")
    rows = {(row["model"], row["window"], row["length"]): row for row in content["rows"]}
    windows = [("gru", None), ("transformer", None), ("transformer", 16)]
    assert set(rows) == {(*which, length) for which in windows for length in QUICK["lengths"]}
    row = rows["gru", None, 32]
    assert row["contestant"] == trained["gru"].path.name
    assert (row["bytes"], row["documents"], row["task"], row["seed"]) == (16, 1, "text", 0)
    assert row["params"] == sum(p.numel() for p in trained["gru"].model.parameters())
    stream = context.text_of(trained["gru"]).streams["test"].astype(np.int64)
    firsts = [32, 32 + 8 * ((len(stream) - 32) // 8 - 1)]
    nats = [
        context.losses(trained["gru"].model, torch.from_numpy(stream[None, at - 25 : at + 8]), 8, FULL) for at in firsts
    ]
    assert row["bits"] == pytest.approx(torch.cat(nats).mean().item() / math.log(2))
    assert rows["transformer", None, 8]["bits"] == pytest.approx(rows["transformer", 16, 8]["bits"])
    assert rows["transformer", None, 32]["bits"] != pytest.approx(rows["transformer", 16, 32]["bits"], rel=1e-6)
    shown = capsys.readouterr().out
    assert "| transformer, cache cut to 16 " in shown
    assert f"| {row['bits']:.3f} " in shown
    one = content["rows"].pop()  # a length that was not reached
    (tmp_path / "context.json").write_text(json.dumps(content))
    command.main(["context", *folders, "--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().out.partition("**")[0].strip().splitlines()
    assert len(said) == 1
    assert f"'bits': {one['bits']}" in said[0]


def row(seed: int, length: int, bits: float | None, **more) -> dict:
    """A row of a model `ltc`, trained at 512."""
    made = {
        "contestant": f"ltc-{seed}",
        "model": "ltc",
        "label": "ltc, rk4",
        "variant": "v",
        "params": 250_000,
        "seed": seed,
    }
    made |= {"size": "250k", "task": "sotu", "corpus": "c", "longest": 4096, "scored": 8, "places": 2, "window": None}
    made |= {"train_length": 512, "learning_rate": 1e-3, "tokens": 1000, "length": length, "bits": bits, "bytes": 16}
    return made | {"documents": 2, "by_document": [bits, bits]} | more


def stored(*rows: dict) -> dict:
    store = Store(None)
    store.add(list(rows))
    return store.content


def test_the_table_shows_seeds_together_and_what_lies_beyond_training():
    seeds = [
        row(seed, length, bits) for seed in (0, 1) for length, bits in ((64, 2.0), (512, 1.8), (4096, 1.6 + seed / 10))
    ]
    seeds[2]["by_document"] = [1.4, 1.9]
    cut = [
        row(0, length, 2.2, contestant="t", model="transformer", label="transformer", window=512)
        for length in (64, 512)
    ]
    shown = re.sub(" +", " ", tables.context(stored(*seeds, *cut)))
    assert "**Bits per byte by context, sotu, 250k parameters**" in shown
    assert "| runs | parameters | trained at | 64 | 512 | 4,096 | beyond training | better in |" in shown
    row_of_seeds = "| ltc, rk4 | 2 | 250,000 | 512 | 2.000 | 1.800 | 1.650 | -0.150 (-0.200 to -0.100) | 3 of 4 |"
    assert row_of_seeds in shown
    assert "| transformer, cache cut to 512 | 1 | 250,000 | 512 | 2.200 | 2.200 | | | |" in shown


def test_lines_that_are_called_alike_say_in_what_they_differ():
    runs = [row(0, 64, 2.0), row(0, 64, 2.1, contestant="b", variant="w", learning_rate=2e-3)]
    runs += [row(0, 64, 2.2, contestant="c", variant="uvwxyz-and-more", learning_rate=2e-3)]
    ((_, lines),) = analysis.tables(stored(*runs))
    assert [line[""] for line in lines] == [
        "ltc, rk4 (learning rate 0.001, v)",
        "ltc, rk4 (learning rate 0.002, w)",
        "ltc, rk4 (learning rate 0.002, uvwxyz)",
    ]


def test_rows_of_other_bytes_or_another_budget_stand_in_another_table_and_figure():
    one = [row(0, length, 2.0) for length in (64, 512)]
    other = [row(0, length, 1.9, longest=8192) for length in (64, 512)]
    larger = [row(0, length, 1.5, contestant="d", size="1m") for length in (64, 512)]
    content = stored(*one, *other, *larger)
    assert [len(lines) for _, lines in analysis.tables(content)] == [1, 1, 1]
    assert list(analysis.plots(content)) == ["context-sotu-250k", "context-sotu-250k-2", "context-sotu-1m"]


def test_the_figure_has_a_line_a_model_over_the_logarithm_of_the_context(tmp_path):
    rows = [row(seed, length, 2 - length / 4096 + seed / 10) for seed in (0, 1) for length in (64, 512, 4096)]
    rows += [row(0, length, 1.9, contestant="m", model="mamba", label="mamba") for length in (64, 512)]
    rows += [row(0, 4096, None, contestant="m", model="mamba", label="mamba")]
    store = Store(tmp_path / "bench" / "context.json")
    store.add(rows)
    (tmp_path / "runs").mkdir()
    made = report.build(records.load([tmp_path / "runs"]), tmp_path / "bench")
    plot = made.figures["context-sotu-250k"]
    figure = plot.draw(title=plot.title)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {label: list(line.get_xdata()) for label, line in lines.items()} == {
        "ltc, rk4": [64, 512, 4096],
        "mamba": [64, 512],  # no number beyond
    }
    assert lines["ltc, rk4"].get_ydata()[0] == pytest.approx(2.05 - 64 / 4096)
    assert axes.get_xscale() == "log"
    assert len(axes.collections) == 1  # the band of what has two seeds
    assert axes.get_xlabel().startswith("context (bytes); trained at 512\n")
    page = report.sections(made, tmp_path / "reports", tmp_path / "page.md")
    assert "](reports/context-sotu-250k.png)" in page["figures"]
    assert "| ltc, rk4 " in page["context"]


def test_what_was_not_measured_says_so(tmp_path):
    assert tables.sections(tmp_path, "images")["context"].startswith("*Not measured yet: `python -m bench context ")
    assert tables.context(stored()).startswith("*Not measured yet: ")
    assert analysis.plots(tables.content(tmp_path, "context")) == {}
