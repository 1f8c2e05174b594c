"""Draws prompts of Parquet files with a server, by Ray Data: pictures, and Parquet files with a row for each prompt.

    python examples/ray_data.py s3://bucket/prompts s3://bucket/drawn --server gateway:50051

Made for a million prompts: work is cut into shards of so many rows of one file, each drawn by one actor that holds
no more than its rows and the pictures in flight. A shard's results are one file, which is written last and in one
piece, so a file that is there is the checkpoint. The same command goes on where an earlier one ended, however it did.
Names follow from the prompts' file and the row, and seeds from the row's id, so what is drawn twice is the same.

(Ray's own checkpoints commit by renaming, which in an object store is a copy and a deletion, and hold all ids in
memory.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from fsspec.implementations.local import LocalFileSystem

from text2image.client import (
    Cancelled,
    Client,
    PermissionDenied,
    Picture,
    QuotaExceeded,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
)

# Columns that are fields of a request, where they are there; all others are carried along.
FIELDS = {
    "negative_prompt": str,
    "model": str,
    "width": int,
    "height": int,
    "steps": int,
    "guidance_scale": float,
    "seed": int,
    "sampler": str,
    "schedule": str,
    "quality": str,
}
# What is added to the columns that there are; a row has a picture or an error.
ADDED = pa.schema(
    [
        ("seed", pa.int64()),
        ("picture", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
    ]
)
# Waiting helps against these, so they are never a row's own error; nothing helps against the others but a person.
PASSING = (Unavailable, QuotaExceeded)
FATAL = (Unauthenticated, PermissionDenied)
# Of errors that may or may not be the row's own, such as one of the server.
ATTEMPTS = 3
LONGEST_PAUSE = 60.0

Shard = dict[str, Any]


class Place:
    """A folder of this machine, or one of an object store, by its URL."""

    def __init__(self, url: str) -> None:
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._url = url.rstrip("/")

    def url(self, name: str) -> str:
        return f"{self._url}/{name}"

    def open(self, name: str) -> Any:
        return self._files.open(f"{self._root}/{name}", "rb")

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of all Parquet files below a folder, by their names from here."""
        top = f"{self._root}/{folder}".rstrip("/")
        found = self._files.find(top, detail=True) if self._files.exists(top) else {}
        return {
            path[len(self._root) + 1 :]: each["size"]
            for path, each in sorted(found.items())
            if path.endswith(".parquet")
        }

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._files.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Puts a file there whole or not at all, in the place of an earlier one."""
        if not isinstance(self._files, LocalFileSystem):
            self._files.pipe_file(f"{self._root}/{name}", content)
            return
        path = Path(self._root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def shards_of(prompts: Place, shard_rows: int) -> Iterator[Shard]:
    """The work: so many rows of one file each. Reads the ends of the files alone.

    Raises:
        SystemExit: a file has no prompts.
    """
    for name in prompts.sizes():
        with prompts.open(name) as opened:
            file = pq.ParquetFile(opened)
            rows = file.metadata.num_rows
            if "prompt" not in file.schema_arrow.names:
                raise SystemExit(f"{prompts.url(name)} has no column `prompt`")
        for first in range(0, rows, shard_rows):
            stem = name.removesuffix(".parquet")
            yield {
                "file": name,
                "first": first,
                "rows": min(shard_rows, rows - first),
                "name": f"{stem}/{first:09d}",
            }


def seed_of(key: str, run_seed: int) -> int:
    """32 bits that follow from the row's id alone."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{key}".encode()).digest()[:4])


def is_there(row: dict[str, Any], name: str) -> bool:
    """Whether a row has a value in a column; what pandas writes for none is NaN."""
    value = row.get(name)
    return value is not None and value == value


