"""The mutation test of mixers: a wrong number in any one path of any mixer is caught by a named check.

For each file of conf/model, the functions that its tokens pass through are found by running it, and changed one place
at a time: a sign (or two terms exchanged), a norm or an activation left out, a shift, a cache off by one. Kernels in
numba stay as they are, so what the sequence and the single step share, the one-token kernels or an oracle do not.
"""

import ast
import builtins
import faulthandler
import gc
import hashlib
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
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

VOCAB = 11
PER_KIND = int(os.environ.get("LIQUIDBENCH_MUTANTS", "1"))
"""Mutants of each kind and model; more are tried by LIQUIDBENCH_MUTANTS=6 pytest tests/test_mixer_mutants.py."""
PROBE = "mutant_reached"
RAISES, UNREACHED, NOTHING = "raises", "unreached", "nothing"
FIRST = ("scan", "generation", "chunks", "oracle")  # quick checks that catch most
FOLDERS = ("arch", "baselines", "harness/model", "harness/ops")
OTHERS = ("numba", "triton", "oracle", "toolbox", "backbone", "state.py", "registry", "shapes", "samples")
"""Files that are no mixer's own: kernels, oracles, and what the checks themselves stand on."""
NORMS = {"normalize", "group_norm", "rms_norm", "layer_norm", "softmax"}
ACTIVATIONS = {"sigmoid", "softplus", "tanh", "silu", "relu", "square", "exp"}

CONTINUOUS = "a definition, which all paths read; tests/test_continuous.py holds it"
OWN = {
    "mtlnn": {"shift in _rotate": "queries and keys turn alike; the Transformer's oracle holds it"},
    "liquid_s4": {"in LiquidS4.discrete": "a definition, which all paths read; tests/test_liquid_s4.py holds it"},
    "ctgru": {"in CTGRU.token": CONTINUOUS},
    "ctrnn": {"in NeuralODE.drive": CONTINUOUS, "in CTRNN.advance": CONTINUOUS},
    "neural_ode": {"in NeuralODE.drive": CONTINUOUS, "in NeuralODE.advance": CONTINUOUS},
}
"""Changes that change nothing, or that other tests hold, of one model alone; and those of all."""
EQUIVALENT = {
    "storage.used == self.length and length <= storage.keys.shape[2]: self.length": "tokens are copied once more",
    "if self.length == 0:: self.length": "tokens are joined to none",
    "if past or x.shape[1] == 1:: x.shape[1] ==": "where nothing is past, the cache holds these very keys",
    "_grown(self.values, length), self.length): self.length": "what is used is noted once more behind it",
    "past, cache = state.length, state.append(keys, values): state.length": "an empty cache adds nothing",
    "cache.values[:, :, : cache.length]): cache.length -> cache.length + 1": "a full cache ends there",
    "isinstance(cache.position, Tensor):: cache.position": "its type is the same",
    "length + SPARE -> length - SPARE": "storage has less room, and is copied more often",
    "_seen(stop - start, last, queries.device): stop - start": "one group of queries is all, and starts at 0",
    "h.shape[-1] == 1 -> h.shape[-1] == 2": "the sum over one state is that state",
    "self.d_state > 1 -> self.d_state > 2": "the model has one state a channel",
    "-self.log_tau.to(dtype) -> self.log_tau.to(dtype)": "a definition, which all paths and the oracle read",
    ".clamp(self.tau_min, self.tau_max)": "a definition, which all paths read; tests/test_m1.py holds it",
    "torch.addcmul(t_b, t_a, time) -> torch.addcmul(t_a, t_b, time)": "the elapsed time of text is 1",
    "pairs[:-1], pairs[-1], w_tau, amplitude): :-1 -> 1:": "of one pair, both leave none",
    "self.horizon == 1 -> self.horizon == 2": "a time of 1 for every token is the same as none",
    "sigmoid() * self.out_proj(attended) ->": "too small at the start for float32; tests/test_mtlnn.py holds it",
    "len(self.hidden) + 1 -> len(self.hidden) - 1": "a number that only CUDA's kernels ask for",
}
"""Changes that alter no figure or that nothing could tell, by a part of their text; each with the reason."""
LIQUID = ("ltc", "ltc_ncp", "ltc_published", "ltc_signed")
UNTRIED = {
    "cache": (*LIQUID, "cfc", "cfc_ncp", "ctgru", "gated_deltanet", "mamba2", "rwkv"),
    "norm": ("ctgru", "ctrnn", "liquid_s4", "neural_ode"),
    "sign": ("ctgru", "ctrnn", "lfm2", "neural_ode"),
}
"""Models of which every change of a kind raises, is not reached or stands above."""


@dataclass(frozen=True)
class Mutant:
    """One changed place of a function: what kind of change, on which line, and the text before and after."""

    kind: str
    function: str
    line: str
    before: str
    after: str
    code: CodeType
    probe: CodeType
    """The function as it was, but telling `reached` where the place is evaluated."""

    def __str__(self) -> str:
        return f"{self.kind} in {self.function}: {self.line}: {self.before} -> {self.after}"


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may be replaced with, and the kind of that change."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            yield "sign", ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left, ast.Sub(), right):
            yield "sign", ast.BinOp(left, ast.Add(), right)
        case ast.UnaryOp(ast.USub(), operand) if not isinstance(operand, ast.Constant):
            yield "sign", operand
        case ast.Call(ast.Attribute(ast.Name("torch"), "lerp" | "addcmul" | "addmm"), [first, second, *rest]):
            yield "sign", ast.Call(node.func, [second, first, *rest], node.keywords)
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
    source = Path(path).read_text()
    module, lines = ast.parse(source), source.splitlines()
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
                    told = probed(node)
                    codes = []
                    for stands in (new, told):
                        _put(parent, name, place, stands)
                        codes.append(compiled(ast.fix_missing_locations(module), path, wanted))
                    _put(parent, name, place, node)
                    line = lines[getattr(node, "lineno", parent.lineno) - 1].strip()
                    yield Mutant(kind, function.__qualname__, line, ast.unparse(node), ast.unparse(new), *codes)


