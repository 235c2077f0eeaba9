"""Conventional sequential recommenders: SASRec, GRU4Rec and Caser, one token per catalogue entry.

Each is a causal encoder of entry sequences with the item embeddings as its output head, called like
a language model's policy, so the one training loop trains it with full softmax cross entropy over
the catalogue, and one pass over a user's sequence gives the state behind every prefix.

Shape suffixes: B rows, T places in a sequence, D model width, F catalogue entries (leaves), P
positions that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llmrec_cli.data.catalog import CatalogueEntries
from llmrec_cli.errors import DataError
from llmrec_cli.methods.contract import Head, Options
from llmrec_cli.models.base import FullScoreRanker, Histories, ScoredBy
from llmrec_cli.models.baselines import find_baseline
from llmrec_cli.models.language_model import inference_mode

if TYPE_CHECKING:
    from llmrec_cli.models.baselines.caser import CaserOptions
    from llmrec_cli.models.baselines.gru4rec import Gru4recOptions
    from llmrec_cli.models.baselines.sasrec import SasrecOptions


class Sequential(nn.Module):
    """Item embeddings, a causal encoder, and the same embeddings as output head.

    ``forward(input_ids_BT, take_P)`` gives hidden_XPD [1, P, D] as
    ``models.language_model.Policy`` does;
    input ids are leaf numbers, and ``n_leaves`` begins a sequence.  Rows are padded on the right,
    which no earlier place sees.
    """

    def __init__(self, encoder: nn.Module, n_leaves: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_leaves = n_leaves
        self.embedding = nn.Embedding(n_leaves + 1, hidden)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.encoder = encoder

    def forward(
        self, input_ids_BT: Tensor, take_P: Tensor, *, tree: object = None, layers: int = 0
    ) -> Tensor:
        if tree is not None or layers:
            raise ValueError("a conventional model has neither packed rows nor layers to offer")
        scale = self.embedding.embedding_dim**0.5
        hidden_BTD = self.encoder(self.dropout(self.embedding(input_ids_BT) * scale))
        taken: Tensor = hidden_BTD.flatten(0, 1)[take_P]
        return taken[None]

    def head(self) -> Head:
        """The item embeddings: logits are inner products."""
        return Head(self.embedding.weight[: self.n_leaves])


class SelfAttention(nn.Module):
    """SASRec (Kang and McAuley 2018): causal self-attention with learned positions, pre-norm."""

    def __init__(self, size: SasrecOptions, longest: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(longest, size.hidden) * 0.02)
        block = nn.TransformerEncoderLayer(
            size.hidden,
            size.heads,
            dim_feedforward=4 * size.hidden,
            dropout=size.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, size.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(size.hidden)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        length = hidden_BTD.shape[1]
        if length > len(self.position):
            raise DataError(
                f"a sequence of {length} items, but the model has {len(self.position)} positions"
            )
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length, hidden_BTD.device)
        encoded = self.blocks(hidden_BTD + self.position[:length], mask=mask_TT, is_causal=True)
        normed: Tensor = self.norm(encoded)
        return normed


class Recurrent(nn.Module):
    """GRU4Rec (Hidasi et al. 2016), trained with full softmax."""

    def __init__(self, size: Gru4recOptions) -> None:
        super().__init__()
        inner = size.dropout if size.layers > 1 else 0.0
        self.gru = nn.GRU(size.hidden, size.hidden, size.layers, batch_first=True, dropout=inner)
        self.project = nn.Sequential(nn.Dropout(size.dropout), nn.Linear(size.hidden, size.hidden))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        projected: Tensor = self.project(self.gru(hidden_BTD)[0])
        return projected


class Convolutional(nn.Module):
    """Caser (Tang and Wang 2018) at every place: filters over the last ``window`` items.

    Horizontal filters of every height up to the window, each max-pooled over the places it fits,
    and vertical filters that weigh the window's places.  The user embedding is left out: histories
    identify users, and new users have none.
    """

    def __init__(self, size: CaserOptions) -> None:
        super().__init__()
        self.window = size.window
        heights = range(1, size.window + 1)
        self.horizontal = nn.ModuleList(nn.Conv1d(size.hidden, size.filters, h) for h in heights)
        self.vertical = nn.Linear(size.window, size.filters, bias=False)
        width = size.filters * size.window + size.filters * size.hidden
        self.project = nn.Sequential(
            nn.Dropout(size.dropout),
            nn.Linear(width, size.hidden),
            nn.GELU(),
            nn.Dropout(size.dropout),
            nn.Linear(size.hidden, size.hidden),
        )

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        padded_BSD = F.pad(hidden_BTD, (0, 0, self.window - 1, 0))
        pooled_BTK = [self._pool_windows(conv, padded_BSD) for conv in self.horizontal]
        window_BTDW = padded_BSD.unfold(1, self.window, 1)
        vertical_BTK = self.vertical(window_BTDW).flatten(2)
        projected: Tensor = self.project(torch.cat([*pooled_BTK, vertical_BTK], dim=2))
        return projected

    def _pool_windows(self, conv: nn.Module, padded_BSD: Tensor) -> Tensor:
        """The strongest response of a filter inside each place's window: [B, T, filters]."""
        response_BKS = F.relu(conv(padded_BSD.transpose(1, 2)))
        places = self.window - (padded_BSD.shape[1] - response_BKS.shape[2])
        return F.max_pool1d(response_BKS, places, stride=1).transpose(1, 2)


