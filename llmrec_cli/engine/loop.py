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
from typing import Any

import torch
from accelerate import Accelerator

from llmrec_cli.engine import checkpoint
from llmrec_cli.engine.batches import rows_of_step
from llmrec_cli.engine.collate import Collator, MicroBatch
from llmrec_cli.engine.job import Job, Position
from llmrec_cli.engine.log import MetricsLog
from llmrec_cli.engine.optimizer import learning_rate, make_optimizer
from llmrec_cli.engine.stop import deferred_signals
from llmrec_cli.errors import NumbersError
from llmrec_cli.methods.contract import Forward, LossSums


def train(job: Job, *, resume: bool) -> Position:
    """Run a job to its end, then put the best validation's weights into the policy.

    Raises:
        NumbersError: a loss or gradient norm is NaN or infinite; nothing was updated with it.
        ArtefactError: ``resume``, and the checkpoints do not fit or are damaged.
    """
    policy, optimizer = job.accelerator.prepare(job.policy, make_optimizer(job.policy, job.section))
    position = Position(method=dict(job.method.init_state(job.options, job.trie)))
    log = MetricsLog(job.folder / "metrics.jsonl")
    if resume:
        position = _resume(job, optimizer, position)
    log.keep_until(position.step)
    _start_gradients(job.policy)
    collate = job.collator(job.supply.train_masses)
    with (
        deferred_signals() as asked_to_stop,
        job.progress.track(job.label, job.steps, position.step, unit="updates") as advance,
    ):
        while position.step < job.steps and not position.stopped and not asked_to_stop():
            row = _update(job, policy, optimizer, collate, position)
            if _due(job, position.step, every=job.section.validate_every * job.steps_per_epoch):
                row |= _validate(job, position)
                checkpoint_now = True
            else:
                checkpoint_now = position.step % (job.section.save_every or job.steps) == 0
            log.append(row)
            if checkpoint_now or asked_to_stop():
                _save(job, optimizer, position)
            advance(1, _note(row))
    if position.best_step is not None:
        best = job.folder / "checkpoints" / f"step-{position.best_step}"
        checkpoint.restore_weights(job.policy, best)
    return position


def _start_gradients(policy: Any) -> None:
    """Give a trained head its gradient from the start, so that every step adds to it alike."""
    weight_VD = policy.head().weight_VD
    if weight_VD.is_leaf and weight_VD.requires_grad:
        weight_VD.grad = torch.zeros_like(weight_VD)


def _update(
    job: Job, policy: Any, optimizer: Any, collate: Collator, position: Position
) -> dict[str, Any]:
    """One optimizer step over one global batch; returns its metrics row."""
    begun = time.perf_counter()
    totals, tokens = _backward(job, policy, collate, position)
    count = max(totals.pop("count"), 1.0)
    loss = totals.pop("total") / count
    rate = learning_rate(job.section, position.step, job.steps)
    norm = _step(job, optimizer, position, loss=loss, count=count, rate=rate)
    logged = {**job.method.metrics(totals, count), **position.method}
    position.method = dict(job.method.update_state(position.method, totals, job.options, job.trie))
    position.step += 1
    _warn(job, position, logged)
    return {
        "step": position.step,
        "epoch": round(position.step / job.steps_per_epoch, 4),
        "loss": loss,
        "learning_rate": rate,
        "gradient_norm": norm,
        **logged,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - begun, 4),
    }


def _warn(job: Job, position: Position, logged: Mapping[str, float]) -> None:
    """Say once per run what the method finds worrying in its metrics."""
    warning = job.method.warning(logged)
    if warning and position.warned_at is None:
        position.warned_at = position.step
        job.progress.say(f"{job.label}: warning at update {position.step}: {warning}")


def _backward(
    job: Job, policy: Any, collate: Collator, position: Position
) -> tuple[dict[str, float], int]:
    """Gradients of the global batch's summed loss; returns the sums of all ranks, and tokens."""
    accelerator, rank = job.accelerator, job.accelerator.process_index
    torch.manual_seed(_step_seed(job.seed, position.step, rank))
    job.policy.train()
    mine = _chosen(job, position.step)[rank :: accelerator.num_processes]
    completed = job.supply.train([job.train_rows[i] for i in mine], position.step)
    sums: dict[str, torch.Tensor] = {}
    tokens = 0
    for rows in collate.split(completed, job.limits):
        batch = job.supply.complete(collate(rows).to(accelerator.device))
        losses = compute_loss(job, policy, batch, position.method)
        accelerator.backward(losses.total)
        _add(sums, losses)
        tokens += batch.tokens
    return reduce_sums(accelerator, sums), tokens


