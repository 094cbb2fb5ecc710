"""The wiring of a neural circuit policy: sensory -> inter -> command -> motor neurons, drawn as ncps draws it.

Lechner et al., "Neural circuit policies enabling auditable autonomy" (Nature Machine Intelligence 2, 2020), methods;
sizes and order of the draws are those of AutoNCP in ncps (Lechner and Hasani), so that a seed gives ncps' synapses
(tests/test_ncp.py), with ncps installed or not.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from harness.config.errors import ConfigError


@dataclass(frozen=True)
class Wiring:
    """Synapses as -1 (inhibitory), 1 (excitatory) or 0 (none), rows being sources and columns targets.

    sensory: (inputs, units). recurrent: (units, units). Neurons stand as ncps orders them: motor, command, inter.
    """

    sensory: np.ndarray
    recurrent: np.ndarray
    motor: int
    command: int
    inter: int

    @property
    def units(self) -> int:
        return self.motor + self.command + self.inter

    def masks(self) -> list[np.ndarray]:
        """What the neurons of the layers inter, command and motor see: sources of the layer before, and their layer.

        A layer of n neurons has a mask (n, sources + n) of zeros and ones.
        """
        motor, command, inter = np.split(np.arange(self.units), np.cumsum([self.motor, self.command]))
        between = self.recurrent[inter][:, command], self.recurrent[command][:, motor]
        sources = self.sensory[:, inter], *between
        return [np.hstack([np.abs(seen.T), np.ones((seen.shape[1],) * 2, int)]) for seen in sources]


@cache
def auto_ncp(inputs: int, units: int, motors: int, sparsity: float, seed: int) -> Wiring:
    """The wiring of `ncps.wirings.AutoNCP(units, motors, sparsity, seed)` built for so many inputs.

    Raises ConfigError where there are too few units for a neuron of each kind.
    """
    if motors >= units - 2:
        raise ConfigError(
            f"units={units} leaves no inter and command neurons beside motors={motors}.",
            "at least three units more than motors.",
            "raise units, or lower motors (0.3 of the units is usual).",
        )
    command = max(int(0.4 * (units - motors)), 1)
    inter, density = units - motors - command, 1.0 - sparsity
    to_inter, to_command = max(int(inter * density), 1), max(int(command * density), 1)
    wiring = Wiring(np.zeros((inputs, units), int), np.zeros((units, units), int), motors, command, inter)
    draw = np.random.RandomState(seed)
    neurons = np.arange(units)
    motor, commands, inters = np.split(neurons, [motors, motors + command])
    _connect(draw, wiring.sensory, np.arange(inputs), inters, to_inter)
    _connect(draw, wiring.recurrent, inters, commands, to_command)
    for _ in range(max(int(command * density * 2), 1)):
        source, target = draw.choice(commands), draw.choice(commands)
        wiring.recurrent[source, target] = draw.choice([-1, 1])
    _connect(draw, wiring.recurrent.T, motor, commands, to_command)  # each motor neuron chooses what it hears
    return wiring


def _connect(draw: np.random.RandomState, synapses: np.ndarray, ones: np.ndarray, others: np.ndarray, fan: int) -> None:
    """Each of `ones` takes `fan` of the `others` at random; those that none took take a fair share of `ones`."""
    left = dict.fromkeys(others.tolist())
    for one in ones:
        for other in draw.choice(others, size=fan, replace=False):
            left.pop(other, None)
            synapses[one, other] = draw.choice([-1, 1])
    share = int(np.clip(len(ones) * fan // len(others), 1, len(ones)))
    for other in left:
        for one in draw.choice(ones, size=share, replace=False):
            synapses[one, other] = draw.choice([-1, 1])
