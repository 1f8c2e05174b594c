"""How long a step takes by batch size, measured and kept up to date, and what follows: the batch cap.

Rows are counted in plain ones here: one that carries a load of 1.35 is 1.35 rows. Only memory counts them as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from text2image.engine.memory import MemoryGuard
from text2image.engine.sample import BatchKey
from text2image.engine.scheduler import BatchLimits

# A batch is large enough when its throughput is this share of the best one's. What a smaller batch gives up, everybody
# who waits in a crowd waits for.
GOOD_ENOUGH = 0.98
# A cap that was chosen stays until another one is right by so much more: every change lets some pictures wait as in one
# batch and step as in the other.
CAP_MARGIN = 0.01
# Weight of a new measurement against what was known.
WEIGHT = 0.2
# A batch whose step takes longer is not worth having: cancelling and joining would be sluggish.
MAX_STEP_SECONDS = 1.0
# A batch this much larger than the largest known one is a point of its own.
NEW_POINT = 1.5
# How many measurements the warm-up's of a size counts for, and how many are remembered.
WARM_UP_COUNT = 3
MOST_COUNT = 50
# Every so many steps the next larger batch is probed: a first measurement that was disturbed must not stand for ever.
STEPS_BETWEEN_PROBES = 200
# Steps without trouble at a lowered cap before it is raised again.
STEPS_BEFORE_RAISE = 200
# What the overhead remembers: each tick weighs a little less than the next, and the first ones count as undisturbed.
OVERHEAD_MEMORY = 0.98
FIRST_TICKS = 10


@dataclass(frozen=True, slots=True)
class _Point:
    """Seconds of a step with so many rows, as they are now and at the least, and how often they were measured."""

    rows: float
    seconds: float
    fastest: float
    count: int = WARM_UP_COUNT

    def moved(self, factor: float, count: int) -> _Point:
        seconds = self.seconds * factor
        return _Point(self.rows, seconds, min(self.fastest, seconds), min(MOST_COUNT, count))


class Curve:
    """Seconds of one step by rows: linear between the measured points, in proportion beyond the last one.

    One thread learns, any may read: the points are replaced as a whole and never changed.
    """

    def __init__(self, points: dict[float, float]) -> None:
        self._points = tuple(_Point(rows, points[rows], points[rows]) for rows in sorted(points))
        self.best_rows = self._smallest(GOOD_ENOUGH)

    def at(self, rows: float, *, best: bool = False) -> float:
        """Predicted seconds of a step with this many rows; fractions stand for smaller pictures.

        `best` is the same at the fastest that this device has shown itself to be.
        """
        points = self._points
        seconds = [point.fastest if best else point.seconds for point in points]
        if rows <= points[0].rows:
            # A step has a fixed overhead that no smaller batch escapes.
            return seconds[0]
        if rows >= points[-1].rows:
            # Nothing is known there, so nothing is gained there.
            return seconds[-1] * rows / points[-1].rows
        right = bisect_left(points, rows, key=lambda point: point.rows)
        low, high = points[right - 1].rows, points[right].rows
        share = (rows - low) / (high - low)
        return seconds[right - 1] * (1 - share) + seconds[right] * share

    def learn(self, rows: float, seconds: float) -> None:
        """Moves all points towards a measurement, and the nearest one more.

        A device that slows down does so at every batch size. Were only the sizes in use to follow, the others would
        look the better for it, and the cap would go to a size that nobody has measured since. So how fast all of them
        are follows the last few steps, and how a size stands to the others is a mean: the more often it was measured,
        the less of what is new there is its own.
        """
        points = self._points
        if rows >= NEW_POINT * points[-1].rows:
            self._points = (*points, _Point(rows, seconds, seconds))
        else:
            ratio = seconds / self.at(rows)
            nearest = min(points, key=lambda point: abs(point.rows - rows))
            own = 1 / (1 + nearest.count)
            common = ratio ** (WEIGHT * (1 - own))
            self._points = tuple(
                point.moved(common * ratio**own, point.count + 1)
                if point is nearest
                else point.moved(common, point.count)
                for point in points
            )
        # A larger batch must be needed by the margin, and a smaller one must do by the margin.
        if self.best_rows < self._smallest(GOOD_ENOUGH - CAP_MARGIN):
            self.best_rows = self._smallest(GOOD_ENOUGH)
        else:
            self.best_rows = min(self.best_rows, self._smallest(GOOD_ENOUGH + CAP_MARGIN))

    def _smallest(self, share: float) -> float:
        """The smallest measured batch whose throughput is this share of the best."""
        enough = share * max(point.rows / point.seconds for point in self._points)
        return next(point.rows for point in self._points if point.rows / point.seconds >= enough)

    def after(self, rows: float) -> float:
        """The next larger batch: a measured one, beyond the last a doubled one, and the same if that took too long."""
        for point in self._points:
            if point.rows > rows:
                return point.rows
        return 2 * rows if self.at(2 * rows) <= MAX_STEP_SECONDS else rows

    def scaled(self, ratio: float) -> Curve:
        """The curve of a key with `ratio` times the size: a row costs as much as `ratio` rows here."""
        return Curve({point.rows: self.at(point.rows * ratio) for point in self._points})


@dataclass(slots=True)
class _ModelCosts:
    """What the warm-up measured of one model, kept up to date.

    Attributes:
        reference: the key that it was measured on; those that were not follow from it by their size.
        max_rows: a cap that is never exceeded, whatever is measured.
        decode_seconds, encode_seconds: of one picture of the reference, and of its prompt, as a mean over all of them:
            one that was seen before takes next to nothing.
    """

    reference: BatchKey
    max_rows: int
    decode_seconds: float
    encode_seconds: float


class StepCosts:
    """Step and decode times of every key, and the batch caps that follow. Written by the engine's thread alone."""

    def __init__(
        self,
        reference: BatchKey,
        points: dict[float, float],
        *,
        max_rows: int,
        decode_seconds: float,
        encode_seconds: float = 0.0,
        memory: MemoryGuard | None = None,
    ) -> None:
        """Starts from the warm-up's measurements on `reference`, of one model.

        Args:
            points: seconds of one step by rows.
            max_rows: a cap that is never exceeded, whatever is measured.
            decode_seconds: seconds to decode one picture.
            encode_seconds: seconds to encode the prompt of one.
            memory: what bounds the caps besides.
        """
        self._models = {
            reference.model: _ModelCosts(reference, max_rows, decode_seconds, encode_seconds)
        }
        self._curves = {reference: Curve(points)}
        self._memory = memory or MemoryGuard()
        # Caps that were lowered for want of memory, and the steps since.
        self._lowered: dict[BatchKey, int] = {}
        self._calm: dict[BatchKey, int] = {}
        self._until_probe: dict[BatchKey, int] = {}
        self._predicted_seconds = self._real_seconds = FIRST_TICKS * max(points.values())

    def adopt(self, other: StepCosts) -> None:
        """Takes in what was measured of other models, in place of what was known of them."""
        for key in [key for key in self._curves if key.model in other._models]:
            for known in (self._lowered, self._calm, self._until_probe):
                known.pop(key, None)
        kept = {key: curve for key, curve in self._curves.items() if key.model not in other._models}
        # In this order: who reads meanwhile finds a curve for every model that it finds.
        self._curves = kept | other._curves
        self._models |= other._models

    @property
    def overhead(self) -> float:
        """Seconds on the clock for each second of predicted work.

        What is predicted knows of nothing but encoding, steps and decoding. This holds all the rest: previews, the
        steps' own bookkeeping, what other processes take.
        """
        return self._real_seconds / self._predicted_seconds

    def seconds(self, key: BatchKey, rows: float, *, best: bool = False) -> float:
        """Predicted seconds of one step of a batch with this many rows; `best`: the fastest that was ever measured."""
        if known := self._curves.get(key):
            return known.at(rows, best=best)
        return self._reference_curve(key).at(rows * self._scale(key), best=best)

    def decode_seconds(self, key: BatchKey) -> float:
        """Predicted seconds to decode one picture."""
        return self._models[key.model].decode_seconds * self._scale(key)

    def encode_seconds(self, key: BatchKey) -> float:
        """Predicted seconds to encode the prompt of one picture."""
        return self._models[key.model].encode_seconds

    def cap(self, key: BatchKey) -> int:
        """Rows of the largest batch that pays off and fits; never below 2, one guided sample."""
        if known := self._curves.get(key):
            rows = known.best_rows
        else:
            rows = self._reference_curve(key).best_rows / self._scale(key)
        return max(2, min(int(rows), self._highest(key)))

    def limits(self, key: BatchKey) -> BatchLimits:
        """The rows of the very next step: now and then more than pays off by what is known, to measure that."""
        start: float = self.cap(key)
        left = self._until_probe.get(key, STEPS_BETWEEN_PROBES)
        self._until_probe[key] = left - 1 if left else STEPS_BETWEEN_PROBES
        if not left and key in self._curves:
            start = self._curves[key].after(start)
        return BatchLimits(int(start), fit=max(2, self._highest(key)))

    def observe_step(self, key: BatchKey, rows: int, seconds: float, *, load: float = 1.0) -> None:
        """Learns from a step that went well, and lifts a lowered cap after many of them.

        `load` is the mean of its rows.
        """
        if key not in self._curves:
            self._curves[key] = self._reference_curve(key).scaled(self._scale(key))
        self._curves[key].learn(rows * load, seconds)
        lowered = self._lowered.get(key)
        if lowered is not None and rows >= lowered - 1:
            self._calm[key] += 1
            if self._calm[key] >= STEPS_BEFORE_RAISE:
                self._calm[key] = 0
                self._lowered[key] = lowered + 2

    def observe_decode(self, key: BatchKey, samples: int, seconds: float) -> None:
        """Learns from a decode that went well."""
        model = self._models[key.model]
        measured = seconds / samples / self._scale(key)
        model.decode_seconds += WEIGHT * (measured - model.decode_seconds)

    def observe_encode(self, key: BatchKey, work: float, seconds: float) -> None:
        """Learns from prompts that went well, as much work as those of so many samples with short ones."""
        model = self._models[key.model]
        model.encode_seconds += WEIGHT * (seconds / work - model.encode_seconds)

    def observe_tick(self, predicted: float, seconds: float) -> None:
        """Learns how long work took that was predicted to take `predicted` seconds."""
        self._predicted_seconds = OVERHEAD_MEMORY * self._predicted_seconds + predicted
        self._real_seconds = OVERHEAD_MEMORY * self._real_seconds + seconds

    def lower_cap(self, key: BatchKey, failed_rows: int) -> None:
        """Remembers that a batch of this many rows did not fit."""
        self._lowered[key] = max(2, failed_rows // 2)
        self._calm[key] = 0

    def _reference_curve(self, key: BatchKey) -> Curve:
        return self._curves[self._models[key.model].reference]

    def _highest(self, key: BatchKey) -> int:
        most = self._models[key.model].max_rows
        return min(most, self._lowered.get(key, most), self._memory.rows(key))

    def _scale(self, key: BatchKey) -> float:
        return key.size / self._models[key.model].reference.size
