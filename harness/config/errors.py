"""The errors a user can cause: each says what was wrong, what was expected and what to do."""


class UserError(Exception):
    """A mistake in the input, reported in one paragraph: what, expected, remedy."""

    def __init__(self, what: str, expected: str, remedy: str):
        self.what, self.expected, self.remedy = what, expected, remedy
        super().__init__(f"{what} Expected: {expected} Remedy: {remedy}")

    def paragraph(self) -> str:
        """How it is printed."""
        return f"error: {self.what}\nexpected: {self.expected}\nremedy: {self.remedy}"


class ConfigError(UserError):
    """A configuration key or value that cannot be used."""


class TaskError(UserError):
    """A corpus or task that cannot be loaded as asked."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or belongs to another run."""


class MachineError(UserError):
    """A machine that cannot serve the run as it is configured."""


class RecordError(UserError):
    """A recorded run that cannot be read or written."""
