"""Findings: sentences whose numbers come from records, and which say what the records do not tell."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis import cost as prices
from analysis import frame, records, report, scaling, selection, usual
from analysis.differences import Comparison
from analysis.entries import Entry
from analysis.findings import corpora, cost, evidence, factors, finding, gaps, pairs
from analysis.findings import pages as told
from analysis.findings.finding import NOT_MEASURED, NOT_SIGNIFICANT, NOT_TESTED, SIGNIFICANT
from analysis.references import Line
from analysis.statistics import Difference, holm, paired
from harness.records import sweep
from test_analysis import write_run
from test_verdict import PLANTED, SIZES, ladder
from test_verdict import seeds as five_seeds

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "results" / "bench"


def known(folder, headline="sotu-1m"):
    """The evidence of a folder of records, as the report gathers it."""
    runs = records.load([folder]).runs
    return evidence.gather(runs, selection.select(runs, frame.runs(runs)), folder / "bench", headline)


def change(path, name, **entries):
    """Sets entries of one file of a record, by their dotted keys."""
    content = json.loads((path / f"{name}.json").read_text())
    for key, value in entries.items():
        node, parts = content, key.split("__")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of ltc and the Transformer, whose fourth seed has no partner."""
    for seed, (ours, theirs) in enumerate(((1.80, 2.00), (1.90, 2.15), (2.00, 2.15))):
        write_run(tmp_path, "ltc", seed, ours, solver="rk4")
        write_run(tmp_path, "transformer", seed, theirs)
    write_run(tmp_path, "transformer", 3, 9.0)
    return tmp_path


def test_a_pair_is_compared_over_the_seeds_that_both_have(seeds):
    (against, *nothing) = pairs.pairs(known(seeds))
    assert against.sentence == (
        "On sotu at 1m parameters, ltc with rk4 has 1.900 bits per byte on test (lower is better) and transformer "
        "2.100: better, a difference of −0.200 (significant: 95 % interval −0.324 to −0.076, p = 0.020, 3 seeds)."
    )
    assert against.headline
    assert len(against.runs) == 7
    for rival, one in zip(("mamba", "rwkv"), nothing, strict=True):
        assert one.status == NOT_MEASURED
        assert one.sentence.startswith(f"Quality of ltc against {rival}: not measured (")
        assert f"model=ltc,{rival}" in one.commands[0]


def test_the_liquid_models_are_those_of_their_folder():
    assert pairs.contestants()[0] == "ltc"
    assert {"ltc_signed", "cfc_ncp", "lrcssm", "liquid_s4", "mtlnn", "m1", "hybrid"} < set(pairs.contestants())
    assert not {"transformer", "mamba", "rwkv", "gru", "neural_ode"} & set(pairs.contestants())


def test_runs_of_another_recipe_or_budget_are_no_opponents(seeds):
    for path in seeds.glob("transformer-*"):
        change(path, "config", trainer__batch_size=16)
    assert [one.status for one in pairs.pairs(known(seeds))] == [NOT_MEASURED] * 3
    for path in seeds.glob("ltc-*"):
        change(path, "config", trainer__batch_size=16, trainer__epochs=None)
    assert pairs.pairs(known(seeds))[0].status == SIGNIFICANT


def test_a_model_outside_its_block_is_compared_inside_the_same_block(seeds):
    for path in seeds.glob("ltc-*"):
        change(path, "result", block="gated")
        change(path, "config", block__name="gated", block__d_conv=4, model__names={"block": "transformer"})
    assert pairs.pairs(known(seeds))[0].status == NOT_MEASURED  # the Transformer stands in its own
    for seed, bits in enumerate((1.6, 1.71, 1.79)):
        path = write_run(seeds, "mamba", seed, bits)
        change(path, "result", block="gated")
        change(path, "config", block__name="gated", block__d_conv=4, model__names={"block": "gated"})
    (found,) = pairs.one_block(known(seeds))
    said = "in Mamba's gated block with a convolution ltc has 1.900 bits per byte on test (lower is better) and mamba"
    assert f"{said} 1.700: worse, a difference of +0.200 (significant: " in found.sentence
    assert not found.headline


def test_a_pair_with_a_diverged_run_says_so_and_is_not_tested(seeds):
    assert pairs.pairs(known(seeds))[0].status == SIGNIFICANT
    write_run(seeds, "ltc", 3, solver="rk4", status="diverged")
    found = pairs.pairs(known(seeds))[0]
    assert found.status == NOT_TESTED
    assert "3 seeds: not tested); 1 of 4 runs of ltc with rk4 diverged" in found.sentence


def test_a_pair_is_told_as_the_table_of_quality_tests_it(tmp_path):
    """The same difference, interval and p, corrected over the whole table: liquid models are not all of its rows."""
    for model, bits in (
        ("transformer", 2.0),
        ("mamba", 1.9),
        ("ltc", 1.8),
        ("cfc", 2.0004),
        ("gru", 2.1),
        ("rwkv", 1.95),
        ("m1", 2.2),
    ):
        five_seeds(tmp_path, model, bits)
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    (table,) = made.verdict.tables["quality"]
    exact, told_of = table.data.set_index("model"), {one.name: one for one in made.findings}
    statuses = {"better": SIGNIFICANT, "worse": SIGNIFICANT, "not significant": NOT_SIGNIFICANT}
    for model in ("ltc", "cfc", "m1"):
        for reference in ("transformer", "mamba", "rwkv"):
            row, one = exact.loc[model], told_of[f"quality-{model}-{reference}"]
            ends = " to ".join(finding.signed(row[f"less_{reference}_{end}"]) for end in ("low", "high"))
            p = row[f"less_{reference}_p_holm"]
            assert f"95 % interval {ends}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}, 5 seeds)" in one.sentence
            assert one.status == statuses[row[f"than_{reference}"]]
    assert {told_of[f"quality-{model}-transformer"].status for model in ("ltc", "cfc")} == {
        SIGNIFICANT,
        NOT_SIGNIFICANT,
    }


