"""Reports and leaderboards: the protocol is named, unlike runs do not mix, names stay text."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from llmrec_cli.data.leaves import Leaves, gather_leaves
from llmrec_cli.errors import ArtefactError
from llmrec_cli.report.leaderboard import Run, build_leaderboard, to_json, to_table, to_text
from llmrec_cli.report.lists import Seen
from llmrec_cli.report.metrics import score_rows
from llmrec_cli.report.report_json import Protocol, build_report, jsonable

N_ITEMS = 12
LEAVES = gather_leaves(pd.DataFrame({"count": range(N_ITEMS)}), [*range(N_ITEMS - 1), 0])


def predictions_of(
    seed: int, n_rows: int = 40, n_users: int = 15, hit: float = 0.0
) -> pd.DataFrame:
    """Random lists over the whole catalogue; with probability ``hit`` the target comes first."""
    same, own = np.random.default_rng(0), np.random.default_rng(seed)
    targets = same.integers(0, N_ITEMS, n_rows)
    histories = [same.permutation(N_ITEMS)[:3] for _ in range(n_rows)]
    users = [f"u{user}" for user in same.integers(0, n_users, n_rows)]
    ranked = [own.permutation(N_ITEMS) for _ in range(n_rows)]
    ranked = [
        np.r_[t, r] if own.random() < hit else r for t, r in zip(targets, ranked, strict=True)
    ]
    return pd.DataFrame(
        {
            "row": range(n_rows),
            "user_id": users,
            "history": histories,
            "target": targets,
            "ranked": ranked,
            "scores": [-np.arange(len(r), dtype=np.float32) for r in ranked],
        }
    )


def protocol(seen: Seen = "keep", **changes: Any) -> Protocol:
    values: dict[str, Any] = {
        "split": "test",
        "seen": seen,
        "cutoffs": (1, 5),
        "candidates": "whole catalogue",
        "decoder": {"search": "exact"},
        "hashes": {"data": "abc"},
    }
    return Protocol(**{**values, **changes})


def run_of(name: str, seed: int, hit: float = 0.0, n_rows: int = 40, **changes: Any) -> Run:
    predictions, how = predictions_of(seed, n_rows, hit=hit), protocol(**changes)
    report = build_report({"keep": predictions, "remove": predictions}, LEAVES, how, 200)
    rows = score_rows(predictions, LEAVES, how.cutoffs, how.seen)
    return Run(name, json.loads(json.dumps(report, allow_nan=False)), rows)


def rendered(board: Any, columns: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=columns, force_terminal=True, color_system=None).print(to_table(board))
    return out.getvalue()


def test_a_report_holds_both_policies_and_its_protocol() -> None:
    predictions = predictions_of(1, hit=0.4)
    report = build_report({"keep": predictions, "remove": predictions}, LEAVES, protocol(), 200, 3)
    assert (report["rows"], report["users"]) == (40, predictions["user_id"].nunique())
    assert (report["items"], report["entries"]) == (12, 11)
    pairs = zip(predictions["history"], predictions["target"], strict=True)
    assert report["repeats"] == sum(t % 11 in set(h % 11) for h, t in pairs) > 0  # 11 is on leaf 0
    assert report["protocol"]["hashes"] == {"data": "abc"}
    assert report["bootstrap"] == {"resamples": 200, "seed": 3}
    for seen in ("keep", "remove"):
        rows = score_rows(predictions, LEAVES, [1, 5], seen)
        metrics = report[seen]["metrics"]
        assert list(metrics) == ["hr@1", "ndcg@1", "hr@5", "ndcg@5", "mrr@5"]
        for name, value in metrics.items():
            assert value["mean"] == pytest.approx(rows[name].mean())
            assert value["low"] <= value["mean"] <= value["high"]
    assert report["keep"]["metrics"] != report["remove"]["metrics"]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_beam_gives_its_own_frame_for_remove_and_its_error() -> None:
    keep = predictions_of(1).assign(beam_differs=[True] * 10 + [False] * 30)
    remove = predictions_of(1, hit=1.0)
    report = build_report({"keep": keep, "remove": remove}, LEAVES, protocol(), 200)
    assert report["keep"]["beam_error"] == {"rows": 10, "share": 0.25}
    assert "beam_error" not in report["remove"]
    assert report["remove"]["metrics"]["hr@1"]["mean"] == 1


def test_unknown_ends_are_null_and_come_back_as_question_marks() -> None:
    lonely = predictions_of(1, n_users=1)
    report = build_report({"keep": lonely, "remove": lonely}, LEAVES, protocol(), 200)
    assert report["keep"]["metrics"]["hr@5"]["low"] is None
    board = build_leaderboard([Run("one", report, score_rows(lonely, LEAVES, [1, 5], "keep"))])
    assert "[?, ?]" in to_text(board)
    json.dumps(to_json(board), allow_nan=False)


def test_the_leaderboard_shows_the_reports_figures_and_names_the_policy() -> None:
    runs = [run_of("pop", 1, seen="remove"), run_of("msl", 2, hit=0.7, seen="remove")]
    board = build_leaderboard(runs, baseline="pop")
    text = to_text(board)
    assert 'history removed (seen = "remove")' in text.splitlines()[0]
    assert text.splitlines()[0].startswith("test: 40 rows of 14 users, whole catalogue")
    ndcg = runs[1].report["remove"]["metrics"]["ndcg@5"]
    mean, low, high = (f"{ndcg[key]:.4f}".lstrip("0") for key in ("mean", "low", "high"))
    assert f"{mean} [{low}, {high}]" in text
    difference = board.lines[1].difference
    assert difference is not None
    ours, base = (run.report["remove"]["metrics"]["ndcg@5"]["mean"] for run in runs[::-1])
    assert difference.mean == pytest.approx(ours - base)
    assert f"+{difference.mean:.4f} [+{difference.low:.4f}".replace("+0", "+") in text
    assert "baseline" in text.splitlines()[2]
    as_json = json.loads(json.dumps(to_json(board), allow_nan=False))
    assert as_json["seen"] == "remove"
    assert as_json["lines"][1]["difference"]["mean"] == difference.mean
    assert as_json["lines"][0]["difference"] is None
    assert 'seen = "remove"' in rendered(board)


def test_without_a_baseline_there_is_no_difference() -> None:
    board = build_leaderboard([run_of("a", 1), run_of("b", 2)])
    assert "difference" not in to_text(board)
    assert all(line.difference is None for line in board.lines)


def test_another_metric_can_be_compared() -> None:
    runs = [run_of("a", 1), run_of("b", 2)]
    board = build_leaderboard(runs, baseline="a", compared="hr@1")
    assert "HR@1 difference" in to_text(board)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "valid"}, "b and a do not compare: split = valid and test"),
        ({"seen": "remove"}, "seen = remove and keep"),
        ({"cutoffs": (1, 3)}, r"cutoffs = \[1, 3\] and \[1, 5\]"),
        ({"candidates": "100 sampled"}, "candidates = 100 sampled and whole catalogue"),
        ({"hashes": {"data": "xyz"}}, "data hash = xyz and abc"),
        ({"n_rows": 39}, "rows = 39 and 40"),
    ],
)
def test_runs_under_different_protocols_do_not_mix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        build_leaderboard([run_of("a", 1), run_of("b", 2, **changes)])


def test_the_decoder_may_differ() -> None:
    build_leaderboard([run_of("a", 1), run_of("b", 2, decoder={"search": "beam"})])


def test_unaligned_rows_are_refused_with_both_names() -> None:
    a, b = run_of("a", 1), run_of("b", 2)
    moved = Run("b", b.report, b.rows.assign(row=b.rows["row"] + 1))
    with pytest.raises(
        ArtefactError, match="b against a: the runs were evaluated on different rows"
    ):
        build_leaderboard([a, moved], baseline="a")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["a", "a"], {}, "different names"),
        ([], {}, "different names"),
        (["a"], {"baseline": "pop"}, "no baseline 'pop'; there is a"),
        (["a"], {"compared": "auc"}, "no metric 'auc'; there is hr@1, ndcg@1"),
    ],
)
def test_bad_requests_are_one_clear_line(
    names: list[str], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        build_leaderboard([run_of(name, 1) for name in names], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "[/]",
        "[bold red]x[/bold red]",
        "\x1b[2J\x1b]0;title\x07x",
        "=cmd|' /C calc'!A1",
        "\u202egnp.exe\u2066",
        "line\nbreak\u2028x",
        "nul\x00",
        "源氏物語" * 30,
        "\U0001f600" * 10_000,
        "",
    ],
)
def test_hostile_names_never_break_the_table(name: str) -> None:
    runs = [run_of(name, 1), run_of("ours", 2)]
    board = build_leaderboard(runs, baseline=name)
    for shown in (to_text(board), rendered(board), rendered(board, columns=40)):
        assert not set(shown) & set("\x1b\x00\x07\u202e\u2066\u2028\r")
    assert len(to_text(board).splitlines()) == 5  # title, headings, two runs, caption
    assert max(map(len, to_text(board).splitlines())) < 300
    if name.startswith("["):
        assert name in rendered(board)
    assert to_json(board)["lines"][0]["name"] == name


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_a_narrow_terminal_loses_no_digit(columns: int) -> None:
    board = build_leaderboard([run_of("pop", 1), run_of("align-msl", 2, hit=0.7)], baseline="pop")
    shown, text = rendered(board, columns), to_text(board)
    assert "…" not in shown
    wanted, found = (sorted(re.findall(r"[+-]?[01]?\.\d{4}", x)) for x in (text, shown))
    assert wanted == found
    assert len(wanted) == 2 * 5 * 3 + 3 + 1  # one p
    assert max(map(len, shown.splitlines())) <= columns


def test_one_and_minus_keep_their_digits() -> None:
    first, last = run_of("first", 1, hit=1.0), run_of("last", 2)
    text = to_text(build_leaderboard([first, last], baseline="first"))
    assert "1.0000 [1.0000, 1.0000]" in text
    assert re.search(r"-\.\d{4} \[-\.\d{4}, -\.\d{4}\]", text)


def test_columns_line_up_with_wide_letters() -> None:
    from rich.cells import cell_len

    text = to_text(build_leaderboard([run_of("源氏", 1), run_of("ours", 2)]))
    starts = {cell_len(line[: line.index(" .")]) for line in text.splitlines()[2:4]}
    assert len(starts) == 1


def test_jsonable_leaves_strangers_to_json() -> None:
    assert jsonable({"a": (1.5, float("nan"), [float("inf")])}) == {"a": [1.5, None, [None]]}
    with pytest.raises(TypeError):
        json.dumps(jsonable({"a": object()}))


def test_reports_are_the_same_every_time() -> None:
    assert run_of("a", 4).report == run_of("a", 4).report
    assert isinstance(LEAVES, Leaves)
