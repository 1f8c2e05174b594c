"""How long a step takes by batch size, measured and kept up to date, and what follows: the batch cap.

The curve of a group is kept at a grid of row counts, filled by the warm-up. A later measurement between two grid
points moves both, the nearer one more, so that the curve follows the machine without forgetting its shape. One far
beyond its end becomes a new point: a warm-up on a busy machine may have given up early.
"""

from __future__ import annotations

from bisect import bisect_left

from text2image.engine.memory import MemoryGuard
from text2image.engine.sample import Group
from text2image.engine.scheduler import Room

# A batch is large enough when its throughput is this share of the best one's. What a smaller batch gives up, everybody
# in a crowd's line waits for.
GOOD_ENOUGH = 0.98
# A cap that was chosen stays until another one is right by so much more. Every change lets some pictures wait as in one
# batch and step as in the other: those that get the worse of both are the last.
CAP_MARGIN = 0.01
# Weight of a new measurement against what was known. Whatever disturbs a step makes it longer, so a shorter one says
# more about the device than a longer one does.
WEIGHT_IF_SHORTER = 0.3
WEIGHT_IF_LONGER = 0.1
# A batch whose step takes longer is not worth having: cancelling and joining would be sluggish.
MAX_STEP_SECONDS = 1.0
# A batch this much larger than the grid's last one is a point of its own.
NEW_POINT = 1.5
# How many measurements the warm-up's of a size counts for, as it may have been disturbed, and how many are remembered.
WARM_UP_COUNT = 1.0
MOST_COUNT = 50.0
# Every so many steps the next larger batch is tried: a first measurement that was disturbed must not stand for ever.
STEPS_BETWEEN_TRIALS = 25
# Steps without trouble at a lowered cap before it is raised again.
STEPS_BEFORE_RAISE = 200
# What the drag remembers: each tick weighs a little less than the next, and the first ones count as undisturbed.
DRAG_MEMORY = 0.98
FIRST_TICKS = 10


class Curve:
    """Seconds of one step by rows: linear between the points of a grid, in proportion beyond its end."""

    def __init__(self, points: dict[int, float]) -> None:
        self.rows = sorted(points)
        self.seconds = [points[rows] for rows in self.rows]
        self._fastest = list(self.seconds)
        self._counts = [WARM_UP_COUNT] * len(self.rows)
        self._knee = self._smallest(GOOD_ENOUGH)

    def at(self, rows: float) -> float:
        """Predicted seconds of a step with this many rows; fractions stand for smaller pictures."""
        return self._interpolate(self.seconds, rows)

    def at_best(self, rows: float) -> float:
        """The same at the fastest that this device has shown itself to be."""
        return self._interpolate(self._fastest, rows)

    def _interpolate(self, seconds: list[float], rows: float) -> float:
        if rows <= self.rows[0]:
            # A step has a fixed overhead that no smaller batch escapes.
            return seconds[0]
        if rows >= self.rows[-1]:
            # Nothing is known there, so nothing is gained there.
            return seconds[-1] * rows / self.rows[-1]
        right = bisect_left(self.rows, rows)
        low, high = self.rows[right - 1], self.rows[right]
        share = (rows - low) / (high - low)
        return seconds[right - 1] * (1 - share) + seconds[right] * share

    def learn(self, rows: int, seconds: float) -> None:
        """Moves all points towards a measurement, and the neighbouring ones more.

        A device that slows down does so at every batch size. Were only the sizes in use to follow, the others would
        look the better for it, and the cap would go to a size that nobody has measured since. So how fast all of them
        are follows the last few steps, and how a size stands to the others is a mean: the more often it was measured,
        the less of what is new there is its own.
        """
        if rows >= NEW_POINT * self.rows[-1]:
            self._append(rows, seconds)
            return
        ratio = seconds / self.at(rows)
        rate = WEIGHT_IF_SHORTER if ratio < 1 else WEIGHT_IF_LONGER
        near = [
            (point, weight, weight / (1 + self._counts[point]))
            for point, weight in self._neighbours(rows)
        ]
        common = ratio ** (rate * (1 - sum(own for _, _, own in near)))
        self.seconds = [known * common for known in self.seconds]
        for point, weight, own in near:
            self.seconds[point] *= ratio ** (own * rate / WEIGHT_IF_SHORTER)
            self._fastest[point] = min(self._fastest[point], self.seconds[point])
            self._counts[point] = min(MOST_COUNT, self._counts[point] + weight)
        self._move_knee()

    def _append(self, rows: int, seconds: float) -> None:
        self.rows.append(rows)
        self.seconds.append(seconds)
        self._fastest.append(seconds)
        self._counts.append(WARM_UP_COUNT)
        self._move_knee()

    def _neighbours(self, rows: int) -> list[tuple[int, float]]:
        right = bisect_left(self.rows, rows)
        if right == len(self.rows):
            return [(right - 1, 1.0)]
        if right == 0 or self.rows[right] == rows:
            return [(right, 1.0)]
        low, high = self.rows[right - 1], self.rows[right]
        share = (rows - low) / (high - low)
        return [(right - 1, 1 - share), (right, share)]

    def knee(self) -> int:
        """The smallest grid batch whose throughput is within 2 % of the best, give or take the margin."""
        return self._knee

    def _move_knee(self) -> None:
        """A larger batch must be needed by the margin, and a smaller one must do by the margin."""
        if self._knee < self._smallest(GOOD_ENOUGH - CAP_MARGIN):
            self._knee = self._smallest(GOOD_ENOUGH)
        else:
            self._knee = min(self._knee, self._smallest(GOOD_ENOUGH + CAP_MARGIN))

    def _smallest(self, share: float) -> int:
        """The smallest grid batch whose throughput is this share of the best."""
        rates = [rows / seconds for rows, seconds in zip(self.rows, self.seconds, strict=True)]
        enough = share * max(rates)
        return next(rows for rows, rate in zip(self.rows, rates, strict=True) if rate >= enough)

    def after(self, rows: int) -> int:
        """The next larger batch: of the grid, beyond its end a doubled one, and the same if that took too long."""
        if larger := next((known for known in self.rows if known > rows), 0):
            return larger
        return 2 * rows if self.at(2 * rows) <= MAX_STEP_SECONDS else rows

    def scaled(self, ratio: float) -> Curve:
        """The curve of pictures with `ratio` times the pixels: a row costs as much as `ratio` rows here."""
        return Curve({rows: self.at(rows * ratio) for rows in self.rows})


