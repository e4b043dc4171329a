"""Made-up tool-calling traffic for benchmarks: any amount, quickly, with planted counts.

The help desk of a furnishing shop that does not exist answers by calling tools. Each record, about
2.6 KB, is a function of seed and index alone. A file is periods of 100 lines with one layout, so
every kind of line has the same share at any size: repeats of another line, personal data, broken
lines. A repeat's source lies anywhere in the file and has no other repeat: counts are exact.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import gcd
from pathlib import Path
from typing import Any

from flywheel.types import Reason

from . import wording

WORKLOAD = "helpdesk.router"
MODEL = "llama-3.1-70b"
PERIOD = 100
LINES_PER_SHARD = 100_000

_MULTI_TURN, _TEXT_ANSWER = 0.15, 0.15
"""Shares of records, drawn for each."""
_MORE_SENTENCES = (0, 0, 0, 1, 1, 2)
_LONGEST = 200
"""Characters from which a sentence is left out."""
_LINES_AT_ONCE = 2_000
_FIRST_DAY, _MONTH_S = 1_767_225_600, 30 * 24 * 3600
"""January 2026, UTC."""


class _Kind(Enum):
    FRESH = auto()
    PERSONAL = auto()
    EXACT = auto()
    NORMALISED = auto()
    NEAR = auto()
    REJECTED = auto()


_EACH = {
    _Kind.FRESH: 85,
    _Kind.PERSONAL: 5,
    _Kind.EXACT: 4,
    _Kind.NORMALISED: 2,
    _Kind.NEAR: 3,
    _Kind.REJECTED: 1,
}
"""Lines of each kind in a period."""
_LAYOUT = random.Random(0).sample(list(_EACH), PERIOD, counts=list(_EACH.values()))


def _places(*kinds: _Kind) -> list[int]:
    return [place for place, kind in enumerate(_LAYOUT) if kind in kinds]


_REPEATS = _places(_Kind.EXACT, _Kind.NORMALISED, _Kind.NEAR)
_SOURCES = random.Random(0).sample(_places(_Kind.FRESH), len(_REPEATS))
_SOURCE_OF = dict(zip(_REPEATS, _SOURCES, strict=True))
"""Place of a repeat in its period -> place of its source in another period."""
_LONG = {source for place, source in _SOURCE_OF.items() if _LAYOUT[place] is _Kind.NEAR}
"""Sources so long that one changed word leaves them near."""
_VALUES = ("EMAIL", "EMAIL", "PHONE", "PHONE", "CARD")
_PERSONAL = dict(zip(_places(_Kind.PERSONAL), _VALUES, strict=True))


@dataclass(frozen=True, slots=True)
class Planted:
    """What a file of traffic holds."""

    lines: int
    records: int
    """Lines that are valid."""
    exact: int
    """Records that repeat another one's request."""
    normalised: int
    """... but for case, spacing and closing marks."""
    near: int
    """... but for one word or letter: Jaccard similarity of character 5-grams at least 0.87."""
    personal: dict[str, int]
    """Records with one such value each, by type."""
    rejected: dict[str, int]
    """Lines that are no record, by reason."""


@dataclass(frozen=True, slots=True)
class _Deployment:
    """What production ran for a while."""

    system: str
    """The first message, as JSON."""
    tools: str
    """JSON, too."""
    names: list[str]
    start: int
    """Seconds since the epoch."""
    seconds: int


class _Words(dict[str, str]):
    """Words drawn as a sentence names them, and kept: a tool's arguments say the same."""

    def __init__(self, rng: random.Random, **known: str) -> None:
        super().__init__(known)
        self._rng = rng

    def __missing__(self, name: str) -> str:
        word: str = _pick(self._rng, wording.VOCABULARY[name])
        self[name] = word
        return word


def planted(lines: int) -> Planted:
    """The counts in a file of so many lines.

    Raises:
        ValueError: Not whole periods.
    """
    periods = _periods(lines)
    reasons = list(_DAMAGE)
    rejected = Counter(reasons[period % len(reasons)].value for period in range(periods))
    return Planted(
        lines=lines,
        records=lines - periods * _EACH[_Kind.REJECTED],
        exact=periods * _EACH[_Kind.EXACT],
        normalised=periods * _EACH[_Kind.NORMALISED],
        near=periods * _EACH[_Kind.NEAR],
        personal={value: periods * _VALUES.count(value) for value in sorted(set(_VALUES))},
        rejected=dict(sorted(rejected.items())),
    )


def write(folder: Path, lines: int, seed: int = 0) -> Planted:
    """Write JSON Lines shards into a folder; the same seed writes the same bytes.

    Raises:
        ValueError: ``lines`` is not a multiple of `PERIOD`.
    """
    counts = planted(lines)
    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, lines, LINES_PER_SHARD)):
        end = min(start + LINES_PER_SHARD, lines)
        with (folder / f"traffic-{shard:05d}.jsonl").open("wb") as file:
            for first in range(start, end, _LINES_AT_ONCE):
                some = range(first, min(first + _LINES_AT_ONCE, end))
                file.write("".join(_lines(some, lines, seed)).encode())
    return counts


