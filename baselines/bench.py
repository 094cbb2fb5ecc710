"""What the bench compares of the baselines: each layer against its loop in torch and the packages of others."""

from collections.abc import Callable

import torch
from torch import nn

from baselines.mamba import Mamba
from baselines.peers import MambaPy, TransformersMamba
from baselines.recurrent import GRU, LSTM
from baselines.rwkv import TimeMix
from baselines.rwkv_checkpoint import packaged_time_mix
from harness.bench.comparison import Comparison, layer
from harness.bench.timing import Call, Contestant

LOOP_TOKENS = 2048  # longest sequence of a loop: its backward keeps every operation's result
TRANSFORMERS_TOKENS = 512  # its loop writes into a tensor of all tokens, and the backward grows with their square


def mamba(device: torch.device) -> Comparison:
    """Mamba's mixer, all with the same sizes."""
    return Comparison(
        "Mamba",
        [
            *_ours(Mamba, device),
            Contestant("mambapy MambaBlock", _layers(MambaPy, device), needs=("mambapy",)),
            Contestant(
                "transformers MambaMixer",
                _layers(TransformersMamba, device),
                needs=("transformers",),
                longest=TRANSFORMERS_TOKENS,
            ),
        ],
    )


def rwkv(device: torch.device) -> Comparison:
    """RWKV-7's time mixing; the package only infers, one sequence at a time."""

    def packaged(batch: int, length: int, channels: int) -> Call:
        mixer = _time_mix(channels)
        run, x = packaged_time_mix(mixer), torch.randn(batch, length, channels)
        return Call(lambda: run(x), [x, *mixer.parameters()])

    peers = [Contestant("rwkv package", packaged, needs=("rwkv",), training=False)] if device.type == "cpu" else []
    return Comparison("RWKV-7", [*_ours(_time_mix, device), *peers])


def gru(device: torch.device) -> Comparison:
    """A GRU and the projection of its output, against torch's layer alone."""
    return Comparison("GRU", [*_ours(GRU, device), Contestant("torch.nn.GRU", _layers(_torch_gru, device))])


def lstm(device: torch.device) -> Comparison:
    """An LSTM and the projection of its output, against torch's layer alone."""
    return Comparison("LSTM", [*_ours(LSTM, device), Contestant("torch.nn.LSTM", _layers(_torch_lstm, device))])


def _time_mix(channels: int, kernel: str = "auto") -> TimeMix:
    return TimeMix(channels, head_dim=min(64, channels), kernel=kernel)


def _torch_gru(channels: int) -> nn.GRU:
    return nn.GRU(channels, channels, batch_first=True)


def _torch_lstm(channels: int) -> nn.LSTM:
    return nn.LSTM(channels, channels, batch_first=True)


def _layers(module: Callable[..., nn.Module], device: torch.device, **options) -> Callable[[int, int, int], Call]:
    return lambda batch, length, channels: layer(module(channels, **options), batch, length, channels, device)


def _ours(mixer: Callable[..., nn.Module], device: torch.device) -> list[Contestant]:
    return [
        Contestant("fused", _layers(mixer, device)),
        Contestant("torch loop", _layers(mixer, device, kernel="reference"), longest=LOOP_TOKENS),
    ]
