"""The mutation test of mixers: a wrong number in any one path of any mixer is caught by a named check.

For each file of conf/model, the functions that its tokens pass through are found by running it, and changed one place
at a time: a sign, a norm or an activation left out, a shift by one, a cache off by one. Kernels in numba stay as they
are, so a change that the sequence and the single step share is one that the one-token kernels or an oracle do not.
"""

import ast
import gc
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

import pytest
import torch

import configs
import run
from harness.checks.case import CHECKS
from harness.checks.runner import run_checks
from harness.generation.decode import Decoder
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.sizing import SizeConfig, count

VOCAB, PER_KIND = 11, 6
FIRST = ("scan", "generation", "chunks")  # quick checks that catch most
FOLDERS = ("arch", "baselines", "harness/model", "harness/ops")
OTHERS = ("numba", "triton", "oracle", "toolbox", "backbone", "state.py", "registry", "shapes", "samples")
"""Files that are no mixer's own: kernels, oracles, and what the checks themselves stand on."""
NORMS = {"normalize", "group_norm", "rms_norm", "layer_norm", "softmax"}
ACTIVATIONS = {"sigmoid", "softplus", "tanh", "silu", "relu", "square", "exp"}

EQUIVALENT: dict[str, str] = {}
"""Changes that leave every figure as it is, each with the reason."""


@dataclass(frozen=True)
class Mutant:
    """One changed place of a function: what kind of change, and the text before and after."""

    kind: str
    function: str
    before: str
    after: str
    code: CodeType

    def __str__(self) -> str:
        return f"{self.kind} in {self.function}: {self.before} -> {self.after}"


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may be replaced with, and the kind of that change."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            yield "sign", ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left, ast.Sub(), right):
            yield "sign", ast.BinOp(left, ast.Add(), right)
        case ast.UnaryOp(ast.USub(), operand) if not isinstance(operand, ast.Constant):
            yield "sign", operand
        case ast.Call(ast.Attribute(ast.Name("F" | "torch"), name), [first, *_]) if name in NORMS | ACTIVATIONS:
            yield "norm", first
        case ast.Call(ast.Attribute(value, name)) if name in NORMS | ACTIVATIONS:
            yield "norm", value
        case ast.Call(ast.Attribute(_, "cat"), [ast.List([first, second]), *rest]):
            yield "shift", ast.Call(node.func, [ast.List([second, first], ast.Load()), *rest], node.keywords)
        case ast.Slice(None, ast.UnaryOp(ast.USub(), ast.Constant(1))):
            yield "shift", ast.Slice(ast.Constant(1), None)
        case ast.Slice(ast.Constant(1), None):
            yield "shift", ast.Slice(None, ast.UnaryOp(ast.USub(), ast.Constant(1)))
        case ast.Slice(lower, ast.Name() | ast.Attribute() as upper):
            yield "cache", ast.Slice(lower, ast.BinOp(upper, ast.Sub(), ast.Constant(1)))
        case ast.Attribute(_, "length" | "position", ast.Load()):
            yield "cache", ast.BinOp(node, ast.Add(), ast.Constant(1))
        case ast.Compare(left, [operator], [ast.Constant(int(number))]):
            yield "cache", ast.Compare(left, [operator], [ast.Constant(number + 1)])
        case ast.Subscript(value, ast.Tuple([*before, ast.UnaryOp(ast.USub(), ast.Constant(1))])):
            last = ast.UnaryOp(ast.USub(), ast.Constant(2))
            yield "shift", ast.Subscript(value, ast.Tuple([*before, last], ast.Load()), node.ctx)


def mutants_of(function: FunctionType) -> Iterator[Mutant]:
    """Every mutant of a function's body."""
    path, wanted = function.__code__.co_filename, function.__code__
    module = ast.parse(Path(path).read_text())
    (definition,) = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == wanted.co_firstlineno
    ]
    for parent in [node for statement in definition.body for node in ast.walk(statement)]:
        for name, value in ast.iter_fields(parent):
            if name == "annotation":
                continue
            for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                for kind, new in replacements(node):
                    _put(parent, name, place, new)
                    code = compiled(ast.fix_missing_locations(module), path, wanted)
                    _put(parent, name, place, node)
                    yield Mutant(kind, function.__qualname__, ast.unparse(node), ast.unparse(new), code)


