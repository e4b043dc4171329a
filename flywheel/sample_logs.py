"""Made-up production logs, so that everything can be tried without anybody's data.

A web shop that does not exist, *Moss & Marlow*, has its assistant answer three workloads. Sentences
are assembled from the templates of ``sample_logs.json``; duplicates, malformed lines and personal
data (invented: reserved domains, fictional numbers) are planted in known amounts, which
`SampleSummary` reports and a curation must find. The same seed writes the same bytes.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flywheel.datasets import normal_text
from flywheel.types import Json, Reason

ROUTER, TICKETS, ANSWERS = "shop.router", "shop.tickets", "shop.answers"
MODEL = "meta/llama-3.1-70b-instruct"
SHARDS = 4

NOTICE = """These logs are synthetic. The web shop "Moss & Marlow", its customers and their words
are made up by a program from templates; no line was said by a person. E-mail addresses use domains
reserved for documentation, phone numbers the range kept for fiction, and card numbers are random
digits with a valid check digit. Duplicates and malformed lines are planted on purpose.
"""

_START, _MONTH_S = 1_767_225_600, 31 * 24 * 3600
"""January 2026, UTC."""

_SHARE = {ROUTER: 0.5, TICKETS: 0.3, ANSWERS: 0.2}
_EXACT, _NORMALISED, _PERSONAL, _DEFECT = 0.04, 0.02, 0.03, 0.006
"""Shares of a workload's records; each kind of malformed line as a share of all records."""


@cache
def _texts() -> Json:
    """What customers and the assistant say; whatever stands in braces is filled in."""
    texts: Json = json.loads(files("flywheel").joinpath("sample_logs.json").read_text("utf-8"))
    return texts


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """What was written, and what a curation of it must count."""

    directory: str
    files: list[str]
    lines: int
    records: dict[str, int]
    """Well-formed records by workload, duplicates included."""
    duplicates: dict[str, dict[str, int]]
    """By workload: ``exact`` and ``normalised`` repeats of another record's request."""
    personal: dict[str, dict[str, int]]
    """By workload: planted values by type."""
    rejected: dict[str, int]
    """Malformed lines by the reason they must be rejected for."""
    notice: str = NOTICE


@dataclass(frozen=True, slots=True)
class _Call:
    """One exchange: what the customer wrote and what the assistant answered."""

    query: str
    tool: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    text: str = ""
    personal: str = ""
    """Type of the personal data in it."""


def write_sample_logs(directory: str | Path, records: int = 3000, seed: int = 0) -> SampleSummary:
    """Write JSON Lines shards and a README.txt that says they are synthetic.

    Args:
        directory: Where to write; made if missing. Files of an earlier call are replaced.
        records: Well-formed records over all workloads, from 100 to 5,000.
        seed: Chooses the sentences.

    Raises:
        ValueError: ``records`` is out of range.
    """
    calls, duplicates, lines, rejected = _made(records, seed)
    files = _write(Path(directory), _shards(lines))
    personal: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for workload, call in calls:
        personal[workload].update([call.personal] if call.personal else [])
    return SampleSummary(
        directory=str(directory),
        files=files,
        lines=len(lines),
        records=dict(Counter(workload for workload, _ in calls)),
        duplicates=duplicates,
        personal={name: dict(sorted(counts.items())) for name, counts in personal.items()},
        rejected=rejected,
    )


def sample_shards(records: int = 3000, seed: int = 0) -> list[list[str]]:
    """The same lines, by shard, without writing them.

    Raises:
        ValueError: ``records`` is out of range.
    """
    _, _, lines, _ = _made(records, seed)
    return _shards(lines)


def _made(
    records: int, seed: int
) -> tuple[list[tuple[str, _Call]], dict[str, dict[str, int]], list[str], dict[str, int]]:
    """Calls, planted duplicates, log lines, and planted defects."""
    if not 100 <= records <= 5000:
        raise ValueError(f"records must be 100 to 5000, not {records}")
    rng = random.Random(seed)
    calls, duplicates = _traffic(records, rng)
    lines, rejected = _log_lines(calls, max(1, round(records * _DEFECT)), rng)
    return calls, duplicates, lines, rejected


def _shards(lines: list[str]) -> list[list[str]]:
    return [lines[shard::SHARDS] for shard in range(SHARDS)]


