"""Windows of recorded series: splits and windows as published, steps dropped with true time, files told of."""

import pickle

import numpy as np
import pytest
import torch

from harness.config.errors import ConfigError, TaskError
from harness.tasks.cheetah import Cheetah, CheetahSeen
from harness.tasks.light_curves import CURVES, LightCurves
from harness.tasks.occupancy import Occupancy
from harness.tasks.ozone import Ozone
from harness.tasks.task import Batch
from harness.tasks.watch import Watch

DAYS = [1, 2, 3, 5, 8, *range(9, 400)]
"""Of the year, as numpy counts them: some are missing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small files in the formats of the data sets; a number says where it stands, as far as a file has room."""
    root = tmp_path_factory.mktemp("data")
    for name in ("cheetah", "occupancy", "ozone", "lightcurves", "watch"):
        (root / name).mkdir()
    for trace in range(31):
        steps = np.arange(100.0)[:, None] + 1000 * trace
        np.save(root / "cheetah" / f"trace_{trace:04}.npy", np.repeat(steps, 17, axis=1))
    random = np.random.default_rng(0)
    for name, rows in (("datatraining", 200), ("datatest", 60), ("datatest2", 70)):
        lines = [[t, *random.random(4), t // 30 % 2] for t in range(rows)]
        (root / "occupancy" / f"{name}.txt").write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    days = (np.datetime64("1998-01-01") + np.array(DAYS) - 1).tolist()
    rows = [[f"{d.month}/{d.day}/{d.year}", t, *[1.0] * 70, "?", float(t % 16 == 0)] for t, d in enumerate(days)]
    (root / "ozone" / "eighthr.data").write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")
    for number, name in enumerate(CURVES):
        days = np.cumsum(1.0 + np.arange(100 + number) % 3)
        told = 2 if name == "Planets" else 3  # which lacks the errors
        lines = [["t", "m", "merr"][:told], *([day, t**2 / 1e3, t / 1e3][:told] for t, day in enumerate(days))]
        (root / "lightcurves" / f"{name}.csv").write_text("\n".join(",".join(map(str, line)) for line in lines))
    persons, exercises = np.repeat(np.arange(1, 11), 2), np.arange(20) % 7
    steps = [np.arange(220.0 + n)[:, None] * np.arange(1, 7) + 1000 * n for n in range(20)]
    np.save(root / "watch" / "watch_dataset.npy", {"X": steps, "y": exercises, "subject": persons, "side": persons % 2})
    return root


def whole(task, split):
    """All examples of a split, in order."""
    return task.batch(split, 0, task.examples(split), task.window, 0)


def test_cheetah_has_the_published_windows(data):
    task = Cheetah(data / "cheetah")
    starts = range(0, 100 - 32 - 1, 10)
    for split, traces in (("train", range(15, 25)), ("validation", range(5)), ("test", range(5, 15))):
        batch = whole(task, split)
        assert sorted(batch.inputs[:, 0, 0].tolist()) == [1000 * n + s for n in traces for s in starts]
        assert batch.inputs[0, :, 3].diff().eq(1).all()
        assert torch.equal(batch.targets, batch.inputs[..., :17] + 1)
        assert batch.elapsed.eq(1).all()
        assert batch.inputs.shape[1:] == (32, 18)


def test_cheetah_asks_for_the_next_state_that_is_seen_after_the_time_that_is_told(data):
    task = CheetahSeen(data / "cheetah", window=16, drop=0.7, time_feature=False)
    other = Cheetah(data / "cheetah", window=16, drop=0.7, time_feature=False)
    assert task.digest != other.digest
    for split in ("train", "validation", "test"):
        batch = whole(task, split)
        ahead = batch.targets[..., 0] - batch.inputs[..., 0]  # a state of these traces tells its time
        assert torch.equal(ahead, batch.elapsed)
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        assert batch.elapsed.max() > 5
        assert batch.elapsed.min() == 1
        assert batch.elapsed.sum(1).max() <= task.span
    undropped, published = (whole(kind(data / "cheetah", drop=0.0), "test") for kind in (CheetahSeen, Cheetah))
    for what in ("inputs", "targets", "elapsed"):
        assert torch.equal(getattr(undropped, what), getattr(published, what))


def test_occupancy_has_the_published_windows(data):
    task = Occupancy(data / "occupancy")
    training = np.loadtxt(data / "occupancy" / "datatraining.txt", delimiter=",")
    order = np.random.RandomState(893429).permutation(200 - 16)
    assert task.examples("validation") == 18
    batch = whole(task, "validation")
    for row, start in enumerate(order[:18]):
        standard = (training[:, :5] - training[:, :5].mean(0)) / training[:, :5].std(0)
        assert batch.inputs[row, :, :5].numpy() == pytest.approx(standard[start : start + 16], abs=1e-5)
        assert batch.targets[row].tolist() == training[start : start + 16, 5].tolist()
    assert task.windows["train"][:, 1].tolist() == order[18:].tolist()
    assert task.examples("test") == len(range(0, 60 - 16, 8)) + len(range(0, 70 - 16, 8))


def test_ozone_has_the_published_windows_and_the_time_between_its_days(data):
    task = Ozone(data / "ozone")
    starts = np.arange(0, len(DAYS) - 32, 4)
    order = starts[np.random.RandomState(23489).permutation(len(starts))]
    held_out = int(0.1 * len(starts)), int(0.15 * len(starts))
    assert task.windows["validation"][:, 1].tolist() == order[: held_out[0]].tolist()
    assert task.windows["test"][:, 1].tolist() == order[held_out[0] : sum(held_out)].tolist()
    assert task.windows["train"][:, 1].tolist() == order[sum(held_out) :].tolist()
    batch = whole(task, "train")
    assert task.series[0].elapsed[:6].tolist() == [1, 1, 1, 2, 3, 1]
    assert batch.inputs.shape[1:] == (32, 73)
    values = task.series[0].values
    assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=1e-4)
    assert values[:, 71] == pytest.approx(values[0, 0])  # what is missing is 0, as is the first number


def test_light_curves_ask_for_the_brightness_after_the_days_that_are_told(data):
    task = LightCurves(data / "lightcurves")
    for number, name in enumerate(CURVES):
        steps, parts = (
            99 + number,
            {split: windows[windows[:, 0] == number, 1] for split, windows in task.windows.items()},
        )
        ends = round(0.6 * steps), round(0.8 * steps)
        assert parts["train"].tolist() == list(range(ends[0] - 12 + 1))
        assert parts["validation"].tolist() == list(range(ends[0], ends[1] - 11, 12))
        assert parts["test"].tolist() == list(range(ends[1], steps - 12, 12))
        rows = np.genfromtxt(data / "lightcurves" / f"{name}.csv", delimiter=",", skip_header=1)
        trained = rows[: round(0.6 * len(rows)), 1]
        one = task.series[number]
        assert one.elapsed == pytest.approx(np.diff(rows[:, 0]))
        assert one.values[:, 0] == pytest.approx((rows[:-1, 1] - trained.mean()) / trained.std(), abs=1e-5)
        assert one.values[1:, 0] == pytest.approx(one.targets[:-1, 0])
        assert one.values[:, 1] == pytest.approx(0 if name == "Planets" else rows[:-1, 2] / trained.std())
    batch = whole(task, "test")
    assert batch.inputs.shape[1:] == (12, 3)
    assert batch.targets.shape[1:] == (12, 1)


def test_the_watch_splits_by_person(data):
    task = Watch(data / "watch")
    for split, recordings in (("train", range(12)), ("validation", range(12, 16)), ("test", range(16, 20))):
        expected = [(n, s) for n in recordings for s in range(0, 220 + n - 100, 50)]
        assert list(map(tuple, task.windows[split].tolist())) == expected
        batch = whole(task, split)
        assert sorted(batch.targets[:, 0].tolist()) == sorted(n % 7 for n, _ in expected)
        assert (batch.targets == batch.targets[:, :1]).all()
    trained = np.concatenate([one.values for one in task.series[:12]])
    assert trained.mean(0) == pytest.approx(np.zeros(6), abs=1e-4)
    assert trained.std(0) == pytest.approx(np.ones(6), abs=1e-4)


class Shell:
    """What a pickle may hold: a call."""

    def __reduce__(self):
        return (print, ("it ran",))


def test_a_file_of_arrays_runs_nothing(data, tmp_path, capsys):
    np.save(tmp_path / "watch_dataset.npy", {"X": Shell(), "y": 0, "subject": 0})
    with pytest.raises(TaskError, match=r"names builtins\.print, which is no array"):
        Watch(tmp_path).examples("train")
    assert capsys.readouterr().out == ""
    assert pickle.loads(pickle.dumps(Shell())) is None
    assert capsys.readouterr().out == "it ran\n"  # as it would have


@pytest.mark.parametrize(("kind", "name"), [(Occupancy, "occupancy"), (Ozone, "ozone")])
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_blocked_splits_share_no_step(data, kind, name, drop):
    def steps(split):
        return {(n, t) for n, start in task.windows[split].tolist() for t in range(start, start + task.span)}

    task = published = kind(data / name, drop=drop, window=8)
    assert steps("train") & steps("validation")
    task = kind(data / name, drop=drop, window=8, split="blocked")
    assert not steps("train") & steps("validation")
    assert not steps("train") & steps("test")
    assert not steps("validation") & steps("test")
    assert task.digest != published.digest


@pytest.mark.parametrize("drop", [0.25, 0.5, 0.9])
def test_the_time_between_steps_that_are_left_is_true(data, drop):
    task = Cheetah(data / "cheetah", window=8, drop=drop, time_unit=2.0)
    assert task.span == {0.25: 11, 0.5: 16, 0.9: 80}[drop]
    batch = whole(task, "test")
    clock = batch.inputs[..., 0]  # a number of the series says when
    assert torch.equal(clock.diff() / 2, batch.elapsed[:, 1:])
    assert batch.elapsed[:, 0].eq(0.5).all()
    assert torch.equal(batch.targets, batch.inputs[..., :17] + 1)  # the very next state
    assert (clock[:, -1] - clock[:, 0] < task.span).all()
    assert len({tuple(row) for row in batch.elapsed.tolist()}) > 1
    assert task.mean_elapsed() == pytest.approx(1 / (1 - drop))
    assert batch.elapsed[:, 1:].mean() * 2 == pytest.approx(1 / (1 - drop), rel=0.2)


def test_dropped_steps_depend_on_split_index_and_seed_alone(data):
    def made(split="train", index=1, size=4, seed=0):
        return Cheetah(data / "cheetah", window=8, drop=0.5).batch(split, index, size, 8, seed)

    assert torch.equal(made().inputs, made().inputs)
    assert torch.equal(made("test", 1, 4).inputs, made("test", 0, 8).inputs[4:])  # however it is cut into batches
    for other in (made(index=2), made(seed=1), made("test")):
        assert not torch.equal(other.elapsed, made().elapsed)


def test_ozone_weighs_the_rare_days_and_is_judged_by_f1(data):
    task = Ozone(data / "ozone")
    targets, said = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[1.0, 2.0, -1.0, -3.0]])
    outputs = torch.stack([torch.zeros_like(said), said], -1)
    batch = Batch(targets, targets)
    nats = -outputs.log_softmax(-1)[0, range(4), targets[0]]
    assert task.loss(outputs, batch).item() == pytest.approx((nats * torch.tensor([0.1, 1.6, 1.6, 0.1])).sum().item())
    figures = task.judge(np.array(task.tally(outputs, batch)), 4)
    assert figures == pytest.approx({"f1": 0.5, "precision": 0.5, "recall": 0.5})
    assert task.judge(np.zeros(3), 4)["f1"] == 0


