"""The process's own settings for a run: threads, random generators, device and precision."""

import random

import numba
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

DEFAULT_THREADS = torch.get_num_threads()


def use_threads(threads: int | None) -> None:
    """Gives torch and the numba kernels the same number of CPU threads; None is torch's own choice.

    Numbers too small for a normal float are rounded to 0 in all of them, as on a GPU: a state that decays towards 0
    would else slow a CPU down many times.
    """
    torch.set_flush_denormal(True)  # before any thread starts, for each takes this over from the one that starts it
    # numba first: starting its threads sets OpenMP's number, which is torch's too.
    numba.set_num_threads(min(threads or DEFAULT_THREADS, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(threads or DEFAULT_THREADS)


def seed_all(seed: int) -> None:
    """Seeds every global random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes no more
    torch.manual_seed(seed)  # of every device


def one_precision() -> None:
    """Lets cuDNN's LSTM and GRU multiply float32 as every other product does; by default they alone round to TF32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32


def make_accelerator(device: str, precision: str, accumulate: int) -> Accelerator:
    """Returns Accelerate's handle on the device (auto, cpu or cuda), the precision (fp32 or bf16) and accumulation.

    Its state is global and refuses a second precision or device; a sweep runs several configurations in one process.
    """
    one_precision()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        mixed_precision={"fp32": "no", "bf16": "bf16"}[precision],
        gradient_accumulation_steps=accumulate,
    )
