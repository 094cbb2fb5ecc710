"""README.md, CONTRIBUTING.md and docs/*.md: their tables come from the records, and their commands run."""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import run
from analysis import __main__ as analysis
from analysis import models, pages, records, report
from analysis.findings import evidence
from analysis.findings import pages as findings
from bench import __main__ as bench
from configs import MODELS
from sweeps import queue

PAGES = [run.ROOT / "README.md", run.ROOT / "CONTRIBUTING.md", *sorted((run.ROOT / "docs").glob("*.md"))]
LINES = {
    line.split("#")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
}
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text())]


def commands(program: str) -> list[list[str]]:
    """The arguments of every such command that a page shows."""
    return [shlex.split(line)[len(program.split()) :] for line in sorted(LINES) if line.startswith(program)]


@pytest.mark.slow
@pytest.mark.long
def test_the_generated_sections_are_what_the_records_give(monkeypatch, capsys):
    monkeypatch.chdir(run.ROOT)
    status, said = analysis.main(["--pages", "--check"]), capsys.readouterr()
    assert status < 2, said.err
    assert "differs from the records" not in said.out, said.out
    assert said.out.count(": up to date") == len(pages.published())


HEAVY = ("torch", "numba", "transformers", "hydra", "omegaconf")
"""What a reader who wants the tables alone need not have."""
WITHOUT = f"""
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent)
from analysis.__main__ import main

sys.exit(main(sys.argv[1:]))
"""
"""The command as it is where none of them is installed."""
SECONDS = 120