def test_rows_as_uci_gives_them_are_read_too(data, tmp_path):
    for path in (data / "occupancy").iterdir():
        rows = [f'"{n}","2015-02-04 17:51:00",{row}' for n, row in enumerate(path.read_text().split())]
        (tmp_path / path.name).write_text('"date","Temperature","Humidity","Light"\n' + "\n".join(rows))
    assert Occupancy(tmp_path).digest == Occupancy(data / "occupancy").digest


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


BAD = {
    "no folder": (Cheetah, None, None, r"task\.path=\S+: there is no such folder.*set task\.path to its folder"),
    "few traces": (Cheetah, "trace_0020.npy", lambda path: path.unlink(), r"24 files \*\.npy"),
    "a damaged trace": (Cheetah, "trace_0003.npy", cut_short, "cannot be read"),
    "other widths": (
        Cheetah,
        "trace_0003.npy",
        lambda path: np.save(path, np.ones((50, 3))),
        r"shape \(50, 3\)",
    ),
    "no test file": (Occupancy, "datatest2.txt", lambda path: path.unlink(), "datatest2.txt"),
    "words": (Occupancy, "datatest.txt", lambda path: path.write_text("a,b,c,d,e,f"), "could not convert"),
    "other labels": (Occupancy, "datatest.txt", lambda path: path.write_text("1,2,3,4,5,6"), "label not 0 or 1"),
    "short rows": (Ozone, "eighthr.data", lambda path: path.write_text("1/1/1998,1,2\n"), "other than 74"),
    "no curve": (LightCurves, "eb.csv", lambda path: path.unlink(), r"eb\.csv"),
    "one column": (LightCurves, "eb.csv", lambda path: path.write_text("t\n1\n2\n3\n"), "no rows of time"),
    "times that fall": (
        LightCurves,
        "eb.csv",
        lambda path: path.write_text("t,m\n1,2\n3,4\n2,5\n"),
        "its times do not rise",
    ),
    "a constant curve": (
        LightCurves,
        "eb.csv",
        lambda path: path.write_text("t,m\n1,2\n2,2\n3,2\n"),
        "the same in all rows",
    ),
    "another pickle": (Watch, "watch_dataset.npy", lambda path: np.save(path, {"X": []}), "what seglearn keeps there"),
    "a cut pickle": (Watch, "watch_dataset.npy", cut_short, "what seglearn keeps there"),
    "five components": (
        Watch,
        "watch_dataset.npy",
        lambda path: np.save(path, {"X": [np.ones((300, 5))], "y": [0], "subject": [1]}),
        r"shape \(n, 6\)",
    ),
    "an eighth exercise": (
        Watch,
        "watch_dataset.npy",
        lambda path: np.save(path, {"X": [np.ones((300, 6))], "y": [7], "subject": [1]}),
        "one of 7 exercises",
    ),
    "no date": (Ozone, "eighthr.data", lambda path: path.write_text("x," + "1," * 72 + "0"), "does not match"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used_are_told_and_where_they_are_had(data, tmp_path, case):
    kind, name, spoil, told = BAD[case]
    folder = tmp_path / kind.__name__.lower()
    if name is not None:
        folder.mkdir()
        for path in sorted((data / kind.__name__.lower()).iterdir())[:25]:
            (folder / path.name).write_bytes(path.read_bytes())
        spoil(folder / name)
    with pytest.raises(TaskError, match=told) as error:
        kind(folder).examples("train")
    assert kind.source.site in error.value.remedy


def test_series_too_short_for_the_windows_are_told(data):
    with pytest.raises(ConfigError, match=r"no train window of 320 steps .*task\.drop=0\.9.* at most 98 steps"):
        Cheetah(data / "cheetah", drop=0.9).check(4, 32)
