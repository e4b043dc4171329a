"""Whether flywheel judges tool calls as the Berkeley Function Calling Leaderboard does.

    python -m tests.benchmarks.bfcl

The leaderboard's data and AST checker come from its wheel (`bfcl-eval`), downloaded by pip and
checked by its hash; it is not installed, since it pins dozens of libraries to old versions. Of each
case, one accepted answer stands for production's; it is perturbed as models err, and both sides say
whether the result is right. A run prints where they part and writes ``results/bfcl.json``.

Perturbations stay within what one reference can decide: of several answers that the leaderboard
accepts (two spellings of a city, an argument that may be left out though the schema declares no
default) production's log holds only one. Three perturbations the two judge differently on principle
(`DISPUTED`); a few outputs of each are among the others, so that they are listed, not weighed.
"""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from flywheel.scoring.tool_calls import compare

from . import results

Json = dict[str, Any]
Call = tuple[str, Json]

REQUIREMENT = (
    "bfcl-eval==2026.3.23 "
    "--hash=sha256:3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
)
CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple",
)  # fmt: skip
"""Those with Python's types and a list of accepted answers."""
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""The leaderboard's names of types that JSON Schema has others for."""
FEW = 6
"""Outputs of each kind of which it is known that the two judge it differently."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question of the leaderboard with one of its accepted answers."""

    id: str
    category: str
    functions: list[Json]
    accepted: list[Json]
    """Per call: the function's name, and per argument all that is accepted."""

    @property
    def reference(self) -> list[Call]:
        """The first of the accepted answers, arguments included that may be left out."""
        return [
            (name, _first(arguments, self.parameters(name)))
            for call in self.accepted
            for name, arguments in call.items()
        ]

    def parameters(self, name: str) -> Json:
        """A function's parameters as the leaderboard describes them."""
        return next(f["parameters"] for f in self.functions if f["name"] == name)

    @property
    def tools(self) -> list[Json]:
        """The functions as the chat API has them."""
        return [
            {"type": "function", "function": {**f, "parameters": _json_schema(f["parameters"])}}
            for f in self.functions
        ]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What both sides say of one output."""

    case: str
    perturbation: str
    flywheel: bool
    leaderboard: bool


def download(folder: Path) -> Path:
    """The leaderboard's wheel, in this folder."""
    wheels = sorted(folder.glob("bfcl_eval-*.whl"))
    if not wheels:
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text(REQUIREMENT)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--require-hashes", "--only-binary=:all:", "--disable-pip-version-check"]
            subprocess.run([*command, "--dest", str(folder), "-r", str(wanted)], check=True)
        wheels = sorted(folder.glob("bfcl_eval-*.whl"))
    return wheels[0]


def checker(wheel: Path) -> Callable[[Case, list[Call]], bool]:
    """The leaderboard's own verdict on the calls of an answer."""
    # The checker reads one flag of its list of models, whose module imports every vendor's client.
    flags = SimpleNamespace(underscore_to_dot=False)
    models = ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"any": flags}  # type: ignore[attr-defined]
    sys.path.insert(0, str(wheel))
    sys.modules[models.__name__] = models
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    finally:
        sys.path.remove(str(wheel))
        del sys.modules[models.__name__]

    def check(case: Case, calls: list[Call]) -> bool:
        output = [{name: arguments} for name, arguments in calls]
        found = ast_checker(
            case.functions, output, case.accepted, Language.PYTHON, case.category, "any"
        )
        return bool(found["valid"])

    return check


def cases(wheel: Path) -> list[Case]:
    """All cases, in the leaderboard's order."""
    with zipfile.ZipFile(wheel) as archive:
        return [case for category in CATEGORIES for case in _cases(archive, category)]


def outputs(case: Case) -> Iterator[tuple[str, list[Call]]]:
    """Two perturbations of the reference that apply, chosen by the case's id."""
    rng = random.Random(case.id)
    changes = sorted(PERTURBATIONS.items(), key=lambda _: rng.random())
    made = ((name, change(case, copy.deepcopy(case.reference), rng)) for name, change in changes)
    yield from islice(((name, calls) for name, calls in made if calls is not None), 2)


