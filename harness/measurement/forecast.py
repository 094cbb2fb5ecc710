"""Tells from smaller contexts whether reading a larger one will fit the time and the memory."""


class Forecast:
    """Time as a c + b c^2 through the last two contexts c read, memory as proportional to the last.

    linear: b is known to be 0 (a state that does not grow), so that noise is not taken for curvature.
    """

    def __init__(self, linear: bool = False):
        self.linear = linear
        self._read: list[tuple[int, float, int]] = []  # (context, seconds, bytes)

    def add(self, context: int, seconds: float, memory_bytes: int) -> None:
        """Notes what reading `context` tokens took."""
        self._read.append((context, seconds, max(0, memory_bytes)))

    def seconds(self, context: int) -> float:
        """Time to read `context` tokens; 0 where nothing was read yet. A lone point is carried on linearly."""
        if not self._read:
            return 0.0
        last, took, _ = self._read[-1]
        curvature = 0.0
        if len(self._read) > 1 and not self.linear:
            previous, had, _ = self._read[-2]
            curvature = max(0.0, (took / last - had / previous) / (last - previous))
        return context * (took / last + curvature * (context - last))

    def memory_bytes(self, context: int) -> float:
        """Memory that reading `context` tokens needs beyond what is in use; 0 where nothing was read yet."""
        if not self._read:
            return 0.0
        last, _, needed = self._read[-1]
        return needed * context / last

    def refusal(self, context: int, seconds: float, memory_bytes: float) -> str | None:
        """Returns why `context` cannot be read within the budgets, or None where it can.

        The smallest context is always read: there is no earlier one to predict from.
        """
        if not self._read:
            return None
        takes, needs = self.seconds(context), self.memory_bytes(context)
        if takes > seconds:
            return f"reading {context} tokens would take about {takes:.1f} s, {max(seconds, 0):.1f} s are left"
        if needs > memory_bytes:
            return f"reading {context} tokens would need about {needs / 1e9:.1f} GB"
        return None
