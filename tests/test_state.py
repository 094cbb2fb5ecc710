"""What a state may hold, and what it takes."""

import io
from typing import NamedTuple

import pytest
import torch

import configs
from harness.model.backbone import Width
from harness.model.kv_cache import KVCache
from harness.model.state import COUNTERS, StateError, examine, map_tensors, saved, skeleton, state_bytes, tensors


def written_bytes(state) -> int:
    """Bytes of the storages that torch writes for a state."""
    buffer = io.BytesIO()
    torch.save(saved(state), buffer)
    read = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(read)}.values())


def test_a_view_counts_with_its_whole_storage_and_a_storage_once():
    whole = torch.zeros(100)
    assert state_bytes({"h": whole[:1]}) == 400
    assert state_bytes([whole[:1], whole[50:], whole]) == 400
    assert state_bytes([whole.clone(), whole]) == 800
    assert state_bytes({"h": torch.zeros(100, device="meta")}) == 400


def test_the_bytes_are_those_that_are_written():
    cache = KVCache.zeros(2, 1, 5, 4).append(*torch.zeros(2, 2, 1, 3, 4))
    for state in ({"h": torch.zeros(100)[:1]}, [torch.zeros(3), (None,)], cache):
        assert state_bytes(state) == written_bytes(state)
    assert state_bytes([torch.zeros(3), (None, 4, True)]) == 3 * 4 + 2 * 8
    assert state_bytes(cache) == 2 * 2 * 8 * 4 * 4  # none of the room that it has allocated


def test_the_state_of_every_architecture_takes_its_numbers_and_no_more(architecture):
    spec = configs.spec(architecture)
    model = spec.build(16, 2, Width(spec.width_multiple * 2, 0 if spec.channel_mixer is None else 24)).eval()
    ids = torch.randint(16, (2, 9))
    with torch.no_grad():
        read = model(ids)[1]
        states = [read, model.step(ids[:, 0], read)[1], model.frozen_step()(ids[:, 0], read)[1], model.init_state(2, 9)]
    for state in states:
        assert state_bytes(state) == sum(t.numel() * t.element_size() for t in tensors(state))
        for part in (part for block in state for part in block):
            examine(part)
        assert skeleton(state) == [[skeleton(part) for part in block] for block in states[-1]]


@pytest.mark.parametrize(
    "value", [0.5, "text", {1, 2}, len, object(), torch.dtype, b"bytes"], ids=lambda value: type(value).__name__
)
def test_an_unknown_type_is_refused_wherever_a_state_is_read(value):
    for function in (examine, state_bytes, lambda state: list(tensors(state)), lambda state: map_tensors(abs, state)):
        with pytest.raises(StateError, match=type(value).__name__):
            function({"h": [torch.zeros(1), value]})


class Cache:
    """Lists `listed`, and holds what else it is given."""

    def __init__(self, listed, **held):
        self.listed = listed
        self.__dict__ |= held

    def tensors(self):
        yield self.listed

    def map_tensors(self, function):
        return Cache(function(self.listed))


class Slotted(Cache):
    __slots__ = ("more",)


class Holder:
    def __init__(self, **held):
        self.__dict__ |= held


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


def with_attribute():
    tensor = torch.zeros(1)
    tensor.past = [1.0]
    return tensor


def slotted():
    cache = Slotted(torch.zeros(1))
    cache.more = torch.zeros(1)
    return cache


SHOWN = torch.zeros(4)
HIDDEN = {
    "a tensor": (Cache(SHOWN, more=torch.zeros(1)), "Cache.more"),
    "a tensor in a slot": (slotted(), "Slotted.more"),
    "a tensor of a part": (Cache(SHOWN, part=Holder(more=torch.zeros(1))), "Cache.part.more"),
    "a list": (Cache(SHOWN, more=[1.0]), "a list in Cache.more"),
    "a dict": (Cache(SHOWN, more={"a": SHOWN}), "a dict in Cache.more"),
    "a function": (Cache(SHOWN, more=lambda: SHOWN), "a function in Cache.more"),
    "a text": (Cache(SHOWN, more="past"), "a str in Cache.more"),
    "an attribute of a tensor": ({"h": with_attribute()}, "attributes of its own"),
    "a parameter": ({"h": torch.nn.Parameter(SHOWN)}, "a Parameter"),
    "keys": ({7: SHOWN}, "no strings"),
    "a key of data": ({"h": SHOWN, "0a+/=": None}, "'0a\\+/='"),
    "a long key": ({"h": SHOWN, "x" * 33: None}, "no name of at most 32"),
    "a long attribute": (Cache(SHOWN, **{"x" * 33: None}), "no name of at most 32"),
    "a large integer": ({"h": SHOWN, "n": 1 << 64}, "64 bits"),
    "many integers": ({"h": SHOWN, "n": list(range(COUNTERS + 1))}, f"more than {COUNTERS}"),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_bytes_do_not_count_is_refused(case):
    state, message = HIDDEN[case]
    with pytest.raises(StateError, match=message):
        examine(state)


def test_what_a_state_may_hold():
    listed = torch.zeros(4)
    examine({"h": SHOWN, "n": list(range(COUNTERS))})
    examine({"h": SHOWN, "n": 7, "of": [None, True, (SHOWN,)], "pair": Pair(SHOWN, SHOWN)})
    examine(Cache(listed, whole=Holder(keys=listed, used=3), position=9, nothing=None))


def test_a_skeleton_is_all_of_a_state_but_its_numbers():
    state = {"h": SHOWN, "n": 3, "of": [None, (SHOWN,)]}
    assert skeleton(state) == skeleton({"h": torch.zeros(2, 5), "n": 4, "of": (None, [SHOWN])})
    others = [
        {"h": SHOWN, "n": 3, "of": [None, (SHOWN, SHOWN)]},
        {"h": SHOWN, "n": None, "of": [None, (SHOWN,)]},
        {"h": SHOWN, "n": 3, "of": [(SHOWN,), None]},
        {"n": 3, "h": SHOWN, "of": [None, (SHOWN,)]},
        {"h": SHOWN, "m": 3, "of": [None, (SHOWN,)]},
    ]
    assert all(skeleton(other) != skeleton(state) for other in others)
    listed = torch.zeros(4)
    caches = [
        Cache(listed, whole=Holder(keys=listed, used=3), position=9),
        Cache(SHOWN, whole=Holder(keys=SHOWN, used=7), position=2),
        Cache(listed, whole=Holder(keys=listed, used=None), position=9),
        Cache(listed, whole=Holder(keys=listed, used=3), place=9),
    ]
    first, same, *changed = map(skeleton, caches)
    assert first == same
    assert all(other != first for other in changed)
    assert examine(caches[0]) == [3, 9]


def test_a_named_tuple_is_mapped_to_its_own_kind():
    mapped = map_tensors(lambda t: t + 1, Pair(SHOWN, SHOWN))
    assert isinstance(mapped, Pair)
    assert mapped.h.sum() == 4
