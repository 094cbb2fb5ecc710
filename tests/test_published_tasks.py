"""Published tasks: a model of bytes in lm-evaluation-harness, and scores beside the record."""

import json
import shutil

import pytest
import torch
import yaml

import harness
import recorded_run
from harness.config.errors import ConfigError, MachineError, RecordError, TaskError
from harness.evaluation import __main__ as evaluation
from harness.records import scores

DOCUMENTS = [
    {"question": f"The quick brown fox jumps over {n} lazy", "choices": [" dogs.", " cats."], "label": n % 2}
    for n in range(6)
]
ANY = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "metadata": {"version": 2},
}
CHOICES = ANY | {
    "task": "animals",
    "output_type": "multiple_choice",
    "doc_to_target": "{{label}}",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITTEN = ANY | {
    "task": "written",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[label]}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["o"], "max_gen_toks": 12, "do_sample": False},
}
WHOLE = ANY | {
    "task": "whole",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
}
UNSAFE = CHOICES | {"task": "unsafe", "unsafe_code": True}
GROUP = {
    "group": "both",
    "task": ["animals", "animals_again"],
    "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    "metadata": {"version": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recorded_run.make(tmp_path_factory.mktemp("scored"), "model=gru", "kernel=reference")


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks whose data is a local JSON file."""
    made = tmp_path / "tasks"
    made.mkdir()
    data = made / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for task in (CHOICES, CHOICES | {"task": "animals_again"}, WRITTEN, WHOLE, UNSAFE):
        content = task | {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (made / f"{task['task']}.yaml").write_text(yaml.safe_dump(content))
    (made / "both.yaml").write_text(yaml.safe_dump(GROUP))
    return made


@pytest.mark.slow
def test_local_tasks_are_scored_beside_the_record(folder, tasks, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="needs the extra lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run = shutil.copytree(folder, tmp_path / "run")
    before = (run / "result.json").read_bytes()
    command = [f"run={run}", f"include_path={tasks}"]
    evaluation.main([*command, "tasks=both,written,whole"])
    known = harness.load(run)
    entries = scores.read(run, known.result)
    assert (run / "result.json").read_bytes() == before
    assert entries.keys() == {"both", "written", "whole"}

    from harness.evaluation.likelihood import log_likelihoods

    pairs = [(tuple(d["question"].encode()), tuple(c.encode())) for d in DOCUMENTS for c in d["choices"]]
    nats = [score for score, _ in log_likelihoods(known, pairs)]
    right = [int((nats[2 * n + 1] > nats[2 * n]) == document["label"]) for n, document in enumerate(DOCUMENTS)]
    score = entries["both"]["scores"]["acc,none"]
    assert (score["values"], score["aggregation"], score["higher_is_better"]) == (right * 2, "mean", True)
    assert score["value"] == pytest.approx(sum(right) / len(right))
    assert entries["both"]["documents"] == entries["both"]["documents"][:6] * 2
    assert entries["both"]["parts"].keys() == {"animals", "animals_again"}

    rolled = entries["whole"]["scores"]["bits_per_byte,none"]
    texts = [tuple(document["question"].encode()) for document in DOCUMENTS]
    expected = [score for score, _ in log_likelihoods(known, [((10,), text) for text in texts])]
    assert rolled["aggregation"] == "bits_per_byte"
    assert [total for total, _ in rolled["values"]] == pytest.approx(expected)
    assert [weight for _, weight in rolled["values"]] == [len(text) for text in texts]
    assert entries["written"]["scores"]["exact_match,none"]["values"] == [0] * 6

    capsys.readouterr()
    evaluation.main([*command, "tasks=both"])
    assert "both: scored already" in capsys.readouterr().out
    evaluation.main([*command, "tasks=both", "limit=2"])
    assert len(scores.read(run, known.result)["both"]["documents"]) == 4
    for wrong, said in (("nowhere", "has no task 'nowhere'"), ("unsafe", "marked as unsafe.*run_code=true")):
        with pytest.raises(TaskError, match=said):
            evaluation.main([*command, f"tasks={wrong}", "limit=1"])


def test_a_context_is_continued_until_an_end_comes(folder, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra lm_eval")
    from lm_eval.api.instance import Instance

    from harness.evaluation.lm import BytesLM

    known = harness.load(folder)
    contexts = ["the quick brown fox", "the quick brown f", ""]
    asked = [Instance("generate_until", {}, (context, {"max_gen_toks": 40}), 0) for context in contexts]
    whole = ["".join(known.generate(context or "\n", 40, temperature=0)) for context in contexts]
    assert BytesLM(known).generate_until(asked, True) == whole
    drawn = Instance("generate_until", {}, ("the", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20}), 0)
    first, second = BytesLM(known).generate_until([drawn, drawn], True)
    assert first != second
    made = iter("née 12\n\nnext".encode())
    monkeypatch.setattr(harness.TrainedModel, "generate", lambda *call: made)
    until = Instance("generate_until", {}, ("the", {"until": ["\n\n", "never"]}), 0)
    assert BytesLM(known).generate_until([until], True) == ["née 12"]
    assert bytes(made) == b"next"  # and nothing beyond the end is generated


@pytest.mark.parametrize(
    ("values", "score", "expected"),
    [
        ([1, 0, 1, 1], 0.75, "mean"),
        ([-1.0, -3.0], 2.718281828459045**2, "perplexity"),
        ([[-2.0, 1], [-4.0, 5]], 2.718281828459045, "perplexity"),
        ([[-2.0, 4], [-6.0, 4]], 1 / 0.6931471805599453, "bits_per_byte"),
        ([1, 0], 0.9, None),
        ([1, None], 1.0, None),
        ([-1e9], 1.0, None),
        ([], 0.0, None),
    ],
)
def test_a_score_is_traced_to_the_values_of_its_documents(values, score, expected):
    assert scores.aggregation_of(values, score) == expected


def test_scores_lie_beside_the_result_of_the_run_and_weights_that_they_are_of(tmp_path):
    result = {"key": "a", "weights": {"sha256": "1"}}
    assert scores.read(tmp_path, result) == {}
    scores.add(tmp_path, result, {"one": {"value": 1}})
    scores.add(tmp_path, result, {"two": {"value": 2}})
    assert scores.read(tmp_path, result) == {"one": {"value": 1}, "two": {"value": 2}}
    other = {"key": "a", "weights": {"sha256": "2"}}
    assert scores.read(tmp_path, other) == {}
    scores.add(tmp_path, other, {"three": {}})
    assert scores.read(tmp_path, other) == {"three": {}}
    (tmp_path / scores.NAME).write_text("[]")
    with pytest.raises(RecordError, match="no file of scores"):
        scores.read(tmp_path, result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "run=VALUE"),
        ("run=r", "tasks= was not given"),
        ("run=r tasks=a shots=-1", "shots=-1"),
        ("run=r tasks=a force=yes", "true or false"),
        ("run=r tasks=a device=tpu", "cpu or cuda"),
        ("run=r tasks=a include_path=nowhere", "no folder"),
    ],
)
def test_a_command_that_cannot_be_read_is_told(arguments, said, monkeypatch):
    monkeypatch.setattr(evaluation, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=said):
        evaluation.main(arguments.split())
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="no CUDA device"):
            evaluation.main(["run=r", "tasks=a", "device=cuda"])
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"liquidbench\[lm_eval\]"):
        evaluation.main(["run=r", "tasks=a"])
