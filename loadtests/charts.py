"""The plots of a load run, each in a light and in a dark version."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from loadtests.figures import Figures

SIZE = (7.2, 3.9)
# Beyond the capacity latency says little: it is what clients are willing to wait.
WITHIN_CAPACITY = 1.0


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one version. The background is the page's."""

    background: str
    text: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme("#ffffff", "#3b424c", "#e3e7ec", ("#2166ac", "#c2570c", "#2e7d4f", "#8a4fa3"))
DARK = Theme("#14181f", "#c3cad4", "#2b323d", ("#6cb0f2", "#f39a55", "#6cc592", "#c99be0"))


def latency_by_users(figures: Figures, theme: Theme) -> Figure:
    """Median and 95th percentile against the users at once, of each transport."""
    figure, axes = _axes(theme, "users at once", "seconds")
    for transport, colour in zip(figures.transports, theme.lines, strict=False):
        levels = figures.of(transport)
        users = [level.users for level in levels]
        for percent, style in ((50, "-"), (95, "--")):
            seconds = [level.run.percentile(percent) for level in levels]
            label = f"{transport}, p{percent}"
            axes.plot(users, seconds, style, marker="o", ms=4.5, color=colour, label=label)
    _logarithmic(axes, sorted({level.users for level in figures.levels}))
    _legend(axes, theme)
    return figure


def rows_by_users(figures: Figures, theme: Theme) -> Figure:
    """Rows of a forward pass against the users at once, of each transport that shows its metrics."""
    figure, axes = _axes(theme, "users at once", "rows in a forward pass")
    for transport, colour in zip(figures.transports, theme.lines, strict=False):
        known = [level for level in figures.of(transport) if level.rows is not None]
        users, rows = [level.users for level in known], [level.rows for level in known]
        axes.plot(users, rows, marker="o", ms=4.5, color=colour, label=transport)
    _logarithmic(axes, sorted({level.users for level in figures.levels}))
    _legend(axes, theme)
    return figure


def latency_by_rate(figures: Figures, theme: Theme) -> Figure:
    """Percentiles against the offered rate, as far as the capacity."""
    figure, axes = _axes(theme, "offered, share of the capacity", "seconds")
    offered = [each for each in figures.offered if each.share <= WITHIN_CAPACITY]
    shares = [each.share for each in offered]
    for percent, colour in zip((50, 95, 99), theme.lines, strict=False):
        seconds = [each.run.percentile(percent) for each in offered]
        axes.plot(shares, seconds, marker="o", ms=4.5, color=colour, label=f"p{percent}")
    axes.axhline(figures.lone, color=theme.text, lw=1, ls=":", label="a lone picture")
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    _legend(axes, theme)
    return figure


def goodput_by_rate(figures: Figures, theme: Theme) -> Figure:
    """Pictures drawn in time against what was offered, as far beyond the capacity as was measured."""
    figure, axes = _axes(theme, "offered ÷ capacity", "drawn in time ÷ capacity")
    shares = [each.share for each in figures.offered]
    drawn = [each.goodput / figures.capacity for each in figures.offered]
    ideal = sorted({0.0, 1.0, *shares})
    axes.plot(
        ideal, [min(1.0, share) for share in ideal], ls=":", color=theme.text, label="the ideal"
    )
    axes.plot(shares, drawn, marker="o", ms=4.5, color=theme.lines[0], label="measured")
    _legend(axes, theme)
    return figure


# By the name of the file.
CHARTS: dict[str, Callable[[Figures, Theme], Figure]] = {
    "latency-by-users": latency_by_users,
    "rows-by-users": rows_by_users,
    "latency-by-rate": latency_by_rate,
    "goodput-by-rate": goodput_by_rate,
}


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as a file: `png`, or `svg` with its letters as shapes, which looks the same everywhere."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "text2image"}):
        figure.savefig(
            buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
        )
    return buffer.getvalue()


def _axes(theme: Theme, across: str, up: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained", facecolor=theme.background)
    axes = figure.add_subplot(facecolor=theme.background)
    axes.set_xlabel(across, color=theme.text)
    axes.set_ylabel(up, color=theme.text)
    axes.tick_params(colors=theme.text, length=0)
    axes.grid(color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _logarithmic(axes: Any, ticks: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def _legend(axes: Any, theme: Theme) -> None:
    # Once everything is drawn: what is drawn later would not move the upper limit.
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=theme.text)
