"""The files for TLS, and what is made of them for each connection.

Certificates are renewed on disk while programs run. So a new connection looks whether the files are
the same as before, and reads them again if not; while they are being written, those that were read
before may do.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from kvi.errors import InvalidOption


class Tls:
    """The options ca, cert and key. Safe for threads."""

    def __init__(self, ca: str | None, cert: str | None, key: str | None) -> None:
        """Read the files; raises `InvalidOption` that names the option of what cannot be read."""
        self._ca, self._cert, self._key = ca, cert, key
        self._read = self._stamps(), self._make()

    def context(self) -> ssl.SSLContext:
        """For a new connection, of what the files hold now."""
        stamps, context = self._read
        now = self._stamps()
        if now != stamps:
            with suppress(InvalidOption):
                context = self._make()
                self._read = now, context
        return context

    def _stamps(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in (self._ca, self._cert, self._key))

    def _make(self) -> ssl.SSLContext:
        ca, cert, key = self._ca, self._cert, self._key
        try:
            context = ssl.create_default_context(cafile=ca)
        except (OSError, ValueError) as error:
            raise InvalidOption(
                f"option 'ca' names no readable file of PEM certificates: {error}"
            ) from error
        if ca is not None:
            # Since Python 3.13 a certificate is also refused for what it does not say of its
            # authority. Private ones often leave that out, and a URI must not depend on the Python.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if cert is not None:
            try:
                # Without a password of its own, OpenSSL would ask for one on the terminal.
                context.load_cert_chain(cert, key, password=lambda: "")
            except (OSError, ValueError) as error:
                raise InvalidOption(
                    "options 'cert' and 'key' name no readable PEM certificate with its "
                    f"unencrypted key: {error}"
                ) from error
        return context


def _stamp(path: str | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        told = Path(path).stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino
