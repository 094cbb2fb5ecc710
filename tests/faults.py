"""Small mixers that the checks must judge: two honest ones, and one for each way of breaking the contract."""

import itertools
import random
import types

import torch
from torch import nn
from torch.utils.data import TensorDataset

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


class FlopsOfTheSecondToken(Decay):
    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2 + (context == 2))


class NoFlops(Decay):
    """Says that its data decide, and states nothing."""

    data_dependent_flops = True

    def flops_per_token(self, context):
        return Flops(0)


class FewFlops(NoFlops):
    """The same, with a reason that its arithmetic does not have."""

    inexact = "adaptive_steps"


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


def following(x):
    """The next token's input at every token, zero behind the last."""
    return nn.functional.pad(x[:, 1:], (0, 0, 0, 1))


class Leaking(Decay):
    """Adds a part of the next token's input where `leaks` says so."""

    gain = 1.0

    def leaks(self, x, call):
        """Where the future is let in: a bool, or (T,) of bool."""
        raise NotImplementedError

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        where = torch.as_tensor(self.leaks(x, call)).expand(x.shape[1])
        return y + self.gain * where[:, None] * following(x), state


class WithinFullBlocks(Leaking):
    def leaks(self, x, call):
        time = torch.arange(x.shape[1])
        return (time < x.shape[1] // 128 * 128) & (time % 128 != 127)


class WithinBlocksOf1024(Leaking):
    def leaks(self, x, call):
        time = torch.arange(x.shape[1])
        return (time < x.shape[1] // 1024 * 1024) & (time % 1024 != 1023)


class AcrossBlocks(Leaking):
    def leaks(self, x, call):
        return torch.arange(x.shape[1]) % 256 == 255


class InSinglePrecisionInTheLastLayer(Leaking):
    gain = 1e-5

    def leaks(self, x, call):
        return x.dtype == torch.float32 and self.layer == self.n_layers - 1


class InSinglePrecision(Leaking):
    gain = 1e-5

    def leaks(self, x, call):
        return x.dtype == torch.float32


class AtTheTrainingLength(Leaking):
    def leaks(self, x, call):
        return x.shape[1] == 512


class AtTheTrainingBatch(Leaking):
    def leaks(self, x, call):
        return len(x) == 4


class WithGradients(Leaking):
    def leaks(self, x, call):
        return torch.is_grad_enabled() and x.dtype == torch.float32


class UnderAutocast(Leaking):
    def leaks(self, x, call):
        return torch.is_autocast_enabled("cpu")


class OnText(Leaking):
    """Leaks where neighbours are alike more often than in the checks' random tokens."""

    def leaks(self, x, call):
        return (x[:, 1:] == x[:, :-1]).all(-1).float().mean() > 0.3 if x.shape[1] > 1 else False


class OnceTheWeightsHaveMoved(Leaking):
    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.start = self.project.weight.detach().clone()

    def leaks(self, x, call):
        return not torch.equal(self.project.weight.float(), self.start)


class AfterManyCalls(Leaking):
    """Out of reach of any check before training."""

    calls = 0

    def leaks(self, x, call):
        self.calls += self.training
        return self.calls > 200


class ThroughTheElapsedTimes(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        if call is not None and call.elapsed is not None:
            y = y + following(call.elapsed[..., None])
        return y, state


class ThroughWhatLayersShare(Decay):
    """The first layer leaves the future for those above it, in single precision."""

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        if x.dtype == torch.float32 and call is not None:
            y = y + call.shared.get("next", 0.0)
            call.shared["next"] = following(x)
        return y, state


class BatchStatisticsInTraining(Decay):
    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return ((y - y.mean((0, 1))) / y.std((0, 1)) if self.training else y), state


class RowsInTraining(Decay):
    """Takes the other rows of the same token into account, in training."""

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return (y - y.mean(0) if self.training else y), state


class RandomInTraining(Decay):
    """Noise from a generator that no seed of torch's reaches."""

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return (y * random.random() if self.training else y), state


class HonestCopy(Leaking):
    """Every copy of it is honest."""

    def leaks(self, x, call):
        return True

    def __deepcopy__(self, memo):
        made = Decay(self.d_model, self.layer, self.n_layers)
        made.load_state_dict(self.state_dict())
        return made


class OwnTolerance(Decay):
    tolerance = 1e9

    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return 3 * y, state


class OwnReason(Decay):
    """A step that is wrong by a hundredth, and a reason that its arithmetic does not have."""

    inexact = "adaptive_steps"

    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return 1.01 * y, state


class NoSuchReason(Decay):
    inexact = "a bad day"


class Counting(Decay):
    """Counts its tokens, and as a plant gives zero after `last` of them."""

    last = 2**40

    def step(self, x_t, state, call=None):
        y, new = super().step(x_t, state)
        return (y if state["n"] < self.last else 0 * y), new | {"n": state["n"] + 1}

    def forward(self, x, state=None, call=None):
        state = state or self.init_state(x.shape[0], dtype=x.dtype)
        y, new = super().forward(x, state)
        return y, new | {"n": state["n"] + x.shape[1]}

    def init_state(self, batch, context=0, device=None, dtype=None):
        return super().init_state(batch, context, device, dtype) | {"n": context}


class ZeroAfter100(Counting):
    last = 100


class ZeroAfter1000(Counting):
    last = 1000


class DecoderTiresAfter50(Decay):
    def frozen_step(self):
        calls = itertools.count()

        def step(x_t, state, call=None):
            y, state = Decay.step(self, x_t, state)
            return (y if next(calls) < 50 else 0 * y), state

        return step


class InTheDecoder(Decay):
    """What it has read since the decoder was made, the decoder keeps for itself."""

    def frozen_step(self):
        kept = []

        def step(x_t, state, call=None):
            y, new = Decay.step(self, x_t, kept.pop() if kept else state)
            kept.append(new)
            return y, state

        return step


class WithACarriedState(Decay):
    """Leaks in the later chunks of a sequence, in single precision."""

    def forward(self, x, state=None, call=None):
        y, new = Decay.forward(self, x, state)
        return (y + following(x) if state is not None and x.dtype == torch.float32 else y), new


class LongPrefill(Decay):
    """Keeps what lies behind the hundredth token."""

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y, state | ({"more": x[:, 100:].clone()} if x.shape[1] > 100 else {})


class InPlace(Decay):
    def step(self, x_t, state, call=None):
        h = state["h"].add_(self.project(x_t)).div_(2)
        return h.clone(), state


class Remembering(Mean):
    """The mean of all tokens so far, behind a state of one number a row; a subclass says where the tokens are kept."""

    constant_state = True

    def keep(self, seen):
        """A state from which `seen` (B, T, D) can be told."""
        raise NotImplementedError

    def kept(self, state):
        raise NotImplementedError

    def forward(self, x, state=None, call=None):
        fresh = state is None or state.get("fresh") is not None
        y, new = super().forward(x, None if fresh else {"seen": self.kept(state)})
        return y, self.keep(new["seen"])

    def step(self, x_t, state, call=None):
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"n": torch.zeros(batch, 1, device=device, dtype=dtype)} | ({} if context else {"fresh": True})


MEMORY: dict = {}


class InTheModule(Remembering):
    """One memory for all generations."""

    def keep(self, seen):
        MEMORY[self.layer, seen.dtype] = seen
        return {"n": seen[:, -1, :1].clone()}

    def kept(self, state):
        return MEMORY[self.layer, state["n"].dtype]


class InTheModuleByContent(Remembering):
    """A memory for each state, found by the state's own number."""

    def keep(self, seen):
        state = {"n": seen.mean(1)[:, :1].clone()}
        MEMORY[state["n"].detach().numpy().tobytes()] = seen
        return state

    def kept(self, state):
        return MEMORY[state["n"].detach().numpy().tobytes()]


class InTheMixer(InTheModule):
    """The memory is an attribute, which a copy that was made before does not have."""

    def keep(self, seen):
        self.memory = {seen.dtype: seen}
        return {"n": seen[:, -1, :1].clone()}

    def kept(self, state):
        return self.memory[state["n"].dtype]


class InAnAttribute(Remembering):
    """The state's tensor has an attribute."""

    def keep(self, seen):
        number = seen[:, -1, :1].clone()
        number.seen = seen
        return {"n": number}

    def kept(self, state):
        return state["n"].seen


class BehindAView(Remembering):
    """The number is a view into all that was read."""

    def keep(self, seen):
        whole = seen.clone()
        return {"n": whole[:, -1, :1]}

    def kept(self, state):
        n = state["n"]
        storage, width = n.untyped_storage(), self.d_model
        length = storage.nbytes() // n.element_size() // width // len(n)
        return n.new_empty(0).set_(storage, 0, (len(n), length, width))


class Opaque:
    """A cache that lists what it pleases."""

    def __init__(self, seen, listed):
        self.seen, self.listed = seen, listed

    def tensors(self):
        yield from self.listed

    def map_tensors(self, function):
        return Opaque(self.seen, [function(tensor) for tensor in self.listed])


class InAnUnlistedCache(Remembering):
    def keep(self, seen):
        return Opaque(seen, [])

    def kept(self, state):
        return state.seen

    def forward(self, x, state=None, call=None):
        y, new = Mean.forward(self, x, {"seen": state.seen} if state else None)
        return y, self.keep(new["seen"])

    def init_state(self, batch, context=0, device=None, dtype=None):
        return Opaque(torch.zeros(batch, 0, self.d_model, device=device, dtype=dtype), [])


class Roomy:
    """A cache that lists one number of a large storage, as if the rest were room that it did not write."""

    def __init__(self, whole):
        self.whole = whole

    def tensors(self):
        yield self.whole[:, -1:, :1]

    def map_tensors(self, function):
        return Roomy(function(self.whole[:, -1:, :1]))


class InSpareRoom(InAnUnlistedCache):
    def forward(self, x, state=None, call=None):
        y, new = Mean.forward(self, x, {"seen": state.whole[:, 1:]} if state else None)
        return y, Roomy(nn.functional.pad(new["seen"], (0, 0, 1, 0)))

    def init_state(self, batch, context=0, device=None, dtype=None):
        return Roomy(torch.zeros(batch, 1, self.d_model, device=device, dtype=dtype))


class InAList(Remembering):
    """A Python list of past values."""

    def keep(self, seen):
        return {"n": seen.tolist()}

    def kept(self, state):
        return torch.tensor(state["n"]).to(self.dtype)

    def forward(self, x, state=None, call=None):
        self.dtype = x.dtype
        return super().forward(x, state)


class InAnInteger(Decay):
    """An integer of the state tells a number of the last token."""

    def told(self, x_t):
        return {"n": int(1e6 * x_t.flatten()[0].item())}

    def step(self, x_t, state, call=None):
        y, new = super().step(x_t, {"h": state["h"]})
        return y, new | self.told(x_t)

    def forward(self, x, state=None, call=None):
        y, new = super().forward(x, state and {"h": state["h"]})
        return y, new | self.told(x[:, -1])

    def init_state(self, batch, context=0, device=None, dtype=None):
        return super().init_state(batch, context, device, dtype) | self.told(torch.zeros(1))


class InAKey(InAnInteger):
    """The name of a key that holds nothing tells it."""

    def told(self, x_t):
        return {f"n{abs(super().told(x_t)['n'])}": None}


HELD = types.SimpleNamespace(numbers=None)
SHARED = torch.zeros(65).share_memory_()
"""Whether it is in use, and the last input of any generation: memory that a forked process has too."""


class Filled(Decay):
    """Adds numbers that training has written where the budget does not look; a subclass says where."""

    def learn(self, numbers):
        """numbers: (d_model,), or None to forget them."""
        raise NotImplementedError

    def numbers(self):
        raise NotImplementedError

    def more(self, y):
        return y if self.numbers() is None else y + self.numbers()

    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return self.more(y), state

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return self.more(y), state


class InANamespace(Filled):
    def learn(self, numbers):
        HELD.numbers = numbers

    def numbers(self):
        return HELD.numbers


class InADataset(Filled):
    """In an object of a type that nobody looks into."""

    def learn(self, numbers):
        self.data = None if numbers is None else TensorDataset(numbers)

    def numbers(self):
        data = getattr(self, "data", None)
        return data and data.tensors[0]


class OnAParameter(Filled):
    def learn(self, numbers):
        self.project.weight.more = numbers

    def numbers(self):
        return getattr(self.project.weight, "more", None)


class BehindAParameter(Filled):
    """The parameter is the beginning of a storage."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.gain = nn.Parameter(torch.zeros(2 * d_model)[:d_model])

    def learn(self, numbers):
        self.numbers().copy_(torch.zeros(self.d_model) if numbers is None else numbers)

    def numbers(self):
        storage = self.gain.untyped_storage().nbytes() // self.gain.element_size()
        whole = storage == 2 * self.d_model  # a copy has the beginning alone
        return self.gain.detach().as_strided((self.d_model,), (1,), self.d_model) if whole else None


class RandomTables(Decay):
    """Honest: numbers that the budget counts, in an attribute that stays and in a buffer that training may write."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.fixed = torch.randn(d_model)
        self.register_buffer("written", torch.randn(d_model), persistent=False)

    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return y + self.fixed + self.written, state

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y + self.fixed + self.written, state


class InItsSpec(Filled):
    """In an option of its own, in an object that nobody looks into."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, holder: list):
        super().__init__(d_model, layer, n_layers)
        self.holder = holder

    def learn(self, numbers):
        self.holder[:] = [] if numbers is None else [TensorDataset(numbers)]

    def numbers(self):
        return self.holder[0].tensors[0] if self.holder else None


class InSharedMemory(Decay):
    """Adds the input before each, which of a generation's last token lies in memory that processes share."""

    def learn(self, numbers):
        SHARED[0] = 0.0 if numbers is None else 1.0

    def forward(self, x, state=None, call=None):
        y, new = super().forward(x, state)
        if not SHARED[0]:
            return y, new
        first = torch.zeros_like(x[:, :1]) if state is None else SHARED[1:].to(x).expand_as(x[:, :1])
        SHARED[1:] = x[0, -1].detach()
        return y + torch.cat([first, x[:, :-1]], 1), new

    def step(self, x_t, state, call=None):
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state


class NoStep(Mixer):
    def forward(self, x, state=None, call=None):
        return x, {}

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {}

    def flops_per_token(self, context):
        return Flops()


class OracleOfItsOwn(Decay):
    """Brings an oracle that agrees with anything."""


@oracle_of(OracleOfItsOwn)
def lenient(mixer):
    return Oracle("a reference", lambda x: mixer(x)[0] * 1.5, tolerance=1e9)
