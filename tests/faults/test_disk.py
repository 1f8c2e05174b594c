"""Disks that are full or read-only: the picture is returned, and the answer says that it was not stored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e.test_pictures import image_of
from tests.faults.asking import pictures_of, post
from tests.faults.conftest import Timed
from tests.faults.disks import full, read_only
from tests.faults.normality import Normality

NOT_SAVED = "could not be saved on the server"


@pytest.mark.parametrize("fault", [full, read_only], ids=["full", "read-only"])
def test_what_cannot_be_stored_is_returned_and_said_to_be_not_stored(
    fragile: Normality, fault: Callable[[Path], AbstractContextManager[None]], timed: Timed
) -> None:
    server = fragile.server
    if not server.pictures.is_mount():
        pytest.skip("mounting a disk needs root")
    assert Path(post(server, 5, steps=4).json()["image_path"]).is_file()
    failed = 'text2image_pictures_total{saved="failed"}'
    count = server.metric(failed)
    with fault(server.pictures):
        answer = post(server, 6, steps=4)
        assert pictures_of(answer)
        assert answer.json()["image_path"] == ""
        assert NOT_SAVED in answer.json()["message"]
        with server.client() as client:
            (picture,) = client.generate("a red fox", steps=4, seed=7)
        assert picture.path == ""
        assert image_of(picture.png)
        assert server.metric(failed) == count + 2
        # Words of the prompt are nobody's business, file names in an error included.
        assert "red_fox" not in server.log
    with timed(f"output folder {fault.__name__}: stored again after"):
        answer = post(server, 8, steps=4)
        assert Path(answer.json()["image_path"]).is_file()
        assert NOT_SAVED not in answer.json()["message"]
    fragile.returns()
