"""What `python -m harness.bench` has measured, for the README: its tables, and where Newton's method wins."""

from pathlib import Path

from analysis import figures
from harness.bench import table

TITLE = "Newton's method over time against the fused sequential scan"
STEM = "newton"


def sections(measured: Path, images: str) -> dict[str, str]:
    """The generated sections kernels, models and newton from the folder `measured`; images: the figures' folder."""
    made = table.sections(measured)
    if (measured / "newton.json").exists():
        made["newton"] += f"\n![{TITLE}]({images}/{STEM}.png)\n"
    return made


def draw(measured: Path, output: Path) -> list[Path]:
    """Writes the figure of Newton's method where it was measured: time of the sequential scan over Newton's."""
    path = measured / "newton.json"
    if not path.exists():
        return []
    curves: dict[str, figures.Curve] = {}
    for row in table.read(path)["rows"]:
        if row["what"] == "study":
            curves.setdefault(f"batch {row['batch']}", {})[row["length"]] = row["training_ratio"]
    ylabel = "time, sequential / Newton (above 1 Newton wins)"
    return figures.save(figures.quality(curves, TITLE, "length (tokens)", ylabel), output, STEM)
