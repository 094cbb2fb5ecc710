"""Sweeps: their files, how grids are extended and values are chosen, and what is said of their runs."""

import fcntl
import json
import math
import os

import pytest

import analysis.__main__ as analysis
import run
from harness.config.errors import ConfigError, RecordError
from harness.records import sweep as on_disk
from harness.records.sweep import Job, Journal, State, Sweep
from harness.tasks.windows import WindowTask
from sweeps import tuning
from sweeps.choices import Chooser
from sweeps.cost import Speeds
from sweeps.known import Known
from sweeps.plan import Plan, Runs
from sweeps.section import Choice, Section
from sweeps.tuning import Tried, UnknownValueError, chosen, extended, further, trend
from sweeps.work import Command, Work

NAMES = sorted(
    path.relative_to(run.ROOT / "sweeps").with_suffix("").as_posix() for path in (run.ROOT / "sweeps").rglob("*.yaml")
)
MOST = int(os.environ.get("LIQUIDBENCH_RUNS", "12"))
"""Runs of a sweep, which take a sixth of a second each to compose; LIQUIDBENCH_RUNS=200 checks those of more too."""


def test_a_section_gives_a_line_of_overrides_for_each_grid():
    grids = [{"model": ["ltc", "gru"], "block": "gated"}, {"seed": 5, "measure.contexts": [[64, 128]], "a.b": None}]
    lines = Section.of({"grids": grids, "seeds": [0, 1]}).lines()
    assert lines == [
        ["seed=0,1", "model=ltc,gru", "block=gated"],
        ["seed=5", "measure.contexts=[64,128]", "a.b=null"],
    ]
    assert Section.of(None).lines() == [[]]


BAD_SECTIONS = {
    "unknown key": ({"gird": []}, "sweep.gird"),
    "no list": ({"grids": {"model": "ltc"}}, "sweep.grids"),
    "seed of words": ({"seeds": ["one"]}, "sweep.seeds.0"),
    "choice of nothing": ({"choose": {"trainer.learning_rate": {"sweep": "a", "by": []}}}, "by"),
    "negative cost": ({"cost": {"hours": -1, "tokens_per_second": 1}}, "sweep.cost.hours"),
    "parts beside grids": ({"parts": ["a"], "seeds": [0]}, "sweep.parts"),
}


@pytest.mark.parametrize("case", BAD_SECTIONS)
def test_a_bad_section_is_refused(case):
    node, fragment = BAD_SECTIONS[case]
    with pytest.raises(ConfigError) as error:
        Section.of(node)
    assert fragment in error.value.what


FURTHER = {
    "the best is inside": ({1: 3.0, 2: 2.0, 4: 2.5}, []),
    "the best is the greatest": ({1: 3.0, 2: 2.0, 4: 1.5}, [8]),
    "the best is the least": ({1: 1.0, 2: 2.0, 4: 2.5}, [0.5]),
    "the ratio is that of the edge": ({1: 3.0, 3: 2.0, 30: 1.5}, [300]),
    "one value": ({0.001: 2.0}, [0.0005, 0.002]),
    "one run is missing": ({1: 3.0, 2: None, 4: 1.5}, []),
    "no run": ({}, []),
    "the greatest diverged": ({1: 3.0, 2: 2.0, 4: math.inf}, []),
    "all diverged": ({1: math.inf, 2: math.inf}, [0.5]),
    "a tie is the lesser's": ({1: 2.0, 2: 1.5, 4: 1.5}, []),
    "rounding": ({0.001: 1.0, 0.003: 2.0}, [0.000333333]),
}


@pytest.mark.parametrize("case", FURTHER)
def test_a_grid_is_extended_until_its_best_value_lies_inside(case):
    scores, more = FURTHER[case]
    assert further(scores) == pytest.approx(more)