def disputed(accepted: Sequence[Case]) -> Iterator[tuple[Case, str, list[Call]]]:
    """A few outputs each of which it is known that the two judge them differently."""
    for name, change in DISPUTED.items():
        made = ((c, change(c, copy.deepcopy(c.reference), random.Random(c.id))) for c in accepted)
        yield from islice(((c, name, calls) for c, calls in made if calls is not None), FEW)


def judged(wheel: Path) -> list[Verdicts]:
    """Both sides' verdicts on the outputs, of all cases whose reference both find right."""
    check = checker(wheel)
    known = [case for case in cases(wheel) if check(case, case.reference)]
    made = [(case, name, calls) for case in known for name, calls in outputs(case)]
    made += disputed(known)
    return [Verdicts(c.id, name, _right(c, calls), check(c, calls)) for c, name, calls in made]


def main() -> None:
    """Compare, print, write."""
    with tempfile.TemporaryDirectory() as folder:
        found = judged(download(Path(folder)))
    parted = [v for v in found if v.flywheel != v.leaderboard]
    for verdicts in parted:
        print(verdicts)  # noqa: T201
    right = Counter(v.perturbation for v in found if v.leaderboard)
    for name, count in Counter(v.perturbation for v in found).items():
        print(f"{name}: {count}, right by the leaderboard {right[name]}")  # noqa: T201
    print(f"agreement {agreement(found):.4f} on {len(found):,} outputs")  # noqa: T201
    results.write("bfcl", {"agreement": round(agreement(found), 4), "cases": len(found)})


def agreement(found: Sequence[Verdicts]) -> float:
    """The share of outputs that both judge alike."""
    return sum(v.flywheel == v.leaderboard for v in found) / len(found)


def _cases(archive: zipfile.ZipFile, category: str) -> Iterator[Case]:
    answers = {
        row["id"]: row["ground_truth"] for row in _rows(archive, "possible_answer/", category)
    }
    for row in _rows(archive, "", category):
        yield Case(row["id"], category, row["function"], answers[row["id"]])


def _rows(archive: zipfile.ZipFile, folder: str, category: str) -> Iterator[Json]:
    lines = archive.read(f"bfcl_eval/data/{folder}BFCL_v4_{category}.json").splitlines()
    return (json.loads(line) for line in lines)


def _first(arguments: Json, parameters: Json) -> Json:
    """Of each argument the first value that is accepted, if it is not only to be left out."""
    described = parameters["properties"]
    chosen = _firsts(arguments)
    for name, value in chosen.items():  # inside objects, each member lists what is accepted
        shape = described.get(name, {})
        if shape.get("type") == "dict" and isinstance(value, dict):
            chosen[name] = _firsts(value)
        elif shape.get("items", {}).get("type") == "dict" and isinstance(value, list):
            chosen[name] = [_firsts(item) for item in value]
    return chosen


def _firsts(accepted: Json) -> Json:
    lists = {name: [v for v in values if v != ""] for name, values in accepted.items()}
    return {name: values[0] for name, values in lists.items() if values}


def _json_schema(described: Any) -> Any:
    """The leaderboard's description of a value as JSON Schema."""
    if isinstance(described, list):
        return [_json_schema(item) for item in described]
    if not isinstance(described, dict):
        return described
    schema = {
        key: {name: _json_schema(part) for name, part in value.items()}
        if key == "properties"
        else _json_schema(value)
        for key, value in described.items()
        if key != "optional"
    }
    kind = schema.get("type")
    if kind == "any":
        del schema["type"]
    elif isinstance(kind, str):
        schema["type"] = _TYPES.get(kind, kind)
    return schema


def _right(case: Case, calls: list[Call]) -> bool:
    return not compare(_message(case.reference), _message(calls), case.tools).misses


def _message(calls: list[Call]) -> Json:
    functions = [{"name": name, "arguments": json.dumps(given)} for name, given in calls]
    return {"tool_calls": [{"type": "function", "function": f} for f in functions]}


Change = Callable[[Case, list[Call], random.Random], list[Call] | None]
"""Case, a copy of its reference, luck -> the calls of an output; ``None`` where it has no sense."""


