"""The report's page: balanced, escaped, readable, and it needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from tinylcm import drift_page
from tinylcm.drift_report import Feature, Report, compare

HOSTILE = "<script>alert('x')</script>\"&\x00\u202e"
VOID = {"meta", "br", "img", "link", "input", "hr"}


def one(reference: object, current: object, **options: float) -> Feature:
    """The only feature of a comparison."""
    return compare({"x": np.asarray(reference)}, {"x": np.asarray(current)}, **options).features[0]


def colours(scheme: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#\w{6})", scheme))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


class Balance(HTMLParser):
    """Every element is closed in its order; keeps the tags, the attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(42)


@pytest.fixture
def report(rng: np.random.Generator) -> Report:
    reference = {
        "shifted": rng.normal(0, 1, 500),
        HOSTILE: rng.normal(0, 1, 500),
        "kinds": rng.choice(["a", HOSTILE], 500),
        "empty": np.full(500, np.nan),
        "one": np.full(500, 3.0),
        "gone": rng.normal(0, 1, 500),
    }
    current = {**reference, "shifted": reference["shifted"] + 1, f"new {HOSTILE}": np.zeros(3)}
    del current["gone"]
    return compare(reference, current, names=(HOSTILE, "current.npz"))


def test_the_page_is_balanced_escaped_and_needs_nothing_else(report: Report) -> None:
    page = report.to_html()
    parsed = Balance(page)
    assert parsed.open == [] and page.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert "http://" not in page and "https://" not in page and "src=" not in page and "url(" not in page
    assert "@import" not in page and "\x00" not in page
    assert all(value.startswith("#") for name, value in parsed.attributes if name in ("href", "xlink:href"))
    assert not any(name.startswith("on") or name == "src" for name, _ in parsed.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'") in (
        parsed.attributes
    )
    shown = HOSTILE.replace("\x00", "\ufffd")
    assert parsed.text.count(shown) >= 4 and "prefers-color-scheme: dark" in page
    page.encode()


def test_the_page_says_what_was_found_and_draws_it(report: Report) -> None:
    page = report.to_html()
    text = Balance(page).text
    assert "1 of 5 features drifted: shifted." in text and "p-value" in text and "does not" in text
    assert "current.npz, 500 rows" in text and "Only in the referencegone" in text
    assert page.count("<svg") == 4 and page.count('<rect class="r"') >= 20 and "has no values to draw" in page
    order = [page.index(f'id="f{index}"') for index in range(5)]
    assert order == sorted(order) and page.index('id="f0"') < page.index("<bdi>shifted</bdi></h3>") < order[1]


def test_the_page_escapes_what_xml_and_utf_8_cannot_hold(report: Report) -> None:
    strange = replace(report.features[0], name="a\ud800\x1b<b>", notes=("<i>\x07",))
    page = replace(report, features=(strange,)).to_html()
    assert "a\ufffd\ufffd&lt;b&gt;" in page and "&lt;i&gt;\ufffd" in page
    page.encode()


def test_the_json_holds_plain_types_and_no_nan(report: Report) -> None:
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["verdict"] == "drift" and found["drifted"] == ["shifted"] and found["missing"] == ["gone"]
    features = {feature["name"]: feature for feature in found["features"]}
    assert features["empty"]["psi"] is None and features["empty"]["reference"]["mean"] is None
    assert features["empty"]["reference"]["missing"] == 500 and features["shifted"]["ks"] > 0.3
    assert len(features["shifted"]["histogram"]["edges"]) == 21 and features["kinds"]["reference"]["distinct"] == 2


def test_64_features_fit_into_a_megabyte_and_thousands_keep_their_table(rng: np.random.Generator) -> None:
    reference = {f"sensor_{i}_a_name_of_usual_length": rng.normal(0, 1e-3, 300) for i in range(64)}
    page = compare(reference, {name: column * 1.7 for name, column in reference.items()}).to_html()
    assert len(page.encode()) < 1_000_000 and page.count("<svg") == 64
    column = rng.normal(0, 1, 30)
    many = {str(i): column for i in range(300)}
    page = compare(many, many).to_html()
    assert page.count("<svg") == 200 and "The other 100 features have no chart" in page and ">299<" in page
    assert len(Balance(page).open) == 0


def test_the_two_colours_stand_out_from_the_panel_and_from_each_other() -> None:
    light, dark = drift_page.STYLE.split("@media (prefers-color-scheme: dark)")
    for scheme in (colours(light), colours(dark.split("} }")[0])):
        assert contrast(scheme["reference"], scheme["panel"]) >= 3 and contrast(scheme["current"], scheme["panel"]) >= 3
        assert contrast(scheme["reference"], scheme["current"]) >= 1.9
        for words in ("ink", "quiet", "link"):
            assert contrast(scheme[words], scheme["panel"]) >= 4.5
