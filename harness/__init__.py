"""The rules of the contest: one contract, one backbone, one trainer, one instrument. No architecture, no Hydra."""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    # OpenMP's threads, torch's, wait for more work by spinning, milliseconds long, on the cores that the kernels'
    # threads then want (harness/ops/toolbox/threads.py): read when torch is first imported, so it must stand here.
    os.environ["GOMP_SPINCOUNT"] = "10000"
