"""The training loop: one for SFT, every alignment and every neural baseline.

    Dataset -> Sampler -> DataLoader: an update's rows, completed and collated ahead
            -> device -> batch transforms -> PolicyLoss: sums and a count -> one optimizer step

A method's loss is a sum and a count.  Sums and counts are added over micro-batches and ranks and
divided once, by the count of the whole global batch.  The order of the rows is a pure function of
(seed, epoch, step) and dropout is reseeded from (seed, step, rank), so a resumed run
continues as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, nn

from llmrec_cli.config.training import TrainSection
from llmrec_cli.errors import ArtefactError, NumbersError
from llmrec_cli.methods.contract import Forward, Method, State
from llmrec_cli.models.language_model import inference_mode
from llmrec_cli.runs.tracking import MetricsLog, Trackers
from llmrec_cli.tensors.trie import Trie
from llmrec_cli.training.checkpoint import Checkpoints, restore, restore_weights
from llmrec_cli.training.collator import Collator, Limits, MicroBatch
from llmrec_cli.training.dataset import DataLoader, Dataset, Pass, Sampler, Update
from llmrec_cli.training.distributed import Ranks, gather_pieces
from llmrec_cli.training.launch import Wait, defer_signals
from llmrec_cli.utils.files import CHECKPOINTS_FOLDER, METRICS_FILE, NONFINITE_FILE
from llmrec_cli.utils.progress import Advance, Progress, Work, advance_for_all

Sums = dict[str, Tensor]
"""``total``, ``count`` and the method's statistics: float64 scalars, detached."""


@dataclass
class TrainerState:
    """Where a run stands; written into every checkpoint."""

    step: int = 0  # updates done
    method: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_score: float | None = None  # higher is better
    worse: int = 0  # validations since the best one
    stopped: bool = False  # by patience
    warned_at: int | None = None  # first update whose metrics the method warned about
    skipped: int = 0  # updates whose loss or gradient was not finite

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def read_trainer_state(checkpoint: Path, stored: Mapping[str, Any]) -> TrainerState:
    """The state that a checkpoint holds; one of an older llmrec holds less.

    Raises:
        ArtefactError: it holds something else.
    """
    try:
        unknown = sorted(set(stored) - {known.name for known in fields(TrainerState)})
        if unknown:
            problem = f"{unknown[0]} is unknown"
        else:
            state = msgspec.convert(stored, TrainerState)
            if checkpoint.name == f"step-{state.step}":
                return state
            problem = f"it has step {state.step}"
    except (msgspec.ValidationError, TypeError) as error:
        problem = str(error)
    raise ArtefactError(f"{checkpoint}: no position of a run: {problem}")


class PolicyLoss(nn.Module):
    """A policy with its loss in its forward pass.

    Wrappers (data parallel, sharded) see every use of a weight that happens inside a forward pass;
    the output head, which the loss applies to chosen rows and columns, must be among them.

    Args:
        policy: called like ``models.language_model.Policy``, with a ``head()`` of its own.

    Returns:
        total (a scalar with gradient), and its ``count`` and statistics by name.
    """

    def __init__(self, policy: Any, method: Method, options: Any) -> None:
        super().__init__()
        self.policy = policy
        self._method, self._options = method, options
        self._layers = method.needs(options).hidden_states

    def forward(self, micro: MicroBatch, state: State) -> tuple[Tensor, dict[str, Any]]:
        hidden_XPD = self.policy(
            micro.input_ids_BT, micro.take_P, tree=micro.tree, layers=self._layers
        )
        layers_LPD = hidden_XPD[1:] if self._layers else None
        forward = Forward(hidden_XPD[0], self.policy.head(), layers_LPD)
        losses = self._method.loss(forward, micro.batch, self._options, state)
        return losses.total, {"count": losses.count, **losses.stats}


