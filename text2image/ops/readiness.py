"""What a server says to the person who started it: one block once it is ready, a line for what keeps it from that.

Whatever the number of gateway workers, each thing is said once in a server's life: who says it leaves a mark in the
private folder of the sockets, which `start_afresh` empties of marks when the next server starts.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from text2image.core.addresses import address_of, reachable
from text2image.core.folders import FolderInUse, claim_folder
from text2image.core.hardware import runner_count
from text2image.core.messages import ModelInfo, State, Status
from text2image.core.settings import Settings, is_url

_KNOWN_ADDRESSES = ("127.0.0.1:50051", "localhost:50051")
_MARK = "told-"
# Where in that folder the processes put what they measure.
METRICS = "metrics"
# What a runner says before it has begun to load, and the gateway of one that it cannot reach.
_STARTING = ": starting"
_PROMPT = "a cat in the snow"


def start_afresh(settings: Settings) -> Path:
    """The folder that the server's processes share, and no others: the set one, or a new one.

    Call it once, before they start.

    Raises:
        SystemExit: with one line that says why the folder cannot be used.
    """
    advice = "set T2I_RUNTIME_DIR to a folder that can be written"
    try:
        folder = claim_folder(settings.runtime_dir and settings.runtime_dir.absolute())
        for mark in folder.glob(f"{_MARK}*"):
            mark.unlink(missing_ok=True)
        shutil.rmtree(folder / METRICS, ignore_errors=True)
        (folder / METRICS).mkdir()
    except FolderInUse as error:
        raise SystemExit(f"text2image: {error}; set T2I_RUNTIME_DIR to another folder") from None
    except OSError as error:
        # A folder that is refused for its owner or mode says what to do itself.
        told = f"{error.filename}: {error.strerror}; {advice}"
        raise SystemExit(f"text2image: {told if error.strerror else error}") from None
    return folder


def _tell(text: str) -> None:
    """Writes in one piece, so that no line of the log gets in between."""
    sys.stderr.write(text)
    sys.stderr.flush()


async def announce(
    statuses: AsyncGenerator[Status, None],
    folder: Path,
    block: Callable[[], str],
    tell: Callable[[str], None] = _tell,
) -> None:
    """Follows a gateway's status until a runner is ready, and tells what it comes to.

    Args:
        folder: where it is marked what was told.
        block: makes the text of a server that is ready.
        tell: takes a text that ends its last line.
    """
    before: Status | None = None
    async with aclosing(statuses):
        async for status in statuses:
            ready = status.state is State.READY
            news = block() if ready else _trouble(before, status)
            if news and _is_first(folder, "ready" if ready else news):
                tell(news)
            if ready or status.state is State.DRAINING:
                return
            before = status


def _trouble(before: Status | None, status: Status) -> str:
    """What keeps the server from being ready, if there is something that waiting may not cure."""
    if status.state is State.FAILED:
        return f"text2image: {status.detail}. It is tried again every few seconds.\n"
    if before and status.detail.count(_STARTING) > before.detail.count(_STARTING):
        return (
            "text2image: a runner was lost while it was loading, and is waited for. If that goes on, the machine "
            "may be short of memory: set a smaller T2I_MODEL, T2I_DTYPE=bfloat16 or fewer T2I_RUNNER_WORKERS.\n"
        )
    return ""


def _is_first(folder: Path, what: str) -> bool:
    """Whether nobody has told this yet; from now on somebody has."""
    mark = folder / f"{_MARK}{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        # Better told twice than never.
        return True
    return True


def block_of(settings: Settings, model: ModelInfo, host: str, port: int) -> str:
    """What is told of a ready server: what it draws with, where it is, who may use it, and how to try it.

    Args:
        host, port: where HTTP listens.
    """
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://{address_of(reachable(host), port)}"
    grpc = address_of(reachable(settings.host), settings.grpc_port)
    folder = settings.output_dir
    pictures = folder if is_url(folder) else Path(folder).resolve()
    count = runner_count(settings)
    runners = f"; {count} runners share the work" if count > 1 else ""
    if settings.runners:
        runners = f", on runners at {settings.runners}"
    others = {"Models": f"those of {settings.models} too"} if settings.models else {}
    rows = {
        "Model": f"{model.id}, revision {model.revision}, "
        f"{model.width}x{model.height} in {model.steps} steps",
        **others,
        "Device": f"{model.device}, {model.dtype}{runners}",
        "HTTP": f"{url}   the API is shown at /",
        "gRPC": f"{grpc}   text2image.v1, with reflection",
        "Metrics": f"{url}/metrics",
        "Page": f"http://{address_of(reachable(settings.host), settings.page_port)}"
        if settings.page_port
        else "`make ui` shows it",
        "Pictures": f"{pictures}" if settings.save_images else "not saved",
        "Guards": ", ".join(_guards(settings)),
    }
    key = '-H "Authorization: Bearer $T2I_API_KEY" ' if settings.keys_file else ""
    server = "" if grpc in _KNOWN_ADDRESSES else f"--server {grpc} "
    lines = [
        "",
        "Text2Image is ready.",
        *(f"  {name:<10}{value}" for name, value in rows.items()),
        "Try it:",
        f"  curl -s {url}/generate {key}-H 'Content-Type: application/json' "
        f"""-d '{{"text": "{_PROMPT}"}}' -o answer.json""",
        f'  {_python()} -m text2image {server}"{_PROMPT}"',
        "",
    ]
    return "\n".join(lines) + "\n"


def _guards(settings: Settings) -> list[str]:
    """What protects the server, and which setting switches on what does not."""
    tls = "mutual TLS" if settings.tls_client_ca else "TLS"
    return [
        f"API keys of {settings.keys_file}"
        if settings.keys_file
        else "no API keys (T2I_KEYS_FILE)",
        f"{tls}, which clients trust by T2I_TLS_CA"
        if settings.tls_cert
        else "no TLS (T2I_TLS_CERT)",
        f"rate limit {settings.rate_limit}"
        if settings.rate_limit
        else "no rate limit (T2I_RATE_LIMIT)",
    ]


def _python() -> str:
    """How this Python is called from the folder that the server was started in."""
    python = Path(sys.executable)
    here = Path.cwd()
    return shlex.quote(str(python.relative_to(here) if python.is_relative_to(here) else python))
