"""HTTP over a Unix socket for schemathesis, which speaks to requests' sessions. Nothing here knows our API."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

TIMEOUT_S = 30.0


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def _new_conn(self) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(TIMEOUT_S)
        connected.connect(str(self._path))
        return connected


class _Pool(HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> _Connection:
        return _Connection(self._path)


class _Adapter(HTTPAdapter):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = _Pool(path)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: bool | str | None,  # noqa: FBT001 - the library's signature
        proxies: Mapping[str, str] | None = None,
        cert: tuple[str, str] | str | None = None,
    ) -> Any:  # noqa: ANN401 - the library's own type changes from release to release
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


def session_over(path: Path) -> requests.Session:
    """Return a session whose every request goes to the socket at ``path``, whatever host it names."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", _Adapter(path))
    return session
