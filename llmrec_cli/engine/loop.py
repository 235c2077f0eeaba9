"""The training loop: one for SFT and every alignment.

A method's loss is a sum and a count.  Sums and counts are added over micro-batches and ranks and
divided once, by the count of the whole global batch.  The order of the rows is a pure function of
(seed, epoch, step) and dropout is reseeded from (seed, step, rank), so a resumed run
continues as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmrec_cli.engine.batches import rows_of_step
from llmrec_cli.engine.checkpoint import Checkpoints, restore, restore_weights
from llmrec_cli.engine.collate import Collator
from llmrec_cli.engine.job import Job, Position, position_in
from llmrec_cli.engine.log import MetricsLog
from llmrec_cli.engine.optimizer import learning_rate, make_optimizer
from llmrec_cli.engine.passes import PolicyLoss, Sums, add_sums, equally_many
from llmrec_cli.engine.rows import AnyRow
from llmrec_cli.engine.sharding import whole
from llmrec_cli.engine.stop import deferred_signals
from llmrec_cli.errors import ArtefactError, NumbersError
from llmrec_cli.files import CHECKPOINTS_FOLDER, METRICS_FILE, NONFINITE_FILE
from llmrec_cli.models.policy import inference


def train(job: Job, *, resume: bool) -> Position:
    """Run a job to its end, then put the best validation's weights into the policy.

    Raises:
        NumbersError: a loss or gradient norm is NaN or infinite; nothing was updated with it.
        ArtefactError: ``resume``, and the checkpoints do not fit or are damaged.
    """
    optimizer = make_optimizer(job.policy, job.section)
    module, optimizer = job.ranks.accelerator.prepare(PolicyLoss(job), optimizer)
    position = Position(method=dict(job.method.init_state(job.options, job.trie)))
    checkpoints = Checkpoints(job.folder / CHECKPOINTS_FOLDER, writes=job.ranks.is_first)
    first, metrics = job.ranks.is_first, job.folder / METRICS_FILE
    log = MetricsLog(metrics, writes=first, trackers=job.trackers)
    if resume:
        position = _resume(job, optimizer, checkpoints, position)
        checkpoints.prune(keep=job.section.keep, best_step=position.best_step)
    for rows in (log, _bad_updates(job)):
        rows.keep_until(position.step)
    _start_gradients(job.policy)
    collate = job.collator(job.supply.train_masses)
    if job.ranks.count > 1 and position.step < job.steps:
        _settle(job, module, optimizer, collate, position)
    with (
        deferred_signals() as stop,
        job.progress.track(job.label, job.steps, position.step, unit="updates") as advance,
    ):
        while position.step < job.steps and not position.stopped and not stop.agreed:
            row = _update(job, module, optimizer, collate, position)
            if _due(job, position.step, every=job.section.validate_every * job.steps_per_epoch):
                row |= _validate(job, module, position)
                checkpoint_now = True
            else:
                checkpoint_now = position.step % (job.section.save_every or job.steps) == 0
            log.append(row)
            stop.agreed = job.ranks.most(stop.asked)
            if checkpoint_now or stop.agreed:
                log.sync()
                checkpoints.save(job.policy, optimizer, position.as_json())
                checkpoints.prune(keep=job.section.keep, best_step=position.best_step)
            advance(1, _note(row))
        job.ranks.wait()  # for the checkpoints that the first one writes
    if position.best_step is not None:
        restore_weights(job.policy, checkpoints.intact(position.best_step))
    return position


def _start_gradients(policy: Any) -> None:
    """Give a trained head its gradient from the start, so that every step adds to it alike."""
    weight_VD = policy.head().weight_VD
    if weight_VD.is_leaf and weight_VD.requires_grad:
        weight_VD.grad = torch.zeros_like(weight_VD)


def _settle(job: Job, module: Any, optimizer: Any, collate: Collator, position: Position) -> None:
    """Exchange gradients of nothing once, before the first update.

    Data parallelism lays out its buckets anew after its first exchange, and among three ranks or
    more the last bits of a sum depend on the layout: a resumed run must not differ in that.
    """
    _backward(job, module, collate, position, idle=True)
    optimizer.zero_grad(set_to_none=False)


@dataclass
class _Gradients:
    """What the forward and backward passes of one update left on this rank."""

    sums: Sums = field(default_factory=dict)
    losses: list[tuple[list[int], Tensor]] = field(default_factory=list)  # row numbers, loss


def _update(
    job: Job, module: Any, optimizer: Any, collate: Collator, position: Position
) -> dict[str, Any]:
    """One optimizer step over one global batch; returns its metrics row."""
    begun = time.perf_counter()
    found = _backward(job, module, collate, position)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    bad = (~torch.isfinite(norm)).double()
    totals = job.ranks.add({**found.sums, "not_finite": bad})
    count = max(totals.pop("count"), 1.0)
    scale = job.ranks.count / count  # data parallelism averages over ranks
    loss, size = totals.pop("total") / count, float(norm) * scale
    bad_ranks, tokens = totals.pop("not_finite"), int(totals.pop("tokens"))
    rate = learning_rate(job.section, position.step, job.steps)
    row: dict[str, Any] = {"learning_rate": rate, "tokens": tokens}
    if bad_ranks or not math.isfinite(loss):
        _not_finite(job, position, found, loss, size)
        row |= {"loss": None, "gradient_norm": None, "skipped": True}
    else:
        torch._foreach_mul_(gradients, scale)
        _step(job, optimizer, parameters, size, rate)
        metrics = job.method.metrics(totals, count, job.options, job.trie)
        logged = {**metrics, **position.method}
        state = job.method.update_state(position.method, totals, job.options, job.trie)
        position.method = dict(state)
        row |= {"loss": loss, "gradient_norm": size, **logged}
        _warn(job, position, logged)
    optimizer.zero_grad(set_to_none=False)  # the head's gradient adds rows to what is there
    position.step += 1
    epoch = round(position.step / job.steps_per_epoch, 4)
    seconds = round(time.perf_counter() - begun, 4)
    return {"step": position.step, "epoch": epoch, **row, "seconds": seconds}


def _warn(job: Job, position: Position, logged: Mapping[str, float]) -> None:
    """Say once per run what the method finds worrying in its metrics."""
    warning = job.method.warning(logged, job.options)
    if warning and position.warned_at is None:
        position.warned_at = position.step + 1
        job.progress.say(f"{job.label}: warning at update {position.step + 1}: {warning}")


def _backward(
    job: Job, module: Any, collate: Collator, position: Position, *, idle: bool = False
) -> _Gradients:
    """Gradients of the global batch's summed loss, averaged over ranks; ``idle``: of nothing."""
    ranks = job.ranks
    torch.manual_seed(_step_seed(job.seed, position.step, ranks.index))
    job.policy.train()
    chosen = [job.train_rows[i] for i in _chosen(job, position.step)]
    completed = job.supply.train(ranks.fed(chosen), position.step)
    passes = [] if idle or not ranks.share(chosen) else collate.split(completed, job.limits)
    found = _Gradients()
    for rows, counts, last in equally_many(job, passes, completed[:1]):
        micro = job.supply.complete(collate(rows).to(ranks.device))
        with ranks.apart(module, last=last):
            total, further = module(micro, position.method)
            ranks.accelerator.backward(total if counts else total * 0)
        add_sums(found.sums, total, {**further, "tokens": micro.tokens}, counts=counts)
        if counts:
            found.losses.append(([row.number for row in rows], total.detach()))
    return found


