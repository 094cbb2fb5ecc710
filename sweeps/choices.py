"""Values that one sweep takes from what another one tried."""

from collections.abc import Iterable
from typing import Any

from harness.config.errors import ConfigError
from sweeps import tuning
from sweeps.section import Choice


class Chooser:
    """Chooses the value of `key` for runs, among those that another sweep tried.

    tried: of each run of the other sweep its resolved configuration and its score (None: no record yet).
    """

    def __init__(self, key: str, choice: Choice, tried: Iterable[tuple[dict, float | None]]):
        self.key, self.choice = key, choice
        self._tried = [(self._terms(config), self._as_tried(config, score)) for config, score in tried]

    def value(self, config: dict) -> float:
        """The value for a run with this configuration: the best at its size, or the trend over sizes.

        Raises tuning.UnknownValueError, which says what is missing, and ConfigError where several grids are meant.
        """
        found = [tried for terms, tried in self._tried if terms == self._terms(config)]
        place = self._place(config)
        here = [tried for tried in found if tried.place == place]
        if len({(tried.value, tried.place, tried.seed) for tried in found}) < len(found):
            raise ConfigError(
                f"The sweep {self.choice.sweep} has several runs with one {self.key} that agree in "
                f"{', '.join(self.choice.by)}.",
                "one grid for each value that is chosen.",
                "add to `by` what tells them apart (block.name, task.name).",
            )
        try:
            value = tuning.chosen(here) if here or not self.choice.trend else tuning.trend(found, place)
        except tuning.UnknownValueError as error:
            by = [*self.choice.by, *filter(None, [self.choice.trend])]
            where = ", ".join(f"{key}={_named(at(config, key))}" for key in by)
            raise tuning.UnknownValueError(
                f"{self.key} of {where} waits for the sweep {self.choice.sweep}: {error}"
            ) from error
        return value * self.choice.times

    def _terms(self, config: dict) -> list[Any]:
        return [at(config, key) for key in self.choice.by]

    def _place(self, config: dict) -> float:
        return float(at(config, self.choice.trend)) if self.choice.trend else 0.0

    def _as_tried(self, config: dict, score: float | None) -> tuning.Tried:
        return tuning.Tried(float(at(config, self.key)), self._place(config), config["seed"], score)


def _named(value: Any) -> Any:
    """A value as a message shows it: a whole part of the configuration by its name."""
    return value.get("name", "...") if isinstance(value, dict) else value


def at(config: dict, key: str) -> Any:
    """The value of a dotted key; raises ConfigError where the configuration has none."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise ConfigError(
                f"A sweep chooses by {key}, which the configuration does not have.",
                "keys of the configuration, their parts joined by dots (model.name, size.params).",
                "correct `by`, `trend` or the key chosen in the sweep's file.",
            )
        node = node[part]
    return node
