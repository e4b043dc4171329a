"""An OpenAI-compatible HTTP server on this machine that answers as a function says."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any, cast

from flywheel.config import ClientConfig
from flywheel.serving import OURS, Endpoint
from flywheel.testing.replies import Reply
from flywheel.types import Json


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came in. Header names are in lower case."""

    body: Json
    headers: dict[str, str]
    path: str = ""
    """With its query."""
    at: float = 0.0
    """When it came; monotonic seconds."""


Answer = Callable[[Json], Json | Reply]
"""Takes a request's body; gives an assistant message, or a `Reply`. Called in many threads.

A message may have ``logprobs`` as a choice has them; they are sent to who asks for them."""


class FakeEndpoint:
    """An OpenAI-compatible server for ``POST .../chat/completions``.

    Serves while the ``with`` block lasts. Streams an answer if a request says so. Answers carry a
    token usage of about four characters per token. An ``answer`` that raises becomes a 500 with the
    exception's text, not to be retried.
    """

    def __init__(self, answer: Answer) -> None:
        """Take the function that answers; the server listens, but serves only in ``with``."""
        self._answer = answer
        self._lock = Lock()
        self._busy = 0
        self.busiest = 0
        """The highest number of requests in flight at a time."""
        self.requests: list[Request] = []
        """All requests so far, in the order they came."""
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Base URL, ending in ``/v1``."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def endpoint(
        self,
        model: str = "fake",
        api_key_env: str | None = None,
        client: ClientConfig = OURS,
    ) -> Endpoint:
        """The server as inference and judging take it."""
        return Endpoint(self.url, model, api_key_env, client)

    def __enter__(self) -> FakeEndpoint:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _respond(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            answer = self._answer(request.body)
        except Exception as error:  # noqa: BLE001 -- shown to the client, as a server would
            said = {"error": {"message": f"{type(error).__name__}: {error}"}}
            return Reply(said, 500, {"x-should-retry": "false"})
        finally:
            with self._lock:
                self._busy -= 1
        if isinstance(answer, Reply):
            return answer
        whole = _completion(request.body, answer)
        return _streamed(whole) if request.body.get("stream") else Reply(whole)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, fake: FakeEndpoint) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fake = fake

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are none of the server's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer one request."""
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.partition("?")[0].endswith("/chat/completions"):
            self._send(Reply({"error": {"message": f"no such path: {self.path}"}}, 404))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(json.loads(data), headers, self.path, time.monotonic())
        self._send(cast(_Server, self.server).fake._respond(request))

    def _send(self, reply: Reply) -> None:
        if reply.drop:
            self._hang_up()
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        length = len(body) + sum(len(part) for _, part in reply.more)
        headers = {"Content-Type": "application/json", "Content-Length": str(length)}
        for name, value in {**headers, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        time.sleep(reply.first_byte_after_s)
        self.wfile.write(body[: reply.cut_after])
        for seconds, part in reply.more:
            time.sleep(seconds)
            self.wfile.write(part)
        if reply.cut_after is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _completion(body: Json, message: Json) -> Json:
    prompt, answer = (len(json.dumps(part)) // 4 + 1 for part in (body["messages"], message))
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    said = {name: value for name, value in message.items() if name != "logprobs"}
    logprobs = message.get("logprobs") if body.get("logprobs") else None
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model", ""),
        "choices": [{"index": 0, "message": said, "finish_reason": finish, "logprobs": logprobs}],
        "usage": usage,
    }


def _streamed(whole: Json) -> Reply:
    """The same completion as server-sent events: the answer, its end, and the usage."""
    (choice,) = whole["choices"]
    delta = choice["message"]
    calls = [{"index": i, **call} for i, call in enumerate(delta.get("tool_calls") or [])]
    first = {
        "index": 0,
        "delta": {**delta, **({"tool_calls": calls} if calls else {})},
        "logprobs": choice["logprobs"],
    }
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    head = {**whole, "object": "chat.completion.chunk", "usage": None}
    chunks = [{**head, "choices": [piece]} for piece in (first, last)]
    chunks.append({**head, "choices": [], "usage": whole["usage"]})
    events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
    data = "".join(f"data: {event}\n\n" for event in events)
    return Reply(data.encode(), headers={"Content-Type": "text/event-stream"})
