"""`python -m text2image.prefetch`: fetches the models of the settings from the hub before a server needs them.

What is fetched stays in the hub's cache, where servers find it, offline too; with a model that lies on disk there is
nothing to do. The models' folders go to standard output, that of the default one first.
"""

from __future__ import annotations

import sys

from text2image.core.catalogue import all_entries
from text2image.core.settings import get_settings
from text2image.engine.lazy import hush


def main() -> None:
    """
    Raises:
        SystemExit: there is no such model; one line says why, and what to do.
    """
    hush()
    # Here, since it imports torch, which takes seconds.
    from text2image.engine.models.loading import locate

    try:
        settings = get_settings()
        for entry in all_entries(settings).values():
            own = entry.applied_to(settings)
            print(locate(own, lambda detail: print(detail, file=sys.stderr)))
    except OSError as error:
        raise SystemExit(f"text2image: {error}") from None


if __name__ == "__main__":
    main()
