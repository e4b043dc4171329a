"""What judges showed before their scores were allowed to count.

They rate answers of which it is known how good they are. The area under the ROC curve, production's
answer beside itself against another record's, must reach a floor; the other figures say where a
judge is weak: answers that are nearly right, the place and length of an answer, attacks in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from flywheel.judging.panel import Panel, Rating
from flywheel.judging.probes import Probes
from flywheel.statistics import auc_interval, roc_auc
from flywheel.types import Json

MOVED = 2 / 9
"""By how much an attack must raise a verdict to count: two of ten points, or half a preference."""
KINDS = ("same", "paraphrased", "shuffled", "corrupted")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the judges of one metric showed, as ``calibration.json`` has it."""

    metric: str
    judge: str
    """Their models."""
    identity: str
    """Hash of models, prompts and parser; another identity is another judge, uncalibrated."""
    auc: float | None
    """Area under the ROC curve, same against shuffled answers; ``None`` without verdicts."""
    floor: float
    n: int
    """Verdicts that the area rests on."""
    unscored: int
    """Of these two kinds."""
    mean_same: float | None
    mean_shuffled: float | None
    auc_low: float | None = None
    auc_high: float | None = None
    """Where the area lies with 95 % confidence, by how many verdicts there are."""
    auc_written: float | None = None
    """The same area by the scores as they were written, where expected ones count."""
    auc_corrupted: float | None = None
    """The same area against corrupted answers, which are nearly right."""
    gap: float | None = None
    """Mean value of same less that of shuffled answers."""
    kinds: Json = field(default_factory=dict)
    """By kind of answer: ``mean``, ``n`` verdicts, ``unscored``."""
    position: Json = field(default_factory=dict)
    """What the places of the two answers do; see `_position`."""
    length: Json = field(default_factory=dict)
    """``correlation`` (Spearman) of value and length among ``n`` answers that are all wrong."""
    injection: Json = field(default_factory=dict)
    """What attacks did; see `_injection`."""
    judges: list[Json] = field(default_factory=list)
    """Each judge alone: ``identity``, ``model``, ``prompt``, ``auc``."""
    agreement: Json = field(default_factory=dict)
    """Of several judges over ``n`` candidates' answers: ``alpha`` (Krippendorff), ``combine``."""
    human: Json = field(default_factory=dict)
    """What people's labels say of the judges; see `flywheel.judging.labels`."""

    @property
    def trusted(self) -> bool:
        """Whether their scores may take part in a ranking."""
        return self.auc is not None and self.auc >= self.floor

    def to_json(self) -> Json:
        """For ``calibration.json``."""
        return {**asdict(self), "trusted": self.trusted}

    @classmethod
    def from_json(cls, data: Json) -> Calibration:
        """Inverse of `to_json`."""
        return cls(**{name: value for name, value in data.items() if name in cls.__slots__})


def calibrate(panel: Panel, probes: Probes) -> Calibration:
    """What the verdicts on these probes show; all have been asked for."""
    rated = {kind: panel.ratings(getattr(probes, kind)) for kind in KINDS}
    values = {kind: _values(ratings) for kind, ratings in rated.items()}
    same, shuffled = values["same"], values["shuffled"]
    means = {kind: _mean(found) for kind, found in values.items()}
    both = means["same"] is not None and means["shuffled"] is not None
    auc = _auc(same, shuffled)
    low, high = (None, None) if auc is None else auc_interval(auc, len(same), len(shuffled))
    return Calibration(
        metric=panel.metric,
        judge=" + ".join(dict.fromkeys(judge.config.model for judge in panel.judges)),
        identity=panel.identity,
        auc=auc,
        auc_low=low,
        auc_high=high,
        floor=panel.floor,
        n=len(same) + len(shuffled),
        unscored=sum(len(rated[kind]) - len(values[kind]) for kind in ("same", "shuffled")),
        mean_same=means["same"],
        mean_shuffled=means["shuffled"],
        auc_written=_written(rated["same"], rated["shuffled"]),
        auc_corrupted=_auc(same, values["corrupted"]),
        gap=(means["same"] or 0) - (means["shuffled"] or 0) if both else None,
        kinds={
            kind: {
                "mean": means[kind],
                "n": len(values[kind]),
                "unscored": len(rated[kind]) - len(values[kind]),
            }
            for kind in KINDS
        },
        position=_position(panel, probes, [r for ratings in rated.values() for r in ratings]),
        length=_length(probes, rated["shuffled"]),
        injection=_injection(panel, probes),
        judges=[_alone(panel, number, rated) for number in range(len(panel.judges))],
    )


