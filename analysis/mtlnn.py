"""What MT-LNN's bank remembers, from its formula: the time constants that it starts with and their decay a token."""

import numpy as np
import pandas as pd

from analysis.render import Table

TAU_MIN, TAU_MAX, SCALES = 0.01, 10.0, 5
"""As published (conf/model/mtlnn.yaml has the same), in tokens."""
LEFT_AFTER = 10
NOTHING = 1e-6
"""A time scale that keeps less from one token to the next has no memory."""
HEADER = ["time scale", "time constant (tokens)", "share kept a token", f"left after {LEFT_AFTER} tokens"]


def started() -> pd.DataFrame:
    """A row for each time scale: tau, decay (exp(-1 / tau)), left, and slope, the decay's derivative by its parameter.

    tau = softplus(theta) + TAU_MIN with theta = log(expm1(max(tau_0 - TAU_MIN, 1e-6))), tau_0 log-spaced; the
    derivative is exp(-1 / tau) sigmoid(theta) / tau^2.
    """
    wanted = TAU_MIN * (TAU_MAX / TAU_MIN) ** (np.arange(SCALES) / (SCALES - 1))
    theta = np.log(np.expm1(np.maximum(wanted - TAU_MIN, 1e-6)))
    tau = np.minimum(np.logaddexp(0, theta) + TAU_MIN, TAU_MAX)
    decay = np.exp(-1 / tau)
    slope = decay / (1 + np.exp(-theta)) / tau**2
    return pd.DataFrame({"tau": tau, "decay": decay, "left": decay**LEFT_AFTER, "slope": slope})


def table() -> Table:
    """The time scales as they start."""
    data = started()
    rows = [
        [str(place + 1), *(f"{scale[name]:.3g}" for name in ("tau", "decay", "left")), f"{scale['slope']:.2g}"]
        for place, scale in enumerate(data.to_dict("records"))
    ]
    notes = [
        f"{(data['decay'] < NOTHING).sum()} of {SCALES} keep less than a millionth. The largest share that any weights",
        f"allow is exp(-1 / {TAU_MAX:g}) = {np.exp(-1 / TAU_MAX):.3f} a token, a half-life of",
        f"{np.log(2) * TAU_MAX:.1f} tokens. Gradient: of that share by the parameter that it is learned by.",
    ]
    return Table("mtlnn", "The time scales of MT-LNN as they start", [*HEADER, "gradient"], rows, notes, data)
