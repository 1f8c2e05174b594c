"""A container at work: pictures on both transports, the page, its health, and its end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from PIL import Image as Pillow

from tests.container.runtime import Container, Image, running
from tests.e2e.harness import ROOT, eventually

SEED_CLIENT = ROOT / "tests/e2e/seed_client.py"


def test_it_draws_over_http(container: Container) -> None:
    answer = httpx.post(
        f"{container.url}/generate", json={"text": "a cat", "steps": 2, "seed": 7}, timeout=120
    ).json()
    assert answer["status_code"] == 200
    saved = container.pictures / Path(answer["image_path"]).name
    assert Pillow.open(saved).size == (128, 128)
    # It is kept after the answer.
    pictures = container.cache / "text2image/pictures"
    eventually(lambda: list(pictures.iterdir()), "the cache is on its volume")


def test_it_draws_over_grpc_for_the_first_client(container: Container, tmp_path: Path) -> None:
    stubs = [f"-I{ROOT}/proto", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *stubs, "text2image.proto"], check=True
    )
    client = SEED_CLIENT.read_text().replace("localhost:50051", container.address)
    done = subprocess.run(
        [sys.executable, "-c", client],
        # Without a PATH there is no program to show the picture with.
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.removeprefix("Image also saved to: ").strip())
    assert (container.pictures / path.name).is_file()


def test_it_shows_the_page_again_when_that_ends(container: Container) -> None:
    def is_up() -> bool:
        try:
            return httpx.get(f"{container.page}/_stcore/health").status_code == 200
        except httpx.TransportError:
            return False

    def pids() -> list[str]:
        script = "grep -lsz streamlit /proc/[0-9]*/cmdline | grep -v self | cut -d/ -f3"
        found = container.execute("sh", "-c", script).stdout.split()
        return [
            pid for pid in found if "run" in container.execute("cat", f"/proc/{pid}/cmdline").stdout
        ]

    eventually(is_up, "the page is up")
    (first,) = pids()
    assert container.execute("python", "-c", f"import os; os.kill({first}, 9)").returncode == 0
    eventually(lambda: is_up() and first not in pids(), "the page is up again")


def test_its_health_is_that_of_server_and_page(container: Container) -> None:
    check = container.image.config["Healthcheck"]["Test"][1:]
    done = container.execute(*check)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert container.execute(*check, "page").returncode == 0
    wrong = container.execute("env", "PORT=1", *check)
    assert wrong.returncode == 1
    assert "127.0.0.1:1/readyz" in wrong.stderr


def test_nobody_in_it_is_root_or_writes_beside_the_volumes(container: Container) -> None:
    assert container.execute("id", "-u").stdout.strip() == "1034"
    for folder in ("/app", "/etc", "/usr/bin"):
        assert container.execute("touch", f"{folder}/mine").returncode == 1


def test_a_gateway_alone_asks_for_its_runners(image: Image, tmp_path: Path) -> None:
    with running(Container(image, tmp_path, "gateway")) as gateway:
        assert gateway.wait() == 64
        assert "T2I_RUNNERS" in gateway.log


def test_stopped_it_finishes_what_it_has_admitted(container: Container) -> None:
    """The last test of the shared container: it ends here."""
    with ThreadPoolExecutor() as pool, container.client() as client:
        drawing = pool.submit(client.generate, "a penguin", steps=40, seed=3)
        eventually(lambda: client.status().active, "the picture is being drawn")
        container.terminate()
        assert Pillow.open(io.BytesIO(drawing.result(120)[0].png)).size == (128, 128)
    assert container.wait() == 0, container.log
