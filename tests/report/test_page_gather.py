"""From finished runs to the page: what is read, what is left out, and that nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llmrec_cli.pipeline.compare import Asked, Compared, compare_runs
from llmrec_cli.report.outputs import write_output
from llmrec_cli.report.page import Page, render_page, write_page
from llmrec_cli.report.page.gather import POINTS, gather_page
from tests.experiments import make_experiment
from tests.report.browser import Opened, chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with ATS, preferences and beam errors."""
    home = tmp_path_factory.mktemp("page")
    made = ("align.msl.tau=ats", "align.dpo.parent=sft", "eval.decode.beam_error=true")
    make_experiment(home, "all", *made)
    return home


@pytest.fixture(scope="module")
def compared(home: Path) -> Compared:
    return compare_runs([str(home / "runs/all")], Asked())


@pytest.fixture(scope="module")
def page(compared: Compared) -> Page:
    return gather_page(compared.comparison, compared.entries)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and the time of its last change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    stats = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_all_that_runs_left_is_on_the_page(page: Page) -> None:
    assert page.experiments == ("all",)
    assert [log.label for log in page.logs] == ["all/sft", "all/align-msl", "all/align-dpo"]
    sft, msl, dpo = page.logs
    assert {"loss", "valid_loss", "valid_ndcg@10"} <= set(sft.curves)
    assert "tau" in msl.curves
    assert {"margin", "accuracy", "d_chosen", "d_rejected"} <= set(dpo.curves)
    assert not {"seconds", "tokens", "epoch", "learning_rate"} & set(sft.curves)
    assert sft.best_step in sft.curves["valid_loss"].steps
    assert [slicing.by for slicing in page.slicings] == ["popularity", "history"]
    assert sum(group.rows for group in page.slicings[0].groups) == 60
    assert page.slicings[1].longest == 5
    trained = ["sft", "align-msl", "align-dpo"]
    assert [error.entry for error in page.beam_errors] == trained
    assert {verdict.check for verdict in page.audits[0].verdicts} >= {"score of Pop"}
    assert page.audits[0].name == "all/prepared"
    assert len(page.users) == 10


