"""The colour, the marker and the dash of every model, the same in all figures."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

MODELS = (
    *("ltc", "cfc", "transformer", "mamba", "rwkv", "lstm", "gru", "hybrid"),
    *("ltc_published", "transformer_window", "transformer_gqa", "mtlnn", "m1"),
    *("m1_arr", "mamba2", "gated_deltanet", "griffin", "hawk", "mingru", "lfm2", "mlstm", "xlstm"),
    *("ltc_ncp", "cfc_ncp", "lrcssm", "liquid_s4", "hybrid_window", "ltc_signed"),
    *("ctrnn", "neural_ode", "ctgru"),
)
"""Models by their place among the styles. Append only: a model that moves changes its colour in every figure."""
COLOURS = ("#0072b2", "#d55e00", "#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), its yellow, too pale for a line, replaced by a brown."""
MARKERS = "osD^vPX*<>p"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
FACES = ("full", "left", "top", "right", "bottom")
"""How much of its marker a variant fills."""
OWN_FACES = ("full", "none", "bottom")
"""What a model fills, by how many models before it have the same marker."""
ROOM = len(COLOURS) * len(MARKERS)
"""Pairs of a colour and a marker, no two alike: the numbers of both are coprime."""


@dataclass(frozen=True)
class Style:
    """colour: as #rrggbb. marker, face, dash: as matplotlib names them; a face of "none" is an outline."""

    colour: str
    marker: str
    face: str
    dash: str | tuple = "-"

    def variant(self, number: int) -> "Style":
        """The style of a model's variant: its colour and marker, another dash and face; the first twenty differ."""
        face = FACES[number % len(FACES)] if number else self.face
        dash = DASHES[(DASHES.index(self.dash) + number) % len(DASHES)]
        return Style(self.colour, self.marker, face, dash)


def styles(models: Iterable[str]) -> dict[str, Style]:
    """The style of each model: by its place in MODELS, and for one that is not there by a hash of its name.

    Where the hashes of two fall together, the later name takes the next place that is free.
    """
    places = {model: place for place, model in enumerate(MODELS)}
    for model in sorted(set(models) - places.keys()):
        spare = ROOM - len(MODELS)
        wanted = int.from_bytes(hashlib.sha256(model.encode()).digest()[:8]) % spare
        taken = set(places.values())
        free = (len(MODELS) + (wanted + step) % spare for step in range(spare))
        places[model] = next((place for place in free if place not in taken), len(MODELS) + wanted)
    return {model: _style(place) for model, place in places.items()}


def _style(place: int) -> Style:
    face = OWN_FACES[
        place // len(MARKERS) % len(OWN_FACES)
    ]  # on paper without colour the uses of a marker are told by it
    dash = DASHES[place // len(COLOURS) % len(DASHES)]  # models of one colour have other dashes
    return Style(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], face, dash)