def test_what_stands_around_two_recurrences_is_told_where_it_differs(tmp_path):
    for model, convolution in (("ltc", 4), ("transformer", 0)):
        for seed in range(3):
            path = write_run(tmp_path, model, seed, 2.0 + 0.01 * seed)
            change(path, "result", block="transformer")
            own = {"model__names": {"block": "transformer"}, "model__tie_embeddings": True}
            change(path, "config", model__mixer__d_conv=convolution, **own)
    (found,) = [one for one in pairs.pairs(known(tmp_path)) if one.name == "quality-ltc-transformer"]
    assert "ltc (in the Transformer's block with a convolution) has" in found.sentence
    assert "transformer (in the Transformer's block without a convolution) 2.0" in found.sentence
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    (table,) = made.verdict.tables["quality"]
    assert {row[table.header.index("around it")] for row in table.rows} == {
        "transformer, conv 4, tied",
        "transformer, no conv, tied",
    }
    for path in tmp_path.glob("transformer-*"):
        change(path, "config", model__tie_embeddings=False)
    (found,) = [one for one in pairs.pairs(known(tmp_path)) if one.name == "quality-ltc-transformer"]
    assert "a convolution, embeddings tied) has" in found.sentence
    assert "a convolution, embeddings untied) 2.0" in found.sentence


def test_models_in_one_block_are_corrected_together(tmp_path):
    for model, bits in (("transformer", 2.0), ("ltc", 1.9), ("cfc", 1.95), ("m1", 2.05)):
        five_seeds(tmp_path, model, bits, jitter=0.03)
    for path in tmp_path.iterdir():
        change(path, "result", block="gated")
        change(path, "config", block__name="gated", block__d_conv=4, model__names={"block": "own"})
    variants = known(tmp_path).of("sotu-1m")
    reference = next(v for v in variants if v.model == "transformer")
    alone = {v.model: paired(v.test, reference.test).p for v in variants if v is not reference}
    expected = dict(zip(alone, holm(list(alone.values())), strict=True))
    found = {one.name: one.sentence for one in pairs.one_block(known(tmp_path))}
    assert len(found) == 3
    for model, p in expected.items():
        (sentence,) = [said for name, said in found.items() if name.startswith(f"quality-{model}-")]
        assert (f"p = {p:.3f}" if p >= 0.001 else "p < 0.001") in sentence
    assert expected != alone


def compared(difference, adjusted=None):
    """A comparison of this difference, of which nothing else is told."""
    nobody = Entry("", "", "1m", "", True, False, 1, 1, {}, frozenset())
    return Comparison(nobody, nobody, difference, adjusted)


@pytest.mark.parametrize(
    ("comparison", "said", "status"),
    [
        (compared(Difference(0)), "unknown (no seed in common)", NOT_TESTED),
        (compared(Difference(1, -0.3951)), "−0.395 (one seed: no interval)", NOT_TESTED),
        (
            compared(Difference(2, 0.1, -0.2, 0.4)),
            "+0.100 (95 % interval −0.200 to +0.400, 2 seeds: not tested)",
            NOT_TESTED,
        ),
        (
            compared(Difference(5, -0.1, -0.2, -0.05, 0.0001), 0.0004),
            "−0.100 (significant: 95 % interval −0.200 to −0.050, p < 0.001, 5 seeds)",
            SIGNIFICANT,
        ),
        (
            compared(Difference(5, -0.1, -0.2, -0.05, 0.02), 0.2),  # alone it would be
            "−0.100 (not significant: 95 % interval −0.200 to −0.050, p = 0.200, 5 seeds)",
            NOT_SIGNIFICANT,
        ),
    ],
)  # fmt: skip
def test_a_difference_says_what_it_is_worth(comparison, said, status):
    assert finding.told(comparison) == said
    assert finding.status(comparison) == status


def test_the_comparisons_of_a_factor_are_corrected_together(tmp_path):
    rng = np.random.default_rng(3)
    for solver, bits in (("semi_implicit", 2.0), ("rk4", 1.9), ("euler", 2.001)):
        for seed in range(5):
            write_run(tmp_path, "ltc", seed, float(bits + 0.1 * seed + 0.01 * rng.normal()), solver=solver)
    gathered = known(tmp_path)
    (effect,) = [one for one in factors.factors(gathered) if one.name == "effect-solver-sotu-1m-ltc"]
    of = {variant.result["solver"]: variant.test for variant in gathered.of("sotu-1m")}
    ps = holm([paired(of[solver], of["semi_implicit"]).p for solver in ("euler", "rk4")])
    assert effect.status == finding.MIXED
    assert re.search(
        r"solver=euler changes it by \S+ \(not significant: .* solver=rk4 changes it by \S+ \(significant: 95 %",
        effect.sentence,
    )
    assert [f"p = {p:.3f}" if p >= 0.001 else "p < 0.001" for p in ps] == re.findall(
        r"p [=<] [\d.]+\d", effect.sentence
    )