def test_what_is_urgent_comes_in_the_order_in_which_it_is_named():
    section = Section.of({"parts": ["a", "b"], "urgent": [{"sweep": "b", "model": ["gru", "ltc"]}, {"seed": 0}]})
    assert section.urgency("b", ["seed=0", "model=ltc"]) == 0
    assert section.urgency("a", ["seed=0", "model=ltc"]) == 1
    assert section.urgency("b", ["seed=0"]) == 1
    assert section.urgency("b", ["seed=1", "model=mamba"]) == 2
    assert Section.of({}).urgency("a", ["seed=0"]) == 0


def test_a_grid_without_a_ratio_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        further({0: 1.0, 1: 2.0})


def parabola(optimum):
    """A score whose best learning rate is the optimum of the model."""
    return lambda job: (math.log2(float(value_of(job, "lr"))) - math.log2(optimum[value_of(job, "model")])) ** 2


def value_of(job, key):
    return next(override.partition("=")[2] for override in job if override.startswith(f"{key}="))


def test_each_family_is_extended_by_itself_for_all_its_seeds():
    jobs = [[f"seed={s}", f"model={m}", f"lr={v}", "+x=1"] for m in ("a", "b") for s in (0, 1) for v in (1, 2, 4)]
    made, endless = extended(jobs, "lr", parabola({"a": 2.1, "b": 30}))
    assert endless == []
    assert made[:6] == jobs[:6]
    new = [job for job in made if job not in jobs]
    assert {value_of(job, "model") for job in new} == {"b"}
    assert sorted({float(value_of(job, "lr")) for job in new}) == [8, 16, 32, 64]
    assert sorted(value_of(job, "seed") for job in new if value_of(job, "lr") == "64") == ["0", "1"]
    assert all("+x=1" in job for job in new)


def test_a_grid_that_waits_for_a_run_is_not_extended():
    jobs = [["seed=0", f"lr={value}", "model=a"] for value in (1, 2)]
    assert extended(jobs, "lr", lambda job: None if "lr=1" in job else 1.0) == (jobs, [])


def test_a_loss_that_falls_without_end_is_told():
    made, endless = extended([["lr=1"], ["lr=2"]], "lr", lambda job: -float(value_of(job, "lr")))
    assert len(made) == 2 + tuning.MOST_FURTHER
    assert endless == [["lr=1"]]


def test_runs_without_the_tuned_key_stay_as_they_are():
    assert extended([["model=a"], ["model=b"]], "lr", lambda job: 1.0) == ([["model=a"], ["model=b"]], [])


def tried(scores, place=1.0, seed=0):
    return [Tried(value, place, seed, score) for value, score in scores.items()]


def test_the_best_inside_value_is_chosen_over_the_seeds_that_all_values_ran():
    assert chosen(tried({1: 2.0, 2: 1.0, 4: 3.0})) == 2
    uneven = [*tried({1: 2.0, 2: 1.9, 4: 2.5, 8: 3.0}), Tried(1, 1.0, 1, 0.0)]  # its second seed is nobody else's
    assert chosen(uneven) == 2
    for scores, said in (
        ({1: 2.0, 2: None, 4: None}, "2 of 3 runs are missing"),
        ({1: 1.0, 2: 2.0}, "the best value 1 lies at the edge"),
        ({1: math.inf, 2: math.inf}, "diverged"),
        ({}, "no run tried"),
    ):
        with pytest.raises(UnknownValueError, match=said):
            chosen(tried(scores))


def on_a_line(exponent, places):
    """Scores whose optimum is 0.004 at place 1 and follows the exponent."""
    made = []
    for place in places:
        optimum = 0.004 * place**exponent
        made += tried({v: (math.log(v) - math.log(optimum)) ** 2 for v in (0.0005, 0.001, 0.002, 0.004, 0.008)}, place)
    return made


