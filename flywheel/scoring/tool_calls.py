"""Tool calls, compared by what they mean: which tools were called, and with which arguments.

A message's calls are read by the schemas of the record's tools (`flywheel.scoring.meaning`) and
matched with production's: equal ones first, then so that the most tools, then the most arguments
agree. What is left between matched calls is named: the kinds of `Miss`. A call that cannot be read
is a wrong answer, never a correct abstention; an argument that production did not send is wrong
unless it is the schema's own default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

from flywheel.scoring import strict_json
from flywheel.scoring.meaning import Arguments, Parameters, TooMuchWorkError, parameters_of
from flywheel.scoring.text import readable, text_of
from flywheel.types import Json, Miss, canonical_bytes

CALL_MARKS = (
    "<tool_call>", "<function=", "<|tool_call|>", "<|python_tag|>", "[TOOL_CALLS]",
    "<|tool_calls_section_begin|>", "<｜tool▁calls▁begin｜>",
)  # fmt: skip
"""In a message's text each is a call that the server's parser could not read."""
MOST_MATCHED = 200
"""So many calls are matched with as many as well as can be; more are matched in their order."""
NO_TOOL, UNPARSABLE = "no_tool", "unparsable_call"
"""Classes of answers without a call that can be read."""
_CLASS = 200
"""Characters of a class's name."""
_DETAIL = 200
"""Characters that say what is wrong with an answer."""


class UnscorableError(Exception):
    """Production's calls cannot be read, so there is nothing to compare with."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it was sent."""

    name: str
    text: str
    """Its arguments as they were written."""
    arguments: Json

    @property
    def written(self) -> tuple[str, str]:
        """The call as it was written."""
        return self.name, self.text


class Differing(NamedTuple):
    """An argument that two matched calls of one tool give in different meanings."""

    tool: str
    argument: str
    expected: Any
    answered: Any


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing the calls of two messages."""

    found: Mapping[Miss, str] = field(default_factory=dict)
    """What is not production's, and what it is about; empty where all calls mean the same."""
    note: str = ""
    """What the comparison rests on, where that needs saying."""
    due: int = 0
    """Arguments that production sent. One that only one side sent and that is the schema's default
    counts as sent by both."""
    sent: int = 0
    """Arguments that the answer sent."""
    right: int = 0
    """Arguments that mean the same."""
    same_text: bool = False
    """Same calls, same order, same JSON but for its spaces and the order of keys."""
    differing: tuple[Differing, ...] = ()
    """The values behind every ``wrong_value``."""
    tools: tuple[str, str] = ("", "")
    """Names of the tools that were due and of those that were called, as classes."""

    @property
    def misses(self) -> tuple[Miss, ...]:
        """The kinds of what was found, in the order of `Miss`."""
        return tuple(miss for miss in Miss if miss in self.found)

    def detail(self, misses: Iterable[Miss]) -> str:
        """What these misses are about, or else the note: one sentence, cut to a fixed length."""
        said = "; ".join(f"{miss.replace('_', ' ')}: {self.found[miss]}" for miss in misses)
        return (said or self.note)[:_DETAIL]


@dataclass(frozen=True, slots=True)
class _Meant:
    """A call that was read by its tool's schema."""

    name: str
    arguments: Arguments


Schemas = Mapping[str, Parameters]
"""Of the tools that are called, by name."""
_Pair = tuple[_Meant | None, _Meant | None]
"""A call that was due and one that was sent."""

OF_TOOLS = frozenset(
    {
        Miss.NO_CALL,
        Miss.UNPARSABLE_CALL,
        Miss.CALL_NOT_DUE,
        Miss.WRONG_TOOL,
        Miss.WRONG_NUMBER_OF_CALLS,
    }
)
"""Misses of the calls themselves, arguments aside."""


def parse(message: Json) -> list[Call] | None:
    """The calls of an assistant message; ``None`` if one of them cannot be parsed."""
    text = text_of(message)
    if text and any(mark in text for mark in CALL_MARKS):
        return None
    try:
        return [_parse(call) for call in message.get("tool_calls") or []]
    except (TypeError, KeyError, ValueError, RecursionError):
        return None