def checkout(folder: Path) -> list[Path]:
    """Copies what git holds of this checkout, as it stands, into `folder`; returns the paths."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=run.ROOT, capture_output=True, text=True, check=True)
    paths = [Path(name) for name in listed.stdout.split("\0") if name and (run.ROOT / name).is_file()]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.ROOT / path, folder / path)
    return paths


@pytest.mark.slow
def test_a_clean_checkout_without_torch_makes_every_published_file_again_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.chdir(run.ROOT)
    paths = checkout(tmp_path)
    reports = [path for path in paths if path.parts[:2] == ("results", "reports")]
    made = [path for path in paths if path in pages.published() or path in reports]
    assert {path.suffix for path in made} >= {".md", ".png", ".csv", ".tex"}
    for path in reports:
        (tmp_path / path).unlink()
    for page in map(tmp_path.joinpath, pages.published()):
        text = page.read_text()
        page.write_text(pages.render(text, dict.fromkeys(re.findall(r"generated:([\w-]+)", text), "other")))
    start = time.monotonic()
    for arguments in (["--pages"], ["results"]):
        done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < SECONDS
    assert [path for path in made if (tmp_path / path).read_bytes() != (run.ROOT / path).read_bytes()] == []
    written = {path.relative_to(tmp_path) for path in (tmp_path / "results" / "reports").iterdir()}
    assert {path for path in written if path.suffix != ".pdf"} == set(reports)
    figures = [path.name for path in written if path.suffix in (".png", ".pdf")]
    published, own = tmp_path / "results" / "reports", tmp_path / "reports"  # the second command draws them once more
    assert [name for name in figures if (published / name).read_bytes() != (own / name).read_bytes()] == []
    assert_a_row_for_every_run((own / "runs.csv").read_text().splitlines()[1:])


def assert_a_row_for_every_run(rows: list[str]) -> None:
    recorded = {path.parent.name.rsplit("-", 1)[1] for path in (run.ROOT / "results").glob("*/result.json")}
    assert recorded
    assert {key for key in recorded if any(key in row for row in rows)} == recorded


def told_commands() -> set[str]:
    """The commands of all findings, of those too that nothing is recorded of."""
    made = report.build(records.load([run.ROOT / "results"]), run.ROOT / "results" / "bench")
    nothing = findings.build(evidence.Evidence([], [], Path("nowhere")))
    return {command for finding in (*made.findings, *nothing) for command in finding.commands}


def covering(command: str) -> list[tuple[str, ...]]:
    """The overrides of a few runs of a command of run.py that hold every value of its lists, seeds aside, once."""
    given = dict(part.split("=", 1) for part in shlex.split(command)[2:] if part != "-m")
    listed = {key: [text] if text.startswith("[") else text.split(",") for key, text in given.items()}
    values = {key: known[: 1 if key == "seed" else None] for key, known in listed.items()}
    most = max(map(len, values.values()))
    return [tuple(f"{key}={known[turn % len(known)]}" for key, known in values.items()) for turn in range(most)]


def test_a_few_runs_hold_every_value_of_a_command():
    assert covering("python run.py -m model=a,b size=1,2,3 seed=0,1") == [
        ("model=a", "size=1", "seed=0"),
        ("model=b", "size=2", "seed=0"),
        ("model=a", "size=3", "seed=0"),
    ]
    assert covering("python run.py task=mqar 'task.mixture=[[8, 1, 1]]' seed=0") == [
        ("task=mqar", "task.mixture=[[8, 1, 1]]", "seed=0")
    ]


@pytest.mark.slow
def test_every_command_of_a_finding_composes():
    told = told_commands()
    runs = {command for command in told if command.startswith("python run.py ")}
    sweeps = {command for command in runs if "+sweeps=" in command}
    assert {shlex.split(command)[-1].removeprefix("+sweeps=") for command in sweeps} <= {
        path.stem for path in (run.ROOT / "sweeps").glob("*.yaml")
    }
    overrides = sorted({given for command in runs - sweeps for given in covering(command)})
    assert len(overrides) > 10
    most = int(os.environ.get("LIQUIDBENCH_RUNS", "12"))  # each takes a tenth of a second, and records grow in number
    for given in random.Random(0).sample(overrides, min(most, len(overrides))):
        run.preflight(list(given))
    for command in told - runs:
        assert command.startswith("python -m bench ")
        bench.arguments(shlex.split(command)[3:])


def test_every_shared_record_counts_and_a_clean_commit_made_it():
    known = records.load([run.ROOT / "results"])
    assert known.refused == []
    assert records.unclean(known.runs) == []


def run_commands():
    """The commands of run.py; a sweep composes dozens of runs."""
    for arguments in commands("python run.py"):
        sweep = any(argument.startswith("+sweeps=") for argument in arguments)
        yield pytest.param(
            arguments, id=" ".join(arguments), marks=[pytest.mark.slow, pytest.mark.long] if sweep else []
        )


@pytest.mark.parametrize("arguments", run_commands())
def test_every_command_composes(arguments):
    if "--help" not in arguments:
        run.preflight(arguments)


def test_every_command_of_the_bench_the_analysis_and_the_queue_is_one():
    assert commands("python -m bench")
    for arguments in commands("python -m bench"):
        bench.arguments(arguments)
    for arguments in commands("python -m analysis"):
        analysis.parser().parse_args(arguments)
    for arguments in commands("python -m sweeps.queue"):
        assert all(
            (run.ROOT / "sweeps" / f"{name}.yaml").is_file() for name in queue.parser().parse_args(arguments).sweeps
        )


def test_every_target_of_make_exists():
    makefile = (run.ROOT / "Makefile").read_text()
    shown = {match for page in PAGES for match in re.findall(r"\bmake ([a-z]+)\b", "\n".join(code(page)))}
    assert shown >= {"run", "test", "check"}
    assert [target for target in sorted(shown) if not re.search(rf"^{target}:", makefile, re.M)] == []


def code(page) -> list[str]:
    """The code of a page, inline and fenced."""
    return re.findall(r"```sh\n.*?```|`[^`\n]+`", page.read_text(), re.S)


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda part: getattr(part, "name", part))
def test_every_link_leads_to_a_file(page, link):
    assert (page.parent / link).exists()


def test_the_readme_is_short():
    """What is written by hand, and the whole, whose table of models grows with what is recorded."""
    text = (run.ROOT / "README.md").read_text()
    written = re.sub(r"<!-- generated:(\w+) -->.*?<!-- /generated:\1 -->", "", text, flags=re.DOTALL)
    assert len(written.encode()) <= 5_000
    assert len(text.encode()) <= 14_000


def test_every_row_is_a_model():
    assert set(models.catalogue()) <= set(MODELS)


def test_a_model_shows_the_state_and_the_oracles_of_its_runs():
    readme = (run.ROOT / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| `ltc`"))
    assert "ncps LTCCell: " in row
    assert "torchdiffeq rk4_step_func: " in row
    assert "| 10.2 kB |" in row
    assert "| 2.10 MB (window 512) |" in next(
        line for line in readme.splitlines() if line.startswith("| `transformer`")
    )


def test_hooks_lint_with_the_pinned_version():
    hooks = yaml.safe_load((run.ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = (run.ROOT / "constraints.txt").read_text().splitlines()
    assert all(set(hook["additional_dependencies"]) <= set(pins) for hook in hooks)
