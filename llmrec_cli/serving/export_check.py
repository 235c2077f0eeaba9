"""What an export wrote, opened as others open it, and compared with the run's own scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llmrec_cli.data.columns import HISTORY, TARGET
from llmrec_cli.errors import ExportError
from llmrec_cli.models.backbone import load_config
from llmrec_cli.models.guard import ADAPTER, check_adapter, check_source, loading
from llmrec_cli.models.policy import Policy
from llmrec_cli.serving.finished import Finished
from llmrec_cli.stage.base import base_source
from llmrec_cli.stage.pair_task import pair_encoder, questions
from llmrec_cli.stage.trained import load_policy
from llmrec_cli.stage.workbench import Workbench

ROWS: Final = 4
CLOSE: Final = 1e-3  # nats; another order of the same additions in fp32 differs by about 1e-5
_SPLITS: Final = ("valid", "test", "train")

Tokens = list[tuple[list[int], list[int]]]  # prompt, answer


def check_export(finished: Finished, bench: Workbench, folder: Path, *, merged: bool) -> float:
    """Compare the log-probabilities of all tokens at every place of a few answers.

    Both models compute in fp32, whatever dtype their weights are stored in.  Weights that were
    merged in 16 bits are rounded once more: they may differ by twice what 16-bit arithmetic makes
    of the run itself.

    Args:
        bench: of ``plain_bench``.
        folder: the exported one, which is not yet in its place.

    Returns:
        The largest difference, nats.

    Raises:
        ExportError: it is larger than rounding explains.
    """
    rows = _rows(bench)
    own, rounding = _run_scores(finished, bench, rows, rounds=merged)
    model = _open_plainly(finished, folder)
    ours, theirs = torch.cat(own), torch.cat([_plain_scores(model, *row) for row in rows])
    if theirs.shape != ours.shape:
        raise ExportError(
            f"{finished.folder}: the export has {theirs.shape[1]:,} tokens, the run "
            f"{ours.shape[1]:,}; nothing was written: please report it"
        )
    difference_PV = (ours - theirs).abs().nan_to_num(torch.inf)
    largest, allowed = float(difference_PV.max()), CLOSE + 2 * rounding
    if largest > allowed:
        at, token = divmod(int(difference_PV.argmax()), ours.shape[1])
        name = bench.codec.tokenizer.convert_ids_to_tokens(token)
        raise ExportError(
            f"{finished.folder}: the export is another model than the run: log-probability of "
            f"{name!r} {float(ours[at, token]):.4f} in the run, {float(theirs[at, token]):.4f} as "
            f"transformers opens the export (rounding explains {allowed:.4f}); nothing was "
            "written: please report it"
        )
    return largest


def _rows(bench: Workbench) -> Tokens:
    """Prompts and answers of the prepared data; token ids in order where it has no rows."""
    for name in _SPLITS:
        if name in bench.prepared.splits and len(frame := bench.prepared.split(name).head(ROWS)):
            break
    else:
        tokens = sorted({token for item in bench.catalogue for token in item.tolist()})
        return [([bench.codec.start, *tokens[:ROWS]], tokens[-ROWS:])]
    if bench.recipe.prompt.task == "generate":
        prompts = bench.encoder.encode(frame[HISTORY].tolist())
        answers = [bench.catalogue[item] for item in frame[TARGET]]
    else:
        pairs = pair_encoder(bench, bench.recipe.prompt_for_eval).encode(
            questions(bench, frame, name)
        )
        prompts = [pair.prompts[0] for pair in pairs]
        answers = [pair.answers[0][0] for pair in pairs]
    return [(p.tolist(), a.tolist()) for p, a in zip(prompts, answers, strict=True)]


def _run_scores(
    finished: Finished, bench: Workbench, rows: Tokens, *, rounds: bool
) -> tuple[list[Tensor], float]:
    """The run's log-probabilities, each [P, V], and how far its dtype alone moves them."""
    policy = Policy(load_policy(bench, finished.folder, train=False))
    stored = [_policy_scores(policy, *row) for row in rows] if rounds else []
    policy.float()
    exact = [_policy_scores(policy, *row) for row in rows]
    pairs = zip(stored, exact, strict=False)
    return exact, max((float((a - b).abs().max()) for a, b in pairs), default=0.0)


@torch.no_grad()
def _policy_scores(policy: Policy, prompt: list[int], answer: list[int]) -> Tensor:
    """From the body's hidden states and the head's weights, as in training and ranking."""
    ids_T = torch.tensor([*prompt, *answer[:-1]])
    hidden_PD = policy(ids_T[None], torch.arange(len(prompt) - 1, len(ids_T)))[0]
    head = policy.head()
    bias_V = None if head.bias_V is None else head.bias_V.float()
    logits_PV = torch.nn.functional.linear(hidden_PD.float(), head.weight_VD.float(), bias_V)
    return logits_PV.log_softmax(-1)


@torch.no_grad()
def _plain_scores(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """From a call of the whole model."""
    logits_TV: Tensor = model(input_ids=torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
    return logits_TV[len(prompt) - 1 :].float().log_softmax(-1)


def _open_plainly(finished: Finished, folder: Path) -> Any:
    """The exported model as its card says to load it, then in fp32; an adapter on its base."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    if not (folder / ADAPTER).is_file():
        return _whole_model(folder, None, "auto")
    section = finished.recipe.model
    model = _whole_model(base_source(finished.recipe), section.revision, section.dtype)
    with loading(f"the export of {finished.folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            # Drawn, and not as the run drew them: all of them stand in the adapter.
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        check_adapter(folder)
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _whole_model(source: str | Path, revision: str | None, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    check_source(source, revision)
    config = load_config(source, revision)
    with loading(f"the export, on {source}"):
        model = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
        )
        return model.eval().float()
