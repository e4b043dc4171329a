"""The table of ``cluster/README.md`` is what `flywheel.sizing` computes, and its sums are right."""

from __future__ import annotations

import re

import pytest

from flywheel.sizing import GPU_GIB, GPUS, Size, gpus_for, needed
from tests.cluster_files import README

TRAININGS, TRAINED_ON, TRIALS, ASKED = 20, 5_000, 24, 500
PROMPT, ANSWER, IN_FLIGHT, RANK, CONTEXT, ADAPTERS = 450, 50, 64, 16, 8192, 8
LEARNED = TRAININGS * TRAINED_ON * (PROMPT + ANSWER)
MODELS = {  # as their config.json has it; weights of 2 bytes
    "1B": ("L4", Size(2 * 1_235_814_400, 16, 2048, 8192, 512, 131_072)),
    "8B": ("L40S", Size(2 * 8_030_261_248, 32, 4096, 14336, 1024, 131_072)),
    "70B": ("B200", Size(2 * 70_553_706_496, 80, 8192, 28672, 1024, 131_072)),
}


def table() -> dict[str, list[str]]:
    """Cells by the name of their row, from the section on sizes."""
    section = README[README.index("## How large") :]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def column(name: str) -> dict[str, str]:
    kind, size = MODELS[name]
    gpu, large = GPUS[kind], name == "70B"
    activations = {"activations": size.activations(checkpointing=large)}
    trainer = needed(size.trainer(RANK) | activations)
    parts = size.engine(CONTEXT, ADAPTERS, RANK)
    gpus = gpus_for(parts, kind)
    learns = size.training_tokens_per_s(gpu, checkpointing=large)
    reads = size.prompt_tokens_per_s(gpu, gpus)
    writes = size.answer_tokens_per_s(gpu, gpus, IN_FLIGHT)
    training = LEARNED / learns / 3600
    answering = TRIALS * ASKED * (PROMPT / reads + ANSWER / writes) / 3600
    disk = size.weight_bytes + TRAININGS * size.adapter_parameters(RANK) * 4  # kept in fp32
    assert trainer <= GPU_GIB[kind]
    return {
        "GPU": f"{kind}, {GPU_GIB[kind]} GiB",
        "a trainer, GiB on each of its GPUs": f"{trainer:.1f}",
        "an engine, GiB": f"{needed(parts):.1f}",
        "GPUs of an engine": str(gpus),
        "a node's memory, GiB for each trainer": f"{size.weight_bytes / 2**30:.1f}",
        "disk for weights and adapters, GB": f"{disk / 1e9:.1f}",
        "a trainer's tokens/s": f"{learns:,.0f}",
        "20 trainings, GPU hours": f"{training:.1f}",
        "an engine's tokens/s, asked": f"{reads:,.0f}",
        "an engine's tokens/s, answered": f"{writes:,.0f}",
        "24 trials' answers, hours": f"{answering:.2f}",
        "the sweep on 4 GPUs, hours": f"{training / 4 + answering:.1f}",
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_guides_table_is_what_is_computed(name: str) -> None:
    written = table()
    place = written[""].index(name)
    assert {row: written[row][place] for row in column(name)} == column(name)
    assert set(written) == {"", "---", "model", *column(name)}


def test_the_guides_arithmetic_is_right() -> None:
    lines = re.findall(r"^    (\S.+?)  +([\d.e+*/() -]+?) += ([\d.]+)$", README, re.M)
    assert len(lines) == 9
    for what, expression, stated in lines:
        digits = len(stated.partition(".")[2])
        found = eval(expression, {"__builtins__": {}})  # noqa: S307 -- digits and operators only
        assert found == pytest.approx(float(stated), abs=0.6 * 10.0**-digits), what


def test_a_token_learned_with_checkpointing_costs_another_way_forward() -> None:
    gpu, (_, size) = GPUS["H100"], MODELS["8B"]
    dear = size.training_tokens_per_s(gpu, checkpointing=True)
    assert size.training_tokens_per_s(gpu) == pytest.approx(1.5 * dear)
    assert size.activations(checkpointing=True) < size.activations() / 4


@pytest.mark.parametrize(("gib", "gpus"), [(60.0, 1), (70.0, 2), (140.0, 4)])
def test_an_engine_takes_as_many_gpus_as_hold_it(gib: float, gpus: int) -> None:
    assert gpus_for({"weights": gib}, "H100") == gpus  # 0.9 of 80 GiB, a tenth for the rest