def _keys_reversed(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    return [(name, dict(reversed(given.items()))) for name, given in calls]


def _calls_reversed(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    return calls[::-1] if len(calls) > 1 else None


def _call_left_out(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    return calls[:-1]


def _call_repeated(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    return [*calls, calls[0]]


def _other_tool(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    name, given = calls[0]
    others = [f["name"] for f in case.functions if f["name"] != name] or [f"{name}_now"]
    return [(rng.choice(others), given), *calls[1:]]


def _extra_argument(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    name, given = calls[-1]
    return [*calls[:-1], (name, {**given, "invented": rng.choice((1, "yes", True, None))})]


def _required_left_out(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    name, given = calls[0]
    required = [key for key in given if key in case.parameters(name).get("required", ())]
    if not required:
        return None
    del given[rng.choice(required)]
    return calls


def _default_left_out(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
    for name, given in calls:
        described = case.parameters(name)["properties"]
        for key, value in given.items():
            if described.get(key, {}).get("default", ...) == value:
                del given[key]
                return calls
    return None


def _argument(
    kinds: tuple[type, ...], change: Callable[[Any, random.Random], Any], described: str = ""
) -> Change:
    """Change one argument of these types, where its description has this type or keyword."""

    def changed(case: Case, calls: list[Call], rng: random.Random) -> list[Call] | None:
        places = [
            (given, key)
            for name, given in calls
            for key, value in given.items()
            if type(value) in kinds
            and described in ("", *_told(case.parameters(name)["properties"].get(key, {})))
        ]
        if not places:
            return None
        given, key = rng.choice(places)
        before = given[key]
        given[key] = change(before, rng)
        return None if given[key] == before and type(given[key]) is type(before) else calls

    return changed


def _told(described: Json) -> tuple[str, ...]:
    """What may be asked of an argument: its type, its keywords, and ``free`` without an enum."""
    return (str(described.get("type")), *described, *(() if "enum" in described else ("free",)))


def _integral(value: float) -> float:
    return int(value) if value.is_integer() else value


PERTURBATIONS: dict[str, Change] = {
    "keys in another order": _keys_reversed,
    "calls in another order": _calls_reversed,
    "call left out": _call_left_out,
    "call repeated": _call_repeated,
    "other tool": _other_tool,
    "extra argument": _extra_argument,
    "required argument left out": _required_left_out,
    "default left out": _default_left_out,
    "number written as integer": _argument((float,), lambda v, _: _integral(v), "float"),
    "other number": _argument((int, float), lambda v, r: v * 3 + r.randint(1000, 2000)),
    "other text": _argument((str,), lambda v, _: f"{v} or so"),
    "other truth": _argument((bool,), lambda v, _: not v),
    "item repeated": _argument((list,), lambda v, _: [*v, *v[-1:]]),
    "items in another order": _argument((list,), lambda v, _: v[::-1]),
    "item left out": _argument((list,), lambda v, _: v[1:]),
    "object without a member": _argument((dict,), lambda v, _: dict(list(v.items())[1:])),
    "object with a member more": _argument((dict,), lambda v, _: {**v, "invented": 1}),
    "number as text": _argument((int, float), lambda v, _: str(v)),
    "truth as text": _argument((bool,), lambda v, _: str(v).lower()),
    "text as number": _argument((str,), lambda v, r: r.randint(1, 9)),
    "text as list": _argument((str,), lambda v, _: [v]),
    "list as text": _argument((list,), lambda v, _: json.dumps(v)),
    "null": _argument((str, int, float, bool, list, dict), lambda v, _: None),
    "more spaces": _argument((str,), lambda v, _: f" {v.replace(' ', '   ')} "),
    "enum in capitals": _argument((str,), lambda v, _: v.upper(), "enum"),
}
"""What models get wrong, and what only looks so."""

DISPUTED: dict[str, Change] = {
    "free text in capitals": _argument((str,), lambda v, _: v.upper(), "free"),
    "free text without punctuation": _argument(
        (str,), lambda v, _: v.replace(",", "").replace("-", ""), "free"
    ),
    "integer written as number": _argument((int,), lambda v, _: float(v), "integer"),
}
"""The leaderboard ignores case and punctuation of all texts, and 5.0 is no integer to it."""

if __name__ == "__main__":
    main()