def _step(job: Job, optimizer: Any, parameters: list[Any], norm: float, rate: float) -> None:
    """Clip and apply the normalised gradients."""
    torch.nn.utils.clip_grads_with_norm_(
        parameters, job.section.clip or math.inf, torch.tensor(norm)
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _not_finite(job: Job, position: Position, found: _Gradients, loss: float, norm: float) -> None:
    """Write down what was seen; every rank comes here together, before anything is updated.

    Raises:
        NumbersError: ``on_nonfinite = "stop"``, or more updates than ``skip_limit`` were left out.
    """
    seen = [rows for rows, own in found.losses if not bool(torch.isfinite(own))]
    numbers = job.ranks.gathered([number for rows in seen for number in rows])
    rows = numbers or _chosen(job, position.step)
    what = f"step {position.step + 1}: loss = {loss}, gradient norm = {norm}"
    note = {"step": position.step + 1, "loss": str(loss), "gradient_norm": str(norm)}
    _bad_updates(job).append(note | {"rows": rows})
    position.skipped += 1
    if job.section.on_nonfinite == "skip" and position.skipped <= job.section.skip_limit:
        job.progress.say(f"{job.label}: {what}; this update was left out")
        return
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise NumbersError(
        f"{what}; nothing was updated; training rows concerned: {shown} (all of them in "
        f"{_bad_updates(job).path}); lower the learning rate, look at these rows, or set "
        'train.on_nonfinite = "skip"'
    )


def _bad_updates(job: Job) -> MetricsLog:
    """Updates whose loss or gradient was not finite, and their rows."""
    return MetricsLog(job.folder / NONFINITE_FILE, writes=job.ranks.is_first)


def _chosen(job: Job, step: int) -> list[int]:
    return rows_of_step(len(job.train_rows), job.section.batch, job.seed, step)


def _validate(job: Job, module: Any, position: Position) -> dict[str, float]:
    """Validation loss and ranking; remembers the best and counts towards patience."""
    begun = time.perf_counter()
    with inference(job.policy):
        loss = _validation_loss(job, module, position)
        ranking = dict(job.rank_valid())
    if not math.isfinite(loss):
        raise NumbersError(f"step {position.step}: validation loss = {loss}")
    wanted = (v for k, v in ranking.items() if k.startswith(job.section.select))
    score = next(wanted, -loss)
    if position.best_score is None or score > position.best_score:
        position.best_step, position.best_score, position.worse = position.step, score, 0
    else:
        position.worse += 1
        position.stopped = position.worse >= (job.section.patience or math.inf)
    took = {"valid_seconds": round(time.perf_counter() - begun, 4)}
    return {"valid_loss": loss, **{f"valid_{k}": v for k, v in ranking.items()}, **took}


def _validation_loss(job: Job, module: Any, position: Position) -> float:
    """Mean loss of the validation rows; where weights are spread, every rank sees all of them."""
    ranks, collate = job.ranks, job.collator(job.supply.valid_masses)
    rows: list[AnyRow] = list(job.valid_rows) if ranks.sharded else ranks.share(job.valid_rows)
    completed = job.supply.valid(rows, 0)  # the same negatives every time
    sums: Sums = {"total": torch.zeros(()), "count": torch.zeros(())}
    limits = job.limits._replace(rows=job.limits.rows or job.section.batch)
    run = module if ranks.sharded else ranks.accelerator.unwrap_model(module)
    for part in collate.split(completed, limits) if completed else []:
        micro = job.supply.complete(collate(part).to(ranks.device))
        total, further = run(micro, position.method)
        add_sums(sums, total, {"count": further["count"]})
    totals = ranks.add(sums)  # where every rank saw all rows, the ratio is the same
    return totals["total"] / max(totals["count"], 1.0)


def _due(job: Job, step: int, every: float) -> bool:
    """Whether a multiple of ``every`` updates (may be fractional) lies at this step, or the end."""
    return step == job.steps or math.floor(step / every) > math.floor((step - 1) / every)


def _resume(job: Job, optimizer: Any, checkpoints: Checkpoints, fresh: Position) -> Position:
    found = checkpoints.newest()
    if found is None:
        if (job.folder / METRICS_FILE).exists():  # else nothing was begun
            job.progress.say(f"{job.folder}: no checkpoint yet, starting from the beginning")
        return fresh
    for reason in found.skipped:
        job.progress.say(f"skipped a damaged checkpoint: {reason}")
    position = position_in(found.folder, found.state)
    if position.method.keys() != fresh.method.keys():
        stored, expected = (", ".join(p.method) or "nothing" for p in (position, fresh))
        raise ArtefactError(
            f"{found.folder}: the method remembers {stored}, expected {expected}: an llmrec that "
            "computes it in another way began this run; delete its folder and start it again"
        )
    restore(found.folder, job.policy, optimizer)
    job.progress.say(f"resumed from {found.folder}")
    return position


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _note(row: Mapping[str, Any]) -> str:
    shown = ["skipped" if row["loss"] is None else f"loss {row['loss']:.4f}"]
    ranking = ((k, v) for k, v in row.items() if k.startswith(("valid_ndcg", "valid_auc")))
    shown += [f"{k.removeprefix('valid_')} {v:.4f}" for k, v in ranking]
    return " ".join(shown)
