"""What every kernel of every operation is held to: checks of one kernel against its operation's reference.

Each check takes an operation, one of its kernels and keywords of the operation's samples, and raises AssertionError
where the kernel does not conform. No list is kept: an operation is found by importing every module, and its calls are
those that it brings (harness/ops/samples.py).
"""

import copy
import dataclasses
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kernel_checks
from harness.ops.registry import OPERATIONS, Kernel, Operation
from harness.ops.samples import Draw, Sample
from harness.ops.toolbox import threads

PACKAGES = ("harness", "arch", "baselines")
CUDA = torch.cuda.is_available()
INTERPRETED = not CUDA and os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}
LARGE = 1e4


def operations() -> dict[str, Operation]:
    """Every operation of the library, by name; the kernels' own files and oracles define none."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            last = module.name.rpartition(".")[2]
            if last != "oracle" and not last.endswith(("_numba", "_triton")):
                try:
                    importlib.import_module(module.name)
                except ModuleNotFoundError as error:
                    if error.name.partition(".")[0] in PACKAGES:  # and not of an extra that is not installed
                        raise
    return {name: operation for name, operation in sorted(OPERATIONS.items()) if not name.startswith("test_")}


def runnable(kernel: Kernel) -> bool:
    """Whether a kernel can run here: on a GPU's behalf, Triton's interpreter and torch's own operations do."""
    if kernel.device == "cpu" or CUDA:
        return True
    return (kernel.backend == "triton" and INTERPRETED) or kernel.backend == "torch"


def interpreted(kernel: Kernel) -> bool:
    return kernel.backend == "triton" and INTERPRETED


def kernels_of(operation: Operation) -> list[Kernel]:
    """The kernels that can run here; of those that are one function on one device, the one of the most types."""
    ranked = sorted(filter(runnable, operation.kernels), key=lambda kernel: len(kernel.dtypes))
    return list({(kernel.path, kernel.device): kernel for kernel in ranked}.values())


def sample_of(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype, scale: float = 1.0) -> Sample:
    """The call of those keywords, on the kernel's device."""
    device = "cuda" if kernel.device == "cuda" and CUDA else "cpu"
    return operation.samples.make(Draw(dtype, scale=scale, device=device), **keywords)


def serves(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype) -> bool:
    """Whether the kernel takes such a call."""
    sample = sample_of(operation, kernel, keywords, torch.float32)
    return kernel.refusal(kernel.device, dtype, **sample.options) is None


def checks_of(operation: Operation, kernel: Kernel) -> dict[str, Callable[[], None]]:
    """Every check of a kernel but those of random sizes, by name."""
    samples, made = operation.samples, {}

    def add(check: Callable, calls: Iterable[dict], *dtypes: torch.dtype) -> None:
        for keywords in calls:
            given = ",".join(f"{key}={value}" for key, value in keywords.items()) or "plain"
            for dtype in dtypes:
                if serves(operation, kernel, keywords, dtype):
                    name = f"{check.__name__.removeprefix('check_')}-{str(dtype).removeprefix('torch.')}-{given}"
                    made[name] = partial(check, operation, kernel, keywords, dtype)

    first, exact = samples.variants[:1], widest(kernel)
    single = ({"length": 1},) if "length" in samples.sizes else ()
    large = () if interpreted(kernel) else samples.large
    add(check_results, (*samples.variants, *single, *large), torch.float64, torch.float32)
    add(check_results, first, torch.bfloat16)
    add(check_layouts, samples.variants[:2], exact)
    add(check_extremes, samples.variants, torch.float32)
    add(check_extremes, first, torch.float64)
    add(check_nan, first, exact)
    add(check_repeats, (*samples.variants[:2], *large), exact)
    return made


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `change` of every tensor in it; modules, numbers and names stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, change) for part in value)
    if hasattr(value, "map_tensors"):
        return value.map_tensors(change)
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{name: mapped(getattr(value, name), change) for name in fields})
    return value


def tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(value, lambda tensor: (found.append(tensor), tensor)[1])
    return found


