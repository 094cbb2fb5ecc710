"""`python -m bench`: how fast the kernels and the models are, against each other and against their peers.

Contestants run interleaved in one process on one machine, and only ratios within such a run are reported. conf/bench/
lists what is compared and the targets it has to meet; results/bench/ keeps the measurements.
"""

import harness  # noqa: F401  (before torch, so that OpenMP's threads wait as they do in a run)
