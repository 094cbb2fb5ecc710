"""Checks a configuration against the signatures it will call, so that a mistake is reported before anything runs.

Every node with a `_target_` is compared with its target: an unknown key, a missing one, a value of the wrong type or
range, and a target that makes something else than its place asks for become a ConfigError that names the full key.
What was checked is then built. Types are strict: no boolean or text stands for a number, no number for a truth or a
text, and infinity and not-a-number for nothing; a number without a fraction may be an integer (1e6). Nothing here knows
Hydra: a node is a plain dict, such as a record's config.json.
"""

import difflib
import importlib
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import partial
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from harness.config.errors import ConfigError

RESERVED = {"_target_": str, "_partial_": bool}
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
SHOWN = 80
"""Characters of a value that a message quotes."""


def is_target(node: Any) -> bool:
    """Whether `node` is a dict that names what it builds."""
    return isinstance(node, dict) and "_target_" in node


def locate(path: str, where: str) -> Callable:
    """Imports `package.module.name`; raises ConfigError where there is no such class or function."""
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
        _ = inspect.signature(found), hints_of(found)
    except Exception as error:  # a module of the user's own may raise anything when it is imported
        raise ConfigError(
            f"{_key(where, '_target_')}={shown(path)} cannot be imported ({type(error).__name__}: {error}).",
            "the dotted path of a class or function.",
            "correct the path in the configuration file.",
        ) from error
    return found


def hints_of(target: Callable) -> dict[str, Any]:
    """The annotations of what a target takes, with their ranges."""
    return get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)


def checked(node: dict, where: str, extra: Iterable[str] = (), annotation: Any = None) -> dict:
    """Returns `node` with every value converted to its annotated type.

    where: the key of this node, for messages. extra: keys that are allowed though the target does not take them.
    annotation: what the node must make; None for anything. Raises ConfigError for an unknown key, a missing key, a
    value of the wrong type or range, or a target that makes something else.
    """
    if not is_target(node):
        raise ConfigError(
            f"{where or 'The configuration'} has no _target_.",
            "a _target_ beside the keys, which names what they make.",
            "restore it from the file in conf/.",
        )
    for key in RESERVED:
        if key in node:
            _converted(node[key], RESERVED[key], _key(where, key))
    target = locate(node["_target_"], where)
    parameters, hints = inspect.signature(target).parameters, hints_of(target)
    if annotation is not None:
        _check_made(target if inspect.isclass(target) else hints.get("return"), node, annotation, where)
    allowed = [key for key in parameters if key != "self"]
    result = {}
    for key, value in node.items():
        if key in RESERVED or key in extra:
            result[key] = value
        elif key not in parameters:
            raise unknown_key(_key(where, key), key, allowed)
        else:
            result[key] = _checked_value(value, hints.get(key), _key(where, key))
    if not node.get("_partial_"):
        _check_required(node, parameters, where)
    return result


def build(node: Any) -> Any:
    """What a checked node makes, its parts first; with `_partial_` a factory of it. Other values are what they are."""
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, dict):
        return node
    parts = {key: build(value) for key, value in node.items() if key not in RESERVED}
    if not is_target(node):
        return parts
    target = locate(node["_target_"], "")
    return partial(target, **parts) if node.get("_partial_") else target(**parts)


def own_keys(node: dict) -> dict:
    """The keys of a configuration that its target takes, without those that reached the model by interpolation."""
    taken = inspect.signature(locate(node["_target_"], "config")).parameters
    return {key: value for key, value in node.items() if key in taken or key == "_target_"}