def converted(sample: Sample, dtype: torch.dtype) -> Sample:
    """The same call in another type."""

    def change(value):
        value = copy.deepcopy(value).to(dtype) if isinstance(value, nn.Module) else value
        return mapped(value, lambda t: t.detach().to(dtype).requires_grad_(t.requires_grad) if _floats(t) else t)

    token = None if sample.token is None else tuple(map(change, sample.token))
    return dataclasses.replace(sample, arguments=tuple(map(change, sample.arguments)), token=token)


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def outcome(
    function: Callable, sample: Sample, arrange: Callable[[Tensor], Tensor] = lambda t: t, poisoned: bool = False,
    gradients: bool = True,
) -> list[Tensor]:  # fmt: skip
    """The values of a call and its gradients by every tensor that requires one, for a fixed random weighting of them.

    arrange: lays each tensor out anew before the call, within the graph. poisoned: fresh memory is filled with NaN.
    Raises AssertionError where the call changes what it was given.
    """
    leaves: list[Tensor] = []

    def fresh(tensor: Tensor) -> Tensor:
        leaf = tensor.detach().clone().requires_grad_(tensor.requires_grad and gradients)
        leaves.append(leaf)
        return arrange(leaf)

    arguments, token = (mapped(given, fresh) for given in (sample.arguments, sample.token))
    given = tensors_in((arguments, token)) + [p for a in arguments if isinstance(a, nn.Module) for p in a.parameters()]
    before = [tensor.detach().clone() for tensor in given]
    with pytest.MonkeyPatch.context() as patch:
        if poisoned:
            kernel_checks.poison(patch)
        if token is not None:
            with torch.no_grad():
                outputs = tensors_in(function(*arguments)(*token))
            found = []
        else:
            with torch.set_grad_enabled(gradients):
                outputs = tensors_in(function(*arguments))
            values = [output.detach().clone() for output in outputs]
            found = _gradients(outputs, [leaf for leaf in leaves if leaf.requires_grad])
            for output, value in zip(outputs, values, strict=True):
                assert _same(output, value), "the backward changes what the forward returned"
    for tensor, old in zip(given, before, strict=True):
        assert _same(tensor, old), f"a call changes its input of the shape {tuple(tensor.shape)}"
    return [output.detach() for output in outputs] + found


def _gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs or not leaves:
        return []
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs]  # exact in any type
    before = [u.clone() for u in upstream]
    found = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True, materialize_grads=True)
    assert all(map(_same, upstream, before)), "the backward changes the gradients it is given"
    return list(found)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.detach().nan_to_num(nan=0.5), other.detach().nan_to_num(nan=0.5))


def close(got: list[Tensor], expected: list[Tensor], tolerance: float, own: list[Tensor] | None = None) -> None:
    """Every result has the expected one's shape and lies within `tolerance` times its norm of it.

    own: the reference's results in the type of `got`. Where its terms cancel, so that rounding is more than that of its
    result, a kernel may be off by twice as much as the reference is itself.
    """
    assert len(got) == len(expected), f"{len(got)} results, where the reference has {len(expected)}"
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape, f"result {number} has the shape {tuple(a.shape)}, not {tuple(b.shape)}"
        assert a.isfinite().all(), f"result {number} has numbers that are not finite"
        error, norm = (a.double() - b.double()).norm().item(), b.double().norm().item()
        rounding = 0.0 if own is None else (own[number].double() - b.double()).norm().item()
        allowed = max(tolerance * max(norm, 1e-3), 2 * rounding)
        assert error <= allowed, f"result {number} is off by {error:.2e} of {norm:.2e}"


def widest(kernel: Kernel) -> torch.dtype:
    return torch.float64 if torch.float64 in kernel.dtypes else torch.float32


