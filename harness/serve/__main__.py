"""Serves a trained run: `python -m harness.serve run=runs/RUN`.

run: the run's folder. host, port: where it listens, 127.0.0.1 and 8000 where they are not given. folder: for snapshots
of sessions; none are kept without. Limits, with a number each: body_bytes, prompt_tokens, new_tokens, sessions,
state_bytes, snapshots, streams. There is no authentication: whoever reaches the port can use the model. docs/serving.md
shows requests.
"""

import sys
from dataclasses import fields
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

import harness
from harness.config.command import key_values, whole_number
from harness.config.errors import ConfigError, MachineError, UserError
from harness.serve.sessions import Limits

NEEDS = ("starlette", "uvicorn")
LIMITS = tuple(field.name for field in fields(Limits))
KEYS = ("run", "host", "port", "folder", *LIMITS)


def main(arguments: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    given = key_values(arguments, KEYS, "harness.serve")
    limits = Limits(**{key: whole_number(key, given[key]) for key in LIMITS if key in given})
    host, port = given.get("host", "127.0.0.1"), whole_number("port", given.get("port", "8000"), most=65_535)
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise MachineError(
            f"The server needs {' and '.join(missing)}, which cannot be imported.",
            "the extra `serve`.",
            "pip install 'liquidbench[serve]'",
        )
    import uvicorn

    from harness.serve.app import LOOPBACK, application

    local = _is_loopback(host)
    served = application(
        harness.load(given["run"]), limits, _folder(given.get("folder")), LOOPBACK if local else ("*",)
    )
    print(f"Serving {given['run']} at http://{host}:{port}" + ("" if local else ", to whoever reaches it"), flush=True)
    uvicorn.run(served, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _folder(path: str | None) -> Path | None:
    if path is None:
        return None
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"folder={path} cannot be made ({error.strerror or error}).", "a folder to write in.", "give another one."
        ) from error
    return folder


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(error.paragraph())
