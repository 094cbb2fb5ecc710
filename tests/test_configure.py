"""A configuration is checked against the signatures it will call, before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field, PositiveInt, TypeAdapter

import configs
import run
from harness.config import ranges
from harness.config.configure import STRICT, checked, hints_of, locate, readable
from harness.config.errors import ConfigError


class Part:
    def __init__(self, width: PositiveInt = 1):
        pass


class SmallPart(Part):
    pass


class Target:
    def __init__(
        self,
        width: PositiveInt,
        mode: Literal["a", "b"] = "a",
        scale: float | None = None,
        path: Path = Path(),
        on: bool = False,
        label: str = "",
        lengths: ranges.Lengths = (1,),
        part: Part | None = None,
        factory: Callable[..., Part] | list[Callable[..., Part]] | None = None,
    ):
        self.width = width


def make_part() -> Part:
    return Part()


def make_anything():
    return Part()


TARGET, SMALL = f"{__name__}.Target", f"{__name__}.SmallPart"


def test_values_are_converted_to_their_annotations():
    node = checked({"_target_": TARGET, "width": 8.0, "scale": 1}, "model")
    assert node["width"] == 8
    assert isinstance(node["width"], int)
    assert isinstance(node["scale"], float)


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ({"widht": 3}, ["model.widht", "did you mean 'width'"]),
        ({"width": "wide"}, ["model.width='wide'", "integer > 0"]),
        ({"width": -3}, ["model.width=-3", "integer > 0"]),
        ({"mode": "c"}, ["model.mode='c'", "one of a, b"]),
        ({"path": 3}, ["model.path=3"]),
        ({"width": True}, ["model.width=True", "integer > 0"]),
        ({"width": "3"}, ["model.width='3'", "integer > 0"]),
        ({"width": 2.5}, ["model.width=2.5", "integer > 0"]),
        ({"width": None}, ["model.width=None", "integer > 0"]),
        ({"scale": True}, ["model.scale=True", "number or null"]),
        ({"scale": "0.5"}, ["model.scale='0.5'", "number or null"]),
        ({"scale": float("inf")}, ["model.scale=inf", "finite"]),
        ({"scale": float("nan")}, ["model.scale=nan", "finite"]),
        ({"on": 1}, ["model.on=1", "boolean"]),
        ({"on": "yes"}, ["model.on='yes'", "boolean"]),
        ({"label": 3}, ["model.label=3", "string"]),
        ({"lengths": []}, ["model.lengths=[]", "at least 1 items"]),
        ({"lengths": [64, 64, 1]}, ["model.lengths=[64, 64, 1]", "ascend"]),
        ({"lengths": 64}, ["model.lengths=64", "list (each integer >= 1 and <= 16,777,216)"]),
        ({"part": 3}, ["model.part=3", "a node whose _target_ makes a Part"]),
        ({"part": {"_target_": TARGET, "width": 1}}, ["model.part._target_", "makes Target", "makes a Part"]),
        ({"part": {"_target_": SMALL, "_partial_": True}}, ["model.part._target_", "makes a factory of SmallPart"]),
        ({"part": {"_target_": f"{__name__}.make_anything"}}, ["does not state", "makes a Part"]),
        ({"factory": {"_target_": SMALL}}, ["model.factory._target_", "with _partial_: true"]),
        ({"factory": [{"_target_": SMALL, "_partial_": True}, 3]}, ["model.factory.1=3"]),
        ({"_target_": "harness.nothing.Here"}, ["model._target_", "cannot be imported"]),
        ({"_target_": "math.pi"}, ["model._target_", "cannot be imported"]),
        ({"_target_": 3}, ["model._target_=3", "string"]),
        ({"_target_": ""}, ["model._target_=''", "cannot be imported"]),
        ({"_partial_": "yes"}, ["model._partial_='yes'", "boolean"]),
        ({"_recursive_": False}, ["Unknown key 'model._recursive_'"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_remedy(override, fragments):
    with pytest.raises(ConfigError) as error:
        checked({"_target_": TARGET, "width": 8, **override}, "model")
    for fragment in [*fragments, "Expected:", "Remedy:"]:
        assert fragment in str(error.value)


def test_a_missing_required_key_is_named():
    with pytest.raises(ConfigError, match=r"model\.width is missing"):
        checked({"_target_": TARGET}, "model")


def test_a_factory_may_leave_keys_to_its_caller():
    assert checked({"_target_": TARGET, "_partial_": True}, "model")["_partial_"] is True


def test_nested_targets_are_checked_with_their_full_key():
    node = {"_target_": TARGET, "width": 1, "part": {"_target_": SMALL, "width": 0}}
    with pytest.raises(ConfigError, match=r"outer\.part\.width=0"):
        checked(node, "outer")


def test_a_list_of_targets_is_checked_with_the_place_in_the_key():
    good = {"_target_": SMALL, "_partial_": True}
    assert checked({"_target_": TARGET, "width": 1, "factory": [good, good]}, "model")["factory"] == [good, good]
    with pytest.raises(ConfigError, match=r"Unknown key 'model\.factory\.1\.widht'"):
        checked({"_target_": TARGET, "width": 1, "factory": [good, good | {"widht": 3}]}, "model")


def test_a_node_makes_what_its_key_asks_for():
    for target in (SMALL, f"{__name__}.Part", f"{__name__}.make_part"):
        part = {"_target_": target}
        assert checked({"_target_": TARGET, "width": 1, "part": part}, "model")["part"] == part


def test_a_long_value_is_quoted_in_short():
    with pytest.raises(ConfigError) as error:
        checked({"_target_": TARGET, "width": 1, "mode": "x" * 10_000}, "model")
    assert len(str(error.value)) < 400


def unbounded(annotation: Any) -> list[str]:
    """The numbers of an annotation that have no lower or no upper bound, or may be infinite."""
    schema = TypeAdapter(annotation, config=STRICT).json_schema()
    found = []
    for part in schema.get("anyOf", [schema]):
        part = part.get("items", part)
        low = {"minimum", "exclusiveMinimum"} & part.keys()
        high = {"maximum", "exclusiveMaximum"} & part.keys()
        if part.get("type") in ("integer", "number") and not (low and high):
            found.append(readable(annotation))
    return found


def numbers_without_range(node: Any, where: str = "") -> list[str]:
    """The keys of a configuration whose annotations give a number no stated range."""
    if isinstance(node, list):
        return [bad for index, item in enumerate(node) for bad in numbers_without_range(item, f"{where}.{index}")]
    if not isinstance(node, dict) or "_target_" not in node:
        return []
    target = locate(node["_target_"], where)
    hints = hints_of(target)
    found = []
    for key, value in node.items():
        found += numbers_without_range(value, f"{where}.{key}")
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if key in hints and (numeric or _speaks_of_numbers(hints[key])):
            found += [f"{where}.{key}: {bad}" for bad in unbounded(hints[key])]
    return found


def _speaks_of_numbers(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(_speaks_of_numbers, get_args(annotation)))


OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted((run.ROOT / "conf").glob("*/*.yaml"))
    if path.parent.name not in ("bench", "experiment", "debug")
]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_number_of_every_group_has_a_stated_range(option):
    missing = ["task.path=x"] * (option == "task=text") + ["task.dataset=x"] * (option == "task=huggingface")
    assert numbers_without_range(configs.resolved(*configs.choice(option), *missing)) == []


class Loose:
    def __init__(self, a: PositiveInt, b: float | None = None, c: Annotated[int, Field(ge=0, le=3)] = 0):
        pass


def test_a_number_without_a_range_is_found():
    node = {"_target_": TARGET, "part": {"_target_": f"{__name__}.Loose", "a": 1, "b": None, "c": 2}}
    assert numbers_without_range(node) == [".part.a: integer > 0", ".part.b: number or null"]
