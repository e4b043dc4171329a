"""How fast LoRA training is: against TRL's SFTTrainer and a plain PEFT loop.

    python -m tests.benchmarks.training [--quick]

All three train the same adapter shape on the same rows in the same order, 16 rows per optimiser
step, with the same optimiser and learning rate in bf16, each in a fresh process. TRL runs with the
fastest of the settings that are valid without a GPU, found by trying each for two steps. The
validation loss of every adapter is measured afterwards by one and the same code, row by row. Tokens
per second count rows as they are: no padding, nothing shared. A full run writes
``results/training.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flywheel import models
from flywheel.config import LoraConfig
from flywheel.methods import batches, lora, training
from flywheel.methods.padding import pad
from flywheel.records import parse_line
from flywheel.rendering import Example, Renderer
from flywheel.sample_logs import ROUTER, write_sample_logs
from flywheel.types import Json, Record

from . import results

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH, THREADS = 16, 2
SIDES = ("flywheel", "trl", "peft")
TRL_SETTINGS: tuple[Json, ...] = (
    {"rows": 16, "padding_free": False},
    {"rows": 4, "padding_free": False},
    {"rows": 4, "padding_free": True},
)
"""Rows per forward pass, and whether they stand behind one another instead of side by side."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the results of a full run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="32 rows; writes nothing")
    parser.add_argument("--side", choices=SIDES, help="run one side (used by this program)")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--settings", type=json.loads, default={})
    options = parser.parse_args(arguments)
    if options.side:
        figures = _run_side(options.side, options.work, options.settings)
        sys.stdout.write("\n" + json.dumps(figures) + "\n")
        return
    figures = measure(train=32 if options.quick else 192, val=8 if options.quick else 64)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if not options.quick:
        results.write("training", figures)


def measure(train: int, val: int) -> Json:
    """Run every side and compare."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(work, train, val)
        tries = [_measured("trl", work, {**s, "steps": 2}) for s in TRL_SETTINGS]
        best = max(range(len(tries)), key=lambda i: tries[i]["tokens_per_second"])
        runs = {
            "flywheel": _measured("flywheel", work, {}),
            "trl": _measured("trl", work, TRL_SETTINGS[best]),
            "peft": _measured("peft", work, {}),
        }
    ours, trl, peft = (runs[side]["tokens_per_second"] for side in SIDES)
    return {
        "speedup_vs_trl": round(ours / trl, 2),
        "speedup_vs_peft_loop": round(ours / peft, 2),
        "val_loss_ours": runs["flywheel"]["val_loss"],
        "val_loss_trl": runs["trl"]["val_loss"],
        "val_loss_peft_loop": runs["peft"]["val_loss"],
        "rows": train,
        "trl_settings_tried": [
            {**s, "tokens_per_second": t["tokens_per_second"]}
            for s, t in zip(TRL_SETTINGS, tries, strict=True)
        ],
        "runs": runs,
    }


def _measured(side: str, work: Path, settings: Json) -> Json:
    command = [sys.executable, "-m", f"{__package__}.training", "--side", side]
    command += ["--work", str(work), "--settings", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    figures: Json = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{side} {settings or ''}: {figures['tokens_per_second']} tokens/s\n")
    return figures


def _prepare(work: Path, train: int, val: int) -> None:
    """Records of the sample router as JSON, the first for training."""
    write_sample_logs(work / "logs", 3000)
    lines = [li for path in sorted((work / "logs").glob("*.jsonl")) for li in path.open("rb")]
    parsed = (parse_line(line, "logs", 0) for line in lines)
    found = {r.id: r for r in parsed if isinstance(r, Record) and r.workload_id == ROUTER}
    kept = [asdict(record) for record in list(found.values())[: train + val]]
    (work / "train.json").write_text(json.dumps(kept[:train]))
    (work / "val.json").write_text(json.dumps(kept[train:]))


def _records(work: Path, split: str) -> list[Record]:
    return [Record(**data) for data in json.loads((work / f"{split}.json").read_text())]


def _parameters() -> Json:
    config = LoraConfig(batch_records=BATCH, epochs=1, validations=1, checkpoint_every_s=None)
    return {**config.model_dump(), "base_model": MODEL}


def _run_side(side: str, work: Path, settings: Json) -> Json:
    """Train, then measure the adapter the common way."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    steps = settings.pop("steps", None)
    adapter = work / f"adapter-{side}"
    if side == "flywheel":
        told = lora.train(
            models.fetch(MODEL), _records(work, "train"), [], _parameters(), 0, adapter, THREADS
        )
        figures = {"tokens": told["tokens"], "seconds": told["seconds"]}
    else:
        planned = _plan(work)[:steps]
        run = _trl if side == "trl" else _peft
        figures = run(planned, adapter, **settings)
    figures["tokens_per_second"] = round(figures["tokens"] / figures["seconds"], 1)
    if steps is None:
        figures["val_loss"] = _val_loss(work, adapter)
    return {**figures, **settings}


