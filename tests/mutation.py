"""Mutation testing: a small change is made in one module, and the tests of that module should notice.

    python tests/mutation.py              # tries the sample, going on where it stopped, and writes docs/mutation.md
    python tests/mutation.py --survivors  # tries those again that no test noticed, with the slow tests too
    python tests/mutation.py --check      # runs the tests that killed, without a mutant: they must pass
    python tests/mutation.py --page       # writes the page alone

The changes are cosmic-ray's, less the operators whose mutants cannot run at all. The sample is the `COUNT` of them with
the smallest hash of the seed and of what is changed, so that other code leaves the rest of the sample as it was.

Tests of a module are the files that import it, or, where none does, those that import it by the fewest steps; of one
that is looked up by name, those named after its folder; those named after the module itself; and of one that defines
an operation, the conformance tests, which find it themselves. A mutant is tried in a copy of the tree, in a fork of
this process, which has imported torch and the rest once for all of them.
"""

import argparse
import ast
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tests" / "data" / "mutants.jsonl"
REASONS = ROOT / "tests" / "data" / "survivors.yaml"
PAGE = ROOT / "docs" / "mutation.md"
OPERATIONS = "tests/test_operations.py"
MIXERS = "tests/test_mixer_mutants.py"
"""Left out: it makes mutants of its own."""
PACKAGES = ("harness", "arch", "baselines", "analysis", "bench")
KERNELS = ("numba", "triton", "toolbox")
"""A path with one of these is of a kernel or of what kernels are built from: numba's cache hides a change there."""
SEED, COUNT = 0, 200
TEST_SECONDS = 90
"""A test that takes more time of the processor than this has noticed the mutant."""
WALL_SECONDS = 1500
"""A mutant whose tests take longer than this is undecided, and counts as one that no test noticed."""
PRELOADED = ("torch", "numba", "pandas", "hydra", "pydantic", "accelerate", "torchdiffeq", "transformers", "hypothesis")

QUICK, SLOW = ("-m", "not slow", "-k", "not triton"), ("-m", "slow", "-k", "not triton")

BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_FloorDiv", "Pow_Mul", "BitAnd_BitOr")
COMPARISONS = ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")
OPERATORS = (
    *(f"ReplaceBinaryOperator_{name}" for name in BINARY),
    *(f"ReplaceComparisonOperator_{name}" for name in COMPARISONS),
    *(f"ReplaceUnaryOperator_{name}" for name in ("USub_UAdd", "Delete_Not", "Delete_Invert")),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "AddNot"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer"),
    "ZeroIterationForLoop",
)


@dataclass(frozen=True)
class Mutant:
    """The `occurrence`-th change that an operator can make in a file; `text` is the line it begins on."""

    path: str
    operator: str
    occurrence: int
    line: int
    text: str
    again: int
    """How many changes by this operator begin on lines of the same text before it."""

    @property
    def key(self) -> str:
        """Names the mutant by what it changes, whatever stands elsewhere in the file."""
        meaning = (self.path, self.operator, self.text, self.again)
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]

    def rank(self, seed: int) -> str:
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()

    def code(self) -> str:
        """The file with the change made."""
        from cosmic_ray.mutating import mutate_code

        return mutate_code((ROOT / self.path).read_text(), operator(self.operator), self.occurrence)


def operator(name: str):
    """One of cosmic-ray's operators."""
    from cosmic_ray.plugins import get_operator

    return get_operator(f"core/{name}")()


def modules() -> list[str]:
    """The files under test, relative to the root: all but kernels and the packages' own empty files."""
    listed = [ROOT / "run.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
    files = [str(path.relative_to(ROOT)) for path in listed]
    return [file for file in files if not any(part in file for part in (*KERNELS, "__init__"))]


def mutants(path: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    from cosmic_ray.ast import ast_nodes, get_ast

    source = (ROOT / path).read_text()
    lines, nodes, seen = source.splitlines(), list(ast_nodes(get_ast(source))), Counter()
    data = test_data(source)
    for name in OPERATORS:
        change, occurrence = operator(name), 0
        for node in nodes:
            for (line, column), (_, end) in change.mutation_positions(node):
                text = lines[line - 1].strip()
                a_path = name == "ExceptionReplacer" and "." in lines[line - 1][column:end]  # which it cannot replace
                if line not in data and not a_path:
                    yield Mutant(path, name, occurrence, line, text, seen[name, text])
                seen[name, text] += 1
                occurrence += 1


def test_data(source: str) -> set[int]:
    """The lines of a file that say which calls the conformance tests make: samples of operations are no product."""
    tree = ast.parse(source)
    samples = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) == "Samples"]
    named = {_name(node) for call in samples for node in ast.walk(call)} - {""}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and "sample" in node.name]
    sizes = [node for node in tree.body if isinstance(node, ast.Assign) and _name(node.targets[0]) in named]
    return {line for node in (*samples, *functions, *sizes) for line in range(node.lineno, node.end_lineno + 1)}