def _step(
    job: Job, optimizer: Any, position: Position, *, loss: float, count: float, rate: float
) -> float:
    """Normalise, clip, check and apply the gradients; returns their norm before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, job.accelerator.num_processes / count)  # DDP averages ranks
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise NumbersError(
            f"step {position.step + 1}: loss = {loss}, gradient norm = {norm}; "
            "nothing was updated; "
            f"training rows of this batch: {_chosen(job, position.step)[:8]}, ..."
        )
    torch.nn.utils.clip_grads_with_norm_(
        parameters, job.section.clip or math.inf, torch.tensor(norm)
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # the head's gradient adds rows to what is there
    return norm


def _chosen(job: Job, step: int) -> list[int]:
    return rows_of_step(len(job.train_rows), job.section.batch, job.seed, step)


def compute_loss(job: Job, policy: Any, batch: MicroBatch, state: Mapping[str, float]) -> LossSums:
    """Forward pass of one micro-batch and the method's loss on it."""
    layers = job.supply.layers
    hidden_XPD = policy(batch.input_ids_BT, batch.take_P, tree=batch.tree, layers=layers)
    forward = Forward(hidden_XPD[0], job.policy.head(), hidden_XPD[1:] if layers else None)
    return job.method.loss(forward, batch.batch, job.options, state)


def reduce_sums(accelerator: Accelerator, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Add the sums of all ranks; one collective."""
    names = sorted(sums)
    packed = torch.stack([sums[name].double() for name in names]).to(accelerator.device)
    reduced = accelerator.reduce(packed, reduction="sum")
    return dict(zip(names, reduced.tolist(), strict=True))


def _validate(job: Job, position: Position) -> dict[str, float]:
    """Validation loss and ranking; remembers the best and counts towards patience."""
    job.policy.eval()
    collate = job.collator(job.supply.valid_masses)
    completed = job.supply.valid(job.valid_rows, 0)  # the same negatives every time
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        limits = job.limits._replace(rows=job.limits.rows or job.section.batch)
        for rows in collate.split(completed, limits):
            batch = job.supply.complete(collate(rows).to(job.accelerator.device))
            _add(sums, compute_loss(job, job.policy, batch, position.method))
        ranking = dict(job.rank_valid())
    loss = float(sums["total"]) / max(float(sums["count"]), 1.0)
    wanted = (v for k, v in ranking.items() if k.startswith(job.section.select))
    score = next(wanted, -loss)
    if position.best_score is None or score > position.best_score:
        position.best_step, position.best_score, position.worse = position.step, score, 0
    else:
        position.worse += 1
        position.stopped = position.worse >= (job.section.patience or math.inf)
    return {"valid_loss": loss, **{f"valid_{k}": v for k, v in ranking.items()}}


def _due(job: Job, step: int, every: float) -> bool:
    """Whether a multiple of ``every`` updates (may be fractional) lies at this step, or the end."""
    return step == job.steps or math.floor(step / every) > math.floor((step - 1) / every)


def _resume(job: Job, optimizer: Any, fresh: Position) -> Position:
    found = checkpoint.newest(job.folder / "checkpoints")
    if found is None:
        job.progress.say(f"{job.folder}: no checkpoint yet, starting from the beginning")
        return fresh
    for reason in found.skipped:
        job.progress.say(f"skipped a damaged checkpoint: {reason}")
    checkpoint.restore(found.folder, job.policy, optimizer)
    job.progress.say(f"resumed from {found.folder}")
    return Position(**found.state)


def _save(job: Job, optimizer: Any, position: Position) -> None:
    if job.accelerator.is_main_process:
        root = job.folder / "checkpoints"
        checkpoint.save(root, job.policy, optimizer, position.as_json())
        checkpoint.prune(root, keep=job.section.keep, best_step=position.best_step)


def _add(sums: dict[str, torch.Tensor], losses: LossSums) -> None:
    new = {"total": losses.total.detach(), "count": losses.count, **losses.stats}
    for name, value in new.items():
        tensor = torch.as_tensor(value, dtype=torch.float64).cpu()
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + tensor


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1_009 + rank


def _note(row: Mapping[str, Any]) -> str:
    shown = [f"loss {row['loss']:.4f}"]
    ranking = ((k, v) for k, v in row.items() if k.startswith(("valid_ndcg", "valid_auc")))
    shown += [f"{k.removeprefix('valid_')} {v:.4f}" for k, v in ranking]
    return " ".join(shown)
