"""Estimates of memory and time, what is chosen from them, and what is said before training."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmrec_cli.config.loader import read_recipe
from llmrec_cli.config.names import RunKind
from llmrec_cli.config.training import TrainSection
from llmrec_cli.errors import UserError
from llmrec_cli.methods import find_method
from llmrec_cli.models.language_model import Policy
from llmrec_cli.pipeline import advice, memory, timing
from llmrec_cli.pipeline.advice import warn_of_emulation, warn_of_warmup
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.memory import MemoryNeed, PassSize, find_largest_pass
from llmrec_cli.pipeline.plan import check_plan, plan_run
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import open_context
from llmrec_cli.pipeline.timing import Speed, show_seconds
from llmrec_cli.runs.run import Run, sft_run
from llmrec_cli.tasks.base import StageRows, load_operations
from llmrec_cli.tensors.packing import Tree
from llmrec_cli.training.collator import Limits
from llmrec_cli.training.dataset import Sampler
from llmrec_cli.training.distributed import Ranks
from llmrec_cli.training.rows import TextRow
from llmrec_cli.training.trainer import Trainer
from llmrec_cli.utils.machine import Memory
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed
from tests.pipeline.sample_backbones import ALL, byte_level, write_checkpoint
from tests.pipeline.test_tokenizers import SFT, Capsys, done

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft reads it
)
VALIDATE = ("validate", "own.toml", "--rows")
LORA = ("model.tuning=lora", "model.lora.targets=all-linear")


@pytest.fixture
def home_with_base(home: Path) -> Path:
    write_checkpoint(home / "base", byte_level(), ALL, hidden=32)
    return home


def open_stage(*words: str) -> tuple[TrainingStage, StageRows]:
    recipe = read_recipe("own.toml", words)
    context = open_context(recipe, Silent())
    stage = check_plan(context, plan_run(recipe, sft_run(recipe)))
    return stage, load_operations(recipe.task).make_rows(stage, False)


def give_memory(monkeypatch: pytest.MonkeyPatch, stage: TrainingStage, rows: int) -> int:
    """So much that ``rows`` of the longest rows fit and no more do; bytes."""
    found = load_operations(stage.context.recipe.task).make_rows(stage, False)
    sizes = memory.measure_rows(stage, found)
    model = memory.build_dry_model(stage.context, dropout=True)
    size = PassSize(rows, sizes.longest)
    need = memory.estimate_memory(stage, model, sizes, size, 0)
    free = int(need.total / memory.SHARE) + 1
    monkeypatch.setattr(memory, "measure_process", lambda ranks: 0)
    monkeypatch.setattr(memory, "find_memory", lambda ranks, processes: Memory(free, "RAM"))
    return free


# The dry run against what torch really keeps.


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("words", [(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_dry_run_keeps_what_a_real_pass_keeps(
    attention: str, words: tuple[str, ...], packed: bool, home_with_base: Path
) -> None:
    stage, _ = open_stage(f"model.attention={attention}", *words)
    dry = memory.build_dry_model(stage.context, dropout=True)
    model = load_policy(stage.context, None, train=True)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    n = 200
    ids_BT, slot_BT = torch.ones(1, n, dtype=torch.int64), torch.arange(n)[None]
    tree = Tree(slot_BT, torch.full((1, n), n)) if packed else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Policy(model)(ids_BT, ids_BT[0, :1], tree=tree)
    real = sum(size for size, _ in seen.values())
    assert dry.keep(n, packed=packed).total == pytest.approx(real, rel=0.1)
    assert dry.parameters == sum(p.numel() for p in model.parameters())
    assert dry.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_checkpointing_keeps_one_layer_and_the_entrances_of_all(home_with_base: Path) -> None:
    needs = []
    for words in ((), ("model.gradient_checkpointing=true",)):
        stage, found = open_stage(*words)
        sizes = memory.measure_rows(stage, found)
        dry = memory.build_dry_model(stage.context, dropout=True)
        needs.append(memory.estimate_memory(stage, dry, sizes, PassSize(4, 100), 0))
    whole, less = (need.parts["activations"] / memory.FRAGMENTED["full"] for need in needs)
    assert less == pytest.approx(whole / 2 + 2 * 4 * 100 * 32 * 4, rel=0.01)


def test_the_largest_pass_follows_both_limits_and_the_processes() -> None:
    sizes = memory.RowSizes(tokens=[10, 40, 20, *([5] * 97)], answers=1, packed=False)

    def rows(processes: int = 1, **keys: Any) -> int:
        return find_largest_pass(TrainSection(**keys), sizes, processes).rows

    assert rows() == 100
    assert rows(batch=32) == 32
    assert rows(3, batch=32) == 11
    assert rows(batch=32, micro_batch=8) == 8
    assert rows(batch=32, micro_tokens=130) == 3
    assert rows(batch=32, micro_tokens=30) == 1


# What is chosen.


@pytest.fixture
def split_limits(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """The limits of every training run of the test."""
    seen: list[Limits] = []
    plain = Trainer.train

    def train(trainer: Trainer, *, resume: bool) -> Any:
        seen.append(trainer.loader.limits)
        return plain(trainer, resume=resume)

    monkeypatch.setattr(Trainer, "train", train)
    return seen


def read_run(name: str) -> tuple[dict[str, Any], float]:
    """A run's manifest, and the loss of its first update."""
    folder = Path("runs", name, "sft")
    first = (folder / "metrics.jsonl").read_text().splitlines()[0]
    return json.loads((folder / "manifest.json").read_text()), json.loads(first)["loss"]