def test_a_factor_is_told_where_all_else_is_equal(tmp_path):
    for seed in range(2):
        for coupling, bits in (("none", 1.9), ("dense", 1.8)):
            bits += (0.1 if coupling == "none" else 0.12) * seed
            path = write_run(tmp_path, "ltc", seed, bits, device_name=coupling)
            rate = 0.003 if coupling == "none" else 0.01  # each value has a rate of its own
            change(path, "config", model__mixer={"coupling": coupling}, trainer__learning_rate=rate)
    path = write_run(tmp_path, "ltc", 0, 0.5, device_name="other")
    change(path, "config", model__mixer={"coupling": "heads", "gate": "softplus"})
    found = {one.name: one for one in factors.factors(known(tmp_path))}
    effect = found["effect-coupling-sotu-1m-ltc"]
    assert effect.sentence == (
        "On sotu at 1m parameters, ltc with coupling=none has 1.950 bits per byte on test (lower is better); "
        "coupling=dense changes it by −0.090 (95 % interval −0.217 to +0.037, 2 seeds: not tested)."
    )
    assert "model.mixer.coupling=dense" in " ".join(effect.commands)
    assert {one.status for name, one in found.items() if name != effect.name} == {NOT_MEASURED}


def test_a_convolution_of_the_block_is_no_effect_of_the_block(tmp_path):
    for seed in range(3):
        for taps, bits in ((0, 1.9), (4, 1.8)):
            path = write_run(tmp_path, "gru", seed, bits, device_name=str(taps))
            change(path, "config", model__block={"name": "transformer", "d_conv": taps})
    told = {one.name for one in factors.factors(known(tmp_path)) if one.status != NOT_MEASURED}
    assert told == {"effect-convolution-sotu-1m-gru"}


def convolved(folder, model, bits, *, block="transformer", own=0, given=0, count=3):
    """Runs in a block, with the taps of the mixer's own convolution and of the block's."""
    for seed in range(count):
        path = write_run(folder, model, seed, bits + (0.001 * seed * len(model)), device_name=f"{block} {own} {given}")
        change(path, "result", block=block)
        change(path, "config", block={"name": block, "d_conv": given}, model__mixer={"d_conv": own})
        change(path, "config", model__names={"block": "gated" if model == "mamba" else "transformer"})


def test_a_pair_is_told_at_one_convolution_too(tmp_path):
    convolved(tmp_path, "ltc", 1.8)
    convolved(tmp_path, "ltc", 1.7, own=4)
    convolved(tmp_path, "transformer", 1.9)
    convolved(tmp_path, "transformer", 1.95, given=4)
    convolved(tmp_path, "mamba", 1.6, block="gated", given=4)
    evidence = known(tmp_path)
    (own,) = [one for one in pairs.pairs(evidence) if one.name.endswith("-transformer")]
    assert "a convolution) has 1.703 bits per byte on test (lower is better) and transformer" in own.sentence
    (found,) = pairs.one_block(evidence)
    assert "in the Transformer's block without a convolution ltc has 1.803 bits" in found.sentence
    assert "; in the Transformer's block with a convolution 1.703 and 1.961: better, a" in found.sentence
    assert "on test (lower is better) and transformer 1.911: better, a" in found.sentence
    assert found.headline


def test_other_sizes_are_told_after_the_main_table(tmp_path):
    for size, count in (("1m", 5), ("125k", 3), ("500k", 2)):
        for model, bits in (("ltc", 1.8), ("transformer", 2.0), ("mamba", 1.7), ("rwkv", 1.8)):
            five_seeds(tmp_path, model, bits, count, size=size)
    evidence = known(tmp_path)
    (found,) = pairs.other_sizes(evidence)
    assert found.sentence.startswith("On sotu at 125k parameters, ltc has 1.80")
    assert re.search(
        r"better than transformer by \S+ \(.*, worse than mamba by .* and not told apart from rwkv by", found.sentence
    )
    assert all(" at 1m " in one.sentence for one in pairs.pairs(evidence))


def test_blocks_are_compared_at_one_convolution_and_a_convolution_is_told_once(tmp_path):
    convolved(tmp_path, "ltc", 1.8)
    convolved(tmp_path, "ltc", 1.7, own=4)
    convolved(tmp_path, "ltc", 1.75, block="gated", own=4, given=4, count=1)
    convolved(tmp_path, "ltc", 1.6, block="canon", given=4)
    found = {one.name: one for one in factors.factors(known(tmp_path)) if one.status != NOT_MEASURED}
    assert set(found) == {"effect-convolution-sotu-1m-ltc", "effect-block-sotu-1m-ltc"}
    block, convolution = (found[f"effect-{name}-sotu-1m-ltc"] for name in ("block", "convolution"))
    assert block.sentence == (
        "On sotu at 1m parameters, ltc with block=transformer, d_conv=4 has 1.703 bits per byte on test (lower is "
        "better); block=gated, d_conv=4 changes it by +0.050 (one seed: no interval)."
    )
    assert block.status == NOT_TESTED
    assert re.findall(r"(?:with|;|and) (\S+=\S+(?: \(a .*?\))?) (?:has|changes)", convolution.sentence) == [
        "d_conv=0",
        "block=canon (a residual convolution)",
        "d_conv=4",
    ]
    assert "block=canon (a residual convolution) changes it by −0.200" in convolution.sentence