class Draw:
    """An actor with one connection: takes a shard, draws its rows, writes its results, tells how many there are."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._prompts = Place(options.prompts)
        self._output = Place(options.output)
        self._client = Client(options.server)
        self._pool = ThreadPoolExecutor(options.in_flight)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (text,) = batch["shard"]
        shard: Shard = json.loads(text)
        table = self._rows_of(shard)
        kept = self._drawn_before(shard) if self._options.retry_failed else {}
        numbers = range(shard["first"], shard["first"] + shard["rows"])
        jobs = zip(numbers, table.to_pylist(), strict=True)
        results = list(self._pool.map(lambda job: kept.get(job[0]) or self._row(shard, *job), jobs))
        for column in ADDED:
            values = pa.array([each[column.name] for each in results], column.type)
            if column.name in table.column_names:
                place = table.column_names.index(column.name)
                table = table.set_column(place, column, values)
            else:
                table = table.append_column(column, values)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self._output.write(f"results/{shard['name']}.parquet", sink.getvalue().to_pybytes())
        failed = sum(each["error"] is not None for each in results)
        return {"rows": [len(results)], "failed": [failed]}

    def _rows_of(self, shard: Shard) -> pa.Table:
        """The rows of a shard, of which only the row groups that hold them are read."""
        first, rows = shard["first"], shard["rows"]
        with self._prompts.open(shard["file"]) as opened:
            file = pq.ParquetFile(opened)
            groups, start, skipped = [], 0, 0
            for number in range(file.num_row_groups):
                end = start + file.metadata.row_group(number).num_rows
                if start < first + rows and end > first:
                    skipped = skipped if groups else first - start
                    groups.append(number)
                start = end
            return file.read_row_groups(groups).slice(skipped, rows)

    def _drawn_before(self, shard: Shard) -> dict[int, dict[str, Any]]:
        """The rows of an earlier run that have a picture, by their numbers in the file."""
        file = self._output.read(f"results/{shard['name']}.parquet")
        if file is None:
            return {}
        rows = pq.read_table(pa.BufferReader(file), columns=ADDED.names).to_pylist()
        return {shard["first"] + at: row for at, row in enumerate(rows) if row["error"] is None}

    def _row(self, shard: Shard, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """What becomes of one row: a picture that is stored, or why there is none."""
        began = time.monotonic()
        key = row.get("id", f"{shard['file']}#{number}")
        fields = {"seed": seed_of(str(key), self._options.seed), **self._options.set}
        result: dict[str, Any] = dict.fromkeys(ADDED.names)
        try:
            fields |= {
                name: kind(row[name]) for name, kind in FIELDS.items() if is_there(row, name)
            }
            result["seed"] = fields["seed"]
            picture, result["attempts"] = self._drawn(row["prompt"] or "", fields)
        except Text2ImageError as error:
            if isinstance(error, PASSING + FATAL):
                raise
            result |= {"error": error.reason, "message": error.message}
        except (TypeError, ValueError) as error:
            # A value that no request can hold.
            result |= {"error": "INVALID_REQUEST", "message": str(error)}
        else:
            name = f"pictures/{shard['name']}/{number:09d}.png"
            self._output.write(name, picture.png)
            result["picture"] = self._output.url(name)
        return {**result, "seconds": time.monotonic() - began}

    def _drawn(self, prompt: str, fields: dict[str, Any]) -> tuple[Picture, int]:
        """A picture and how many attempts it took; a full or restarting server is waited for, for so long.

        Raises:
            Text2ImageError: it cannot be drawn, or the server was away for longer than `--patience`.
        """
        gives_up = time.monotonic() + self._options.patience
        attempt = 0
        while True:
            attempt += 1
            try:
                (picture,) = self._client.generate(prompt, **fields)
                return picture, attempt
            except Text2ImageError as error:
                pause = min(LONGEST_PAUSE, 2.0**attempt / 2)
                passing = isinstance(error, (*PASSING, Cancelled))
                helps = passing or (error.http_status >= 500 and attempt < ATTEMPTS)
                pause = max(error.retry_after or 0.0, pause * random.uniform(0.5, 1.0))
                if not helps or time.monotonic() + pause > gives_up:
                    raise
                time.sleep(pause)


def todo_of(options: argparse.Namespace) -> list[Shard]:
    """The shards without results; with `--retry-failed` those with errors too.

    Raises:
        SystemExit: there is nothing to draw, or this output is of another run; the text says in what they differ.
    """
    prompts, output = Place(options.prompts), Place(options.output)
    shards = list(shards_of(prompts, options.shard_rows))
    if not shards:
        raise SystemExit(f"no rows in any .parquet file below {options.prompts}")
    run = {
        "prompts": options.prompts,
        "shard_rows": options.shard_rows,
        "seed": options.seed,
        "set": options.set,
        "bytes": prompts.sizes(),
    }
    earlier = json.loads(output.read("run.json") or json.dumps(run))
    # Files may be added between two runs, and not changed.
    known = {name: size for name, size in run["bytes"].items() if name in earlier["bytes"]}
    different = [
        name for name, value in ({**run, "bytes": known}).items() if earlier[name] != value
    ]
    if different:
        raise SystemExit(
            f"{options.output} is of a run with other {', '.join(different)} (see run.json there); "
            "name another output, or repeat that run's options"
        )
    output.write("run.json", json.dumps(run, indent=1).encode())
    done = set(output.sizes("results"))
    return [shard for shard in shards if _is_open(options, output, done, shard)]


def _is_open(options: argparse.Namespace, output: Place, done: set[str], shard: Shard) -> bool:
    name = f"results/{shard['name']}.parquet"
    if name not in done or not options.retry_failed:
        return name not in done
    with output.open(name) as file:
        errors = pq.read_table(file, columns=["error"])["error"]
    return len(errors) > errors.null_count


def draw(options: argparse.Namespace) -> int:
    """Draws what is left, and returns the number of rows that have no picture."""
    todo = todo_of(options)
    total = sum(shard["rows"] for shard in todo)
    print(f"{total} rows in {len(todo)} shards are left", flush=True)
    if not todo:
        return 0
    work = ray.data.from_items(
        [{"shard": json.dumps(shard)} for shard in todo],
        # A shard for each block, so that actors take one at a time.
        override_num_blocks=len(todo),
    ).map_batches(
        Draw,
        fn_constructor_args=(options,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(options.actors, len(todo))),
        # They wait for the server.
        num_cpus=0.1,
    )
    rows = failed = 0
    for told in work.iter_rows():
        rows, failed = rows + int(told["rows"]), failed + int(told["failed"])
        print(f"{rows} of {total} rows, {failed} without a picture", flush=True)
    return failed


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("prompts", help="folder or URL of Parquet files with a column `prompt`")
    parser.add_argument("output", help="folder or URL of what is drawn, as s3://bucket/drawn")
    parser.add_argument("--server", default="localhost:50051", help="gRPC of the server")
    parser.add_argument("--actors", type=int, default=4, help="shards that are drawn at once")
    parser.add_argument("--in-flight", type=int, default=16, help="requests of each actor")
    parser.add_argument("--shard-rows", type=int, default=1000, help="rows of a checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="what seeds of rows without one go by")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="for rows without it"
    )
    parser.add_argument(
        "--patience", type=float, default=900, help="seconds to wait for a full or absent server"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="draw rows with an error once more"
    )
    options = parser.parse_args(words)
    fields: dict[str, Any] = {}
    for each in options.set:
        name, _, value = each.partition("=")
        if name not in FIELDS:
            parser.error(f"--set {each}: no field of a request; these are: {', '.join(FIELDS)}")
        try:
            fields[name] = FIELDS[name](value)
        except ValueError:
            parser.error(f"--set {each}: {value!r} is no {FIELDS[name].__name__}")
    options.set = fields
    for name in ("actors", "in_flight", "shard_rows"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is 1 or more")
    for name in ("prompts", "output"):
        place = getattr(options, name)
        # Actors have other working folders.
        setattr(options, name, place if "://" in place else str(Path(place).resolve()))
    if options.prompts.endswith(".parquet"):
        parser.error("the prompts are a folder, not a file")
    if f"{options.output}/".startswith(f"{options.prompts.rstrip('/')}/"):
        parser.error("the output lies among the prompts; name a folder beside them")
    return options


def main() -> int:
    """The exit status: 1 where rows are left without a picture."""
    options = parsed()
    if not os.environ.get("RAY_ADDRESS"):
        # No cluster: this machine alone, and nobody else's business.
        ray.init(include_dashboard=False, _node_ip_address="127.0.0.1")
    return 1 if draw(options) else 0


if __name__ == "__main__":
    sys.exit(main())
