"""The HTML report in a browser: no errors, no requests, sorting, links, phone, dark and print."""

import shutil

import pytest

from analysis import records, report
from analysis.html import page
from test_analysis import write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[browser]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, bits in enumerate((2.0, 2.1, 2.3)):
        write_run(folder, "mamba", seed, bits, memory=10_000_000)
    write_run(folder, "ltc", 0, 2.2, solver="rk4", memory=9_000)
    write_run(folder, "gru", 0, status="diverged")
    write_run(folder, "transformer", 0, 1.9, memory=None)
    known = records.load([folder])
    return page.page(report.build(known, folder), known)


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the text as a file; returns the page and what went wrong in it, and what it asked for."""
    contexts = []

    def open_(text: str, anchor: str = "", **options):
        path = tmp_path / page.NAME
        path.write_text(text)
        contexts.append(browser.new_context(**options))
        tab, wrong, asked = contexts[-1].new_page(), [], []
        tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri() + anchor)
        assert [url.partition("#")[0] for url in asked] == [path.as_uri()]
        return tab, wrong

    yield open_
    for context in contexts:
        context.close()


def column(tab, name: str, place: int) -> list[str]:
    """The texts of a column of a table, as they stand."""
    return tab.eval_on_selector_all(
        f"#{name} tbody tr", f"rows => rows.map(row => row.cells[{place}].textContent.trim())"
    )


def heading(tab, name: str, title: str) -> int:
    """The place of a heading, which is pressed."""
    titles = tab.eval_on_selector_all(f"#{name} thead th", "all => all.map(one => one.textContent.trim())")
    tab.locator(f"#{name} thead button").nth(titles.index(title)).click()
    return titles.index(title)


def test_it_opens_without_an_error(text, opened):
    tab, wrong = opened(text)
    assert tab.title() == "LiquidBench: the report"
    assert tab.locator("figure svg").count() > 0
    assert wrong == []


def test_another_script_does_not_run_and_is_seen_as_an_error(text, opened):
    tab, wrong = opened(text.replace("<main>", "<main><script>window.hit = 1</script>"))
    assert tab.evaluate("window.hit") is None
    assert wrong


def test_a_heading_sorts_its_column_both_ways_with_what_is_missing_last(text, opened):
    tab, wrong = opened(text)
    place = heading(tab, "sotu-1m", "memory at 32k")
    assert column(tab, "sotu-1m", place) == ["9 kB", "10 MB", "–", "–"]
    assert heading(tab, "sotu-1m", "memory at 32k") == place
    assert column(tab, "sotu-1m", place) == ["10 MB", "9 kB", "–", "–"]
    sorted_ = tab.locator('#sotu-1m th[aria-sort="descending"]')
    assert sorted_.count() == tab.locator("#sotu-1m th[aria-sort]").count() == 1
    heading(tab, "sotu-1m", "model")
    assert [name.split()[0].rstrip(",") for name in column(tab, "sotu-1m", 0)] == ["gru", "ltc", "mamba", "transformer"]
    assert wrong == []


def test_a_heading_is_pressed_by_the_keyboard_too(text, opened):
    tab, _ = opened(text)
    button = tab.locator("#sotu-1m thead button").first
    button.focus()
    tab.keyboard.press("Enter")
    assert button.locator("xpath=..").get_attribute("aria-sort") == "ascending"


def test_a_link_opens_the_section_of_its_run(text, opened):
    tab, wrong = opened(text)
    row = tab.locator("#sotu-1m tbody tr", has_text="ltc")
    anchor = row.locator("a").first.get_attribute("href")
    assert not tab.locator(anchor).is_visible()
    row.locator("a").first.click()
    assert tab.locator(anchor).is_visible()
    assert "ltc, rk4" in tab.locator(anchor).text_content()
    sync_api.expect(tab.locator(anchor)).to_be_in_viewport()
    assert wrong == []
    tab, _ = opened(text, anchor)  # from outside
    assert tab.locator(anchor).is_visible()


def test_the_list_of_runs_is_narrowed_by_words(text, opened):
    tab, _ = opened(text)
    assert tab.locator("#shown").inner_text() == "6 of 6"
    tab.fill("#filter", "MAMBA sotu")
    assert tab.locator("#shown").inner_text() == "3 of 6"
    assert tab.locator("#index tbody tr:visible").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_in_either_scheme(text, opened, scheme):
    tab, wrong = opened(text, viewport=PHONE, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper, ink = tab.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    bright = [sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in (paper, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light")
    assert wrong == []


def test_on_paper_there_is_no_navigation_and_the_page_is_white(text, opened):
    tab, _ = opened(text, color_scheme="dark")
    tab.emulate_media(media="print", color_scheme="dark")
    assert not tab.locator("nav").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_scripts_every_table_and_figure_is_there(text, opened):
    tab, _ = opened(text, java_script_enabled=False)
    assert tab.locator("#sotu-1m tbody tr").count() == 4
    assert tab.locator("details.run").count() == 6
