"""Runs with known figures."""

from __future__ import annotations

from loadtests.drivers import Answer, Run


def run_of(*latencies: float, refused: int = 0, failed: int = 0, every: float = 1.0) -> Run:
    """One request after the other, `every` so many seconds; refusals and failures come last."""
    answers = [
        Answer(every * number, every * number + latency, ok=True)
        for number, latency in enumerate(latencies)
    ]
    for number in range(refused + failed):
        sent = every * (len(latencies) + number)
        answers.append(Answer(sent, sent + 0.02, ok=False, refused=number < refused))
    return Run(answers, every * len(answers))
