"""A process that generates and nothing else, so that its resident memory is that of a device that does the same.

`python -m bench.edge_process FOLDER CONTEXT TOKENS` reads the graph and the state of a folder, without torch, or builds
the model that its model.json describes; it prints the resident bytes once the tokens are generated.
"""

import json
import sys
from pathlib import Path

import psutil


def by_graph(folder: Path, tokens: int) -> None:
    """Generates with onnxruntime from the state in the folder."""
    import numpy as np
    import onnxruntime
    from safetensors.numpy import load_file

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    step = onnxruntime.InferenceSession(str(folder / "step.onnx"), options, providers=["CPUExecutionProvider"])
    state, token = load_file(folder / "state.safetensors"), np.array([0])
    names = [given.name for given in step.get_inputs() if given.name != "token"]
    for _ in range(tokens):
        logits, *new = step.run(["logits", *(f"new_{name}" for name in names)], {"token": token, **state})
        state, token = dict(zip(names, new, strict=True)), logits.argmax(-1)


def by_ourselves(folder: Path, context: int, tokens: int) -> None:
    """Generates with our own decoder."""
    import torch

    from harness.generation.decode import Decoder
    from harness.generation.library import build_model
    from harness.model.backbone import Width

    described = json.loads((folder / "model.json").read_text())
    model = build_model(described["model"], 256, described["n_layers"], Width(*described["width"])).eval()
    decoder, token = Decoder(model, model.init_state(1, context)), torch.tensor([0])
    for _ in range(tokens):
        token = decoder.step(token).argmax(-1)


if __name__ == "__main__":
    place, context, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if (place / "model.json").exists():
        by_ourselves(place, context, tokens)
    else:
        by_graph(place, tokens)
    print(psutil.Process().memory_info().rss)
