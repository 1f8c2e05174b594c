"""How much is measured on a GPU, in which order, and in what time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run measures.

    Attributes:
        device: as T2I_DEVICE names it.
        size: of the models, `true` or `tiny`.
        dtypes: precisions of the networks alone; the first is what the server takes.
        rows: of the networks alone.
        compiled_rows: those that are measured compiled too, the most telling first; each takes long to compile.
        repeats: of each step, of which the median counts.
        backend: that torch.compile generates code with.
        batches: pictures that the bare pipeline draws at once.
        clients: that keep the server busy, more than fit in a batch.
        turns: how often what is compared is measured.
        seconds, open_seconds: lengths of a closed and of an open loop.
        environment: of the server that compiles.
        tests: words for pytest that choose among the engine's tests.
        budgets: seconds of each section, in the order in which they are measured.
        total: seconds of all.
    """

    device: str
    size: str
    dtypes: tuple[str, ...]
    rows: tuple[int, ...]
    compiled_rows: tuple[int, ...]
    repeats: int
    backend: str
    batches: tuple[int, ...]
    clients: int
    turns: int
    lone_calls: int
    steps: int
    seconds: float
    open_seconds: float
    environment: dict[str, str]
    tests: tuple[str, ...]
    budgets: dict[str, float]
    total: float


FULL = Plan(
    device="cuda",
    size="true",
    dtypes=("bfloat16", "float16"),
    rows=(1, 2, 4, 8, 16, 32),
    compiled_rows=(2, 32, 16, 8, 1, 4),
    repeats=10,
    backend="inductor",
    batches=(1, 2, 4, 8, 16, 32),
    clients=64,
    turns=2,
    lone_calls=5,
    steps=20,
    seconds=6.0,
    open_seconds=20.0,
    environment={},
    tests=(),
    budgets={
        "folder": 60,
        "steps": 60,
        "sdxl steps": 75,
        "served": 240,
        "tests": 110,
        "compiled steps": 100,
        "compiled served": 150,
        "compiled sdxl steps": 120,
    },
    total=480,
)
REHEARSAL = Plan(
    device="cpu",
    size="tiny",
    dtypes=("float32", "bfloat16"),
    rows=(1, 2, 4),
    compiled_rows=(2, 4),
    repeats=2,
    # Code for a CPU would take minutes to generate.
    backend="eager",
    batches=(1, 2),
    clients=8,
    turns=1,
    lone_calls=2,
    steps=4,
    seconds=1.0,
    open_seconds=3.0,
    environment={"TORCHDYNAMO_DISABLE": "1", "T2I_MAX_BATCH_ROWS": "8"},
    tests=("-k", "cancelled_neighbours"),
    budgets=dict.fromkeys(FULL.budgets, 90.0),
    total=480,
)
