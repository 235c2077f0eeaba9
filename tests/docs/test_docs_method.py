"""The method of ``docs/add-a-method.md`` is a method: taken from the page, and trained with."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmrec_cli
from llmrec_cli import methods
from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.pipeline.prepare import prepare_data
from llmrec_cli.pipeline.train import align
from llmrec_cli.runs.tracking import MetricsLog
from llmrec_cli.utils.progress import Silent
from tests.docs.doc_pages import DOCS, ROOT, blocks, read

pytestmark = pytest.mark.slow  # a method is trained

PAGE = read(DOCS / "add-a-method.md")
TINY = [
    "data.sample.train=60",
    "data.sample.valid=20",
    "data.sample.test=20",
    "model.scratch.hidden=16",
    "model.scratch.feed_forward=16",
    "align.smooth.train.batch=30",
    "align.smooth.train.epochs=12",
    "train.validate_rows=20",
    "launch.device=cpu",
]


@pytest.fixture
def smooth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's file in a folder of methods of its own."""
    (code,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    (tmp_path / "smooth.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    Recipe.model_rebuild(force=True)  # it knows the methods of the moment when it was built
    yield
    monkeypatch.undo()
    Recipe.model_rebuild(force=True)
    sys.modules.pop(f"{methods.__name__}.smooth", None)
    vars(methods).pop("smooth", None)


def test_help_and_schema_know_the_pages_method(tmp_path: Path) -> None:
    """In a copy of the package with one more file."""
    package = Path(llmrec_cli.__file__).parent
    copy = shutil.copytree(package, tmp_path / package.name, ignore=lambda *_: {"__pycache__"})
    (code,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    (copy / "methods" / "smooth.py").write_text(code, encoding="utf-8")

    def said(*words: str) -> str:
        command = [sys.executable, "-m", package.name, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert ", smooth," in " ".join(said("align", "--help").split())
    schema = json.loads(said("schema", "--json"))
    assert "share" in schema["$defs"]["align_smooth"]["properties"]


@pytest.mark.usefixtures("smooth")
def test_the_pages_method_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table,) = [block.text for block in blocks(PAGE) if block.language == "toml"]
    recipe = tmp_path / "my-recipe.toml"
    recipe.write_text(f'extends = "{ROOT / "recipes" / "quickstart.toml"}"\n{table}')
    monkeypatch.chdir(tmp_path)
    loaded = read_recipe(str(recipe), TINY)
    assert loaded.align["smooth"].options.model_dump() == {"share": 0.2}
    prepare_data(loaded, Path)
    folder = align(loaded, "smooth", resume=False, progress=Silent())
    rows = MetricsLog(folder / "metrics.jsonl").rows()
    assert len(rows) > 10
    assert all(math.isfinite(row["loss"]) for row in rows)
    nll = [row["nll"] for row in rows]
    assert sum(nll[-4:]) < sum(nll[:4])


@pytest.mark.usefixtures("smooth")
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_pages_method_computes_the_pages_equation(share: float) -> None:
    import torch

    from llmrec_cli.methods.contract import Batch, Forward, Head
    from llmrec_cli.tensors.trie import ROOT, build_trie

    trie = build_trie([[5, 6, 2], [5, 7, 2], [8, 2]])
    behind_5 = int(trie.parent_N[trie.parent_N[trie.node_of_leaf_L[0].long()].long()])
    legal, target_P = [[5, 8], [6, 7]], torch.tensor([5, 7])
    batch = Batch(
        trie=trie,
        target_P=target_P,
        node_P=torch.tensor([ROOT, behind_5]),
        answer_P=torch.tensor([0, 0]),
        final_P=torch.tensor([False, False]),
        length_A=torch.tensor([3]),
        answers=1,
        positions=3,
    )
    torch.manual_seed(0)
    forward = Forward(torch.randn(2, 4), Head(torch.randn(9, 4)))
    method = methods.find_method("smooth")
    found = method.loss(forward, batch, method.options.model_validate({"share": share}), {})

    wanted = 0.0
    for hidden_D, tokens, target in zip(forward.hidden_PD, legal, target_P.tolist(), strict=True):
        log_prob = torch.log_softmax(forward.head.weight_VD[tokens] @ hidden_D, 0)
        wanted -= (1 - share) * float(log_prob[tokens.index(target)])
        wanted -= share * float(log_prob.mean())
    assert float(found.total) == pytest.approx(wanted, rel=1e-5)
    assert found.count == 3
