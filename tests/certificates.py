"""Certificates of the tests' own, made anew each time."""

from __future__ import annotations

from pathlib import Path

import trustme


class Files:
    """A certificate for this machine, its key, and the authority that signed it, in PEM."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self.key, self.ca = (
            folder / name for name in ("certificate.pem", "key.pem", "ca.pem")
        )
        self.issue(trustme.CA())

    def issue(self, authority: trustme.CA) -> None:
        """Has the certificate made, again if there is one."""
        issued = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(self.ca)
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
