"""``python -m benchmarks.gpu``: the peers' ways beside ours on a CUDA device, in bfloat16.

The loss head, a training step, packed preference rows,
ILRec's layers and the decoders, on a random Llama of about one billion parameters; for each way the
time by CUDA events, and by how much the device's memory rose.  Answers are compared in float32
before anything is timed.  The exit code is 1 when answers differ or a suite fails, 3 without a
CUDA device.  ``--device cpu --size tiny`` runs the whole script as a toy.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import cross_layer, decoding, loss_head, preferences, training_step
from benchmarks.device import Bench, Loss, Report, agreement, backward_of, device_facts, write
from benchmarks.machine import machine
from benchmarks.training_step import dense_log_probs
from llmrec_cli.decoding.search import DecodeOptions, rank_catalogue, score_all
from llmrec_cli.decoding.tree_cache import TreeCache
from llmrec_cli.methods.contract import Forward, Head
from llmrec_cli.models.language_model import Policy
from llmrec_cli.tensors.legal_softmax import legal_logits
from llmrec_cli.tensors.trie import Trie, build_trie
from llmrec_cli.training.collator import Collator, MicroBatch
from llmrec_cli.training.reference import with_reference

Size = Literal["tiny", "full"]


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    llama: dict[str, int]
    head: loss_head.Shape  # of the loss head and of ILRec's layers
    rows: int  # of a training step
    history: int  # items of a training row
    users: tuple[int, ...]  # decoded at once
    prompt: int  # tokens, at most
    items: int
    repeats: int


SCALES: dict[Size, Scale] = {
    "tiny": Scale(
        llama={
            "vocab_size": 4_096,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        head=loss_head.Shape(4_096, 32, 2, 10, 300, 100, repeats=2),
        rows=2,
        history=2,
        users=(1, 2),
        prompt=12,
        items=100,
        repeats=2,
    ),
    "full": Scale(
        llama={  # Llama-3.2-1B
            "vocab_size": 128_256,
            "hidden_size": 2_048,
            "intermediate_size": 8_192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        head=loss_head.Shape(128_256, 2_048, 16, 200, 6_000, 2_000, repeats=20),
        rows=8,
        history=10,
        users=(1, 8, 32, 128),
        prompt=200,
        items=6_000,
        repeats=10,
    ),
}


def llama(context: Bench, scale: Scale) -> Any:
    """Random weights; the head is sharpened, frozen and not tied."""
    config = LlamaConfig(
        **scale.llama,
        max_position_embeddings=8_192,
        pad_token_id=decoding.PAD,
        eos_token_id=decoding.EOS,
    )
    torch.manual_seed(0)
    with context.device:
        model = LlamaForCausalLM(config)
    head = model.get_output_embeddings().weight.requires_grad_(False)
    head.normal_(std=2 / config.hidden_size**0.5)
    return model


def loss_heads(context: Bench, scale: Scale, report: Report) -> None:
    """The MSL loss head, forward and backward from hidden states, frozen and trained."""
    for trained in (False, True):
        drawn = loss_head.draw_problem(scale.head, trained=trained)
        same = agreement(*head_ways(context, context.to_device(drawn)))
        ways, leaves = head_ways(context, context.to_device(drawn, context.dtype))
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)  # an optimiser that zeroes gradients in place
        name = f"loss head, {'trained' if trained else 'frozen'}"
        report.lines += context.timed(name, backward_of(ways), same)


def head_ways(context: Bench, p: loss_head.Problem) -> tuple[dict[str, Loss], list[Tensor]]:
    """Every way to the same loss, and the leaves that get a gradient."""
    inside_BT = p.node_BT >= 0
    take_P = inside_BT.flatten().nonzero().squeeze(1)
    node_P, target_P = p.node_BT[inside_BT], p.target_BT[inside_BT]
    trained = p.weight_VD.requires_grad

    def legal(trie: Trie, node_P: Tensor, target_P: Tensor) -> Tensor:
        hidden_PD = p.hidden_BTD.flatten(0, 1).index_select(0, take_P)
        found = legal_logits(hidden_PD, Head(p.weight_VD), trie, node_P, target_P)
        return found.nll().sum() / len(node_P)

    ways: dict[str, Loss] = {
        "released MSL": partial(loss_head.released, p),
        "response positions only": partial(loss_head.response_only, p),
        "ours": partial(legal, p.trie, node_P, target_P),
        "ours, trie on the CPU": partial(legal, p.trie.to("cpu"), node_P.cpu(), target_P.cpu()),
    }
    return ways, [p.hidden_BTD, *([p.weight_VD] if trained else [])]


def training_steps(context: Bench, scale: Scale, report: Report) -> None:
    """One MSL step, forward and backward, beside the body's own; the head is frozen."""
    policy = Policy(llama(context, scale))
    problem = training_step.draw_problem(_small_model(scale))
    collate = Collator(context.to_device(problem.trie), cut_forced=True)
    cut = collate(problem.rows).to(context.device)
    whole = Collator(collate.device_trie, cut_forced=False)(problem.rows).to(context.device)

    def ours(micro: MicroBatch) -> Tensor:
        forward = Forward(policy(micro.input_ids_BT, micro.take_P)[0], policy.head())
        sums = training_step.MSL.loss(forward, micro.batch, training_step.OPTIONS, {})
        return sums.total / sums.count

    def peer(everywhere: bool) -> Tensor:
        return -dense_log_probs(policy, whole, legal=True, everywhere=everywhere).mean()

    losses: dict[str, Loss] = {
        "released MSL": lambda: peer(everywhere=True),
        "response positions only": lambda: peer(everywhere=False),
        "ours": lambda: ours(cut),
    }
    same = agreement(losses, [_first_query(policy)])
    policy.to(context.dtype)
    losses["the body alone"] = lambda: policy(cut.input_ids_BT, cut.take_P).float().sum()
    report.lines += context.timed("training step", backward_of(losses), same)
    whole_step = {"training step": lambda: ours(collate(problem.rows).to(context.device))}
    for work, step in backward_of(whole_step).items():
        report.synchronisations[work] = context.synchronisations(step)


