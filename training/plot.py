"""`python -m training.plot FILE.png`: the loss curves from the log."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from matplotlib import pyplot

from training.paths import state_dir

MEASURES = {
    "autoencoder": "loss",
    "decoder": "psnr",
    "text": "loss",
    "trunk": "loss",
    "branch": "loss",
    "judge": "object",
}


def curves() -> dict[str, list[tuple[float, float]]]:
    """Stage to (step, value); a stage that was taken up again at an earlier step goes on from there."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for line in (state_dir() / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        measure = MEASURES[record["stage"]]
        if measure in record:
            found[record["stage"]][record["step"]] = record[measure]
    return {stage: sorted(values.items()) for stage, values in found.items()}


def main() -> None:
    """Draw one panel a stage; the decay branch is drawn on the trunk's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    stages = curves()
    panels = [s for s in ("text", "autoencoder", "decoder", "trunk", "judge") if s in stages]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3), squeeze=False)
    for axis, stage in zip(axes[0], panels, strict=True):
        axis.plot(*zip(*stages[stage], strict=True), label=stage)
        if stage == "trunk" and "branch" in stages:
            axis.plot(*zip(*stages["branch"], strict=True), label="decay")
            axis.legend()
        axis.set(title=stage, xlabel="step", ylabel=MEASURES[stage])
        if MEASURES[stage] == "loss":
            axis.set_yscale("log")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