def test_a_trend_carries_the_optimum_on():
    found = on_a_line(-0.25, (1, 2, 4))
    assert trend(found, 16) == pytest.approx(0.002, rel=0.02)
    assert trend(on_a_line(-1.0, (1, 2)), 8) == pytest.approx(0.004 * 2**-0.5 * (8 / 2**0.5) ** -0.5, rel=0.02)
    with pytest.raises(UnknownValueError, match="two sizes"):
        trend(on_a_line(0, (1,)), 8)
    with pytest.raises(UnknownValueError, match="missing"):
        trend([*found, Tried(0.016, 4, 0, None)], 8)


def configuration(model, params, rate, seed=0):
    return {"model": {"name": model}, "size": {"params": params}, "trainer": {"learning_rate": rate}, "seed": seed}


def test_a_value_is_chosen_among_the_runs_that_agree():
    runs = [
        (configuration(model, params, rate), abs(math.log2(rate / best)))
        for model, best in (("a", 2), ("b", 4))
        for params in (100, 200)
        for rate in (1, 2, 4, 8)
    ]
    choice = Choice(sweep="tuned", by=["model.name"], trend="size.params")
    chooser = Chooser("trainer.learning_rate", choice, runs)
    assert chooser.value(configuration("a", 100, 0)) == 2
    assert chooser.value(configuration("b", 200, 0)) == 4
    assert chooser.value(configuration("b", 400, 0)) == pytest.approx(4)
    halved = Chooser("trainer.learning_rate", choice.model_copy(update={"times": 0.5}), runs)
    assert halved.value(configuration("b", 200, 0)) == 2
    with pytest.raises(UnknownValueError, match=r"model\.name=c waits for the sweep tuned: no run"):
        Chooser("trainer.learning_rate", choice.model_copy(update={"trend": ""}), runs).value(
            {**configuration("c", 100, 0)}
        )
    with pytest.raises(ConfigError, match="several runs"):
        Chooser("trainer.learning_rate", Choice(sweep="t", by=["model.name"]), runs).value(configuration("a", 100, 0))
    with pytest.raises(ConfigError, match=r"model\.nam"):
        Chooser("trainer.learning_rate", Choice(sweep="t", by=["model.nam"]), runs)


def test_a_value_is_chosen_among_the_runs_of_one_whole_model():
    def variant(taps, rate):
        return configuration("a", 100, rate) | {"model": {"name": "a", "block": {"d_conv": taps}}}

    runs = [(variant(taps, rate), abs(rate - best)) for taps, best in ((0, 2), (4, 3)) for rate in (1, 2, 3, 4)]
    chooser = Chooser("trainer.learning_rate", Choice(sweep="t", by=["model", "size.params"]), runs)
    assert [chooser.value(variant(taps, 0)) for taps in (0, 4)] == [2, 3]
    with pytest.raises(UnknownValueError, match=r"of model=a, size\.params=100 waits for the sweep t"):
        chooser.value(variant(8, 0))


def test_a_score_is_less_where_validation_is_better():
    def result(**figures):
        return {"status": "finished", "evaluation": {"validation": figures, "test": {"bits_per_byte": 0.0}}}

    assert tuning.score(result(bits_per_byte=2.0, loss=9.0)) == 2.0
    assert tuning.score(result(accuracy=0.75, loss=9.0)) == -0.75
    assert tuning.score(result(f1=0.25, loss=9.0)) == -0.25
    assert tuning.score(result(loss=9.0)) == 9.0
    assert tuning.score({"status": "diverged", "evaluation": None}) == math.inf


