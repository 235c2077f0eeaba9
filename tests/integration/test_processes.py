"""Every stage's losses are those of one process and one pass, whatever the split of the batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import SMALL, llmrec, ok

pytestmark = pytest.mark.slow

WORDS = [
    "quickstart",
    *SMALL,
    "model.scratch.dropout=0",  # or every rank draws its own
    "baseline.sasrec.dropout=0",
    "align.dmpo.train.batch=16",
    "train.max_steps=4",
    "align.dmpo.train.max_steps=4",
    "align.dmpo.negatives=uniform",
    "align.dmpo.pool=6",
]
SPLITS = {  # processes x accumulation
    "1 x 4": (1, {"sft": 8, "align-ilrec": 8, "align-dmpo": 4}),
    "2 x 1": (2, {}),
    "2 x 2": (2, {"sft": 8, "align-ilrec": 8, "align-dmpo": 4}),
}
STAGES = {
    "sft": ["sft"],
    "align-dmpo": ["align", "--method", "dmpo"],
    "align-ilrec": ["align", "--method", "ilrec"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run in one process, each batch in one pass."""
    folder = tmp_path_factory.mktemp("processes")
    ok(llmrec(folder, "prepare", *WORDS))
    ok(llmrec(folder, "baseline", "--model", "sasrec", *WORDS))
    for words in STAGES.values():
        ok(llmrec(folder, *words, *WORDS))
    return folder


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_of_one_process_and_one_pass(home: Path, stage: str, split: str) -> None:
    processes, rows = SPLITS[split]
    name = f"{stage}-{split.replace(' ', '')}"
    runs = home / "runs"
    kept = [part for part in (runs / "quickstart").iterdir() if part.name not in STAGES]
    for part in (*kept, *([runs / "quickstart/sft"] if stage == "align-dmpo" else [])):
        copy = shutil.copytree if part.is_dir() else shutil.copy2
        (runs / name).mkdir(exist_ok=True)
        copy(part, runs / name / part.name)
    words = [f"name={name}", f"launch.processes={processes}"]
    if stage in rows:
        section = "train" if stage != "align-dmpo" else "align.dmpo.train"
        words.append(f"{section}.micro_batch={rows[stage]}")
    ok(llmrec(home, *STAGES[stage], *WORDS, *words))
    alone, split_up = (losses(runs / run / stage) for run in ("quickstart", name))
    assert len(alone) == 4
    assert split_up == pytest.approx(alone, rel=1e-5)


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]