def shown(value: Any) -> str:
    """A value as a message quotes it: short, whatever it is."""
    text = f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 10**99 else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _key(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _checked_value(value: Any, annotation: Any, full_key: str) -> Any:
    """A node, a list with nodes in it, or a plain value."""
    if is_target(value):
        return checked(value, full_key, annotation=annotation)
    if isinstance(value, list) and any(map(is_target, value)):
        item = next((get_args(option)[0] for option in _options(annotation) if get_origin(option) is list), None)
        if item is None and annotation is not None:
            raise _refused(value, annotation, full_key, "it is a list")
        return [_checked_value(part, item, f"{full_key}.{index}") for index, part in enumerate(value)]
    return _converted(value, annotation, full_key)


def _options(annotation: Any) -> tuple:
    """The alternatives of an annotation: of A | B the two, else itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _made(annotation: Any, partial: bool) -> list[type]:
    """The classes that a node under this annotation may make; with `partial` those that its factory may return."""
    options = _options(annotation)
    if partial:
        options = tuple(get_args(option)[-1] for option in options if get_origin(option) is Callable)
    return [option for option in options if inspect.isclass(option)]


def _check_made(made: Any, node: dict, annotation: Any, where: str) -> None:
    """Raises ConfigError where the class that a node makes is none that the key's annotation asks for."""
    partial = bool(node.get("_partial_"))
    if not inspect.isclass(made) or not issubclass(made, tuple(_made(annotation, partial))):
        name = getattr(made, "__name__", "something that it does not state")
        raise ConfigError(
            f"{_key(where, '_target_')}={shown(node['_target_'])} makes {'a factory of ' * partial}{name}.",
            f"{readable(annotation)}.",
            f"correct {_key(where, '_target_')}, or the file that sets it.",
        )


def unknown_key(full_key: str, key: str, allowed: Iterable[str]) -> ConfigError:
    """The error for a key that nothing takes, with the nearest one that something does."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(key), allowed, n=1)
    return ConfigError(
        f"Unknown key {full_key!r}.",
        f"one of {', '.join(allowed)}." if allowed else "no keys here.",
        f"did you mean {near[0]!r}?" if near else "remove the key or correct its name.",
    )


def _converted(value: Any, annotation: Any, full_key: str) -> Any:
    if annotation is None:
        return value
    if is_dataclass(annotation):  # which pydantic would make from a dict, or from nothing
        raise _refused(value, annotation, full_key, "it names no _target_")
    try:
        return TypeAdapter(annotation, config=STRICT).validate_python(_whole(value))
    except ValidationError as error:
        reasons = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise _refused(value, annotation, full_key, reasons) from error


def _whole(value: Any) -> Any:
    """`value` with integers for numbers that have no fraction, which strict floats take as well."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refused(value: Any, annotation: Any, full_key: str, why: str) -> ConfigError:
    return ConfigError(
        f"{full_key}={shown(value)} cannot be used: {why}.",
        f"{readable(annotation)}.",
        f"set {full_key} to such a value.",
    )


def readable(annotation: Any) -> str:
    """An annotation in words."""
    return " or ".join(dict.fromkeys(_in_words(option) for option in _options(annotation)))


def _in_words(option: Any) -> str:
    if get_origin(option) is Callable:
        return f"a node whose _target_ makes a {get_args(option)[-1].__name__}, with _partial_: true"
    if is_dataclass(option):
        return f"a node whose _target_ makes a {getattr(option, '__name__', option)}"
    if get_origin(option) is list and _made(get_args(option)[0], True):
        return "a list of such nodes"
    try:
        return _schema_in_words(TypeAdapter(option, config=STRICT).json_schema())
    except PydanticInvalidForJsonSchema:  # a class of ours
        return f"a node whose _target_ makes a {getattr(option, '__name__', option)}"


def _schema_in_words(schema: dict) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_schema_in_words, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:,}" for name, sign in bounds.items() if name in schema]
    lengths = {"minLength": "at least {:,} characters", "maxLength": "at most {:,} characters"}
    lengths |= {"minItems": "at least {:,} items", "maxItems": "at most {:,} items", "pattern": "matching {}"}
    limits += [text.format(schema[name]) for name, text in lengths.items() if name in schema]
    kind = schema.get("type", "a value")
    if kind == "array" and "items" in schema:
        kind = f"list (each {_schema_in_words(schema['items'])})"
    return f"{kind} {' and '.join(limits)}".strip()


def _check_required(node: dict, parameters: Any, where: str) -> None:
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in node and key != "self":
            raise ConfigError(
                f"The key {_key(where, key)} is missing.",
                f"a value for every required key of {node['_target_']}.",
                "add it to the configuration file or the command line.",
            )
