"""Labels one by one on a page of this machine's own: no script, no network, nobody else.

The server listens on 127.0.0.1 alone, under a path nobody can guess; other programs' and sites'
requests (another ``Host``, another token, another ``Origin``) get 404 or 403. Everything from
traffic is escaped, and hidden characters are left out.
"""

from __future__ import annotations

import hmac
import secrets
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any, cast
from urllib.parse import parse_qs

import jinja2

from flywheel.judging.pairs import printable
from flywheel.labelling.pool import DRAWN, Pool
from flywheel.labelling.sheet import WORDS

_MOST_BYTES = 4096
"""Of one form."""
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class LabelServer:
    """A page for one person; `serve` returns when there is nothing left, or they stop."""

    def __init__(self, pool: Pool, port: int = 0) -> None:
        """Listen, but answer nobody yet; port 0 is any that is free."""
        self.pool = pool
        self.given = 0
        """Labels so far."""
        self.stopped = False
        self._token = secrets.token_urlsafe(24)
        self._server = _Server(self, port)

    @property
    def url(self) -> str:
        """The page's address, the token in it."""
        return f"http://{self.host}/{self._token}/"

    @property
    def host(self) -> str:
        """What a browser that means this server says in ``Host``."""
        return f"127.0.0.1:{self._server.server_port}"

    def serve(self) -> int:
        """Answer until all is labelled or the person stops; gives the number of labels."""
        try:
            while not self.stopped:
                self._server.handle_request()
        finally:
            self._server.server_close()
        return self.given

    def close(self) -> None:
        """Answer no more."""
        self.stopped = True
        self._server.server_close()

    def allows(self, path: str) -> bool:
        """Whether a request's path holds the token."""
        return hmac.compare_digest(path.encode(), f"/{self._token}/".encode())

    def page(self) -> str:
        """The page as it stands now."""
        turn = None if self.stopped else self.pool.next()
        item, drawn = turn or (None, "")
        return _template().render(
            item=item,
            drawn=drawn,
            done=self.pool.labelled,
            total=len(self.pool.items),
            stopped=self.stopped,
            printable=printable,
        )

    def take(self, form: dict[str, str]) -> bool:
        """Keep what a form says; False for one that this page has not made."""
        word, drawn = form.get("label", ""), form.get("drawn", "")
        if word == "stop":
            self.stopped = True
            return True
        kind = next((kind for kind in DRAWN if kind == drawn), None)
        if word not in WORDS or kind is None or form.get("pair") not in self.pool.items:
            return False
        self.pool.label({form["pair"]: (WORDS[word], kind)})
        self.given += 1
        self.stopped = self.pool.next() is None
        return True


class _Server(HTTPServer):
    def __init__(self, labels: LabelServer, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.labels = labels

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    """Seconds; one at a time is served."""

    def do_GET(self) -> None:
        """Show the next pair."""
        if self._refused():
            return
        self._send(200, self._labels.page())

    def do_POST(self) -> None:
        """Take a label, and show the next pair."""
        if self._refused():
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > _MOST_BYTES:
            self._send(413, "")
            return
        text = self.rfile.read(int(size)).decode("utf-8", "replace")
        form = {name: found[0] for name, found in parse_qs(text).items()}
        self._send(200, self._labels.page()) if self._labels.take(form) else self._send(400, "")

    @property
    def _labels(self) -> LabelServer:
        return cast(_Server, self.server).labels

    def _refused(self) -> bool:
        """Answer who is not the person this page is for."""
        labels = self._labels
        origin = self.headers.get("Origin", "null")
        foreign = self.headers.get("Host") != labels.host
        if foreign or origin not in ("null", f"http://{labels.host}"):
            self._send(403, "")
            return True
        if not labels.allows(self.path):
            self._send(404, "")
            return True
        return False

    def _send(self, status: int, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@cache
def _template() -> jinja2.Template:
    text = (files("flywheel.labelling") / "page.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(text)
