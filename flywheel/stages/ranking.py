"""The last stage: what the trials came to, and the cascades made of them, as one leaderboard."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel import folders, leaderboard, trials
from flywheel.cascading import Cascade, Cascades
from flywheel.leaderboard import Leaderboard
from flywheel.stages.results import Yardstick
from flywheel.stages.session import Session
from flywheel.types import Json, Score, TrialResult


def rank(
    session: Session,
    yardstick: Yardstick,
    results: Sequence[TrialResult],
    fingerprint: str,
    calibration: Json | None,
) -> tuple[Leaderboard, list[str]]:
    """Rank the results of a run; ``leaderboard.json``.

    Args:
        session: What it works with.
        yardstick: What the results are held against.
        results: Of all trials that began.
        fingerprint: The dataset's.
        calibration: What the judges showed; ``None`` for none.

    Returns:
        The board, and why cascades are missing where some could be expected.
    """
    desk = session.desk
    cascades, notes = _cascades(session, yardstick, results, calibration)
    board = leaderboard.rank(
        [*results, *(cascade.result for cascade in cascades)],
        _scores(session, results, cascades),
        session.experiment.ranking,
        groups=yardstick.groups,
        power=yardstick.power.to_json(),
        logged=_logged(session, yardstick, results),
        calibration=calibration,
        production=yardstick.production,
        provenance={"run": desk.run_id, "dataset": fingerprint, **session.provenance},
    )
    desk.run.write_json("leaderboard.json", board.to_json())
    return board, notes


def _cascades(
    session: Session,
    yardstick: Yardstick,
    results: Sequence[TrialResult],
    calibration: Json | None,
) -> tuple[list[Cascade], list[str]]:
    experiment = session.experiment
    if experiment.cascades is None:
        return [], []
    metric, _ = leaderboard.choose_metric(results, experiment.ranking, calibration)
    maker = Cascades(experiment, session.desk, metric, yardstick.groups, yardstick.production)
    made = maker.of(results)
    return made, maker.notes


def _logged(
    session: Session, yardstick: Yardstick, results: Sequence[TrialResult]
) -> list[Score] | None:
    """How production's own answers score, where they are not right by definition."""
    done = [result.trial for result in results if result.status == "succeeded"]
    if yardstick.references is None or not done:
        return None
    return trials.production_scores(done[0], session.desk)


def _scores(
    session: Session, results: Sequence[TrialResult], cascades: Sequence[Cascade]
) -> dict[str, list[Score]]:
    own = {r.key: folders.read_scores(session.desk.folder(r.trial)) for r in results}
    return own | {cascade.result.key: cascade.scores for cascade in cascades}
