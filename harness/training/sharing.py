"""How several processes hold one model: each all of it (DDP), or each a part of every weight (FSDP2).

In both, gradients are averaged over the processes. A checkpoint holds whole tensors, so that any number of processes,
in either way, goes on from it.
"""

import copy
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from harness.config.errors import ConfigError
from harness.machine import processes
from harness.model.backbone import LanguageModel

REFERENCE = "reference"


def shared(model: LanguageModel, accelerator: Accelerator, shard: bool) -> nn.Module:
    """What several processes train in place of `model`: the model itself where there is one process.

    shard: whether each holds a part of every weight alone. The parts are those of a copy, and `model` keeps whole
    weights for what comes after training. Raises ConfigError for a model that cannot be held so.
    """
    if processes.count() == 1:
        return model
    if not shard:
        return accelerator.prepare(model)
    _check(model, accelerator.device.type)
    copied = copy.deepcopy(model)
    mesh = init_device_mesh(accelerator.device.type, (processes.count(),))
    for mixer in copied.mixers:  # gathered for its own forward and backward pass, and let go of behind each
        fully_shard(mixer, mesh=mesh)
    return cast(nn.Module, fully_shard(copied, mesh=mesh))


def _check(model: LanguageModel, device_type: str) -> None:
    """Raises ConfigError where fully_shard would fail."""
    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise ConfigError(
            f"trainer.shard=true was given, and {scalars[0]} is a single number, which cannot be held in parts.",
            "a model whose parameters all have a dimension.",
            "leave trainer.shard out.",
        )
    if device_type == "cpu" and any(getattr(m, "kernel", REFERENCE) != REFERENCE for m in model.modules()):
        raise ConfigError(
            "trainer.shard=true was given on a CPU, and the model has numba kernels, which keep hold of weights.",
            f"kernel={REFERENCE} on a CPU, where the model takes it; on a GPU any.",
            f"add kernel={REFERENCE}, or leave trainer.shard out: on a CPU it saves little.",
        )


def matching(groups: list[dict], model: nn.Module, other: nn.Module) -> list[dict]:
    """The optimizer's groups of `model`'s parameters as groups of those that `other` trains in their place."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    others = {name.removeprefix("module."): parameter for name, parameter in other.named_parameters()}
    return [group | {"params": [others[names[id(p)]] for p in group["params"]]} for group in groups]


def gather(trained: nn.Module, model: nn.Module) -> None:
    """Gives `model` the weights of what is trained in its place; every process must call it."""
    if any(isinstance(parameter, DTensor) for parameter in trained.parameters()):
        model.load_state_dict(whole(trained.state_dict()))


def whole(node: Any) -> Any:
    """A state dict with whole tensors in place of parts; every process must ask for them."""
    if isinstance(node, DTensor):
        return node.full_tensor()
    if isinstance(node, dict):
        return {key: whole(value) for key, value in node.items()}
    return [whole(value) for value in node] if isinstance(node, list) else node


def in_parts(state: dict, parameters: list[nn.Parameter]) -> dict:
    """An optimizer's state dict as `whole` made it, shared out like its parameters, which come in its order."""
    moments = {
        index: {name: _like(value, parameters[index]) for name, value in of_one.items()}
        for index, of_one in state["state"].items()
    }
    return state | {"state": moments}


def _like(value: Any, parameter: nn.Parameter) -> Any:
    data = parameter.data
    if not (isinstance(data, DTensor) and isinstance(value, Tensor) and value.shape == data.shape):
        return value
    return distribute_tensor(value.to(data.device), data.device_mesh, data.placements)


def number(value: Tensor) -> float:
    """The value of a tensor of one element, whose parts several processes may hold."""
    return torch.as_tensor(whole(value)).item()
