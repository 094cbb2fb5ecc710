"""What theory says of state tracking beside planted records: which cell they land in, and the file that predicts."""

import itertools

import pytest
import yaml

import run
from analysis import tracking
from analysis.records import Record
from analysis.render import NOT_MEASURED
from harness.config.errors import RecordError
from harness.records import sweep
from sweeps.section import Section
from test_analysis import generated

TRAINED, MIDDLE, LONGEST = 40, 80, 240
SMALL = """
sweep: planted
tasks:
  parity: {runs: {experiment: p}, guess: 1/2}
  S3: {runs: {experiment: w, task.group: S3}}
reasons:
  order: {because: it keeps order, source: A paper}
  vector: {because: it turns, source: Another}
rows:
  plain:
    runs: {model: a}
    says: {parity: {prediction: fails, reasons: [order]}, S3: {prediction: fails, reasons: [vector, order]}}
  wide:
    runs: {model: a, model.mixer.d_state: 2}
    says: {parity: {prediction: solves, reasons: [vector]}, S3: {prediction: possible, reasons: [vector]}}
"""


@pytest.fixture
def theory(tmp_path):
    return tracking.read(written(tmp_path, SMALL))


def written(folder, text):
    (folder / "theory.yaml").write_text(text)
    return folder / "theory.yaml"


def recorded(root, *runs, code=""):
    """A sweep `planted` of these runs: (overrides, seed, accuracy at the trained length and at the longest).

    Accuracy None: the run diverged; "": it was not made. code: of the runs' module; "" for runs that do not name it.
    """
    jobs, made = [], []
    for place, (overrides, seed, first, last) in enumerate(runs):
        key = f"{code}{place}"
        jobs.append(sweep.Job([f"seed={seed}", *overrides.split(), "+sweeps=planted"], key))
        at = {TRAINED: first, MIDDLE: 0.0, LONGEST: last}
        result = {
            "key": key,
            "seed": seed,
            "status": "finished" if first is not None else "diverged",
            "evaluation": {"extrapolation": [{"length": length, "accuracy": known} for length, known in at.items()]},
            "code": {"digest": code, "modules": {"arch.a": code}} if code else None,
        }
        if first is None:
            result["evaluation"] = None
        if first != "":
            made.append(Record(root, result, {"trainer": {"length": TRAINED}}, {}))
    sweep.write(root, sweep.Sweep("planted", "Which?", jobs))
    return made


PARITY, S3 = "experiment=p model=a", "experiment=w task.group=S3 model=a"
WIDE = " model.mixer.d_state=2"


def rows(theory, records, root):
    made = tracking.table(theory, tracking.measure(theory, records, root))
    return {row[0]: dict(zip(made.header, row, strict=True)) for row in made.rows}, made


def test_each_run_lands_in_the_cell_of_its_overrides_and_a_cell_without_is_not_measured(tmp_path, theory):
    made = recorded(
        tmp_path, (PARITY, 0, 1.0, 0.5), (PARITY, 1, 0.5, 0.25), (PARITY + WIDE, 0, 0.75, 0.625), (S3, 0, "", "")
    )
    told, table = rows(theory, made, tmp_path)
    assert told["plain"]["parity: accuracy"] == "0.750 at 40, 0.375 at 240 (2)"
    assert told["wide"]["parity: accuracy"] == "0.750 at 40, 0.625 at 240 (1)"
    assert {told[row]["S3: accuracy"] for row in told} == {NOT_MEASURED}
    assert [told[row][f"{task}: theory"] for row in told for task in theory.tasks] == [
        "fails (1)",
        "fails (2, 1)",
        "solves (2)",
        "possible (2)",
    ]
    assert "(1) It keeps order (A paper)." in table.notes
    assert "1/2 of parity" in table.notes[0]
    exact = table.data.set_index(["model", "task"]).loc["plain", "parity"]
    assert (exact["accuracy"], exact["accuracy_longest"], exact["seeds"], exact["prediction"]) == (
        0.75,
        0.375,
        2,
        "fails",
    )


def test_runs_with_other_settings_count_in_no_cell(tmp_path, theory):
    """An override more or less names no cell; a listed run whose key has no record is not measured."""
    made = recorded(tmp_path, (PARITY + " size=1m", 0, 1.0, 1.0), ("experiment=w model=a", 0, 1.0, 1.0))
    other = Record(tmp_path, made[0].result | {"key": "of another sweep"}, made[0].config, {})
    told, _ = rows(theory, [*made, other], tmp_path)
    assert {row[f"{task}: accuracy"] for row in told.values() for task in theory.tasks} == {NOT_MEASURED}


def test_diverged_runs_are_counted_and_those_of_other_code_left_out(tmp_path, theory):
    told, _ = rows(theory, recorded(tmp_path, (PARITY, 0, 1.0, 0.5), (PARITY, 1, None, None)), tmp_path)
    assert told["plain"]["parity: accuracy"] == "1.000 at 40, 0.500 at 240 (1), 1 diverged"
    told, _ = rows(theory, recorded(tmp_path, (PARITY, 0, None, None)), tmp_path)
    assert told["plain"]["parity: accuracy"] == "1 diverged"
    made = recorded(tmp_path, (PARITY, 0, 0.5, 0.5), (PARITY, 1, 0.5, 0.5), (PARITY, 2, 1.0, 1.0), code="new")
    made[2].result["code"] = {"digest": "old", "modules": {"arch.a": "old"}}
    told, table = rows(theory, made, tmp_path)
    assert told["plain"]["parity: accuracy"] == "0.500 at 40, 0.500 at 240 (2)"
    assert table.notes[-1].endswith("left out: plain, parity.")


WRONG = {
    "no such verdict": ("solves", "perhaps", "prediction"),
    "an unknown reason": ("[vector]", "[magic]", "'magic' is none of reasons"),
    "a reason that nothing has": ("reasons:\n", "reasons:\n  idle: {because: a, source: b}\n", "reasons.idle"),
    "a reason without its source": (", source: A paper", "", "source: Field required"),
    "a task without a prediction": (", S3: {prediction: possible, reasons: [vector]}", "", "unlike 'S3'"),
    "two rows of the same runs": (", model.mixer.d_state: 2", "", "two cells have the same runs"),
    "a key that is not known": ("guess", "chance", "chance"),
    "no yaml": ("rows:", "rows: {", "theory.yaml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_named(tmp_path, case):
    old, new, said = WRONG[case]
    assert old in SMALL
    with pytest.raises(RecordError, match=r"theory\.yaml cannot be used") as error:
        tracking.read(written(tmp_path, SMALL.replace(old, new)))
    assert said in str(error.value)


def combinations(line):
    """The overrides of every run of a grid's line."""
    keys = [override.partition("=")[0] for override in line]
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(o.partition("=")[2].split(",") for o in line))
    ]


def test_every_run_of_the_sweep_has_a_prediction_and_every_prediction_runs():
    theory = tracking.read()
    file = run.ROOT / "sweeps" / f"{theory.sweep}.yaml"
    section = Section.of(yaml.safe_load(file.read_text())["sweep"])
    asked = [given for line in section.lines() for given in combinations(line)]
    found = {tracking.named(given) for given in asked}
    assert found == set(theory.cells())
    assert len(asked) == section.budget.runs == len(found) * len(section.seeds)


def test_the_page_has_a_row_for_every_model_and_the_same_bytes_again(tmp_path):
    once = generated("tracking", tmp_path)
    theory = tracking.read()
    assert all(f"| {model} " in once for model in theory.rows)
    assert once.count(NOT_MEASURED) == len(theory.cells())
    assert all(reason.source in once for reason in theory.reasons.values())