def test_a_horizon_is_told_for_each_solver(tmp_path):
    for solver in ("euler", "exponential"):
        for horizon, bits in ((1.0, 1.8), (4.0, 1.9)):
            for seed in range(3):
                path = write_run(tmp_path, "ltc", seed, bits, solver=solver, device_name=str(horizon))
                change(path, "config", model__mixer={"horizon": horizon})
    found = {one.name: one.sentence for one in factors.factors(known(tmp_path)) if "horizon" in one.name}
    assert set(found) == {f"effect-horizon-sotu-1m-ltc-solver-{solver}" for solver in ("euler", "exponential")}
    assert "ltc with solver=euler, horizon=1.0 has 1.800 bits" in found["effect-horizon-sotu-1m-ltc-solver-euler"]


def test_a_comparison_across_versions_of_the_code_is_said(tmp_path):
    for solver, digest in (("semi_implicit", "a"), ("rk4", "b")):
        write_run(tmp_path, "ltc", 0, 1.9, solver=solver, code={"harness.trainer": digest, f"arch.{solver}": "x"})
    found = {one.name: one for one in factors.factors(known(tmp_path))}
    assert found["effect-solver-sotu-1m-ltc"].sentence.endswith("; recorded by different code.")


def test_the_learning_rate_is_told_from_validation_alone(tmp_path):
    for rate, validation in ((0.001, 2.3), (0.003, 2.1), (0.01, 2.6)):
        write_run(tmp_path, "ltc", 0, 1.2345678, validation=validation, learning_rate=rate)
    write_run(tmp_path, "ltc", 0, learning_rate=0.03, status="diverged")
    (found,) = factors.learning_rates(known(tmp_path))
    assert found.sentence == (
        "On sotu at 1m parameters, bits per byte on validation moves with the learning rate: "
        "ltc by 0.500 between 0.001 and 0.03, 1 of 4 rates diverging, best at 0.003."
    )
    assert all(not variant.test for variant in known(tmp_path).tried)
    assert found.commands == (
        "python run.py -m model=ltc trainer.learning_rate=0.001,0.003,0.01,0.03 size=1m task=sotu seed=0",
    )


def test_an_ablation_that_is_better_does_not_stand_for_its_model(seeds):
    """A baseline has no variants to choose among."""
    for seed in range(3):
        path = write_run(seeds, "ltc", seed, 1.0, solver="euler", device_name="euler")
        change(path, "config", solver={"name": "euler", "substeps": 1})
        path = write_run(seeds, "ltc", seed, 1.95, solver="semi_implicit", device_name="as it comes")
        change(path, "config", solver={"name": "semi_implicit", "substeps": 6})
    (against, *nothing) = pairs.pairs(known(seeds))
    assert "ltc with semi_implicit has 1.950" in against.sentence
    assert {one.status for one in nothing} == {NOT_MEASURED}


def test_learning_rates_are_compared_by_the_seeds_that_all_have_and_named_apart(tmp_path):
    for taps, best in ((0, 2.2), (4, 2.0)):
        for rate, validation in ((0.001, 2.3), (0.003, best)):
            path = write_run(tmp_path, "ltc", 0, validation=validation, learning_rate=rate, device_name=str(taps))
            change(path, "config", model__block={"name": "transformer"}, model__mixer={"d_conv": taps})
    path = write_run(tmp_path, "ltc", 1, validation=9.9, learning_rate=0.003, device_name="4")
    change(path, "config", model__block={"name": "transformer"}, model__mixer={"d_conv": 4})
    (found,) = factors.learning_rates(known(tmp_path))
    assert found.sentence.endswith(
        "ltc (d_conv=0) by 0.100 between 0.001 and 0.003, best at 0.003; "
        "ltc (d_conv=4) by 0.300 between 0.001 and 0.003, best at 0.003."
    )
    assert len(found.commands) == 2
    assert all("trainer.learning_rate=0.001,0.003" in one and one.endswith("seed=0") for one in found.commands)


def test_another_corpus_keeps_or_turns_the_order(tmp_path):
    for model, bits in (("ltc", 1.8), ("mamba", 1.7), ("transformer", 2.0)):
        write_run(tmp_path, model, 0, bits)
        path = write_run(tmp_path, model, 1, 2.5 - bits / 4 if model != "transformer" else 3.0)
        change(path, "result", task="stdlib", data__digest="d" * 64)
    (found,) = corpora.transfer(known(tmp_path))
    assert found.sentence == (
        "Of the 3 pairs of models that both have, 2 stand in the same order on stdlib as on sotu at 1m parameters; "
        "turned round are ltc and mamba."
    )


def test_the_best_model_stands_beside_the_compressors_of_its_very_data(seeds):
    gathered = known(seeds)
    assert corpora.compressors(gathered)[0].status == NOT_MEASURED
    gathered.lines["sotu", "another text"] = [Line("PPMd", "ppmd", 1.0)]
    assert corpora.compressors(gathered)[0].status == NOT_MEASURED
    lines = [Line("PPMd order 12", "ppmd", 1.375), Line("6-gram", "ngram", 1.556), Line("xz", "xz", 2.0)]
    gathered.lines["sotu", "b2023cac2b1df6e6"] = lines
    (found,) = corpora.compressors(gathered)
    assert "ltc with rk4, has 1.900 bits per byte on test (3 seeds" in found.sentence
    assert (
        "PPMd order 12 1.375 (+0.525) and xz 2.000 (−0.100); counts of the train split alone, 6-gram 1.556 (+0.344)."
        in found.sentence
    )


