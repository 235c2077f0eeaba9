"""Many processes: the same losses, the same lists, and one decision about when to stop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue
from llmrec_cli.training.distributed import Ranks
from tests.training.process_group import (
    BATCHES,
    COMPARING,
    DRAWING,
    ROWS,
    SECTIONS,
    TRIED,
    prompts_of,
    run_group,
)
from tests.training.tiny import job, metrics

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Group:
    """What a group of processes left behind."""

    folder: Path
    ranks: list[dict[str, Any]]  # results of each by scenario


@pytest.fixture(scope="module", params=[2, 3])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    folder = tmp_path_factory.mktemp("ranks")
    return Group(folder, run_group(request.param, folder))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("method", [*TRIED, *COMPARING])
def test_losses_do_not_depend_on_the_number_of_processes(
    group: Group, tmp_path: Path, method: str, section: str
) -> None:
    """One count over the global batch, also where a rank has fewer rows or passes, or none."""
    alone = job(tmp_path, method, dropout=0, **SECTIONS[section])
    alone.train(resume=False)
    many_rows = metrics(group.folder / method / section)
    assert len(many_rows) >= 3
    for one, many in zip(metrics(alone.folder), many_rows, strict=True):
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert many["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
        assert many.get("tau", 1) == pytest.approx(one.get("tau", 1), rel=1e-6)
        assert many.get("valid_loss", 1) == pytest.approx(one.get("valid_loss", 1), rel=1e-5)


@pytest.mark.parametrize("section", ["ragged", "fewer rows than ranks"])
@pytest.mark.parametrize("method", DRAWING)
def test_rollouts_do_not_depend_on_the_number_of_processes(
    group: Group, tmp_path: Path, method: str, section: str
) -> None:
    """The same entries: which of them is the target shows in the rewards."""
    alone = job(tmp_path, method, dropout=0, **SECTIONS[section])
    alone.train(resume=False)
    many_rows = metrics(group.folder / method / section)
    assert len(many_rows) >= 3
    for one, many in zip(metrics(alone.folder), many_rows, strict=True):
        for name in ("reward", "reward_std", "without_target"):
            assert many[name] == pytest.approx(one[name], rel=1e-6), name
        for name in ("mass", "kl", "gradient_norm"):
            assert many[name] == pytest.approx(one[name], rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("method", TRIED)
def test_a_mean_of_the_ranks_means_would_be_told_apart(tmp_path: Path, method: str) -> None:
    """The control of the test above: what the usual loops report and learn from."""
    running = job(tmp_path, method, dropout=0)
    with torch.no_grad():
        running.policy.head().weight_VD.mul_(20)  # no longer nearly uniform, as after training
    collate, module = running.make_collator(), running.loss
    state = running.method.init_state(running.options, running.trie)
    totals, counts = [], []
    for rank in range(2):
        total, further = module(collate(running.train_set.rows[rank:8:2]), state)
        totals.append(float(total.detach()))
        counts.append(float(further["count"]))
    of_all = sum(totals) / sum(counts)
    of_means = sum(total / count for total, count in zip(totals, counts, strict=True)) / 2
    assert abs(of_means / of_all - 1) > 1e-4


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("method", TRIED)
def test_losses_do_not_depend_on_whether_weights_are_in_pieces(
    group: Group, method: str, section: str
) -> None:
    whole = metrics(group.folder / method / section)
    pieces = metrics(group.folder / "pieces" / method / section)
    for one, other in zip(whole, pieces, strict=True):
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=1e-4), name


def test_weights_in_pieces_are_saved_whole_and_resumed_exactly(group: Group) -> None:
    for rank in group.ranks:
        assert rank["in_pieces"] == {"same": True, "kinds": ["DTensor", "Parameter"]}


def test_every_row_is_ranked_once_and_alike(group: Group, tmp_path: Path) -> None:
    running = job(tmp_path)
    found = [rank["lists"] for rank in group.ranks]
    assert all(lists == found[0] for lists in found)
    for n in ROWS:
        options = DecodeOptions(k=3)
        alone = rank_catalogue(running.policy.model, running.trie, prompts_of(n), options)
        for batch in BATCHES:
            leaf_BK, numbers = found[0][f"{n} {batch}"]
            assert numbers == list(range(n))
            assert leaf_BK == alone.leaf_BK.tolist()


def test_a_row_that_comes_back_twice_or_never_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(Accelerator(cpu=True))
    monkeypatch.setattr(Ranks, "count", property(lambda self: 2))
    for share in ([0, 0, 1], [0, 2]):
        monkeypatch.setattr(Ranks, "share", lambda self, rows, share=share: share)
        with pytest.raises(RuntimeError, match="3 rows were shared out"):
            ranks.share_work(3, lambda numbers: [(torch.zeros(len(numbers)), 0)])


def test_bad_numbers_of_one_rank_stop_all_before_the_update(group: Group) -> None:
    for kind, step in (("loss", 3), ("gradient", 2)):
        found = [rank["bad_numbers"][kind] for rank in group.ranks]
        for rank in found:
            assert f"step {step}: loss = " in rank["message"], kind
            assert rank["finite"]
            assert rank["weights"] == found[0]["weights"]
        noted = json.loads((group.folder / kind / "nonfinite.jsonl").read_text())
        assert noted["step"] == step


def test_a_signal_to_one_rank_stops_all_at_the_same_update_and_the_run_goes_on_exactly(
    group: Group,
) -> None:
    for rank in group.ranks:
        assert rank["one_signal"]["step"] == 3
        assert len(rank["one_signal"]["got"]) == 1  # delivered once, on the other ranks too
        assert rank["one_signal"]["same"]


def test_ranks_tell_one_another(group: Group) -> None:
    found, n = [rank["telling"] for rank in group.ranks], len(group.ranks)
    for rank in found:
        assert rank["most"] == 10 * (n - 1)
        assert rank["sum"] == {"a": n * (n - 1) / 2, "b": n}
        assert rank["gathered"] == list(range(n - 1))
        assert rank["saw"] == "whole"
        assert rank["fed"] == [0]
    assert sorted(i for rank in found for i in rank["share"]) == list(range(7))
    assert [rank["worked"] for rank in found] == [["worked"], *[[]] * (n - 1)]


def test_what_one_makes_all_map(group: Group) -> None:
    """The same memory, without a name by now; what one writes there the others do not see."""
    found = [rank["mapping"] for rank in group.ranks]
    assert [rank["made"] for rank in found] == [[0], *[[] for _ in found[1:]]]
    for index, rank in enumerate(found):
        assert rank["shown"] == {"a": [0, 1, 2, 3, 4], "b": [[index, 1, 1], [1, 1, 1]]}
        assert rank["mapped"]
        assert rank["left"] == []


def test_every_machine_makes_its_own(group: Group) -> None:
    for index, rank in enumerate(group.ranks):
        assert rank["many_machines"]["shown"] == [index] * 3


def test_alone_everything_is_the_identity() -> None:
    ranks = Ranks(Accelerator(cpu=True))
    assert ranks.share([1, 2]) == [1, 2]
    assert ranks.most(5) == 5
    columns: list[Any] = ranks.share_work(3, lambda numbers: [(torch.tensor(list(numbers)), -1)])
    assert columns[0].tolist() == [0, 1, 2]


def test_one_of_many_processes_feeds_the_trackers(group: Group) -> None:
    first, *others = [rank["once_in_a_tracker"] for rank in group.ranks]
    said = f"tracked: also in tensorboard: tensorboard --logdir {group.folder}"
    assert first == [said, "tensorboard"]
    assert others == [["tensorboard"]] * len(others)


def test_the_first_rank_s_clock_decides_when_all_save(group: Group) -> None:
    for rank in group.ranks:
        assert rank["by_time"] == {"first": [1, 2, 3], "another": [3]}