def write_record(root, key, bits=None, code=None, status="finished"):
    folder = root / f"run-{key}"
    folder.mkdir(parents=True)
    evaluation = {"validation": {"bits_per_byte": bits}} if bits is not None else None
    result = {"status": status, "key": key, "evaluation": evaluation, "code": code}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_record_of_older_code_counts_for_nothing_where_a_checkout_is_named(tmp_path):
    (tmp_path / "checkout" / "harness").mkdir(parents=True)
    (tmp_path / "checkout" / "harness" / "one.py").write_text("x = 1\n")
    from harness.records.code import read

    digest = read(tmp_path / "checkout" / "harness" / "one.py").digest
    write_record(tmp_path / "runs", "old", 1.0, {"digest": "d", "modules": {"harness.one": "0123"}})
    write_record(tmp_path / "runs", "new", 2.0, {"digest": "d", "modules": {"harness.one": digest}})
    write_record(tmp_path / "runs", "unknown", 3.0)
    known = Known([tmp_path / "runs"], tmp_path / "checkout")
    assert [known.score(key) for key in ("old", "new", "unknown", None)] == [None, 2.0, None, None]
    assert [known.state(key) for key in ("old", "new", "absent")] == [State.MISSING, State.FINISHED, State.MISSING]
    everyone = Known([tmp_path / "runs"])
    assert [everyone.score(key) for key in ("old", "new", "unknown")] == [1.0, 2.0, 3.0]


