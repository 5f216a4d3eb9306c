"""The page of an audit in a real browser: its script runs, its policy holds, hostile texts do nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from surgery.anatomy.atlas import ROLES
from surgery.report import audit_page
from tests.report.audit_records import BACKWARDS, HOSTILE, record, row, total, word
from tests.support.browser import Browser, browsing

pytestmark = pytest.mark.slow

FIRST = "document.querySelector('#tensor-table tbody tr:not([hidden]) th').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with three tensors, many words, and a cell in every shade."""
    made = record()
    names = {"a": 30, "b": 10, "c": 20}
    tensors = tuple(row(f"unet/{name}.weight", changed=count) for name, count in names.items())
    words = tuple(word(f"word {number}", 1 + number / 7) for number in range(300))
    cells = tuple(
        replace(total("unet", f"block {step}", "norm"), relative=10 ** (step * 0.625 - 5))
        for step in range(9)
    )
    cells += tuple(total("unet", "block 0", role) for role in ROLES if role != "norm")  # wider than a phone
    assert made.words is not None
    made = replace(made, roles=ROLES, cells=cells, tensors=tensors, words=replace(made.words, rows=words))
    return written(audit_page(made), tmp_path)


def written(text: str, folder: Path) -> Path:
    path = folder / "audit.html"
    path.write_text(text, encoding="utf-8")
    return path


def test_headings_sort_by_keyboard_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert "unet/a" in browser.ask(FIRST)
    heading = "document.querySelectorAll('#tensor-table thead th')[5]"
    assert browser.ask(f"{heading}.textContent") == "changed"
    browser.ask(f"{heading}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.ask(f"{heading}.getAttribute('aria-sort')") == "descending"
    assert "unet/a" in browser.ask(FIRST)
    browser.press("Enter")
    assert browser.ask(f"{heading}.getAttribute('aria-sort')") == "ascending"
    assert "unet/b" in browser.ask(FIRST)


def test_tables_filter_as_one_types(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask("document.querySelector('input[data-filter=\"tensor-table\"]').focus()")
    browser.press("u", "n", "e", "t", "/", "c")
    assert "unet/c" in browser.ask(FIRST)
    assert (
        browser.ask("document.querySelector('output[data-count=\"tensor-table\"]').textContent") == "1 of 3"
    )


def test_the_first_key_leads_past_the_navigation(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("Tab")
    assert browser.ask("document.activeElement.className") == "skip"
    assert browser.ask("document.activeElement.getBoundingClientRect().left") >= 0


@pytest.mark.parametrize("text", [HOSTILE, BACKWARDS])
def test_hostile_texts_run_nothing_and_the_policy_is_not_touched(
    browser: Browser, tmp_path: Path, text: str
) -> None:
    browser.violations.clear()
    browser.open(written(audit_page(record(text)), tmp_path))
    assert browser.ask("document.querySelectorAll('img, iframe, object, embed, form, base').length") == 0
    assert browser.ask("document.scripts.length") == 2
    assert browser.ask("document.querySelectorAll('th button').length") > 10
    assert browser.violations == []


def test_what_the_policy_forbids_does_not_run(browser: Browser, tmp_path: Path) -> None:
    broken = audit_page(record()).replace("<main", "<script>window.harm = 1</script><main", 1)
    browser.violations.clear()
    browser.open(written(broken, tmp_path))
    assert browser.ask("typeof window.harm") == "undefined"
    assert "Content Security Policy" in "".join(browser.violations)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_as_wide_as_the_window(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    dark_paper = browser.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark_paper == dark


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_what_is_behind_them(browser: Browser, page: Path, dark: bool) -> None:
    """Contrast of 4.5 at least, as WCAG 2.2 asks (1.4.3)."""
    browser.open(page, dark=dark)
    faint = browser.ask(
        """(() => {
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (node) => {
            for (; node; node = node.parentElement) {
              const colour = parse(getComputedStyle(node).backgroundColor);
              if (colour.length === 3 || colour[3] > 0) return colour;
            }
            return [255, 255, 255];
          };
          const faint = [];
          for (const node of document.querySelectorAll('body *')) {
            if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
            if (['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
            const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < 4.5) faint.push(`${node.tagName} ${node.className} ${ratio.toFixed(2)}`);
          }
          return faint;
        })()"""
    )
    assert faint == []