def _plan(work: Path) -> list[list[Example]]:
    """The rows of each optimiser step, as flywheel orders them."""
    renderer = Renderer.load(models.fetch(MODEL))
    rows = [renderer.example(record) for record in _records(work, "train")]
    return batches.plan(rows, _parameters(), 0)


def _adapted() -> Any:
    """SmolLM2 in bf16 with PEFT's adapters in float32, as PEFT makes them."""
    import peft
    import torch

    base = training.load_model(models.fetch(MODEL), torch.bfloat16)
    return peft.get_peft_model(base, _lora_config())


def _lora_config() -> Any:
    import peft

    return peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def _trl(planned: list[list[Example]], adapter: Path, rows: int, padding_free: bool) -> Json:
    """TRL's SFTTrainer on the same token ids, loss on completions only."""
    import datasets
    import transformers
    import trl

    class Clock(transformers.TrainerCallback):
        """Times the loop alone."""

        seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.seconds = -time.monotonic()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds += time.monotonic()

    import torch

    told = _parameters()
    flat = [row for step in planned for row in step]
    data = datasets.Dataset.from_list(
        [
            {
                "input_ids": row.ids,
                "completion_mask": [int(i >= row.answer_start) for i in range(len(row.ids))],
            }
            for row in flat
        ]
    )
    config = trl.SFTConfig(
        output_dir=str(adapter / "trainer"),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=BATCH // rows,
        num_train_epochs=1,
        learning_rate=told["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(told["warmup_ratio"] * len(planned)),
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        completion_only_loss=True,
        padding_free=padding_free,
        max_length=None,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        seed=0,
    )
    clock = Clock()
    trainer = trl.SFTTrainer(
        model=training.load_model(models.fetch(MODEL), torch.bfloat16),
        args=config,
        train_dataset=data,
        processing_class=Renderer.load(models.fetch(MODEL)).tokenizer,
        peft_config=_lora_config(),
        callbacks=[clock],
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    trainer.model.save_pretrained(str(adapter), save_embedding_layers=False)
    return {"tokens": sum(len(row.ids) for row in flat), "seconds": round(clock.seconds, 2)}


def _peft(planned: list[list[Example]], adapter: Path, rows: int = 4) -> Json:
    """The loop of PEFT's examples: padded rows, labels, `model(...).loss.backward()`."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    told = _parameters()
    model = _adapted()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=told["learning_rate"], weight_decay=0.0)
    warmup = math.ceil(told["warmup_ratio"] * len(planned))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, len(planned))
    model.train()
    began = time.monotonic()
    for step in planned:
        answers = sum(len(row.ids) - row.answer_start for row in step)
        for batch in _labelled(step, rows):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch, num_items_in_batch=answers).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - began
    model.save_pretrained(str(adapter), save_embedding_layers=False)
    tokens = sum(len(row.ids) for step in planned for row in step)
    return {"tokens": tokens, "seconds": round(seconds, 2)}


def _labelled(step: list[Example], rows: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(step), rows):
        part = step[start : start + rows]
        batch = pad(part)
        labels = batch.input_ids.clone()
        for i, row in enumerate(part):
            labels[i, : row.answer_start] = -100
            labels[i, len(row.ids) :] = -100
        yield {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": labels,
        }


def _val_loss(work: Path, adapter: Path) -> float:
    """Nats per answer token of the saved adapter on the val rows, one row at a time."""
    import peft
    import torch

    folder = models.fetch(MODEL)
    renderer = Renderer.load(folder)
    rows = [renderer.example(record) for record in _records(work, "val")]
    model = peft.PeftModel.from_pretrained(
        training.load_model(folder, torch.bfloat16), str(adapter)
    ).eval()
    with torch.no_grad():
        total = sum(float(training.summed_loss(model, pad([row]), "cpu")) for row in rows)
    return round(total / sum(len(row.ids) - row.answer_start for row in rows), 4)


if __name__ == "__main__":
    main()
