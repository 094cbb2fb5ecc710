"""The search for the recipe as its tables tell it."""

from pathlib import Path

from analysis import records, report, search
from analysis.records import Record
from harness.records import sweep
from test_analysis import write_run

RUNS = [  # a choice, the model, the seed, and what it came to; None where it diverged
    ("", "a", 0, 2.0),
    ("model.tie_embeddings=true", "b", 0, 3.0),  # what it sets out from, and no choice
    ("trainer.beta2=0.99", "a", 0, 1.9),
    ("model.tie_embeddings=true trainer.beta2=0.99", "b", 0, 3.2),
    ("trainer.beta2=0.99", "a", 1, 1.7),  # the first row has no such seed
    ("trainer.clip_norm=null", "a", 0, 2.5),
    ("model.tie_embeddings=true trainer.clip_norm=null", "b", 0, None),
]


def recorded(root: Path, name: str, code: str = "") -> list[Record]:
    """A sweep on disk, and the records of its runs, whose test figures must not show."""
    jobs, made = [], []
    for at, (choice, model, seed, bits) in enumerate(RUNS):
        overrides = [f"seed={seed}", "size=100k", f"model={model}", *choice.split()]
        jobs.append(sweep.Job(overrides, f"key{at}"))
        figures = None if bits is None else {"validation": {"bits_per_byte": bits}, "test": {"bits_per_byte": 9.0}}
        result = {"key": f"key{at}", "model": model, "seed": seed, "evaluation": figures}
        result |= {"code": {"digest": code, "modules": {f"arch.{model}": code}} if code else None}
        made.append(Record(root, result, {}, {}))
    sweep.write(root, sweep.Sweep(name, "Which?", [*jobs, sweep.Job(["model=a", "trainer.beta1=0.7"], "not made")]))
    return made


def test_each_choice_stands_beside_the_first_for_each_model_and_for_both(tmp_path):
    (table,) = search.tables(recorded(tmp_path, "recipe"), tmp_path)
    assert table.header == ["choice", "a", "b", "difference, mean"]
    assert table.rows == [
        ["as it stands", "2.0000", "3.0000", "–"],
        ["beta2=0.99", "1.8000 (-0.1000)", "3.2000 (+0.2000)", "+0.0500"],
        ["clip_norm=null", "2.5000 (+0.5000)", "–", "–"],
        ["beta1=0.7", "–", "–", "–"],
    ]
    assert "9.0" not in str(table.rows)


def test_runs_of_one_version_of_the_code_stand_in_a_table_alone(tmp_path):
    older, newer = recorded(tmp_path, "recipe", "old"), recorded(tmp_path, "recipe", "new")
    (table,) = search.tables([*newer, older[0], older[2]], tmp_path)
    (alone,) = search.tables(newer, tmp_path)
    assert table.rows == alone.rows
    assert [*alone.notes, "Left out, since another version of the code made them: 2 runs."] == table.notes
    (fewer,) = search.tables([older[0], *newer[1:]], tmp_path)  # as if the first row were made by older code
    assert [row[1] for row in fewer.rows] == ["–", "1.8000", "2.5000", "–"]


def test_a_sweep_that_nobody_started_has_no_table(tmp_path):
    assert search.tables([], tmp_path) == []
    recorded(tmp_path, "another")
    assert (search.tables([], tmp_path), search.keys(tmp_path)) == ([], set())


def test_what_the_search_tried_stands_in_no_other_table(tmp_path):
    """Whose best would else be its row, chosen among more values than anyone else tried."""
    for seed in (0, 1):
        write_run(tmp_path, "transformer", seed)
    tried = records.load([tmp_path]).runs[0].result["key"]
    sweep.write(tmp_path, sweep.Sweep("recipe", "Which?", [sweep.Job(["seed=0", "model=transformer"], tried)]))
    made = report.build(records.load([tmp_path]), tmp_path / "bench")
    assert [table.name for table in made.search] == ["search-recipe"]
    assert list(zip(made.runs["seed"], made.runs["chosen"], made.runs["test_bits_per_byte"].notna(), strict=True)) == [
        (1, True, True),
        (0, False, False),
    ]
    assert [list(table.data["seeds"]) for table in made.comparison] == [[1]]