def check_results(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype, slack: float = 1.0) -> None:
    """Values and gradients are the reference's in float64, within what `dtype` allows, and every number is written.

    slack: times what is allowed, where so many sizes are drawn that in some of them a sum cancels.
    """
    sample = sample_of(operation, kernel, keywords, dtype)
    expected = outcome(operation.reference, converted(sample, torch.float64))
    got = outcome(kernel.load(), sample, poisoned=True)
    own = outcome(operation.reference, sample) if dtype in (torch.float32, torch.float64) else None
    close(got, expected, slack * TOLERANCES[dtype], own)
    if own is not None:
        types = [result.dtype for result in own]
        assert [result.dtype for result in got] == types, "the results have other types than the reference's"


def _apart(tensor: Tensor) -> Tensor:
    """The tensor, its numbers with gaps between them."""
    return torch.stack([tensor, tensor.flip(0)], dim=-1)[..., 0] if tensor.dim() else tensor


def _turned(tensor: Tensor) -> Tensor:
    """The tensor with its last two axes laid out the other way round."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def _batch_last(tensor: Tensor) -> Tensor:
    """The tensor with its first two axes laid out the other way round."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


LAYOUTS = (_apart, _turned, _batch_last)


def check_layouts(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype) -> None:
    """Inputs may be laid out in any order in memory."""
    sample = sample_of(operation, kernel, keywords, dtype)
    expected = outcome(operation.reference, converted(sample, torch.float64))
    for arrange in LAYOUTS:
        close(outcome(kernel.load(), sample, arrange), expected, TOLERANCES[dtype])


def check_extremes(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype) -> None:
    """Results of inputs that are zero or large are finite where the reference's are; in float64 they are right too."""
    for scale in (0.0, LARGE):
        sample = sample_of(operation, kernel, keywords, dtype, scale)
        expected = outcome(operation.reference, converted(sample, torch.float64))
        for number, (got, want) in enumerate(zip(outcome(kernel.load(), sample), expected, strict=True)):
            held = want.isfinite() & (want.abs() < 1e30)
            assert got[held].isfinite().all(), f"result {number} is not finite where the reference's is"
            if dtype == torch.float64:
                error, norm = (got[held] - want[held]).norm(), want[held].norm()
                assert error <= 1e-8 * norm + 1e-12 * (1 + scale**2), (
                    f"result {number} of inputs times {scale} is off by {error:.2e} of {norm:.2e}"
                )


def check_nan(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype) -> None:
    """A number that is not finite reaches the results that depend on it, and no others but within a chunk."""
    sample = sample_of(operation, kernel, keywords, dtype)
    function, marked = kernel.load(), []

    def mark(tensor: Tensor) -> Tensor:
        if marked or tensor.dim() < 2:
            return tensor
        marked.append(tensor)
        changed = tensor.detach().clone()
        changed[tuple(size // 2 for size in changed.shape)] = torch.nan
        return changed

    token = None if sample.token is None else mapped(sample.token, mark)
    arguments = sample.arguments if token is not None else mapped(sample.arguments, mark)
    sample = dataclasses.replace(sample, arguments=arguments, token=token)
    got, want = (outcome(run, sample, gradients=False) for run in (function, operation.reference))
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        shown = a.isnan() & b.isnan() if kernel.chunked else a.isnan()
        assert torch.equal(shown, b.isnan()), f"result {number} shows NaN elsewhere than the reference's"


def check_repeats(operation: Operation, kernel: Kernel, keywords: dict, dtype: torch.dtype) -> None:
    """Results are the same on any number of threads, from our own kernels to the bit, and with gradients as without."""
    sample = sample_of(operation, kernel, keywords, dtype)
    function, count, runs = kernel.load(), torch.get_num_threads(), []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "SMALL_WORK", 0)
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                runs.append(outcome(function, sample))
            quiet = outcome(function, sample, gradients=False)
    finally:
        torch.set_num_threads(count)
    own = kernel.backend in ("numba", "triton")
    for other in runs[1:]:
        close(other, runs[0], TOLERANCES[dtype])
        assert not own or all(map(_same, other, runs[0])), "results depend on the number of threads"
    close(quiet, runs[0][: len(quiet)], TOLERANCES[dtype])