class StepCosts:
    """Step and decode times of every group, and the batch caps that follow from them.

    Written by the engine's thread. Other threads may read: they look up what is there, and what they derive from it is
    forgotten with it.
    """

    def __init__(
        self,
        reference: Group,
        points: dict[int, float],
        *,
        max_rows: int,
        decode_seconds: float,
        memory: MemoryGuard | None = None,
    ) -> None:
        """Starts from the warm-up's measurements on `reference`.

        Args:
            points: seconds of one step by rows.
            max_rows: a cap that is never exceeded, whatever is measured.
            decode_seconds: seconds to decode one picture.
            memory: what bounds the caps besides.
        """
        self._reference = reference
        self._curves = {reference: Curve(points)}
        # By area, of sizes that have not stepped yet.
        self._scaled: dict[int, Curve] = {}
        self._max_rows = max_rows
        self._decode_seconds = decode_seconds
        self._memory = memory or MemoryGuard()
        self._limits: dict[Group, int] = {}
        self._calm: dict[Group, int] = {}
        self._until_trial: dict[Group, int] = {}
        self._predicted_seconds = self._real_seconds = FIRST_TICKS * max(points.values())

    @property
    def drag(self) -> float:
        """Seconds on the clock for each second of predicted work.

        The curves believe fast measurements sooner than slow ones, and know of nothing but steps and decoding. This
        holds all the rest: other processes, encoding prompts, the steps' own bookkeeping, the gaps in between.
        """
        return self._real_seconds / self._predicted_seconds

    def seconds(self, group: Group, rows: int) -> float:
        """Predicted seconds of one step of a batch with this many rows."""
        return self._curve(group).at(rows)

    def best_seconds(self, group: Group, rows: int) -> float:
        """The same at the fastest that was ever measured."""
        known = self._curves.get(group)
        if known:
            return known.at_best(rows)
        return self._curves[self._reference].at_best(rows * group.area / self._reference.area)

    def decode_seconds(self, group: Group) -> float:
        """Predicted seconds to decode one picture."""
        return self._decode_seconds * group.area / self._reference.area

    def cap(self, group: Group) -> int:
        """Rows of the largest batch that pays off and fits; never below 2, one guided sample."""
        curve = self._curves.get(group)
        if curve is None:
            reference = self._curves[self._reference].knee()
            knee = int(reference * self._reference.area / group.area)
        else:
            knee = curve.knee()
        return max(2, min(knee, self._highest(group)))

    def _highest(self, group: Group) -> int:
        limit = self._limits.get(group, self._max_rows)
        return min(self._max_rows, limit, self._memory.rows(group))

    def room(self, group: Group) -> Room:
        """The rows of the very next step: now and then a larger batch than pays off by what is known is tried."""
        cap = self.cap(group)
        return Room(cap, most=max(2, self._highest(group)), trial=self._trial(group, cap))

    def _trial(self, group: Group, cap: int) -> int:
        left = self._until_trial.get(group, STEPS_BETWEEN_TRIALS)
        self._until_trial[group] = left - 1 if left else STEPS_BETWEEN_TRIALS
        if left or group not in self._curves:
            return 0
        return self._curves[group].after(cap)

    def observe_step(self, group: Group, rows: int, seconds: float) -> None:
        """Learns from a step that went well, and lifts a lowered cap after many of them."""
        if group not in self._curves:
            # Its own from here on: what others derived for another size of this area stays as it is.
            self._curves[group] = self._derived(group)
        self._curves[group].learn(rows, seconds)
        if group == self._reference:
            # Anew, not emptied: a reader that is just deriving from the old curve puts it into the old ones.
            self._scaled = {}
        limit = self._limits.get(group)
        if limit is not None and rows >= limit - 1:
            self._calm[group] = self._calm.get(group, 0) + 1
            if self._calm[group] >= STEPS_BEFORE_RAISE:
                self._calm[group] = 0
                self._limits[group] = limit + 2

    def observe_decode(self, group: Group, samples: int, seconds: float) -> None:
        """Learns from a decode that went well."""
        measured = seconds / samples * self._reference.area / group.area
        self._decode_seconds += WEIGHT_IF_LONGER * (measured - self._decode_seconds)

    def observe_tick(self, predicted: float, seconds: float) -> None:
        """Learns how long work took that was predicted to take `predicted` seconds."""
        self._predicted_seconds = DRAG_MEMORY * self._predicted_seconds + predicted
        self._real_seconds = DRAG_MEMORY * self._real_seconds + seconds

    def lower_cap(self, group: Group, failed_rows: int) -> None:
        """Remembers that a batch of this many rows did not fit."""
        self._limits[group] = max(2, failed_rows // 2)
        self._calm[group] = 0

    def _curve(self, group: Group) -> Curve:
        if known := self._curves.get(group):
            return known
        scaled = self._scaled
        if group.area not in scaled:
            scaled[group.area] = self._derived(group)
        return scaled[group.area]

    def _derived(self, group: Group) -> Curve:
        return self._curves[self._reference].scaled(group.area / self._reference.area)