def test_a_single_run_beside_the_compressors_is_said_to_be_one_seed(tmp_path):
    write_run(tmp_path, "ltc", 0, 1.9)
    gathered = known(tmp_path)
    gathered.lines["sotu", "b2023cac2b1df6e6"] = [Line("xz", "xz", 2.0)]
    (found,) = corpora.compressors(gathered)
    assert "1.900 bits per byte on test (one seed" in found.sentence


def test_three_sizes_are_needed_for_an_exponent(seeds):
    write_run(seeds, "ltc", 0, 1.9, size="250k")
    made = report.build(records.load([seeds]), seeds / "bench")
    (found,) = [one for one in made.findings if one.name.startswith("scaling")]
    assert (found.status, "sotu: 250k, 1m" in found.sentence) == (NOT_MEASURED, True)


STEEPER = scaling.Law(PLANTED.floor, PLANTED.factor * 4_000_000**0.1, PLANTED.exponent + 0.1)
"""Crosses the planted law at 4M parameters."""


def test_exponents_are_told_as_the_table_of_laws_fits_them(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "DRAWS", 50)
    ladder(tmp_path, "ltc", PLANTED, sizes=("125k", "250k", "500k"))
    ladder(tmp_path, "mamba", STEEPER)
    ladder(tmp_path, "lstm", scaling.Law(1.2, 200.0, 0.45), count=1)  # one seed a size identifies nothing
    for model in ("rwkv", "gru", "cfc"):
        ladder(tmp_path, model, PLANTED, sizes=("125k", "1m"))
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    (found,) = [one for one in made.findings if one.name.startswith("scaling")]
    exact = made.verdict.tables["scaling"][0].data.set_index("model")
    told = {
        model: "alpha is {:.3g} (95 % interval {:.3g} to {:.3g}) and E {:.3g} ({:.3g} to {:.3g})".format(
            *(exact.loc[model, f"{key}{end}"] for key in ("exponent", "floor") for end in ("", "_low", "_high"))
        )
        for model in ("ltc", "mamba")
    }
    ltc, mamba = (one for one in made.verdict.laws.popitem()[1] if one.label in told)
    gap = scaling.gap(ltc, mamba, lambda law: law.exponent)
    assert gap.low < -0.1 < gap.high
    value, low, high = map(finding.signed, (gap.value, gap.low, gap.high))
    assert found.sentence == (
        f"On sotu, in L(N) = E + A / N^alpha, {told['ltc']} with ltc (3 sizes, of 2, 2 and 2 seeds) and "
        f"{told['mamba']} with mamba (4 sizes, of 2, 2, 2 and 2 seeds); 3 sizes fit the 3 constants of ltc without a "
        f"residual; alpha of ltc less that of mamba is {value} (95 % interval {low} to {high}); alpha is not "
        "identified by the data with lstm; alpha is not measured, for want of 3 sizes, with rwkv and 2 others."
    )
    assert (found.status, len(found.runs)) == (finding.MEASURED, 18)


def test_a_larger_budget_is_told_as_an_extrapolation_of_the_laws(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "DRAWS", 50)
    ladder(tmp_path, "ltc", PLANTED)
    ladder(tmp_path, "mamba", STEEPER)
    ladder(tmp_path, "transformer", scaling.Law(PLANTED.floor + 0.2, PLANTED.factor, PLANTED.exponent))
    ladder(tmp_path, "rwkv", PLANTED)
    ladder(tmp_path, "gru", scaling.Law(0.9, 40.0, 0.3))  # not asked for
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    (found,) = [one for one in made.findings if one.name.startswith("larger")]
    assert found.status == finding.EXTRAPOLATED
    start, *parts = re.split(r"; of |of (?=ltc less)", found.sentence)
    assert start == (
        "Extrapolated, not measured: on sotu, at 2,000,000 parameters, twice the largest measured, and 20 tokens a "
        "parameter, as at the sizes measured, bits per byte on test "
    )
    said = {re.match(r"ltc less (\w+) is ", part)[1]: part for part in parts}
    assert sorted(said) == ["mamba", "rwkv", "transformer"]
    assert "ltc less transformer is −0.2" in said["transformer"]
    assert "do not cross below 100,000,000 parameters (of the draws of their bootstrap 0 %" in said["transformer"]
    assert "not told apart" in said["rwkv"]
    near = int(re.search(r"cross near ([\d,]+) parameters", said["mamba"])[1].replace(",", ""))
    assert 2_500_000 < near < 6_000_000
    known = {one.label: one for one in made.verdict.laws.popitem()[1]}
    gap = scaling.gap(known["ltc"], known["mamba"], lambda law: law.at(2_000_000))
    assert f"is {finding.signed(gap.value)} (95 % interval {finding.signed(gap.low)} to" in said["mamba"]


def test_laws_of_another_budget_are_not_held_against_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "DRAWS", 50)
    ladder(tmp_path, "ltc", PLANTED)
    for size in SIZES:
        ladder(tmp_path, "mamba", STEEPER, sizes=(size,), tokens=40 * SIZES[size])
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    assert not [one for one in made.findings if one.name.startswith("larger")]


