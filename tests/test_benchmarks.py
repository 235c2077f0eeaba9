"""The benchmarks at their tiniest: that they run, and that a wrong answer fails them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as suites
from benchmarks import device, gpu, growth, growth_point, guided, loss_head, quantizers, startup
from benchmarks.decoding import EOS, SHAPES, Shape
from benchmarks.table import MOST, Row, alternate
from llmrec_cli.decoding import search

pytestmark = pytest.mark.slow

POINT = growth.Point(items=50, title=4, users=2, prompt=12, k=3, vocabulary=1_100, repeats=2)


@pytest.mark.parametrize("agrees", [True, False])
def test_a_suite_fails_by_its_answers(
    agrees: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = Row("work", "peer", [2.0, 4.0], [1.0, 1.0], agrees, bar=None)
    monkeypatch.setattr(startup, "rows", lambda size: [row])
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "startup", "--json", str(file)])
    assert suites.main() == (0 if agrees else 1)
    assert json.loads(file.read_text())["rows"][0]["ratio"] == 3


def test_a_short_work_is_timed_once_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time takes 0.1 s more after the other side; of a long work that is nothing."""
    clock, ran = [0.0], list[str]()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            clock[0] += seconds + 0.1 * (ran[-1:] != [name])
            ran.append(name)

        return run

    found = alternate(work("peer", 20.0), work("ours", 0.08), 2)
    assert found[0] == pytest.approx([20.1] * 2)
    assert found[1] == pytest.approx([0.08] * 2)
    assert ran == ["peer", "ours", "ours", "ours"] * 2


def test_a_work_that_takes_nothing_is_not_timed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    ran: list[int] = []
    assert alternate(lambda: None, lambda: ran.append(len(ran)), 1) == ([0.0], [0.0])
    assert len(ran) == MOST


def test_the_ratio_is_that_of_figures_taken_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine that drifts does so for both: 2, 2 and 8 times, where medians would say 4."""
    row = Row("work", "peer", [2.0, 8.0, 8.0], [1.0, 4.0, 1.0], True, bar=None)
    monkeypatch.setattr(startup, "rows", lambda size: [row])
    file = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "startup", "--json", str(file)])
    suites.main()
    (found,) = json.loads(file.read_text())["rows"]
    assert (found["lowest"], found["ratio"], found["highest"]) == (2, 2, 8)
    with pytest.raises(ValueError, match="argument 2"):
        _ = Row("work", "peer", [2.0], [1.0, 1.0], True, bar=None).ratios


def test_a_suite_fails_under_its_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    floors = tmp_path / "floors.json"
    floors.write_text('{"work | peer": 2.5}')
    monkeypatch.setattr(suites, "FLOORS", floors)
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "startup"])
    for seconds, code in ((3.0, 0), (2.0, 1)):
        row = Row("work", "peer", [seconds], [1.0], True, bar=None)
        monkeypatch.setattr(startup, "rows", lambda size, row=row: [row])
        assert suites.main() == code


def test_prepare_equals_the_pandas_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(startup.REVIEWS, "ci", 2_000)
    monkeypatch.setitem(startup.REPEATS, "ci", 1)
    first, again = startup.prepare_rows(tmp_path, "ci")
    assert first.agrees
    assert again.peer_seconds == first.our_seconds
    for change in ("drop", "swap"):
        file = tmp_path / "pandas-test.parquet"
        rows = pd.read_parquet(file)
        rows = rows[1:] if change == "drop" else rows.assign(asin=rows["asin"].to_numpy()[::-1])
        rows.to_parquet(file, index=False)
        assert not startup.same_result(tmp_path)[0]


def test_a_bar_in_seconds_is_a_ratio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(startup.REPEATS, "full", 1)
    monkeypatch.setitem(startup.BARS, ("--version",), 1e-6)
    row = startup.bar_row(tmp_path, "full", ("--version",))
    assert (row.name, row.peer, row.bar) == ("llmrec --version", "at most 1e-06 s", 1.0)
    assert row.ratios[0] < 1


@pytest.mark.parametrize("size", ["ci", "full"])
def test_no_bar_in_seconds_fails_a_slow_machine(
    size: startup.Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the CI size, which has floors, every row stands beside a work of the same run."""
    monkeypatch.setattr(startup, "_llmrec", lambda *words: None)
    monkeypatch.setattr(startup, "prepare_rows", lambda *words: [])
    monkeypatch.setattr("subprocess.run", lambda *words, **named: None)
    monkeypatch.setitem(startup.REPEATS, size, 1)
    found = startup.rows(size)
    assert any(row.peer.startswith("importing ") for row in found)
    assert any(row.peer.startswith("at most ") for row in found) == (size == "full")
    assert not [key for key in json.loads(suites.FLOORS.read_text()) if " s" in key[-3:]]


@pytest.mark.parametrize("kind", growth.CATALOGUES)
def test_a_point_of_growth(kind: growth.Catalogue) -> None:
    measured = growth_point.measure(replace(POINT, catalogue=kind))
    assert measured.right
    assert len(measured.decode_seconds) == len(measured.prefill_seconds) == POINT.repeats
    assert measured.process_mb > measured.decode_mb
    # Of 50 items with EOS, at least the nodes of the leaves: 16 bytes each.
    assert measured.trie_nodes > 50
    assert measured.trie_mb * 2**20 >= 16 * measured.trie_nodes


