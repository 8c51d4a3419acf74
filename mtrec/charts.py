"""Small charts as inline SVG, for pages that open from disk without network or script.

Each function gives one `<svg>` of 380 units width that scales with its column. Colours and fonts
come from the page's style sheet by class (`ink`, `faint`, `line`, `a` .. `d` for series), so light
and dark mode are the page's business. It knows numbers and labels only, nothing of recommenders.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 380
_GUTTER = 126
_ROW = 24

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Bar:
    """One labelled value.

    Attributes:
        label: stands left of it.
        value: its length or place.
        low: lower bound of its interval; None: no whiskers.
        high: upper bound.
        series: colour class, `a` to `d`.
        note: stands right of it; default: the value.
        name: what it is called where one points at it; default: the label.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: str = "b"
    note: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: points (x, y) in the order of x."""

    label: str
    points: Sequence[tuple[float, float]]
    series: str = "a"


@dataclass(frozen=True, slots=True)
class Box:
    """The spread of values at one place of the x axis: five quantiles and the mean."""

    x: float
    quantiles: Sequence[float]
    mean: float
    rows: int


@dataclass(frozen=True, slots=True)
class Mark:
    """One labelled point of a plane."""

    label: str
    x: float
    y: float


def bars(rows: Sequence[Bar], *, title: str, form: Format) -> str:
    """Draw horizontal bars from zero, with whiskers where there are intervals."""
    top = max([0.0, *(max(row.value, row.high or 0.0) for row in rows)]) or 1.0
    scale = _Scale(0.0, top * 1.02, _GUTTER, WIDTH - 58)
    parts = []
    for position, row in enumerate(rows):
        y = position * _ROW + _ROW / 2 + 4
        end = scale(row.value)
        shown = row.note or form(row.value)
        parts += [
            f"<g><title>{escape(_told(row, form))}</title>",
            _text(_GUTTER - 8, y + 4, row.label, "end", "ink" if row.series == "a" else ""),
            f'<rect class="fill {row.series}" x="{_GUTTER}" y="{y - 7:.1f}" '
            f'width="{max(1.0, end - _GUTTER):.1f}" height="14" rx="2"/>',
            *_whisker(row, scale, y),
            _text(max(end, scale(row.high or 0.0)) + 6, y + 4, shown, "start", _ink(row), "number"),
            "</g>",
        ]
    return _svg(parts, len(rows) * _ROW + 8, title)


def dots(
    rows: Sequence[Bar], *, title: str, form: Format, zero: bool = False, tick: Format | None = None
) -> str:
    """Draw horizontal dots with whiskers on an axis that need not start at zero.

    Args:
        rows: from top to bottom.
        title: for those who cannot see it.
        form: writes the values at the right.
        zero: include zero and mark it, as for differences.
        tick: writes the axis; by default like the values.
    """
    known = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    known = [*known, 0.0] if zero else known
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    pad = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    scale = _Scale(low - pad, high + pad, _GUTTER, WIDTH - 62)
    height = len(rows) * _ROW + 8
    parts = []
    for value in _ticks(low - pad, high + pad, 4):
        x = scale(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height}"/>')
        parts.append(_text(x, height + 13, (tick or form)(value), "middle", "faint", "number"))
    if zero:
        x = scale(0.0)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height}"/>')
    for position, row in enumerate(rows):
        y = position * _ROW + _ROW / 2 + 4
        parts += [
            f"<g><title>{escape(_told(row, form))}</title>",
            _text(_GUTTER - 8, y + 4, row.label, "end", "ink" if row.series == "a" else ""),
            *_whisker(row, scale, y),
            f'<circle class="fill {row.series}" cx="{scale(row.value):.1f}" cy="{y:.1f}" r="4.5"/>',
            _text(WIDTH - 2, y + 4, row.note or form(row.value), "end", _ink(row), "number"),
            "</g>",
        ]
    return _svg(parts, height + 20, title)


def curves(lines: Sequence[Line], *, title: str, form: Format, mark: float | None = None) -> str:
    """Draw curves over a shared x axis; `mark` is an x to point out, such as the chosen epoch."""
    points = [point for line in lines for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if not points:
        return _svg([], 20, title)
    pad = 0.08 * (max(ys) - min(ys)) or 0.1 * max(abs(max(ys)), 1e-9)
    across = _Scale(min(xs), max(*xs, min(xs) + 1), 46, WIDTH - 14)
    up = _Scale(min(ys) - pad, max(ys) + pad, 158, 8)
    parts = []
    for value in _ticks(min(ys) - pad, max(ys) + pad, 4):
        y = up(value)
        parts.append(f'<line class="grid" x1="46" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(40, y + 4, form(value), "end", "faint", "number"))
    for value in _ticks(min(xs), max(xs), 6):
        if value == int(value):
            parts.append(_text(across(value), 174, f"{value:.0f}", "middle", "faint", "number"))
    if mark is not None and min(xs) <= mark <= max(xs):
        x = across(mark)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="158"/>')
    for line in lines:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="stroke {line.series}" points="{path}"/>')
        if len(line.points) == 1 or (mark is not None and len(lines) == 1):
            for x, y in line.points:
                if x == mark or len(line.points) == 1:
                    parts.append(
                        f'<circle class="fill {line.series}" cx="{across(x):.1f}" '
                        f'cy="{up(y):.1f}" r="4"/>'
                    )
    return _svg(parts, 180, title)


def trade_off(
    marks: Sequence[Mark], *, title: str, across_name: str, up_name: str, form: Format
) -> str:
    """Draw points in their order along a line: what is gained across and lost upwards.

    Args:
        marks: the label of each stands above it.
        title: for those who cannot see it.
        across_name: stands below the x axis.
        up_name: stands above the y axis.
        form: writes the values of both axes.
    """
    if not marks:
        return _svg([], 20, title)
    (low_x, high_x), (low_y, high_y) = (
        (min(values) - pad, max(values) + pad)
        for values in ([mark.x for mark in marks], [mark.y for mark in marks])
        for pad in [0.12 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 0.1]
    )
    across, up = _Scale(low_x, high_x, 46, WIDTH - 14), _Scale(low_y, high_y, 208, 22)
    parts = [_text(2, 12, up_name, "start"), _text(WIDTH - 14, 244, across_name, "end")]
    for value in _ticks(low_y, high_y, 4):
        y = up(value)
        parts.append(f'<line class="grid" x1="46" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(40, y + 4, form(value), "end", "faint", "number"))
    for value in _ticks(low_x, high_x, 4):
        x = across(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="208"/>')
        parts.append(_text(x, 225, form(value), "middle", "faint", "number"))
    path = " ".join(f"{across(mark.x):.1f},{up(mark.y):.1f}" for mark in marks)
    parts.append(f'<polyline class="stroke a" points="{path}"/>')
    for mark in marks:
        x, y = across(mark.x), up(mark.y)
        told = f"{mark.label}: {across_name} {form(mark.x)}, {up_name} {form(mark.y)}"
        parts += [
            f"<g><title>{escape(told)}</title>",
            f'<circle class="fill a" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
            _text(x, y - 8, mark.label, "middle", "ink", "number"),
            "</g>",
        ]
    return _svg(parts, 250, title)


def reliability(
    lines: Sequence[Line], counts: Sequence[tuple[float, float, int]], *, title: str
) -> str:
    """Draw observed over predicted probability, and below how many rows each bin has.

    Args:
        lines: points (predicted, observed) of each method.
        counts: (low, high, rows) of the first method's bins.
        title: for those who cannot see it.
    """
    left, right = 46, WIDTH - 14
    across, up = _Scale(0.0, 1.0, left, right), _Scale(0.0, 1.0, 258, 8)
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = across(value), up(value)
        parts += [
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="258"/>',
            _text(left - 6, y + 4, f"{value:g}", "end", "faint", "number"),
            _text(x, 334, f"{value:g}", "middle", "faint", "number"),
        ]
    parts.append(f'<line class="mark" x1="{left}" y1="258" x2="{right}" y2="8"/>')
    for line in reversed(lines):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="stroke {line.series}" points="{path}"/>')
        parts += [
            f'<circle class="fill {line.series}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5">'
            f"<title>{escape(line.label)}: predicted {x:.3f}, observed {y:.3f}</title></circle>"
            for x, y in line.points
        ]
    most = max([1, *(rows for _, _, rows in counts)])
    for low, high, rows in counts:
        height = 48 * rows / most
        parts.append(
            f'<rect class="fill b" x="{across(low) + 1:.1f}" y="{318 - height:.1f}" '
            f'width="{across(high) - across(low) - 2:.1f}" height="{height:.1f}">'
            f"<title>{low:.2f} to {high:.2f}: {rows} rows</title></rect>"
        )
    return _svg(parts, 340, title)


def boxes(groups: Sequence[Box], *, low: float, high: float, title: str) -> str:
    """Draw the spread of predictions (5, 25, 50, 75, 95 %) at each true value, and y = x."""
    places = sorted(group.x for group in groups)
    step = min([b - a for a, b in itertools.pairwise(places)], default=1.0)
    across = _Scale(places[0] - step * 0.7, places[-1] + step * 0.7, 46, WIDTH - 14)
    up = _Scale(low, high, 228, 8)
    half = min(18.0, 0.3 * (across(step) - across(0.0)))
    parts = []
    for value in _ticks(low, high, 5):
        y = up(value)
        parts.append(f'<line class="grid" x1="46" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(40, y + 4, f"{value:g}", "end", "faint", "number"))
    first, last = max(low, places[0] - step * 0.5), min(high, places[-1] + step * 0.5)
    parts.append(
        f'<line class="mark" x1="{across(first):.1f}" y1="{up(first):.1f}" '
        f'x2="{across(last):.1f}" y2="{up(last):.1f}"/>'
    )
    for group in groups:
        x = across(group.x)
        q05, q25, q50, q75, q95 = (up(value) for value in group.quantiles)
        parts += [
            f"<g><title>true {group.x:g}: {group.rows} rows, mean prediction {group.mean:.2f}"
            "</title>",
            f'<line class="whisker a" x1="{x:.1f}" x2="{x:.1f}" y1="{q95:.1f}" y2="{q05:.1f}"/>',
            f'<rect class="box" x="{x - half:.1f}" y="{q75:.1f}" width="{2 * half:.1f}" '
            f'height="{max(1.0, q25 - q75):.1f}" rx="2"/>',
            f'<line class="stroke a" x1="{x - half:.1f}" x2="{x + half:.1f}" '
            f'y1="{q50:.1f}" y2="{q50:.1f}"/>',
            f'<circle class="fill d" cx="{x:.1f}" cy="{up(group.mean):.1f}" r="3"/>',
            _text(x, 246, f"{group.x:g}", "middle", "faint", "number"),
            "</g>",
        ]
    return _svg(parts, 252, title)


# ---- parts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scale:
    """Map [low, high] to the places [start, stop], linearly, and what is outside beyond them."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + (self.stop - self.start) * share


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Give round numbers within [low, high], about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if i == 0 else round(i * step, 12) for i in range(first, last + 1)]


def _whisker(row: Bar, scale: _Scale, y: float) -> list[str]:
    if row.low is None or row.high is None:
        return []
    low, high = scale(row.low), scale(row.high)
    ends = "".join(
        f'<line class="whisker {row.series}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4:.1f}" '
        f'y2="{y + 4:.1f}"/>'
        for x in (low, high)
    )
    return [
        f'<line class="whisker {row.series}" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/>{ends}'
    ]


def _told(row: Bar, form: Format) -> str:
    told = f"{row.name or row.label}: {form(row.value)}"
    if row.low is None or row.high is None:
        return told
    return f"{told} [{form(row.low)}, {form(row.high)}]"


def _ink(row: Bar) -> str:
    return "ink" if row.series == "a" else "faint"


def _text(x: float, y: float, text: str, anchor: str, *classes: str) -> str:
    names = " ".join(name for name in classes if name)
    return (
        f'<text class="{names}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    inner = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{inner}</svg>"
    )
