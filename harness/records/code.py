"""Which code made a record's figures: a digest of every module that its run was made of. Imports no torch.

A run is made of the modules that its configuration names, what they import, and the kernels that served it. They are
found from the sources and not from what the process has loaded: in a sweep, one process holds several architectures.
Modules are compared by their syntax trees, so comments, docstrings and formatting change nothing, and nor does what
gives names to whoever uses the library (harness/__init__.py): a module's `__getattr__`, and imports for type checkers.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("arch", "baselines", "harness")
NEVER = ("analysis", "bench", "run", "sweeps", "tests")
"""What stands in the checkout beside the packages and makes no figure: run.py's work is the recorded configuration."""
CHECKS = "harness.checks"
NO_FIGURES = (
    CHECKS,  # refuse a run, and change nothing in one that they let pass
    "harness.machine.environment",
    "harness.records",
    "harness.training.loggers",
    "harness.training.progress",
)
"""Rooms that a run imports and that change none of its figures: they check, keep or show what others computed."""
ENTRY = "harness.config.experiment"
DIGITS = 16


class Source(NamedTuple):
    """What a module's file holds. imports: made as it is imported; later: those inside functions."""

    digest: str
    imports: frozenset[str]
    later: frozenset[str]


def describe(config: dict, kernels: Iterable[str] = ()) -> dict:
    """Returns the record's "code": {"digest", "modules": {module: digest}, "checks": digest of harness/checks}.

    All as this process imported them. config: the resolved configuration of the run. kernels: the modules of those
    that served it.
    """
    remember()
    roots = {ENTRY, *_targets({key: part for key, part in config.items() if key != "logger"}), *kernels}
    modules = {module: _as_imported(module, path).digest for module, path in sorted(_reached(roots).items())}
    return {"digest": _short(repr(sorted(modules.items()))), "modules": modules, "checks": checks_digest()}


def checks_digest(root: Path = ROOT) -> str:
    """The digest of the checks under `root`, which make no figure and are no part of a run's own digest."""
    paths = sorted(root.joinpath(*CHECKS.split(".")).glob("*.py"))
    return _short(repr([(path.name, (_remembered.get(path) or read(path)).digest) for path in paths]))


def remember() -> None:
    """Notes the sources of all modules imported so far: a file edited afterwards is not what this process runs."""
    for module in list(sys.modules):
        path = find(module)
        if path is not None:
            _as_imported(module, path)


def changed_modules(code: dict | None, root: Path = ROOT) -> list[str]:
    """The modules of a record's "code" whose source under `root` is another today, or gone.

    None of them where the record does not name its code (None), and none of a plugins' folder that is not at hand.
    """
    changed = []
    for module, digest in sorted((code or {}).get("modules", {}).items()):
        path = find(module, root)
        if path is not None and read(path).digest == digest:
            continue
        if path is not None or module.partition(".")[0] in PACKAGES:
            changed.append(module)
    return changed


def listed(modules: list[str], most: int = 3) -> str:
    """The modules in a sentence: the first few, and how many more."""
    return ", ".join(modules[:most]) + (f" and {len(modules) - most} more" if len(modules) > most else "")


def find(module: str, root: Path = ROOT) -> Path | None:
    """The file of one of our modules, or of one in the plugins' folder; None for everybody else's."""
    top = module.partition(".")[0]
    if top in NEVER:
        return None
    folder = root if top in PACKAGES else Path(os.environ.get("LIQUIDBENCH_PLUGINS", root))
    stem = folder.joinpath(*module.split("."))
    for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
        if path.is_file() and (top in PACKAGES or "site-packages" not in path.parts):
            return path
    return None


def read(path: Path) -> Source:
    """The digest of a file's syntax tree and the modules that it imports."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _parsed(path: Path, modified: int, size: int) -> Source:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # half edited: nobody's code
        return Source("", frozenset(), frozenset())
    tree.body = [node for node in tree.body if getattr(node, "name", "") != "__getattr__" and not _for_types(node)]
    return Source(_short("".join(_written(tree))), *map(frozenset, _imports(tree)))


def _for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, which is never run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


_remembered: dict[Path, Source] = {}


def _as_imported(module: str, path: Path) -> Source:
    """The source as it was when this process first met the module."""
    if path not in _remembered:
        _remembered[path] = read(path)
    return _remembered[path]


def _reached(roots: Iterable[str]) -> dict[str, Path]:
    """The modules that make a run of these roots: what they import, and what their functions import once called."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        path = find(module)
        if path is None or module in found or _makes_no_figure(module):
            continue
        found[module] = path
        source = _as_imported(module, path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        waiting += (resolve_name(name, package) for name in source.imports)
        waiting += (name for name in (resolve_name(name, package) for name in source.later) if name in sys.modules)
        waiting += _packages(module)
    return found


def _makes_no_figure(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in NO_FIGURES)


def _packages(module: str) -> Iterator[str]:
    """`a.b.c` -> a.b, a: importing a module imports the packages it stands in."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _targets(node) -> Iterator[str]:
    """The modules of the classes and functions that a configuration names."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield value.rpartition(".")[0]
            else:
                yield from _targets(value)
    elif isinstance(node, list | tuple):
        for item in node:
            yield from _targets(item)


def _imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The names that a module imports as it is imported, and those that its functions import; relative ones with dots.

    Of `from a import b` both `a` and `a.b`, for b may be a module; `import_module("a.b")` counts as an import.
    """
    kinds: tuple[set[str], set[str]] = (set(), set())
    nodes: list[tuple[ast.AST, bool]] = [(tree, False)]
    while nodes:
        node, inside = nodes.pop()
        if isinstance(node, ast.Import):
            kinds[inside].update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            inner = origin if origin.endswith(".") else f"{origin}."
            kinds[inside].update([origin] * bool(node.module) + [f"{inner}{alias.name}" for alias in node.names])
        elif isinstance(node, ast.Call) and "import_module" in (getattr(node.func, n, "") for n in ("id", "attr")):
            named = [part.value for part in node.args if isinstance(part, ast.Constant)]
            kinds[inside].update(name for name in named if isinstance(name, str))
        inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        nodes += [(child, inside) for child in ast.iter_child_nodes(node)]
    return kinds


def _written(node) -> Iterator[str]:
    """A syntax tree as text, without lone strings (docstrings) and empty fields, so that Python's version is no part.

    ast.dump and ast.unparse write the same tree differently in different versions.
    """
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value is not None and value != [] and name not in ("kind", "type_comment"):
                yield f" {name}="
                yield from _written(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            if not (isinstance(item, ast.Expr) and isinstance(getattr(item.value, "value", None), str)):
                yield from _written(item)
    else:
        yield f"{type(node).__name__}:{node!a}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
