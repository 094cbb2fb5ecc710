"""`python -m analysis`: all tables and figures from the recorded runs."""

import argparse
import sys
from pathlib import Path

from analysis import cost, pages, provenance, records, render, report, sweep
from analysis.html import page as html
from analysis.selection import CHOSEN
from harness.config.errors import RecordError, UserError

DESCRIPTION = """Reads recorded runs and writes every table (Markdown, LaTeX, CSV) and figure (PNG, PDF).

Every run counts, the diverged ones too; a run whose checks failed is refused and named, and so is a damaged
record. Runs of the same code that differ only in their seed are one row. Of runs that differ only in a tuned key
the best on validation is shown. With --pages, the sections of README.md and docs/*.md that stand between
`<!-- generated:NAME -->` and `<!-- /generated:NAME -->` are written from the records and from the bench's
measurements; analysis/report.py lists their names."""
EPILOG = """examples:
  python -m analysis                                    all of results/ and runs/, into reports/
  python -m analysis runs --output /tmp/tables          one folder, written elsewhere
  python -m analysis --report                           all of them in one HTML file, reports/report.html
  python -m analysis --pages                            README.md and docs/*.md, from results/ alone
  python -m analysis --sweep solvers                    which runs of a sweep are done, and its tables
  python -m analysis --serving                          what serving each model takes: sessions, time, dollars
  python -m analysis --pages --check                    exit 1 where a page differs from the records"""
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
        help="folders of recorded runs\n(default: results and runs; with --pages results alone)",
    )
    made.add_argument(
        "--output", type=Path, help=f"where to write (default: {OUTPUT}; with --pages {PUBLISHED}, which is committed)"
    )
    made.add_argument(
        "--pages",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="pages whose generated sections are written\n(default: README.md and docs/*.md)",
    )
    made.add_argument(
        "--report",
        action="store_true",
        help="write one self-contained HTML file in place of tables and figures",
    )
    made.add_argument(
        "--sweep",
        metavar="NAME",
        help="say which runs of a sweep are done, running, failed or missing, and\nprint its tables; writes nothing",
    )
    made.add_argument(
        "--serving",
        action="store_true",
        help="print sessions per GB, milliseconds and dollars a token, and break-even\ncontexts; writes nothing",
    )
    made.add_argument(
        "--prices",
        type=Path,
        default=cost.FILE,
        metavar="FILE",
        help="what costs are computed with (default: docs/prices.yaml, with --pages always)",
    )
    made.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where a page would change or a shown run has no clean commit",
    )
    made.add_argument(
        "--tuned",
        nargs="+",
        metavar="KEY",
        default=list(CHOSEN),
        help=f"keys whose best value is chosen on validation\n(default: {' '.join(CHOSEN)})",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 (a page is out of date) or 2 (an error, reported).

    Damaged records are left out, and the rest is done; the status is then 2.
    """
    options = parser().parse_args(arguments)
    options.output = options.output or (OUTPUT if options.pages is None else PUBLISHED)
    if options.pages == []:
        options.pages = pages.published()
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.check and options.pages is None:
        raise RecordError("--check was given without --pages.", "pages to check.", "add --pages.")
    for name in ("report", "serving"):
        if getattr(options, name) and options.pages is not None:
            raise RecordError(f"--{name} was given with --pages.", "one of them.", "run the command twice.")
    folders = options.records or _default_folders(options)
    if options.prices != cost.FILE and options.pages is not None:
        raise RecordError("--prices was given with --pages.", "docs/prices.yaml for pages.", "change that file.")
    if options.sweep is not None:
        for line in sweep.told(options.sweep, folders, options.tuned):
            print(line)
        return 0
    known = records.load(folders)
    _say(known)
    # A page says what the records say and no more, so that a change of the code alone does not change it.
    root = provenance.CHECKOUT if options.pages is None else None
    made = report.build(known, folders[0] / "bench" if folders else Path(), options.tuned, root, options.prices)
    damaged = 2 if known.damaged else 0
    if options.serving and known.runs:
        print("\n" + "\n".join(map(render.markdown, made.verdict.serving)))
        return damaged
    unclean = 0 if options.pages is None else _check_trees(known)
    if options.check:
        return max(damaged, unclean, _check(options, made))
    if known.runs:
        written = [html.write(made, known, options.output)] if options.report else report.write(made, options.output)
        for path in written:
            print(f"wrote {path}")
    elif options.pages is None:
        raise RecordError("No recorded run was found.", "a finished run.", "make one first: python run.py model=ltc.")
    for page in options.pages or ():
        old, new = _page(page, options, made)
        page.write_text(new, encoding="utf-8")
        print(f"{page}: {'updated' if new != old else 'up to date'}")
    return damaged


def _default_folders(options: argparse.Namespace) -> list[Path]:
    """Pages show the shared results only: everyone has the same, which no one's own runs are."""
    folders = [SHARED] if options.pages is not None else [SHARED, LOCAL]
    return [folder for folder in folders if folder.is_dir()]


def _say(known: records.Records) -> None:
    diverged = sum(record.result["status"] == "diverged" for record in known.runs)
    print(f"{len(known.runs)} runs" + (f", {diverged} of them diverged" if diverged else ""))
    for path, reason in known.refused:
        print(f"refused {path}: {reason}")
    for path in known.unfinished:
        print(f"unfinished {path}: {records.failure(path) or 'no result.json'} (the same command resumes it)")
    for path in known.repeated:
        print(f"ignored {path}: the same run was read already")
    older: dict[str, list[Path]] = {}
    for record in known.runs:
        if changed := provenance.changed(record):
            first = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            older.setdefault(first, []).append(record.path)
    for first, paths in older.items():
        more = f" and {len(paths) - 1} more runs" if len(paths) > 1 else ""
        print(f"older code {paths[0]}{more}: {first} changed since (force=stale repeats a run)")
    if unknown := sum(not record.code for record in known.runs):
        print(f"unknown code: {unknown} of {len(known.runs)} runs do not name the code that made them")
    if otherwise := sum(map(provenance.checked_otherwise, known.runs)):
        print(f"older checks: {otherwise} of {len(known.runs)} runs passed others than this checkout has, or name none")
    for error in known.damaged:
        print(f"damaged: {error}", file=sys.stderr)


def _page(page: Path, options: argparse.Namespace, made: report.Report) -> tuple[str, str]:
    """The page as it stands, and as the records would have it."""
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as error:
        raise RecordError(
            f"{page} cannot be read ({error}).", "a text file.", "correct the path after --pages."
        ) from error
    return old, pages.render(old, report.sections(made, options.output, page), page.name)


def _check(options: argparse.Namespace, made: report.Report) -> int:
    status = 0
    for page in options.pages:
        old, new = _page(page, options, made)
        if old == new:
            print(f"{page}: up to date")
        else:
            status = 1
            print(pages.difference(old, new, page.name))
            print(f"{page} differs from the records; run: python -m analysis --pages {page}")
    return status


def _check_trees(known: records.Records) -> int:
    unclean = records.unclean(known.runs)
    for path, reason in unclean:
        print(f"{path} cannot be published: {reason}; commit, and repeat the run with force=true")
    return 1 if unclean else 0


if __name__ == "__main__":
    sys.exit(main())
