"""Commands that take KEY=VALUE, as run.py does, but no configuration."""

from collections.abc import Sequence

from harness.config.errors import ConfigError


def key_values(arguments: Sequence[str], keys: Sequence[str], module: str) -> dict[str, str]:
    """{key: value} of the command line of `python -m MODULE`, whose first key must be given.

    Raises ConfigError for other keys, a key without a value, and where the first one is missing.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if keys[0] not in given or not given.keys() <= set(keys) or not all(given.values()):
        raise ConfigError(
            f"The command {' '.join(arguments)!r} cannot be read.",
            f"{', '.join(f'{key}=VALUE' for key in keys)}, {keys[0]}= always.",
            f"python -m {module} --help",
        )
    return given


def whole_number(key: str, text: str, least: int = 1, most: int = 2**40) -> int:
    """The value of a key that is a number from `least` to `most`; raises ConfigError for any other."""
    if not (text.isascii() and text.isdecimal() and least <= int(text[:16]) <= most):
        raise ConfigError(
            f"{key}={text[:40]} cannot be used.", f"a number from {least:,} to {most:,}.", f"correct {key}."
        )
    return int(text)


def flag(key: str, text: str) -> bool:
    """The value of a key that is true or false; raises ConfigError for any other."""
    if text not in ("true", "false"):
        raise ConfigError(f"{key}={text[:40]} cannot be used.", "true or false.", f"correct {key}.")
    return text == "true"
