"""Which records were made, or checked, by other code than the checkout holds."""

from pathlib import Path

from analysis.records import Record
from harness.records.code import changed_modules, checks_digest

CHECKOUT = Path(__file__).resolve().parents[1]


def changed(record: Record, root: Path = CHECKOUT) -> list[str]:
    """The modules of the record that are others in the checkout `root` today; none for a record that names no code."""
    return changed_modules(record.result.get("code"), root)


def checked_otherwise(record: Record, root: Path = CHECKOUT) -> bool:
    """Whether the record passed other checks than those of the checkout `root`, or does not name them."""
    return (record.result.get("code") or {}).get("checks") != checks_digest(root)