def build_sequential(
    model: str, options: Options, n_leaves: int, longest: int, seed: int
) -> Sequential:
    """A model with random weights; the same arguments give the same weights on every machine.

    Args:
        model: name of a trained conventional model (``models.baselines``), whose options these are.
        n_leaves: catalogue entries.
        longest: places of the longest sequence that it will see, its beginning included.

    Raises:
        KeyError: there is no such model.
        ValueError: a model that is counted, not trained.
    """
    build = find_baseline(model).build
    if build is None:
        raise ValueError(f"{model}: is counted, and has no weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(options, n_leaves, longest)


def states_at(
    model: Sequential, sequences: Sequence[Sequence[int]], places: Sequence[range]
) -> Tensor:
    """The model's state at chosen places of each sequence of leaves: [P, D], on its device.

    Args:
        places: of each sequence, 0 before its first leaf; one sequence after the other.
    """
    width = 1 + max(map(len, sequences))
    input_ids_BT = torch.zeros((len(sequences), width), dtype=torch.int64)
    for row, leaves in enumerate(sequences):
        input_ids_BT[row, : 1 + len(leaves)] = torch.tensor([model.n_leaves, *leaves])
    take_P = torch.tensor([row * width + at for row, own in enumerate(places) for at in own])
    device = model.embedding.weight.device
    with inference_mode(model):
        state_PD: Tensor = model(input_ids_BT.to(device), take_P.to(device))[0]
    return state_PD


def log_probs_behind(model: Sequential, histories: Sequence[Sequence[int]]) -> Tensor:
    """Log-softmax over all entries behind each history of leaves: [B, F] fp32, on its device."""
    last = [range(len(leaves), len(leaves) + 1) for leaves in histories]
    state_BD = states_at(model, histories, last)
    with torch.no_grad():
        return torch.log_softmax((state_BD @ model.head().weight_VD.T).float(), dim=1)


def make_sequential_ranker(
    model: Sequential, leaves: CatalogueEntries, history: int
) -> FullScoreRanker:
    """A model as a Ranker, by its log-probabilities over the catalogue; it may go on training.

    Args:
        history: at most so many of a history's last items are read.
    """

    def score_all(histories: Histories) -> NDArray[np.float32]:
        taken = [np.asarray(items, dtype=np.int64)[-history:] for items in histories]
        read = [leaves.leaf_of_item_I[items].tolist() for items in taken]
        found: NDArray[np.float32] = log_probs_behind(model, read).cpu().numpy()
        return found

    return FullScoreRanker(score_all, leaves, ScoredBy.LOG_PROBABILITY)
