#!/bin/sh
# The image's commands: the first word names the role, more words go to `bentoml serve`. Whatever else it is, is run.
set -eu

[ $# -gt 0 ] || set -- serve
case $1 in
serve)
    shift
    exec bentoml serve service:Gateway "$@"
    ;;
gateway)
    shift
    if [ -z "${T2I_RUNNERS:-}" ]; then
        echo "text2image: a gateway alone needs T2I_RUNNERS, the addresses of its runners" >&2
        exit 64
    fi
    export T2I_PAGE_PORT=
    exec bentoml serve service:Gateway "$@"
    ;;
runner)
    shift
    export T2I_RUNNER_LISTEN="${T2I_RUNNER_LISTEN:-0.0.0.0:50061}"
    exec bentoml serve service:Runner "$@"
    ;;
page)
    exec python -m text2image.page
    ;;
*)
    exec "$@"
    ;;
esac