def test_a_wrong_list_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    true = search.score_all
    monkeypatch.setattr(growth_point, "score_all", lambda *a: -true(*a))
    assert growth_point.measure(POINT).right is False


@pytest.mark.parametrize("right", [True, False])
def test_a_list_without_its_guide_is_noticed(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(vocabulary=1_100, width=32, layers=1, users=2, prompt=12, items=60, repeats=1)
    monkeypatch.setitem(SHAPES, "ci", shape)
    if not right:
        monkeypatch.setattr(guided, "Guide", lambda log_probs, weight: None)
    assert {row.agrees for row in guided.rows("ci")} == {right}


def test_zipf_titles_have_their_length() -> None:
    titles = growth_point.zipf_titles(2_000, tokens=10, vocabulary=500)
    assert sum(map(len, titles)) / 2_000 == pytest.approx(11, abs=0.3)  # and EOS
    assert all(title[-1] == EOS not in title[:-1] for title in titles)
    assert max(max(title) for title in titles) < 500


@pytest.mark.parametrize("right", [True, False])
def test_curves_are_written(right: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = growth.Measured([1.0], [0.1, 0.2], [0.2, 0.3], 5, 6, 7, 400, 0.5, 99, right)
    asked: list[growth.Point] = []

    def in_a_process(point: growth.Point) -> growth.Measured:
        asked.append(point)
        return measured

    monkeypatch.setattr(growth, "in_a_process", in_a_process)
    assert growth.main(["--out", str(tmp_path)]) == (0 if right else 1)
    assert len(asked) == len(set(asked))
    document = json.loads((tmp_path / "growth.json").read_text())
    assert set(document["curves"]) == {"items", "users", "title", "prompt", "k"}
    for axis in document["curves"]:
        for kind in ("png", "svg"):
            assert (tmp_path / f"growth-{axis}.{kind}").stat().st_size > 1_000
    assert "| users decoded at once |" in (tmp_path / "growth.md").read_text()


def test_the_gpu_script_as_a_toy(tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["failed"] == {}
    works = {line["work"] for line in report["lines"]}
    assert {"loss head, trained", "training step", "ILRec head, 4 layers"} <= works
    assert all(len(line["seconds"]) == 2 for line in report["lines"])
    assert report["synchronisations"]["training step"] is None


def test_the_gpu_script_notices_a_wrong_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    true = loss_head.released
    monkeypatch.setattr(loss_head, "released", lambda p: 1.01 * true(p))
    toy = ["--device", "cpu", "--size", "tiny", "--out", str(tmp_path), "--only", "loss_head"]
    assert gpu.main(toy) == 1
    assert "| NO |" in (tmp_path / "gpu.md").read_text()


def test_a_suite_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[str] = []

    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu, "SUITES", {"a": fails, "b": lambda *_: ran.append("b")})
    assert gpu.main(["--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]) == 1
    assert ran == ["b"]
    assert "a FAILED: RuntimeError: no kernel" in (tmp_path / "gpu.md").read_text()


def test_no_gpu_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_out_of_memory_is_a_result() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError

    context = device.Bench(torch.device("cpu"), torch.bfloat16, repeats=3)
    lines = context.timed("work", {"peer": too_large, "ours": lambda: None}, {"ours": True})
    assert [len(line.seconds) for line in lines] == [0, 3]
    text = device.as_text(device.Report({}, lines))
    assert "| work | peer | out of memory |" in text


def test_agreement_is_of_loss_and_gradients() -> None:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)

    def too_large() -> Tensor:
        raise torch.OutOfMemoryError

    ways: dict[str, device.Loss] = {
        "too large": too_large,
        "peer": lambda: (leaf**2).sum(),
        "same": lambda: leaf @ leaf,
        "other loss": lambda: (leaf**2).sum() + 1,
        "other gradient": lambda: (leaf * leaf.detach()).sum(),
    }
    same = device.agreement(ways, [leaf])
    assert same == {"peer": True, "same": True, "other loss": False, "other gradient": False}
    assert leaf.grad is None


def test_a_copy_on_the_device_has_leaves_of_its_own() -> None:
    shape = gpu.SCALES["tiny"].head
    drawn = loss_head.draw_problem(shape, trained=True)
    context = device.Bench(torch.device("cpu"), torch.bfloat16, repeats=1)
    moved = context.to_device(drawn, torch.bfloat16)
    for name in ("hidden_BTD", "weight_VD"):
        leaf: Tensor = getattr(moved, name)
        assert (leaf.dtype, leaf.is_leaf, leaf.requires_grad) == (torch.bfloat16, True, True)
    assert moved.trie.edge_token_E.dtype == torch.int32
    assert moved.legal_BTV.dtype == torch.bool


def test_quantizers_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = quantizers.draw_clusters(400, 8)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(400))
    monkeypatch.setattr(quantizers, "measure_apart", quantizers.measure)
    words = ["--quantizer", "rq-kmeans", "rq-vae", "--items", "400", "--width", "8"]
    assert quantizers.main([*words, "--epochs", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert rows[0].startswith("| rq-kmeans | 400 | ")
    assert rows[1].startswith("| rq-vae, 1 epochs | 400 | ")
    lost = [float(row.split("|")[-2]) for row in rows]
    assert lost[0] < lost[1], "one epoch learns less than k-means finds"
