"""What an export wrote, opened as others open it, and compared with the run's own scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from llmrec_cli.errors import ExportError
from llmrec_cli.models.backbone import load_config
from llmrec_cli.models.guard import ADAPTER, check_adapter, check_source, loading
from llmrec_cli.models.policy import Policy
from llmrec_cli.serving.export_files import merge
from llmrec_cli.serving.finished import Finished
from llmrec_cli.stage.base import base_source
from llmrec_cli.stage.trained import load_policy
from llmrec_cli.stage.workbench import Workbench
from llmrec_cli.tasks.operations import load_operations

ROWS: Final = 4
CLOSE: Final = 1e-3  # nats; another order of the same additions in fp32 differs by about 1e-5
_SPLITS: Final = ("valid", "test", "train")

Tokens = list[tuple[list[int], list[int]]]  # prompt, answer


def check_export(finished: Finished, bench: Workbench, folder: Path, *, merged: bool) -> float:
    """Compare the log-probabilities of all tokens at every place of a few answers.

    All models compute in fp32, whatever dtype their weights are stored in.  A merge is compared
    twice, because 16 bits round it: merged in fp32 it has to be the run, and as transformers opens
    it, it has to be what was merged in the stored dtype.

    Args:
        bench: of ``plain_bench``.
        folder: the exported one, which is not yet in its place.

    Returns:
        The largest difference between the run and the folder, nats: of a merge, with its rounding.

    Raises:
        ExportError: a difference is larger than the order of additions explains.
    """
    rows = _rows(bench)
    compare = _Compared(finished, bench.codec.tokenizer)
    model = load_policy(bench, finished.run, train=False, packs=False).float()
    own_PV = torch.cat([_policy_scores(Policy(model), *row) for row in rows])
    expected, expected_PV = "in the run", own_PV
    if merged:
        model = merge(model)
        expected_PV = _plain_scores(model, rows)
        _nudge(model)
        moved = float((_plain_scores(model, rows) - expected_PV).abs().max())
        compare(own_PV, expected_PV, ("in the run", "merged in fp32"), CLOSE + 4 * moved)
        expected = f"merged in {bench.recipe.model.dtype}"
        if bench.recipe.model.dtype != "float32":
            model = merge(load_policy(bench, finished.run, train=False, packs=False)).float()
            expected_PV = _plain_scores(model, rows)
    del model  # one model in memory at a time
    found_PV = _plain_scores(_open_plainly(finished, folder), rows)
    compare(expected_PV, found_PV, (expected, "as transformers opens the export"), CLOSE)
    return float((own_PV - found_PV).abs().max())


@dataclass(frozen=True)
class _Compared:
    """Refuses scores that are not those of the run."""

    finished: Finished
    tokenizer: Any

    def __call__(
        self, ours_PV: Tensor, theirs_PV: Tensor, named: tuple[str, str], allowed: float
    ) -> None:
        what = f"{self.finished.folder}: the export is another model than the run"
        if theirs_PV.shape != ours_PV.shape:
            sizes = f"{theirs_PV.shape[1]:,} tokens, {ours_PV.shape[1]:,} in the run"
            raise ExportError(f"{what}: {sizes}; nothing was written: please report it")
        difference_PV = (ours_PV - theirs_PV).abs().nan_to_num(torch.inf)
        if float(difference_PV.max()) <= allowed:
            return
        at, token = divmod(int(difference_PV.argmax()), ours_PV.shape[1])
        raise ExportError(
            f"{what}: log-probability of {self.tokenizer.convert_ids_to_tokens(token)!r} "
            f"{float(ours_PV[at, token]):.4f} {named[0]}, {float(theirs_PV[at, token]):.4f} "
            f"{named[1]} (rounding explains {allowed:.4f}); nothing was written: please report it"
        )


def _rows(bench: Workbench) -> Tokens:
    """Prompts and answers of the prepared data; where it has no rows, items without a history."""
    for name in _SPLITS:
        if name in bench.prepared.splits and len(frame := bench.prepared.split(name).head(ROWS)):
            break
    else:
        return [([bench.codec.start], item.tolist()) for item in bench.catalogue[:ROWS]]
    encoded = load_operations(bench.recipe.task).encode_answers(bench, frame, name)
    return [(prompt.tolist(), answer.tolist()) for prompt, answer in encoded]


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
def _plain_scores(model: Any, rows: Tokens) -> Tensor:
    """From calls of the whole model."""
    found = []
    for prompt, answer in rows:
        logits_TV = model(input_ids=torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
        found.append(logits_TV[len(prompt) - 1 :].float().log_softmax(-1))
    return torch.cat(found)


@torch.no_grad()
def _nudge(model: Any) -> None:
    """Move every weight by one unit in its last place, up or down: as far as rounding goes."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        up = torch.rand(weight.shape, generator=generator) < 0.5
        weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))


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
