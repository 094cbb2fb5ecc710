"""What the literature claims, from docs/literature.yaml: a short statement with its source, beside our measurements."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from analysis.render import MISSING
from harness.config.errors import RecordError

FILE = Path(__file__).resolve().parents[1] / "docs" / "literature.yaml"
ASPECTS = ("memory", "speed", "quality")
KEYS = {"claim", "source", "at"}


@dataclass(frozen=True)
class Claims:
    """known: {model: {aspect: {claim, source, at}}}."""

    known: dict[str, dict[str, dict[str, str]]]

    def of(self, model: str, aspect: str) -> str:
        """`claim (source)`, or a dash where nothing was found."""
        said = self.known.get(model, {}).get(aspect)
        return f"{said['claim']} ({said['source']})" if said else MISSING

    def sources(self, models: list[str], aspects: tuple[str, ...] = ASPECTS) -> str:
        """`Sources: name (address); ...` of what is claimed of these models."""
        said = [self.known[model].get(aspect) for model in models if model in self.known for aspect in aspects]
        named = dict.fromkeys(f"{one['source'].rpartition(',')[0]} {one['at']}" for one in said if one)
        return f"Sources: {'; '.join(named)}." if named else ""


def read(path: Path = FILE) -> Claims:
    """Reads the file; RecordError for one that holds anything but claims with their sources."""
    try:
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        wrong = [
            f"{model}.{aspect}"
            for model, aspects in known.items()
            for aspect, said in aspects.items()
            if aspect not in ASPECTS or said.keys() != KEYS or not all(isinstance(v, str) and v for v in said.values())
        ]
    except (OSError, yaml.YAMLError, AttributeError) as error:
        wrong = [str(error)]
    if wrong:
        raise RecordError(
            f"{path} cannot be used: {', '.join(wrong)}.",
            f"model: {{aspect: {{claim, source, at}}}}, the aspect one of {', '.join(ASPECTS)}.",
            "complete the entry, or leave it out.",
        )
    return Claims(known)
