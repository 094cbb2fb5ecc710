"""Published claims beside planted records: the verdict, what it rests on, and the file that lists them."""

import json

import pytest
import yaml

import run
from analysis import claims
from analysis.claims import FAILS, HOLDS, OPEN, Claim, Timing
from analysis.records import Record
from analysis.render import NOT_MEASURED
from harness.config.errors import RecordError
from harness.records import sweep
from test_analysis import generated

LOWER, HIGHER = "mean_squared_error", "accuracy"


def recorded(root, metric, code="", **models):
    """A sweep `planted` of every model's figures by seed; None for a run that diverged, "" for one not made.

    code: of the runs' module; "" for runs that do not name it.
    """
    jobs, made = [], []
    for model, figures in models.items():
        for seed, figure in enumerate(figures):
            key, name = f"{model}{seed}", model.partition("_at_")
            rate = [f"trainer.learning_rate={name[2]}"] if name[2] else []
            jobs.append(sweep.Job([f"seed={seed}", f"model={name[0]}", *rate, "+sweeps=planted"], key))
            scored = {metric: figure}
            result = {
                "key": key,
                "seed": seed,
                "status": "finished",
                "evaluation": {"validation": scored, "test": scored},
                "code": {"digest": code, "modules": {"arch.a": code}} if code else None,
            }
            if figure is None:
                result |= {"status": "diverged", "evaluation": None}
            if figure != "":
                made.append(Record(root, result, {}, {}))
    sweep.write(root, sweep.Sweep("planted", "Which?", jobs))
    return made


def claim(**more):
    given = {"claim": "a beats b", "source": "A paper, table 1", "at": "https://a.paper", "sweep": "planted"}
    return Claim(**(given | {"ours": {"model": "a"}, "against": {"model": "b"}} | more))


def answered(root, records, **more):
    (one,) = claims.answer([claim(**more)], records, root / "bench")
    return one


