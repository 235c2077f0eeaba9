"""A key-value cache with one prompt per user, followed by a tree of responses.

Tree tokens are appended along the sequence axis of the prompt's cache row and see the prompt, their
own ancestors and themselves (a 4D mask), so that a prompt is computed and stored once, however many
responses are tried.

Shape suffixes: B users, S prompt tokens (right padded), T tree tokens of one call, R tree slots,
D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llmrec_cli.models.language_model import check_layers, tree_masks

NO_SLOT = -1
_SHARED_PREFIX = 8  # tokens; a shorter common prefix is not worth a call of its own


class TreeCache:
    """The state of one batch of users: prompts, tree, and the model's cache of both.

    Attributes:
        hidden_BD: hidden state at the last token of each prompt.
    """

    def __init__(self, body: nn.Module, prompts: Sequence[Sequence[int]], device: torch.device):
        self._body = body
        self._config: Any = body.config
        check_layers(self._config)
        self._cache = DynamicCache()
        self._dtype = next(body.parameters()).dtype
        self._length_B = torch.tensor([len(p) for p in prompts], device=device)
        self._width = int(self._length_B.max())  # of a prompt's cache row
        self._parent_BR = torch.empty((len(prompts), 0), dtype=torch.int64, device=device)
        self._position_BR = self._parent_BR
        self.hidden_BD = self._prefill(prompts, device)

    @property
    def n_slots(self) -> int:
        """Tree slots in use; the next token gets this number."""
        return self._parent_BR.shape[1]

    def extend(self, token_BT: Tensor, parent_BT: Tensor) -> Tensor:
        """Feed tree tokens.

        Args:
            token_BT: token ids; anything at padding.
            parent_BT: slot of the token before, which may lie in this call; NONE for the prompt's
                last token, and at padding.  Token t of this call gets slot ``n_slots + t``.

        Returns:
            hidden_BTD.
        """
        n_before, n_new = self.n_slots, token_BT.shape[1]
        self._parent_BR = torch.cat([self._parent_BR, parent_BT], dim=1)
        sees_BTR = self._ancestors(n_before, n_new)
        position_BT = self._length_B[:, None] + sees_BTR.sum(2) - 1
        self._position_BR = torch.cat([self._position_BR, position_BT], dim=1)
        prompt_S = torch.arange(self._width, device=token_BT.device)
        inside_B1S = (prompt_S < self._length_B[:, None])[:, None]
        sees = torch.cat([inside_B1S.expand(-1, n_new, -1), sees_BTR], dim=2)
        key_position = torch.cat([prompt_S.expand(len(token_BT), -1), self._position_BR], dim=1)
        return self._forward(token_BT, position_BT, sees, key_position)

    def keep(self, rows_B: Tensor) -> None:
        """Drop all users but these."""
        self._cache.batch_select_indices(rows_B)
        self._length_B = self._length_B[rows_B]
        self._parent_BR = self._parent_BR[rows_B]
        self._position_BR = self._position_BR[rows_B]
        self.hidden_BD = self.hidden_BD[rows_B]

    def clear_tree(self) -> None:
        """Forget all tree tokens; the prompts stay."""
        self._cache.crop(-self.n_slots)  # counts from the end
        self._parent_BR = self._parent_BR[:, :0]
        self._position_BR = self._position_BR[:, :0]

    def _prefill(self, prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Feed the prompts, right padded: a causal model never looks at what follows."""
        padded = [[*prompt, *[0] * (self._width - len(prompt))] for prompt in prompts]
        token_BS = torch.tensor(padded, device=device)
        position_S = torch.arange(self._width, device=device)
        shared = _common_prefix(prompts)
        if shared >= _SHARED_PREFIX and len(prompts) > 1:
            self._forward(token_BS[:1, :shared], position_S[None, :shared], None, None)
            self._cache.batch_repeat_interleave(len(prompts))
            causal = (position_S <= position_S[shared:, None]).expand(len(prompts), -1, -1)
        else:
            shared, causal = 0, None
        position_BS = position_S.expand(len(prompts), -1)
        hidden_BSD = self._forward(
            token_BS[:, shared:], position_BS[:, shared:], causal, position_BS
        )
        last_B = self._length_B - 1 - shared
        return hidden_BSD[torch.arange(len(prompts), device=device), last_B]

    def _ancestors(self, n_before: int, n_new: int) -> Tensor:
        """sees_BTR: each new token's ancestors in the tree, and itself."""
        n_users, n_slots = self._parent_BR.shape
        sees = torch.zeros(
            (n_users, n_new, n_slots + 1), dtype=torch.bool, device=self._parent_BR.device
        )
        at_BT = torch.arange(n_before, n_slots, device=sees.device).expand(n_users, -1)
        # A last, spare column takes the marks of paths that are already at the prompt.
        parent = nn.functional.pad(self._parent_BR, (0, 1), value=NO_SLOT)
        parent = torch.where(parent == NO_SLOT, n_slots, parent)
        while bool((at_BT < n_slots).any()):
            sees.scatter_(2, at_BT[:, :, None], True)
            at_BT = parent.gather(1, at_BT)
        return sees[:, :, :n_slots]

    def _forward(
        self,
        token_BT: Tensor,
        position_BT: Tensor,
        sees_BTS: Tensor | None,
        key_position_BS: Tensor | None,
    ) -> Tensor:
        mask = None
        if sees_BTS is not None and key_position_BS is not None:
            distance_BTS = position_BT[:, :, None] - key_position_BS[:, None, :]
            mask = tree_masks(self._config, sees_BTS, distance_BTS, self._dtype)
        hidden_BTD: Tensor = self._body(
            input_ids=token_BT,
            attention_mask=mask,
            position_ids=position_BT,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_BTD


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts start with, the last token of the shortest prompt not counted."""
    ordered = sorted(map(tuple, prompts))
    low, high = ordered[0], ordered[-1]  # lexicographic: these two differ first
    shortest = min(map(len, prompts)) - 1
    for at in range(shortest):
        if low[at] != high[at]:
            return at
    return shortest
