"""The oracle of RWKV-7: the `rwkv` package of its authors, which computes in float32."""

import contextlib
import importlib
import io
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from baselines.rwkv.mixer import ChannelMix, TimeMix
from harness.checks.oracles import Oracle, oracle_of


def rwkv_package() -> ModuleType:
    """Imports `rwkv.model` with RWKV-7 switched on, undoing what its import does to torch's global switches.

    Raises ImportError where the package is missing.
    """
    switches = {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    before = {name: os.environ.get(name) for name in switches}
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    flags = cudnn.benchmark, cudnn.allow_tf32, cuda.matmul.allow_tf32
    os.environ.update(switches)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a banner
            package = importlib.import_module("rwkv.model")
            if not hasattr(package, "RWKV_x070_TMix_seq"):  # imported earlier, without RWKV-7
                package = importlib.reload(package)
    finally:
        cudnn.benchmark, cudnn.allow_tf32, cuda.matmul.allow_tf32 = flags
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return package


@oracle_of(TimeMix)
def packaged_time_mix(mixer: TimeMix) -> Oracle | None:
    """The package's time mixing of a whole sequence with this mixer's weights.

    None above layer 0, which needs the value of layer 0 (tested on whole models).
    """
    if mixer.layer > 0:
        return None
    function = rwkv_package().RWKV_x070_TMix_seq
    H, N, C = mixer.n_heads, mixer.head_dim, mixer.d_model

    def one(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        nothing = x.new_empty(0)
        names = [f"x_{name}" for name in "rwkvag"] + ["w0", "w1", "w2", "a0", "a1", "a2"]
        first = [weights[name] for name in names] + [nothing] * 3  # v0, v1, v2
        second = [weights[name] for name in ("g1", "g2", "k_k", "k_a")] + [weights["r_k"].flatten()]
        square = [weights[f"{name}.weight"] for name in ("receptance", "key", "value", "output")]
        norm = [weights["ln_x.weight"], weights["ln_x.bias"]]
        state = x.new_zeros(H, N, N)
        return function(0, H, N, x, x.new_zeros(C), nothing, state, *first, *second, *square, *norm)[0]

    return Oracle("rwkv", _batched(one, mixer))


@oracle_of(ChannelMix)
def packaged_channel_mix(mixer: ChannelMix) -> Oracle:
    """The package's channel mixing of a whole sequence with this mixer's weights."""
    function = rwkv_package().RWKV_x070_CMix_seq

    def one(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        square = (weights["key.weight"], weights["value.weight"])
        return function(x, x.new_zeros(mixer.d_model), weights["x_k"], *square)[0]

    return Oracle("rwkv", _batched(one, mixer))


def _batched(one: Callable[[Tensor, dict[str, Tensor]], Tensor], mixer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Runs a float32 function of one sequence (T, C) on each of (B, T, C), with the mixer's weights as they are.

    Matrices of linear layers are laid out as the package keeps them, (in, out).
    """

    def forward(x: Tensor) -> Tensor:
        weights = {name: tensor.float() for name, tensor in mixer.state_dict().items()}
        linear = {name: w.t().contiguous() for name, w in weights.items() if name.endswith(".weight") and w.dim() == 2}
        weights |= linear
        return torch.stack([one(sequence, weights) for sequence in x.float()]).to(x.dtype)

    return forward
