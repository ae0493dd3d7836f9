"""The server's side of PEP 3333, for one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import WSGIApplication, WSGIEnvironment


class WsgiServer:
    """
    A server that gives an application one request.

    Attributes:
        told: Status and fields of each call of `start_response`, in order.
        errors: The `exc_info` of each call.
        written: Pieces of the body, also those that the application wrote itself.
    """

    def __init__(self, app: WSGIApplication, **environ: str) -> None:
        self.told: list[tuple[str, dict[str, str]]] = []
        self.errors: list[object] = []
        self.written: list[bytes] = []
        self.environ: WSGIEnvironment = {}
        setup_testing_defaults(self.environ)
        self.environ.update(environ)
        self.result = app(self.environ, self.start_response)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        self.errors.append(exc_info)
        if exc_info and any(self.written):
            raise exc_info[1]
        self.told.append((status, dict(headers)))
        return self.written.append

    def run(self) -> bytes:
        try:
            for piece in self.result:
                assert self.told
                self.written.append(piece)
        finally:
            if hasattr(self.result, "close"):
                self.result.close()
        return b"".join(self.written)

    @property
    def headers(self) -> dict[str, str]:
        return self.told[-1][1]