def test_a_sweep_on_disk_says_what_has_become_of_each_run(tmp_path, capsys):
    """One of every state; the same in results/ counts where it is further on there."""
    runs, results = tmp_path / "runs", tmp_path / "results"
    write_record(runs, "a1", 2.0)
    write_record(runs, "b1", status="diverged")
    write_record(results, "h1", 2.0)
    for key, files in {
        "c1": ("config.json", ".lock"),
        "d1": ("config.json", "failure.json"),
        "e1": ("config.json", "checkpoint.pt"),
        "h1": ("config.json", "failure.json"),
        "i1": ("config.json", "refused.json"),
    }.items():
        (runs / f"run-{key}").mkdir()
        for name in files:
            (runs / f"run-{key}" / name).write_text(json.dumps({"message": "no room on the disk"}))
    keys = ("a1", "b1", "c1", "d1", "e1", "f1", "h1", "i1")
    jobs = [*(Job([f"seed={key}"], key) for key in keys), Job(["seed=w"], None, "for another sweep")]
    on_disk.write(runs, Sweep("mine", "Which?", jobs))
    with (runs / "run-c1" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        states = [on_disk.state(on_disk.folders_of_runs([runs, results]).get(key, [])) for key in keys]
        assert analysis.main(["--sweep", "mine", str(results), str(runs)]) == 0
    assert states == ["finished", "diverged", "running", "failed", "stopped", "missing", "finished", "failed"]
    said = capsys.readouterr().out
    for line in (
        "mine: Which?",
        "9 runs: 2 finished, 1 diverged, 1 running, 2 failed, 1 stopped, 1 missing, 1 waiting",
        "running: seed=c1",
        "failed: seed=d1: no room on the disk",
        "failed: seed=i1: its checks failed",
        "missing: seed=f1",
        "waiting: seed=w: for another sweep",
    ):
        assert line in said
    assert not on_disk.is_held(runs / "run-c1")
    with pytest.raises(RecordError, match=r"No sweep 'yours'.*\(mine\)"):
        on_disk.read([runs], "yours")
    assert analysis.main(["--sweep", "yours", str(runs)]) == 2


def test_a_damaged_sweep_is_told(tmp_path):
    path = on_disk.write(tmp_path, Sweep("claims/mine"))
    path.write_text("{")
    with pytest.raises(RecordError, match="start the sweep again"):
        on_disk.read([tmp_path], "claims/mine")


def test_one_command_makes_a_sweep(tmp_path):
    first, second = Journal(tmp_path, "mine"), Journal(tmp_path, "mine")
    first.begin(3)
    first.note(event="begun", job="a")
    with pytest.raises(RecordError, match="Another command makes the sweep mine"):
        second.begin(3)
    with first.path.open("a") as file:
        file.write('{"event": "half')
    assert [event["event"] for event in second.events()] == ["sweep", "begun"]
    first.end()
    second.begin(None)
    assert [event["event"] for event in second.events()] == ["sweep"]
    second.end()


def command_of(tmp_path, *jobs):
    plan = Plan([[job] for job in jobs], len(jobs), True, tmp_path, "mine", "Which?", False, "elsewhere")
    runs = Runs(lambda job: {"task": {}}, lambda node: None)
    return Command(plan, runs, alone=False)


def test_a_job_whose_process_dies_is_begun_once_more_and_then_failed(tmp_path, capsys):
    """The first launch loses a and b, the second one loses a again."""
    launched = []
    command = command_of(tmp_path, "a", "b", "c")
    result = {"status": "finished", "training": {"seconds": 0}, "evaluation": {"validation": {"loss": 1.0}}}

    def launch(jobs):
        launched.append([" ".join(job) for job in jobs])
        for job in jobs[: {1: 2, 2: 1}.get(len(launched), 0)]:
            command.journal.note(event="begun", job=" ".join(job))
        if len(launched) < 3:
            raise RuntimeError("a worker died")
        for job in jobs:
            Work(tmp_path, "mine", job, lambda: result).attempt()

    with pytest.raises(SystemExit) as end:
        command.run(launch, lambda: command.plan)
    assert launched == [["a", "b", "c"], ["a", "b", "c"], ["b", "c"]]
    assert str(end.value.code) == "error: 1 of 3 runs failed:\n  a: the process that made it ended (a worker died)"
    out = capsys.readouterr().out
    assert out.count("it is resumed") == 2
    assert "Ended 3 of 3" in out


def test_a_launcher_that_starts_nothing_ends_the_command(tmp_path):
    def launch(jobs):
        raise RuntimeError("no queue of that name")

    with pytest.raises(RuntimeError, match="no queue"):
        command_of(tmp_path, "a").run(launch, lambda: None)


def test_hours_are_those_of_records_and_else_as_stated():
    config = {"model": {"name": "a"}, "size": {"params": 1_000_000}, "trainer": {"tokens": 6_000_000}}
    assert Speeds({}, 6000).seconds(config) == pytest.approx(1060)

    def result(model, size, speed, threads=1):
        return {
            "model": model,
            "parameters": {"total": size},
            "training": {"tokens_per_second": speed},
            "measurement": {"threads": threads},
        }

    known = [result("a", 1_000_000, 3000), result("a", 1_000_000, 9e9, threads=2), result("b", 250_000, 8000)]
    assert Speeds.of(known).seconds(config) == pytest.approx(2060)
    small = config | {"size": {"params": 250_000}, "model": {"name": "c"}}
    assert Speeds.of(known).seconds(small) == pytest.approx(60 + 6_000_000 / 8000)


TUNED = """# @package _global_
question: Which rate?
sweep:
  tune: trainer.learning_rate
  grids:
    - {model: [gru, lstm], trainer.learning_rate: [1e-3, 2e-3, 4e-3]}
"""
CHOOSING = """# @package _global_
question: Which model?
sweep:
  choose:
    trainer.learning_rate: {sweep: tuned, by: [model.name]}
  seeds: [0, 1]
  grids:
    - {model: [gru, lstm]}
    - {model: gru, trainer.learning_rate: 5e-3}
"""


def test_a_sweep_may_stand_in_a_folder(tmp_path, monkeypatch):
    """Its name has the folder's before it: for Hydra, in the records and when they are read."""
    folder = tmp_path / "plugins" / "sweeps" / "claims"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(TUNED)
    monkeypatch.setenv("LIQUIDBENCH_PLUGINS", str(tmp_path / "plugins"))
    plan = run.expanded(["+sweeps=claims/mine", f"records={tmp_path}"], True)
    assert (plan.name, plan.question, plan.runs) == ("claims/mine", "Which rate?", 6)
    on_disk.write(tmp_path, Sweep(plan.name, plan.question))
    on_disk.write(tmp_path, Sweep("other"))
    assert on_disk.read([tmp_path], "claims/mine").question == "Which rate?"
    with pytest.raises(RecordError, match=r"No sweep 'mine'.*\(claims/mine, other\)"):
        on_disk.read([tmp_path], "mine")


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    """A folder of sweeps of one's own, and the overrides of tiny runs."""
    folder = tmp_path / "plugins" / "sweeps"
    folder.mkdir(parents=True)
    for name, text in {"tuned": TUNED, "choosing": CHOOSING}.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "both.yaml").write_text("# @package _global_\nquestion: All?\nsweep: {parts: [tuned, choosing]}\n")
    monkeypatch.setenv("LIQUIDBENCH_PLUGINS", str(folder.parent))
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    return ["debug=tiny", "task=text", f"task.path={tmp_path / 'corpus.txt'}", f"records={tmp_path / 'runs'}"]


