"""`python -m analysis`: all tables and figures from the recorded runs."""

import argparse
import sys
from pathlib import Path

from analysis import readme, records, report
from harness.errors import RecordError, UserError

DESCRIPTION = """Reads recorded runs and writes every table (Markdown, LaTeX, CSV) and figure (PNG, PDF).

Every run counts, the diverged ones too; a run whose checks failed is refused and named. Runs that differ only
in their seed are one row. With --readme, the sections of that file between `<!-- generated:NAME -->` and
`<!-- /generated:NAME -->` (example, comparison, synthetic, memory, figures, and of
FOLDER/bench kernels, models, newton) are written from the records."""
EPILOG = """examples:
  python -m analysis                                    all of results/ and runs/, into reports/
  python -m analysis runs --output /tmp/tables          one folder, written elsewhere
  python -m analysis --readme README.md                 the README's sections, from results/ alone
  python -m analysis --readme README.md --check         exit 1 where the README differs from the records"""
SHARED, LOCAL = Path("results"), Path("runs")
PUBLISHED, OUTPUT = SHARED / "reports", Path("reports")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m analysis", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument(
        "records",
        nargs="*",
        type=Path,
        help="folders of recorded runs\n(default: results and runs; with --readme results alone)",
    )
    made.add_argument(
        "--output", type=Path, help=f"where to write (default: {OUTPUT}; with --readme {PUBLISHED}, which is committed)"
    )
    made.add_argument("--readme", type=Path, help="file whose generated sections are written")
    made.add_argument("--check", action="store_true", help="write nothing; exit 1 where the README would change")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 (README out of date) or 2 (an error, told)."""
    options = parser().parse_args(arguments)
    options.output = options.output or (PUBLISHED if options.readme else OUTPUT)
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.check and options.readme is None:
        raise RecordError("--check was given without --readme.", "a file to check.", "add --readme README.md.")
    folders = options.records or _default_folders(options)
    known = records.load(folders)
    _say(known)
    made = report.build(known, folders[0] / "bench" if folders else Path())
    if options.check:
        return _check(options, made)
    if known.runs:
        for path in report.write(made, options.output):
            print(f"wrote {path}")
    elif options.readme is None:
        raise RecordError("No recorded run was found.", "a finished run.", "make one first: python run.py model=ltc.")
    if options.readme is not None:
        old, new = _readme(options, made)
        options.readme.write_text(new, encoding="utf-8")
        print(f"{options.readme}: {'updated' if new != old else 'up to date'}")
    return 0


def _default_folders(options: argparse.Namespace) -> list[Path]:
    """A README speaks of the shared results only: what a reader's own folder holds is not in everyone's."""
    folders = [SHARED] if options.readme is not None else [SHARED, LOCAL]
    return [folder for folder in folders if folder.is_dir()]


def _say(known: records.Records) -> None:
    diverged = sum(record.result["status"] == "diverged" for record in known.runs)
    print(f"{len(known.runs)} runs" + (f", {diverged} of them diverged" if diverged else ""))
    for path, reason in known.refused:
        print(f"refused {path}: {reason}")
    for path in known.unfinished:
        print(f"unfinished {path}: no result.json (the same command resumes it)")
    for path in known.repeated:
        print(f"ignored {path}: the same run was read already")


def _readme(options: argparse.Namespace, made: report.Report) -> tuple[str, str]:
    try:
        old = options.readme.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(
            f"{options.readme} cannot be read ({error}).", "a text file.", "correct the path after --readme."
        ) from error
    sections = report.sections(made, options.output, options.readme)
    return old, readme.render(old, sections, options.readme.name)


def _check(options: argparse.Namespace, made: report.Report) -> int:
    old, new = _readme(options, made)
    if old == new:
        print(f"{options.readme}: up to date")
        return 0
    print(readme.difference(old, new, options.readme.name))
    print(f"{options.readme} differs from the records; run: python -m analysis --readme {options.readme}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
