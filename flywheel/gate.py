"""The gate before ranking: a trial's model is asked where it was trained and where it is served.

`remember` runs in the trainer and leaves ``reference.json`` in the trial's folder; `check` runs
when the engine is there, before it is asked for anything else, and leaves ``parity.json``. So the
two never hold resources at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flywheel import models
from flywheel.config import ParityConfig
from flywheel.errors import ParityError
from flywheel.methods import icl
from flywheel.methods.reference import Base
from flywheel.parity import Generation, Parity, compare
from flywheel.rendering import Renderer
from flywheel.serving import Endpoint, probe
from flywheel.storage import Storage
from flywheel.types import Record, Trial


def outside(trial: Trial, threads: int) -> Base:
    """The trial's base model outside vLLM, in the engine's number type."""
    return Base(models.fetch(trial.model), trial.settings["engine"].get("dtype"), threads)


def remember(
    trial: Trial,
    folder: Storage,
    records: Sequence[Record],
    adapter: Path | None,
    limits: ParityConfig,
    base: Base,
) -> None:
    """Write down what the model says outside vLLM.

    Args:
        trial: What is tried.
        folder: Where it goes.
        records: Where to take prompts from.
        adapter: The trial's; ``None`` for the base itself.
        limits: How many records to answer, and how far.
        base: As `outside` gives it for the trial.

    Raises:
        TrainingError: See `flywheel.methods.reference.Base.generate`.
    """
    context = icl.of_weights(base.folder, trial.settings["engine"], None).context
    said = base.generate(adapter, records, limits, context)
    folder.write_json("reference.json", [one.to_json() for one in said])


def check(
    trial: Trial,
    folder: Storage,
    records: Sequence[Record],
    endpoint: Endpoint,
    limits: ParityConfig,
) -> Parity:
    """Ask the served model the same and compare.

    Raises:
        EngineError: The endpoint did not answer.
    """
    trained = [Generation.from_json(one) for one in folder.read_json("reference.json")]
    by_id = {record.id: record for record in records}
    asked = [by_id[one.record_id] for one in trained]
    served = probe.generate(endpoint, asked, limits.tokens, trial.settings["timeout_s"])
    decode = Renderer.load(models.fetch(trial.model)).tokenizer.decode
    found = compare(trained, served, limits, decode)
    folder.write_json("parity.json", found.to_json())
    return found


def require(
    trial: Trial,
    folder: Storage,
    records: Sequence[Record],
    endpoint: Endpoint,
    limits: ParityConfig,
) -> None:
    """`check`, and stop the trial that does not pass.

    Raises:
        ParityError: The served model does something else; says where first.
        EngineError: The endpoint did not answer.
    """
    found = check(trial, folder, records, endpoint, limits)
    if not found.passed:
        raise ParityError(f"parity: {found.first_difference}")