def make_optimizer(policy: nn.Module, section: TrainSection) -> torch.optim.AdamW:
    """AdamW over what is trained; weight decay on matrices only."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=section.betas)


def compute_learning_rate(section: TrainSection, step: int, steps: int) -> float:
    """Rate of update ``step`` (0-based) of ``steps``: warm-up, then the schedule down to 0."""
    warmup = section.warmup * steps if section.warmup < 1 else section.warmup
    if step < warmup:
        return section.learning_rate * (step + 1) / math.ceil(warmup)
    if section.schedule == "constant":
        return section.learning_rate
    done = (step - warmup) / max(steps - warmup, 1)
    left = 1 - done if section.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return section.learning_rate * left


def count_updates(n_rows: int, section: TrainSection) -> int:
    """Number of updates of a whole run over ``n_rows`` training rows."""
    wanted = math.ceil(section.epochs * -(-n_rows // section.batch))
    return min(wanted, section.max_steps or wanted)


def add_sums(sums: Sums, total: Tensor, further: Mapping[str, Any], *, counts: bool = True) -> None:
    """Add one pass's figures to those of the passes before it.

    Args:
        counts: without, their names alone: every rank must have the same ones.
    """
    for name, value in {"total": total.detach(), **further}.items():
        added = torch.as_tensor(value if counts else 0.0, dtype=torch.float64, device=total.device)
        sums[name] = sums[name] + added if name in sums else added


@dataclass
class _Gradients:
    """What the forward and backward passes of one update left on this rank."""

    sums: Sums = field(default_factory=dict)
    losses: list[tuple[list[int], Tensor]] = field(default_factory=list)  # row numbers, loss


class _Doing(Enum):
    """What the loop is doing."""

    UPDATE = auto()
    VALIDATION = auto()
    SAVE = auto()


SAVE_SECONDS: Final = 600.0  # between checkpoints, where ``save_every`` is not set
SAVE_SHARE: Final = 10  # a checkpoint takes a tenth of the time at most


@dataclass
class _SaveClock:
    """The time since the newest checkpoint."""

    since: float
    took: float = 0.0  # seconds to write the newest one

    def is_due(self) -> bool:
        """Whether ten minutes have passed; more where a checkpoint takes over a minute."""
        return time.monotonic() - self.since >= max(SAVE_SECONDS, SAVE_SHARE * self.took)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Around the writing of a checkpoint."""
        begun = time.monotonic()
        yield
        self.since = time.monotonic()
        self.took = self.since - begun


