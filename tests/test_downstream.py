"""Scores of published tasks in the analysis' tables, compared over the same documents."""

import json

import numpy as np
import pytest
from scipy import stats

from analysis import downstream, frame, records, report
from analysis.statistics import holm, resampled, resampled_means
from harness.records import scores
from test_analysis import write_run

COUNT = 400


def score(folder, values, task="animals", aggregation="mean", value=None, documents=None):
    """Adds the scores of a task to the run in `folder`, as the command leaves them."""
    result = json.loads((folder / "result.json").read_text())
    documents = [f"{n:012}" for n in range(len(values))] if documents is None else documents
    made = {"value": float(np.mean(values)) if value is None else value, "higher_is_better": aggregation == "mean"}
    entry = {"asked": task, "settings": {"shots": 0}, "version": 1, "lm_eval": "0.4.13", "documents": documents}
    entry["scores"] = {"acc,none": made | {"aggregation": aggregation, "values": values}}
    scores.add(folder, result, {task: entry})


def built(folder):
    known = records.load([folder])
    runs = frame.runs(known.runs)
    return known, downstream.build(known.runs, runs)


def test_the_paired_bootstrap_has_its_known_answer():
    """Against the normal approximation of the mean of paired differences, and of a ratio with weights."""
    rng = np.random.default_rng(1)
    hard = rng.normal(size=COUNT)
    totals = np.column_stack([hard, hard + 0.05 + 0.3 * rng.normal(size=COUNT)])
    drawn = resampled_means(totals, np.ones(COUNT))
    difference = totals[:, 1] - totals[:, 0]
    found = resampled(float(difference.mean()), drawn[:, 1] - drawn[:, 0])
    error = difference.std() / COUNT**0.5
    assert (found.low, found.high) == pytest.approx(
        difference.mean() + np.array([-1.96, 1.96]) * error, abs=0.1 * error
    )
    assert found.p == pytest.approx(2 * stats.norm.sf(difference.mean() / error), abs=0.005)
    unpaired = resampled(0.05, drawn[:, 1] - drawn[::-1, 0])  # planted: other documents for each model
    assert unpaired.high - unpaired.low > 3 * (found.high - found.low)
    weights = rng.integers(1, 9, size=COUNT).astype(float)
    assert resampled_means(np.outer(weights, [2.0, -3.0]), weights) == pytest.approx(np.tile([2.0, -3.0], (9999, 1)))


def test_a_difference_of_nothing_is_not_significant():
    found = resampled(0.0, np.zeros(999))
    assert (found.low, found.high, found.p) == (0.0, 0.0, 1.0)


def test_models_are_compared_on_the_same_documents(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.integers(2, size=COUNT)
    better = np.where(rng.random(COUNT) < 0.2, 1, right)
    known = {"transformer": right, "ltc": better, "mamba": right}
    for model, values in known.items():
        score(write_run(tmp_path, model), values.tolist())
    score(write_run(tmp_path, "ltc", seed=1), better.tolist())
    score(write_run(tmp_path, "gru"), [1, 0], documents=["other", "documents"])
    write_run(tmp_path, "rwkv")  # not scored
    loaded, tables = built(tmp_path)
    assert not loaded.damaged
    table = max(tables, key=lambda table: len(table.rows))
    assert [row[0] for row in table.rows] == ["ltc", "mamba", "transformer"]
    exact = table.data.set_index("model")
    assert exact["score"].to_dict() == pytest.approx({model: values.mean() for model, values in known.items()})
    ltc, mamba = exact.loc["ltc"], exact.loc["mamba"]
    assert ltc["seeds"] == 2
    assert ltc["less_transformer_value"] == pytest.approx(better.mean() - right.mean())
    assert ltc["less_transformer_low"] > 0
    ps = [
        exact.loc[one, f"less_{other}_p"] for other in ("transformer", "mamba") for one in exact.index if one != other
    ]
    told = [
        exact.loc[one, f"less_{other}_p_holm"]
        for other in ("transformer", "mamba")
        for one in exact.index
        if one != other
    ]
    assert told == holm(ps)
    assert dict(zip(table.header, table.rows[0], strict=True))["than mamba"] == "better"
    assert mamba["less_transformer_p"] == 1.0
    assert table.rows[1][6] == "not significant"
    (alone,) = (table for table in tables if len(table.rows) == 1)
    assert alone.data["less_transformer_value"].isna().all()
    assert alone.name != table.name
    assert "0 examples" in table.notes[0]


def test_a_perplexity_is_taken_again_over_the_documents_drawn(tmp_path):
    nats = {"transformer": -np.linspace(1, 2, 50), "ltc": -np.linspace(1, 2, 50) - 0.5}
    for model, values in nats.items():
        score(write_run(tmp_path, model), values.tolist(), "words", "perplexity", float(np.exp(-values.mean())))
    _, (table,) = built(tmp_path)
    assert [row[0] for row in table.rows] == ["transformer", "ltc"]  # lower is better
    assert table.data["score"].tolist() == pytest.approx([np.exp(1.5), np.exp(2.0)])
    assert table.rows[1][6] == "worse"


def test_damaged_scores_are_named_and_the_rest_is_reported(tmp_path):
    sound, spoilt = write_run(tmp_path, "ltc"), write_run(tmp_path, "gru")
    score(sound, [1, 0, 1])
    score(spoilt, [1, 0], documents=["one"])
    known = records.load([tmp_path])
    assert [record.path for record in known.runs] == [sound]
    assert "each document has a value" in str(known.damaged[0])
    made = report.build(known, tmp_path / "bench")
    assert [table.data["model"].tolist() for table in made.downstream] == [["ltc"]]