def compare(expected: Json, answer: Json, tools: list[Json], order: str = "free") -> Comparison:
    """Compare an answer's calls with production's.

    Args:
        expected: Production's message.
        answer: The candidate's message.
        tools: What the request offers.
        order: ``free``, or ``fixed`` where the order of calls matters.

    Raises:
        UnscorableError: Production's calls cannot be read.
    """
    due, sent = parse(expected), parse(answer)
    if due is None:
        raise UnscorableError("the expected call cannot be parsed")
    known = _parameters([*due, *(sent or ())], tools)
    note = _note(known) if due or sent else "neither side called a tool"
    if sent is not None and [c.written for c in due] == [c.written for c in sent]:
        count = sum(len(call.arguments) for call in due)
        called = _class(due), _class(sent)
        return Comparison({}, note, count, count, count, same_text=True, tools=called)
    try:
        return _compare(due, sent, known, order, note)
    except TooMuchWorkError:
        plain = dict.fromkeys(known, parameters_of(None))
        note = "compared without schemas, which lead too far for these arguments"
        return _compare(due, sent, plain, order, note)
    except RecursionError:
        raise UnscorableError("the tools' schemas are nested too deep to read by") from None


def _compare(
    due: list[Call], sent: list[Call] | None, known: Schemas, order: str, note: str
) -> Comparison:
    wanted, got = _meant(due, known), _meant(sent or [], known)
    tally = _Tally()
    if sent is None:
        tally.add(Miss.UNPARSABLE_CALL, "in the answer")
    else:
        tally.count(wanted, got)
    for pair in _pairs(wanted, got, order):
        tally.arguments(*pair)
    found = {miss: ", ".join(about) for miss, about in tally.found.items()}
    same_text = sent is not None and _same_text(due, sent)
    counts = (tally.due, tally.sent, tally.right)
    called = _class(due), UNPARSABLE if sent is None else _class(sent)
    return Comparison(found, note, *counts, same_text, tuple(tally.differing), called)


def _parse(call: Any) -> Call:
    name, text = call["function"]["name"], call["function"]["arguments"]
    if not isinstance(name, str):
        raise TypeError("a function's name must be text")
    # A tool without parameters is called with nothing by some servers.
    arguments = strict_json.parse(text) if text != "" else {}
    if not isinstance(arguments, dict):
        raise TypeError("a function's arguments must be a JSON object")
    return Call(name, text, arguments)


def _parameters(calls: list[Call], tools: list[Json]) -> Schemas:
    """What the tools that are called take; a tool that is not offered takes anything."""
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    called = {call.name for call in calls}
    return {name: parameters_of(functions.get(name, {}).get("parameters")) for name in called}


def _note(known: Schemas) -> str:
    """What is wrong with schemas, as far as the comparison rests on it."""
    return "; ".join(
        f"compared without the schema of {name}, which is {parameters.problem}"
        for name, parameters in sorted(known.items())
        if parameters.problem
    )


def _meant(calls: list[Call], known: Schemas) -> list[_Meant]:
    return [_Meant(call.name, known[call.name].read(call.arguments)) for call in calls]


