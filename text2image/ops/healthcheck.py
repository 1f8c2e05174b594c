"""`python -m text2image.healthcheck`: whether the server in this container is ready; `... page` asks the page.

The exit status is 0 or 1, as container engines want it; the reason for a 1 is printed.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

from text2image.core.addresses import address_of, reachable
from text2image.core.settings import Settings, get_settings
from text2image.ops.page import DEFAULT_PORT

TIMEOUT = 5.0


def url_of(settings: Settings, what: str) -> str:
    """What answers with 200 when `what`, "server" or "page", is well."""
    host = reachable(settings.host)
    if what == "page":
        return f"http://{address_of(host, settings.page_port or DEFAULT_PORT)}/_stcore/health"
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{address_of(host, settings.port)}/readyz"


def tls_context() -> ssl.SSLContext:
    """For a server that is asked by the machine it runs on: its name is not in the certificate, and nobody is between.

    Raises:
        OSError: the client's certificate, which mutual TLS asks for, cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate := os.environ.get("T2I_TLS_CLIENT_CERT"):
        context.load_cert_chain(certificate, os.environ.get("T2I_TLS_CLIENT_KEY"))
    return context


def trouble(settings: Settings, what: str = "server") -> str:
    """Why it is not well; empty if it is."""
    url = url_of(settings, what)
    try:
        # What is asked is this machine, which no proxy of the environment leads to.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls_context())
        )
        with opener.open(url, timeout=TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except OSError as error:
        return f"{url}: {getattr(error, 'reason', error)}"


if __name__ == "__main__":
    sys.exit(trouble(get_settings(), *sys.argv[1:2]) or 0)
