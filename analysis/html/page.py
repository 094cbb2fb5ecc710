"""The report as one HTML file: no network, no other file, and readable without JavaScript.

Every text of a record is escaped by the template; what is inserted as it stands is the drawings, the styles and the
script, which are this repository's own. A content security policy lets the browser run that script and no other.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis import bench, figures, learning, provenance
from analysis.findings.evidence import METRICS
from analysis.html import sparkline
from analysis.records import Record, Records
from analysis.render import MISSING, Table, si_bytes
from analysis.report import Report
from analysis.styles import Style, styles
from harness.records.code import listed
from harness.records.summary import checks_line

HERE = Path(__file__).resolve().parent
NAME = "report.html"
QUESTION = (
    "Is a liquid (continuous-time) language model worth it, against a Transformer, Mamba or RWKV of the same size?"
)
NUMBER = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.I)
SCALES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "k": 1e3, "M": 1e6}
SCALED = re.compile(rf"(?P<number>{NUMBER.pattern})\s?(?P<unit>{'|'.join(SCALES)})?\b", re.I)

JUDGED = {
    "quality": "Quality with its tests",
    "scaling": "Scaling laws",
    "learning-rates": "Learning rates",
    "field": "The field",
    "liquid": "Implementations of liquid cells",
    "cost": "Cost at other sizes",
}
"""{section of docs/comparison.md: its heading here}"""


@dataclass(frozen=True)
class Cell:
    """A cell as shown. number: what it is sorted by in a column of numbers; None comes last."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Row:
    """cells: without the first, which is the label. links: (what is written, anchor of a run) of each run behind it."""

    label: Cell
    cells: list[Cell]
    links: list[tuple[str, str]] = field(default_factory=list)
    colour: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table that can be sorted. numeric: which of its columns are numbers."""

    name: str
    title: str
    header: list[str]
    numeric: list[bool]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """A finding, with links to the runs behind it."""

    sentence: str
    status: str
    commands: tuple[str, ...]
    links: list[tuple[str, str]]


@dataclass(frozen=True)
class RunView:
    """What the section of one run shows, in the order of the page."""

    anchor: str
    title: str
    facts: list[tuple[str, str]]
    siblings: list[tuple[str, str]]
    contexts: list[list[str]]
    checks: list[list[str]]
    checked: str
    config: str
    curve: Markup


def write(made: Report, known: Records, output: Path) -> Path:
    """Writes the report into the folder `output`; the same records give the same bytes."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / NAME
    path.write_text(page(made, known), encoding="utf-8")
    return path


def page(made: Report, known: Records) -> str:
    """The HTML of all tables and figures, with a section for every recorded run that counts."""
    anchors = _anchors(known.runs)
    told: dict[str, list[Told]] = {}
    for finding in made.findings:
        links = [(path.rpartition("/")[2], anchors[path]) for path in finding.runs if path in anchors]
        told.setdefault(finding.topic, []).append(Told(finding.sentence, finding.status, finding.commands, links))
    looks = styles(record.result["model"] for record in known.runs)
    colours = {str(record.path): looks[record.result["model"]] for record in known.runs}
    sheets = {kind: [_sheet(table, anchors, colours) for table in tables] for kind, tables in _kinds(made).items()}
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return _template().render(
        question=QUESTION,
        counts=_counts(known),
        headline=[finding for finding in made.findings if finding.headline],
        findings=told,
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        kinds=sheets,
        figures=[(name, plot.title, Markup(_drawn(name, plot))) for name, plot in made.figures.items()],
        index=_index(made.runs, made.records, anchors, colours),
        runs=_run_views(made.runs, made.records, anchors),
        refused=[(path.name, reason) for path, reason in known.refused],
    )


def _kinds(made: Report) -> dict[str, list[Table]]:
    """The tables under their headings; those without a row are left out."""
    kinds = {
        "Quality and cost": made.comparison,
        "Tasks scored otherwise": made.synthetic,
        "Published tasks": made.downstream,
        "Tuning, on validation": made.tuning,
        "Search for the recipe, on validation": made.search,
        "State": made.memory,
        "Speeds of the bench": bench.speeds(made.measured),
        "Claims of the literature": [made.claims],
        "State tracking": [made.tracking],
        "Serving": made.verdict.serving,
    } | {JUDGED[section]: tables for section, tables in made.verdict.tables.items()}
    filled = {kind: [table for table in tables if table.rows] for kind, tables in kinds.items()}
    return {kind: tables for kind, tables in filled.items() if tables}


