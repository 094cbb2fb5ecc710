"""The golden vectors of MT-LNN and M1, made by running their authors' code: numbers that stand outside this repository.

They lie beside it, in ../shared/golden, or where LIQUIDBENCH_GOLDEN says; the README there tells what each key is and
which arguments made which file.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("LIQUIDBENCH_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")


def names(*prefixes: str) -> list[str]:
    """The files whose names begin so; where there are none, one that `load` skips."""
    return sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem.startswith(prefixes)) or ["absent"]


def load(name: str) -> dict[str, Tensor]:
    """The arrays of a file by their keys; skips the test where it is absent."""
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no golden vectors at {path} (LIQUIDBENCH_GOLDEN names another folder)")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def section(name: str) -> str:
    """What the README there says of a file."""
    return re.search(rf"### {name}\n(.*?)(?=\n### |\Z)", (FOLDER / "README.md").read_text(), re.DOTALL)[1]


def arguments(name: str) -> dict:
    """What the authors' class was made with."""
    return json.loads(re.search(r"`args = (.*?)`", section(name))[1])
