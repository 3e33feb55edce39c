"""The page of a stage, at 127.0.0.1: what it shows is asked for by polling, so that nothing but HTTP is needed.

GET / is the page, GET /state?after=N what is to be said of a picture later than N (it waits a while for one), GET
/frame the last picture's JPEG; POST /ask a JSON object of wishes (`Stage.ask`). What is refused is told as
{"error": …}.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs

from tdmpc2.errors import UserError, printable
from tdmpc2.jsontext import parse_json
from tdmpc2.places import PACKAGE
from tdmpc2.play.stage import Stage

HOST = "127.0.0.1"
_HOST_NAMES = (HOST, "localhost")
_WAIT_SECONDS = 2.0
"""For which a question about a later picture stays open."""
_MOST_BYTES = 2000
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; frame-ancestors 'none'"
    ),
}


class PageServer:
    """Serves a stage from threads of its own while the context is open.

    Args:
        stage: what is shown.
        port: of this machine alone; None: one that is free.

    Raises:
        UserError: for a port that is taken or not allowed.
    """

    def __init__(self, stage: Stage, port: int | None = None) -> None:
        try:
            self._server = _Server(stage, port or 0)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"port={port} is taken; give another, or leave it out for a free one.") from None
            raise UserError(
                f"port={port} cannot be opened: {error.strerror}; give another, or leave it out for a free one."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, name="page", daemon=True)

    @property
    def address(self) -> str:
        """Of the page, for a browser."""
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # an open connection keeps no program alive

    def __init__(self, stage: Stage, port: int) -> None:
        self.stage = stage
        self.page = (PACKAGE / "play" / "page.html").read_bytes()
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # browsers leave in the middle of an answer
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 20.0  # seconds, for a client that says nothing

    def do_GET(self) -> None:
        if not self._is_local():
            return
        page, _, query = self.path.partition("?")
        if page == "/":
            self._answer("text/html; charset=utf-8", self.server.page)
        elif page == "/frame":
            self._answer("image/jpeg", self.server.stage.picture().jpeg)
        elif page == "/state":
            after = parse_qs(query).get("after", ["0"])[-1]
            if not (after.isascii() and after.isdecimal() and len(after) < 16):
                self._refuse(HTTPStatus.BAD_REQUEST, "after is no number of a picture.")
                return
            self._answer_json(dict(self.server.stage.picture(int(after), _WAIT_SECONDS).state))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page.")

    def do_POST(self) -> None:
        self.close_connection = True  # whatever of the body is left unread
        if not self._is_local():
            return
        if self.path != "/ask":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page.")
        elif self.headers.get_content_type() != "application/json":
            # Pages of other sites cannot send this type without being asked first, which is refused here.
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the content is not application/json.")
        else:
            self._ask()

    def _ask(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the content has no length.")
            return
        if len(length) > 9 or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the content is longer than {_MOST_BYTES} bytes.")
            return
        try:
            wishes = parse_json(self.rfile.read(int(length)))
            if not isinstance(wishes, dict):
                raise UserError("the content is no JSON object.")
            self.server.stage.ask(wishes)
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"the content is not valid JSON: {printable(error)}.")
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._answer_json({})

    def _is_local(self) -> bool:
        """Whether the browser meant this machine: a foreign name that was made to lead here is refused."""
        if self.headers.get("Host", "").partition(":")[0] in _HOST_NAMES:
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"this is a page of {HOST} alone.")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._answer_json({"error": reason}, status)

    def _answer_json(self, content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer("application/json", json.dumps(content).encode(), status)

    def _answer(self, kind: str, content: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: each frame is a request."""
