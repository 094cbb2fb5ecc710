"""docs/comparison.md's tables and figures, from synthetic records and from the bench's files."""

import copy
import hashlib
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from analysis import (
    bench,
    cost,
    differences,
    field,
    figures,
    grids,
    liquid,
    literature,
    models,
    render,
    report,
    scaling,
    styles,
    usual,
    verdict,
)
from analysis import records as records_of
from analysis.__main__ import main
from analysis.entries import Entry
from analysis.literature import Claims
from analysis.statistics import Slope
from configs import MODELS, mostly_long, spec
from harness.config.errors import RecordError
from harness.model import sizing
from harness.model.backbone import Width
from harness.model.state import tensors
from test_analysis import ROOT, write_run

NOISE = (0.0, 0.03, -0.02, 0.01, -0.03)
"""What the order of the data does to every model alike, by seed."""
SIZES = {"125k": 125_000, "250k": 250_000, "500k": 500_000, "1m": 1_000_000}


def record(folder, model, seed, bits, trainer=None, parameters=None, **more):
    """A record as tests/test_analysis.py writes them, of other trainer keys or parameters, under a key of its own."""
    path = write_run(folder, model, seed, bits, **more)
    config, result = (json.loads((path / f"{name}.json").read_text()) for name in ("config", "result"))
    config["trainer"] |= trainer or {}
    if parameters:
        result["parameters"] = {"total": parameters, "non_embedding": parameters}
    result["key"] = hashlib.sha256(json.dumps([config, result]).encode()).hexdigest()[:12]
    for name, content in (("config", config), ("result", result)):
        (path / f"{name}.json").write_text(json.dumps(content))
    return path.rename(path.with_name(result["key"]))


def seeds(folder, model, bits, count=5, jitter=0.001, **more):
    """Runs whose figures share the seeds' noise, and differ by a little of their own."""
    rng = np.random.default_rng(int(hashlib.sha256(model.encode()).hexdigest()[:8], 16))
    for seed, own in enumerate(rng.normal(size=count)):
        record(folder, model, seed, float(bits + NOISE[seed] + jitter * own), **more)


def made(folder, measured=None):
    return report.build(records_of.load([folder]), measured or folder / "bench")


def rows(table):
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def quality(folder):
    (table,) = made(folder).verdict.tables["quality"]
    return table


def test_differences_are_paired_by_seed_and_named_by_one_rule(tmp_path):
    seeds(tmp_path, "transformer", 2.0)
    seeds(tmp_path, "mamba", 1.9)
    seeds(tmp_path, "ltc", 1.8)
    seeds(tmp_path, "gru", 2.0004)
    seeds(tmp_path, "lstm", 2.2)
    table = quality(tmp_path)
    assert list(rows(table)) == ["ltc", "mamba", "transformer", "gru", "lstm"]
    against = {model: row["than transformer"] for model, row in rows(table).items()}
    assert against == {
        "ltc": "better",
        "mamba": "better",
        "transformer": "the reference",
        "gru": "not significant",
        "lstm": "worse",
    }
    exact = table.data.set_index("model")
    assert exact.loc["ltc", "less_transformer_mean"] == pytest.approx(-0.2, abs=0.004)
    assert exact.loc["ltc", "less_transformer_low"] < -0.2 < exact.loc["ltc", "less_transformer_high"] + 0.004
    assert rows(table)["ltc"]["seeds"] == "5"
    ends = re.fullmatch(r"([\d.]+) to ([\d.]+)", rows(table)["ltc"]["95 % interval"])
    assert float(ends[1]) < exact.loc["ltc", "mean"] < float(ends[2])
    assert set(exact["interval"]) == {"BCa"}


def test_every_p_of_a_table_is_adjusted_by_holm_over_all_of_them(tmp_path):
    for model, bits in (("transformer", 2.0), ("mamba", 1.9), ("ltc", 1.8), ("gru", 2.0004)):
        seeds(tmp_path, model, bits)
    data = quality(tmp_path).data
    plain = [p for model in differences.REFERENCES for p in data[f"less_{model}_p"].dropna()]
    adjusted = [p for model in differences.REFERENCES for p in data[f"less_{model}_p_holm"].dropna()]
    assert len(plain) == len(adjusted) == 6
    assert min(adjusted) == pytest.approx(5 * min(plain))  # the references, each against the other, are one
    assert all(ours >= theirs for ours, theirs in zip(adjusted, plain, strict=True))


def test_the_noise_of_other_models_changes_no_test_of_a_pair(tmp_path):
    for model, bits in (("transformer", 2.0), ("mamba", 1.9)):
        seeds(tmp_path, model, bits, count=3, jitter=0.01)
    columns = [f"less_transformer_{key}" for key in ("mean", "low", "high", "p")]
    before = quality(tmp_path).data.set_index("model").loc["mamba", columns]
    for model, jitter in (("ltc", 0.0001), ("gru", 0.1)):
        seeds(tmp_path, model, 1.8, count=3, jitter=jitter)
    assert before.equals(quality(tmp_path).data.set_index("model").loc["mamba", columns])


def test_runs_of_other_seeds_are_no_pairs(tmp_path):
    for seed in range(3):
        record(tmp_path, "transformer", seed, 2.0 + NOISE[seed])
        record(tmp_path, "ltc", seed + 10, 1.5 + NOISE[seed])
    row = rows(quality(tmp_path))["ltc"]
    assert (row["less transformer"], row["p"], row["than transformer"]) == ("–", "–", "no seed in common")