def score_all(plan, root, optimum):
    """Writes a record for each job of the plan that has none, as its distance from the optimum says."""
    for job in plan.jobs:
        key = run.RUNS.key(job)
        if not (root / f"run-{key}").exists():
            write_record(root, key, abs(math.log2(float(value_of(job, "trainer.learning_rate")) / optimum)))


def test_a_tuning_grid_grows_with_its_records_and_others_choose_from_it(tmp_path, sweeps):
    tuned, choosing = ["+sweeps=tuned", *sweeps], ["+sweeps=choosing", *sweeps]
    plan = run.planned(tuned, True)
    assert (plan.runs, plan.question) == (6, "Which rate?")
    waiting = run.planned(choosing, True)
    assert [value_of(job, "trainer.learning_rate") for job in waiting.jobs] == ["0.005", "0.005"]
    assert len(waiting.waiting) == 4
    assert "waits for the sweep tuned: 3 of 3 runs are missing" in waiting.waiting[0][1]
    for rates in (["0.008"], ["0.016"], []):
        score_all(run.planned(tuned, True), tmp_path / "runs", 0.0079)
        more = run.planned(tuned, True)
        new = [job for job in more.jobs if not (tmp_path / "runs" / f"run-{run.RUNS.key(job)}").exists()]
        assert sorted({value_of(job, "trainer.learning_rate") for job in new}) == rates
        assert len(new) == 2 * len(rates)
    made = run.planned(choosing, True)
    assert made.waiting == []
    rates = {value_of(job, "model"): set() for job in made.jobs}
    for job in made.jobs:
        rates[value_of(job, "model")].add(value_of(job, "trainer.learning_rate"))
    assert rates == {"gru": {"0.008", "0.005"}, "lstm": {"0.008"}}
    both = run.planned(["+sweeps=both", *sweeps], True)
    assert both.runs == 10 + 6


def test_the_command_line_replaces_what_a_grid_says(sweeps):
    plan = run.planned(["+sweeps=tuned", "model=gru", "trainer.learning_rate=0.5,0.25", *sweeps], True)
    assert [value_of(job, "trainer.learning_rate") for job in plan.jobs] == ["0.5", "0.25"]
    assert {value_of(job, "model") for job in plan.jobs} == {"gru"}
    one = run.planned(["+sweeps=tuned", "model=gru", "trainer.learning_rate=0.5", "sweep=null", *sweeps])
    assert (one.runs, one.sweeps) == (1, False)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_states_what_it_costs(name, monkeypatch):
    """Its runs before any extension, and its hours at the speed that it states."""
    monkeypatch.setattr(WindowTask, "digest", "of files that users get themselves")
    section = run.expanded([f"+sweeps={name}"], True).section
    if section.parts:
        assert {part for part in section.parts if not (run.ROOT / "sweeps" / f"{part}.yaml").is_file()} == set()
        return
    if section.budget.runs > MOST:
        pytest.skip(f"{section.budget.runs} runs: LIQUIDBENCH_RUNS={section.budget.runs} composes them")
    plan = run.planned([f"+sweeps={name}"], True, Known([]))
    jobs = [*plan.jobs, *(job for job, _ in plan.waiting)]
    assert section.budget.runs == len(jobs)
    speeds = Speeds({}, section.cost.tokens_per_second)
    hours = sum(speeds.seconds(run.RUNS.in_tokens(job)) for job in jobs) / 3600
    assert section.cost.hours == pytest.approx(hours, rel=0.1)
