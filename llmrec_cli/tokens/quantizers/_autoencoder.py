"""An autoencoder around a quantized latent, which RQ-VAE and FSQ train.

Shape suffixes: N rows of a batch, I items, D width of a vector, K width of the latent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmrec_cli.tokens.quantizers.contract import Tensors
from llmrec_cli.utils.progress import Advance

Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]
"""latent_NK -> (quantized_NK with straight-through gradient, a loss to add)."""


class Autoencoder(nn.Module):
    """An MLP to the latent, and its mirror image back.

    Vectors are centred, and divided by one number, so that their mean squared entry is 1.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        sizes = [width, *hidden, latent]
        self.encoder = _make_mlp(sizes)
        self.decoder = _make_mlp(sizes[::-1])
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def standardize(self, vectors_ID: Tensor) -> Tensor:
        """What the encoder reads and the decoder gives back."""
        return (vectors_ID - self.mean) / self.scale


def _make_mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int


def make_autoencoder(
    vectors_ID: Tensor, hidden: Sequence[int], latent: int, seed: int
) -> Autoencoder:
    """One with random weights, and the vectors' mean and scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(vectors_ID.shape[1], hidden, latent)
    mean_D = vectors_ID.mean(dim=0)
    spread = ((vectors_ID - mean_D) ** 2).mean().sqrt()
    model.load_state_dict(
        {"mean": mean_D, "scale": torch.where(spread > 0, spread, 1.0)}, strict=False
    )
    return model.to(vectors_ID.device)


def load_autoencoder(
    tensors: Tensors, width: int, hidden: Sequence[int], latent: int
) -> Autoencoder:
    """The one that ``tensors`` hold."""
    model = Autoencoder(width, hidden, latent)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.to(tensors["mean"].device).eval()


def train_autoencoder(
    model: Autoencoder,
    quantize: Quantize,
    further: Sequence[nn.Parameter],
    vectors_ID: Tensor,
    training: Training,
    advance: Advance,
    refresh: Callable[[Tensor], None] = lambda latent_NK: None,
) -> None:
    """Train it in place on reconstruction, and on what ``quantize`` adds.

    Args:
        further: parameters of ``quantize``.
        refresh: called at the end of each epoch, with the latents of its last batch.
    """
    generator = torch.Generator().manual_seed(training.seed)
    parameters = [*model.parameters(), *further]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=1e-4)
    input_ID = model.standardize(vectors_ID)
    for _ in range(training.epochs):
        order = torch.randperm(len(input_ID), generator=generator).to(input_ID.device)
        for rows in order.split(training.batch):
            input_ND = input_ID[rows]
            latent_NK = model.encoder(input_ND)
            quantized_NK, added = quantize(latent_NK)
            loss = ((model.decoder(quantized_NK) - input_ND) ** 2).mean() + added
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        refresh(latent_NK.detach())
        advance(1, f"loss {loss.item():.4f}")


def measure_loss(
    model: Autoencoder, vectors_ID: Tensor, latents_LIK: Sequence[Tensor]
) -> list[float]:
    """Share of the vectors' variance that is lost where each latent is decoded."""
    input_ID = model.standardize(vectors_ID)
    variance = float((input_ID**2).mean())
    with torch.no_grad():
        lost = [float(((model.decoder(latent) - input_ID) ** 2).mean()) for latent in latents_LIK]
    return [one / variance if variance else 0.0 for one in lost]
