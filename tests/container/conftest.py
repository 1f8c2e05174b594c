"""The image is built beside the other tests, from the moment that they begin; what needs it comes last."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.runtime import Container, Image, missing, running

_IMAGE = pytest.StashKey[Image]()
_NEEDS_IMAGE = {"test_image.py", "test_running.py"}
_HERE = Path(__file__).parent


def _needs_image(item: pytest.Item) -> bool:
    return item.path.parent == _HERE and item.path.name in _NEEDS_IMAGE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_needs_image)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly or not any(map(_needs_image, session.items)):
        return
    if why := missing():
        warnings.warn(f"THE CONTAINER IS NOT TESTED: {why}", stacklevel=1)
    else:
        session.config.stash[_IMAGE] = Image()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if image := session.config.stash.get(_IMAGE, None):
        image.delete()


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Image:
    """The image of the source tree as it is, for a CPU."""
    image = request.config.stash.get(_IMAGE, None)
    if image is None:
        pytest.skip(f"THE CONTAINER IS NOT TESTED: {missing()}")
    image.wait_until_built()
    return image


@pytest.fixture(scope="session")
def container(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container that is ready, of all roles in one."""
    with running(Container(image, tmp_path_factory.mktemp("container"))) as container:
        container.wait_until_ready()
        yield container
