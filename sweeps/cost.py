"""How long a run will take one worker: by what records say of speeds, and by a stated speed where they say nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

STATED = 6000.0
"""Tokens/s of one single-threaded worker in training 1M parameters, where neither a record nor the sweep says."""
REFERENCE_PARAMETERS = 1e6
EXPONENT = -0.7
"""Of the speed against the parameters: less than -1, since small models keep a core less busy."""
BESIDE_TRAINING = 60.0
"""Seconds for start, checks, evaluation and measurement."""


@dataclass(frozen=True)
class Speeds:
    """Tokens/s in training by model and parameters, of single-threaded runs; stated: for 1M parameters."""

    measured: dict[tuple[str, int], float]
    stated: float = STATED

    @classmethod
    def of(cls, results: Iterable[dict], stated: float = STATED) -> "Speeds":
        """The speeds that these records tell."""
        found: dict[tuple[str, int], list[float]] = {}
        for result in results:
            speed = result["training"].get("tokens_per_second")
            if speed and (result.get("measurement") or {}).get("threads") == 1:
                found.setdefault((result["model"], result["parameters"]["total"]), []).append(speed)
        return cls({key: median(speeds) for key, speeds in found.items()}, stated)

    def seconds(self, config: dict) -> float:
        """What a run with this configuration takes: by its model's nearest size, else by all models, else as stated."""
        parameters, model = config["size"]["params"], config["model"]["name"]
        own = {size: speed for (name, size), speed in self.measured.items() if name == model}
        if not own and self.measured:
            sizes = {size for _, size in self.measured}
            own = {size: median(v for (_, s), v in self.measured.items() if s == size) for size in sizes}
        own = own or {int(REFERENCE_PARAMETERS): self.stated}
        nearest = min(own, key=lambda size: abs(size - parameters))
        speed = own[nearest] * (parameters / nearest) ** EXPONENT
        return tokens(config) / speed + BESIDE_TRAINING


def tokens(config: dict) -> float:
    """The tokens that a run with this configuration trains on, as far as that is known before its data is."""
    trainer = config["trainer"]
    if trainer.get("tokens"):
        return float(trainer["tokens"])
    return float((trainer.get("tokens_per_parameter") or 1.0) * config["size"]["params"])