def test_a_missing_seed_leaves_the_others_paired(tmp_path):
    seeds(tmp_path, "transformer", 2.0, count=5)
    seeds(tmp_path, "ltc", 1.8, count=4)
    table = quality(tmp_path)
    assert table.data.set_index("model").loc["ltc", "less_transformer_count"] == 4
    assert rows(table)["ltc"]["than transformer"] == "better"
    assert rows(table)["ltc"]["seeds"] == "4"


def test_a_run_repeated_under_one_seed_is_no_second_seed(tmp_path):
    seeds(tmp_path, "transformer", 2.0, count=2)
    for machine in ("CPU of tests", "Other CPU", "Third CPU"):
        for seed in range(2):
            record(tmp_path, "ltc", seed, 1.8 + NOISE[seed], device_name=machine)
    table = quality(tmp_path)
    row = rows(table)["ltc"]
    assert (row["seeds"], row["than transformer"], row["p"]) == ("2", "2 seeds", "–")
    assert table.data.set_index("model").loc["ltc", "less_transformer_count"] == 2


def test_a_diverged_run_is_a_row_and_not_a_smaller_sample(tmp_path):
    seeds(tmp_path, "transformer", 2.0)
    seeds(tmp_path, "ltc", 1.5, count=4)
    record(tmp_path, "ltc", 4, 1.5, status="diverged")
    for seed in range(3):
        record(tmp_path, "gru", seed, 2.0, status="diverged")
    table = quality(tmp_path)
    found = rows(table)
    assert found["ltc"]["than transformer"] == "1 of 5 runs diverged"
    assert found["ltc"]["p"] == "–"
    assert "(1 of 5 diverged)" in found["ltc"]["bits per byte (test)"]
    assert found["gru"]["bits per byte (test)"] == "3 of 3 diverged"
    assert list(found)[-1] == "gru"


def test_what_a_diverged_reference_leaves_is_not_tested(tmp_path):
    seeds(tmp_path, "transformer", 2.0, count=4)
    record(tmp_path, "transformer", 4, 2.0, status="diverged")
    seeds(tmp_path, "ltc", 1.5)
    assert rows(quality(tmp_path))["ltc"]["than transformer"] == "1 of 5 runs of transformer diverged"


def test_no_reference_is_not_measured_and_said(tmp_path):
    seeds(tmp_path, "ltc", 1.8, count=3)
    table = quality(tmp_path)
    assert rows(table)["ltc"]["than mamba"] == "not measured"
    assert "No recorded run of transformer, mamba, rwkv here." in table.notes


def test_another_budget_or_recipe_is_not_compared(tmp_path):
    seeds(tmp_path, "transformer", 2.0, count=3, trainer={"tokens": 1000, "beta2": 0.95})
    seeds(tmp_path, "ltc", 1.8, count=3, trainer={"tokens": 1000, "beta2": 0.95})
    seeds(tmp_path, "transformer", 1.2, count=5, trainer={"tokens": 9000, "beta2": 0.95})
    seeds(tmp_path, "gru", 1.1, count=5, trainer={"tokens": 1000, "beta2": 0.99})
    table = quality(tmp_path)
    assert [row.split(" ")[0] for row in rows(table)] == ["ltc", "transformer"]
    assert list(rows(table)) == ["ltc", "transformer"]  # without the keys that set the others apart
    assert "not compared here: 2 other rows." in " ".join(table.notes)


def test_of_several_transformers_the_one_in_its_own_block_as_it_comes_is_the_reference():
    def entry(label, own, count, figure, changed=False):
        figures = dict.fromkeys(range(count), figure)
        return Entry(label, "transformer", "1m", "", own, changed, 1, 1, figures, frozenset())

    gated, wide, plain = (
        entry("transformer, gated block", False, 5, 1.0),
        entry("transformer (d_ff=9)", True, 3, 1.1),
        entry("transformer (d_ff=8)", True, 5, 1.2),
    )
    other = entry("transformer", True, 9, 1.0, changed=True)
    found = differences.compare([gated, wide, plain, other])
    assert [one.entry for one in found] == [gated, wide, other]


def test_ablations_make_no_comparison_of_models_less_certain():
    def entry(label, model, figures, changed=False):
        return Entry(label, model, "1m", "", True, changed, 1, 1, dict(enumerate(figures)), frozenset())

    models = [entry("transformer", "transformer", (2.0, 2.1, 2.05)), entry("ltc", "ltc", (1.9, 2.01, 1.96))]
    variants = [entry(f"ltc ({n})", "ltc", (1.9 + n / 90, 2.0, 1.97), changed=True) for n in range(9)]
    (alone,) = (one for one in differences.compare(models) if one.entry.model == "ltc")
    among, *others = (one for one in differences.compare([*models, *variants]) if one.entry.model == "ltc")
    assert among.entry.label == "ltc"
    assert among.adjusted == alone.adjusted == alone.difference.p
    assert len(others) == 9
    assert all(one.adjusted >= min(1, 2 * one.difference.p) for one in sorted(others, key=lambda one: one.adjusted)[:8])


@pytest.mark.parametrize(
    ("model", "config", "changed"),
    [
        ("ltc", {"solver.name": "semi_implicit", "solver.substeps": 6, "model.mixer.d_conv": 4}, False),
        ("ltc", {"solver.name": "euler", "solver.substeps": 1}, True),
        ("ltc", {"model.mixer.d_conv": 0}, True),
        ("ltc", {"trainer.learning_rate": 1.0, "model.mixer.kernel": "numba"}, False),  # neither is the model's choice
        ("transformer", {"block.name": "canon", "block.d_conv": 4}, True),
        ("of another package", {"solver.name": "euler"}, False),
    ],
)
def test_a_model_as_it_comes_has_what_conf_gives_it(model, config, changed):
    assert usual.is_changed(model, config) is changed


