"""A run's judges at work, and what they leave on disk.

    judge/verdicts/<identity>/          of the run: every reply, as it came
    calibration.json                    of the run: what the judges showed
    trials/<key>/scores/<metric>.jsonl  a score per record
    trials/<key>/verdicts/<metric>.jsonl  what each judge said of it, and the plain score

Every judge is asked everything before the next begins, so that no two engines have to stand side by
side; scores are put together afterwards, from disk. Scores and calibrations of judges that have
changed since count as not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial

from flywheel.config import Experiment
from flywheel.inference import read
from flywheel.judging import attacks, settling
from flywheel.judging.calibration import Calibration, calibrate, with_agreement
from flywheel.judging.judge import Judge, Progress
from flywheel.judging.labels import Labels, human
from flywheel.judging.panel import Panel, panels
from flywheel.judging.probes import Probes, probes
from flywheel.serving import Endpoint
from flywheel.statistics import Groups, conversations
from flywheel.storage import Storage
from flywheel.types import Json, Record

CALIBRATION = "calibration.json"
Show = Callable[[str, int, int], None]


class Session:
    """The judges of one run.

    Raises:
        ConfigError: A prompt cannot be read.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: Storage,
        records: Sequence[Record],
        labels: Labels,
        cache: Storage | None = None,
    ) -> None:
        """Open what earlier sessions left.

        Args:
            experiment: Names the judges.
            run: The run's folder.
            records: The eval records, masked.
            labels: What people have said so far.
            cache: Where endpoints' answers are kept for other runs.
        """
        self._run, self._labels = run, labels
        self._records = {record.id: record for record in records}
        self._groups = conversations(records, experiment.dataset.group_by)
        self._threshold = experiment.judging.threshold
        configs = settling.judges(experiment)
        self.judges = [Judge(config, run.at("judge"), cache) for config in configs]
        self._panels = panels(self.judges, experiment.judging, settling.programs(experiment))
        self._asked = False

    @property
    def calibrated(self) -> bool:
        """Whether the calibration on disk is that of these very judges."""
        if not self._run.exists(CALIBRATION):
            return False
        found = by_metric(self._run.read_json(CALIBRATION))
        identities = {metric: one.get("identity") for metric, one in found.items()}
        return identities == {panel.metric: panel.identity for panel in self._panels}

    def judged(self, trial: Storage) -> bool:
        """Whether a trial has the scores of these very judges."""
        return all(self._judged(panel, trial.at("scores")) for panel in self._panels)

    def ask_probes(self, judge: Judge, endpoint: Endpoint, show: Show) -> None:
        """Ask one judge for what its calibration takes."""
        self._asked = True
        pairs = self._probes[judge.metric].pairs
        judge.rate(endpoint, pairs, partial(show, "calibrating the judge"))

    def ask(self, judge: Judge, endpoint: Endpoint, trial: Storage, progress: Progress) -> None:
        """Ask one judge about a trial's answers."""
        panel = next(panel for panel in self._panels if judge in panel.judges)
        pairs = panel.pairs(self._records, read(trial.at("completions")))
        judge.rate(endpoint, list(pairs.values()), progress)

    def write(self, trial: Storage) -> None:
        """Write a trial's scores, once all judges were asked."""
        completions = read(trial.at("completions"))
        for panel in self._panels:
            scores, rows = panel.score(self._records, completions)
            name = f"{panel.metric}.jsonl"
            trial.at("verdicts").write_lines(name, rows)
            trial.at("scores").write_lines(name, [asdict(score) for score in scores])

    def close(self, trials: Mapping[str, Storage]) -> Json:
        """Write ``calibration.json`` and give its content.

        Args:
            trials: The folder of every judged trial, by key.
        """
        known = {} if self._asked else by_metric(self._run.read_json(CALIBRATION))
        found = []
        for panel in self._panels:
            if self._asked:
                one = calibrate(panel, self._probes[panel.metric])
            else:
                one = Calibration.from_json(known[panel.metric])
            rows = verdicts(trials, panel.metric)
            one = with_agreement(one, panel, [row for some in rows.values() for row in some])
            said = human(self._labels.by_pair, rows, self._threshold, self._groups)
            found.append(replace(one, human=said))
        return write(self._run, found)

    @cached_property
    def _probes(self) -> dict[str, Probes]:
        """By metric; made of records that its judges rate."""
        return {panel.metric: self._of(panel) for panel in self._panels}

    def _of(self, panel: Panel) -> Probes:
        configs = [judge.config for judge in panel.judges]
        return probes(
            [record for record in self._records.values() if panel.judges[0].rates(record)],
            max(config.calibration_pairs for config in configs),
            max((attacks.spread(config.injection_suite) for config in configs), key=len),
            self._labels.paraphrases,
        )

    def _judged(self, panel: Panel, scores: Storage) -> bool:
        name = f"{panel.metric}.jsonl"
        if not scores.exists(name):
            return False
        return all(row.get("judge") == panel.identity for row in scores.read_lines(name))


def verdicts(trials: Mapping[str, Storage], metric: str) -> dict[str, list[Json]]:
    """The rows of every trial's ``verdicts/<metric>.jsonl``; a trial without them has none."""
    name = f"{metric}.jsonl"
    folders = {key: folder.at("verdicts") for key, folder in trials.items()}
    return {k: list(f.read_lines(name)) for k, f in folders.items() if f.exists(name)}


def by_metric(calibration: Json) -> dict[str, Json]:
    """The calibration of each metric in a ``calibration.json``."""
    found: dict[str, Json] = calibration.get("by_metric", {})
    return found


def write(run: Storage, found: Sequence[Calibration]) -> Json:
    """Write ``calibration.json``: the first metric's figures, and those of all ``by_metric``."""
    content = {**found[0].to_json(), "by_metric": {one.metric: one.to_json() for one in found}}
    run.write_json(CALIBRATION, content)
    return content


def relabelled(
    run: Storage,
    trials: Mapping[str, Storage],
    labels: Labels,
    threshold: float,
    groups: Groups,
) -> Json:
    """Put what people's labels say into a run's ``calibration.json``, and give its content."""
    found = []
    for metric, data in by_metric(run.read_json(CALIBRATION)).items():
        said = human(labels.by_pair, verdicts(trials, metric), threshold, groups)
        found.append(replace(Calibration.from_json(data), human=said))
    return write(run, found)
