"""The drift report as one HTML page: no script, no font, no picture from anywhere else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

from .drift_report import EFFECTIVE_MIN, KS_MIN, MISSING_CHANGE_MIN, PSI_MIN, SEVERITY, Feature, Report, Verdict
from .types import HistogramPair

CHARTS_MAX: Final = 200  # a page with thousands of charts opens in no browser


STYLE: Final = """
:root { color-scheme: light dark; --ground: #f6f7f8; --panel: #ffffff; --ink: #17212b; --quiet: #56636f;
  --line: #dde2e7; --link: #0b6e75; --bad: #b3261e; --warn: #9a5200; --good: #1a7f4b;
  --reference: #1d4e89; --current: #dd6b20; }
@media (prefers-color-scheme: dark) { :root { --ground: #10161c; --panel: #18212a; --ink: #e6ebf0; --quiet: #9aa8b5;
  --line: #2b3742; --link: #4fc0c8; --bad: #ff8078; --warn: #f0a04b; --good: #4cc38a; --reference: #9cc3f0;
  --current: #d9611a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.4rem 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 0 0 .8rem; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 0 0 1rem; }
.lead { font-size: 1.1rem; margin: 0 0 .8rem; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.scroll { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .left { text-align: left; }
td.name { max-width: 18rem; overflow: hidden; text-overflow: ellipsis; }
tbody tr:last-child > * { border-bottom: 0; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict::before { content: ""; display: inline-block; width: .65rem; height: .65rem; border-radius: 50%;
  margin-right: .4rem; background: var(--quiet); }
.bad::before { background: var(--bad); }
.warn::before { background: var(--warn); }
.good::before { background: var(--good); }
.head { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; justify-content: space-between; }
.feature { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem 1.5rem; align-items: start; }
@media (max-width: 820px) { .feature { grid-template-columns: minmax(0, 1fr); } }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; color: var(--quiet); margin: .5rem 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem;
  vertical-align: -1px; }
i.r { background: var(--reference); } i.c { background: var(--current); }
svg { width: 100%; height: auto; display: block; overflow: visible; }
svg text { fill: var(--quiet); font-size: 11px; } svg line { stroke: var(--line); }
svg .r { fill: var(--reference); } svg .c { fill: var(--current); }
ul { margin: .3rem 0; padding-left: 1.2rem; } p { margin: .5rem 0; }
@media print { .panel { break-inside: avoid; } }
"""
# Nothing is fetched, whatever a name or a value smuggles in.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TONES: Final[dict[Verdict, str]] = {
    "drift": "bad", "changed slightly": "warn", "too little data": "none", "no drift": "good",
}  # fmt: skip
NAMES_SHOWN: Final = 12
CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160), *range(0xD800, 0xE000)), "\ufffd")
WIDTH: Final = 560
LEFT: Final = 44
PLOT_HEIGHT: Final = 170
TOP: Final = 10
LABEL_LENGTH_MAX: Final = 12
CHARACTER_WIDTH: Final = 6.4  # of the axis labels at 11 px


def _text(value: object, length_max: int = 120) -> str:
    """Text for the page, escaped, without control characters, and not longer than a person reads."""
    text = str(value).translate(CONTROLS)
    return html.escape(text if len(text) <= length_max else text[: length_max - 1] + "…")


def _name(value: str, length_max: int = 120) -> str:
    return f"<bdi>{_text(value, length_max)}</bdi>"  # a name written from right to left must not turn the line around


def _number(value: float | None, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if 10**digits <= abs(value) < 1e7 else f"{value + 0.0:.{digits}g}"
    return text.replace("-", "−")


def _probability(p: float | None) -> str:
    return "–" if p is None else "&lt; 0.0001" if p < 1e-4 else f"{p:.2g}"


def _verdict(verdict: Verdict) -> str:
    return f'<span class="verdict {TONES[verdict]}">{verdict}</span>'


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(_name(name) for name in names[:NAMES_SHOWN])
    return shown + (f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else "")


def page(report: Report) -> str:
    """The report as one HTML document."""
    features = report.by_severity()
    title = f"Drift report: {_text(report.reference_name)} and {_text(report.current_name)}"
    left_out = len(features) - CHARTS_MAX
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Drift report</h1>\n",
        _summary(report, features),
        _reading(report),
        _overview(features) if features else "",
        "<h2>Features</h2>\n" if features else "",
        *(_card(index, feature) for index, feature in enumerate(features[:CHARTS_MAX])),
        f'<p class="quiet">The other {_several(left_out, "feature")} have no chart here.</p>\n' if left_out > 0 else "",
        "</main>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _summary(report: Report, features: Sequence[Feature]) -> str:
    found = {verdict: [item.name for item in features if item.verdict == verdict] for verdict in SEVERITY}
    judged = len(features) - len(found["too little data"])
    if found["drift"]:
        lead = f"{len(found['drift']):,} of {_several(len(features), 'feature')} drifted: {_listed(found['drift'])}."
    elif not features:
        lead = "The tables have no feature in common, so nothing could be compared."
    elif not judged:
        lead = f"None of the {_several(len(features), 'feature')} has enough independent values for a judgement."
    else:
        lead = f"No drift was found in {_several(judged, 'feature')}."
    lines = [
        ("Changed, but by little", found["changed slightly"]),
        ("Not judged, too little data", found["too little data"]),
        ("Share of missing values changed", [item.name for item in features if _missing_changed(item)]),
        ("Only in the reference", report.missing),
        ("Only in the current table", report.new),
    ]
    more = "".join(f"<dt>{label}</dt><dd>{_listed(names)}</dd>" for label, names in lines if names)
    return (
        f'<section class="panel">\n<p class="lead">{_verdict(report.verdict)}. {lead}</p>\n<dl>'
        f"<dt>Reference</dt><dd>{_name(report.reference_name)}, {_several(report.reference_rows, 'row')}</dd>"
        f"<dt>Current</dt><dd>{_name(report.current_name)}, {_several(report.current_rows, 'row')}</dd>"
        f"<dt>Compared</dt><dd>{_several(len(features), 'feature')}</dd>{more}</dl>\n</section>\n"
    )


def _missing_changed(feature: Feature) -> bool:
    return abs(feature.reference.missing_share - feature.current.missing_share) >= MISSING_CHANGE_MIN


def _reading(report: Report) -> str:
    tests = sum(feature.p is not None for feature in report.features)
    return (
        '<section class="panel">\n<h3>How to read it</h3>\n'
        "<p>A <b>p-value</b> is the chance that two stretches of one unchanged process differ at least as much as these"
        " do. Neighbouring rows resemble each other, so the test counts <i>effective</i> values, which are as many"
        " independent ones as the rows are worth. The p-values are adjusted for"
        f" {_several(tests, 'test')} (Holm), so that the chance of even one false finding on this page is at most"
        f" {report.alpha:.3g}.</p>\n"
        "<p>It does <b>not</b> say how large a change is (PSI and KS do), whether it matters, or whether the model's"
        " predictions became worse. A high p-value does not prove that nothing changed. And it holds for rows in the"
        " order of time: shuffled rows hide how alike neighbours are, and make p-values too small.</p>\n<ul>"
        f"<li>{_verdict('drift')}: significant, and PSI is at least {PSI_MIN} or KS at least {KS_MIN}.</li>"
        f"<li>{_verdict('changed slightly')}: significant, but both are smaller.</li>"
        f"<li>{_verdict('no drift')}: two such tables may well come from one unchanged process.</li>"
        f"<li>{_verdict('too little data')}: fewer than {EFFECTIVE_MIN:.0f} effective values on a side.</li></ul>\n"
        "<p>PSI (population stability index) and JS (Jensen-Shannon distance, 0 to 1) compare the histograms; with few"
        " values both are large by chance alone (PSI by about 19 over the size of each side). KS is the largest gap"
        " between the cumulative shares, 0 to 1. W1 (Wasserstein distance) is how far the values moved on"
        " average, in standard deviations (sd) of the reference.</p>\n</section>\n"
    )


def _overview(features: Sequence[Feature]) -> str:
    rows = []
    for index, item in enumerate(features):
        name = f'<a href="#f{index}">{_name(item.name)}</a>' if index < CHARTS_MAX else _name(item.name)
        cells = (
            _number(item.psi, 3), _number(item.ks, 3), _number(item.js, 3), _number(item.wasserstein_scaled, 3),
            _number(item.mean_shift, 3), _probability(item.p_adjusted),
            f"{item.reference.missing_share:.1%} → {item.current.missing_share:.1%}",
        )  # fmt: skip
        rows.append(
            f'<tr><td class="name">{name}</td><td class="left">{_verdict(item.verdict)}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>\n"
        )
    return (
        '<h2>All features, the worst first</h2>\n<div class="panel scroll">\n<table><thead><tr><th>Feature</th>'
        '<th class="left">Verdict</th><th>PSI</th><th>KS</th><th>JS</th><th>W1, sd</th><th>Mean shift, sd</th>'
        "<th>p, adjusted</th><th>Missing</th></tr></thead>\n<tbody>\n" + "".join(rows) + "</tbody></table>\n</div>\n"
    )


def _card(index: int, feature: Feature) -> str:
    left, right = feature.reference, feature.current
    rows = [
        ("values", f"{left.count:,}", f"{right.count:,}"),
        ("effective", f"{left.effective:,.0f}", f"{right.effective:,.0f}"),
        ("missing", f"{left.missing:,}", f"{right.missing:,}"),
    ]
    if feature.kind == "category":
        rows.append(("categories", f"{left.distinct or 0:,}", f"{right.distinct or 0:,}"))
    else:
        names = ("mean", "std", "min", "median", "max")
        rows += [(name, _number(getattr(left, name), 5), _number(getattr(right, name), 5)) for name in names]
    measures = [("PSI", _number(feature.psi, 3)), ("JS", _number(feature.js, 3))]
    if feature.kind == "number":
        measures += [("KS", _number(feature.ks, 3)), ("W1", _number(feature.wasserstein, 3))]
    measures += [("p", _probability(feature.p)), ("adjusted", _probability(feature.p_adjusted))]
    return (
        f'<section class="panel" id="f{index}">\n<div class="head"><h3>{_name(feature.name, 200)}</h3>'
        f"{_verdict(feature.verdict)}</div>\n"
        f'<p class="quiet">{" · ".join(f"{label} {value}" for label, value in measures)}</p>\n'
        + "".join(f"<p>{_text(note, 400)}</p>\n" for note in feature.notes)
        + f'<div class="feature"><div>{_chart(feature)}</div>\n<div class="scroll"><table><thead><tr>'
        f"<th></th><th>reference</th><th>current</th></tr></thead><tbody>"
        + "".join(f"<tr><td>{label}</td><td>{a}</td><td>{b}</td></tr>" for label, a, b in rows)
        + "</tbody></table></div></div>\n</section>\n"
    )


def _chart(feature: Feature) -> str:
    """The histogram as bars in pairs, of equal width: with equal shares a bin, a wide one says little by its width."""
    pair = feature.histogram
    if not pair.reference:
        return '<p class="quiet">The reference has no values to draw.</p>'
    sides = [[count / (sum(counts) or 1) for count in counts] for counts in (pair.reference, pair.current)]
    step = _round_step(max(map(max, sides)) / 4)
    ticks = math.ceil(max(map(max, sides)) / step - 1e-9)
    scale, slot = PLOT_HEIGHT / (ticks * step), (WIDTH - LEFT - 10) / len(pair.reference)
    floor = TOP + PLOT_HEIGHT
    axis, height = _axis(pair, slot, floor)
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{i * step * 100:.3g} %</text>'
        for i in range(ticks + 1)
        for y in [floor - i * step * scale]
    )
    bars = "".join(
        f"<g><title>{_bin_title(pair, i)}: reference {a:.1%}, current {b:.1%}</title>"
        + "".join(
            f'<rect class="{tone}" x="{LEFT + slot * (i + at):.1f}" y="{floor - share * scale:.1f}"'
            f' width="{slot * 0.4:.1f}" height="{share * scale:.1f}"/>'
            for tone, at, share in (("r", 0.1, a), ("c", 0.5, b))
            if share
        )
        + "</g>"
        for i, (a, b) in enumerate(zip(*sides, strict=True))
    )
    single = "category" if feature.kind == "category" else "value"
    caption = single if pair.labels else "edges of bins that hold equal shares of the reference, ties aside"
    return (
        '<div class="legend"><span><i class="r"></i>reference</span><span><i class="c"></i>current</span>'
        f"<span>share of values, by {caption}</span></div>\n"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Reference and current histogram of'
        f' {_text(feature.name)}">{grid}{bars}{axis}</svg>\n'
    )


def _round_step(wanted: float) -> float:
    """1, 2 or 5 times a power of ten, `wanted` or a little more."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def _axis(pair: HistogramPair, slot: float, floor: int) -> tuple[str, int]:
    """Labels below the bars, and how high the chart is with them."""
    if pair.labels:
        # Long names often differ at their end, so it is the middle that goes.
        cut = [label if len(label) <= LABEL_LENGTH_MAX else f"{label[:6]}…{label[-5:]}" for label in pair.labels]
        places = [LEFT + slot * (i + 0.5) for i in range(len(cut))]
    else:
        cut = [_number(edge, 3) for edge in pair.edges]
        places = [LEFT + slot * i for i in range(len(cut))]
    longest = max(map(len, cut)) * CHARACTER_WIDTH
    if longest + 6 <= slot:
        marks = [
            f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{_text(label)}</text>'
            for x, label in zip(places, cut, strict=True)
        ]
        return "".join(marks), floor + 24
    marks = [
        f'<text transform="translate({x + 3:.1f} {floor + 14}) rotate(-50)" text-anchor="end">{_text(label)}</text>'
        for x, label in zip(places, cut, strict=True)
    ]
    return "".join(marks), floor + 22 + round(longest * 0.77)


def _bin_title(pair: HistogramPair, index: int) -> str:
    if pair.labels:
        return _text(pair.labels[index])
    low, high = _number(pair.edges[index]), _number(pair.edges[index + 1])
    if index == 0:
        return f"up to {high}"
    return f"above {low}" if index == len(pair.reference) - 1 else f"above {low}, up to {high}"
