"""Checks a configuration against the signatures it will call, so that a mistake is reported before anything runs.

Every node with a `_target_` is compared with its target: an unknown key, a missing one and a value of the wrong type
or range become a ConfigError that names the full key. Nothing here knows Hydra: a node is a plain dict.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from harness.errors import ConfigError

RESERVED = ("_target_", "_partial_", "_recursive_", "_convert_")


def is_target(node: Any) -> bool:
    """Whether `node` is a dict that names what it builds."""
    return isinstance(node, dict) and "_target_" in node


def locate(path: str, where: str) -> Callable:
    """Imports `package.module.name`; raises ConfigError where there is no such thing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}._target_={path!r} cannot be imported ({error}).",
            "the dotted path of a class or function.",
            "correct the path in the configuration file.",
        ) from error


def checked(node: dict, where: str, extra: Iterable[str] = ()) -> dict:
    """Returns `node` with every value converted to its annotated type.

    where: the key of this node, for messages. extra: keys that are allowed though the target does not take them.
    Raises ConfigError for an unknown key, a missing key, or a value of the wrong type or range.
    """
    target = locate(node["_target_"], where or "config")
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    allowed = [key for key in parameters if key != "self"]
    result = {}
    for key, value in node.items():
        full_key = f"{where}.{key}" if where else key
        if key in RESERVED or key in extra:
            result[key] = value
        elif key not in parameters:
            raise unknown_key(full_key, key, allowed)
        else:
            result[key] = _checked_value(value, hints.get(key), full_key)
    if not node.get("_partial_"):
        _check_required(node, parameters, where)
    return result


def _checked_value(value: Any, annotation: Any, full_key: str) -> Any:
    """A node, a list with nodes in it, or a plain value."""
    if is_target(value):
        return checked(value, full_key)
    if isinstance(value, list) and any(map(is_target, value)):
        return [_checked_value(item, None, f"{full_key}.{index}") for index, item in enumerate(value)]
    return _converted(value, annotation, full_key)


def unknown_key(full_key: str, key: str, allowed: Iterable[str]) -> ConfigError:
    """The error for a key that nothing takes, with the nearest one that something does."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(key, allowed, n=1)
    return ConfigError(
        f"Unknown key {full_key!r}.",
        f"one of {', '.join(allowed)}." if allowed else "no keys here.",
        f"did you mean {near[0]!r}?" if near else "remove the key or correct its name.",
    )


def _converted(value: Any, annotation: Any, full_key: str) -> Any:
    if annotation is None:
        return value
    try:
        return TypeAdapter(annotation, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError as error:
        reasons = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise ConfigError(
            f"{full_key}={value!r} cannot be used: {reasons}.",
            f"{_readable(annotation)}.",
            f"set {full_key} to such a value.",
        ) from error


def _readable(annotation: Any) -> str:
    try:
        schema = TypeAdapter(annotation, config={"arbitrary_types_allowed": True}).json_schema()
    except PydanticInvalidForJsonSchema:  # a class of ours: a node with a _target_ of its own
        return f"a node whose _target_ makes a {getattr(annotation, '__name__', annotation)}"
    options = schema.get("anyOf", [schema])
    return " or ".join(_readable_option(option) for option in options)


def _readable_option(option: dict) -> str:
    if "enum" in option or "const" in option:
        return "one of " + ", ".join(map(str, option.get("enum", [option.get("const")])))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {option[name]:g}" for name, sign in bounds.items() if name in option]
    return " ".join([option.get("type", "a value"), *limits])


def _check_required(node: dict, parameters: Any, where: str) -> None:
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in node and key != "self":
            raise ConfigError(
                f"The key {where + '.' + key if where else key} is missing.",
                f"a value for every required key of {node['_target_']}.",
                "add it to the configuration file or the command line.",
            )
