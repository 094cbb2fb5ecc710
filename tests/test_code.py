"""A record's code: what makes a run's figures, by syntax tree, and what has changed since."""

import importlib
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import configs
import run
from arch.lrc.scan import LRC_SCAN
from baselines.recurrent.scan import GRU_SCAN
from harness.config import experiment
from harness.records import code

LTC = "arch.ltc.mixer"


@pytest.fixture(scope="module")
def described():
    return code.describe(configs.resolved("model=ltc", "logger=none"), ["arch.ltc.scan_numba"])


def test_a_run_is_made_of_what_it_names_and_what_that_imports(described):
    modules = set(described["modules"])
    assert {LTC, "arch.solvers", "arch.ltc.scan", "harness.tasks.sotu", "harness.training.trainer"} <= modules
    assert {"harness", "arch.ltc", "harness.evaluation.text", "harness.ops.causal_conv.conv"} <= modules
    assert {"arch.ltc.scan_numba", "arch.solvers_numba", "harness.ops.toolbox.numba_math"} <= modules  # of the kernel
    assert all(len(digest) == 16 for digest in (described["digest"], *described["modules"].values()))


def test_what_makes_no_figure_is_no_part_of_it(described):
    rooms = ("analysis", "bench", "run", "tests", "baselines", "harness.records", "harness.checks")
    others = ("arch.cfc", "arch.ltc.scan_triton", "arch.ltc.oracle", "harness.training.loggers", "harness.tasks.mqar")
    for name in (*rooms, *others):
        assert not [module for module in described["modules"] if module == name or module.startswith(f"{name}.")], name


def test_it_does_not_depend_on_what_else_the_process_has_run(described):
    """One process makes the runs of a sweep, and a run made alone must have the same digest."""
    for other in ("arch.cfc.mixer", "baselines.mamba.scan"):
        importlib.import_module(other)
    again = code.describe(configs.resolved("model=ltc", "logger=none"), ["arch.ltc.scan_numba"])
    assert again == described
    other_logger = code.describe(configs.resolved("model=ltc", "logger=wandb"), ["arch.ltc.scan_numba"])
    assert other_logger == described
    assert code.describe(configs.resolved("model=gru"))["digest"] != described["digest"]


WHOLE_RUN = """
import json, sys
from pathlib import Path
import run
sys.argv = ["run.py", *sys.argv[1:]]
run.main()
(path,) = Path(sys.argv[1].partition("=")[2]).glob("*/result.json")
named = set(json.loads(path.read_text())["code"]["modules"])
ours = {name for name in sys.modules if name.partition(".")[0] in ("arch", "baselines", "harness")}
print(json.dumps([sorted(ours - named), sorted(named - ours)]))
"""


@pytest.mark.slow
def test_a_record_names_all_that_its_run_imported_and_no_more(tmp_path):
    """In a process of its own, where nothing but this run has imported anything."""
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    arguments = [f"records={tmp_path / 'runs'}", "model=gru", "debug=tiny", "trainer.tokens=512", "task=text"]
    command = [sys.executable, "-c", WHOLE_RUN, *arguments, f"task.path={tmp_path / 'corpus.txt'}"]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, check=True)
    left_out, never_imported = json.loads(done.stdout.splitlines()[-1])
    assert never_imported == []
    composing = ("harness.config.configure", "baselines.recurrent.oracle")  # and what an oracle says: a check's
    assert [name for name in left_out if name not in composing and not name.startswith(code.NO_FIGURES)] == []


