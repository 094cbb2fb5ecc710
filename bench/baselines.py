"""What the bench compares of the baselines: each layer against its loop in torch and the packages of others."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from baselines.mamba.mixer import Selective
from baselines.recurrent.mixer import GRU, LSTM
from baselines.rwkv.mixer import TimeMix
from baselines.rwkv.oracle import packaged_time_mix
from bench.comparison import Comparison, Projected, layer
from bench.peers import MambaPy, TransformersMamba, TransformersMambaLoop
from bench.timing import Call, Contestant
from harness.model.block import Gated
from harness.ops.registry import Choice

LOOP_TOKENS = 2**14  # the most for a loop, whose backward keeps every operation's result
SQUARED_TOKENS = (
    2**9
)  # the most for a loop that writes into one tensor of all tokens: its backward grows with their square


def mamba(device: torch.device) -> Comparison:
    """Mamba's mixer, all with the same sizes."""
    loop = _layers(TransformersMambaLoop, device)
    peers = [
        Contestant("mambapy MambaBlock", _layers(MambaPy, device), needs=("mambapy",)),
        Contestant("transformers MambaMixer", _layers(TransformersMamba, device), needs=("transformers", "mambapy")),
        Contestant("transformers, its default loop", loop, needs=("transformers",), most_tokens=SQUARED_TOKENS),
    ]
    note = (
        "All have the same sizes: 16 states, expand 2, 4 taps. transformers is configured with `use_mambapy=True`, the "
        "faster of its two ways on a CPU; its default is the last row."
    )
    return Comparison("Mamba", [*_ours(_mamba, device), *peers], note)


def rwkv(device: torch.device) -> Comparison:
    """RWKV-7's time mixing; the rwkv package only infers, one sequence at a time."""

    def packaged(batch: int, length: int, channels: int) -> Call:
        mixer = _time_mix(channels)
        run, x = packaged_time_mix(mixer).forward, torch.randn(batch, length, channels)
        return Call(lambda: run(x), [x, *mixer.parameters()])

    peers = [Contestant("rwkv package", packaged, needs=("rwkv",), training=False)] if device.type == "cpu" else []
    note = "The package has no backward and reads the sequences of a batch one after another; its weights are ours."
    return Comparison("RWKV-7", [*_ours(_time_mix, device), *peers], note)


def gru(device: torch.device) -> Comparison:
    """A GRU and the projection of its output."""
    peer = Contestant("torch.nn.GRU + Linear", _layers(_torch_gru, device))
    return Comparison("GRU", [*_ours(GRU, device), peer], "All project their output, as every mixer does.")


def lstm(device: torch.device) -> Comparison:
    """An LSTM and the projection of its output."""
    peer = Contestant("torch.nn.LSTM + Linear", _layers(_torch_lstm, device))
    note = "All project their output, as every mixer does; fused is torch's own kernel, the fastest there is."
    return Comparison("LSTM", [*_ours(LSTM, device), peer], note)


def _mamba(channels: int, kernel: Choice = "auto") -> Gated:
    return Gated(partial(Selective, kernel=kernel), channels, kernel=kernel)


def _time_mix(channels: int, kernel: str = "auto") -> TimeMix:
    return TimeMix(channels, head_dim=min(64, channels), kernel=kernel)


def _torch_gru(channels: int) -> nn.Module:
    return Projected(nn.GRU(channels, channels, batch_first=True), channels)


def _torch_lstm(channels: int) -> nn.Module:
    return Projected(nn.LSTM(channels, channels, batch_first=True), channels)


def _layers(module: Callable[..., nn.Module], device: torch.device, **options) -> Callable[[int, int, int], Call]:
    return lambda batch, length, channels: layer(module(channels, **options), batch, length, channels, device)


def _ours(mixer: Callable[..., nn.Module], device: torch.device) -> list[Contestant]:
    return [
        Contestant("fused", _layers(mixer, device)),
        Contestant("torch loop", _layers(mixer, device, kernel="reference"), most_tokens=LOOP_TOKENS),
    ]
