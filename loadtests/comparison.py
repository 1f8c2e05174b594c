"""What the side-by-side comparison measures, its ratios, and the page that tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loadtests.drivers import Run, together
from loadtests.pages import ranged, spread, table

OURS = "this service"
# A ratio this close to 1 tells nothing.
MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class Load:
    """What a server is put under: clients who wait for their answers, or arrivals at a share of our capacity."""

    clients: int = 0
    share: float = 0.0

    @property
    def name(self) -> str:
        if self.share:
            return f"{self.share:.0%} of capacity"
        return f"{self.clients} client{'s' if self.clients > 1 else ''}"


@dataclass(frozen=True, slots=True)
class Mix:
    """The step counts of the requests, each as likely."""

    name: str
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a run. `better` is 1 where larger ones are, and -1 where smaller ones are."""

    name: str
    of: Callable[[Run], float]
    better: int


MEASURES = (
    Measure("pictures/s", lambda run: run.rate, 1),
    Measure("p50", lambda run: run.percentile(50), -1),
    Measure("p95", lambda run: run.percentile(95), -1),
    Measure("p99", lambda run: run.percentile(99), -1),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours ÷ theirs over all rounds that both were measured in, and in each of them."""

    mix: Mix
    load: Load
    server: str
    measure: Measure
    overall: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return ranged(self.overall, self.values)

    @property
    def lost(self) -> bool:
        """Whether theirs is better by more than the margin."""
        if self.measure.better > 0:
            return self.overall < 1 - MARGIN
        return self.overall > 1 + MARGIN

    @property
    def always_lost(self) -> bool:
        """Whether theirs is better in every round, so that it is hardly chance."""
        return len(self.values) > 1 and all(
            (value < 1) == (self.measure.better > 0) and value != 1 for value in self.values
        )


@dataclass(slots=True)
class Comparison:
    """All that was measured.

    Attributes:
        capacity: our pictures per second when saturated, by the mix's name.
        runs: of a mix, a load and a server, by the number of the round.
        lone: the bare pipeline's seconds for one picture in process, by mix, a value for each round.
        limit: its pictures per second in batches of `batch`, by mix, a value for each round.
    """

    batch: int
    capacity: dict[str, float] = field(default_factory=dict)
    runs: dict[tuple[Mix, Load, str], dict[int, Run]] = field(default_factory=dict)
    lone: dict[str, list[float]] = field(default_factory=dict)
    limit: dict[str, list[float]] = field(default_factory=dict)

    def add(self, mix: Mix, load: Load, server: str, number: int, run: Run) -> None:
        self.runs.setdefault((mix, load, server), {})[number] = run

    @property
    def mixes(self) -> list[Mix]:
        return list(dict.fromkeys(mix for mix, _, _ in self.runs))

    def loads(self, mix: Mix) -> list[Load]:
        """Those that were measured: clients first, the fewest of them before."""
        loads = {load for one, load, _ in self.runs if one == mix}
        return sorted(loads, key=lambda load: (load.share, load.clients))

    @property
    def servers(self) -> list[str]:
        return list(dict.fromkeys(server for _, _, server in self.runs))

    def ratios(self, mix: Mix) -> Iterator[Ratio]:
        """Every ratio of a mix, over the same rounds for both, so that a machine that slows down slows both.

        A round in which one of them drew nothing has none; the figures show its success.
        """
        for load in self.loads(mix):
            ours = self.runs.get((mix, load, OURS), {})
            for server in self.servers:
                theirs = self.runs.get((mix, load, server), {})
                both = [
                    number
                    for number in sorted(ours.keys() & theirs.keys())
                    if ours[number].success and theirs[number].success
                ]
                if server == OURS or not both:
                    continue
                pairs = [(ours[number], theirs[number]) for number in both]
                all_of_ours, all_of_theirs = map(together, zip(*pairs, strict=True))
                for measure in MEASURES:
                    overall = measure.of(all_of_ours) / measure.of(all_of_theirs)
                    values = tuple(measure.of(mine) / measure.of(other) for mine, other in pairs)
                    yield Ratio(mix, load, server, measure, overall, values)


def page(comparison: Comparison, head: str) -> str:
    """The comparison in Markdown. `head` tells where and how it was measured."""
    parts = [f"# Side by side\n\n{head}\n", _verdict(comparison), _limit(comparison)]
    for mix in comparison.mixes:
        parts += [_figures(comparison, mix), _ratios(comparison, mix)]
    return "\n".join(parts)


def _verdict(comparison: Comparison) -> str:
    ratios = [ratio for mix in comparison.mixes for ratio in comparison.ratios(mix)]
    lost = [ratio for ratio in ratios if ratio.lost]
    if not lost:
        told = (
            f"In none of the {len(ratios)} ratios below is another server better by more than "
            f"{MARGIN:.0%}.\n"
        )
    else:
        lines = "\n".join(
            f"- {ratio.mix.name}, {ratio.load.name}: {ratio.server}, {ratio.measure.name}: "
            f"ours ÷ theirs {ratio}{', in every round' if ratio.always_lost else ''}"
            for ratio in lost
        )
        always = sum(ratio.always_lost for ratio in lost)
        told = (
            f"Better by more than {MARGIN:.0%}, in {len(lost)} of {len(ratios)} ratios, {always} of them in "
            f"every round that was measured:\n\n{lines}\n"
        )
    return f"## Where another one wins\n\n{told}"


def _limit(comparison: Comparison) -> str:
    rows = []
    for mix in comparison.mixes:
        lone, limit = comparison.lone.get(mix.name, []), comparison.limit.get(mix.name, [])
        served = comparison.capacity.get(mix.name)
        if not (lone and limit and served):
            continue
        share = [served / value for value in limit]
        rows.append((mix.name, spread(lone), spread(limit), f"{served:.2f}", spread(share)))
    head = (
        "steps",
        "one picture, s",
        f"pictures/s in batches of {comparison.batch}",
        "this service, saturated",
        "÷ the pipeline",
    )
    return f"""## The limit: the bare pipeline in process

Without a server, each step count in batches of its own.

{table(head, rows)}
"""


def _figures(comparison: Comparison, mix: Mix) -> str:
    rows = []
    for load in comparison.loads(mix):
        for server in comparison.servers:
            runs = list(comparison.runs.get((mix, load, server), {}).values())
            if runs:
                cells = (
                    ranged(measure.of(together(runs)), [measure.of(run) for run in runs])
                    for measure in MEASURES
                )
                success = min(run.success for run in runs)
                rows.append((load.name, server, *cells, f"{success:.0%}", len(runs)))
    names = ("pictures/s", "p50, s", "p95, s", "p99, s", "success", "rounds")
    return f"## {mix.name}\n\n{table(('load', 'server', *names), rows)}\n"


def _ratios(comparison: Comparison, mix: Mix) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for ratio in comparison.ratios(mix):
        cells = rows.setdefault((ratio.load.name, ratio.server), [])
        cells.append(f"**{ratio}**" if ratio.lost else str(ratio))
    names = (f"{measure.name}{' ↑' if measure.better > 0 else ' ↓'}" for measure in MEASURES)
    lines = [(*names_of, *cells) for names_of, cells in rows.items()]
    return f"""### Ours ÷ theirs, {mix.name}

More than 1 is better for us under ↑, less than 1 under ↓; where theirs is better the figure is bold.

{table(("load", "against", *names), lines)}
"""
