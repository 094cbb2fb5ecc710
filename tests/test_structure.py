"""The structure of the code: imports flow one way and in no circle, signatures are short, rooms are few."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harness", "arch", "baselines", "analysis", "bench", "sweeps")
HYDRA = {"run", "sweeps", "hydra", "omegaconf"}
FORBIDDEN = {
    "harness": {"arch", "baselines", "analysis", "bench", *HYDRA},
    "arch": {"baselines", "analysis", "bench", *HYDRA},
    "baselines": {"arch", "analysis", "bench", *HYDRA},
    "analysis": {"arch", "baselines", "bench", "torch", *HYDRA},
    "bench": {"run", "sweeps"},
    "sweeps": {"arch", "baselines", "bench", "torch", "hydra", "omegaconf"},
}
MOST_ARGUMENTS = 8


def modules() -> dict[str, Path]:
    """Every module of the library by its name."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """The names of the modules that a file imports, and of what it takes from them.

    everywhere: also where they stand inside functions, and else only those that importing the file imports.
    """
    names, nodes = set(), list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        for_types = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        if everywhere or not (for_types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return names


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that reach one another (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1 or node in graph[node]:
                found.append(sorted(members))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """The modules that each imports as it is imported itself; importing `a.b` imports the package `a` too."""
    graph = {}
    for name, path in files.items():
        wanted = imports(path, everywhere=False)
        wanted |= {package for other in wanted for package in _packages(other)}
        graph[name] = {other for other in wanted if other in files} - set(_packages(name)) - {name}
    return graph


def _packages(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_what_lies_above_it(package):
    files = [path for name, path in modules().items() if name.split(".")[0] == package]
    assert files
    tops = {str(path.relative_to(ROOT)): {name.split(".")[0] for name in imports(path)} for path in files}
    assert not {path: bad for path, names in tops.items() if (bad := names & FORBIDDEN[package])}


def test_nothing_imports_an_oracle_but_the_look_up_of_oracles():
    allowed = {"harness.checks.oracles"}
    offenders = {
        name: sorted(bad)
        for name, path in modules().items()
        if name not in allowed
        and name.split(".")[0] in ("harness", "arch", "baselines")
        and (bad := {other for other in imports(path) if ".oracle" in other and other.split(".")[-1] == "oracle"})
    }
    assert not offenders


def test_no_module_is_imported_in_a_circle():
    assert circles(import_graph(modules())) == []


def test_a_circle_is_seen(tmp_path):
    texts = {"p": "", "p.a": "from p.b import x", "p.b": "import p.c", "p.c": "from p import a", "p.d": "import p.a"}
    files = {name: tmp_path / f"{name}.py" for name in texts}
    for name, path in files.items():
        path.write_text(texts[name] + "\n")
    assert circles(import_graph(files)) == [["p.a", "p.b", "p.c"]]


def test_an_import_inside_a_function_is_seen_as_an_import_but_makes_no_circle(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from arch.ltc.mixer import LTC\n    return LTC\n")
    assert imports(path) == {"arch.ltc.mixer", "arch.ltc.mixer.LTC"}
    assert imports(path, everywhere=False) == set()


def long_signatures(path: Path) -> list[str]:
    """The functions of a file with more than MOST_ARGUMENTS arguments; constructors hold a configuration."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = node.args
            arguments = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in arguments if name not in ("self", "cls")])
            if count > MOST_ARGUMENTS and getattr(node, "name", "") != "__init__":
                found.append(f"{getattr(node, 'name', 'lambda')} takes {count} arguments")
    return found


def test_nothing_outside_kernel_files_takes_more_than_eight_arguments():
    files = {str(path.relative_to(ROOT)): path for path in (*modules().values(), ROOT / "run.py")}
    ours = {name: path for name, path in files.items() if "numba" not in path.name and "triton" not in path.name}
    assert not {name: found for name, path in ours.items() if (found := long_signatures(path))}


def test_a_long_signature_is_seen(tmp_path):
    path = tmp_path / "module.py"
    many = ", ".join(f"a{i}" for i in range(9))
    path.write_text(f"class C:\n    def __init__(self, {many}): ...\n    def f(self, {many}): ...\n")
    assert long_signatures(path) == ["f takes 9 arguments"]


def test_the_harness_lists_at_most_fifteen_entries():
    listed = subprocess.run(["git", "ls-files", "harness"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len({line.split("/")[1] for line in listed.stdout.splitlines()}) <= 15
