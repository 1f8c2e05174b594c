"""The report of a load run: one HTML file that needs no other, the plots as PNG, and the tables for a terminal."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loadtests import charts
from loadtests.drivers import Run
from loadtests.figures import PERCENTILES, Figures, Level, Offered

TEMPLATE = "report.html"
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """The table in columns of equal width, for a terminal."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )
        return "\n".join([self.title, *aligned])


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot of the report; both versions are SVG in base64."""

    title: str
    caption: str
    light: str
    dark: str


TITLES = {
    "latency-by-users": (
        "Latency against users at once",
        "A closed loop: each user asks again when it has its answer.",
    ),
    "rows-by-users": (
        "Batch occupancy",
        "Rows in a forward pass on average, by the server's own metrics.",
    ),
    "latency-by-rate": (
        "Latency against the offered rate",
        "An open loop: Poisson arrivals that wait for nobody, so that queueing shows.",
    ),
    "goodput-by-rate": (
        "Goodput beyond capacity",
        "Pictures drawn in time by clients that wait a limited time; the rest is refused at once.",
    ),
}


def write(figures: Figures, folder: Path) -> Path:
    """Writes the report and the plots into a folder, and returns the path of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in charts.CHARTS.items():
        folder.joinpath(f"{name}.png").write_bytes(
            charts.rendered(draw(figures, charts.LIGHT), "png")
        )
        versions = (
            base64.b64encode(charts.rendered(draw(figures, theme), "svg")).decode()
            for theme in (charts.LIGHT, charts.DARK)
        )
        drawn.append(Chart(*TITLES[name], *versions))
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    ).get_template(TEMPLATE)
    path = folder / "report.html"
    path.write_text(
        template.render(
            figures=figures,
            today=f"{date.today():%Y-%m-%d}",
            tiles=list(_tiles(figures)),
            charts=drawn,
            tables=_tables(figures),
        )
    )
    return path


def told(figures: Figures) -> str:
    """The tables as text."""
    return "\n\n".join(table.text() for table in _tables(figures))


def _tiles(figures: Figures) -> Iterable[tuple[str, str]]:
    """The figures that matter most, and what they are."""
    yield f"{figures.capacity:.2f}", "pictures a second, the capacity"
    yield f"{figures.lone:.2f} s", "for a lone picture"
    answered = [answer.ok for level in figures.levels for answer in level.run.answers]
    most = max(level.users for level in figures.levels)
    yield (
        _share(sum(answered) / max(1, len(answered))),
        f"of the requests of 1 to {most} users answered",
    )
    if figures.offered:
        storm = max(figures.offered, key=lambda each: each.share)
        kept = storm.goodput / figures.capacity
        yield _share(kept), f"of the capacity drawn while {storm.share:g} times as much is asked"


def _tables(figures: Figures) -> list[Table]:
    times = ("mean, s", *(f"p{percent}, s" for percent in PERCENTILES))
    closed = Table(
        "Users at once",
        f"Each measured for {figures.seconds:g} s, or for as long as it takes to serve each user once. "
        "Rows are those of a forward pass on average; a picture with guidance has two.",
        ("", "users", "requests", "success", *times, "pictures/s", "rows"),
        [_level(level) for transport in figures.transports for level in figures.of(transport)],
    )
    opened = Table(
        "Offered rate",
        f"Poisson arrivals over HTTP, as shares of {figures.capacity:.2f} pictures/s, by clients that wait "
        f"no longer than {figures.patience:.0f} s. Times are those of the pictures.",
        ("offered", "requests", "success", "refused", *times, "drawn/s", "rows"),
        [_offered(offered) for offered in figures.offered],
    )
    return [closed, opened]


def _level(level: Level) -> tuple[str, ...]:
    run = level.run
    return (
        level.transport,
        str(level.users),
        str(len(run.answers)),
        _share(run.success),
        *_times(run),
        f"{run.rate:.2f}",
        _rows(level.rows),
    )


def _offered(offered: Offered) -> tuple[str, ...]:
    run = offered.run
    return (
        f"{offered.share:.0%}",
        str(len(run.answers)),
        _share(run.success),
        _share(offered.refused),
        *_times(run),
        f"{offered.goodput:.2f}",
        _rows(offered.rows),
    )


def _times(run: Run) -> Iterable[str]:
    values = (run.mean, *(run.percentile(percent) for percent in PERCENTILES))
    return (NOTHING if math.isnan(value) else f"{value:.2f}" for value in values)


def _rows(rows: float | None) -> str:
    return NOTHING if rows is None else f"{rows:.1f}"


def _share(share: float) -> str:
    """A share in per cent; 100 % is all of them."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"
