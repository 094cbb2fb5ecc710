"""Imports flow one way: run.py -> arch, baselines -> harness; analysis reads records only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "harness": {"arch", "baselines", "analysis", "run", "hydra", "omegaconf"},
    "arch": {"baselines", "analysis", "run", "hydra", "omegaconf"},
    "baselines": {"arch", "analysis", "run", "hydra", "omegaconf"},
    "analysis": {"arch", "baselines", "run", "hydra", "omegaconf", "torch"},
}


def imported(path: Path) -> set[str]:
    """The top-level names of every module that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_lies_above_it(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    offenders = {str(f.relative_to(ROOT)): bad for f in files if (bad := imported(f) & FORBIDDEN[package])}
    assert not offenders


def test_the_reader_of_imports_sees_one_inside_a_function(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from arch.ltc.mixer import LTC\n    return LTC\n")
    assert imported(path) == {"arch"}
