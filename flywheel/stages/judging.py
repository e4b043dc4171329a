"""The third stage: judges are calibrated, then rate every trial that has answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from flywheel import curation, folders, judging, metrics
from flywheel.config import JudgeConfig
from flywheel.folders import Desk
from flywheel.scoring import References
from flywheel.serving import Endpoint, remote
from flywheel.stages.hosting import Engines
from flywheel.stages.session import Session
from flywheel.storage import Storage
from flywheel.types import Json, Record, ScoreStatus, Trial


def judge(
    session: Session,
    engines: Engines,
    planned: Sequence[Trial],
    fingerprint: str,
    references: References | None,
) -> Json | None:
    """Calibrate the judges and let them score every trial that has answers.

    Args:
        session: What it works with.
        engines: Those of judges that are served here.
        planned: All trials.
        fingerprint: The dataset's.
        references: What is right, where a ground-truth file says it.

    Returns:
        The content of ``calibration.json``; ``None`` where nothing was judged.
    """
    desk = session.desk
    answered = [t for t in planned if desk.folder(t).exists("answers.json")]
    if not answered or not session.experiment.judges:
        return None
    labels = judging.Labels(desk.storage, fingerprint)
    kept = desk.storage.at("responses")
    records = _expected(desk, fingerprint, references)
    sitting = judging.Session(session.experiment, desk.run, records, labels, kept)
    by_key = {trial.key: desk.folder(trial) for trial in answered}
    waiting = [trial for trial in answered if not sitting.judged(by_key[trial.key])]
    if waiting or not sitting.calibrated:
        for judge in sitting.judges:
            if not judge.config.remote:  # one engine for all prompts of a model
                engines.pool.expect(engines.spec(judge.config))
        for judge in sitting.judges:
            with _endpoint(engines, judge.config) as endpoint:
                if not sitting.calibrated:
                    sitting.ask_probes(judge, endpoint, session.show)
                for trial in waiting:
                    show = partial(session.show, f"judging {trial.label}")
                    sitting.ask(judge, endpoint, by_key[trial.key], show)
        for trial in waiting:
            sitting.write(by_key[trial.key])
            _count_judge_errors(by_key[trial.key])
    return sitting.close(by_key)


def _expected(desk: Desk, fingerprint: str, references: References | None) -> list[Record]:
    """Eval records with what is expected as their answer, as far as that is known."""
    records = curation.load_split(desk.storage, fingerprint, "eval")
    if references is None:
        return records
    return [expected for r in records if (expected := references.of(r)) is not None]


@contextmanager
def _endpoint(engines: Engines, judge: JudgeConfig) -> Iterator[Endpoint]:
    if judge.remote:
        yield remote(judge)
        return
    with engines.lease(engines.spec(judge)) as served:
        yield served.endpoint()


def _count_judge_errors(folder: Storage) -> None:
    unscored = (s for s in folders.read_scores(folder) if s.status == ScoreStatus.UNSCORED)
    for judge, count in Counter(s.judge for s in unscored if s.judge).items():
        metrics.JUDGE_ERRORS.tell(count, judge=judge)