def preference_steps(context: Bench, scale: Scale, report: Report) -> None:
    """One DMPO step: every answer behind its own prompt, and packed rows."""
    policy = Policy(llama(context, scale))
    cases: list[tuple[preferences.Support, int]] = [
        ("vocab", 3),
        ("vocab", 7),
        ("legal", 3),
        ("legal", 7),
    ]
    for support, k in cases:
        case = preferences.draw_case(_small_model(scale), support, k)
        losses = preference_losses(context, policy, case)
        policy.float()
        same = agreement(losses, [_first_query(policy)])
        policy.to(context.dtype)
        work = f"DMPO step, k = {k}, {support} log-probs"
        report.lines += context.timed(work, backward_of(losses), same)


def preference_losses(context: Bench, policy: Policy, case: preferences.Case) -> dict[str, Loss]:
    """The same loss from separate rows and from packed ones."""
    trie = context.to_device(case.problem.trie)
    cut = case.support == "legal"
    packed = Collator(trie, cut_forced=cut, rejected=True)(case.packed).to(context.device)
    apart = Collator(trie, cut_forced=False)(case.apart).to(context.device)
    reference_A = case.reference_A.to(context.device)
    options = preferences.DMPO.options.model_validate({"k": case.k, "support": case.support})

    def separate(everywhere: bool) -> Tensor:
        log_prob_P = dense_log_probs(policy, apart, legal=cut, everywhere=everywhere).float()
        log_prob_A = torch.zeros_like(reference_A).index_add(0, apart.batch.answer_P, log_prob_P)
        d_GA = (log_prob_A - reference_A).view(-1, case.k + 1)
        return -nn.functional.logsigmoid(0.1 * (d_GA[:, 0] - d_GA[:, 1:].mean(1))).mean()

    def ours() -> Tensor:
        micro = with_reference(packed, reference_A)
        hidden_XPD = policy(micro.input_ids_BT, micro.take_P, tree=micro.tree)
        forward = Forward(hidden_XPD[0], policy.head())
        sums = preferences.DMPO.loss(forward, micro.batch, options, {})
        return sums.total / sums.count

    return {
        "concatenated rows": lambda: separate(everywhere=True),
        "response positions only": lambda: separate(everywhere=False),
        "ours, packed rows": ours,
    }


def layer_losses(context: Bench, scale: Scale, report: Report) -> None:
    """ILRec's head over several layers, forward and backward from hidden states."""
    drawn = cross_layer.draw_problem(scale.head)

    def ways(p: cross_layer.Problem) -> dict[str, Loss]:
        return {
            "per-layer logits": partial(cross_layer.peer, p, everywhere=True),
            "response positions only": partial(cross_layer.peer, p, everywhere=False),
            "ours": partial(cross_layer.ours, p),
        }

    problem: cross_layer.Problem = context.to_device(drawn)
    same = agreement(ways(problem), [problem.hidden_XBTD])
    problem = context.to_device(drawn, context.dtype)
    name = f"ILRec head, {cross_layer.LAYERS} layers"
    report.lines += context.timed(name, backward_of(ways(problem)), same)


