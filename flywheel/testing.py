"""Public fakes: try a setup, or test code that uses flywheel, without models, keys or a network.

`FakeEndpoint` is a real HTTP server on this machine that answers as a function says; candidates and
judges talk to it as they would to any OpenAI-compatible endpoint. `tiny_model` writes a model
folder with random weights that transformers and vLLM load offline. `sample_record` makes Records.

    with FakeEndpoint(lambda body: tool_reply("track_order", {"order_id": "A-1"})) as fake:
        ...  # candidates: [{model: fake, endpoint: <fake.url>}]
    assert fake.busiest <= 16
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import Any, cast

from flywheel.config import ClientConfig
from flywheel.serving import OURS, Endpoint
from flywheel.types import Json, Record

TRACK_ORDER: Json = {
    "type": "function",
    "function": {
        "name": "track_order",
        "description": "Say where an order is",
        "parameters": {
            "type": "object",
            "properties": {
                "order_id": {"type": "string"},
                "speed": {"type": "string", "enum": ["fast", "slow"]},
                "days": {"type": "integer", "description": "to look back"},
            },
            "required": ["order_id"],
        },
    },
}
"""A tool with a required argument, a choice and a number."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response other than a plain answer."""

    body: Json | bytes = b""
    """JSON, or bytes sent as they are (rubbish, too)."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """``{"Retry-After": "1"}``; the content type is JSON's unless given here."""
    drop: bool = False
    """Close the connection without a response."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    first_byte_after_s: float = 0.0
    """Seconds between the headers and the body."""
    more: Sequence[tuple[float, bytes]] = ()
    """Further parts of the body, and the seconds that pass before each."""


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


def text_reply(text: str) -> Json:
    """An assistant message that says this."""
    return {"role": "assistant", "content": text}


def tool_reply(name: str, arguments: Json) -> Json:
    """An assistant message that calls one tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def paced_reply(
    tokens: Sequence[str], first_token_s: float = 0.0, between_tokens_s: float = 0.0
) -> Reply:
    """A streamed answer whose times are known: its role at once, then token by token.

    Args:
        tokens: What it says; its usage counts them, and 100 tokens of prompt.
        first_token_s: Seconds from the request to the first.
        between_tokens_s: Seconds between one and the next.
    """
    pieces = [{"index": 0, "delta": {"content": token}} for token in tokens]
    parts = [_event([piece]) for piece in pieces]
    usage = {"prompt_tokens": 100, "completion_tokens": len(tokens)}
    end = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}]) + _event([], usage=usage)
    parts[-1] += end + b"data: [DONE]\n\n"
    waits = [first_token_s, *[between_tokens_s] * (len(parts) - 1)]
    return Reply(
        _event([{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
        headers={"Content-Type": "text/event-stream"},
        more=list(zip(waits, parts, strict=True)),
    )


def verdict(score: int) -> Json:
    """What a judge answers: a score of 1 to 10."""
    return text_reply(json.dumps({"score": score}))


def likely_verdict(chances: Mapping[int, float]) -> Json:
    """A judge's answer with log-probabilities: its score is the likeliest of these.

    Args:
        chances: How likely each score is; 10 is one token, as in most tokenizers.
    """
    score = max(chances, key=lambda s: chances[s])
    top = [{"token": str(s), "logprob": math.log(p)} for s, p in chances.items() if p]
    tokens = [
        {"token": '{"score": ', "logprob": 0.0, "top_logprobs": []},
        {"token": str(score), "logprob": math.log(chances[score]), "top_logprobs": top},
        {"token": "}", "logprob": 0.0, "top_logprobs": []},
    ]
    return {**verdict(score), "logprobs": {"content": tokens}}


def preferred(better: str) -> Json:
    """What a judge answers who compares two answers: ``A``, ``B`` or ``tie``."""
    return text_reply(json.dumps({"better": better}))


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


def _event(choices: Sequence[Json], **fields: Any) -> bytes:
    chunk = {"object": "chat.completion.chunk", "choices": list(choices), **fields}
    return f"data: {json.dumps(chunk)}\n\n".encode()


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


def sample_record(
    query: str = "Where is order A-1?",
    answer: Json | None = None,
    *,
    system: str = "You help customers of a shop.",
    tools: Sequence[Json] | None = None,
    workload: str = "shop.router",
    timestamp: float = 1_767_229_480.0,
) -> Record:
    """A Record of one question and its answer.

    Args:
        query: What the user asks.
        answer: Production's message; default: a call of ``track_order``.
        system: The system message; empty for none.
        tools: What the model could call; default: ``track_order`` if the answer calls a tool.
        workload: The workload's id.
        timestamp: Seconds since the epoch.
    """
    answer = answer or tool_reply("track_order", {"order_id": "A-1"})
    if tools is None:
        tools = [TRACK_ORDER] if answer.get("tool_calls") else []
    lead = [{"role": "system", "content": system}] if system else []
    request: Json = {"messages": [*lead, {"role": "user", "content": query}]}
    if tools:
        request["tools"] = list(tools)
    response = {
        "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return Record(timestamp, workload, "shop-web", request, response)


_CHAT = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
_TOOLS = """\
{%- if tools -%}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
"""
_CORPUS = (
    "You help customers of a shop. Where is order A-1? Please send it back.",
    '<tool_call>{"name": "track_order", "arguments": {"order_id": "A-1"}}</tool_call>',
    '{"type": "function", "function": {"description": "", "parameters": {"properties": {}}}}',
    '{"score": 1} {"score": 10} QUESTION REFERENCE ANSWER CANDIDATE ANSWER',
    "system user assistant Tools: To call a tool, answer with: billing shipping refund",
)


def tiny_model(folder: Path, *, tools: bool = False, seed: int = 0) -> Path:
    """Write a model folder: a two-layer Llama with random weights, and its own tokenizer.

    transformers and vLLM load it offline; what it says is nonsense, but the same nonsense for the
    same seed. Its chat template is ChatML.

    Args:
        folder: Where to; made if missing.
        tools: Whether the chat template has a place for tools.
        seed: Decides the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer()
    tokenizer.chat_template = (_TOOLS if tools else "") + _CHAT
    tokenizer.save_pretrained(str(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder


def _tiny_tokenizer() -> Any:
    """Byte-level BPE, so that any text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 -- no password
        pad_token="<|endoftext|>",  # noqa: S106
    )
