"""Small mixers that the checks must judge: two honest ones, and one for each way of breaking the contract."""

import torch
from torch import nn

from harness.checks.oracles import Oracle, oracle_of
from harness.model.mixer import Flops, Mixer


class Decay(Mixer):
    """h' = (h + W x) / 2, output h: small, honest, and the base of every fault below."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.project = nn.Linear(d_model, d_model, bias=False)

    def step(self, x_t, state, call=None):
        h = (state["h"] + self.project(x_t)) / 2
        return h, {"h": h}

    def forward(self, x, state=None, call=None):
        state, outputs = state or self.init_state(x.shape[0], dtype=x.dtype), []
        for x_t in x.unbind(1):
            y, state = Decay.step(self, x_t, state)
            outputs.append(y)
        return torch.stack(outputs, 1), state

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2)


class Mean(Mixer):
    """The mean of all tokens so far, which it keeps: an honest state that grows."""

    constant_state = False

    def step(self, x_t, state, call=None):
        seen = torch.cat([state["seen"], x_t[:, None]], 1)
        return seen.mean(1), {"seen": seen}

    def forward(self, x, state=None, call=None):
        seen = x if state is None else torch.cat([state["seen"], x], 1)
        means = seen.cumsum(1) / torch.arange(1, seen.shape[1] + 1, dtype=x.dtype)[:, None]
        return means[:, -x.shape[1] :], {"seen": seen}

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"seen": torch.zeros(batch, context, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context):
        return Flops()


class Future(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y + nn.functional.pad(x[:, 1:], (0, 0, 0, 1)), state


class HiddenFuture(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y + 1e-6 * nn.functional.pad(x[:, 1:], (0, 0, 0, 1)).detach(), state


class BatchMean(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y - y.mean(0, keepdim=True), state

    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return y - y.mean(0, keepdim=True), state


class WrongStep(Decay):
    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return y * (1 + 1e-7), state


class WrongGeneration(Decay):
    def frozen_step(self):
        def step(x_t, state, call=None):
            y, state = Decay.step(self, x_t, state)
            return y * 1.1, state

        return step


class Forgetful(Decay):
    def forward(self, x, state=None, call=None):
        return super().forward(x, None)


class WrongGradient(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y * 0.999 + y.detach() * 0.001, state


class SecretlyGrowing(Mean):
    constant_state = True


class NotGrowing(Decay):
    constant_state = False


class WrongShape(Decay):
    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.zeros(batch, self.d_model // (2 if context == 67 else 1), device=device, dtype=dtype)}


class WrongFlops(Decay):
    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2 - 1)


class ContextFlops(Decay):
    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2 + (context > 64))


class NotANumber(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return torch.log(-y.abs() - 1), state


class Raises(Decay):
    def step(self, x_t, state, call=None):
        raise RuntimeError("the kernel fell over")


class ZeroStart(Decay):
    """Hides its look into the future behind a projection that starts at zero."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.gain = nn.Parameter(torch.zeros(d_model))

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y + self.gain * nn.functional.pad(x[:, 1:], (0, 0, 0, 1)), state


class Agrees(Decay):
    pass


class Disagrees(Decay):
    pass


class NotInstalled(Decay):
    pass


@oracle_of(Agrees)
def agreeing(mixer):
    return Oracle("a reference", lambda x: mixer(x)[0] * (1 + 1e-7), tolerance=1e-6)


@oracle_of(Disagrees)
def disagreeing(mixer):
    return Oracle("a reference", lambda x: mixer(x)[0] * (1 + 1e-5), tolerance=1e-6)


@oracle_of(NotInstalled)
def not_installed(mixer):
    import a_package_that_nobody_has  # noqa: F401
