"""The reference model beside a policy on the same base weights; mining and stored log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmrec_cli.config.model import Lora, ModelSection, ScratchModel
from llmrec_cli.errors import ArtefactError
from llmrec_cli.methods import find_method
from llmrec_cli.methods.contract import Forward
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import add_lora, build_scratch
from llmrec_cli.tensors.trie import build_trie
from llmrec_cli.training.collator import Collator, Limits
from llmrec_cli.training.dataset import Dataset, Sampler
from llmrec_cli.training.negatives import Miner
from llmrec_cli.training.reference import (
    Reference,
    ReferenceStore,
    compute_reference,
    only_compared_rows,
    store_reference,
    with_reference,
)
from llmrec_cli.training.rows import AnyRow, Row
from llmrec_cli.utils.files import write_folder, write_json
from llmrec_cli.utils.progress import Silent

pytestmark = pytest.mark.filterwarnings(  # peft reads it
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SMALL = ScratchModel(hidden=16, layers=2, heads=2, feed_forward=24, dropout=0.0, vocabulary=300)
CATALOGUE = [[a, b, 1] for a in (10, 11, 12) for b in (20, 21)]
TRIE = build_trie(CATALOGUE)
ROWS = [
    Row(np.array([0, *CATALOGUE[n]], np.int32), (t,), (n,), number=i, negatives=(wrong,))
    for i, (n, t, wrong) in enumerate([(0, 1, (2, 3)), (1, 4, (0, 5)), (2, 3, (1, 4))])
]


def policy(tuning: str) -> Policy:
    model, _ = build_scratch(SMALL, ["a"], (), seed=0)
    if tuning == "lora":
        section = ModelSection(
            backbone="x", tuning="lora", lora=Lora(r=2, dropout=0.0, targets=("all-linear",))
        )
        model = add_lora(model, section, ())
    return Policy(model)


def method(name: str = "dmpo"):  # type: ignore[no-untyped-def] # the pair (method, options)
    found = find_method(name)
    return found, found.options.model_validate({"k": 2} if name != "dpo" else {})


def reference_of(model: Policy) -> Reference:
    found, options = method()
    assert found.log_probs is not None
    score = found.log_probs
    return Reference(model, lambda forward, batch: score(forward, batch, options))


def disturb(model: Policy) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_reference_stays_as_the_policy_was(tuning: str) -> None:
    torch.manual_seed(0)
    model = policy(tuning)
    disturb(model)  # an adapter begins at 0: make it a parent worth the name
    micro = Collator(TRIE, cut_forced=False, rejected=True)(ROWS)
    reference = reference_of(model)
    at_start = reference.log_probs(micro)
    before = [p.detach().clone() for p in model.parameters()]
    torch.testing.assert_close(reference.log_probs(micro), at_start, rtol=0, atol=0)
    disturb(model)
    changed = [p.detach().clone() for p in model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, changed, strict=True))
    torch.testing.assert_close(reference.log_probs(micro), at_start, rtol=0, atol=0)
    for parameter, value in zip(model.parameters(), changed, strict=True):
        assert torch.equal(parameter, value)  # the policy is back in its place


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(
    ("name", "expected"), [("dpo", np.log(2)), ("dmpo", np.log(2)), ("sdpo", np.log(1 + 2))]
)
def test_the_loss_at_step_0(tuning: str, name: str, expected: float) -> None:
    model = policy(tuning)
    micro = Collator(TRIE, cut_forced=False, rejected=True)(ROWS)
    micro = with_reference(micro, reference_of(model).log_probs(micro))
    found, options = method(name)
    hidden_XPD = model(micro.input_ids_BT, micro.take_P, tree=micro.tree)
    if name == "dpo":  # one rejected answer each
        preferences = micro.batch.preferences
        assert preferences is not None
        one = preferences.__class__(preferences.chosen_GC, preferences.rejected_GK[:, :1])
        object.__setattr__(micro.batch, "preferences", one)
    sums = found.loss(Forward(hidden_XPD[0], model.head()), micro.batch, options, {})
    assert float(sums.total.detach()) / sums.count == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_the_policy_survives_a_reference_pass() -> None:
    model = policy("full")
    micro = Collator(TRIE, cut_forced=False, rejected=True)(ROWS)
    reference = reference_of(model)
    disturb(model)
    found, options = method()
    gradients = []
    for between in (False, True):
        model.zero_grad()
        ready = with_reference(micro, reference.log_probs(micro))
        hidden_XPD = model(micro.input_ids_BT, micro.take_P, tree=micro.tree)
        sums = found.loss(Forward(hidden_XPD[0], model.head()), ready.batch, options, {})
        if between:
            reference.log_probs(micro)
        sums.total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, crossed in zip(*gradients, strict=True):
        assert torch.equal(plain, crossed)


def test_stored_values_equal_online_ones_and_come_back(tmp_path: Path) -> None:
    model = policy("full")
    reference = reference_of(model)
    collate = Collator(TRIE, cut_forced=False, rejected=True)
    steps = [
        compute_reference(part, reference, collate, Limits(rows=2), torch.device("cpu"))
        for part in (ROWS, list(reversed(ROWS)))
    ]
    ReferenceStore(tmp_path / "reference", {"parent": "abc"}).save(steps)
    store = ReferenceStore(tmp_path / "reference", {"parent": "abc"})
    assert store.load()
    bare = [Row(r.prompt, r.targets, r.history, number=r.number) for r in reversed(ROWS)]
    micro = collate(store.fill(bare, 1))
    assert micro.batch.reference is not None
    torch.testing.assert_close(
        micro.batch.reference.float(), reference.log_probs(micro), rtol=1e-6, atol=0
    )


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    assert not ReferenceStore(tmp_path / "reference", {}).load()
    rows = compute_reference(
        ROWS,
        reference_of(policy("full")),
        Collator(TRIE, cut_forced=False, rejected=True),
        Limits(),
        torch.device("cpu"),
    )
    ReferenceStore(tmp_path / "reference", {"parent": "abc"}).save([rows])
    with pytest.raises(ArtefactError, match="abc"):
        ReferenceStore(tmp_path / "reference", {"parent": "other"}).load()
    stored = tmp_path / "reference" / "reference.safetensors"
    content = stored.read_bytes()
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="damaged"):
        ReferenceStore(tmp_path / "reference", {"parent": "abc"}).load()


def test_a_store_that_lacks_an_update_is_refused(tmp_path: Path) -> None:
    rows = [replace(row, reference=np.ones(1 + len(row.negatives[0]))) for row in ROWS]
    store = ReferenceStore(tmp_path / "reference", {})
    store.save([rows])
    with pytest.raises(ArtefactError, match="has no negatives-1 and reference-1"):
        store.fill(rows, 1)


def miner(folder: Path, asked: list[list[int]], refresh: int) -> Miner:
    def ask(rows: Sequence[Row]) -> list[list[list[int]]]:
        asked.append([row.number for row in rows])
        return [[[len(asked), row.number]] for row in rows]

    order = Sampler(len(ROWS), 1, shuffle=False)
    return Miner(ask, ROWS, order, steps=99, refresh=refresh, folder=folder, ahead=2)


def test_the_parent_is_asked_once_for_every_row(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    mined = miner(tmp_path / "negatives", asked, refresh=0)
    for step in range(6):
        mined.find_lists([ROWS[step % 3]], step)
    assert asked == [[0, 1], [2]]
    resumed = miner(tmp_path / "negatives", asked, refresh=0)
    for step in (5, 1):
        assert resumed.find_lists([ROWS[step % 3]], step) == mined.find_lists(
            [ROWS[step % 3]], step
        )
    assert len(asked) == 2  # read, not asked again in other company


def test_the_policy_is_asked_every_refresh_and_its_answer_is_kept(tmp_path: Path) -> None:
    asked: list[list[int]] = []
    mined = miner(tmp_path / "negatives", asked, refresh=2)
    first = [mined.find_lists([ROWS[step % 3]], step) for step in range(4)]
    assert asked == [[0, 1], [2, 0]]
    resumed = miner(tmp_path / "negatives", asked, refresh=2)
    assert resumed.find_lists([ROWS[0]], 3) == first[3]
    assert len(asked) == 2  # read, not asked again


@pytest.mark.parametrize("others_lack", [False, True])
def test_all_ranks_compute_the_reference_where_one_lacks_its_share(
    tmp_path: Path, others_lack: bool
) -> None:
    """Killed between two ranks' writing: mining is the work of all, so all come to it again."""
    ReferenceStore(tmp_path / "reference-0-of-2", {}).save(
        [[replace(ROWS[0], reference=np.zeros(3))]]
    )
    ranks: Any = SimpleNamespace(pick_share=list, most=lambda lacks: lacks or others_lack)
    asked: list[Sequence[AnyRow]] = []

    def compute(rows: Sequence[AnyRow], advance: object) -> list[AnyRow]:
        asked.append(rows)
        return [replace(row, reference=np.zeros(3)) for row in only_compared_rows(rows)]

    store = ReferenceStore(tmp_path / "reference-0-of-2", {})
    data, order = Dataset(ROWS[:1]), Sampler(1, 1)
    store_reference(store, data, order, 1, compute, ranks, Silent())
    assert asked == ([ROWS[:1]] if others_lack else [])


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ([1], "not the lists that were written"),
        ({"a": []}, "not the lists that were written"),
        ({"77": [[1]]}, "nothing is written down for row 0"),
    ],
)
def test_lists_of_another_run_are_refused(tmp_path: Path, written: object, problem: str) -> None:
    write_folder(
        tmp_path / "negatives/step-0", lambda folder: write_json(folder / "lists.json", written)
    )
    with pytest.raises(ArtefactError, match=problem):
        miner(tmp_path / "negatives", [], refresh=2).find_lists([ROWS[0]], 0)