def _template():
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(HERE),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.jinja")


def _drawn(name: str, plot) -> str:
    return figures.svg(plot.draw(title=plot.title), name)


def _counts(known: Records) -> list[str]:
    """What the report is made from, in a few words each."""
    diverged = sum(record.result["status"] == "diverged" for record in known.runs)
    commits = {git["commit"][:12] for record in known.runs if (git := record.environment.get("git"))}
    said = [f"{len(known.runs)} recorded runs"]
    said += [f"{diverged} diverged"] if diverged else []
    said += [f"{len(known.refused)} refused by their checks"] if known.refused else []
    said += [f"made by {len(commits)} commit{'s' if len(commits) != 1 else ''}"] if commits else []
    return said


def _anchors(records: Iterable[Record]) -> dict[str, str]:
    """{folder of a run: the id of its section}: its key, and its code where other code made the same run."""
    records = list(records)
    keys = Counter(record.result["key"] for record in records)
    anchors, taken = {}, set()
    for record in records:
        key = re.sub(r"[^\w-]", "_", record.result["key"])
        anchor = f"run-{key}" if keys[record.result["key"]] == 1 else f"run-{key}-{record.code[:8] or 'unknown'}"
        while anchor in taken:
            anchor += "_"
        taken.add(anchor)
        anchors[str(record.path)] = anchor
    return anchors


def _sheet(table: Table, anchors: dict[str, str], colours: dict[str, Style]) -> Sheet:
    numeric = [_is_numeric(column) for column in zip(*table.rows, strict=True)]
    rows = []
    for number, cells in enumerate(table.rows):
        paths = [path for path in (table.runs[number] if table.runs else []) if path in anchors]
        links = [(str(place), anchors[path]) for place, path in enumerate(paths, 1)]
        shown = [
            Cell(text, _number(text) if is_number else None) for text, is_number in zip(cells, numeric, strict=True)
        ]
        rows.append(Row(shown[0], shown[1:], links, _colour(colours[paths[0]]) if paths else ""))
    return Sheet(table.name, table.title, table.header, numeric, rows, table.notes)


def _colour(style: Style) -> str:
    """The model's colour; black, which a dark page would hide, is the text's own."""
    return figures.PAGE_COLOURS.get(style.colour, style.colour)


def _is_numeric(column: Iterable[str]) -> bool:
    """Whether most of the cells that say something begin with a number and are no words after it."""
    known = [text for text in column if text not in ("", MISSING)]
    return bool(known) and 2 * sum(_number(text) is not None for text in known) > len(known)


def _number(text: str) -> float | None:
    """The number that a cell begins with, in its unit's base: "2.05 kB" -> 2050, "1.71 ± 0.02" -> 1.71."""
    match = SCALED.match(text.strip())
    if match is None:
        return None
    value = float(match["number"].replace(",", "").replace("−", "-"))
    return value * SCALES.get(match["unit"] or "B", 1.0)


INDEX = ("run", "task", "size", "seed", "status", "validation", "test", "learning rate", "tokens", "checks", "code")


def _index(runs: pd.DataFrame, records: list[Record], anchors: dict[str, str], colours: dict[str, Style]) -> Sheet:
    """A row a run, each leading to its section."""
    rows = []
    for record, (_, run) in zip(records, runs.iterrows(), strict=True):
        path = str(record.path)
        texts = [
            run["task"],
            run["size"],
            str(run["seed"]),
            run["status"] if run["chosen"] else f"{run['status']}, not chosen",
            _figures(run, "validation"),
            _figures(run, "test"),
            _shown((record.config.get("trainer") or {}).get("learning_rate")),
            f"{run['tokens']:,}",
            _checked(record).partition(",")[0],
            record.code[:8] or MISSING,
        ]
        label, link = Cell(run["label"]), [("1", anchors[path])]
        cells = [Cell(text, _number(text)) for text in texts]
        rows.append(Row(label, cells, link, _colour(colours[path])))
    numeric = [heading in ("seed", "validation", "test", "learning rate", "tokens") for heading in INDEX]
    return Sheet("index", "All runs", list(INDEX), numeric, rows)


def _figures(run: pd.Series, split: str) -> str:
    """The run's figure on a split, with the name of its metric."""
    for metric, name in METRICS.items():
        if pd.notna(run.get(f"{split}_{metric}")):
            return f"{run[f'{split}_{metric}']:.4f} {name}"
    return MISSING


