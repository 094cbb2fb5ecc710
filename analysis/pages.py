"""The generated sections of README.md and docs/*.md: what stands between two markers is written from the records.

<!-- generated:NAME -->
...
<!-- /generated:NAME -->
"""

import difflib
import re
from pathlib import Path

from harness.config.errors import RecordError

SECTION = re.compile(
    r"(?P<open><!-- generated:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(?P<close><!-- /generated:(?P=name) -->)", re.S
)
MARKER = re.compile(r"<!-- (/?)generated:([\w-]+) -->")


def published() -> list[Path]:
    """The pages of the checkout in which the command runs: README.md and docs/*.md."""
    return [page for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))) if page.is_file()]


def render(text: str, sections: dict[str, str], name: str = "README.md") -> str:
    """Returns `text` with the body of every generated section replaced.

    Raises RecordError for a section that is not known, or a marker without its partner.
    """
    found = [match["name"] for match in SECTION.finditer(text)]
    markers = [marker[2] for marker in MARKER.finditer(text)]
    unknown = sorted(set(markers) - set(sections))
    if unknown:
        raise RecordError(
            f"{name} has a generated section {unknown[0]!r}.",
            f"one of {', '.join(sorted(sections))}.",
            "correct the name between the markers.",
        )
    if len(markers) != 2 * len(found):
        raise RecordError(
            f"{name} has a marker without its partner, among {', '.join(sorted(set(markers)))}.",
            "<!-- generated:NAME --> and, below it, <!-- /generated:NAME -->.",
            "add the missing one.",
        )
    return SECTION.sub(lambda match: f"{match['open']}{sections[match['name']].strip()}\n{match['close']}", text)


def difference(old: str, new: str, name: str = "README.md") -> str:
    """The lines in which a page differs from what the records give; "" where it does not."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"{name} from the records", lineterm="")
    return "\n".join(lines)
