"""Values drawn for every key of every group: a clear error or a checked configuration, no traceback, no hang, no file.

The keys come from conf/ itself. LIQUIDBENCH_FUZZ=1000 draws a thousand configurations.
"""

import contextlib
import functools
import math
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import configs
import run
from harness.config.errors import UserError
from harness.model import sizing

EXAMPLES = int(os.environ.get("LIQUIDBENCH_FUZZ", "40"))
SECONDS = 120
"""A configuration that takes longer to check hangs."""
GROUPS = sorted(path for path in (run.ROOT / "conf").glob("*/*.yaml") if path.parent.name != "bench")
OPTIONS = [f"{path.parent.name}={path.stem}" for path in GROUPS]
CORPUS = "corpus.txt"
SIZED: set[str] = set()
"""What was sized already: most draws change neither the model nor its size."""

EDGES = [0, 1, -1, 2, 3, 7, 64, 10**4, 10**6, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30, -(10**30)]
EDGES += [0.0, -0.0, 0.5, -0.5, 1.5, 1e-300, 1e308, math.inf, -math.inf, math.nan, True, False, None]
EDGES += [
    "",
    " ",
    "3",
    "inf",
    "nan",
    "1e999",
    "auto",
    "null",
    "/etc/*",
    "..",
    "~nobody/x",
    "é\u202e",
    "a\0b",
    "x" * 5000,
]
EDGES += ["${seed}", "${nowhere}", "${", "???", "harness.training.trainer.TrainerConfig", "os.getcwd", "math.pi"]
EDGES += [[], [0], [64, 64, 1], [1, 2, 3], ["a", None], {}, {"a": 1}, {"_target_": "os.getcwd"}]


@functools.cache
def composed(option: str) -> DictConfig:
    """The configuration of one choice of one group, on a small text where it chooses no task."""
    group, _, chosen = option.partition("=")
    own = {group, "task"} if "/task:" in (run.ROOT / "conf" / group / f"{chosen}.yaml").read_text() else {group}
    overrides = configs.choice(option) + [
        f"{other}={choice}" for other, choice in (("task", "text"), ("size", "250k")) if other not in own
    ]
    config = run.compose(overrides)
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, CORPUS)
    return config


def keys_of(node, prefix: str = "") -> list[str]:
    """Every key of a configuration, of its nodes and of its values."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [key for name, item in items for key in (f"{prefix}{name}", *keys_of(item, f"{prefix}{name}."))]


@functools.cache
def keys(option: str) -> list[str]:
    return keys_of(OmegaConf.to_container(composed(option)))


def near(value) -> list:
    """What could stand in the place of a value of conf/, more or less."""
    if isinstance(value, bool):
        return [True, False]
    if isinstance(value, int):
        return [1, 2, value // 2, value + 1, 2 * value, 10 * value]
    if isinstance(value, float):
        return [value / 10, value / 2, 2 * value, 0.0, 0.5, 1.0, 1]
    if isinstance(value, ListConfig):
        return [list(value), list(value)[:1], list(value)[::-1], list(value) * 2]
    return [None, 1, 7, 0.5] if value is None else [value]


def anything() -> st.SearchStrategy:
    """A value of any type, most often one at an edge."""
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20))
    return st.one_of(st.sampled_from(EDGES), st.sampled_from(EDGES), plain, st.lists(plain, max_size=3))


@st.composite
def changes(draw) -> tuple[str, list]:
    """A choice of a group, and values for one to three of the configuration's keys: one in four of any type."""
    option, changed = draw(st.sampled_from(OPTIONS)), []
    for key in draw(st.lists(st.sampled_from(keys(option)), min_size=1, max_size=3)):
        value = OmegaConf.select(composed(option), key)
        wild = draw(st.integers(0, 3)) == 0
        changed.append((key, draw(anything() if wild else st.sampled_from(near(value)))))
    return option, changed


def check(config: DictConfig) -> None:
    """Does all that a run does before it writes; where that ends in an error, holds it to what the user needs."""
    told = None
    try:
        plain = run.resolve(config)
        experiment = run.build(run.own_keys(plain))
        sized = repr((plain["model"], plain["size"], experiment.task.interface))
        if sized not in SIZED:
            sizing.solve(experiment.model, experiment.task.interface, experiment.size)
            SIZED.add(sized)
        experiment.trainer.resolved(experiment.size.params, experiment.task).check(experiment.task)
    except UserError as error:
        told = error
    if told is not None:
        assert all((told.what, told.expected, told.remedy))
        assert len(str(told).encode()) < 3000


@contextlib.contextmanager
def no_hang():
    def stop(*_):
        raise TimeoutError(f"not checked after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextlib.contextmanager
def nothing_written(folder: Path):
    before = everything_in(folder)
    yield
    assert everything_in(folder) == before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a small text, where nothing can be fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(CORPUS).write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    return tmp_path


fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
@fuzzed
@given(change=changes())
def test_any_value_of_any_key_is_an_error_or_a_checked_configuration(folder, change):
    option, changed = change
    config = composed(option).copy()
    try:
        for key, value in changed:
            OmegaConf.update(config, key, value, merge=True)
    except (OmegaConfBaseException, ValueError):  # what Hydra reports as it composes
        return
    with no_hang(), nothing_written(folder):
        check(config)


GRAMMAR = [
    "",
    "1e999",
    "0x1f",
    "-",
    "1_000",
    "[1,2",
    "{a:1}",
    "{a:",
    "'a\"",
    "\\${x}",
    "${",
    "a,b",
    "a=b",
    "é",
    "9" * 5000,
]
PREFIXES = ["", "+", "++", "~"]


@pytest.mark.slow
@settings(fuzzed, max_examples=max(20, EXAMPLES // 5))
@given(
    prefix=st.sampled_from(PREFIXES),
    key=st.sampled_from(
        ["seed", "model", "size", "trainer.tokens", "model.mixer.d_state", "measure.contexts", "", "é"]
    ),
    value=st.one_of(st.sampled_from(GRAMMAR), st.text(max_size=12)),
)
def test_any_text_of_the_command_line_is_an_error_or_a_checked_configuration(folder, prefix, key, value):
    with no_hang(), nothing_written(folder), contextlib.suppress(UserError):
        check(run.compose(["task=text", f"task.path={CORPUS}", f"{prefix}{key}={value}"]))


@pytest.mark.parametrize(
    ("fault", "seen"),
    [(lambda: time.sleep(5), TimeoutError), (lambda: Path("left.txt").touch(), AssertionError)],
    ids=["hang", "file"],
)
def test_a_hang_and_a_file_left_behind_are_seen(folder, monkeypatch, fault, seen):
    monkeypatch.setitem(globals(), "SECONDS", 1)
    with pytest.raises(seen), no_hang(), nothing_written(folder):
        fault()
