"""Which records were made by other code than the checkout holds."""

from pathlib import Path

from analysis.records import Record

CHECKOUT = Path(__file__).resolve().parents[1]


def changed(record: Record, root: Path = CHECKOUT) -> list[str]:
    """The modules of the record that are others in the checkout `root` today; none for a record that names no code."""
    code = record.result.get("code")
    if not code:
        return []
    from harness.records.code import changed_modules  # imported here: only records that name their code need it

    return changed_modules(code, root)