NEAR, LESS, MORE = (2.0, 2.1, 1.9), (1.5, 1.61, 1.4), (2.5, 2.59, 2.4)
VERDICTS = {
    "confirmed": (LOWER, LESS, NEAR, {}, HOLDS),
    "refuted": (LOWER, MORE, NEAR, {}, FAILS),
    "a higher metric": (HIGHER, MORE, NEAR, {}, HOLDS),
    "that it is the worse": (HIGHER, LESS, NEAR, {"worse": True}, HOLDS),
    "not significant": (LOWER, (2.0, 2.3, 1.7), NEAR, {}, OPEN),
    "by less than it says": (LOWER, LESS, NEAR, {"by": 0.9}, FAILS),
    "as good as, within": (LOWER, (2.1, 2.2, 2.02), NEAR, {"by": -0.5}, HOLDS),
    "a number": (HIGHER, (0.97, 0.98, 0.99), (), {"against": 0.5}, HOLDS),
    "a number that all seeds exceed alike": (HIGHER, (1.0, 1.0, 1.0), (), {"against": 0.99}, HOLDS),
    "two seeds": (LOWER, LESS[:2], NEAR, {}, NOT_MEASURED),
    "a seed is missing": (LOWER, (*LESS[:2], ""), NEAR, {}, NOT_MEASURED),
    "a run diverged": (LOWER, (*LESS, None), (*NEAR, 2.0), {}, OPEN),
    "more of them diverge": (LOWER, (None, None, None), NEAR, {"figure": "share diverged", "worse": True}, HOLDS),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_a_claim_is_judged_by_one_rule(tmp_path, case):
    metric, ours, against, more, verdict = VERDICTS[case]
    assert answered(tmp_path, recorded(tmp_path, metric, a=ours, b=against), **more).verdict == verdict


def test_claims_that_one_sweep_answers_are_adjusted_together(tmp_path):
    records = recorded(tmp_path, LOWER, a=LESS, b=NEAR)
    alone, *both = (
        [one.p for one in claims.answer([claim()] * count, records, tmp_path / "bench")] for count in (1, 2)
    )
    assert both == [[2 * alone[0]] * 2]
    others = [claim(), claim(sweep="another")]
    assert [one.p for one in claims.answer(others, records, tmp_path / "bench")] == [alone[0], None]


def test_a_sweep_that_nobody_started_leaves_its_claim_not_measured_with_its_cost(tmp_path):
    (tmp_path / "planted.yaml").write_text(
        "sweep: {choose: {trainer.learning_rate: {sweep: rates}}, cost: {hours: 2.0}}"
    )
    (tmp_path / "rates.yaml").write_text("sweep: {grids: [{trainer.learning_rate: [1, 2]}], cost: {hours: 1.5}}")
    made = claims.table([answered(tmp_path, [])], tmp_path)
    row = dict(zip(made.header, made.rows[0], strict=True))
    assert (row["verdict"], row["rates"]) == ("not measured (3.5 hours)", "2")
    assert row["command"] == "`python run.py -m +sweeps=planted`"


def test_of_several_rates_the_best_on_validation_counts_and_their_number_is_told(tmp_path):
    records = recorded(tmp_path, LOWER, a_at_1=MORE, a_at_2=LESS, b_at_1=NEAR)
    one = answered(tmp_path, records)
    assert (list(one.ours.figures.values()), one.ours.rates, one.verdict) == (list(LESS), 2, HOLDS)


def test_runs_of_one_version_of_the_code_count_alone_and_those_left_out_are_told(tmp_path):
    (tmp_path / "planted.yaml").write_text("sweep: {cost: {hours: 1.0}}")
    few = recorded(tmp_path, LOWER, a=(9.0, 9.0), b=(), code="old")
    many = recorded(tmp_path, LOWER, a=LESS, b=NEAR, code="new")
    for records in ([*many, *few], [*few, *many]):
        one = answered(tmp_path, records)
        assert (list(one.ours.figures.values()), one.ours.other, one.against.other) == (list(LESS), 2, 0)
        assert claims.table([one], tmp_path).notes[-1].endswith("left out: a beats b.")
    assert "left out" not in " ".join(claims.table([answered(tmp_path, many)], tmp_path).notes)
    a_seed_of_each = [few[0], many[1]]
    assert answered(tmp_path, a_seed_of_each).ours.figures == {1: LESS[1]}


def test_all_p_of_the_page_are_adjusted_together(tmp_path):
    records = recorded(tmp_path, LOWER, a=(1.97, 2.06, 1.86), b=NEAR)
    alone = claims.answer([claim()], records, tmp_path / "bench")
    among = claims.answer([claim() for _ in range(10)], records, tmp_path / "bench")
    assert (alone[0].verdict, among[0].verdict) == (HOLDS, OPEN)
    assert among[0].p == pytest.approx(10 * alone[0].p)


def test_a_figure_is_taken_at_its_length_or_from_the_measurement(tmp_path):
    records = recorded(tmp_path, HIGHER, a=LESS, b=NEAR)
    for record in records:
        record.result["evaluation"]["extrapolation"] = [{"length": 48, HIGHER: 0.1 * record.result["seed"]}]
        contexts = [{"context": c, "state_bytes": 8 * c, "decode_ms_p50": c / 64} for c in (64, 128)]
        record.result["measurement"] = {"contexts": contexts, "load": {"busy": record.result["seed"] == 1}}
    for record in records:
        record.result["evaluation"]["test"]["sequence_accuracy"] = 0.2 * record.result["seed"]
    whole = answered(tmp_path, records, figure="whole sequences").ours
    assert whole.figures == pytest.approx({0: 0, 1: 0.2, 2: 0.4})
    assert whole.higher
    assert answered(tmp_path, records, length=48).ours.figures == pytest.approx({0: 0, 1: 0.1, 2: 0.2})
    assert answered(tmp_path, records, figure="state exponent").ours.figures == pytest.approx({0: 1, 1: 1, 2: 1})
    assert answered(tmp_path, records, figure="slowest token in ms").ours.figures == {0: 2.0, 2: 2.0}


@pytest.mark.parametrize(("times", "verdict"), [(1.5, HOLDS), (2.0, OPEN), (3.0, FAILS)])
def test_a_speed_is_judged_by_all_rounds_of_the_bench(tmp_path, times, verdict):
    rows = [
        {"contestant": name, "training_us": us, "training_ms": us / 2, "training_range_ms": [0.45 * us, 0.55 * us]}
        for name, us in (("a", 10.0), ("b", 20.0))
    ]
    (tmp_path / "kernels.json").write_text(json.dumps({"machine": {}, "rows": rows, "skipped": []}))
    timing = Timing(
        subject="kernels", key="training_us", ours={"contestant": "a"}, against={"contestant": "b"}, times=times
    )
    (one,) = claims.answer([claim(sweep="", timing=timing)], [], tmp_path)
    assert one.verdict == verdict
    assert one.timed == pytest.approx((1.8 / 1.1, 2.0, 2.2 / 0.9))


def asks_for(grid, selection):
    """Whether some run of a grid has these overrides."""
    return all(
        key not in grid
        if value is None
        else value in (known if isinstance(known := grid.get(key), list) else [known]) or known == "glob(*)"
        for key, value in selection.items()
    )


def test_every_claim_selects_runs_of_its_sweep():
    for one in claims.read():
        if one.sweep:
            section = yaml.safe_load((run.ROOT / "sweeps" / f"{one.sweep}.yaml").read_text())["sweep"]
            for selection in (one.ours, one.against):
                assert isinstance(selection, float) or any(asks_for(grid, selection) for grid in section["grids"]), one


@pytest.mark.parametrize(
    "text", ["- {claim: a}", "- {claim: a, source: b, at: c}", "{", "- {claim: a, source: b, at: c, x: 1}"]
)
def test_a_wrong_entry_is_named(tmp_path, text):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(RecordError, match=r"claims\.yaml cannot be used"):
        claims.read(tmp_path / "claims.yaml")


def test_the_page_has_a_row_for_every_claim_and_the_same_bytes_again(tmp_path):
    once = generated("claims", tmp_path)
    assert all(one.claim in once for one in claims.read())
