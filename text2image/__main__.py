"""`python -m text2image "a cat in the snow"` draws to a file; `--help` lists the options."""

from __future__ import annotations

import logging
import os
import sys

from text2image.cli.main import INTERRUPTED, main

if __name__ == "__main__":
    # What the engine cannot say in an error it logs, under an id that the error names.
    logging.basicConfig(level=logging.ERROR, format="%(message)s", force=True)
    status = main(sys.argv[1:])
    if status == INTERRUPTED:
        # At once: a thread that is just importing torch would be torn down in the middle.
        os._exit(status)
    sys.exit(status)