class _Tally:
    """What is counted while two messages' calls are compared."""

    def __init__(self) -> None:
        self.found: dict[Miss, list[str]] = {}
        self.differing: list[Differing] = []
        self.due = self.sent = self.right = 0

    def add(self, miss: Miss, about: str) -> None:
        """Note a miss."""
        self.found.setdefault(miss, []).append(about)

    def count(self, wanted: list[_Meant], got: list[_Meant]) -> None:
        """Compare how many calls there are."""
        if wanted and not got:
            self.add(Miss.NO_CALL, f"{_names(wanted)} was due")
        elif got and not wanted:
            self.add(Miss.CALL_NOT_DUE, _names(got))
        elif len(wanted) != len(got):
            self.add(Miss.WRONG_NUMBER_OF_CALLS, f"{len(got)} instead of {len(wanted)}")

    def arguments(self, wanted: _Meant | None, got: _Meant | None) -> None:
        """Compare the arguments of a pair; of calls of two tools none is right."""
        if wanted and got and wanted.name == got.name:
            for name in {**wanted.arguments.by_name, **got.arguments.by_name}:
                self._argument(name, wanted, got)
            return
        self.due += len(wanted.arguments.by_name) if wanted else 0
        self.sent += len(got.arguments.by_name) if got else 0
        if wanted and got:
            self.add(Miss.WRONG_TOOL, f"{got.name} instead of {wanted.name}")

    def _argument(self, name: str, wanted: _Meant, got: _Meant) -> None:
        due, sent = _said(wanted, name), _said(got, name)
        equal = due == sent
        was_due, was_sent = name in wanted.arguments.by_name, name in got.arguments.by_name
        self.due += was_due or equal
        self.sent += was_sent or equal
        self.right += equal
        if equal:
            return
        if not was_sent:
            miss = Miss.MISSING_ARGUMENT
        elif not was_due:
            miss = Miss.EXTRA_ARGUMENT
        else:
            typed = got.arguments.is_of_type(name, wanted.arguments)
            miss = Miss.WRONG_VALUE if typed else Miss.WRONG_TYPE
        if miss is Miss.WRONG_VALUE:
            values = wanted.arguments.written(name), got.arguments.written(name)
            self.differing.append(Differing(got.name, name, *values))
        self.add(miss, f"{got.name}.{name}")


def _said(call: _Meant, name: str) -> bytes | None:
    """What an argument means, sent or not."""
    return call.arguments.by_name.get(name) or call.arguments.defaults.get(name)


def _pairs(wanted: list[_Meant], got: list[_Meant], order: str) -> Iterable[_Pair]:
    """Each call that was due with the one that was sent for it, if there is one."""
    if order == "fixed" or max(len(wanted), len(got)) < 2:
        return zip_longest(wanted, got)
    same: dict[Any, list[_Meant]] = {}
    for call in got:
        same.setdefault((call.name, call.arguments.key), []).append(call)
    pairs: list[_Pair] = []
    rest = []
    for call in wanted:
        if equals := same.get((call.name, call.arguments.key)):
            pairs.append((call, equals.pop()))
        else:
            rest.append(call)
    return [*pairs, *_assigned(rest, [call for equals in same.values() for call in equals])]


def _assigned(wanted: list[_Meant], got: list[_Meant]) -> Iterable[_Pair]:
    """The pairs of which the most agree in their tool, and then in arguments."""
    if len(wanted) * len(got) < 2 or len(wanted) * len(got) > MOST_MATCHED**2:
        return zip_longest(wanted, got)
    from scipy.optimize import linear_sum_assignment

    agreement = [[_agreement(due, sent) for sent in got] for due in wanted]
    rows, columns = map(list, linear_sum_assignment(agreement, maximize=True))
    pairs: list[_Pair] = [(wanted[i], got[j]) for i, j in zip(rows, columns, strict=True)]
    pairs += [(call, None) for i, call in enumerate(wanted) if i not in rows]
    return [*pairs, *((None, call) for j, call in enumerate(got) if j not in columns)]


def _agreement(wanted: _Meant, got: _Meant) -> float:
    """The share of arguments that agree, and what outweighs all shares for the same tool; or 0."""
    if wanted.name != got.name:
        return 0.0
    names = {**wanted.arguments.by_name, **got.arguments.by_name}
    equal = sum(_said(wanted, name) == _said(got, name) for name in names)
    return MOST_MATCHED + equal / max(len(names), 1)


def _class(calls: list[Call]) -> str:
    """Which tools are called, in no order: the class of an answer."""
    if not calls:
        return NO_TOOL
    names = [call.name for call in calls]
    return readable(", ".join(sorted(names)) if len(names) > 1 else names[0])[:_CLASS]


def _names(calls: list[_Meant]) -> str:
    return ", ".join(call.name for call in calls)


def _same_text(due: list[Call], sent: list[Call]) -> bool:
    return len(due) == len(sent) and all(
        a.name == b.name
        and (a.text == b.text or canonical_bytes(a.arguments) == canonical_bytes(b.arguments))
        for a, b in zip(due, sent, strict=True)
    )