def with_agreement(calibration: Calibration, panel: Panel, rows: Sequence[Json]) -> Calibration:
    """The same with how far the judges agree on candidates' answers."""
    if len(panel.judges) < 2:
        return calibration
    judged = [row for row in rows if row["judges"]]
    agreement = {"alpha": panel.alpha(judged), "n": len(judged), "combine": panel.config.combine}
    return replace(calibration, agreement=agreement)


def _alone(panel: Panel, number: int, rated: dict[str, list[Rating]]) -> Json:
    judge = panel.judges[number]
    same, shuffled = (
        [v for r in rated[kind] if (v := r.verdicts[judge.identity].value) is not None]
        for kind in ("same", "shuffled")
    )
    name = {"identity": judge.identity, "model": judge.config.model, "prompt": judge.config.prompt}
    return {**name, "auc": _auc(same, shuffled)}


def _position(panel: Panel, probes: Probes, everything: Sequence[Rating]) -> Json:
    """What it does to a verdict which of two answers comes first.

    ``mean_difference`` and ``mean_absolute``: values of corrupted answers less those with the two
    answers in each other's place, over ``n`` of them; for preferences ``flipped``: the share of all
    verdicts that the order decided.
    """
    if panel.judges[0].prompt.kind == "preference":
        verdicts = [v for r in everything for v in r.verdicts.values() if v.value is not None]
        flipped = sum(v.flipped for v in verdicts) / len(verdicts) if verdicts else None
        return {"n": len(verdicts), "flipped": flipped}
    straight = panel.ratings([pair.swapped for pair in probes.swapped])
    both = zip(straight, panel.ratings(probes.swapped), strict=True)
    moves = [a.value - b.value for a, b in both if a.value is not None and b.value is not None]
    return {
        "n": len(moves),
        "mean_difference": _mean(moves),
        "mean_absolute": _mean([abs(move) for move in moves]),
    }


def _length(probes: Probes, shuffled: Sequence[Rating]) -> Json:
    """Whether longer answers fare better though all are wrong."""
    from scipy import stats

    found = [
        (len(pair.candidate), rating.value)
        for pair, rating in zip(probes.shuffled, shuffled, strict=True)
        if rating.value is not None
    ]
    lengths, values = [length for length, _ in found], [value for _, value in found]
    varied = len(set(lengths)) > 1 and len(set(values)) > 1
    rank = float(stats.spearmanr(lengths, values).statistic) if varied else None
    return {"n": len(found), "correlation": rank}


def _injection(panel: Panel, probes: Probes) -> Json:
    """How often attacks in a wrong answer raise its verdict by `MOVED`.

    ``moved`` of ``n``, and their share; ``silenced``: no verdict any more, so none that helps;
    ``no_room``: the wrong answer stood so high without the attack that it could not rise; ``asked``
    is all three. The ids of those that ``succeeded`` can be looked up in ``attacks.jsonl``.
    """
    plain = panel.ratings([pair for pair, _ in probes.attacked])
    after = panel.ratings([pair for _, pair in probes.attacked])
    counts = {"asked": len(probes.attacks), "n": 0, "silenced": 0, "no_room": 0}
    succeeded = []
    for attack, before, now in zip(probes.attacks, plain, after, strict=True):
        if before.value is None or now.value is None:
            counts["silenced"] += 1
        elif before.value > 1 - MOVED:
            counts["no_room"] += 1
        else:
            counts["n"] += 1
            if now.value - before.value >= MOVED - 1e-9:
                succeeded.append(attack.id)
    share = len(succeeded) / counts["n"] if counts["n"] else None
    return {**counts, "moved": len(succeeded), "share": share, "succeeded": succeeded}


def _written(same: Sequence[Rating], shuffled: Sequence[Rating]) -> float | None:
    if all(rating.plain == rating.value for rating in (*same, *shuffled)):
        return None
    high, low = ([r.plain for r in some if r.plain is not None] for some in (same, shuffled))
    return _auc(high, low)


def _values(ratings: Sequence[Rating]) -> list[float]:
    return [rating.value for rating in ratings if rating.value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _auc(high: Sequence[float], low: Sequence[float]) -> float | None:
    return roc_auc(high, low) if high and low else None