def test_the_growth_of_a_state_is_told_with_its_exponent_and_its_policy(tmp_path):
    write_run(tmp_path, "ltc", 0, 1.9)
    write_run(tmp_path, "transformer", 0, 2.0)
    write_run(tmp_path, "mamba", 0, 1.7, policy={"kind": "window", "tokens": 512})
    (found,) = cost.state(known(tmp_path))
    assert found.sentence == (
        "From 1,024 to 131,072 tokens of context, at 1m parameters, generation keeps: ltc 2.05 kB throughout, "
        "transformer 4.19 MB to 537 MB (exponent 1.00) and mamba 73.7 kB throughout with its context cut to 512 tokens."
    )


def test_a_busy_machine_tells_no_latency(tmp_path):
    for model in ("ltc", "transformer"):
        write_run(tmp_path, model, 0, 1.9, busy=model == "ltc")
    assert cost.under_policy(known(tmp_path))[0].status == NOT_MEASURED
    write_run(tmp_path, "ltc", 1, 1.9, busy=False)
    assert "ltc 1.5 ms and transformer 1.5 ms" in cost.under_policy(known(tmp_path))[0].sentence
    write_run(tmp_path, "transformer", 1, 1.9, device_name="Other CPU")
    assert cost.under_policy(known(tmp_path))[0].status == NOT_MEASURED


def test_speeds_come_from_the_bench(tmp_path):
    rows = [
        {"what": "decoding", "contestant": name, "length": 32768, "decode_ms": ms, "range_ms": [ms, 1.1 * ms]}
        for name, ms in (("ltc", 0.5), ("transformer", 2.0))
    ]
    content = {"machine": {"cpu": "CPU", "threads": 2, "gpu": None}, "rows": rows, "skipped": {}}
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "models.json").write_text(json.dumps(content))
    (found,) = cost.decoding(evidence.Evidence([], [], tmp_path / "bench"))
    assert found.sentence == (
        "On CPU, 2 threads, after 32,768 tokens of context, none of them cut, a generated token takes 0.5 ms with ltc; "
        "2 with transformer, 4 times (3.64 to 4.4): between the extremes of the rounds."
    )
    nothing = evidence.Evidence([], [], tmp_path / "nothing")
    assert [one.status for tell in (cost.decoding, cost.training, cost.newton) for one in tell(nothing)] == (
        [NOT_MEASURED] * 3
    )


def timed(folder, rows):
    """The evidence of a bench of whole models that holds these rows, at the prices of docs/prices.yaml."""
    content = {"machine": {"cpu": "CPU", "threads": 2, "gpu": None}, "rows": rows, "skipped": {}}
    (folder / "bench").mkdir(exist_ok=True)
    (folder / "bench" / "models.json").write_text(json.dumps(content))
    return evidence.Evidence([], [], folder / "bench", prices=prices.read())


def training_row(name, us, rounds=None):
    """Ranges that overlap, whatever the rounds."""
    row = {"what": "training", "contestant": name, "length": 512, "parameters": 1000, "range_us": [0.6 * us, 1.6 * us]}
    row |= {"tokens_per_second": 1e6 / us, "training_us": us}
    return row | ({"each_us": rounds} if rounds else {})


def test_speeds_whose_rounds_overlap_are_not_told_apart_unless_they_are_paired(tmp_path):
    rows = [training_row("ltc", 100.0), training_row("mamba", 120.0)]
    (found,) = cost.training(timed(tmp_path, rows))
    assert "8,333 with mamba, 0.833 times (0.312 to 2.22: not told apart): between the extremes" in found.sentence
    without = [{key: value for key, value in row.items() if key != "range_us"} for row in rows]
    assert "0.833 times (its range not kept: not told apart)" in cost.training(timed(tmp_path, without))[0].sentence
    slow = [1.2 * us * off for us, off in zip((60.0, 100.0, 160.0), (1.01, 0.99, 1.0), strict=True)]
    rows = [training_row("ltc", 100.0, [60.0, 100.0, 160.0, 90.0]), training_row("mamba", 120.0, [*slow, None])]
    (found,) = cost.training(timed(tmp_path, rows))
    assert re.search(
        r"mamba, 0\.833 times \(95 % interval 0\.81\d to 0\.85\d, p = 0\.00\d, 3 rounds\)\.", found.sentence
    )
    (dear,) = cost.costs(timed(tmp_path, rows))
    assert "cost $0.0028 with ltc; $0.0033 with mamba, 1.2 times (95 % interval 1.1" in dear.sentence


def test_costs_elsewhere_are_those_of_the_tables(tmp_path):
    at = prices.read().extrapolated.contexts
    keys = ("training", *(f"generation_{context}" for context in at))
    rows = [
        {"model": model}
        | {f"{key}{end}": dollars * by for key in keys for end, by in (("", 1), ("_low", 0.8), ("_high", 2))}
        for model, dollars in (("ltc", 0.1), ("transformer", 0.25))
    ]
    rows[1] |= {f"generation_{at[-1]}{end}": None for end in ("", "_low", "_high")}  # does not fit
    rows.append(rows[0] | {"model": "mamba", "training": None, "training_low": 0.07, "training_high": None})
    paid = (("ltc", 0.01, 1000), ("rwkv", 0.03, 1001), ("rwkv", 0.09, 4000), ("mamba", 0.02, 4000))  # of other sizes
    runs = [{"model": model, "generation_1024": dollars, "parameters": size} for model, dollars, size in paid]
    runs = [dict.fromkeys([f"generation_{context}" for context in prices.CONTEXTS]) | row for row in runs]
    tables = {"cost-extrapolated": pd.DataFrame(rows), "cost-measured": pd.DataFrame(runs)}
    gathered = evidence.Evidence([], [], tmp_path / "bench", costs=tables, prices=prices.read())
    measured, extrapolated = (one.sentence for one in cost.costs(gathered))
    assert "after 1,024 $0.01 with ltc and 3 times as much with rwkv: each timed in its own run" in measured
    assert (
        "not measured, a million tokens cost: training $0.1 (0.08 to 0.2) with ltc, 2.5 times with tr" in extrapolated
    )
    assert "with transformer and above $0.07 with mamba; generation" in extrapolated
    assert (
        f"generation after {at[-1]:,} $0.1 (0.08 to 0.2) with ltc, not to be had (it does not fit) with" in extrapolated
    )
    rows[0] |= {"training": None, "training_low": 0.06, "training_high": None}  # goes token by token
    tables["cost-extrapolated"] = pd.DataFrame(rows)
    extrapolated = cost.costs(gathered)[-1].sentence
    assert "training above $0.06 with ltc, $0.25 with transformer and above $0.07 with mamba;" in extrapolated