def _name(node: ast.AST) -> str:
    return getattr(node, "id", "")


def sample(seed: int, count: int) -> list[Mutant]:
    """The mutants to try, those of smallest hash."""
    every = (mutant for path in modules() for mutant in mutants(path))
    return sorted(every, key=lambda mutant: mutant.rank(seed))[:count]


@functools.cache
def imported(path: Path) -> set[str]:
    """The names of the modules that a file imports, and of what it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(path: str) -> str:
    """The name under which tests import a file."""
    return path.removeprefix("tests/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def concerning(path: str) -> list[str]:
    """The test files of a module, by the fewest steps of import, those that import the least first."""
    stem = Path(path).stem
    named = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").glob(f"test_*_{stem}.py"))]
    found = list(dict.fromkeys([*_importing(path), *named]))
    defines = "harness.ops.registry.Operation" in imported(ROOT / path)
    return found + [OPERATIONS] * (defines and OPERATIONS not in found)


def _importing(path: str) -> list[str]:
    files = [*modules(), *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").glob("*.py")))]
    imports = {file: imported(ROOT / file) for file in files}
    reached, known = [path], {path}
    while reached:
        names = {dotted(file) for file in reached}
        reached = [file for file in files if file not in known and imports[file] & names]
        known |= set(reached)
        tests = [file for file in reached if Path(file).name.startswith("test_") and file != MIXERS]
        if tests:
            return sorted(tests, key=lambda file: (Path(path).stem not in file, len(imports[file])))
    # an oracle, a kernel or a contestant, looked up by its name
    folder, stem = Path(path).parent.name, Path(path).stem
    named = [file for file in files if Path(file).name.startswith("test_") and folder in Path(file).name]
    return sorted(named, key=lambda file: (stem not in file, stem not in (ROOT / file).read_text()))


class Reporter:
    """A plugin of pytest that notes in a file which test runs and which one failed, and limits the time of each."""

    def __init__(self, note: Path, copy: Path):
        self.note, self.copy = note, copy

    def tell(self, **what: str) -> None:
        self.note.write_text(json.dumps(what))

    def pytest_runtest_logstart(self, nodeid, location):
        signal.setitimer(signal.ITIMER_PROF, TEST_SECONDS)
        self.tell(running=nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.tell(failed=f"import of {report.nodeid}")

    def pytest_collection_finish(self, session):
        ours = [module for name, module in sys.modules.items() if name.split(".")[0] in (*PACKAGES, "run")]
        assert all(str(module.__file__).startswith(str(self.copy)) for module in ours), "modules of another tree"

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.tell(failed=report.nodeid)


def tests_in_fork(copy: Path, tests: Sequence[str], marks: Sequence[str]) -> int:
    """Starts tests (files, or single ones) in a copy of the tree, and returns the id of their process."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()  # whatever the tests start ends with them
    log = os.open(copy / ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(copy)
    sys.path[0] = str(copy)
    sys.dont_write_bytecode = True
    signal.setitimer(signal.ITIMER_PROF, TEST_SECONDS)
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("mutation", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutation")
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", *marks, *tests]
    code = 3
    try:
        code = int(pytest.main(options, plugins=[Reporter(copy / ".note", copy)]))
    finally:
        sys.stdout.flush()
        os._exit(code)


@dataclass
class Trial:
    """A mutant in its copy of the tree, and the process that tests it, by each of `rounds` of tests in turn."""

    mutant: Mutant
    copy: Path
    files: list[str]
    rounds: list[tuple[str, ...]]
    seconds: float = 0.0

    def start(self) -> None:
        (self.copy / ".note").write_text("{}")
        self.began = time.monotonic()
        self.pid = tests_in_fork(self.copy, self.files, self.rounds.pop(0))

    def poll(self) -> dict | None:
        """The verdict once there is one; "by" names the test that noticed."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        late = time.monotonic() - self.began > WALL_SECONDS
        if not pid and not late:
            return None
        if not pid:
            os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
        self.seconds += usage.ru_utime + usage.ru_stime
        note = json.loads((self.copy / ".note").read_text())
        if late:
            return self.verdict("undecided", note.get("running", ""))
        if os.WIFSIGNALED(status):
            return self.verdict("killed", f"{note.get('running', 'import')} (signal {os.WTERMSIG(status)})")
        if os.WEXITSTATUS(status) not in (0, 5):  # 5: no test of this mark
            return self.verdict("killed", note.get("failed", "import"))
        if not self.rounds:
            return self.verdict("survived", "")
        self.start()
        return None

    def verdict(self, verdict: str, by: str) -> dict:
        return {"verdict": verdict, "by": by, "seconds": round(self.seconds, 1)}


def copied(folder: Path, root: Path = ROOT) -> None:
    """Brings the tree to `folder`, with numba's caches, which hold as long as the sources keep their times.

    numba keeps the kernels of a file in a folder named after the path of the file's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out = [f"--exclude=./{name}" for name in (".git", ".venv", "runs", "reports", ".hypothesis", "*.egg-info")]
    with subprocess.Popen(["tar", "cf", "-", *left_out, "."], cwd=root, stdout=subprocess.PIPE) as packed:
        subprocess.run(["tar", "xpf", "-"], cwd=folder, stdin=packed.stdout, check=True)
    for package in {Path(path).parent for path in modules()}:
        there, here = (f"{package.name}_{hashlib.sha1(str(r / package).encode()).hexdigest()}" for r in (root, folder))
        for cache in folder.glob(f"harness/ops/toolbox/__pycache__/numba-*/{there}"):
            shutil.copytree(cache, cache.with_name(here), dirs_exist_ok=True)


def preload() -> None:
    """Imports what every fork would import, but nothing of ours."""
    os.environ |= {"TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in PRELOADED:
        importlib.import_module(name)


def check(killers: Sequence[str], folder: Path) -> None:
    """Runs the tests that killed in a copy without a mutant; raises RuntimeError where one fails there too."""
    copied(folder / "0")
    _, status = os.waitpid(tests_in_fork(folder / "0", killers, ()), 0)
    print((folder / "0" / ".log").read_text()[-2000:])
    if status:
        raise RuntimeError("A test that killed a mutant fails without one: see above.")


def try_all(wanted: Sequence[Mutant], folder: Path, jobs: int, rounds: Sequence[tuple[str, ...]]) -> None:
    """Tries mutants, each in a copy of the tree, and appends what became of each to RESULTS."""
    copies = [folder / str(number) for number in range(jobs)]
    for copy in copies:
        copied(copy)
    waiting, running = list(reversed(wanted)), []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            copy = next(copy for copy in copies if copy not in [trial.copy for trial in running])
            (copy / mutant.path).write_text(mutant.code())
            trial = Trial(mutant, copy, concerning(mutant.path), list(rounds))
            trial.start()
            running.append(trial)
        time.sleep(0.05)
        for trial in list(running):
            verdict = trial.poll()
            if verdict is None:
                continue
            running.remove(trial)
            kept, there = ROOT / trial.mutant.path, trial.copy / trial.mutant.path
            there.write_bytes(kept.read_bytes())
            os.utime(there, ns=(kept.stat().st_atime_ns, kept.stat().st_mtime_ns))
            record(trial.mutant, verdict)
            print(f"{len(waiting)} left  {verdict['verdict']:9}  {trial.mutant.path}:{trial.mutant.line}", flush=True)


def record(mutant: Mutant, verdict: dict) -> None:
    """Appends a line to RESULTS: the mutant, its lines before and after, and what became of it."""
    before, after = change(mutant)
    fields = {name: value for name, value in asdict(mutant).items() if name in ("path", "line", "operator")}
    with RESULTS.open("a") as file:
        file.write(json.dumps({"key": mutant.key} | fields | {"before": before, "after": after} | verdict) + "\n")


def change(mutant: Mutant) -> tuple[str, str]:
    """What differs between the file and its mutant, both from the first differing line to the last."""
    old, new = (ROOT / mutant.path).read_text().splitlines(), mutant.code().splitlines()
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return tuple(re.sub(r"\s+", " ", " ".join(lines)).strip() for lines in (old, new))


def results() -> dict[str, dict]:
    """The last line of RESULTS for each mutant, by its key."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {result["key"]: result for result in map(json.loads, lines)}


def page(tried: Sequence[dict], reasons: dict[str, dict]) -> str:
    """The page: how many were killed in each part of the code, and each survivor with its reason."""
    equivalent = {key for key, reason in reasons.items() if reason["equivalent"]}
    rows, total = [], Counter()
    for part in sorted({_part(result) for result in tried}):
        of_part = [result for result in tried if _part(result) == part]
        counts = Counter(_kind(result, equivalent) for result in of_part)
        total += counts
        rows.append(_row(part, counts))
    killed, meant = total["killed"] + total["import"], total.total() - total["equivalent"]
    survivors = [result for result in tried if result["verdict"] != "killed"]
    survivors.sort(key=lambda result: (result["key"] in equivalent, result["path"], result["line"]))
    blocks = [
        f"- `{result['path']}`: `{result['before']}` becomes `{result['after']}`. "
        f"{'Equivalent: ' if result['key'] in equivalent else ''}{reasons[result['key']]['reason']}"
        for result in survivors
    ]
    return "\n".join(
        [
            "# Mutation tests",
            "",
            "<!-- written by `python tests/mutation.py`: edit that, or tests/data/survivors.yaml -->",
            "",
            "A small change is made in one module, and the tests of that module should fail.",
            f"The sample is {COUNT} such mutants (seed {SEED}, all modules but kernels). {len(tried)} were tried, each",
            f"on the code of its day; {killed} of the {meant} that change what the code does are killed: "
            f"{100 * killed / meant:.1f} %.",
            "Kernels are held to their references by the conformance tests instead. Code that has come or changed",
            "since has mutants of its own, which `make mutation` tries; `tests/mutation.py` says how.",
            "",
            "| part | mutants | killed by a test | fail on import | equivalent | not noticed |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            _row("all", total),
            "",
            "## Those that no test notices",
            "",
            *blocks,
            "",
        ]
    )


def _part(result: dict) -> str:
    folders = Path(result["path"]).parts[:-1]
    return "/".join(folders[:2] if folders[:1] == ("harness",) else folders[:1]) or result["path"]


def _kind(result: dict, equivalent: set[str]) -> str:
    if result["verdict"] == "killed":
        return "import" if result["by"].startswith("import") else "killed"
    return "equivalent" if result["key"] in equivalent else "survived"


def _row(part: str, counts: Counter) -> str:
    figures = (counts.total(), *(counts[kind] for kind in ("killed", "import", "equivalent", "survived")))
    return f"| {part} | " + " | ".join(map(str, figures)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of a seeded sample.")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/liquidbench-mutants"), help="for copies of the tree")
    parser.add_argument("--survivors", action="store_true", help="try those again that no test noticed")
    parser.add_argument("--check", action="store_true", help="run the tests that killed without a mutant")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--only", default="", help="a regular expression for the paths to try")
    given = parser.parse_args()
    known, reasons = results(), yaml.safe_load(REASONS.read_text()) if REASONS.exists() else {}
    wanted = sample(SEED, COUNT)
    os.nice(10)
    if given.check:
        preload()
        named = {re.sub(r" \(signal \d+\)$", "", result["by"]) for result in known.values()}
        check(sorted(name for name in named if "::" in name), given.folder)
    elif not given.page:
        tried = {key for key, result in known.items() if not given.survivors or result["verdict"] == "killed"}
        equivalent = {key for key, reason in reasons.items() if reason["equivalent"]}
        todo = [m for m in wanted if m.key not in tried | equivalent and re.search(given.only, m.path)]
        preload()
        try_all(todo, given.folder, given.jobs, [QUICK, SLOW] if given.survivors else [QUICK])
        known = results()
    shown = [known[mutant.key] for mutant in wanted if mutant.key in known]
    RESULTS.write_text("".join(json.dumps(result) + "\n" for result in shown))
    unknown = [result for result in shown if result["verdict"] != "killed" and result["key"] not in reasons]
    for result in unknown:
        print(f"{result['key']}: no reason given: {result['path']}:{result['line']}")
        print(f"  - {result['before']}\n  + {result['after']}")
    if not unknown:
        PAGE.write_text(page(shown, reasons))


if __name__ == "__main__":
    main()
