"""The HTML report: one file, safe, every row leading to its run, the same bytes again."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from analysis import learning, records, report
from analysis.__main__ import main
from analysis.html import page, sparkline
from analysis.render import Table
from harness.records import sweep
from test_analysis import damage, write_run

ROOT = Path(__file__).resolve().parent.parent
BYTES, RUNS = 15_000_000, 600
"""What a report of RUNS runs must stay below."""


class Document(HTMLParser):
    """The ids, links, rows and outside references of a page, and the texts of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.outside, self.scripts, self.open = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href") and value.startswith("#"):
                self.links.append(value[1:])
            elif name in ("href", "src", "xlink:href", "srcset", "action", "data", "poster"):
                self.outside.append(value)
            self.links += re.findall(r"url\(#([^)]+)\)", value or "")

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


@pytest.fixture
def folder(tmp_path):
    """Three seeds of one model, two learning rates of another, a diverged run."""
    for seed, bits in enumerate((2.0, 2.1, 2.3)):
        write_run(tmp_path / "runs", "mamba", seed, bits)
    write_run(tmp_path / "runs", "ltc", 0, 1.8764321, solver="rk4", validation=2.2, learning_rate=0.01)
    path = write_run(tmp_path / "runs", "ltc", 0, 1.9, solver="rk4", validation=2.1, learning_rate=0.003)
    lines = [{"update": n, "loss": 5 / n, "tokens": 4 * n} for n in range(1, 500)]
    lines += [{"update": 500, "validation_loss": 1.25}]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"update": 501, "lo')
    write_run(tmp_path / "runs", "gru", 1, status="diverged")
    return tmp_path / "runs"


def made(folder) -> str:
    known = records.load([folder])
    return page.page(report.build(known, folder / "bench"), known)


def section(text: str, anchor: str) -> str:
    """The section of one run."""
    return next(part for part in text.split('<details class="run">')[1:] if f'id="{anchor}"' in part)


def test_it_is_one_file_whose_links_resolve(folder):
    document = Document(made(folder))
    assert document.outside == []
    assert len(document.ids) == len(set(document.ids))
    assert set(document.links) <= set(document.ids)
    runs = {anchor for anchor in document.ids if anchor.startswith("run-")}
    assert len(runs) == 6
    assert runs <= set(document.links)


def test_a_link_that_leads_nowhere_is_seen():
    document = Document('<a href="#a"></a><p id="b"><img src="http://x/y"><rect fill="url(#c)"/></p>')
    assert (document.links, document.ids, document.outside) == (["a", "c"], ["b"], ["http://x/y"])


