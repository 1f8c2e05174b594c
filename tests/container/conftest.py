"""One image for all tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.container.build import missing
from tests.container.runtime import BUILD_SECONDS, Container, Image, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "image" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


@pytest.fixture(scope="package")
def image() -> Iterator[Image]:
    """The image of the source tree as it is, for a CPU."""
    if why := missing():
        pytest.skip(f"THE CONTAINER IS NOT TESTED: {why}")
    image = Image()
    try:
        image.wait_until_built()
        yield image
    finally:
        image.delete()


@pytest.fixture(scope="package")
def container(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container that is ready, of all roles in one."""
    with running(Container(image, tmp_path_factory.mktemp("container"))) as container:
        container.wait_until_ready()
        yield container