def _checked(record: Record) -> str:
    return checks_line((record.result.get("checks") or {}).get("results") or [])


def _run_views(runs: pd.DataFrame, records: list[Record], anchors: dict[str, str]) -> list[RunView]:
    """The sections of all runs, those of one table and variant together, in order of seed."""
    order = list(runs.sort_values(["table", "label", "code", "seed"], kind="stable").index) if len(runs) else []
    same: dict[tuple, list[int]] = {}
    for place in order:
        same.setdefault((runs.at[place, "variant"], runs.at[place, "code"]), []).append(place)
    views = []
    for place in order:
        kin = same[runs.at[place, "variant"], runs.at[place, "code"]]
        siblings = [(str(runs.at[i, "seed"]), anchors[str(records[i].path)]) for i in kin if i != place]
        views.append(_run_view(runs.loc[place], records[place], anchors[str(records[place].path)], siblings))
    return views


def _run_view(run: pd.Series, record: Record, anchor: str, siblings: list[tuple[str, str]]) -> RunView:
    measured = (record.result.get("measurement") or {}).get("contexts") or []
    contexts = [
        [
            f"{row['context']:,}",
            si_bytes(row.get("state_bytes")),
            si_bytes(row.get("generation_memory_bytes")),
            _shown(row.get("decode_ms_p50")),
            _shown(row.get("first_token_ms")),
        ]
        for row in measured
    ]
    checks = [
        [
            check["name"],
            VERDICTS[check.get("passed")],
            _shown(check.get("value")),
            _shown(check.get("tolerance")),
            check.get("detail") or "",
        ]
        for check in (record.result.get("checks") or {}).get("results") or []
    ]
    return RunView(
        anchor,
        f"{run['label']} · {run['task']} · {run['size']} · seed {run['seed']}",
        [(term, text) for term, text in _facts(run, record) if text],
        siblings,
        contexts,
        checks,
        _checked(record),
        json.dumps(record.config, indent=1, ensure_ascii=False),
        sparkline.svg(learning.curves(record.path), run["label"]),
    )


VERDICTS = {True: "passed", False: "failed", None: "not tried"}


def _facts(run: pd.Series, record: Record) -> Iterable[tuple[str, str]]:
    """What is to be known of a run, term by term; "" for what it does not say."""
    training, measurement = record.result["training"], record.result.get("measurement") or {}
    diverged = f" at update {run['diverged_at']:.0f}" if pd.notna(run["diverged_at"]) else ""
    yield "status", run["status"] + diverged
    yield "chosen on validation", _choice(run)
    yield "parameters", f"{run['parameters']:,} ({run['non_embedding']:,} without embeddings)"
    epochs = f", {run['epochs']:.3g} epochs" if pd.notna(run["epochs"]) else ""
    yield "trained", f"{run['tokens']:,} tokens, {run['updates']:,} updates{epochs}"
    yield "on validation", "" if (text := _figures(run, "validation")) == MISSING else text
    yield "on test", "" if (text := _figures(run, "test")) == MISSING else text
    speed = training.get("tokens_per_second")
    yield "training speed", f"{speed:,.0f} tokens/s" if speed is not None else ""
    yield "training memory", si_bytes(training["peak_memory_bytes"]) if training.get("peak_memory_bytes") else ""
    yield "context", run["context"] if isinstance(run["context"], str) else ""
    yield "machine", run["machine"]
    yield "load while training", _load(training)
    yield "load while measuring", _load(measurement)
    yield "code digest", record.code or "not recorded"
    yield "code changed since", listed(provenance.changed(record))
    git = record.environment.get("git")
    yield "commit", f"{git['commit']}{' and changes' if git['dirty'] else ''}" if git else "not recorded"
    yield "data digest", str(run["digest"] or "")
    yield "folder", record.path.name


def _choice(run: pd.Series) -> str:
    return f"{'this one' if run['chosen'] else 'another one'}: {run['choice']}" if run["choice"] else ""


def _load(part: dict) -> str:
    """The share of the processors that other processes had, and whether its speeds count."""
    load = part.get("load") or {}
    if load.get("other_cpu") is None:
        return "not known"
    return f"{100 * load['other_cpu']:.1f} % by other processes" + (
        ": busy, its speeds do not count" * bool(load.get("busy"))
    )


def _shown(value: Any) -> str:
    """A figure to three digits; a text as it stands."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"
