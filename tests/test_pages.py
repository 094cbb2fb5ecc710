"""README.md, CONTRIBUTING.md and docs/*.md: their tables come from the records, and their commands run."""

import re
import shlex

import pytest
import yaml

import run
from analysis import __main__ as analysis
from analysis import models, pages, records
from bench import __main__ as bench
from configs import MODELS

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


def test_the_generated_sections_are_what_the_records_give(monkeypatch, capsys):
    monkeypatch.chdir(run.ROOT)
    status, said = analysis.main(["--pages", "--check"]), capsys.readouterr()
    assert status < 2, said.err
    assert "differs from the records" not in said.out, said.out
    assert said.out.count(": up to date") == len(pages.published())


def test_a_clean_commit_made_every_shared_record():
    assert records.unclean(records.load([run.ROOT / "results"]).runs) == []


def test_the_shared_records_make_a_table_with_every_run(monkeypatch, tmp_path):
    monkeypatch.chdir(run.ROOT)
    recorded = {path.parent.name.rsplit("-", 1)[1] for path in (run.ROOT / "results").glob("*/result.json")}
    assert recorded
    assert analysis.main(["results", "--output", str(tmp_path)]) == 0
    rows = (tmp_path / "runs.csv").read_text().splitlines()[1:]
    assert {key for key in recorded if any(key in row for row in rows)} == recorded


@pytest.mark.parametrize("arguments", commands("python run.py"), ids=" ".join)
def test_every_command_composes(arguments):
    if "--help" not in arguments:
        run.preflight(arguments)


def test_every_command_of_the_bench_and_of_the_analysis_is_one():
    assert commands("python -m bench")
    for arguments in commands("python -m bench"):
        bench.arguments(arguments)
    for arguments in commands("python -m analysis"):
        analysis.parser().parse_args(arguments)


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
    assert (run.ROOT / "README.md").stat().st_size <= 12_000


def test_every_row_is_a_model():
    assert set(models.catalogue()) <= set(MODELS)


def test_a_model_shows_the_state_and_the_oracles_of_its_runs():
    readme = (run.ROOT / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith("| `ltc`"))
    assert "ncps LTCCell, torchdiffeq rk4_step_func" in row
    assert "| 10.2 kB |" in row
    assert "| 2.10 MB |" in next(line for line in readme.splitlines() if line.startswith("| `transformer`"))


def test_hooks_lint_with_the_pinned_version():
    hooks = yaml.safe_load((run.ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pins = (run.ROOT / "constraints.txt").read_text().splitlines()
    assert all(set(hook["additional_dependencies"]) <= set(pins) for hook in hooks)
