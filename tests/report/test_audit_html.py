"""The page of an audit: whole, harmless whatever it shows, and the same content as the JSON."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from surgery.report import audit_page
from surgery.report.audit_drawings import heat_maps, shade, spectrum_curve
from surgery.report.audit_html import data_block
from tests.report.audit_records import BACKWARDS, HOSTILE, record, spectrum

VOID = {"meta", "br", "input", "img", "link", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, texts by the tag they stand in, and unclosed tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))


def test_the_json_inside_is_the_json_of_the_record() -> None:
    for text in ("plain", HOSTILE):
        made = record(text)
        page = Page(audit_page(made))
        [inside] = [data for tag, data in page.texts if tag == "script" and data.startswith("{")]
        assert json.loads(inside) == json.loads(json.dumps(made.as_json()))


def test_everything_that_the_record_says_is_shown() -> None:
    text = Page(audit_page(record())).text()
    for part in (
        "1 of 2 tensors changed plain",
        "A low-rank edit plain",
        "rank 2 plain",
        "text_encoder/plain.weight",
        "text_encoder/same.weight",
        "The change is about 1 of 2 phrases",
        "dog",
        "549 common nouns",
        "too long",
        "NaN plain",
        "metadata.deep.list",
        "0.25",
        "50 %",
    ):
        assert part in text, part


def test_hostile_texts_stay_texts() -> None:
    page = Page(audit_page(record(HOSTILE)))
    plain = Page(audit_page(record()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.open == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{7*7}}" in page.text()
    assert "<img src=x onerror=alert(1)>" in page.text()


def test_control_characters_and_changes_of_direction_are_spelled_out() -> None:
    page = audit_page(record(BACKWARDS))
    for letter in "\u202e\x1b\x00":
        assert letter not in page
    assert "safe\\u202etxt.exe\\x1b[31m\\x00" in page


def test_the_page_loads_nothing_and_runs_only_what_its_policy_names() -> None:
    page = Page(audit_page(record()))
    [policy] = [
        str(meta["content"])
        for meta in page.named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    digests = {
        tag: base64.b64encode(hashlib.sha256(data.encode()).digest()).decode()
        for tag, data in page.texts
        if tag == "style" or (tag == "script" and not data.startswith("{"))
    }
    assert f"style-src 'sha256-{digests['style']}'" in policy
    assert f"script-src 'sha256-{digests['script']}'" in policy
    assert "unsafe" not in policy
    for _, attributes in page.tags:
        assert not {"src", "style", "srcset", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]  # no empty href


def test_every_table_can_be_reached_by_keyboard_and_has_headings() -> None:
    page = Page(audit_page(record()))
    regions = [attributes for attributes in page.named("div") if "scroll" in str(attributes.get("class"))]
    assert regions
    assert all(region.get("tabindex") == "0" and region.get("aria-label") for region in regions)
    assert len(page.named("table")) == len(regions)
    assert all(heading.get("scope") in ("row", "col") for heading in page.named("th"))


def test_links_inside_the_page_lead_somewhere() -> None:
    page = Page(audit_page(record()))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(link["href"]).removeprefix("#") for link in page.named("a")} <= ids
    labels = {str(attributes["aria-labelledby"]) for attributes in page.named("section")}
    assert labels <= ids


def test_equal_records_give_equal_pages() -> None:
    assert audit_page(record()) == audit_page(record())


@pytest.mark.parametrize("letter", ["<", ">", "&", "\u2028", "\u2029"])
def test_nothing_in_the_data_ends_a_script(letter: str) -> None:
    block = data_block({"text": f"a{letter}b"})
    assert letter not in block
    assert json.loads(block) == {"text": f"a{letter}b"}


def test_a_heat_map_has_a_cell_for_each_role_of_each_block() -> None:
    [found] = heat_maps(record())
    assert (found.component, found.roles) == ("text_encoder", ("mlp_out", "norm"))
    [(block, (changed, untouched))] = found.rows
    assert block == "layer 3"
    assert changed is not None
    assert untouched is not None
    assert (changed.short, untouched.shade) == ("50 %", 0)
    assert "1 of 2 tensors changed" in changed.full


@pytest.mark.parametrize(("relative", "expected"), [(1e-9, 1), (1e-5, 1), (10**-2.5, 5), (1.0, 9), (30.0, 9)])
def test_shades_are_steps_of_the_logarithm(relative: float, expected: int) -> None:
    assert shade(relative) == expected


def test_a_curve_goes_from_the_largest_value_down_by_decades() -> None:
    points, rounding = spectrum_curve(spectrum(10.0, 1.0, 1e-9))
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert places == [(0, 0), (100, 18), (200, 72)]
    assert rounding == pytest.approx(72)


def test_no_template_is_left_in_the_page() -> None:
    assert not re.search(r"{[{%]", audit_page(record()).replace("{{7*7}}", ""))


def test_an_expected_patch_has_one_line_for_each_tensor() -> None:
    tensors = {
        "unet/a.weight": {"state": "after", "before": None, "after": "bytes"},
        "unet/b.weight": {"state": "neither", "before": None, "after": None},
    }
    page = audit_page(replace(record(), expected={"state": "neither", "tensors": tensors}))
    assert "<dt>unet/a.weight</dt><dd>after (by its bytes)</dd>" in page
    assert "<dt>unet/b.weight</dt><dd>neither</dd>" in page
