"""Certificates for one test: an authority of its own, and a server's that it vouches for.

The Postgres of the wheel is built without TLS. So the proxy ends the
encryption, which to a client is the same: it asks, is told yes, and checks a
certificate.
"""

import ssl
from pathlib import Path

import trustme

from durabletask_postgres.testing import ThrowAwayError

NAME = "127.0.0.1"


class Certificates:
    """An authority and a server's certificate of it.

    Attributes:
        server: What a server at 127.0.0.1 encrypts with.
        authority: The file that a client checks the server with, `sslrootcert` in a DSN.
    """

    def __init__(self, folder: Path) -> None:
        """Make both; the authority's certificate is written into `folder`."""
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(NAME).configure_cert(self.server)
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))

    def checked(self, dsn: str) -> str:
        """Return a DSN that demands TLS and checks the server's name and certificate."""
        if f"host={NAME}" not in dsn:
            raise ThrowAwayError(f"the certificate is for {NAME} only, not for {dsn}")
        return f"{dsn}&sslmode=verify-full&sslrootcert={self.authority}"