def _traffic(
    records: int, rng: random.Random
) -> tuple[list[tuple[str, _Call]], dict[str, dict[str, int]]]:
    traffic: list[tuple[str, _Call]] = []
    duplicates = {}
    for workload, share in _SHARE.items():
        n = round(records * share)
        exact, normalised = round(n * _EXACT), round(n * _NORMALISED)
        calls = _distinct(n - exact - normalised, _MAKERS[workload], rng)
        private = round(n * _PERSONAL)
        # Repeats are of sentences without personal data, so that its amount stays known.
        repeated = rng.sample(calls[private:], exact + normalised)
        calls[:private] = [_personal(call, i, rng) for i, call in enumerate(calls[:private])]
        calls += repeated[:exact] + [_restyled(call) for call in repeated[exact:]]
        duplicates[workload] = {"exact": exact, "normalised": normalised}
        traffic += [(workload, call) for call in calls]
    rng.shuffle(traffic)
    return traffic, duplicates


def _distinct(n: int, make: Callable[[random.Random], _Call], rng: random.Random) -> list[_Call]:
    calls: dict[str, _Call] = {}
    while len(calls) < n:
        call = make(rng)
        calls.setdefault(normal_text(call.query), call)
    return list(calls.values())


def _pick(kind: str, rng: random.Random) -> str:
    word: str = rng.choice(_texts()["words"][kind])
    return word


def _slots(rng: random.Random) -> dict[str, str]:
    return {
        **{kind: _pick(kind, rng) for kind in ("product", "city", "day", "name", "device")},
        "order_id": f"M{rng.randrange(10_000, 100_000)}",
        "reason": _pick("reason", rng),
        "department": _pick("department", rng),
        "code": f"{_pick('code', rng)}{rng.randrange(5, 60, 5)}",
    }


def _said(template: str, slots: dict[str, str], rng: random.Random) -> str:
    return (_pick("opener", rng) + template + _pick("closer", rng)).format_map(slots)


def _route(rng: random.Random) -> _Call:
    routes = _texts()["routes"]
    tool = rng.choice(list(routes))
    slots = _slots(rng)
    query = _said(rng.choice(routes[tool]["sentences"]), slots, rng)
    return _Call(query, tool=tool, arguments={n: slots[n] for n in routes[tool]["arguments"]})


def _ticket(rng: random.Random) -> _Call:
    topics = _texts()["topics"]
    topic = rng.choice(list(topics))
    return _Call(_said(rng.choice(topics[topic]), _slots(rng), rng), text=topic)


def _question(rng: random.Random) -> _Call:
    about = rng.choice(_texts()["questions"])
    slots = _slots(rng)
    query = _said(rng.choice(about["sentences"]), slots, rng)
    words = _texts()["words"]
    number = words["product"].index(slots["product"])
    facts = {
        "price": str(4 + 3 * number),
        "size": str(12 + 2 * number),
        "years": str(1 + number % 5),
        "material": words["material"][number % len(words["material"])],
    }
    return _Call(query, text=about["answer"].format_map({**slots, **facts}))


_MAKERS = {ROUTER: _route, TICKETS: _ticket, ANSWERS: _question}


def _personal(call: _Call, number: int, rng: random.Random) -> _Call:
    """Add a made-up e-mail address, phone number or card number, in turn."""
    sentences = _texts()["personal"]
    kind = list(sentences)[number % len(sentences)]
    value = {"EMAIL": _email, "PHONE": _phone, "CARD": _card}[kind](rng)
    query = call.query + sentences[kind].format(value=value)
    contact = {"contact": value} if call.tool == "talk_to_human" and kind != "CARD" else {}
    arguments = {**call.arguments, **contact}
    return replace(call, query=query, arguments=arguments, personal=kind)


def _email(rng: random.Random) -> str:
    name, number = _pick("name", rng).lower(), rng.randrange(10, 1000)
    return f"{name}{number}@{rng.choice(('example.com', 'example.org', 'mail.example.net'))}"


def _phone(rng: random.Random) -> str:
    """555-0100 to 555-0199 is kept for fiction in North America."""
    area, line = rng.choice((212, 312, 415, 503)), rng.randrange(100, 200)
    return rng.choice(("+1 {} 555 0{}", "({}) 555-0{}")).format(area, line)


def _card(rng: random.Random) -> str:
    digits = [4] + [rng.randrange(10) for _ in range(14)]
    total = sum(sum(divmod(d * (2 if i % 2 == 0 else 1), 10)) for i, d in enumerate(digits))
    text = "".join(map(str, [*digits, -total % 10]))
    return " ".join(text[i : i + 4] for i in range(0, 16, 4))