def test_higher_accuracy_is_better(tmp_path):
    for seed in range(3):
        record(tmp_path, "transformer", seed, 0, accuracy=0.5 + 0.01 * seed)
        record(tmp_path, "ltc", seed, 0, accuracy=0.8 + 0.011 * seed)
    assert rows(quality(tmp_path))["ltc"]["than transformer"] == "better"


PLANTED = scaling.Law(1.0, 60.0, 0.35)


def losses(noise, counts=(3, 5, 3, 2), seed=1):
    rng = np.random.default_rng(seed)
    sizes = zip(SIZES.values(), counts, strict=True)
    return {n: [PLANTED.at(n) * float(np.exp(noise * rng.standard_normal())) for _ in range(k)] for n, k in sizes}


def test_a_fit_recovers_the_planted_law():
    found = scaling.fit(losses(0.0))
    assert (found.floor, found.factor, found.exponent) == pytest.approx((1.0, 60.0, 0.35), rel=1e-4)
    few = {n: values[:1] for n, values in losses(0.0).items() if n != 500_000}  # three sizes, three constants
    assert scaling.fit(few).exponent == pytest.approx(0.35, rel=1e-3)


def test_little_noise_identifies_the_exponent_and_much_does_not():
    quiet, loud = losses(0.001), losses(0.02)
    for known, identified in ((quiet, True), (loud, False)):
        law = scaling.fit(known)
        ends = scaling.intervals(scaling.bootstrap(known, law))
        assert scaling.identified(ends) == identified
        if identified:
            assert ends["exponent"][0] < 0.35 < ends["exponent"][1]
            assert law.exponent == pytest.approx(0.35, abs=0.05)
    assert scaling.bootstrap({n: values[:1] for n, values in quiet.items()}, PLANTED) == ()
    assert not scaling.identified(scaling.intervals(()))


def through_three(losses, start=None):
    """The law through the means of three sizes, each twice the one before, in a formula."""
    (least, _, _), (low, middle, high) = losses, (float(np.mean(values)) for values in losses.values())
    ratio = min(max((middle - high) / (low - middle), 0.01), 0.99)  # 2^-alpha
    floor = (high - ratio * middle) / (1 - ratio)
    exponent = -math.log2(ratio)
    return scaling.Law(floor, (low - floor) * least**exponent, exponent)


@pytest.mark.parametrize("counts", [(3, 5, 1), (3, 3, 3), (2, 2, 1)], ids=str)
def test_intervals_hold_the_planted_law_where_sizes_have_few_seeds_or_one(counts, monkeypatch):
    """Seeds drawn with replacement, and a size of one seed held fixed, hold it in 70, 82 and 57 of 100."""
    monkeypatch.setattr(scaling, "fit", through_three)
    monkeypatch.setattr(scaling, "DRAWS", 100)
    held = np.zeros(2)
    for seed in range(200):
        known = losses(0.001, (*counts, 0), seed)
        del known[1_000_000]
        draws = scaling.bootstrap(known, through_three(known), str(seed))
        for place, says in enumerate((lambda law: law.exponent, lambda law: law.at(1_000_000))):
            low, high = np.percentile([says(law) for law in draws], (2.5, 97.5))
            held[place] += low <= says(PLANTED) <= high
    assert held / 200 == pytest.approx(0.95, abs=0.05)


def test_the_draws_of_two_models_are_independent(monkeypatch):
    """The same numbers drawn for both would leave their difference without noise."""
    monkeypatch.setattr(scaling, "fit", through_three)
    known = {125_000: [2.0, 2.01, 2.02], 250_000: [1.8, 1.81], 500_000: [1.65]}
    law = through_three(known)
    one, other = (scaling.Fit(name, name, known, law, scaling.bootstrap(known, law, name)) for name in ("ltc", "gru"))
    assert one.draws == scaling.bootstrap(known, law, "ltc")
    found = scaling.gap(one, other, lambda law: law.exponent)
    low, high = one.intervals["exponent"]
    assert found.value == 0
    assert high - low < found.high - found.low < 2 * (high - low)
    assert not found.told_apart
    assert scaling.gap(one, scaling.Fit("gru", "gru", known, law), lambda law: law.exponent) is None  # no draws


def test_laws_cross_where_they_were_planted_to():
    steeper = scaling.Law(PLANTED.floor, PLANTED.factor * 2_000_000**0.1, PLANTED.exponent + 0.1)
    assert scaling.crossing(PLANTED, steeper, 1_000_000) == pytest.approx(2_000_000, rel=0.011)
    assert scaling.crossing(PLANTED, steeper, 3_000_000) is None
    above = scaling.Law(PLANTED.floor + 0.1, PLANTED.factor, PLANTED.exponent)
    assert scaling.crossing(PLANTED, above, 1_000_000) is None


def test_one_wild_run_does_not_move_the_law():
    """The Huber loss: by least squares it would."""
    known = losses(0.0, (5, 5, 5, 5))
    known[250_000][0] *= 1.2
    assert scaling.fit(known).exponent == pytest.approx(0.35, abs=0.01)