@pytest.fixture
def checkout(tmp_path):
    """A copy of the packages, to be edited."""
    for package in code.PACKAGES:
        shutil.copytree(run.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_only_a_change_of_the_syntax_tree_is_a_change(described, checkout):
    solvers = checkout / "arch" / "solvers.py"
    assert code.changed_modules(described, checkout) == []
    edit(solvers, "from collections.abc import", "# a comment\nfrom collections.abc import")
    edit(solvers, '"""Solvers: ', '"""Reworded: ')
    edit(solvers, "\n\n\n", "\n\n\n\n")
    (checkout / "arch" / "cfc" / "mixer.py").write_text("raise SystemError\n")
    (checkout / "arch" / "ltc" / "scan_triton.py").write_text("raise SystemError\n")
    (checkout / "harness" / "checks" / "checks.py").unlink()
    assert code.changed_modules(described, checkout) == []
    assert code.checks_digest(checkout) != described["checks"] == code.checks_digest()
    edit(solvers, "1 / 6", "1 / 5")
    (checkout / "arch" / "ltc" / "scan.py").unlink()
    assert code.changed_modules(described, checkout) == ["arch.ltc.scan", "arch.solvers"]
    solvers.write_text("def half(")
    assert code.changed_modules(described, checkout) == ["arch.ltc.scan", "arch.solvers"]
    assert code.listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_code_that_is_not_named_has_not_changed():
    assert code.changed_modules(None) == []
    assert code.changed_modules({"digest": "0", "modules": {"a_plugin_elsewhere": "0" * 16}}) == []
    assert code.changed_modules({"digest": "0", "modules": {"arch.gone": "0" * 16}}) == ["arch.gone"]


SAME = [
    ("x = 1\n", "x  =  1  # one\n"),
    ('"""Says."""\nx = 1\n"""Of x."""\n', "x = 1\n"),
    ('def f():\n    "Says."\n    return 1\n', "def f():\n\n    return (1)\n"),
]
DIFFERENT = [
    ("y = a + b\n", "y = a - b\n"),
    ("y = 1\n", "y = 1.0\n"),
    ("y = '1'\n", "y = b'1'\n"),
    ("f(a, b)\n", "f(a)(b)\n"),
    ("y = [1, [2]]\n", "y = [[1], 2]\n"),
    ("if a:\n    f()\ng()\n", "if a:\n    f()\n    g()\n"),
    ("y = None\n", "y = 'None'\n"),
    ("f(x=None)\n", "f(y=None)\n"),
    ("x = 'docstring'\n", "'docstring'\n"),
]


@pytest.mark.parametrize(("one", "other", "same"), [(*p, True) for p in SAME] + [(*p, False) for p in DIFFERENT])
def test_a_digest_is_of_the_syntax_tree(tmp_path, one, other, same):
    (tmp_path / "one.py").write_text(one)
    (tmp_path / "other.py").write_text(other)
    assert (code.read(tmp_path / "one.py").digest == code.read(tmp_path / "other.py").digest) is same


def test_imports_are_seen_where_they_stand(tmp_path):
    (tmp_path / "module.py").write_text(
        textwrap.dedent("""
        import a.b
        from c import d
        from . import e
        from .f import g
        class C:
            import h
        def i():
            from j import k
            import_module("l.m")
            importlib.import_module(".n")
        """)
    )
    source = code.read(tmp_path / "module.py")
    assert source.imports == {"a.b", "c", "c.d", ".e", ".f", ".f.g", "h"}
    assert source.later == {"j", "j.k", "l.m", ".n"}


PLUGIN = """
import sys
from harness.records import code
import mine.mixer
one = code.describe({"model": {"_target_": "mine.mixer.Mixer"}, "logger": {"_target_": "mine.logger.Logger"}})
print(sorted(name for name in one["modules"] if name.startswith("mine")))
open(sys.argv[1], "a").write("x = 2\\n")
print(code.describe({"model": {"_target_": "mine.mixer.Mixer"}}) == one, code.changed_modules(one))
"""


def test_a_plugin_counts_and_what_is_imported_stays_what_it_was(tmp_path):
    """A file edited while the process runs: the process still runs what it imported, and the record is then older."""
    (tmp_path / "mine").mkdir()
    files = {
        "__init__": "",
        "mixer": "from . import rule\nimport torch, mine.late\n",
        "rule": "x = 1\n",
        "late": "",
        "logger": "",
    }
    for name, text in files.items():
        (tmp_path / "mine" / f"{name}.py").write_text(text)
    environment = {"LIQUIDBENCH_PLUGINS": str(tmp_path), "PYTHONPATH": f"{run.ROOT}:{tmp_path}", "PATH": ""}
    command = [sys.executable, "-c", PLUGIN, str(tmp_path / "mine" / "rule.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['mine', 'mine.late', 'mine.mixer', 'mine.rule']",
        "True ['mine.rule']",
    ]


def test_it_needs_no_torch():
    program = "import sys, harness.records.code; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=run.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_modules_of_kernels_are_those_of_the_backends_that_ran():
    ran = {LRC_SCAN.name: ["numba", "triton"], GRU_SCAN.name: ["aten"]}
    named = experiment._modules_of_kernels(ran, "cpu")
    assert named == {"arch.lrc.scan_numba", "baselines.recurrent.scan_torch"}
