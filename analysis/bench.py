"""What `python -m bench` has measured, for the README: its tables, and where Newton's method wins."""

from pathlib import Path

from analysis import bench_tables as table
from analysis import figures

TITLES = ("Newton's method over time against the fused sequential scan", "The same on a GPU")


def sections(measured: Path, images: str) -> dict[str, str]:
    """The generated sections kernels, models and newton from the folder `measured`; images: the figures' folder."""
    made = table.sections(measured)
    for path, title in _found(measured):
        made["newton"] += f"\n![{title}]({images}/{path.stem}.png)\n"
    return made


def draw(measured: Path, output: Path) -> list[Path]:
    """Writes a figure of Newton's method for each device it was measured on: its time over the sequential scan's."""
    written = []
    for path, title in _found(measured):
        curves: dict[str, figures.Curve] = {}
        for row in table.read(path)["rows"]:
            if row["what"] == "study":
                curves.setdefault(f"batch {row['batch']}", {})[row["length"]] = row["training_ratio"]
        ylabel = "time, Newton / sequential (below 1 Newton wins)"
        written += figures.save(figures.quality(curves, title, "length (tokens)", ylabel), output, path.stem)
    return written


def _found(measured: Path) -> list[tuple[Path, str]]:
    """The files of the subject and their figures' titles."""
    files = zip(table.files(measured, "newton"), TITLES, strict=True)
    return [(path, title) for path, title in files if path.exists()]
