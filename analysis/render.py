"""A table as Markdown, LaTeX and CSV, and figures as people write them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from analysis.statistics import Summary

MISSING = "–"
NOT_MEASURED = "not measured"
PARAGRAPH = r"p{4cm}"
"""How LaTeX sets a column of sentences."""
LATEX_ESCAPES = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "²": r"$^2$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "α": r"$\alpha$",
    "µ": r"$\mu$",
}


@dataclass(frozen=True)
class Table:
    """name: the stem of its files. rows: text as shown, the first column to the left. data: the exact figures.

    runs: the folders of the recorded runs that each row was made from, in the order of the rows.
    prose: the headings of columns that hold sentences, to the left too and wrapped in LaTeX.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    data: pd.DataFrame
    runs: list[list[str]] = field(default_factory=list)
    prose: tuple[str, ...] = ()

    @property
    def left(self) -> list[bool]:
        """Whether each column is set to the left."""
        return [not place or heading in self.prose for place, heading in enumerate(self.header)]

    def without(self, dropped: Collection[str]) -> "Table":
        """The same for a page with less room: no columns of these headings, nor the notes that explain them alone."""
        kept = [place for place, heading in enumerate(self.header) if heading not in dropped]
        header = [self.header[place] for place in kept]
        gone = {_subject(heading) for heading in dropped} - {_subject(heading) for heading in header}
        notes = [note for note in self.notes if note.partition(":")[0].lower() not in gone]
        return replace(self, header=header, rows=[[row[place] for place in kept] for row in self.rows], notes=notes)


def _subject(heading: str) -> str:
    return heading.partition(" ")[0].lower()


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, with its title above and its notes below."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in [table.header, *table.rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]
    lines = [_line(row, widths, table.left) for row in cells]
    rules = ("-" * (width + 1) + ("-" if left else ":") for width, left in zip(widths, table.left, strict=True))
    lines.insert(1, "|" + "|".join(rules) + "|")
    return "\n".join([f"**{table.title}**", "", *lines, "", " ".join(table.notes)]).strip() + "\n"


def together(tables: Sequence[Table]) -> list[str]:
    """The tables in Markdown for one section of a page; the notes that all of several have follow the last, once."""
    if len(tables) < 2:
        return [markdown(table) for table in tables]
    shared = [note for note in tables[0].notes if all(note in table.notes for table in tables)]
    alone = [replace(table, notes=[note for note in table.notes if note not in shared]) for table in tables]
    return [*map(markdown, alone), *([f"Of all these tables: {' '.join(shared)}\n"] if shared else [])]


def _line(row: list[str], widths: list[int], left: list[bool]) -> str:
    padded = [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)]
    return "| " + " | ".join(padded) + " |"


def latex(table: Table) -> str:
    """The table as a LaTeX float; needs the booktabs package."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}", rf"\label{{tab:{table.name}}}"]
    kinds = ["r" if not left else PARAGRAPH if i else "l" for i, left in enumerate(table.left)]
    lines += [rf"\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule"]
    lines += [" & ".join(map(escape, table.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escape, row)) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip\footnotesize", escape(" ".join(table.notes))]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


def write(table: Table, folder: Path) -> list[Path]:
    """Writes NAME.md, NAME.tex and NAME.csv into `folder`."""
    texts = {".md": markdown(table), ".tex": latex(table), ".csv": table.data.to_csv(index=False)}
    paths = [folder / f"{table.name}{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def spread(summary: Summary, digits: int = 3) -> str:
    """Mean, and ± standard deviation where there is one, to `digits` decimals."""
    if summary.mean is None:
        return MISSING
    text = f"{summary.mean:,.{digits}f}"
    return text if summary.std is None else f"{text} ± {summary.std:,.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def si_bytes(size: float | None) -> str:
    """Bytes to three figures in B, kB, MB or GB (powers of a thousand)."""
    if size is None:
        return MISSING
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{_three(size)} {unit}"
        size /= 1000
    return f"{_three(size)} GB"


def _three(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"