@dataclass
class Trainer:
    """Everything that one training run needs, and the loop over it."""

    policy: Any  # called like models.policy.Policy, with a head() of its own
    method: Method
    options: Any
    trie: Trie  # on the device of the ranks
    train_set: Dataset
    valid_set: Dataset
    sampler: Sampler  # of the training rows
    rank_valid: Callable[[], Mapping[str, float]]  # on validation rows, e.g. {"ndcg@10": ...}
    section: TrainSection
    seed: int
    folder: Path
    ranks: Ranks
    progress: Progress
    label: str = "train"
    trackers: Trackers = field(default_factory=Trackers)  # get the rows of metrics.jsonl too
    state: TrainerState = field(init=False)
    _doing: _Doing = field(init=False, default=_Doing.UPDATE)
    _saved: int | None = field(init=False, default=None)  # step of the newest checkpoint
    _save_clock: _SaveClock = field(init=False)
    _advance: Advance = field(init=False)  # of the updates

    def __post_init__(self) -> None:
        self._advance = Work(self.label, 0)
        self.state = TrainerState(method=dict(self.method.init_state(self.options, self.trie)))
        self.loss = PolicyLoss(self.policy, self.method, self.options)
        self.steps = count_updates(len(self.train_set), self.section)
        collator, limits = self.make_collator(), Limits.of_section(self.section)
        self.loader = DataLoader(
            self.train_set, self.sampler, collator, limits, self.ranks, steps=self.steps
        )
        rows = max(len(self.valid_set), 1)
        self.valid_loader = DataLoader(
            self.valid_set,
            Sampler(rows, rows, shuffle=False),
            collator,
            limits._replace(rows=limits.rows or self.section.batch),
            self.ranks,
            shared=not self.ranks.has_shards,  # where weights are spread, every rank sees all rows
        )

    def make_collator(self) -> Collator:
        """Rows to micro-batches, as the method needs them."""
        return Collator(
            self.trie,
            cut_forced=self.method.legal_only(self.options),
            dense_head=self.ranks.count > 1,
            rejected=self.method.needs(self.options).negatives is not None,
        )

    def train(self, *, resume: bool) -> TrainerState:
        """Run to the end, then put the best validation's weights into the policy.

        Raises:
            NumbersError: a loss or gradient norm is NaN or infinite; nothing was updated with it.
            ArtefactError: ``resume``, and the checkpoints do not fit or are damaged.
        """
        optimizer = make_optimizer(self.policy, self.section)
        module, optimizer = self.ranks.accelerator.prepare(self.loss, optimizer)
        checkpoints = Checkpoints(self.folder / CHECKPOINTS_FOLDER, writes=self.ranks.is_first)
        log = MetricsLog(
            self.folder / METRICS_FILE, writes=self.ranks.is_first, trackers=self.trackers
        )
        if resume:
            self._resume(optimizer, checkpoints)
            checkpoints.prune(keep=self.section.keep, best_step=self.state.best_step)
        for rows in (log, self._bad_updates()):
            rows.keep_until(self.state.step)
        self._save_clock = _SaveClock(time.monotonic())
        _start_gradients(self.policy)
        if self.ranks.count > 1 and self.state.step < self.steps:
            self._lay_out_buckets(module, optimizer)
        with (
            defer_signals(self._describe_wait, self.progress.say) as stop,
            self.loader,
            self.progress.track(
                self.label, self.steps, self.state.step, unit="updates"
            ) as self._advance,
        ):
            while self.state.step < self.steps and not self.state.stopped and not stop.agreed:
                self._doing = _Doing.UPDATE
                row = self.run_update(module, optimizer)
                checkpoint_now = self._is_due(self.state.step)
                if checkpoint_now:
                    self._doing = _Doing.VALIDATION
                    row |= self.validate(module)
                elif self.section.save_every is not None:
                    checkpoint_now = self.state.step % self.section.save_every == 0
                log.append(row)
                stop.agreed, by_time = self._agree(stop.first_signal)
                if checkpoint_now or by_time or stop.agreed:
                    self._doing = _Doing.SAVE
                    log.sync()
                    with self._save_clock.measure():
                        checkpoints.save(self.policy, optimizer, self.state.as_json())
                        self._saved = self.state.step
                        checkpoints.prune(keep=self.section.keep, best_step=self.state.best_step)
                self._advance(1, _describe_update(row))
            self.ranks.wait()  # for the checkpoints that the first one writes
        if self.state.best_step is not None:
            restore_weights(self.policy, checkpoints.intact(self.state.best_step))
        return self.state

    def _agree(self, asked: int) -> tuple[int, bool]:
        """What all ranks do after an update: (the signal to stop at, or 0; whether time is up).

        The first rank's clock counts for all.  One exchange: twice the signal's number, and 1.
        """
        by_time = self.section.save_every is None and self.ranks.is_first
        agreed = self.ranks.most(2 * asked + (by_time and self._save_clock.is_due()))
        return agreed // 2, agreed % 2 == 1

    def _describe_wait(self) -> Wait:
        """What a signal waits for at this moment."""
        step, left = self.state.step, "before the first checkpoint"
        if self._saved is not None:
            left = f"at checkpoint step-{self._saved}"
        match self._doing:
            case _Doing.UPDATE:
                validates = " and its validation" if self._is_due(step + 1) else ""
                return Wait(f"finishing update {step + 1}{validates}, then saving", left)
            case _Doing.VALIDATION:
                return Wait(f"finishing the validation after update {step}, then saving", left)
            case _Doing.SAVE:
                return Wait(f"saving after update {step}", left)

    def run_update(self, module: Any, optimizer: Any) -> dict[str, Any]:
        """One optimizer step over one global batch; returns its metrics row."""
        begun, state = time.perf_counter(), self.state
        update = self.loader.load_update(state.step)
        with self._advance.within("passes", len(update.passes)) as passed:
            row = self._apply_update(module, optimizer, update, passed)
        state.step += 1
        epoch = round(state.step / self.sampler.steps_per_epoch, 4)
        seconds = round(time.perf_counter() - begun, 4)
        return {"step": state.step, "epoch": epoch, **row, "seconds": seconds}

    def _apply_update(
        self, module: Any, optimizer: Any, update: Update, passed: Advance
    ) -> dict[str, Any]:
        """The update itself; its figures for the metrics row."""
        state = self.state
        found = self._compute_gradients(module, update, passed)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = gather_pieces(nn.utils.get_total_norm(gradients))
        bad = (~torch.isfinite(norm)).double()
        totals = self.ranks.add({**found.sums, "not_finite": bad})
        count = totals.pop("count") or 1.0  # 0: nothing has a loss
        scale = self.ranks.count / count  # data parallelism averages over ranks
        loss, size = totals.pop("total") / count, float(norm) * scale
        bad_ranks, tokens = totals.pop("not_finite"), int(totals.pop("tokens"))
        rate = compute_learning_rate(self.section, state.step, self.steps)
        row: dict[str, Any] = {"learning_rate": rate, "tokens": tokens}
        if bad_ranks or not math.isfinite(loss):
            self._note_not_finite(update, found, loss, size)
            row |= {"loss": None, "gradient_norm": None, "skipped": True}
        else:
            torch._foreach_mul_(gradients, scale)
            self._step_optimizer(optimizer, parameters, size, rate)
            metrics = self.method.metrics(totals, count, self.options, self.trie)
            logged = {**metrics, **state.method}
            state.method = dict(
                self.method.update_state(state.method, totals, self.options, self.trie)
            )
            row |= {"loss": loss, "gradient_norm": size, **logged}
            self._warn_once(logged)
        optimizer.zero_grad(set_to_none=False)  # the head's gradient adds rows to what is there
        return row

    def validate(self, module: Any) -> dict[str, float]:
        """Validation loss, and ranking where it chooses; remembers the best, counts patience."""
        begun, state, selection = time.perf_counter(), self.state, self.section.selection
        with inference_mode(self.policy):
            loss = self._validation_loss(module)
            if not math.isfinite(loss):
                raise NumbersError(f"step {state.step}: validation loss = {loss}")
            ranking = {} if selection.is_loss else dict(self.rank_valid())
        found = {"valid_loss": loss, **{f"valid_{k}": v for k, v in ranking.items()}}
        value = selection.find_value(found)
        if value is None:
            raise LookupError(f"rank_valid gives no {selection.name}: {found}")
        score = selection.turn(value)
        if state.best_score is None or score > state.best_score:
            state.best_step, state.best_score, state.worse = state.step, score, 0
        else:
            state.worse += 1
            state.stopped = state.worse >= (self.section.patience or math.inf)
        took = {"valid_seconds": round(time.perf_counter() - begun, 4)}
        return found | took

    def _validation_loss(self, module: Any) -> float:
        """Mean loss of the validation rows, with the same negatives every time."""
        sums: Sums = {"total": torch.zeros(()), "count": torch.zeros(())}
        run = module if self.ranks.has_shards else self.ranks.accelerator.unwrap_model(module)
        n_rows = len(self.valid_set)
        own_rows = n_rows if self.ranks.has_shards else len(self.ranks.pick_share(range(n_rows)))
        with self.progress.track("validation, loss", n_rows, unit="rows") as advance:
            for_all = advance_for_all(advance, own_rows, n_rows)
            for own in self.valid_loader.iterate_passes(0):
                total, further = run(self._complete(self.valid_set, own), self.state.method)
                add_sums(sums, total, {"count": further["count"]})
                for_all(len(own.rows))
        totals = self.ranks.add(sums)  # where every rank saw all rows, the ratio is the same
        return totals["total"] / (totals["count"] or 1.0)

    def _lay_out_buckets(self, module: Any, optimizer: Any) -> None:
        """Exchange gradients of nothing once, before the first update.

        Data parallelism lays out its buckets anew after its first exchange, and among three ranks
        or more the last bits of a sum depend on the layout: a resumed run must not differ in that.
        """
        update = self.loader.load_update(self.state.step)
        nothing = Update(update.numbers, [], update.spare)
        self._compute_gradients(module, nothing, Work("passes", 0))
        optimizer.zero_grad(set_to_none=False)

    def _compute_gradients(self, module: Any, update: Update, passed: Advance) -> _Gradients:
        """Gradients of the global batch's summed loss, averaged over ranks."""
        torch.manual_seed(_step_seed(self.seed, self.state.step, self.ranks.index))
        self.policy.train()
        found = _Gradients()
        for own, counts, last in self._pad_passes(update):
            micro = self._complete(self.train_set, own)
            with self.ranks.apart(module, last=last):
                total, further = module(micro, self.state.method)
                self.ranks.accelerator.backward(total if counts else total * 0)
            add_sums(found.sums, total, {**further, "tokens": micro.tokens}, counts=counts)
            if counts:
                found.losses.append(([row.number for row in own.rows], total.detach()))
                passed(tokens=micro.tokens * self.ranks.count)  # the others have about as many
        return found

    def _pad_passes(self, update: Update) -> Iterator[tuple[Pass, bool, bool]]:
        """(pass, whether it counts, whether it is the last one): equally many on every rank.

        With limits, or rows of two kinds, the ranks need different numbers of passes, but gradients
        are exchanged in the last one of all: a rank with fewer repeats one for nothing.
        """
        own = len(update.passes)
        number = self.ranks.most(own) if self.loader.passes_vary else own
        number = max(number, 1)
        for at in range(number):
            yield (update.passes[at] if at < own else update.spare), at < own, at == number - 1

    def _complete(self, dataset: Dataset, own: Pass) -> MicroBatch:
        return dataset.complete_batch(own.micro.to(self.ranks.device), own.rows)

    def _step_optimizer(
        self, optimizer: Any, parameters: list[Any], norm: float, rate: float
    ) -> None:
        """Clip and apply the normalised gradients."""
        nn.utils.clip_grads_with_norm_(
            parameters, self.section.clip or math.inf, torch.tensor(norm)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    def _warn_once(self, logged: Mapping[str, float]) -> None:
        """Say once per run what the method finds worrying in its metrics."""
        warning = self.method.warning(logged, self.options)
        if warning and self.state.warned_at is None:
            self.state.warned_at = at = self.state.step + 1
            self.progress.say(f"{self.label}: warning at update {at}: {warning}")

    def _note_not_finite(self, update: Update, found: _Gradients, loss: float, norm: float) -> None:
        """Write down what was seen; every rank comes here together, before anything is updated.

        Raises:
            NumbersError: ``on_nonfinite = "stop"``, or more than ``skip_limit`` were left out.
        """
        seen = [rows for rows, own in found.losses if not bool(torch.isfinite(own))]
        rows = (
            self.ranks.gather_numbers([number for rows in seen for number in rows])
            or update.numbers
        )
        what = f"step {self.state.step + 1}: loss = {loss}, gradient norm = {norm}"
        note = {"step": self.state.step + 1, "loss": str(loss), "gradient_norm": str(norm)}
        bad_updates = self._bad_updates()
        bad_updates.append(note | {"rows": rows})
        self.state.skipped += 1
        left_out = self.state.skipped <= self.section.skip_limit
        if self.section.on_nonfinite == "skip" and left_out:
            self.progress.say(f"{self.label}: {what}; this update was left out")
            return
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise NumbersError(
            f"{what}; nothing was updated; training rows concerned: {shown} (all of them in "
            f"{bad_updates.path}); lower the learning rate, look at these rows, or set "
            'train.on_nonfinite = "skip"'
        )

    def _bad_updates(self) -> MetricsLog:
        """Updates whose loss or gradient was not finite, and their rows."""
        return MetricsLog(self.folder / NONFINITE_FILE, writes=self.ranks.is_first)

    def _is_due(self, step: int) -> bool:
        """Whether a validation follows update ``step``: every so many, or at the end."""
        every = self.section.validate_every * self.sampler.steps_per_epoch  # perhaps a fraction
        return step == self.steps or math.floor(step / every) > math.floor((step - 1) / every)

    def _resume(self, optimizer: Any, checkpoints: Checkpoints) -> None:
        """Go back to the newest checkpoint that is intact, where there is one.

        Raises:
            ArtefactError: it holds no state of this run.
        """
        found = checkpoints.newest()
        if found is None:
            if (self.folder / METRICS_FILE).exists():  # else nothing was begun
                self.progress.say(f"{self.folder}: no checkpoint yet, starting from the beginning")
            return
        for reason in found.skipped:
            self.progress.say(f"skipped a damaged checkpoint: {reason}")
        state = read_trainer_state(found.folder, found.state)
        if state.method.keys() != self.state.method.keys():
            stored, expected = (", ".join(s.method) or "nothing" for s in (state, self.state))
            raise ArtefactError(
                f"{found.folder}: the method remembers {stored}, expected {expected}: an llmrec "
                "that computes it in another way began this run; delete its folder and start it "
                "again"
            )
        restore(found.folder, self.policy, optimizer)
        self.state, self._saved = state, state.step
        self.progress.say(f"resumed from {found.folder}")


def _start_gradients(policy: Any) -> None:
    """Give a trained head its gradient from the start, so that every step adds to it alike."""
    weight_VD = policy.head().weight_VD
    if weight_VD.is_leaf and weight_VD.requires_grad:
        weight_VD.grad = torch.zeros_like(weight_VD)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _describe_update(row: Mapping[str, Any]) -> str:
    shown = ["skipped" if row["loss"] is None else f"loss {row['loss']:.4f}"]
    ranking = [(k, v) for k, v in row.items() if k.startswith(("valid_ndcg", "valid_auc"))]
    shown += [f"{k.removeprefix('valid_')} {v:.4f}" for k, v in ranking]
    if "valid_loss" in row and not ranking:
        shown.append(f"validation loss {row['valid_loss']:.4f}")
    return " ".join(shown)