def test_the_memory_of_a_process_is_told_with_its_range(tmp_path):
    for seed, more in enumerate((0, 500, 2500)):
        write_run(tmp_path, "ltc", seed, 1.9, memory=1000 + more)
        write_run(tmp_path, "mamba", seed, 1.9, memory=3000 + more)
        write_run(tmp_path, "rwkv", seed, 1.9, memory=9000)
    generation, training = cost.processes(known(tmp_path))
    said = (
        "process takes 1.50 kB with ltc; 3.50 kB with mamba, 2.33 times (0.857 to 5.5: not told apart); 9 kB with rwkv"
    )
    assert f"{said}, 6 times (2.57 to 9): " in generation.sentence
    assert training.status == NOT_MEASURED


def test_a_state_is_compared_where_no_context_is_cut(tmp_path):
    write_run(tmp_path, "ltc", 0, 1.9)
    write_run(tmp_path, "mamba", 0, 1.7, policy={"kind": "window", "tokens": 512})
    (found,) = cost.uncut(known(tmp_path))
    assert found.sentence == (
        "After 32,768 tokens of context, none of them cut, at 1m parameters, generation keeps 2.05 kB with ltc, "
        "4.72 MB with mamba (2,304 times, computed from the 73.7 kB of its last 512 tokens): bytes counted, the same "
        "in every run."
    )


def test_the_answer_follows_from_the_findings(tmp_path):
    for model, bits in (("ltc", 1.8), ("transformer", 2.0), ("mamba", 1.7), ("rwkv", 1.8)):
        five_seeds(tmp_path, model, bits)
    rows = [training_row(name, us, [us, 1.01 * us, 1.02 * us]) for name, us in (("ltc", 100.0), ("mamba", 50.0))]
    timed(tmp_path, rows)
    gathered = known(tmp_path)
    lines = [Line("PPMd order 12", "ppmd", 1.375), Line("xz", "xz", 1.9)]
    gathered.lines["sotu", "b2023cac2b1df6e6"] = lines
    (found,) = gaps.answer(gathered)
    words = {one.name: one.sentence for one in pairs.pairs(gathered)}
    rival = "not told apart from rwkv" if "not significant" in words["quality-ltc-rwkv"] else "rwkv"
    assert found.sentence.startswith("At 1m parameters on sotu, each in its own block, ltc is in quality better than t")
    assert "worse than mamba" in found.sentence
    assert rival in found.sentence
    assert (
        "; every model recorded there is behind PPMd order 12; it generates from the smallest state; " in found.sentence
    )
    assert found.sentence.endswith("by the bench it trains slower than mamba.")
    assert told.build(gathered)[0] == found


def test_the_target_is_judged_by_the_best_of_its_size_under_the_recipe(tmp_path):
    five_seeds(tmp_path, "ltc", 1.8, size="250k")
    five_seeds(tmp_path, "mamba", 1.6, count=1, size="500k", trainer={"tokens": 9000})
    five_seeds(tmp_path, "gru", 1.3, count=1, trainer={"beta2": 0.5})
    gathered = known(tmp_path, "sotu-250k")
    gathered.lines["sotu", "b2023cac2b1df6e6"] = [Line("PPMd", "ppmd", 1.375), Line("xz", "xz", 1.9)]
    (found,) = gaps.target(gathered)
    assert "below PPMd, 1.375 bits per byte on test: not measured at 1m under the recipe; the best" in found.sentence
    assert "of any size on validation, gru at 1m parameters, has 1.3" in found.sentence
    five_seeds(tmp_path, "mamba", 1.5, count=1, trainer={"tokens": 90_000})
    gathered = known(tmp_path, "sotu-250k")
    gathered.lines["sotu", "b2023cac2b1df6e6"] = [Line("PPMd", "ppmd", 1.375)]
    (found,) = gaps.target(gathered)
    assert "on test: the best model of that size on validation, mamba at 1m parameters, has 1.5" in found.sentence


def test_a_sweep_says_how_many_of_its_runs_are_recorded(tmp_path):
    done = write_run(tmp_path, "ltc", 0).name.rpartition("-")[2]
    diverged = write_run(tmp_path, "ltc", 1, status="diverged").name.rpartition("-")[2]
    jobs = [sweep.Job([], done), sweep.Job([], diverged), sweep.Job([], "absent"), sweep.Job([], None, "waits")]
    sweep.write(tmp_path, sweep.Sweep("ladder", jobs=jobs))
    sweep.write(tmp_path, sweep.Sweep("states", jobs=jobs[:1]))
    (found,) = gaps.sweeps(evidence.Evidence([], [], tmp_path / "bench"))
    assert found.sentence == (
        "Of the runs that each sweep asks for are recorded: ladder 2 of 4; all runs of states are recorded."
    )
    assert found.commands == ("python run.py -m +sweeps=ladder",)