def _restyled(call: _Call) -> _Call:
    """The same request in capitals, with other spacing and without its closing mark."""
    return replace(call, query="  " + call.query.rstrip(".?!").upper().replace(" ", "  ", 2) + " ")


def _log_lines(
    traffic: list[tuple[str, _Call]], each: int, rng: random.Random
) -> tuple[list[str], dict[str, int]]:
    """The traffic with ``each`` malformed lines of every kind among it, in order of time."""
    step = _MONTH_S // (len(traffic) + 1)
    logs = [_log(w, call, i, _START + i * step, rng) for i, (w, call) in enumerate(traffic)]
    lines = [(log["timestamp"], json.dumps(log, ensure_ascii=False)) for log in logs]
    for spoil in _DEFECTS.values():
        for log in rng.sample(logs, each):
            line = spoil(json.loads(json.dumps(log)), rng)
            lines.append((log["timestamp"], line))
    lines.sort()
    return [line for _, line in lines], dict.fromkeys(map(str, _DEFECTS), each)


def _log(workload: str, call: _Call, number: int, timestamp: int, rng: random.Random) -> Json:
    request: Json = {
        "model": MODEL,
        "temperature": 0.0,
        "max_tokens": 128,
        "messages": [
            {"role": "system", "content": _texts()["system"][workload]},
            {"role": "user", "content": call.query},
        ],
    }
    if call.tool:
        request |= {"tools": _texts()["tools"], "tool_choice": "auto"}
    usage = {
        "prompt_tokens": _tokens(request["messages"], request.get("tools", [])),
        "completion_tokens": _tokens(call.tool, call.arguments, call.text),
    }
    response = {
        "id": f"chatcmpl-{number:06d}",
        "object": "chat.completion",
        "created": timestamp,
        "model": MODEL,
        "choices": [{"index": 0, **_answer(call, number)}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return {
        "timestamp": timestamp,
        "workload_id": workload,
        "client_id": _pick("client", rng),
        "request": request,
        "response": response,
    }


def _answer(call: _Call, number: int) -> Json:
    if not call.tool:
        return {"finish_reason": "stop", "message": {"role": "assistant", "content": call.text}}
    function = {"name": call.tool, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    calls = [{"id": f"call_{number:06d}", "type": "function", "function": function}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return {"finish_reason": "tool_calls", "message": message}


def _tokens(*values: Any) -> int:
    """About four characters a token."""
    return sum(len(json.dumps(value)) for value in values) // 4


def _truncated(log: Json, rng: random.Random) -> str:
    line = json.dumps(log)
    return line[: rng.randrange(20, len(line) - 1)]


def _without_choices(log: Json, _: random.Random) -> str:
    log["response"]["choices"] = []
    return json.dumps(log)


def _broken_arguments(log: Json, _: random.Random) -> str:
    function = {"name": "track_order", "arguments": "{order_id: M1"}
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
    log["response"]["choices"] = [{"finish_reason": "tool_calls", "message": message}]
    return json.dumps(log)


def _text_timestamp(log: Json, _: random.Random) -> str:
    return json.dumps({**log, "timestamp": "last week"})


def _without_workload(log: Json, _: random.Random) -> str:
    del log["workload_id"]
    return json.dumps(log)


def _without_messages(log: Json, _: random.Random) -> str:
    log["request"]["messages"] = []
    return json.dumps(log)


def _unknown_role(log: Json, _: random.Random) -> str:
    log["request"]["messages"][-1]["role"] = "shopkeeper"
    return json.dumps(log)


_DEFECTS: dict[Reason, Callable[[Json, random.Random], str]] = {
    Reason.NOT_JSON: _truncated,
    Reason.EMPTY_CHOICES: _without_choices,
    Reason.TOOL_ARGUMENTS_NOT_JSON: _broken_arguments,
    Reason.BAD_TIMESTAMP: _text_timestamp,
    Reason.MISSING_WORKLOAD_ID: _without_workload,
    Reason.EMPTY_MESSAGES: _without_messages,
    Reason.UNKNOWN_ROLE: _unknown_role,
}


def _write(directory: Path, shards: list[list[str]]) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.txt").write_text(NOTICE, encoding="utf-8")
    files = [directory / f"shop-{shard:05d}.jsonl" for shard in range(SHARDS)]
    for shard, path in zip(shards, files, strict=True):
        text = "".join(line + "\n" for line in shard)
        path.write_bytes(text.encode())
    return [str(path) for path in files]