def _periods(lines: int) -> int:
    if lines <= 0 or lines % PERIOD:
        raise ValueError(f"{lines} lines: must be a multiple of {PERIOD}")
    return lines // PERIOD


def _lines(indices: range, lines: int, seed: int) -> Iterator[str]:
    rng = random.Random()
    periods = lines // PERIOD
    # Steps without a common divisor visit every period once: no source is taken twice.
    step = next(n for n in range(int(0.618 * periods), periods + 2) if gcd(n, periods) == 1)
    for index in indices:
        period, place = divmod(index, PERIOD)
        source = index
        if place in _SOURCE_OF:
            source = (period * step + place) % periods * PERIOD + _SOURCE_OF[place]
        yield _line(index, source, seed, rng)


def _line(index: int, source: int, seed: int, rng: random.Random) -> str:
    """Content is drawn from the source's numbers, ids and time from the line's own."""
    period, place = divmod(index, PERIOD)
    kind = _LAYOUT[place]
    rng.seed(seed << 40 | source)
    deployment = _pick(rng, _DEPLOYMENTS)
    tool = _pick(rng, wording.CONTACTS if kind is _Kind.PERSONAL else deployment.names)
    words = _Words(rng, order=f"ORD-{(source * 387_420_489 + 271_828_183) % 10**9:09d}")
    text = _text(rng, words, tool, is_long=source % PERIOD in _LONG)
    contact = ""
    if kind is _Kind.PERSONAL:
        sentence, contact = _contact(rng, _PERSONAL[place])
        text += sentence
    arguments = f"{{{wording.ARGUMENTS[tool].format_map(words)}{contact}}}"
    history = _history(rng) if rng.random() < _MULTI_TURN else ""
    reply = ""
    if rng.random() < _TEXT_ANSWER and kind is not _Kind.REJECTED:
        reply = _pick(rng, wording.REPLIES).format_map(words)
    if source != index:
        rng.seed(seed << 40 | index)
        text = _RETOLD[kind](text, rng)
    messages = f'{deployment.system},{history}{{"role":"user","content":"{text}"}}'
    answer = _spoken(reply) if reply else _called(_id(rng, "call_"), tool, arguments)
    line = _logged(rng, deployment, messages, answer, "stop" if reply else "tool_calls")
    if kind is _Kind.REJECTED:
        line = list(_DAMAGE.values())[period % len(_DAMAGE)](line)
    return line + "\n"


def _pick(rng: random.Random, things: Sequence[Any]) -> Any:
    # A third of the time of random.choice.
    return things[int(rng.random() * len(things))]


def _id(rng: random.Random, prefix: str) -> str:
    return f"{prefix}{rng.getrandbits(48):012x}"


def _logged(
    rng: random.Random, deployment: _Deployment, messages: str, answer: str, finish: str
) -> str:
    time = deployment.start + int(rng.random() * deployment.seconds)
    client, name = _pick(rng, wording.CLIENTS), _id(rng, "chatcmpl-")
    asked, answered = (len(messages) + len(deployment.tools)) // 4, len(answer) // 4
    return (
        f'{{"timestamp":{time},"workload_id":"{WORKLOAD}","client_id":"{client}","request":'
        f'{{"model":"{MODEL}","messages":[{messages}],"tools":{deployment.tools},'
        f'"temperature":0.2,"max_tokens":512}},"response":'
        f'{{"id":"{name}","object":"chat.completion","created":{time},"model":"{MODEL}",'
        f'"choices":[{{"index":0,"message":{answer},"finish_reason":"{finish}"}}],"usage":'
        f'{{"prompt_tokens":{asked},"completion_tokens":{answered},'
        f'"total_tokens":{asked + answered}}}}}}}'
    )


def _spoken(text: str) -> str:
    return f'{{"role":"assistant","content":"{text}"}}'


def _called(name: str, tool: str, arguments: str) -> str:
    return (
        f'{{"role":"assistant","content":null,"tool_calls":[{{"id":"{name}",'
        f'"type":"function","function":{{"name":"{tool}","arguments":"{arguments}"}}}}]}}'
    )


def _history(rng: random.Random) -> str:
    """An earlier question, the call it led to, the tool's result, and what was said then."""
    tool, name = "track_order", _id(rng, "call_")
    words = _Words(rng, order=f"ORD-{rng.getrandbits(29):09d}")
    text = _pick(rng, wording.EARLIER).format_map(words)
    arguments = f"{{{wording.ARGUMENTS[tool].format_map(words)}}}"
    result = r"{{\"status\": \"{status}\", \"town\": \"{city}\", \"due\": \"{day}\"}}"
    said = "It is {status}, in {city}, and due on {day}."
    return (
        f'{{"role":"user","content":"{text}"}},{_called(name, tool, arguments)},'
        f'{{"role":"tool","tool_call_id":"{name}","content":"{result.format_map(words)}"}},'
        f"{_spoken(said.format_map(words))},"
    )