def _put(parent: ast.AST, name: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[place] = node


def compiled(module: ast.Module, path: str, wanted: CodeType) -> CodeType:
    """The code of the function that stands where `wanted` does."""
    codes = [compile(module, path, "exec")]
    while codes:
        code = codes.pop()
        if (code.co_qualname, code.co_firstlineno) == (wanted.co_qualname, wanted.co_firstlineno):
            return code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    raise LookupError(wanted.co_qualname)


@cache
def sources() -> set[str]:
    """The files whose functions are changed."""
    files = [path for folder in FOLDERS for path in (run.ROOT / folder).rglob("*.py")]
    return {str(path) for path in files if not any(part in str(path.relative_to(run.ROOT)) for part in OTHERS)}


def exercise(model: LanguageModel) -> None:
    """A sequence, a second one behind it, single steps, and generation."""
    tokens = torch.arange(2 * 13).view(2, 13) % VOCAB
    single = model.float()
    with torch.inference_mode():
        decoder = Decoder(single, single(tokens)[1])
        for token in tokens.unbind(1):
            decoder.step(token)
    double = model.double()
    state = double(tokens, double(tokens)[1])[1]
    with torch.no_grad():
        double.step(tokens[:, 0], double(tokens, state)[1])
        double.scan(tokens)


def travelled(model: LanguageModel) -> list[FunctionType]:
    """The functions of `sources` that a model's tokens pass through, in the order of their names."""
    codes = set()

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename in sources() and "<" not in code.co_qualname:
            codes.add(code)

    sys.setprofile(note)
    try:
        exercise(model)
    finally:
        sys.setprofile(None)
    found = {thing.__code__: thing for thing in gc.get_objects() if isinstance(thing, FunctionType)}
    return sorted((found[code] for code in codes), key=lambda f: (f.__module__, f.__qualname__))


@contextmanager
def changed(function: FunctionType, mutant: Mutant) -> Iterator[None]:
    """The function with the mutant's code, wherever it is called from."""
    original = function.__code__
    function.__code__ = mutant.code
    forget(function)
    try:
        yield
    finally:
        function.__code__ = original
        forget(function)


def forget(function: FunctionType) -> None:
    """Empties the cache of a function that keeps its results."""
    kept = getattr(importlib.import_module(function.__module__), function.__name__, None)
    if hasattr(kept, "cache_clear"):
        kept.cache_clear()


def caught(model: LanguageModel, spec: ModelSpec, patch: pytest.MonkeyPatch) -> str | None:
    """The first check that fails, or None; they are tried one by one, those that catch most before the rest."""
    size = SizeConfig(count(model).total, model.n_layers)
    for name in [*FIRST, *(name for name in list(CHECKS) if name not in FIRST)]:
        function: Callable = CHECKS[name]
        with patch.context() as narrowed:
            for other in [other for other in CHECKS if other != name]:
                narrowed.delitem(CHECKS, other)
            assert list(CHECKS.values()) == [function]
            if not run_checks(model, spec, VOCAB, size).passed:
                return name
    return None


def small(architecture: str) -> tuple[LanguageModel, ModelSpec]:
    """A model of two layers and of the least width."""
    spec = configs.spec(architecture)
    width = max(spec.width_multiple, 8)
    return spec.build(VOCAB, 2, Width(width, 12 if spec.has_channel_mixer else 0)), spec


def chosen(mutants: list[tuple[FunctionType, Mutant]]) -> list[tuple[FunctionType, Mutant]]:
    """PER_KIND mutants of each kind, those whose names have the smallest hash."""
    kinds: dict[str, list] = {}
    for pair in sorted(mutants, key=lambda pair: hashlib.sha256(str(pair[1]).encode()).digest()):
        kinds.setdefault(pair[1].kind, []).append(pair)
    return [pair for pairs in kinds.values() for pair in pairs]


def runs(model: LanguageModel) -> bool:
    """Whether a changed model gives figures at all: one that raises needs no check."""
    try:
        exercise(model)
    except Exception:
        return False
    return True


@pytest.mark.slow
def test_a_change_in_any_path_of_a_mixer_is_caught(architecture, monkeypatch):
    model, spec = small(architecture)
    assert caught(model, spec, monkeypatch) is None
    pairs = [(function, mutant) for function in travelled(model) for mutant in mutants_of(function)]
    tried, missed = {}, []
    for function, mutant in chosen(pairs):
        if len(tried.setdefault(mutant.kind, [])) == PER_KIND or str(mutant) in EQUIVALENT:
            continue
        with changed(function, mutant):
            if runs(model):
                tried[mutant.kind].append(mutant)
                missed += [str(mutant)] if caught(model, spec, monkeypatch) is None else []
    assert not missed
    assert {"sign"} <= {kind for kind, of_kind in tried.items() if of_kind}
