"""`python -m text2image.prefetch`: fetches the model of the settings from the hub before a server needs it.

What is fetched stays in the hub's cache, where servers find it, offline too; with a model that lies on disk there is
nothing to do. The model's folder goes to standard output.
"""

from __future__ import annotations

import sys

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
        print(locate(get_settings(), lambda detail: print(detail, file=sys.stderr)))
    except OSError as error:
        raise SystemExit(f"text2image: {error}") from None


if __name__ == "__main__":
    main()
