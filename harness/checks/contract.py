"""What a mixer must have before any check can be tried on it."""

from harness.checks.tolerances import ALLOWANCES
from harness.model.backbone import LanguageModel
from harness.model.mixer import Mixer, ProjectedMixer

METHODS = ("forward", "step", "init_state", "flops_per_token")
PARTS = {"forward": ("mix", "projection"), "step": ("mix_step", "projection")}
"""The methods that a ProjectedMixer's own `forward` and `step` are made of."""


def breaches(model: LanguageModel) -> list[str]:
    """What the mixers of a model lack of the contract, each as a phrase that names the mixer; none for honest ones."""
    found = [breach for mixer in model.modules() if isinstance(mixer, Mixer) for breach in _breaches(mixer)]
    return list(dict.fromkeys(found))


def _breaches(mixer: Mixer) -> list[str]:
    kind, name = type(mixer), type(mixer).__name__
    wanted = [(Mixer, method) for method in METHODS]
    for method, parts in PARTS.items():
        if getattr(kind, method) is getattr(ProjectedMixer, method):
            wanted += [(ProjectedMixer, part) for part in parts]
    lacking = dict.fromkeys(method for base, method in wanted if getattr(kind, method) is getattr(base, method))
    found = [f"mixer {name} lacks the method `{method}`" for method in lacking]
    if mixer.inexact not in ALLOWANCES:
        reasons = ", ".join(str(reason) for reason in ALLOWANCES if reason)
        found.append(f"mixer {name} is inexact for the reason {mixer.inexact!r}, where one of {reasons} was expected")
    if mixer.data_dependent_flops and mixer.inexact != "adaptive_steps":
        found.append(f"mixer {name} has data_dependent_flops, which adaptive_steps alone explain")
    return found
