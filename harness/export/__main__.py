"""Exports a trained run: `python -m harness.export run=runs/RUN format=hf to=FOLDER`.

format=hf (the default): for transformers; import harness.export.hf there, then AutoModelForCausalLM.from_pretrained.
format=transformers: Transformers, Mamba, Mamba-2, LFM2 and Gated DeltaNet as classes of its own. format=rwkv: RWKV-7 as
a .pth file of the rwkv package. format=mamba_ssm: Mamba and Mamba-2 as a folder for its from_pretrained. format=onnx:
one token of any model as a graph for onnxruntime, its state among the inputs and outputs. format=onnx_int8: the same
with weights of 8 bits.
to: the folder to write, RUN/export-FORMAT where it is not given.
"""

import sys
from pathlib import Path

import harness
from harness.config.command import key_values
from harness.config.errors import UserError
from harness.export.formats import export

KEYS = ("run", "format", "to")


def main(arguments: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    given = key_values(arguments, KEYS, "harness.export")
    run, name = Path(given["run"]), given.get("format", "hf")
    folder = export(harness.load(run), name, Path(given.get("to") or run / f"export-{name}"))
    print(f"Exported to {folder}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(error.paragraph())