def test_curves_are_what_was_logged(home: Path, page: Page) -> None:
    lines = (home / "runs/all/sft/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert page.logs[0].curves["loss"].steps == tuple(row["step"] for row in rows)
    assert page.logs[0].curves["loss"].values == tuple(row["loss"] for row in rows)


def test_the_protocol_stands_in_words(page: Page) -> None:
    facts = {fact.term: fact.words for fact in page.facts}
    assert facts["Evaluated"] == "60 of 969 test rows, 60 users"
    assert facts["Candidates"] == "whole catalogue: 311 entries"
    assert facts["Split"].startswith("leave-one-out: a user's last interaction")
    assert facts["Search"] == "exact"
    assert facts["Decoding"] == 'mask "before", temperature 1'
    assert "Checkpoint" not in facts  # these runs have one validation: nothing was chosen
    assert facts["Intervals"].startswith("95 %, percentile bootstrap over users, 100 resamples")
    assert facts["Data"].startswith("amazon2018: Synthetic_Toys.json.gz")


def test_the_rule_that_chose_among_checkpoints_stands_there(home: Path, tmp_path: Path) -> None:
    """A run that was validated twice had something to choose from."""
    copy = Path(shutil.copytree(home / "runs/all", tmp_path / "all"))
    log = copy / "sft/metrics.jsonl"
    first, *rest = map(json.loads, log.read_text().splitlines())
    first["valid_loss"] = 9.0
    log.write_text("".join(f"{json.dumps(row)}\n" for row in (first, *rest)))
    again = compare_runs([str(copy)], Asked())
    facts = {f.term: f.words for f in gather_page(again.comparison, again.entries).facts}
    assert facts["Checkpoint"] == "best ndcg@10 on 10 validation rows"


def test_rows_that_differ_stand_with_the_entries_that_have_them(compared: Compared) -> None:
    first, *others = compared.comparison.standings
    fewer = (replace(first, n_rows=40, n_users=30), *others)
    comparison = replace(compared.comparison, standings=fewer)
    facts = gather_page(comparison, compared.entries).facts
    assert [fact.words for fact in facts if fact.term == "Evaluated"] == [
        f"40 of 969 test rows, 30 users ({first.name})",
        f"60 of 969 test rows, 60 users ({', '.join(one.name for one in others)})",
    ]


def test_only_the_page_is_written(home: Path, compared: Compared, tmp_path: Path) -> None:
    before = state(home)
    for name in ("one.html", "two.html"):
        write_output(tmp_path / name, compared)
    assert state(home) == before
    one, two = ((tmp_path / name).read_text() for name in ("one.html", "two.html"))
    assert one == two
    assert len(one) < 1_000_000


def test_no_path_of_this_machine_is_on_the_page(home: Path, page: Page) -> None:
    html = render_page(page)
    assert str(home) not in html
    assert str(Path(__file__).parents[1]) not in html
    assert "/tmp" not in html  # noqa: S108


def with_log(compared: Compared, folder: Path, rows: Sequence[Mapping[str, object]]) -> Page:
    """The page of SFT alone, as if it had logged these rows."""
    (entry,) = [entry for entry in compared.entries if entry.name == "sft"]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = replace(entry.evaluations[0], folder=folder)
    return gather_page(compared.comparison, [replace(entry, evaluations=(run,))])


def test_of_many_updates_means_are_shown(compared: Compared, tmp_path: Path) -> None:
    rows = [{"step": at, "loss": float(at)} for at in range(1, 3 * POINTS + 2)]
    curve = with_log(compared, tmp_path, rows).logs[0].curves["loss"]
    assert curve.per == 4
    assert len(curve.steps) <= POINTS
    assert curve.steps[:2] == (4, 8)
    assert curve.values[:2] == (2.5, 6.5)
    assert curve.steps[-1] == 3 * POINTS + 1  # the last mean may be of fewer


def test_updates_that_were_left_out_leave_no_point(compared: Compared, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None, "gradient_norm": None, "skipped": True},
        {"step": 3, "loss": 1.0, "note": "words", "flag": True},
    ]
    (log,) = with_log(compared, tmp_path, rows).logs
    assert set(log.curves) == {"loss"}
    assert log.curves["loss"].steps == (1, 3)


def test_another_tools_lists_are_no_experiment(compared: Compared) -> None:
    first, *others = compared.entries
    run = replace(first.evaluations[0], folder=None, label="lists.csv", manifest={}, report={})
    page = gather_page(compared.comparison, [replace(first, evaluations=(run,)), *others])
    assert page.experiments == ("all",)
    assert first.name in page.slicings[0].estimates
    assert next(one.entry for one in page.users[0].lists) == first.name


def test_a_run_without_a_log_has_no_curves(compared: Compared, tmp_path: Path) -> None:
    assert with_log(compared, tmp_path, []).logs == ()


def test_a_real_page_with_hostile_titles_opens_in_a_browser(
    compared: Compared, tmp_path: Path
) -> None:
    """No complaint, every section in sight, and titles are read, not run."""
    script = "<script>window.owned = 1</script>{{ 7*7 }}"
    evaluated_data = compared.entries[0].evaluated_data
    titles = [f"{script} {at}" for at in range(len(evaluated_data.items))]
    evaluated_data = replace(evaluated_data, items=evaluated_data.items.assign(title=titles))
    entries = [replace(entry, evaluated_data=evaluated_data) for entry in compared.entries]
    file = tmp_path / "report.html"
    write_page(file, gather_page(compared.comparison, entries))
    with chromium() as browser, Opened(browser, file, 390, "dark") as opened:
        assert opened.said == []
        assert opened.value("window.owned") is None
        root = "document.documentElement"
        assert opened.value(f"{root}.scrollWidth") <= opened.value(f"{root}.clientWidth")
        wanted = ["Leaderboard", "Intervals", "Cost", "Training curves", "Audit of the data"]
        shown = opened.page.locator("section > h2").all_inner_texts()
        assert set(wanted) <= {heading.split(" ", 1)[1].strip() for heading in shown}
        assert opened.page.locator("mark").first.inner_text().startswith(script)