def test_the_gradient_is_told_by_speed_and_memory(tmp_path):
    for method, speed, memory in (("backprop", 1000, 3e8), ("checkpoint", 900, 1e8)):
        path = write_run(tmp_path, "ltc", 0, 1.9, speed=speed, device_name=method)
        change(path, "config", gradient={"name": method})
        change(path, "result", training__peak_memory_bytes=int(memory), gradient=method)
    (found,) = cost.gradients(known(tmp_path))
    assert "gradient=backprop 1,000 tokens/s and 300 MB of memory" in found.sentence
    assert "gradient=checkpoint 900 tokens/s and 100 MB of memory" in found.sentence


def test_commands_are_one_grid_where_the_runs_are_one(seeds):
    variants = known(seeds).of("sotu-1m", "transformer")
    assert evidence.commands(variants) == (
        "python run.py -m model=transformer trainer.learning_rate=0.001 size=1m task=sotu seed=0,1,2,3",
    )
    for seed in (0, 1):
        write_run(seeds, "gru", seed)
    both = known(seeds).of("sotu-1m", "transformer", "gru")  # of other seeds: no grid
    assert len(evidence.commands(both)) == 2


def test_a_command_tells_what_was_another_recipe_than_todays(tmp_path):
    path = write_run(tmp_path, "transformer", 0)
    today = yaml.safe_load((usual.CONF / "trainer" / "default.yaml").read_text())
    change(path, "config", trainer__beta1=today["beta1"], trainer__beta2=0.5, trainer__clip_norm=None)
    change(path, "config", model__tie_embeddings=False)
    (command,) = evidence.commands(known(tmp_path).of("sotu-1m", "transformer"))
    told = "model.tie_embeddings=false trainer.beta2=0.5 trainer.clip_norm=null"
    assert command == f"python run.py model=transformer trainer.learning_rate=0.001 {told} size=1m task=sotu seed=0"


def test_a_command_tells_how_its_mixer_was_set(tmp_path):
    for taps in (0, 4):  # four are what its file gives it
        change(write_run(tmp_path, "ltc", 0, device_name=str(taps)), "config", model__mixer__d_conv=taps)
    told = [command for variant in known(tmp_path).of("sotu-1m") for command in evidence.commands([variant])]
    assert sorted("model.mixer.d_conv=0" in command for command in told) == [False, True]
    assert not any("d_conv=4" in command for command in told)


def test_a_command_tells_how_its_task_was_set(tmp_path):
    path = write_run(tmp_path, "transformer", 0)
    given = yaml.safe_load((usual.CONF / "task" / "sotu.yaml").read_text())
    kept = {f"task__{key}": value for key, value in given.items() if key != "_target_"}
    change(path, "config", **kept)
    (command,) = evidence.commands(known(tmp_path).of("sotu-1m", "transformer"))
    assert "task." not in command
    path = write_run(tmp_path, "mamba", 0)
    change(path, "result", task="mqar")
    change(path, "config", task__name="mqar", task__num_kv_pairs=8, task__mixture=[[8, 1, 1], [16, 2, 2]])
    (command,) = evidence.commands(known(tmp_path).of("mqar-1m", "mamba"))
    assert shlex.split(command)[-4:-1] == ["task=mqar", "task.mixture=[[8, 1, 1], [16, 2, 2]]", "task.num_kv_pairs=8"]


def test_nothing_recorded_is_said_of_every_finding(tmp_path):
    nothing = told.build(evidence.Evidence([], [], tmp_path))
    assert {one.status for one in nothing} == {NOT_MEASURED}
    assert all(one.commands and "not measured" in one.sentence for one in nothing)
    assert len({one.name for one in nothing}) == len(nothing)
    assert told.headline(nothing) == ""


def test_findings_stand_under_their_topics_once_each(seeds):
    findings = told.build(known(seeds))
    text = told.markdown(findings)
    topics = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(topics) == len(set(topics)) == len({one.topic for one in findings})
    assert text.count("\n- ") == len(findings)
    assert all(f"  `{command}`" in text for one in findings for command in one.commands)
    assert told.headline(findings).count("\n") + 1 == sum(one.headline for one in findings)


def test_a_label_is_shown_as_it_stands_in_markdown():
    one = finding.Finding("n", "T", "a*b* <i> [x](y) `c`", finding.MEASURED)
    assert "\\*b\\* \\<i\\> \\[x\\](y) \\`c\\`" in told.markdown([one])


def test_no_finding_sees_the_test_figure_of_what_was_not_chosen(tmp_path):
    write_run(tmp_path / "runs", "ltc", 0, 1.2345678, validation=2.2, learning_rate=0.01)
    write_run(tmp_path / "runs", "ltc", 0, 1.9, validation=2.1, learning_rate=0.003)
    write_run(tmp_path / "runs", "transformer", 0, 2.0, learning_rate=0.003)
    shutil.copytree(BENCH, tmp_path / "bench")
    made = report.build(records.load([tmp_path / "runs"]), tmp_path / "bench")
    text = told.markdown(made.findings)
    assert "1.234" not in text
    assert "ltc has 1.900 bits per byte on test (lower is better) and transformer 2.000" in text