def ladder(folder, model, law, count=2, sizes=SIZES, **more):
    for size in sizes:
        for seed in range(count):
            bits = law.at(SIZES[size]) * (1 + 0.0005 * (seed - 0.5))
            trainer = {"tokens": 20 * SIZES[size]}
            trained = {"size": size, "learning_rate": 1 / SIZES[size], "tokens": 20 * SIZES[size]} | more
            record(folder, model, seed, bits, trainer, SIZES[size], **trained)


def test_a_task_with_an_answer_is_shown_at_its_longest_sequences_too(tmp_path):
    write_run(tmp_path, "ltc", 0, accuracy=0.9)
    write_run(tmp_path, "gru", 0, accuracy=0.8)
    (table,) = made(tmp_path).verdict.tables["quality"]
    assert rows(table)["ltc"]["at length 2,048"] == "0.9000"
    record(tmp_path / "text", "ltc", 0, 2.0)
    assert "at length" not in " ".join(quality(tmp_path / "text").header)


def test_a_size_of_another_budget_is_no_part_of_a_law(tmp_path):
    ladder(tmp_path, "ltc", PLANTED, sizes=("125k", "250k", "500k"))
    # an epoch, which is less than 20 tokens a parameter, and far off the law
    ladder(tmp_path, "ltc", scaling.Law(3.0, 0.0, 1.0), sizes=("1m",), tokens=10_000_000)
    (table,) = made(tmp_path).verdict.tables["scaling"]
    assert rows(table)["ltc"]["sizes"] == "3"
    assert float(rows(table)["ltc"]["alpha"]) == pytest.approx(0.35, abs=0.02)


def places(folder):
    judged = made(folder)
    return field.ranks(judged.runs[judged.runs["chosen"]])


def test_ranks_are_of_the_size_at_which_rates_were_tuned(tmp_path):
    for model in ("ltc", "gru", "mamba"):
        record(tmp_path, model, 0, 2.0 + 0.1 * len(model), size="1m")
    for rate in (0.001, 0.002, 0.004):
        for model, bits in (("ltc", 1.5), ("gru", 1.4)):
            record(tmp_path, model, 0, bits + abs(rate - 0.002), size="250k", learning_rate=rate)
    assert [(rank.of, rank.place) for rank in places(tmp_path)["ltc"]] == [(2, 2)]


def test_ranks_are_of_the_main_recipe_and_budget(tmp_path):
    for model, accuracy in (("transformer", 0.8), ("gru", 0.9), ("rwkv", 0.7)):
        for seed in range(2):
            record(tmp_path, model, seed, 0, {"tokens": 200}, accuracy=accuracy)
    for seed in range(2):
        record(tmp_path, "rwkv", seed, 0, {"tokens": 100}, accuracy=0.99)
    record(tmp_path, "lstm", 0, 0, {"tokens": 100}, accuracy=1.0)
    found = places(tmp_path)
    assert {model: rank.place for model, (rank,) in found.items()} == {"gru": 1, "transformer": 2, "rwkv": 3}
    assert found["rwkv"][0].figure == pytest.approx(0.7)


def test_a_choice_at_the_edge_of_its_grid_has_no_place(tmp_path):
    for model, best in (("ltc", 0.002), ("gru", 0.002), ("mamba", 0.004)):
        for rate in (0.001, 0.002, 0.004):
            record(tmp_path, model, 0, 2.0 + abs(rate - best), learning_rate=rate)
    assert set(places(tmp_path)) == {"ltc", "gru"}


@pytest.mark.parametrize("digests", [("a" * 16, "b" * 16), ("b" * 16, "a" * 16)])
def test_of_two_tables_of_a_task_the_one_of_more_seeds_ranks(tmp_path, digests):
    for digest, count, best in zip(digests, (3, 1), ("ltc", "gru"), strict=True):
        for model in ("ltc", "gru"):
            for seed in range(count):
                path = record(tmp_path, model, seed, 2.0 if model == best else 2.5, {"note": digest})
                result = json.loads((path / "result.json").read_text())
                result["data"]["digest"] = digest
                (path / "result.json").write_text(json.dumps(result))
    assert {model: rank.place for model, (rank,) in places(tmp_path).items()} == {"ltc": 1, "gru": 2}


def test_who_has_the_same_figure_has_the_same_place_and_one_alone_has_none(tmp_path):
    for model, accuracy in (("ltc", 1.0), ("gru", 1.0), ("lstm", 1.0), ("mamba", 0.9)):
        record(tmp_path, model, 0, 0, accuracy=accuracy)
    record(tmp_path, "ltc", 0, 2.0)
    found = places(tmp_path)
    assert {model: rank.place for model, (rank,) in found.items()} == {"ltc": 1, "gru": 1, "lstm": 1, "mamba": 4}


def test_laws_are_fitted_along_each_ladder_and_less_is_not_measured(tmp_path):
    ladder(tmp_path, "ltc", PLANTED)
    ladder(tmp_path, "gru", scaling.Law(1.2, 200.0, 0.45))
    ladder(tmp_path, "mamba", PLANTED, sizes=("125k", "1m"))
    record(tmp_path, "lstm", 0, 2.0)
    judged = made(tmp_path)
    (table,) = judged.verdict.tables["scaling"]
    found = rows(table)
    assert float(found["ltc"]["alpha"]) == pytest.approx(0.35, abs=0.02)
    assert float(found["gru"]["alpha"]) == pytest.approx(0.45, abs=0.02)
    assert found["ltc"]["exponent"] == "identified"
    assert found["ltc"]["parameters"] == "125,000 to 1,000,000"
    assert (found["mamba"]["sizes"], found["mamba"]["alpha"]) == ("2", "not measured")
    assert found["lstm"]["exponent"] == "not measured"
    axes = judged.figures["scaling-sotu"].draw(title="t").axes[0]
    assert [len(line.get_xdata()) for line in axes.get_lines() if len(line.get_xdata()) > 2] == [40, 4, 40, 4]
    assert len(axes.collections) == 2  # the bands of both laws


