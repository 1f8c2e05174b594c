"""`python -m training.evaluate FOLDER`: what a pipeline draws, measured by the judge, and a contact sheet.

Writes sheet.png beside the weights, puts the table into the folder's README.md, and keeps figures.json with the
checkpoints: among the weights it would count as a part of the model.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from training import machine
from training.paths import state_dir, with_environment

STEPS, GUIDANCE, BATCH = 20, 3.0, 10
TABLE = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)


def draw(pipeline: Any, prompts: list[str], seed: int) -> torch.Tensor:
    """Pictures for prompts, (count, 3, 128, 128) in -1..1; picture i has seed `seed + i`."""
    drawn = []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        noise = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        result = pipeline(
            part,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=noise,
            output_type="pt",
        )
        drawn.append(result.images.cpu() * 2 - 1)
    return torch.cat(drawn)


def sharpness(pictures: torch.Tensor) -> float:
    """Mean absolute Laplacian of the luma."""
    luma = pictures.mean(1, keepdim=True)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return torch.nn.functional.conv2d(luma, kernel).abs().mean().item()


def _hits(logits: torch.Tensor, truth: torch.Tensor, k: int) -> torch.Tensor:
    return (logits.topk(k, 1).indices == truth[:, None]).any(1)


def _percent(hits: torch.Tensor) -> float:
    return round(100 * hits.float().mean().item(), 1)


def _row(pictures: torch.Tensor, asked: list[Any]) -> dict[str, float]:
    """The figures of one set of questions."""
    from training import judge as court

    judge = court.trained()
    first = torch.tensor([q.scene.objects[0] for q in asked])
    if len(asked[0].scene.objects) == 2:
        second = torch.tensor([q.scene.objects[1] for q in asked])
        left = judge(court.half(pictures, right=False))[0]
        right = judge(court.half(pictures, right=True))[0]
        return {
            "left_top1": _percent(_hits(left, first, 1)),
            "right_top1": _percent(_hits(right, second, 1)),
            "both_top5": _percent(_hits(left, first, 5) & _hits(right, second, 5)),
        }
    names, paint, behind = judge(pictures)
    row = {"top1": _percent(_hits(names, first, 1)), "top5": _percent(_hits(names, first, 5))}
    if asked[0].scene.colour:
        # A red apple has "its own" colour too: the question is which of the eleven it is nearest to.
        wanted = torch.tensor([court.PAINT.index(q.scene.colour) - 1 for q in asked])
        row["colour"] = _percent(_hits(paint[:, 1:], wanted, 1))
    if asked[0].scene.background:
        wanted = torch.tensor([court.BEHIND.index(q.scene.background) for q in asked])
        row["background"] = _percent(_hits(behind, wanted, 1))
    return row


def measure(pipeline: Any) -> dict[str, Any]:
    """All figures of a pipeline, and of the artwork painted for the same questions."""
    from training.autoencoder import to_model
    from training.painter import pictures_of
    from training.prompts import SETS, questions
    from training.scenes import things

    asked = questions()
    prompts = [q.prompt for q in asked]
    drawn = draw(pipeline, prompts, seed=1000)
    art = to_model(pictures_of([q.scene for q in asked], seed=9)).cpu()
    art_again = to_model(pictures_of([q.scene for q in asked], seed=10)).cpu()
    figures: dict[str, Any] = {"objects": len(things()), "sets": {}}
    for kind in SETS:
        which = [i for i, q in enumerate(asked) if q.set == kind]
        popular = [i for i in which if all(things()[o].popular for o in asked[i].scene.objects)]
        figures["sets"][kind] = {
            "all": _row(drawn[which], [asked[i] for i in which]),
            "often asked for": _row(drawn[popular], [asked[i] for i in popular]) if popular else {},
            "artwork": _row(art[which], [asked[i] for i in which]),
        }
    singles = SETS["plain object"]
    again = draw(pipeline, prompts[:singles], seed=5000)
    figures["two seeds, mean difference of 255"] = {
        "model": round((drawn[:singles] - again).abs().mean().item() * 127.5, 1),
        "artwork": round((art - art_again)[:singles].abs().mean().item() * 127.5, 1),
    }
    figures["sharpness against artwork"] = round(sharpness(drawn) / sharpness(art), 3)
    return figures


def contact_sheet(pipeline: Any, path: Path, columns: int = 8) -> None:
    """The prompts of the sheet, drawn and labelled."""
    from training.prompts import SHEET

    drawn = ((draw(pipeline, SHEET, seed=0) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    side, label = drawn.shape[1], 14
    rows = -(-len(SHEET) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + label + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, pixels) in enumerate(zip(SHEET, drawn.numpy(), strict=True)):
        left, top = i % columns * (side + 4), i // columns * (side + label + 4)
        sheet.paste(Image.fromarray(pixels), (left, top))
        pen.text((left + 1, top + side), prompt[:24], fill="black")
    sheet.save(path)


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| 300 prompts | all objects | often asked for | the artwork itself |",
        "|---|---|---|---|",
    ]
    for kind, columns in figures["sets"].items():
        cells = [", ".join(f"{k} {v}" for k, v in row.items()) for row in columns.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    seeds = figures["two seeds, mean difference of 255"]
    lines.append(f"| two seeds, mean difference of 255 | {seeds['model']} | | {seeds['artwork']} |")
    lines.append(f"| sharpness (artwork = 1) | {figures['sharpness against artwork']} | | 1 |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure one pipeline folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a diffusers pipeline")
    parser.add_argument("--out", type=Path, help="where results go (default: the folder)")
    parser.add_argument(
        "--sheet-only", action="store_true", help="draw the sheet, skip the figures"
    )
    arguments = parser.parse_args()
    from diffusers import StableDiffusionPipeline

    out = arguments.out or arguments.folder
    out.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(
        arguments.folder, torch_dtype=torch.float32, safety_checker=None
    )
    pipeline.to(machine.device()).set_progress_bar_config(disable=True)
    contact_sheet(pipeline, out / "sheet.png")
    if arguments.sheet_only:
        return 0
    figures = measure(pipeline)
    (state_dir() / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    card = out / "README.md"
    if card.exists():
        card.write_text(TABLE.sub(lambda m: m[1] + table(figures) + m[2], card.read_text()))
    return 0


if __name__ == "__main__":
    with_environment("training.evaluate")
    sys.exit(main())
