"""Progress counts parts of a unit, tells the time left, and fills no log."""

from __future__ import annotations

from io import StringIO

import pytest

from llmrec_cli.utils.progress import Lines, Progress, Rich, Work, advance_for_all
from llmrec_cli.utils.text import Terminal


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def lines(clock: Clock, said: list[str]) -> Lines:
    return Lines(write=said.append, clock=clock)


def test_parts_of_the_first_unit_already_tell_how_long_the_whole_takes(clock: Clock) -> None:
    work = Work("sft", 30, unit="updates", clock=clock)
    with work.within("passes", 8) as passed:
        clock.wait(3)
        assert work.describe_count() == "0/30 updates (passes 0/8)"
        assert work.describe_speed() == "3 s so far"
        clock.wait(3)
        passed(1, tokens=900)
        passed(1)
        assert work.fraction == 0.25
        assert work.describe_count() == "0/30 updates (passes 2/8)"
        assert work.describe_speed() == "24 s each, 150 tokens/s, 11 min 54 s left"
        clock.wait(14)  # the time left runs down between two passes
        assert work.estimate_left() == 700
    work(1, "loss 3.2")
    assert work.describe_count() == "1/30 updates"
    assert work.describe_speed() == "20 s each, 45 tokens/s, 9 min 40 s left, loss 3.2"


def test_tokens_are_counted_while_they_are_computed(clock: Clock) -> None:
    """What lies between two updates, such as a validation, does not slow them."""
    work = Work("sft", 3, unit="updates", clock=clock)
    for _ in range(2):
        with work.within("passes", 1) as passed:
            clock.wait(2)
            passed(tokens=200)
            clock.wait(2)  # the optimizer's step
        clock.wait(1000)
        work(1)
    assert work.measure_tokens() == 50


def test_a_resumed_task_is_as_fast_as_it_is_now(clock: Clock) -> None:
    work = Work("sft", 30, done=20, unit="updates", clock=clock)
    clock.wait(8)
    work(4)
    assert work.describe_speed() == "2 s each, 12 s left"


def test_a_fast_rate_is_a_plain_number(clock: Clock) -> None:
    work = Work("item scores", 6000, unit="rows", clock=clock)
    clock.wait(1)
    work(1620)
    assert work.describe_speed() == "1,620 rows/s, 3 s left"


def test_the_time_left_never_runs_below_nothing(clock: Clock) -> None:
    work = Work("eval", 2, clock=clock)
    clock.wait(1)
    work(1)
    clock.wait(100)
    assert work.estimate_left() == 0


def test_a_log_gets_a_line_every_few_seconds_and_the_last_one_once(
    lines: Lines, clock: Clock, said: list[str]
) -> None:
    with lines.track("sft", 198, unit="updates") as advance:
        for _ in range(198):
            with advance.within("passes", 4) as passed:
                for _ in range(4):
                    clock.wait(0.125)
                    passed(tokens=10)
            advance(1)
    assert len(said) == 10  # of 99 seconds: nine, and the last one
    assert said[0] == "sft: 19/198 updates (passes 4/4), 2 updates/s, 80 tokens/s, 1 min 29 s left"
    assert said[-1] == "sft: 198/198 updates, 2 updates/s, 80 tokens/s, in 1 min 39 s"
    assert sum("198/198" in line for line in said) == 1


def test_work_inside_of_other_work_shares_its_lines(
    lines: Lines, clock: Clock, said: list[str]
) -> None:
    with lines.track("sft", 30, done=15, unit="updates"):
        with lines.track("validation", 40, unit="rows") as advance:
            for _ in range(4):
                clock.wait(4)
                advance(10)
        clock.wait(4)
    assert said == [
        "sft: 15/30 updates, validation: 30/40 rows, 2.5 rows/s, 4 s left",
        "sft: 15/30 updates, 20 s so far",
    ]


def test_what_ends_in_an_error_says_no_last_line(lines: Lines, said: list[str]) -> None:
    with pytest.raises(ValueError, match="x"), lines.track("sft", 3):
        raise ValueError("x")
    with lines.track("eval", 1) as advance:
        advance()
    assert [line.partition(":")[0] for line in said] == ["eval"]


@pytest.mark.parametrize("own", [1, 3, 5, 7])
def test_a_share_of_the_work_ends_with_the_whole(own: int) -> None:
    """Of 20 rows on several processes, in batches of two."""
    told: list[int] = []
    advance = advance_for_all(told.append, own, 20)
    for start in range(0, own, 2):
        advance(min(2, own - start))
    assert sum(told) == 20


def test_a_text_is_said_once_of_whatever_subject(lines: Lines, said: list[str]) -> None:
    shown = StringIO()
    for progress in (lines, Rich(Terminal(file=shown, width=80))):
        tell_all(progress)
    wanted = ["sft: 3 of 4 rows", "align-msl: 2 of 4 rows"]
    assert said == wanted
    assert shown.getvalue().splitlines() == wanted


def tell_all(progress: Progress) -> None:
    progress.say_once("sft", "3 of 4 rows")
    progress.say_once("align-lml", "3 of 4 rows")
    progress.say_once("align-msl", "2 of 4 rows")


def test_a_terminal_shows_inner_work_below_until_it_is_done() -> None:
    shown = StringIO()
    terminal = Terminal(file=shown, force_terminal=True, width=100, color_system=None)
    progress = Rich(terminal)
    with progress.track("sft", 3, unit="updates") as advance:
        with advance.within("passes", 2) as passed:
            passed(1)
            assert progress._bars is not None
            progress._bars.refresh()
        assert "0/3 updates (passes 1/2)" in shown.getvalue()
        with progress.track("validation", 40, unit="rows") as inner:
            inner(10)
            progress._bars.refresh()
            assert "10/40 rows" in shown.getvalue()
            assert [task.description for task in progress._bars.tasks] == ["sft", "validation"]
        assert [task.description for task in progress._bars.tasks] == ["sft"]
    assert progress._bars is None


def test_the_last_line_is_not_written_twice(lines: Lines, clock: Clock, said: list[str]) -> None:
    """Where a line is due at the very end."""
    with lines.track("eval sft", 60, unit="rows") as advance:
        clock.wait(60)
        advance(60, "ndcg .1")
    assert said == ["eval sft: 60/60 rows, 1 rows/s, in 1 min 0 s, ndcg .1"]