def test_a_figure_of_laws_says_which_sizes_have_one_seed(tmp_path):
    ladder(tmp_path, "ltc", PLANTED, sizes=("125k", "250k"))
    ladder(tmp_path, "ltc", PLANTED, count=1, sizes=("500k",))
    figure = made(tmp_path).figures["scaling-sotu"].draw(title="t")
    (text,) = figure.legends[0].get_texts()
    assert "one seed at 500k" in " ".join(text.get_text().split())


def test_of_two_budgets_at_one_size_the_longer_counts_and_diverged_runs_do_not(tmp_path):
    ladder(tmp_path, "ltc", PLANTED)
    for seed in range(2):
        record(tmp_path, "ltc", seed, 9.0, {"tokens": 100}, 125_000, size="125k", tokens=1000)
    record(tmp_path, "ltc", 5, 9.0, {"tokens": 5_000_000}, 250_000, size="250k", status="diverged")
    (table,) = made(tmp_path).verdict.tables["scaling"]
    assert float(rows(table)["ltc"]["alpha"]) == pytest.approx(0.35, abs=0.02)


def test_the_learning_rate_grid_shows_the_choice_and_where_it_lies(tmp_path):
    for rate, bits in ((0.001, 2.1), (0.002, 2.0), (0.004, 2.2)):
        for seed in range(2):
            record(tmp_path, "ltc", seed, bits + NOISE[seed], learning_rate=rate)
    for rate, bits in ((0.001, 2.2), (0.002, 2.1)):
        record(tmp_path, "gru", 0, bits, learning_rate=rate)
    for rate, bits, status in ((0.001, 2.0, "finished"), (0.002, 1.9, "finished"), (0.004, 2.0, "diverged")):
        record(tmp_path, "lstm", 0, bits, learning_rate=rate, status=status)
    record(tmp_path, "mamba", 0, 2.0)
    judged = made(tmp_path)
    (table,) = judged.verdict.tables["learning-rates"]
    found = rows(table)
    assert {model: (row["chosen"], row["optimum"]) for model, row in found.items()} == {
        "ltc": ("0.002", "inside"),
        "gru": ("0.002", "at the upper edge"),
        "lstm": ("0.002", "inside"),
    }
    assert found["lstm"]["rate: figure"].endswith("0.004: diverged")
    assert found["ltc"]["validation"] == "2.0150"
    axes = judged.figures["learning-rates-sotu-1m"].draw(title="t").axes[0]
    rings = [line for line in axes.get_lines() if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert [list(ring.get_xdata()) for ring in rings] == [[0.002]] * 3


def test_a_rate_that_lacks_a_seed_is_compared_over_the_seeds_that_all_ran():
    grid = grids.Grid("ltc", "ltc", {0.1: {0: 2.0, 1: 9.0}, 0.2: {0: 2.1}}, frozenset(), 0.1)
    assert grid.means == {0.1: 2.0, 0.2: 2.1}


def test_bars_are_of_the_seeds_that_the_points_are_of_and_ticks_of_the_rates_tried():
    many = {seed: 2.0 + 0.1 * seed for seed in range(5)}
    known = [
        grids.Grid("ltc", "ltc", {0.001: {0: 2.2}, 0.002: many, 0.004: {0: 2.3}}, frozenset(), 0.002),
        grids.Grid(
            "gru", "gru", {rate: {s: rate + many[s] for s in range(3)} for rate in (0.002, 0.004)}, frozenset(), 0.002
        ),
    ]
    axes = grids.draw(known, styles.styles(["ltc", "gru"]), "t", "y").axes[0]
    bars = [line for line in axes.get_lines() if line.get_marker() == "None" and len(set(line.get_xdata())) == 1]
    assert sorted(line.get_xdata()[0] for line in bars) == [0.002, 0.004]  # of the grid whose rates share three seeds
    assert all(low < 2.1 + line.get_xdata()[0] < high for line in bars for low, high in [line.get_ydata()])
    assert list(axes.get_xticks()) == [0.001, 0.002, 0.004]
    assert len(axes.get_yticks()) > 2


BENCH = {
    "models": [
        {
            "what": "training", "contestant": model, "length": length, "parameters": 1_000_448,
            "tokens_per_second": rate, "range_us": [0.5e6 / rate, 2e6 / rate],
        }
        for model, rates in (("transformer", (1000, 500, 250)), ("ltc", (2000, 2000, 2000)))
        for length, rate in zip((512, 1024, 2048), rates, strict=True)
    ]
    + [
        {"what": "decoding", "contestant": model, "length": 32768, "decode_ms": ms, "range_ms": [0.75 * ms, 1.5 * ms]}
        for model, ms in (("transformer", 10.0), ("ltc", 2.0))
    ],
    "kernels": [
        {
            "operation": "liquid scan", "contestant": "torch loop", "batch": 8, "length": 512,
            "training_us": 100.0, "training_ratio": 50.0,
        }
    ],
    "gradients": [
        {"operation": "liquid scan", "contestant": "torch loop", "bytes_per_token": 5000.0, "gradient_error": 2e-7}
    ],
}  # fmt: skip


@pytest.fixture
def measured(tmp_path):
    folder = tmp_path / "measured"
    folder.mkdir()
    for subject, content in BENCH.items():
        whole = {"machine": {"cpu": "CPU of tests", "threads": 2, "gpu": None}, "skipped": {}, "channels": 256}
        (folder / f"{subject}.json").write_text(json.dumps(whole | {"rows": content}))
    return folder


def test_the_field_has_every_model_with_exponents_speeds_and_its_worst_task(tmp_path, measured):
    for model in ("transformer", "ltc"):
        record(tmp_path / "runs", model, 0, 2.0 if model == "ltc" else 1.9)
    for model, accuracy in (("transformer", 0.9), ("ltc", 0.5), ("gru", 0.7)):
        record(tmp_path / "runs", model, 0, 0, accuracy=accuracy)
    (table,) = made(tmp_path / "runs", measured).verdict.tables["field"]
    found = rows(table)
    assert set(found) == set(models.catalogue())
    assert found["transformer"]["exponent of state"].startswith("1.00")  # the record's state grows with its context
    assert found["ltc"]["exponent of state"] == "0.00"
    assert found["ltc"]["training / transformer"] == "2.00 / 4.00 / 8.00"
    assert found["ltc"]["exponent of time"].startswith("1.00")
    assert found["transformer"]["exponent of time"].startswith("2.00")
    assert found["ltc"]["worst task"] == "mqar: 3 of 3 (0.5, best 0.9)"
    assert found["ltc"]["longest context"] == "131,072"
    assert set(found["hybrid"].values()) == {"hybrid", "–", "not measured"}
    assert "Gu and Dao 2023" in found["mamba"]["speed, literature"]


def test_a_model_that_diverged_everywhere_ranks_last(tmp_path):
    record(tmp_path, "ltc", 0, 2.0, status="diverged")
    record(tmp_path, "gru", 0, 2.5)
    record(tmp_path, "ltc", 0, 0, accuracy=0.9)
    record(tmp_path, "gru", 0, 0, accuracy=0.8)
    found = rows(made(tmp_path).verdict.tables["field"][0])
    assert found["ltc"]["worst task"] == "sotu: 2 of 2 (diverged, best 2.5)"


def test_implementations_are_joined_with_the_bench_and_named_as_it_names_them(measured):
    table = liquid.table(liquid.read(), bench.content(measured, "kernels"), bench.content(measured, "gradients"))
    row = next(row for row in table.rows if row[:2] == ["torch loop", "liquid scan"])
    shown = dict(zip(table.header, row, strict=True))
    assert [shown[key] for key in ("µs a token", "times ours", "memory a token", "gradient error")] == [
        "100", "50", "5 kB", "2.0e-07",
    ]  # fmt: skip
    other = next(row for row in table.rows if row[0] == "fused, rk4")
    assert other.count("not measured") == 4


def test_every_implementation_is_a_contestant_of_the_bench():
    from bench import liquid as contestants

    compared = [f(torch.device("cpu")) for f in (contestants.liquid_scan, contestants.published_ltc, contestants.cfc)]
    names = {comparison.operation: {one.name for one in comparison.contestants} for comparison in compared}
    for operation, known in liquid.read().items():
        assert set(known) <= names[operation]


def shape(**more):
    given = {"d_model": 128, "layers": 4, "parameters": 1_000_000, "dense": 950_000, "numbers": 1000.0, "window": None}
    return cost.Shape(**(given | {"flops": 6.0 * 950_000, "length": 512} | more))


@pytest.mark.parametrize(("tied", "dense"), [(True, 1_000_000), (False, 900_000), (None, 900_000)])
def test_every_parameter_but_an_untied_table_of_embeddings_is_multiplied_with(tied, dense):
    facts = {"d_model": 128, "n_layers": 4, "parameters": 1e6, "embedding": 2e5, "train_flops_per_token": 6e6}
    facts |= {"state_bytes_1024": 4000, "train_length": 512, "tied": tied, "context": "state"}
    assert cost.shape(pd.Series(facts, dtype=object)) == shape(dense=dense, flops=6e6)


def curvature(mixer, width):
    """How far a part of the next state is from a linear function of that part of the last one."""
    x, y = torch.randn(2, 1, 7, width, dtype=torch.float64)
    z = torch.randn(1, width, dtype=torch.float64)
    one, other = mixer(x)[1], mixer(y)[1]

    def after(place, share):
        state = copy.deepcopy(one)
        list(tensors(state))[place].lerp_(list(tensors(other))[place], share)
        return list(tensors(mixer.step(z, state)[1]))[place]

    floating = [place for place, part in enumerate(tensors(one)) if part.is_floating_point()]
    return max((after(at, 0.3) - torch.lerp(after(at, 0.0), after(at, 1.0), 0.3)).abs().max().item() for at in floating)


@pytest.mark.parametrize("name", mostly_long(MODELS))
def test_a_model_is_sequential_where_its_state_is_no_linear_function_of_the_last_one(name):
    torch.manual_seed(0)
    built = spec(name).build(64, 1 if name == "rwkv" else 8, Width(64, 48)).double().eval()
    with torch.no_grad():
        found = max(curvature(block.mixer, 64) for block in built.blocks)
    assert (found > 1e-9) == models.catalogue()[name].get("sequential", False)


def test_costs_follow_from_their_stated_inputs():
    inputs = cost.read().extrapolated
    flat = cost.Larger(shape(), inputs)
    per_square = 950_000 / (4 * 128**2)
    assert per_square * inputs.layers * flat.d_model**2 == pytest.approx(inputs.parameters)
    assert flat.training_flops == pytest.approx(6 * inputs.parameters)
    seconds = 1e6 * 6 * inputs.parameters / (inputs.flops_per_second * 0.5)
    assert flat.training_dollars(0.5) == pytest.approx(seconds / 3600 * inputs.dollars_per_hour)
    assert flat.decoding_dollars(1024, 0.5) == flat.decoding_dollars(131072, 0.5)
    weights, state = inputs.bytes_per_number * inputs.parameters, inputs.bytes_per_number * flat.numbers_at(1)
    step = (weights / inputs.sequences + state) / (inputs.bytes_per_second * 0.5)
    assert flat.decoding_dollars(1024, 0.5) == pytest.approx(1e6 * step / 3600 * inputs.dollars_per_hour)


def test_a_growing_state_costs_more_with_the_context_until_it_does_not_fit():
    inputs = cost.read().extrapolated
    grows = cost.Larger(shape(numbers=2 * 4 * 128 * 512.0, window=512), inputs)
    assert grows.numbers_at(32768) == pytest.approx(32 * grows.numbers_at(1024))
    dollars = [grows.decoding_dollars(context, 0.5) for context in (1024, 32768, 131072)]
    assert dollars[0] < dollars[1] < dollars[2]
    assert grows.decoding_dollars(10**7, 0.5) is None
    beside_weights = inputs.memory_bytes - inputs.bytes_per_number * inputs.parameters
    state = inputs.bytes_per_number * grows.numbers_at(16384)
    assert 0 < grows.together(16384) == beside_weights // state < inputs.memory_bytes // state < inputs.sequences
    assert cost.span([None, None, None]) == "does not fit"
    attends = cost.Larger(shape(window=512, flops=7.0 * 950_000), inputs)
    assert attends.training_flops > cost.Larger(shape(flops=7.0 * 950_000), inputs).training_flops


def test_costs_are_measured_extrapolated_or_not_measured(tmp_path, measured):
    path = record(tmp_path / "runs", "ltc", 0, 2.0)
    record(tmp_path / "runs", "gru", 0, 2.0)
    config, result = (json.loads((path / f"{name}.json").read_text()) for name in ("config", "result"))
    config["trainer"]["length"], config["model"]["tie_embeddings"] = 512, False
    result |= {"width": {"d_model": 128, "n_layers": 4}}
    result["parameters"] |= {"embedding": 65_536}
    result["training"]["flops_per_token"] = 6.5e6
    for row in result["measurement"]["contexts"]:
        row["decode_tokens_per_second"] = 1000.0
    result["context_policy"] = {"kind": "state", "tokens": None}
    (path / "config.json").write_text(json.dumps(config))
    (path / "result.json").write_text(json.dumps(result))
    known, larger = made(tmp_path / "runs", measured).verdict.tables["cost"]
    price = cost.read().measured.dollars_per_hour
    assert rows(known)["ltc"]["generation at 1k"] == f"${1e6 / 1000 / 3600 * price:.1g}*"
    low, middle, high = (f"{1e6 / 1e3 * ms / 3600 * price:.2g}" for ms in (1.5, 2.0, 3.0))
    assert rows(known)["ltc"]["generation at 32k"] == f"${middle} ({low} to {high})"
    assert rows(known)["ltc"]["training"].startswith(f"${1e6 / 2000 / 3600 * price:.2g} (")
    assert rows(known)["ltc"]["parameters"] == "1,000,448"
    assert rows(known)["gru"]["training"] == "not measured"
    assert re.fullmatch(r"\$[\d.]+ \([\d.]+ to [\d.]+\)", rows(larger)["ltc"]["generation at 128k"])
    assert set(rows(larger)["gru"].values()) == {"gru", "not measured"}
    assert re.fullmatch(r"above \$[\d.]+", rows(larger)["ltc"]["training"])
    assert larger.notes[0].startswith("Extrapolation, not a measurement")


def standing(model, parameters, context, rates):
    """A run that stands for a model, as the costs read it."""
    row = {"label": model, "context": context, "parameters": parameters, "decode_busy": False}
    return pd.DataFrame([row | {f"decode_tokens_per_second_{at}": rate for at, rate in rates.items()}])


def test_a_figure_of_another_size_or_of_a_cut_cache_is_no_part_of_the_benchs_row():
    timed = cost.timed(BENCH["models"])
    small = standing("ltc", 100_000, "state", {1024: 4000.0})
    bench, own = cost.speeds("ltc", small, timed)
    assert (bench.parameters, set(bench.generation)) == (1_000_448, {32768})
    assert (own.parameters, own.training, set(own.generation)) == (100_000, None, {1024})
    full, cut = cost.speeds("transformer", standing("transformer", 1_001_120, "window 512", {32768: 3000.0}), timed)
    assert (full.cache, full.generation[32768].ms, full.generation[32768].rounds) == ("full", 10.0, (7.5, 15.0))
    assert (cut.cache, cut.generation[32768].rounds) == ("window 512", None)
    (both,) = cost.speeds("ltc", standing("ltc", 999_840, "state", {1024: 4000.0, 32768: 4000.0}), timed)
    assert cost.TOLERANCE == sizing.TOLERANCE
    assert (both.generation[1024].rounds, both.generation[32768].ms) == (None, 2.0)


def test_a_figure_is_told_with_its_rounds_and_a_runs_own_to_one_figure():
    assert cost.Time(2.14, (1.5, 3.04)).told(float) == "2.1 (1.5 to 3)"
    assert cost.Time(0.2874).told(float, "$") == "$0.3*"
    assert cost.Time(12.0).told(float) == "10*"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("measured", "dollars_per_hour"), -1.0, "measured.dollars_per_hour=-1.0"),
        (("extrapolated", "layers"), "many", "extrapolated.layers='many'"),
        (("extrapolated", "utilisation", "memory"), [0.8, 0.5, 0.6], "three numbers up to 1 that rise"),
        (("extrapolated", "price"), 3, "extrapolated.price"),
    ],
)
def test_a_wrong_price_is_named(tmp_path, key, value, said):
    content = yaml.safe_load(cost.FILE.read_text())
    node = content
    for part in key[:-1]:
        node = node[part]
    node[key[-1]] = value
    (path := tmp_path / "prices.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecordError, match=re.escape(said)):
        cost.read(path)


def test_every_claim_has_a_source_and_a_model(tmp_path):
    claims = literature.read()
    assert set(claims.known) <= set(models.catalogue())
    assert claims.of("ltc", "speed") == "–"
    for text in ("ltc: {speed: {claim: fast}}", "ltc: {looks: {claim: a, source: b, at: c}}", "- a"):
        (path := tmp_path / "literature.yaml").write_text(text)
        with pytest.raises(RecordError, match="cannot be used"):
            literature.read(path)
    with pytest.raises(RecordError, match="cannot be used"):
        liquid.read(path)
    assert Claims({}).sources(["ltc"]) == ""


def latex_faults(text):
    """What a strict reader finds wrong with a LaTeX float: environments, the cells of its rows, special characters."""
    faults, stack = [], []
    for begins, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if begins == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            faults.append(f"\\end{{{name}}}")
    faults += stack
    columns = re.search(r"\\begin\{tabular\}\{((?:[lr]|p\{\d+cm\})+)\}", text)
    wanted = len(re.findall(r"[lr]|p\{", columns[1])) if columns else 0
    plain = re.sub(r"\\[&%$#_{}]|\$[^$]*\$", "", text)
    for row in re.findall(r"^(.*) \\\\$", plain, re.M):
        if row.count("&") + 1 != wanted:
            faults.append(row)
    body = re.sub(r"\\label\{.*?\}|\\begin\{tabular\}\{.*\}", "", plain)
    faults += re.findall(r"[%#~^_$]", body)
    faults += [letter for letter in body if ord(letter) > 127]
    if body.count("{") != body.count("}"):
        faults.append("braces")
    return faults


def test_every_table_is_latex_that_a_strict_reader_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    judged = report.build(records_of.load(["results"]), ROOT / "results" / "bench")
    shown = [*judged.comparison, *judged.memory, *verdict.everything(judged.verdict)[0]]
    assert len(shown) > 5
    assert {table.name: latex_faults(render.latex(table)) for table in shown} == {table.name: [] for table in shown}
    planted = render.latex(shown[0])
    for fault in (planted.replace(r"\_", "_", 1), planted.replace(" & ", " ", 1), planted.replace(r"\end{table}", "")):
        assert latex_faults(fault)


def test_the_command_writes_each_table_and_figure_and_its_section(tmp_path):
    ladder(tmp_path / "runs", "ltc", PLANTED)
    for rate in (0.001, 0.002, 0.004):
        record(tmp_path / "runs", "gru", 0, 2.0 + abs(rate - 0.002), learning_rate=rate)
    page = tmp_path / "comparison.md"
    page.write_text("\n".join(f"<!-- generated:{name} -->\n<!-- /generated:{name} -->" for name in verdict.SECTIONS))
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--output", str(out), "--pages", str(page)]) == 0
    stems = (
        "quality-sotu-1m",
        "scaling-sotu",
        "learning-rates",
        "field",
        "liquid",
        "cost-measured",
        "cost-extrapolated",
    )
    written = {path.name for path in out.iterdir()}
    assert {f"{stem}.{suffix}" for stem in stems for suffix in ("md", "tex", "csv")} <= written
    assert {f"{stem}.{s}" for stem in ("scaling-sotu", "learning-rates-sotu-1m") for s in ("png", "pdf")} <= written
    text = page.read_text()
    assert "![Scaling laws, sotu](out/scaling-sotu.png)" in text
    assert text.count("**Quality, sotu") == len(SIZES)
    assert main([str(tmp_path / "runs"), "--output", str(out), "--pages", str(page), "--check"]) == 0


def test_ticks_are_round_and_few():
    assert figures.nice([125_000, 1_000_000]) == pytest.approx([1.25e5, 2e5, 2.5e5, 4e5, 5e5, 8e5, 1e6])
    assert figures.nice([1.7, 2.31]) == pytest.approx([1.8, 2.0, 2.2])
    assert figures.nice([1.605, 1.745]) == pytest.approx([1.62, 1.64, 1.66, 1.68, 1.7, 1.72, 1.74])
    assert figures.nice([1.375, 4.9]) == pytest.approx([1.5, 2.0, 2.5, 3.0, 4.0])
    assert figures.nice([0.0005, 0.02]) == pytest.approx([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02])
    assert len(figures.nice([1e-6, 1e6])) <= 13
    assert figures.nice([]) == []
    assert figures.nice([2.0, 2.0]) == [2.0]
    assert [figures.si_count(n) for n in (125_000, 1e6, 0.003)] == ["125k", "1M", "0.003"]


def test_exponents_read_as_people_write_them():
    assert field.exponent(None) == "not measured"
    assert field.exponent(Slope(-0.001, None, None)) == "0.00"
    assert field.exponent(Slope(1.0, 0.9, 1.1)) == "1.00 (0.90 to 1.10)"
