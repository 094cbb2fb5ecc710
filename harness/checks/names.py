"""The checks that a record must have before it counts. Imports no torch."""

BEFORE_TRAINING = (
    "contract",
    *("causality", "causality_by_perturbation", "batch_independence"),
    *("prefill_and_step", "chunks", "scan", "scan_gradients", "generation"),
    *("state_shape", "state_growth", "parameters", "flops", "oracle"),
    *("state_contents", "state_purity", "interleaving", "another_copy", "another_process", "copies"),
    *("repeatability", "causality_in_training", "causality_in_evaluation"),
    *("batch_independence_in_training", "batch_independence_in_evaluation"),
    *("long_generation", "precision", "long_state"),
)
AFTER_TRAINING = ("evaluation_equals_decoding", "causality_after_training", "hidden_memory")
"""Of the trained weights; a run that diverged has none of them."""
NOT_EVERYWHERE = ("oracle", "another_process", "copies")
"""Those that cannot be tried with every model or on every machine."""


def wanting(passed: dict[str, bool | None], trained: bool) -> list[str]:
    """The checks that did not pass, or were not tried where they can be. passed: the verdicts by the checks' names."""
    names = (*BEFORE_TRAINING, *AFTER_TRAINING) if trained else BEFORE_TRAINING
    untried = {name for name in NOT_EVERYWHERE if name in passed and passed[name] is None}
    return [name for name in names if passed.get(name) is not True and name not in untried]