def test_a_script_in_a_record_is_text(folder):
    evil = "<script>alert(1)</script>"
    path = write_run(folder, "ltc", 3, 2.0)
    for name in ("result", "config"):
        content = json.loads((path / f"{name}.json").read_text())
        if name == "result":
            content |= {"model": evil, "solver": '"><img src=x onerror=alert(2)>', "task": evil}
            content["checks"]["results"][0]["detail"] = "</details>" + evil
            content["evaluation"]["extrapolation"] = [{"length": 512, "bits_per_byte": 2.0}]
        else:
            content["model"]["name"] = evil
        (path / f"{name}.json").write_text(json.dumps(content))
    text = made(folder)
    document = Document(text)
    assert len(document.scripts) == 1
    assert evil not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    digest = base64.b64encode(hashlib.sha256(document.scripts[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in text or f"script-src 'sha256-{digest}'" in text


def test_every_row_of_a_table_leads_to_its_runs_and_a_run_to_those_of_other_seeds(folder):
    known = records.load([folder])
    text = made(folder)
    told = report.build(known, folder / "bench")
    names = [one.name for one in (*told.comparison, *told.tuning, *told.memory, *told.verdict.tables["quality"])]
    assert len(names) == 4
    tables = [text.partition(f'<table id="{name}">')[2].partition("</table>")[0] for name in names]
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', "".join(tables), re.S)
    assert len(rows) > len(names)
    assert all('<a href="#run-' in row for row in rows)
    mamba = [f"run-{r.result['key']}" for r in known.runs if r.result["model"] == "mamba"]
    row = next(row for row in rows if ">mamba</a>" in row)
    assert [f"#{anchor}" in row for anchor in mamba] == [True] * 3
    assert [f"#{anchor}" in section(text, mamba[0]) for anchor in mamba[1:]] == [True] * 2


def test_the_tables_of_the_comparison_page_are_shown_and_lead_to_their_runs(folder):
    known = records.load([folder])
    judged = report.build(known, folder / "bench").verdict
    text = made(folder)
    assert set(page.JUDGED) == set(judged.tables)
    names = [table.name for tables in judged.tables.values() for table in tables]
    assert {"quality-sotu-1m", "scaling-sotu", "learning-rates", "field", "liquid"} <= set(names)
    assert all(text.count(f'<table id="{name}">') == 1 for name in names)
    rows = text.partition('<table id="quality-sotu-1m">')[2].partition("</table>")[0]
    (mamba,) = [row for row in rows.split("<tr>") if ">mamba</a>" in row]
    assert len(set(re.findall(r'href="#(run-[^"]+)"', mamba))) == 3


def test_a_run_shows_its_configuration_its_checks_its_code_and_its_machine(folder):
    path = write_run(folder, "cfc", 0, 2.0, code={"arch.cfc": "abc"}, busy=True)
    result = json.loads((path / "result.json").read_text())
    shown = section(made(folder), f"run-{result['key']}")
    for fact in (result["code"]["digest"], "CPU of tests, 2 threads", "40.0 % by other processes: busy", "c" * 40):
        assert fact in shown
    assert "causality" in shown
    assert "30 of 30 passed, no oracle" in shown
    assert "&#34;learning_rate&#34;: 0.001" in shown


def test_the_test_figure_of_what_was_not_chosen_stands_nowhere(folder):
    text = made(folder)
    assert "1.876" not in text
    assert "1.9000" in text
    assert "finished, not chosen" in text


def test_the_curve_of_a_run_is_drawn_from_its_metrics(folder):
    text = made(folder)
    assert text.count('<svg class="curve"') == 1
    (curve,) = re.findall(r'<polyline class="training" points="([^"]+)"', text)
    assert len(curve.split()) == learning.SHOWN
    assert "validation ends at 1.250" in text


def test_a_curve_keeps_its_first_and_last_point_and_leaves_out_what_is_torn(tmp_path):
    points = [(n, float(n)) for n in range(1000)]
    thinned = learning.thinned(points)
    assert len(thinned) == learning.SHOWN
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert learning.thinned(points[:7]) == points[:7]
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "loss": null}\n{"update": 2, "loss": 1.5}\n{"upd')
    assert learning.curves(tmp_path) == {"training": [(2, 1.5)]}
    (tmp_path / "curve.csv").write_text("update,loss,validation_loss\n1,2.5,\n3,null,1.25\n")
    assert learning.curves(tmp_path) == {"training": [(1, 2.5)], "validation": [(3, 1.25)]}
    (tmp_path / "curve.csv").write_text("update,loss\n1,x\n")
    assert learning.curves(tmp_path) == {}
    assert learning.curves(tmp_path / "nowhere") == {}
    assert sparkline.svg({"training": [(2, 1.5)]}, "ltc") == ""
    assert "1.50" in sparkline.svg({"training": [(1, 1.5), (2, 1.5)]}, "ltc")  # a flat curve has a height all the same


def test_a_curve_runs_from_the_axis_to_the_right_edge_and_says_where_it_ends():
    drawn = str(sparkline.svg({"training": [(1, 2.0), (10, 1.5), (100, 1.0)], "validation": [(100, 1.25)]}, "ltc"))
    (points,) = re.findall(r'class="training" points="([^"]+)"', drawn)
    (axis, edge) = re.findall(r'<text x="(\d+)" y="\d+"(?: text-anchor="end")?>(?:1<|100 updates)', drawn)
    xs, ys = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    assert (xs[0], xs[2]) == (float(axis), float(edge))
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2)  # ten is halfway on a logarithmic axis
    assert ys[0] < ys[1] < ys[2] <= sparkline.HEIGHT
    assert "training ends at 1.000, validation ends at 1.250" in drawn


def test_cells_are_sorted_by_what_they_mean():
    meant = {"2.05 kB": 2050, "158 kB": 158e3, "2.10 MB": 2.1e6, "9,600": 9600, "1.71 ± 0.02": 1.71, "−0.5": -0.5}
    meant |= {"1,024": 1024, "0.097": 0.097, "9,100 ± 141*": 9100, "1.2e-05": 1.2e-5, "3.5M": 3.5e6, "2.217": 2.217}
    assert {text: page._number(text) for text in meant} == pytest.approx(meant)
    assert [page._number(text) for text in ("–", "busy", "diverged at update 120", "window 512", "")] == [None] * 5
    assert page._is_numeric(["2.0", "diverged at update 120", "1.9", "–"])
    assert not page._is_numeric(["state", "window 512", "full"])
    assert not page._is_numeric(["–", ""])


def test_a_table_without_runs_has_no_links():
    table = Table("t", "T", ["", "ms"], [["a", "1"], ["b", "20"]], [], pd.DataFrame())
    sheet = page._sheet(table, {}, {})
    assert [row.links for row in sheet.rows] == [[], []]
    assert sheet.numeric == [False, True]


def test_two_codes_of_one_run_have_two_sections(tmp_path):
    for number, code in enumerate(("old", "new")):
        write_run(tmp_path / str(number), "ltc", 0, 2.0, code={"arch.ltc": code})
    known = records.load([tmp_path / "0", tmp_path / "1"])
    anchors = page._anchors(known.runs)
    assert len(set(anchors.values())) == 2
    document = Document(page.page(report.build(known, tmp_path), known))
    assert set(anchors.values()) <= set(document.ids)


def test_the_search_for_the_recipe_leads_to_its_runs_whose_test_is_not_shown(folder):
    path = write_run(folder, "transformer", 0, 1.2345678, validation=2.2)
    key = json.loads((path / "result.json").read_text())["key"]
    jobs = [sweep.Job(["seed=0", "model=transformer"], key)]
    sweep.write(folder, sweep.Sweep("recipe", "Which?", jobs))
    text = made(folder)
    table = text.partition('<table id="search-recipe">')[2].partition("</table>")[0]
    assert f'href="#run-{key}"' in table
    assert f'id="run-{key}"' in text
    assert "1.2346" not in text


def test_a_refused_run_is_named_and_a_damaged_one_stops_nothing(folder):
    write_run(folder, "leaky", 0, 0.1, passed=False)
    damage(write_run(folder, "lstm", 0), "torn")
    text = made(folder)
    assert re.search(r"leaky-1m-sotu-seed0-\w+: checks failed: causality", text)


def test_the_command_writes_the_same_bytes_again(folder, tmp_path, capsys):
    written = []
    for name in ("one", "two"):
        assert main([str(folder), "--report", "--output", str(tmp_path / name)]) == 0
        written.append((tmp_path / name / page.NAME).read_bytes())
        assert [path.name for path in (tmp_path / name).iterdir()] == [page.NAME]
    assert written[0] == written[1]
    assert main([str(folder), "--report", "--pages", "--output", str(tmp_path)]) == 2
    assert "--report was given with --pages" in capsys.readouterr().err


def test_the_question_is_that_of_the_readme():
    assert f"*{page.QUESTION}*" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_six_hundred_runs_stay_one_light_page(tmp_path):
    originals = sorted(path.parent for path in (ROOT / "results").glob("*/result.json"))
    for number in range(RUNS):
        original = originals[number % len(originals)]
        copy = tmp_path / f"{original.name}-{number}"
        copy.mkdir()
        for file in original.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        for name in ("result", "config"):
            content = json.loads((copy / f"{name}.json").read_text())
            content |= {"seed": number // len(originals)} | ({"key": f"{number:016x}"} if name == "result" else {})
            (copy / f"{name}.json").write_text(json.dumps(content))
    text = made(tmp_path)
    assert text.count('<details class="run">') == RUNS
    assert len(text.encode()) < BYTES
