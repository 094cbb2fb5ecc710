"""The README tells what is: its tables come from the records, and its commands are commands that run."""

import re
import shlex

import pytest

import run
from analysis.__main__ import main

README = run.ROOT / "README.md"
COMMANDS = [
    shlex.split(line.split("#")[0])[2:]
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.S)
    for line in block.splitlines()
    if line.startswith("python run.py") and "--help" not in line
]


def test_the_generated_sections_are_what_the_records_give(monkeypatch, capsys):
    monkeypatch.chdir(run.ROOT)
    assert main(["--readme", "README.md", "--check"]) == 0, capsys.readouterr().out


def test_the_shared_records_make_a_table_with_every_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(run.ROOT)
    recorded = {path.parent.name.rsplit("-", 1)[1] for path in (run.ROOT / "results").glob("*/result.json")}
    assert recorded
    assert main(["results", "--output", str(tmp_path)]) == 0
    rows = (tmp_path / "runs.csv").read_text().splitlines()[1:]
    assert {key for key in recorded if any(key in row for row in rows)} == recorded


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_composes(arguments):
    run.preflight(arguments)


def test_the_readme_shows_both_commands_of_the_set_up():
    makefile = (run.ROOT / "Makefile").read_text()
    for target in ("run", "test"):
        assert f"make {target}" in README.read_text()
        assert re.search(rf"^{target}:", makefile, re.M)
