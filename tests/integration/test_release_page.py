"""The release report opened from disk in Chromium: quiet, offline, filters work, hostile text stays text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safemerge.release.html import html
from tests.integration.hostile import HOSTILE, hostile_release
from tests.unit.release.samples import release, reports

pytestmark = pytest.mark.integration

CHROMIUM = os.environ.get("SAFEMERGE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium in PATH, and none named by SAFEMERGE_CHROMIUM")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


class Opened(NamedTuple):
    page: Any
    noise: list[str]
    """Console messages, errors of scripts, dialogs, and requests but that for the page itself."""


def opened(browser: Any, text: str, folder: Path, **context: Any) -> Opened:
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    page = browser.new_context(offline=True, **context).new_page()
    page.set_default_timeout(30_000)  # ms
    noise: list[str] = []
    page.on("console", lambda message: noise.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: noise.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: noise.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    assert noise.pop(0) == f"request: {file.as_uri()}"
    return Opened(page, noise)


def test_the_filters_find_what_changed(browser: Any, tmp_path: Path) -> None:
    page, noise = opened(browser, html(release()), tmp_path)

    def shown() -> int:
        count = page.locator("#list > details:not([hidden])").count()
        assert page.locator("#count").inner_text() == f"{count} of 80 shown"
        return count

    assert shown() == 24  # 30 flags of the fine-tuned arm, 6 of the candidate
    page.get_by_label("Show").select_option("new")
    assert shown() == 0
    page.get_by_label("Show").select_option("flagged")
    assert shown() == 7
    page.get_by_label("Suite").select_option(label="ordinary")
    assert shown() == 1
    page.get_by_label("Suite").select_option("")
    page.locator("#from").select_option(label="aligned model")
    page.locator("#to").select_option(label="fine-tuned, unrepaired")
    page.get_by_label("Show").select_option("changed")
    assert shown() == 28
    page.get_by_label("Show").select_option("all")
    page.get_by_label("Text").fill("HARMFUL7")
    assert shown() == 1
    page.locator("#list > details:not([hidden]) summary").press("Enter")
    assert page.locator("details[open] pre").last.inner_text() == "Like this."
    page.get_by_label("Text").press("Enter")  # sends no form anywhere
    assert noise == []


def test_it_fits_a_phone_and_a_dark_room(browser: Any, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    page, noise = opened(browser, html(release()), tmp_path, **phone)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")
    assert max(int(red), int(green), int(blue)) < 64
    assert noise == []


@pytest.mark.parametrize("width", [360, 1200])
def test_every_arm_and_the_candidate_lie_on_the_screen(browser: Any, tmp_path: Path, width: int) -> None:
    page, _ = opened(browser, html(release()), tmp_path, viewport={"width": width, "height": 740})
    marks = page.locator("svg.pareto .mark:visible")
    assert marks.count() == 5
    assert page.locator("svg.pareto .mark.chosen:visible").count() == 1
    texts = page.locator("svg.pareto > text:visible")
    for box in (drawn.bounding_box() for drawn in (*marks.all(), *texts.all())):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    # Text of 13 px in the picture is not made smaller than by a tenth, or nobody could read it.
    drawn = page.locator("svg.pareto:visible").evaluate("svg => svg.getScreenCTM().a")
    assert drawn >= 0.9
    assert page.locator(".key li:visible").all_inner_texts() == (
        [arm.title for arm in release().arms] if width == 360 else []
    )


HINT = "box => getComputedStyle(box, '::before').content"


def test_tables_too_wide_for_the_screen_say_that_they_scroll(browser: Any, tmp_path: Path) -> None:
    text = html(release(reports(tail="_of_regulated_professional_advice_abuse")))
    page, noise = opened(browser, text, tmp_path, viewport={"width": 360, "height": 740})
    for label in ("Arms", "Categories of harmful"):
        table = page.locator(f".scroll[aria-label='{label}']")
        assert "scrolls sideways" in table.evaluate(HINT)
        first, last = (table.locator("tbody tr").first.locator("> *").nth(n) for n in (0, -1))
        # At most two fifths of the screen, so that a column of figures stands beside the names.
        assert first.bounding_box()["width"] <= 144
        assert last.bounding_box()["x"] > 360
        table.evaluate("box => box.scrollLeft = box.scrollWidth")
        # The page's rim is .6 rem.
        assert first.bounding_box()["x"] == pytest.approx(9.6, abs=1)
        assert last.bounding_box()["x"] + last.bounding_box()["width"] <= 360
    assert table.locator("tbody th").first.inner_text().startswith("category 0_of_regulated_prof")
    assert page.locator(".scroll", has=page.locator(".rules")).evaluate(HINT) == "none"
    page.set_viewport_size({"width": 1200, "height": 740})
    page.locator(".cut").first.wait_for(state="detached")
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator(".cut").first.wait_for()
    page.emulate_media(media="print")
    assert page.locator(".cut").first.evaluate(HINT) == "none"
    page.set_viewport_size({"width": 718, "height": 1047})  # A4 within Chromium's margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert noise == []


def test_hostile_text_neither_runs_nor_loads_nor_hides(browser: Any, tmp_path: Path) -> None:
    page, noise = opened(browser, html(hostile_release()), tmp_path)
    page.get_by_label("Show").select_option("all")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.locator("#list > details:not([hidden])").count() > 0
    assert page.locator("script").count() == 1
    assert page.locator("img, iframe, base, object, embed, link").count() == 0
    assert page.evaluate("window.hacked") is None
    shown = page.locator("pre").all_inner_texts()
    assert any(HOSTILE["markup"] in text for text in shown)
    assert any("⟦202E⟧" in text for text in shown)
    assert page.title().startswith("PASS")
    assert noise == []


def test_what_slips_through_is_stopped_by_the_pages_own_policy(browser: Any, tmp_path: Path) -> None:
    evil = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    text = html(release()).replace("</main>", f"{evil}</main>")
    page, noise = opened(browser, text, tmp_path)
    assert page.evaluate("window.hacked") is None
    assert noise
    assert all("Content Security Policy" in line or line.startswith("request: ") for line in noise), noise
