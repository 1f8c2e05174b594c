"""What was measured on a GPU, as tables in Markdown. Whatever is missing is left out, or told as what went wrong."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, Any]

BARE = "bare pipeline"
# Sections of networks alone: the model, and the section.
NETWORKS = (
    ("SD 1.5", "steps"),
    ("SD 1.5", "compiled steps"),
    ("SDXL", "sdxl steps"),
    ("SDXL", "compiled sdxl steps"),
)
BOUNDS = ("20", "10")


def page(results: Figures) -> str:
    """All that is known of a run."""
    return (
        f"# On a GPU\n\n{results['measured']}, {results['machine']}.\n\n"
        f"{tables(results['figures'])}\n"
    )


def tables(figures: Figures) -> str:
    """The tables, without a heading."""
    sections = figures["sections"]
    told = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    parts = [
        f"Random weights, models of {figures['size']} size; {told}.",
        _tests(sections.get("tests", {})),
        *_networks(sections),
        *_served(sections),
        _poisson(_figures(sections, "served")),
        _errors(figures),
    ]
    return "\n\n".join(part for part in parts if part)


def _figures(sections: Figures, name: str) -> Figures:
    found: Figures = sections.get(name, {}).get("figures", {})
    return found


def _tests(section: Figures) -> str:
    found = section.get("figures")
    if not found:
        return ""
    names = f": {', '.join(found['names'])}" if found["names"] else ""
    return (
        f"The engine's tests on the device: {found['passed']} passed, {found['failed']} failed{names}, "
        f"{found['skipped']} skipped, {found['seconds']:.0f} s."
    )


def _networks(sections: Figures) -> Iterator[str]:
    """Milliseconds by rows, one column for each way, and the same for decoding, where rows are pictures."""
    for model in dict.fromkeys(model for model, _ in NETWORKS):
        series: Figures = {}
        for name, section in NETWORKS:
            if name == model:
                series |= _figures(sections, section)
        for is_decoding, title in ((False, "a step of the network, ms"), (True, "decoding, ms")):
            chosen = {
                name: points
                for name, points in series.items()
                if name.startswith("decoding") is is_decoding
            }
            if chosen:
                yield f"{model}, {title}:\n\n{_by_rows(chosen, 'pictures' if is_decoding else 'rows')}"


def _by_rows(series: dict[str, Figures], unit: str) -> str:
    rows = sorted({int(row) for points in series.values() for row in points})
    first, *_ = series
    peaks = {row: series[first].get(str(row), {}).get("peak") for row in rows}
    lines = [
        (
            row,
            *(_cell(points.get(str(row), {}).get("ms")) for points in series.values()),
            _cell(peaks[row], 0),
        )
        for row in rows
    ]
    return _table((unit, *series, f"memory, MiB ({first})"), lines)


def _served(sections: Figures) -> Iterator[str]:
    """Ratios to the bare pipeline; then the server's own figures, as it is and compiled."""
    served = _figures(sections, "served")
    ratios = [*_lone_ratios(served), *_saturated_ratios(served)]
    if ratios:
        yield f"The server with SD 1.5 beside the bare pipeline:\n\n{_table(('ratio', 'measured', 'aim'), ratios)}"
    both = {"eager": served, "compiled": _figures(sections, "compiled served")}
    rows = [(name, *_server(found)) for name, found in both.items() if found]
    head = (
        "server",
        "start, s",
        "lone over HTTP, s",
        "saturated over HTTP, pictures/s",
        "cap, rows",
        "mean rows",
        "memory held, MiB",
        "least free, MiB",
        "steps of the warm-up, ms by rows",
        "busy until compiled, s by rows",
    )
    if rows:
        yield _table(head, rows)


def _server(found: Figures) -> list[str]:
    def median(kind: str) -> float | None:
        values = found.get(kind, {}).get("HTTP")
        return statistics.median(values) if values else None

    steps = ", ".join(f"{rows}: {each:g}" for rows, each in found.get("steps", {}).items())
    return [
        _cell(found.get("start"), 0),
        _cell(median("lone"), 3),
        _cell(median("saturated")),
        _cell(found.get("cap"), 0),
        _cell(found.get("rows"), 1),
        _cell(found.get("used"), 0),
        _cell(found.get("free"), 0),
        steps,
        ", ".join(f"{rows}: {each:.0f}" for rows, each in found.get("compiling", {}).items()),
    ]


def _lone_ratios(served: Figures) -> Iterator[tuple[str, str, str]]:
    lone = served.get("lone", {})
    for name, values in lone.items():
        if name != BARE and BARE in lone:
            shares = [one / other for one, other in zip(values, lone[BARE], strict=False)]
            yield f"lone over {name} ÷ {BARE}", _spread(shares), "≤ 1.05"


def _saturated_ratios(served: Figures) -> Iterator[tuple[str, str, str]]:
    saturated = served.get("saturated", {})
    bare = {name: values for name, values in saturated.items() if name.startswith(BARE)}
    if not bare:
        return
    best = max(bare, key=lambda name: statistics.median(bare[name]))
    for name, values in saturated.items():
        if name not in bare:
            shares = [one / other for one, other in zip(values, bare[best], strict=False)]
            yield f"saturated over {name} ÷ best {best}", _spread(shares), "≥ 1.0"


def _poisson(served: Figures) -> str:
    turns = served.get("Poisson", {}).get("turns", [])
    if not turns or not turns[0].get("runs"):
        return ""
    turn = turns[0]
    found = ", ".join(
        f"{_cell(turn['highest'][bound]) if turn['highest'][bound] else 'none'} within {bound} × lone"
        for bound in BOUNDS
        if bound in turn["highest"]
    )
    lines = [
        (f"{float(share):.0%}", run["requests"], f"{run['success']:.0%}", _cell(run["p99"]))
        for share, run in sorted(turn["runs"].items(), key=lambda item: float(item[0]))
    ]
    return (
        f"Poisson arrivals over HTTP, {served['Poisson']['seconds']:g} s each; highest rate ÷ saturation: "
        f"{found or 'not found in time'}.\n\n"
        + _table(("offered", "requests", "success", "p99, s"), lines)
    )


def _errors(figures: Figures) -> str:
    lines = []
    if figures["missing"]:
        lines.append(f"- missing packages: {', '.join(figures['missing'])}")
    for name, section in figures["sections"].items():
        if "error" in section:
            lines.append(f"- {name}: {' '.join(section['error'].split())}")
        for part, error in section.get("errors", {}).items():
            lines.append(f"- {name}, {part}: {' '.join(error.split())}")
    return "What went wrong:\n\n" + "\n".join(lines) if lines else ""


def _cell(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _spread(values: list[float]) -> str:
    told = f"{statistics.median(values):.2f}"
    return told if len(values) == 1 else f"{told} ({min(values):.2f} to {max(values):.2f})"


def _table(head: Any, rows: Any) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
