"""Charts of a pruned network, drawn with Pillow, which comes with TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from lightning_coreset.training.report.records import EventRecord

# In pixels; about twice the size in which TensorBoard shows a picture, so that letters stay sharp and readable.
_WIDTH, _HEIGHT = 1000, 480
_MARGIN = 32
_TITLE, _BODY = 38, 34
_TEXT, _FAINT, _RULE, _NOW, _CUT = "#202124", "#5f6368", "#dadce0", "#1967d2", "#e8710a"
_MOST_ROWS = 60


def widths_chart(record: EventRecord) -> Image.Image:
    """Draw a bar for every group: its original channels, and those that are left.

    Args:
        record: The event; the network is shown as it is after it.

    Returns:
        An RGB image of the first 60 groups; others are counted.
    """
    groups, pitch, top = record.groups[:_MOST_ROWS], 48, 130
    hidden = len(record.groups) - len(groups)
    canvas = _Canvas(top + pitch * (len(groups) + bool(hidden)) + _MARGIN)
    canvas.text(_MARGIN, 40, f"Channels left after the event of epoch {record.epoch}", _TITLE)
    canvas.text(_MARGIN, 88, f"{record.sparsity:.1%} of the parameters are gone", color=_FAINT)
    names = [canvas.shortened(group.name, 0.4 * _WIDTH) for group in groups]
    counts = [f"{group.channels} of {group.channels_original}" for group in groups]
    left = 2 * _MARGIN + max(map(canvas.length, names), default=0)
    right = _WIDTH - 2 * _MARGIN - max(map(canvas.length, counts), default=0)
    scale = (right - left) / max((group.channels_original for group in groups), default=1)
    for row, (group, name, count) in enumerate(zip(groups, names, counts, strict=True)):
        y = top + pitch * (row + 0.5)
        canvas.text(left - _MARGIN / 2, y, name, anchor="rm")
        canvas.bar(left, y, scale * group.channels_original, _RULE)
        canvas.bar(left, y, scale * group.channels, _NOW)
        canvas.text(right + _MARGIN / 2, y, count)
    if hidden:
        canvas.text(left, top + pitch * (len(groups) + 0.5), f"and {hidden} more groups", color=_FAINT)
    return canvas.image


def accuracy_chart(records: Sequence[EventRecord], metric: str = "accuracy") -> Image.Image | None:
    """Draw how accuracy fell at every event and recovered with training, against sparsity.

    Args:
        records: All events so far; those that were taken back are not drawn.
        metric: The name of what is measured instead of accuracy, if anything.

    Returns:
        An RGB image, or ``None`` if no accuracy is known.
    """
    known = _points([record for record in records if not record.reverted])
    points = [(x, y, trained) for x, y, trained in known if y is not None and math.isfinite(y)]
    if not points:
        return None
    canvas = _Canvas(_HEIGHT)
    canvas.text(_MARGIN, 40, f"{metric[:1].upper()}{metric[1:]} against sparsity", _TITLE)
    x = _Axis([0.0, *(sparsity for sparsity, _, _ in points)], 150, _WIDTH - 2 * _MARGIN)
    y = _Axis([accuracy for _, accuracy, _ in points], _HEIGHT - 110, 150)
    for tick in y.ticks:
        canvas.line([(x.start, y(tick)), (x.end, y(tick))], _RULE, 2)
        canvas.text(x.start - 16, y(tick), f"{tick:.{y.decimals}f}", color=_FAINT, anchor="rm")
    for tick in x.ticks:
        canvas.line([(x(tick), y.start), (x(tick), y.start + 10)], _RULE, 2)
        canvas.text(x(tick), y.start + 36, f"{tick:.0%}", color=_FAINT, anchor="mm")
    canvas.text((x.start + x.end) / 2, _HEIGHT - 28, "sparsity", color=_FAINT, anchor="mm")
    canvas.line([(x(sparsity), y(accuracy)) for sparsity, accuracy, trained in points if trained], _NOW, 5)
    for (sparsity, accuracy, trained), (_, recovered, _) in zip(points, [*points[1:], points[-1]], strict=True):
        if not trained:
            canvas.line([(x(sparsity), y(accuracy)), (x(sparsity), y(recovered))], _CUT, 3)
    for sparsity, accuracy, trained in points:
        canvas.dot(x(sparsity), y(accuracy), _NOW if trained else _CUT)
    left = float(_MARGIN)
    for label, color in (("right after an event", _CUT), ("after training on", _NOW)):
        canvas.dot(left + 8, 100, color)
        canvas.text(left + 28, 100, label)
        left += 28 + canvas.length(label) + 2 * _MARGIN
    return canvas.image


def _points(records: Sequence[EventRecord]) -> Iterator[tuple[float, float | None, bool]]:
    """Sparsity, accuracy and whether there was training since the last event, in order of time."""
    sparsity = 0.0
    for record in records:
        yield sparsity, record.accuracy_before, True
        sparsity = record.sparsity
        yield sparsity, record.accuracy_after, False
    if records:
        yield sparsity, records[-1].accuracy_recovered, True


class _Axis:
    """Maps values to pixels, with about five round values as ticks.

    Args:
        values: The values that it must contain; it ends at 1 at most if these do.
        start: Its first pixel.
        end: Its last pixel.
    """

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        step = _round_step(max((high - low) / 5, 1e-3 * abs(high), 1e-3))
        last = math.ceil(high / step)
        if high <= 1:
            last = min(last, round(1 / step))
        first = min(math.floor(low / step), last - 1)
        self.ticks = [step * tick for tick in range(first, last + 1)]
        self.decimals = max(0, -math.floor(math.log10(step)))
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        return self.start + (value - first) / (last - first) * (self.end - self.start)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * step)


class _Canvas:
    """A white image, and functions that draw on it."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (_WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self.image)

    def length(self, text: str) -> float:
        """Width of a text in pixels."""
        return self._draw.textlength(text, font=ImageFont.load_default(_BODY))

    def shortened(self, text: str, length: float) -> str:
        """The end of a text that is too long: of a module's name the last part says most."""
        if self.length(text) <= length:
            return text
        end = next(i for i in range(len(text)) if self.length("..." + text[i:]) <= length)
        return "..." + text[end:]

    def text(self, x: float, y: float, text: str, size: int = _BODY, *, color: str = _TEXT, anchor: str = "lm") -> None:
        self._draw.text((x, y), text, fill=color, font=ImageFont.load_default(size), anchor=anchor)

    def bar(self, x: float, y: float, length: float, color: str) -> None:
        self._draw.rectangle((x, y - 14, x + max(length, 2), y + 14), fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: int) -> None:
        if len(points) > 1:  # Pillow fails for none
            self._draw.line(list(points), fill=color, width=width, joint="curve")

    def dot(self, x: float, y: float, color: str) -> None:
        self._draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=color)