def decoders(context: Bench, scale: Scale, report: Report) -> None:
    """Top 10 of every user: Hugging Face's constrained beam search, ours, and prefill alone."""
    model = llama(context, scale).eval()
    vocabulary = scale.llama["vocab_size"]
    catalogue = decoding.titles(scale.items, vocabulary)
    trie = build_trie(catalogue)
    shape = decoding.Shape(vocabulary, 0, 0, max(scale.users), scale.prompt, scale.items, 0)
    prompts = decoding.prompts_of(shape)
    exact = DecodeOptions(k=decoding.BEAMS, batch=max(scale.users))
    beam = replace(exact, search="beam", beams=decoding.BEAMS)

    def generate(users: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        with context.device:  # where it makes its inputs
            return decoding.generate(model, catalogue, users, "before")

    @torch.no_grad()
    def prefill(users: Sequence[Sequence[int]]) -> None:
        TreeCache(model.get_decoder(), users, context.device)

    few = prompts[: scale.users[1]]
    leaf_of = dict(zip(map(tuple, catalogue), trie.leaf_of_item_I.tolist(), strict=True))
    theirs = [[leaf_of[tuple(answer)] for answer in row] for row in generate(few)]
    best_BK = score_all(model, trie, few, exact).topk(decoding.BEAMS).indices
    same = {
        "ours, beam": rank_catalogue(model, trie, few, beam).leaf_BK.tolist() == theirs,
        "ours, exact": torch.equal(rank_catalogue(model, trie, few, exact).leaf_BK, best_BK),
    }
    model.to(context.dtype)
    trie = trie.to(context.device)
    for n_users in scale.users:
        users = prompts[:n_users]
        ways: dict[str, Callable[[], object]] = {
            "HF generate": partial(generate, users),
            "ours, beam": partial(rank_catalogue, model, trie, users, beam),
            "ours, exact": partial(rank_catalogue, model, trie, users, exact),
            "prefill alone": partial(prefill, users),
        }
        work = f"top {decoding.BEAMS}, {n_users} users at once"
        report.lines += context.timed(work, ways, same, n_users)
    counted = context.synchronisations(partial(rank_catalogue, model, trie, few, exact))
    report.synchronisations[f"exact top {decoding.BEAMS}, {len(few)} users"] = counted


Suite = Callable[[Bench, Scale, Report], None]
SUITES: dict[str, Suite] = {
    "loss_head": loss_heads,
    "training_step": training_steps,
    "preferences": preference_steps,
    "cross_layer": layer_losses,
    "decoding": decoders,
}


def _first_query(policy: Policy) -> Tensor:
    weight: Tensor = policy.model.model.layers[0].self_attn.q_proj.weight
    return weight


def _small_model(scale: Scale) -> training_step.Shape:
    """For the suites' rows, which come with a model that is not used."""
    return training_step.Shape(scale.llama["vocab_size"], 32, 1, scale.rows, scale.history, 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suites; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SCALES), default="full")
    parser.add_argument("--only", choices=tuple(SUITES), help="one suite")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-gpu"))
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu" and arguments.size == "full":
        parser.error("--device cpu is for --size tiny")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is visible; a toy run: --device cpu --size tiny", file=sys.stderr)
        return 3
    arguments.out.mkdir(parents=True, exist_ok=True)
    scale = SCALES[arguments.size]
    context = Bench(torch.device(arguments.device), torch.bfloat16, scale.repeats)
    report = Report(machine() | device_facts(context.device) | {"size": arguments.size})
    for name in [arguments.only] if arguments.only else SUITES:
        print(f"{name} ...", flush=True)
        try:
            SUITES[name](context, scale, report)
        except Exception as error:  # one suite must not cost the others on a rented machine
            traceback.print_exc()
            report.failed[name] = f"{type(error).__name__}: {error}"
        write(arguments.out, report)
    print((arguments.out / "gpu.md").read_text())
    return 1 if report.failed or any(line.same is False for line in report.lines) else 0


if __name__ == "__main__":
    sys.exit(main())