def test_a_batch_that_fits_is_one_pass_and_nothing_is_said(
    home_with_base: Path, capsys: Capsys, split_limits: list[Limits]
) -> None:
    told = done(capsys, *SFT)
    assert split_limits == [Limits()]
    assert "micro_batch" not in told
    assert "chosen" not in read_run("own")[0]


@pytest.mark.slow
def test_rows_that_fit_are_chosen_recorded_and_give_the_same_loss(
    home_with_base: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    split_limits: list[Limits],
) -> None:
    done(capsys, "prepare", "own.toml", "name=whole")
    done(capsys, *SFT, "name=whole")
    give_memory(monkeypatch, open_stage()[0], 3)
    told = done(capsys, *SFT)
    assert "micro_batch = 2 was chosen" in told
    assert split_limits == [Limits(), Limits(rows=2)]
    manifest, loss = read_run("own")
    assert manifest["chosen"] == {"micro_batch": 2}
    assert manifest["settings"]["stage"]["train"].get("micro_batch") is None
    assert loss == pytest.approx(read_run("whole")[1], rel=1e-5)
    shown = typed(capsys, *VALIDATE).out
    assert "sft: micro_batch = 2 was chosen" in shown
    assert "warning: [sft] an update" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "limits", "remedy"),
    [
        ("train.micro_batch=8", Limits(rows=8), "train.micro_batch = 1"),
        ("train.micro_tokens=5000", Limits(tokens=5000), "train.micro_tokens = "),
    ],
)
def test_an_explicit_value_is_kept_and_a_warning_says_what_to_set(
    word: str,
    limits: Limits,
    remedy: str,
    home_with_base: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    split_limits: list[Limits],
) -> None:
    give_memory(monkeypatch, open_stage()[0], 1)
    told = done(capsys, *SFT, word)
    (line,) = re.findall(r"^warning: \[sft\] an update takes .*$", told, re.MULTILINE)
    assert f"are free (RAM); try {remedy}" in line
    assert split_limits == [limits]
    assert "chosen" not in read_run("own")[0]
    assert line in typed(capsys, *VALIDATE, word).out


def test_where_not_even_a_row_fits_the_warning_names_what_makes_less(
    home_with_base: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "find_memory", lambda ranks, processes: Memory(1000, "RAM"))
    shown = typed(capsys, *VALIDATE).out
    assert "micro_batch = 1 was chosen" in shown
    assert 'try model.tuning = "lora", model.gradient_checkpointing = true, a lower' in shown


def test_a_run_that_goes_on_keeps_its_passes_whatever_memory_there_is(
    home_with_base: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    split_limits: list[Limits],
) -> None:
    words = (*SFT, "train.max_steps=3", "train.save_every=1")
    with monkeypatch.context() as patch:
        give_memory(patch, open_stage()[0], 2)
        plain = Trainer.run_update

        def stop_at_third(trainer: Trainer, *given: Any) -> Any:
            if trainer.state.step == 2:
                raise KeyboardInterrupt
            return plain(trainer, *given)

        patch.setattr(Trainer, "run_update", stop_at_third)
        assert typed(capsys, *words).code != 0
    told = done(capsys, *words, "--resume")
    assert "resumed from" in told
    assert "was chosen" not in told
    assert split_limits == [Limits(rows=2)] * 2
    assert read_run("own")[0]["chosen"] == {"micro_batch": 2}


