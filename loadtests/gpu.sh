#!/bin/sh
# Measures this product on a machine with a GPU, in one go of at most 8 minutes; --help tells what, and where it goes.
# `--rehearse` goes the same way on a CPU with tiny models, to see that it works. PYTHON names another Python.
cd "$(dirname "$0")/.." || exit 1
[ -n "$PYTHON" ] || { PYTHON=.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; }
exec "$PYTHON" -m loadtests.gpu "$@"
