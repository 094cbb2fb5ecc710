"""RWKV-7 whole: official x070 files both ways, and equality with the `rwkv` package that reads them."""

import os
import sys

import pytest
import torch

from baselines.rwkv import weights as rwkv_checkpoint
from baselines.rwkv.oracle import packaged_channel_mix, packaged_time_mix, rwkv_package
from harness.config.errors import CheckpointError
from test_library import Malicious
from test_rwkv import VOCAB, language_model, tokens


def test_the_package_s_parts_take_the_weights_of_ours():
    mixer, channel_mixer = language_model(torch.float32).blocks[0].mixer, language_model().blocks[1].channel_mixer
    x = torch.randn(2, 9, mixer.d_model)
    torch.testing.assert_close(packaged_time_mix(mixer).forward(x), mixer(x)[0], rtol=1e-4, atol=1e-4)
    ours = channel_mixer.float()
    torch.testing.assert_close(packaged_channel_mix(ours).forward(x), ours(x)[0], rtol=1e-4, atol=1e-4)


def test_a_whole_model_equals_the_rwkv_package_in_sequence_and_step_by_step(tmp_path):
    model, ids = language_model(torch.float32), tokens(1, 24)
    rwkv_checkpoint.write_x070(model, tmp_path)
    package = rwkv_package().RWKV_x070(str(tmp_path / "model"), "cpu fp32")
    logits = model(ids)[0][0].detach()
    assert logits.std() > 0.05
    sequence, _ = package.forward(ids[0].tolist(), None, full_output=True)
    torch.testing.assert_close(sequence, logits, atol=1e-4, rtol=0)
    state, own = None, model.init_state(1)
    for t, token in enumerate(ids[0].tolist()):
        theirs, state = package.forward([token], state)
        ours, own = model.step(ids[:, t], own)
        torch.testing.assert_close(theirs, logits[t], atol=1e-4, rtol=0)
        torch.testing.assert_close(theirs, ours[0].detach(), atol=1e-4, rtol=0)


def test_importing_the_package_leaves_no_switch_behind(monkeypatch):
    monkeypatch.delenv("RWKV_V7_ON", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.delitem(sys.modules, "rwkv.model", raising=False)
    assert hasattr(rwkv_package(), "RWKV_x070_TMix_seq")
    assert torch.backends.cudnn.benchmark is False
    assert "RWKV_V7_ON" not in os.environ


def test_official_files_travel_both_ways_exactly(tmp_path):
    model = language_model(torch.float32)
    file = rwkv_checkpoint.export_x070(model)
    assert file["blocks.1.att.w0"].shape == (1, 1, 32)
    assert file["blocks.2.ffn.x_k"].shape == (1, 1, 32)
    assert file["blocks.0.att.r_k"].shape == (2, 16)
    assert {"emb.weight", "head.weight", "ln_out.bias", "blocks.0.ln0.weight", "blocks.1.att.v2"} <= file.keys()
    assert "blocks.1.ln0.weight" not in file
    for i in range(3):
        file[f"blocks.0.att.v{i}"] = torch.zeros(1)  # as some official files have it, unused
    torch.save(file, tmp_path / "model.pth")
    loaded = rwkv_checkpoint.load_x070(tmp_path / "model.pth")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    ids = tokens()
    assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_a_file_that_does_not_fit_is_told(tmp_path):
    model = language_model(torch.float32)
    file = rwkv_checkpoint.export_x070(model)
    missing = {name: tensor for name, tensor in file.items() if name != "blocks.1.att.k_k"}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.k_k"):
        rwkv_checkpoint.build_x070(missing)
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        rwkv_checkpoint.import_x070(model, file | {"head.weight": torch.zeros(VOCAB, 31)})
    with pytest.raises(CheckpointError, match="Not an x070 checkpoint"):
        rwkv_checkpoint.build_x070({"weight": torch.zeros(2, 2)})
    (tmp_path / "bad.pth").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"bad\.pth cannot be read"):
        rwkv_checkpoint.load_x070(tmp_path / "bad.pth")


def test_no_code_comes_out_of_a_file(tmp_path):
    torch.save({"emb.weight": Malicious(tmp_path / "touched")}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError):
        rwkv_checkpoint.load_x070(tmp_path / "model.pth")
    assert not (tmp_path / "touched").exists()