def probed(node: ast.AST) -> ast.AST:
    """The same, but telling that it is evaluated."""
    if isinstance(node, ast.Slice):
        return ast.Slice(node.lower, probed(node.upper or ast.Constant(None)), node.step)
    return ast.Call(ast.Name(PROBE, ast.Load()), [node], [])


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
    every = [thing for thing in gc.get_objects() if type(thing) is FunctionType]
    # and not what `bind` makes of one for a compiler
    found = {f.__code__: f for f in every if f.__globals__ is vars(sys.modules.get(f.__module__, builtins))}
    return sorted((found[code] for code in codes), key=lambda f: (f.__module__, f.__qualname__))


def judged(function: FunctionType, mutant: Mutant, model: LanguageModel, spec: ModelSpec) -> str:
    """What catches a mutant: a check's name, or else NOTHING, RAISES or UNREACHED. In a process, which it may crash."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        try:
            faulthandler.disable()  # a crash is a verdict, and no news
            torch.set_num_threads(1)  # a pool of threads does not outlive the fork
            os.write(writing, _judged(function, mutant, model, spec).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        verdict = told.read().decode()
    os.waitpid(process, 0)
    return verdict or RAISES


def _judged(function: FunctionType, mutant: Mutant, model: LanguageModel, spec: ModelSpec) -> str:
    hits = []
    setattr(builtins, PROBE, lambda value: (value, hits.append(True))[0])
    function.__code__ = mutant.probe
    exercise(model)
    if not hits:
        return UNREACHED
    function.__code__ = mutant.code
    kept = getattr(importlib.import_module(function.__module__), function.__name__, None)
    if hasattr(kept, "cache_clear"):
        kept.cache_clear()
    if not runs(model):
        return RAISES
    return caught(model, spec) or NOTHING


def caught(model: LanguageModel, spec: ModelSpec) -> str:
    """The name of the first check that fails, or ""; those that catch most are tried before the rest, which share
    what they work on."""
    every = dict(CHECKS)
    for names in (*((name,) for name in FIRST), [name for name in every if name not in FIRST]):
        CHECKS.clear()
        CHECKS.update({name: every[name] for name in names})
        failed = failing(model, spec)
        CHECKS.update(every)
        if failed:
            return failed[0]
    return ""


def failing(model: LanguageModel, spec: ModelSpec) -> list[str]:
    """The names of the checks that fail."""
    checks = run_checks(model, spec, VOCAB, SizeConfig(count(model).total, model.n_layers))
    return [check.name for check in checks.results if check.passed is False]


@cache
def alone() -> set[type]:
    """The mixers that make up a model by themselves."""
    return {spec.pattern[0].func for spec in map(configs.spec, configs.MODELS) if len(spec.pattern) == 1}


def small(architecture: str) -> tuple[LanguageModel, ModelSpec]:
    """A model of two layers and of the least width; of a pattern, a mixer that makes up no model by itself."""
    spec = configs.spec(architecture)
    if len(spec.pattern) > 1:
        own = [mixer for mixer in spec.pattern if mixer.func not in alone()]
        if not own:
            pytest.skip("its mixers make up models of their own")
        spec = replace(spec, mixer=own[0])
    width = max(spec.width_multiple, 8)
    return spec.build(VOCAB, 2, Width(width, 12 if spec.has_channel_mixer else 0)), spec


def by_kind(pairs: list[tuple[FunctionType, Mutant]]) -> list[tuple[FunctionType, Mutant]]:
    """Functions and their mutants, shuffled by a hash, those of one kind together."""
    return sorted(pairs, key=lambda pair: (pair[1].kind, hashlib.sha256(str(pair[1]).encode()).digest()))


def runs(model: LanguageModel) -> bool:
    """Whether a changed model gives figures at all: one that raises needs no check."""
    try:
        exercise(model)
    except Exception:
        return False
    return True


@pytest.mark.slow
def test_a_change_in_any_path_of_a_mixer_is_caught(architecture):
    model, spec = small(architecture)
    assert failing(model, spec) == []
    pairs = [(function, mutant) for function in travelled(model) for mutant in mutants_of(function)]
    tried, missed = Counter(), []
    for function, mutant in by_kind(pairs):
        if tried[mutant.kind] < PER_KIND and not any(
            part in str(mutant) for part in (*EQUIVALENT, *OWN.get(architecture, ()))
        ):
            verdict = judged(function, mutant, model, spec)
            tried[mutant.kind] += verdict not in (RAISES, UNREACHED)
            missed += [str(mutant)] if verdict == NOTHING else []
    kinds = {mutant.kind for _, mutant in pairs}
    assert {kind for kind in tried if tried[kind]} == {
        kind for kind in kinds if architecture not in UNTRIED.get(kind, ())
    }
    assert not missed