def test_a_run_that_began_whole_goes_on_whole(
    home_with_base: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    split_limits: list[Limits],
) -> None:
    words = (*SFT, "train.max_steps=3", "train.save_every=1")
    plain = Trainer.run_update

    def stop_at_third(trainer: Trainer, *given: Any) -> Any:
        if trainer.state.step == 2:
            raise KeyboardInterrupt
        return plain(trainer, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_update", stop_at_third)
        assert typed(capsys, *words).code != 0
    give_memory(monkeypatch, open_stage()[0], 2)
    done(capsys, *words, "--resume")
    assert split_limits == [Limits(), Limits()]


def test_processes_take_what_fits_on_every_one(
    home_with_base: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
    split_limits: list[Limits],
) -> None:
    """Another process can hold four rows, this one all eight."""
    monkeypatch.setattr(
        Ranks, "most", lambda ranks, number: max(number, -4) if number < 0 else number
    )
    done(capsys, *SFT)
    assert split_limits == [Limits(rows=4)]
    assert read_run("own")[0]["chosen"] == {"micro_batch": 4}


def test_an_architecture_without_shapes_is_said_and_trained(
    home_with_base: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **named: Any) -> MemoryNeed:
        raise NotImplementedError("numbers are needed")

    monkeypatch.setattr(memory.DryModel, "keep", fail)
    shown = typed(capsys, *VALIDATE).out
    assert "sft: memory: not estimated: the architecture cannot run on shapes (numbers" in shown
    done(capsys, *SFT)


# What is said before training.


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        ({}, True),  # 20 updates in a run of 15
        ({"warmup": 15}, False),
        ({"warmup": 15.5}, True),
        ({"warmup": 0.5}, False),
        ({"epochs": 8}, False),
        ({"epochs": 8, "max_steps": 10}, True),
    ],
)
def test_a_warm_up_longer_than_the_run_is_said(keys: dict[str, Any], warned: bool) -> None:
    section = TrainSection(**{"batch": 10, "epochs": 5.0, **keys})
    for kind, table in ((RunKind.SFT, ""), (RunKind.BASELINE, "sasrec")):
        run = Run(kind, table, Path("runs/x"))
        lines = list(warn_of_warmup(section, 30, run))
        assert bool(lines) == warned
        if warned:
            assert lines[0].startswith(f"warning: {run.heading} warmup = ")
            assert f"is never reached; set {run.key}.train.warmup = 0.1" in lines[0]


@pytest.mark.parametrize("units", [True, False, None])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bfloat16_without_units_is_said(
    units: bool | None, dtype: str, device: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "has_bf16_units", lambda: units)
    model = read_recipe("own.toml", [f"model.dtype={dtype}"]).model
    lines = list(warn_of_emulation(model, torch.device(device)))
    assert bool(lines) == (units is False and dtype == "bfloat16" and device == "cpu")


def test_training_and_validate_say_both(
    home_with_base: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "has_bf16_units", lambda: False)
    words = (*LORA, "model.dtype=bfloat16", "train.validate_rows=1")
    for said in (typed(capsys, *VALIDATE, *words).out, done(capsys, *SFT, *words)):
        assert "warning: [sft] warmup = 20 updates, but the run has 1:" in said
        assert 'warning: [model] dtype = "bfloat16": this processor has no bf16 units' in said


def test_a_part_of_an_epoch_is_an_update(home_with_base: Path, capsys: Capsys) -> None:
    shown = typed(capsys, *VALIDATE, "train.epochs=0.01", "train.max_steps=9").out
    assert re.search(r"^sft: \d+ window rows, 1 update$", shown, re.MULTILINE)


# Time.


