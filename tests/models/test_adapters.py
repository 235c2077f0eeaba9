"""Adapters hold what was trained alone: LoRA's matrices, and the rows of new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiConfig, PhiForCausalLM

from llmrec_cli.config.model import Lora, ModelSection
from llmrec_cli.errors import ArtefactError
from llmrec_cli.models.language_model import Policy
from llmrec_cli.models.loading import add_lora, fit_vocabulary
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.setup import CatalogueContext, open_context
from llmrec_cli.runs.run import run_at
from llmrec_cli.training.checkpoint import write_result
from llmrec_cli.utils.progress import Silent
from tests.experiments import typed
from tests.models.sample_adapters import BASES, PEFT_SAYS, Home, on_base, targets_of

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(words) for words in PEFT_SAYS)]
WIDTH, RANK, NEW = 16, 2, 7  # of the tiny bases, of LoRA, and tokens of the semantic IDs
IDS = [(base, targets) for base in BASES for targets in ("attention", "all")]
IDS += [("tied", "head"), ("gpt2", "head")]  # new rows are the embedding's, LoRA's the head's
TITLES = [(base, targets) for base in BASES for targets in ("head", "embedding", "both")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def context(request: pytest.FixtureRequest, home: Home) -> CatalogueContext:
    """Of a base and targets, for semantic IDs."""
    base, targets = request.param
    return open_context(home.recipe(base, "ids", targets), Silent())


def with_seed(context: CatalogueContext, seed: int) -> CatalogueContext:
    """The same, with other random rows wherever some are drawn."""
    return replace(context, recipe=context.recipe.model_copy(update={"seed": seed}))


def shaken(model: Any) -> Any:
    """A model whose trained weights all moved, as training would move them."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(vocabulary: int) -> Tensor:
    """Rows that hold every third token, new ones among them; the others are only scored."""
    return torch.arange(vocabulary - 1, 0, -3)[:21].view(3, 7)


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    logits: Tensor = model.eval()(input_ids=tokens(model.config.vocab_size)).logits
    return logits


def policy_logits(model: Any) -> Tensor:
    """From the body and the head's weights, as training and ranking compute them."""
    policy, ids_BT = Policy(model), tokens(model.config.vocab_size)
    hidden_PD = policy(ids_BT, torch.arange(ids_BT.numel()))[0]
    head = policy.head()
    return torch.nn.functional.linear(hidden_PD, head.weight_VD, head.bias_V)