def _text(rng: random.Random, words: _Words, tool: str, *, is_long: bool) -> str:
    core: str = _pick(rng, wording.CORES[tool]).format_map(words)
    details = 2 if is_long else _pick(rng, _MORE_SENTENCES)
    if tool == "check_stock":
        details = details or 1  # without an order number two short questions may be equal
    if not details:
        core = _pick(rng, wording.OPENERS) + core
    more = [_pick(rng, wording.DETAILS).format_map(_Words(rng)) for _ in range(details)]
    text = " ".join([core, *more])
    return text if len(text) <= _LONGEST else " ".join([core, *more[:-1]])


def _contact(rng: random.Random, kind: str) -> tuple[str, str]:
    """A sentence with invented personal data, and the argument that repeats it.

    Domains and telephone numbers are those reserved for documentation and fiction.
    """
    if kind == "CARD":
        return f" I paid with {_card(rng)}.", ""
    if kind == "EMAIL":
        name = "{first}.{last}".format_map(_Words(rng)).lower()
        value = f"{name}{rng.getrandbits(7)}@example.{_pick(rng, ('com', 'org', 'net'))}"
        sentence = f" Write to {value}."
    else:
        value = f"({_pick(rng, wording.AREAS)}) 555-01{int(rng.random() * 100):02d}"
        sentence = f" You reach me under {value}."
    return sentence, rf", \"contact\": \"{value}\""


def _card(rng: random.Random) -> str:
    """Sixteen digits in fours, the last by Luhn's checksum (ISO/IEC 7812-1)."""
    digits = [4, *(int(rng.random() * 10) for _ in range(14))]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[::2])
    digits.append(-(doubled + sum(digits[1::2])) % 10)
    text = "".join(map(str, digits))
    return " ".join(text[i : i + 4] for i in range(0, 16, 4))


def _restyled(text: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return text.upper().rstrip(".?!")
    return text.replace(" ", "  ") + "!!"


def _retyped(text: str, rng: random.Random) -> str:
    if len(text) >= 130 and " the " in text and rng.random() < 0.5:
        return text.replace(" the ", " that ", 1)
    at = next(i for i in range(len(text) // 3, len(text)) if text[i].isalpha())
    return text[:at] + text[at + 1 :]


_RETOLD: dict[_Kind, Callable[[str, random.Random], str]] = {
    _Kind.EXACT: lambda text, rng: text,
    _Kind.NORMALISED: _restyled,
    _Kind.NEAR: _retyped,
}


def _emptied(line: str, start: str, end: str) -> str:
    before, _, rest = line.partition(start)
    return before + start + end + rest.partition(end)[2]


def _with_broken_arguments(line: str) -> str:
    before, name, rest = line.rpartition('"arguments":"')
    return before + name + "{" + rest


_DAMAGE: dict[Reason, Callable[[str], str]] = {
    Reason.NOT_JSON: lambda line: line[: len(line) // 2],
    Reason.MISSING_WORKLOAD_ID: lambda line: line.replace(f'"workload_id":"{WORKLOAD}",', ""),
    Reason.BAD_TIMESTAMP: lambda line: '{"timestamp":"last week",' + line.partition(",")[2],
    Reason.EMPTY_MESSAGES: lambda line: _emptied(line, '"messages":[', '],"tools"'),
    Reason.UNKNOWN_ROLE: lambda line: line.replace('"role":"user"', '"role":"customer"'),
    Reason.EMPTY_CHOICES: lambda line: _emptied(line, '"choices":[', '],"usage"'),
    Reason.TOOL_ARGUMENTS_NOT_JSON: _with_broken_arguments,
    Reason.UNFINISHED_ANSWER: lambda line: line.replace(
        '"finish_reason":"tool_calls"', '"finish_reason":"length"'
    ),
}
"""One broken line in each period, in turn."""


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _deployments() -> list[_Deployment]:
    """Three, one after the other; each as often in the list as its share of the month."""
    shares, start, found = (3, 5, 12), _FIRST_DAY, []
    for version, share in enumerate(shares):
        names = [name for name in wording.ARGUMENTS if name != wording.NOT_IN[version]]
        hint = " Once." if version == 2 else ""
        prompt = wording.PROMPT.format(policy=wording.POLICIES[version])
        deployment = _Deployment(
            system=_json({"role": "system", "content": prompt}),
            tools=_json([wording.tool(name, hint) for name in names]),
            names=names,
            start=start,
            seconds=_MONTH_S * share // sum(shares),
        )
        start += deployment.seconds
        found += [deployment] * share
    return found


_DEPLOYMENTS = _deployments()
