"""Made-up production logs, so that everything can be tried without anybody's data.

A web shop that does not exist, *Moss & Marlow*, has its assistant answer three workloads. Sentences
are assembled from templates; duplicates, malformed lines and personal data (invented: reserved
domains, fictional numbers) are planted in known amounts, which `SampleSummary` reports and a
curation must find. The same seed writes the same bytes.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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

_SYSTEM = {
    ROUTER: "You are the assistant of the web shop Moss & Marlow. Call one tool.",
    TICKETS: "Name the topic of the customer's message. Answer with the topic only.",
    ANSWERS: "You answer questions about Moss & Marlow's products in one sentence.",
}
_CLIENTS = ("shop-web", "shop-app")
_DEPARTMENTS = ("billing", "sales", "repairs", "complaints")
_REASONS = ("damaged", "faulty", "late", "unwanted")

# fmt: off
_PRODUCTS = [
    "oak bread board", "copper kettle", "linen apron", "stoneware mug", "garden trowel",
    "beeswax candle", "wool blanket", "cast iron pan", "glass teapot", "herb planter",
    "walnut tray", "enamel jug", "jute doormat", "ceramic bowl", "pruning shears",
    "watering can", "pepper mill", "cotton towel", "brass lantern", "rattan basket",
    "salad server", "egg timer", "milk frother", "spice rack", "picnic rug", "bird feeder",
    "seed box", "cake stand", "butter dish", "paring knife", "tea strainer", "oven glove",
    "window box", "plant mister", "knife block", "coffee grinder",
]
_CITIES = [
    "Leeds", "Bristol", "York", "Bath", "Oxford", "Dover", "Exeter", "Lincoln", "Durham",
    "Norwich", "Chester", "Truro", "Derby", "Cardiff",
]
_NAMES = [
    "Anna", "Ben", "Chloe", "David", "Ella", "Farid", "Grace", "Hugo", "Iris", "Jonas", "Kavya",
    "Liam", "Mona", "Noor", "Otto",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_DEVICES = ["my phone", "my laptop", "the app", "my tablet", "the website"]
_WORDS = ["SPRING", "HELLO", "GARDEN", "KETTLE", "WINTER", "LINEN", "FRIEND", "BLOOM"]
_MATERIALS = [
    "oiled oak", "brushed copper", "washed linen", "glazed clay", "recycled steel", "soft wool",
]
# fmt: on

_OPENERS = ("", "", "", "Hello! ", "Hi there. ", "Good morning. ", "This is {name}. ", "Hey! ")
_CLOSERS = ("", "", "", "", " Thanks.", " Thank you!", " Please be quick.", " Cheers.")

_ROUTES = {
    "track_order": (
        "Where is my order {order_id}?",
        "Can you tell me when {order_id} will arrive?",
        "I ordered a {product} on {day}, number {order_id}, where is it?",
        "Has order {order_id} with the {product} left the warehouse yet?",
        "Please check the delivery status of {order_id}.",
        "The {product} in {order_id} should have been here on {day}.",
        "Still waiting for parcel {order_id}, any news?",
        "How long until {order_id} reaches {city}?",
    ),
    "return_item": (
        "I want to send back order {order_id}, it is {reason}.",
        "The {product} from {order_id} is {reason}, please take it back.",
        "How do I return {order_id}? The {product} turned out {reason}.",
        "My {product} came {reason} on {day}, order {order_id}, I want my money back.",
        "Please open a return for {order_id} because the item is {reason}.",
        "Return {order_id} for me, the {product} is {reason}.",
        "I am not keeping the {reason} {product} of order {order_id}.",
    ),
    "check_stock": (
        "Do you have the {product} in your {city} shop?",
        "Is the {product} in stock in {city}?",
        "Can I pick up a {product} in {city} on {day}?",
        "How many of the {product} are left at {city}?",
        "I am in {city} and looking for a {product}, do you have one?",
        "Would the {city} store still have a {product} on {day}?",
        "My sister in {city} wants a {product}, is it available there?",
    ),
    "apply_discount": (
        "Please use the code {code} on my basket.",
        "I have a voucher {code}, can you take it off the {product}?",
        "Apply {code} to my order of a {product}.",
        "My friend {name} gave me {code}, does it work for the {product}?",
        "The newsletter on {day} said {code}, put it on my cart.",
        "Take {code} into account before I pay for the {product}.",
        "Please redeem {code} for me.",
    ),
    "talk_to_human": (
        "I want to talk to a person in {department} about my {product}.",
        "Put me through to {department}, this is about the {product} from {day}.",
        "Could somebody from {department} call me on {day}?",
        "No more bots please, give me {department} for my {product}.",
        "Is anyone from {department} there who knows the {product}?",
        "Let me speak with {department} in {city}.",
        "I need a human from {department}, the {product} is a long story.",
    ),
}
_ARGUMENTS = {
    "track_order": ("order_id",),
    "return_item": ("order_id", "reason"),
    "check_stock": ("product", "city"),
    "apply_discount": ("code",),
    "talk_to_human": ("department",),
}

_TOPICS = {
    "delivery_delay": (
        "My {product} was due on {day} and is still not here.",
        "The parcel with the {product} has not moved since {day}.",
        "{day} came and went without my {product}.",
        "How much longer does the {product} take to {city}?",
    ),
    "damaged_item": (
        "The {product} arrived with a crack.",
        "I opened the box on {day} and the {product} was in pieces.",
        "There is a deep scratch on my new {product}.",
        "My {product} broke the first time I used it in {city}.",
    ),
    "wrong_item": (
        "I ordered a {product} and got something else.",
        "You sent a {product} that I never asked for.",
        "On {day} the courier brought a {product}, but that is not mine.",
        "The label says {product}, yet there is another thing inside.",
    ),
    "refund_status": (
        "I sent the {product} back on {day}, where is my money?",
        "When do I get the refund for the {product}?",
        "The {product} was returned in {city}, but nothing was paid back.",
        "You promised my money for the {product} by {day}.",
    ),
    "payment_problem": (
        "I was charged twice for the {product}.",
        "My card was declined when I paid for the {product} on {day}.",
        "The checkout fails at the payment for a {product} on {device}.",
        "The amount you took for the {product} is too high.",
    ),
    "account_access": (
        "I cannot log in on {device} since {day}.",
        "The password reset for {device} never reached me in {city}.",
        "My account has been locked on {device}, I only wanted a {product}.",
        "Signing in on {device} fails since I bought the {product}.",
    ),
    "product_question": (
        "Can the {product} go into the dishwasher?",
        "What is the {product} made of?",
        "Does the {product} come in another colour before {day}?",
        "Is the {product} suitable as a gift for a friend in {city}?",
    ),
    "cancel_order": (
        "Please cancel the {product} I ordered on {day}.",
        "I changed my mind about the {product}, stop the order.",
        "Do not ship the {product} to {city} any more.",
        "I bought the {product} by mistake, call it off.",
    ),
}

_QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "The {product} costs {price} pounds.",
        ("How much is the {product}?", "What does a {product} cost in {city}?"),
    ),
    (
        "The {product} is made of {material}.",
        ("What is the {product} made of?", "Which material is used for the {product}?"),
    ),
    (
        "The {product} is {size} centimetres wide.",
        ("How wide is the {product}?", "Will the {product} fit on a shelf in {city}?"),
    ),
    (
        "The {product} has a warranty of {years} years.",
        (
            "How long is the warranty on the {product}?",
            "Is my {product} from {day} under warranty?",
        ),
    ),
    (
        "Delivery of the {product} to {city} takes {size} hours.",
        ("How long does a {product} take to {city}?", "When would a {product} be in {city}?"),
    ),
)

_PERSONAL_TEXT = {
    "EMAIL": " My e-mail is {value}.",
    "PHONE": " You can reach me at {value}.",
    "CARD": " I paid with card {value}.",
}


def _function(name: str, description: str, **properties: Any) -> Json:
    required = [key for key in properties if key != "contact"]
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


_TEXT = {"type": "string"}
TOOLS = [
    _function("track_order", "Find out where an order is.", order_id=_TEXT),
    _function(
        "return_item",
        "Take an item back.",
        order_id=_TEXT,
        reason={"type": "string", "enum": list(_REASONS)},
    ),
    _function("check_stock", "See if a shop has a product.", product=_TEXT, city=_TEXT),
    _function("apply_discount", "Use a voucher code.", code=_TEXT),
    _function(
        "talk_to_human",
        "Pass on to a person.",
        department={"type": "string", "enum": list(_DEPARTMENTS)},
        contact=_TEXT,
    ),
]


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


def _slots(rng: random.Random) -> dict[str, str]:
    return {
        "product": rng.choice(_PRODUCTS),
        "city": rng.choice(_CITIES),
        "day": rng.choice(_DAYS),
        "name": rng.choice(_NAMES),
        "device": rng.choice(_DEVICES),
        "order_id": f"M{rng.randrange(10_000, 100_000)}",
        "reason": rng.choice(_REASONS),
        "department": rng.choice(_DEPARTMENTS),
        "code": f"{rng.choice(_WORDS)}{rng.randrange(5, 60, 5)}",
    }


def _said(template: str, slots: dict[str, str], rng: random.Random) -> str:
    return (rng.choice(_OPENERS) + template + rng.choice(_CLOSERS)).format_map(slots)


def _route(rng: random.Random) -> _Call:
    tool = rng.choice(list(_ROUTES))
    slots = _slots(rng)
    query = _said(rng.choice(_ROUTES[tool]), slots, rng)
    return _Call(query, tool=tool, arguments={name: slots[name] for name in _ARGUMENTS[tool]})


def _ticket(rng: random.Random) -> _Call:
    topic = rng.choice(list(_TOPICS))
    return _Call(_said(rng.choice(_TOPICS[topic]), _slots(rng), rng), text=topic)


def _question(rng: random.Random) -> _Call:
    answer, questions = rng.choice(_QUESTIONS)
    slots = _slots(rng)
    query = _said(rng.choice(questions), slots, rng)
    number = _PRODUCTS.index(slots["product"])
    facts = {
        "price": str(4 + 3 * number),
        "size": str(12 + 2 * number),
        "years": str(1 + number % 5),
        "material": _MATERIALS[number % len(_MATERIALS)],
    }
    return _Call(query, text=answer.format_map({**slots, **facts}))


_MAKERS = {ROUTER: _route, TICKETS: _ticket, ANSWERS: _question}


def _personal(call: _Call, number: int, rng: random.Random) -> _Call:
    """Add a made-up e-mail address, phone number or card number, in turn."""
    kind = list(_PERSONAL_TEXT)[number % len(_PERSONAL_TEXT)]
    value = {"EMAIL": _email, "PHONE": _phone, "CARD": _card}[kind](rng)
    query = call.query + _PERSONAL_TEXT[kind].format(value=value)
    contact = {"contact": value} if call.tool == "talk_to_human" and kind != "CARD" else {}
    arguments = {**call.arguments, **contact}
    return replace(call, query=query, arguments=arguments, personal=kind)


def _email(rng: random.Random) -> str:
    name, number = rng.choice(_NAMES).lower(), rng.randrange(10, 1000)
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
            {"role": "system", "content": _SYSTEM[workload]},
            {"role": "user", "content": call.query},
        ],
    }
    if call.tool:
        request |= {"tools": TOOLS, "tool_choice": "auto"}
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
        "client_id": rng.choice(_CLIENTS),
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
