"""A new architecture is one .py and one .yaml: minGRU, in a folder of its own, from the checks to the tables."""

import json
import os
import re
import subprocess
import sys

import pytest

import run

MIXER = '''"""minGRU (Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201): gates see the token alone."""

import torch
from torch import nn

from harness.model.mixer import UNTIMED, Flops, ProjectedMixer
from harness.ops.linear_scan.scan import LINEAR_SCAN
from harness.ops.registry import Choice


class MinGRU(ProjectedMixer):
    """z = sigmoid(W_z x), h_t = (1 - z) h_{t-1} + z W_h x, then a projection."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, kernel: Choice = "auto", d_out=None):
        super().__init__(d_model, layer, n_layers, d_out)
        self.kernel = kernel
        self.gate, self.candidate = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, self.d_out, bias=False)

    @property
    def projection(self):
        return self.out

    def mix(self, x, state=None, call=UNTIMED):
        state = state or self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        z, candidate = torch.sigmoid(self.gate(x)), self.candidate(x)
        h = LINEAR_SCAN.choose(self.kernel, x.device, x.dtype)(1 - z, z * candidate, state["h"])
        return h.to(x.dtype), {"h": h[:, -1].clone()}

    def mix_step(self, x_t, state, call=UNTIMED):
        z = torch.sigmoid(self.gate(x_t))
        h = (1 - z) * state["h"] + z * self.candidate(x_t)
        return h, {"h": h}

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context):
        return Flops(2 * self.d_model * (2 * self.d_model + self.d_out), 9 * self.d_model)
'''
CONFIG = """# minGRU
defaults:
  - /block@_global_.block: transformer
  - /backbone@_here_
  - _self_
name: mingru
mixer: {_target_: mingru.MinGRU, _partial_: true, kernel: "${kernel}"}
"""


@pytest.fixture
def command(tmp_path):
    """Runs a Python command from the checkout, with the folder of the two files in the environment."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "mingru.py").write_text(MIXER)
    (tmp_path / "mine" / "model" / "mingru.yaml").write_text(CONFIG)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    environment = os.environ | {"LIQUIDBENCH_PLUGINS": str(tmp_path / "mine")}
    environment.pop("LIQUIDBENCH_ROOT", None)

    def call(*arguments: str) -> subprocess.CompletedProcess:
        given = {"cwd": run.ROOT, "env": environment, "capture_output": True, "text": True, "check": False}
        return subprocess.run([sys.executable, *arguments], **given)

    return call


@pytest.mark.slow
def test_a_third_architecture_is_two_files(command, tmp_path):
    records = tmp_path / "runs"
    tiny = ["debug=tiny", "trainer.tokens=1024", "progress=false", "task=text", f"task.path={tmp_path / 'text.txt'}"]
    done = command("run.py", "-m", "model=mingru", "block=transformer,gated", *tiny, f"records={records}")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in sorted(records.glob("mingru-*/result.json"))]
    assert {result["block"] for result in results} == {"transformer", "gated"}
    for result in results:
        assert result["checks"]["passed"] is True
        assert abs(result["parameters"]["total"] - 120_000) <= 2400
        assert result["evaluation"]["test"]["bits_per_byte"] > 0
        assert result["measurement"]["contexts"][0]["state_bytes"] > 0
        assert result["kernels"]["linear_scan"] == ["numba"]
    tabled = command("-m", "analysis", str(records), "--output", str(tmp_path / "tables"))
    assert tabled.returncode == 0, tabled.stdout + tabled.stderr
    table = "".join(path.read_text() for path in (tmp_path / "tables").glob("*.md"))
    assert "mingru, gated block" in table
    assert re.search(r"\| mingru +\|", table)  # in the block of its own, which goes unnamed
    refused = command("run.py", "model=mingru", "solver=rk4", *tiny, f"records={records}")
    assert "model=mingru has no solver" in refused.stderr