def stored(file: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():
            yield name, list(tensors.get_slice(name).get_shape())


@pytest.mark.parametrize(("base", "targets"), IDS)
def test_an_adapter_holds_lora_and_the_new_rows_alone(base: str, targets: str, home: Home) -> None:
    """Its size does not depend on the vocabulary, of which it once held two whole matrices."""
    file = home.run(base, "ids", targets) / "adapter/adapter_model.safetensors"
    shapes = dict(stored(file))
    rows = [shape for name, shape in shapes.items() if name.endswith("tokens_delta")]
    assert rows == [[NEW, WIDTH]] * (2 if base == "untied" else 1)
    lora = [shape for name, shape in shapes.items() if ".lora_" in name]
    assert len(lora) == len(shapes) - len(rows), "nothing else"
    assert all(RANK in shape for shape in lora)
    numbers = sum(a * b for a, b in (*lora, *rows))
    assert file.stat().st_size <= 4 * numbers + 8 + 200 * (len(shapes) + 1)


@pytest.mark.parametrize("context", IDS, indirect=True, ids=str)
def test_scores_are_the_same_to_the_bit_after_saving_and_loading(
    context: CatalogueContext, home: Home, tmp_path: Path
) -> None:
    """Rows that the base draws for new tokens, anew each time, play no part."""
    model = shaken(load_policy(context, None, train=True))
    write_result(tmp_path / "adapter", model, context.codec.tokenizer)
    other = with_seed(context, context.recipe.seed + 1)
    drawn = [load_policy(b, None, train=False) for b in (context, other)]
    assert not torch.equal(logits_of(drawn[0]), logits_of(drawn[1]))
    loaded = load_policy(other, run_at(tmp_path), train=False)
    assert torch.equal(logits_of(loaded), logits_of(model))
    again = load_policy(other, run_at(tmp_path), train=True)
    write_result(tmp_path / "second/adapter", again, context.codec.tokenizer)
    assert torch.equal(
        logits_of(load_policy(context, run_at(tmp_path / "second"), train=False)), logits_of(model)
    )
    plain = on_base(Path(context.recipe.model.backbone), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("context", IDS, indirect=True, ids=str)
def test_adapters_of_earlier_versions_with_whole_matrices_are_read(
    context: CatalogueContext, tmp_path: Path
) -> None:
    model = shaken(load_policy(context, None, train=True))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    sizes = [shape[0] for _, shape in stored(tmp_path / "adapter/adapter_model.safetensors")]
    assert model.config.vocab_size in sizes, "as they were once written"
    other = with_seed(context, context.recipe.seed + 1)
    assert torch.equal(
        logits_of(load_policy(other, run_at(tmp_path), train=False)), logits_of(model)
    )


@pytest.mark.parametrize("context", IDS, indirect=True, ids=str)
def test_new_rows_are_trained_and_old_rows_stay(context: CatalogueContext) -> None:
    model = load_policy(context, None, train=True)
    base = model.get_base_model()
    new = sorted(context.codec.tokenizer.get_added_vocab().values())[-NEW:]
    old = [token for token in range(model.config.vocab_size) if token not in new]
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    before = [layer.weight.detach().clone() for layer in layers]
    ids_T = torch.tensor(new)  # all of them are read, and all of them are scored
    policy = Policy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    logits_PV = policy(ids_T[None], torch.arange(NEW))[0] @ policy.head().weight_VD.T
    torch.nn.functional.cross_entropy(logits_PV[:-1], ids_T[1:]).backward()
    optimizer.step()
    for layer, weight_VD in zip(layers, before, strict=True):
        assert torch.equal(layer.weight[old], weight_VD[old])
        assert (layer.weight[new[:-1]] != weight_VD[new[:-1]]).any(dim=1).all()
    _, head_VD = before
    assert (layers[1].weight[new[-1]] != head_VD[new[-1]]).any(), "scored alone, and trained"


@pytest.mark.parametrize("context", IDS, indirect=True, ids=str)
def test_the_policy_is_the_plain_model_in_scores_and_gradients(context: CatalogueContext) -> None:
    compare_with_plain(shaken(load_policy(context, None, train=True)))


@pytest.mark.parametrize(("base", "targets"), TITLES)
def test_lora_on_embedding_and_head_acts_as_in_the_plain_model(
    base: str, targets: str, home: Home
) -> None:
    context = open_context(home.recipe(base, "titles", targets), Silent())
    model = shaken(load_policy(context, None, train=True))
    without = AutoModelForCausalLM.from_pretrained(home.folder / base)
    assert (logits_of(without) - logits_of(model)).abs().max() > 0.1
    compare_with_plain(model)


def compare_with_plain(model: Any) -> None:
    """Scores of all tokens, and the gradient of each trained weight, tokens not read included."""
    ids_BT = tokens(model.config.vocab_size)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for logits_PV in (model(input_ids=ids_BT).logits.flatten(0, 1), policy_logits(model)):
        loss = logits_PV.logsumexp(-1).mean() - logits_PV[:, -2].mean()
        found.append((logits_PV, *torch.autograd.grad(loss, list(trained.values()))))
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    for name, gradient in zip(trained, found[0][1:], strict=True):
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize(("base", "targets"), [case for case in TITLES if case not in IDS])
def test_lora_on_a_matrix_with_new_rows_is_refused(
    base: str, targets: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = home.recipe(base, "ids", targets)
    file = home.folder / f"{recipe.name}.toml"
    capsys.readouterr()
    ended = typed(capsys, "sft", str(file), f"out={recipe.out}")
    assert ended.code == 2
    assert ended.err.count(": error: ") == 1
    names = [name for name in targets_of(base, targets) if base == "untied" or name != "lm_head"]
    named = " and ".join(sorted(names))
    assert f"the rows of new tokens (semantic IDs) in {named} are trained themselves" in ended.err
    assert not list((recipe.folder / "sft").glob("adapter*"))


def test_new_rows_in_a_head_with_a_bias_are_refused() -> None:
    """PEFT's layer of trained rows leaves the bias out."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = PhiForCausalLM(PhiConfig(vocab_size=20, num_attention_heads=2, **size))
    section = ModelSection(backbone="x", tuning="lora", lora=Lora(targets=("q_proj",)))
    with pytest.raises(ArtefactError, match="'phi': its output head has a bias"):
        add_lora(model, section, [18, 19])


def test_all_new_rows_are_named() -> None:
    """Also those that lie between the base's last row and the first semantic ID."""
    model = PhiForCausalLM(PhiConfig(vocab_size=20, hidden_size=16, num_attention_heads=2))
    assert fit_vocabulary(model, range(23)) == range(20, 23)
    assert fit_vocabulary(model, range(23)) == range(23, 23)