def test_validate_times_the_backbone_and_extrapolates_by_tokens(
    home_with_base: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = typed(capsys, "validate", "own.toml", "--time", "train.max_steps=4").out
    assert re.search(r"^time: timed on [\d,]+ tokens: [\d,]+ tokens/s forward", shown, re.M)
    assert "sft: time, estimated: an update " in shown
    assert "the run of 4 updates and 1 validation " in shown
    assert "evaluation of a language model on 8 test rows: time, estimated: " in shown
    assert not Path("runs/own/sft").exists()


def test_the_tokens_of_an_update_are_those_that_its_passes_have(home_with_base: Path) -> None:
    stage, found = open_stage("train.max_steps=5", "train.micro_batch=3")
    sizes = memory.measure_rows(stage, found)
    counted = timing.count_stage_tokens(stage, found, sizes)
    by_hand = []
    for step in range(5):
        numbers = Sampler(len(found.rows), 8, 0).numbers_of(step)
        lengths = sorted((sizes.tokens[n] for n in numbers), reverse=True)
        parts = [lengths[at : at + 3] for at in range(0, len(lengths), 3)]
        by_hand.append(sum(len(part) * part[0] for part in parts))
    assert counted.per_update == pytest.approx(sum(by_hand) / 5)
    assert (counted.updates, counted.forward) == (5, 0)
    line = counted.describe(Speed(train=counted.per_update, prefill=1e9, tokens=1))
    assert "an update 1 s," in line
    assert "the run of 5 updates" in line


def test_rows_that_ask_for_a_title_are_estimated_as_they_are_computed(home_with_base: Path) -> None:
    """In passes of their own, with logits of every token of a title."""
    stage, found = open_stage("train.max_steps=1", "train.batch=1000")
    longest = stage.context.trie.max_length
    text = TextRow(np.zeros(3, np.int32), np.zeros(4 * longest + 1, np.int32))
    mixed = replace(found, rows=[*found.rows, text])
    plain, sizes = memory.measure_rows(stage, found), memory.measure_rows(stage, mixed)
    assert sizes.answers == max(5, plain.answers)
    alone = timing.count_stage_tokens(stage, found, plain).per_update
    both = timing.count_stage_tokens(stage, mixed, sizes).per_update
    assert both == alone + 4 * longest + 4


def with_grpo(stage: TrainingStage, **options: Any) -> TrainingStage:
    method = find_method("grpo")
    return replace(stage, method=method, options=method.options.model_validate(options))


def test_rollouts_are_estimated_as_answers_of_a_packed_row(home_with_base: Path) -> None:
    """k of them take the target's place; search and reference read an update's tokens again."""
    stage, found = open_stage("train.max_steps=1", "train.batch=1000")
    grpo, plain = with_grpo(stage, k=4), memory.measure_rows(stage, found)
    sizes = memory.measure_rows(grpo, found)
    assert (plain.answers, plain.packed) == (1, False)
    assert (sizes.answers, sizes.packed) == (4, True)
    length = float(np.diff(stage.context.catalogue.start_S1).mean())
    extra = [more - less for more, less in zip(sizes.tokens, plain.tokens, strict=True)]
    assert set(extra) == {math.ceil(3 * length)}
    counted = timing.count_stage_tokens(grpo, found, sizes)
    assert counted.forward == 2 * counted.per_update
    without = timing.count_stage_tokens(with_grpo(stage, k=4, beta=0.0), found, sizes)
    assert without.forward == without.per_update


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"k": 1000}, r"k = 1000: the catalogue has \d+ entries, and rollouts are different ones"),
        ({"k": 0, "seen": "remove"}, r"items leaves \d+ of \d+ entries as rollouts"),
    ],
)
def test_more_rollouts_than_entries_are_refused(
    options: dict[str, Any], problem: str, home_with_base: Path
) -> None:
    stage, _ = open_stage()
    options = options if options["k"] else options | {"k": stage.context.trie.n_leaves}
    operations = load_operations(stage.context.recipe.task)
    operations.check_rows(with_grpo(stage, k=2, seen="remove"), True)
    for look in (operations.check_rows, operations.make_rows):
        with pytest.raises(UserError, match=problem):
            look(with_grpo(stage, **options), True)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.123, "0.12 s"), (50, "50 s"), (600, "10.0 min"), (9000, "2.5 hours"), (5e5, "5.8 days")],
)
def test_durations_are_shown_in_the_unit_that_suits(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown
