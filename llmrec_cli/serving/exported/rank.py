"""Rank the catalogue in this folder with its model. It needs only torch and transformers.

    python rank.py "a title" "an item id"      an adapter also needs peft, and --base MODEL

An item's probability is that of its tokens after the prompt of a history.  The search is exact:
prefixes are read best first, until none that is left could reach the list.
"""

from __future__ import annotations

import argparse
import copy
import heapq
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

AT_ONCE = 32  # prefixes read together
MARKED = re.compile("\x02(.*?)\x03")  # a special token in the words of a prompt


@dataclass
class Catalogue:
    """Items, what they are asked for with, and how."""

    items: list[dict[str, Any]]  # item_id, title, tokens (the last one is EOS); as prompts show it:
    #                              text (of a title), or fields (token ids behind a semantic ID)
    prompt: dict[str, Any]
    decode: dict[str, Any]
    trie: dict[int, Any]  # token -> what may follow; after EOS, numbers of items
    words: Words | None = None  # of the tokenizer that was asked with

    @classmethod
    def read(cls, folder: str | Path) -> Catalogue:
        """``catalogue.jsonl`` and ``recommender.json`` of a folder."""
        with Path(folder, "catalogue.jsonl").open(encoding="utf-8") as lines:
            items = [json.loads(line) for line in lines]
        settings = json.loads(Path(folder, "recommender.json").read_text(encoding="utf-8"))
        trie: dict[int, Any] = {}
        for number, item in enumerate(items):
            node = trie
            for token in item["tokens"][:-1]:
                node = node.setdefault(token, {})
            node.setdefault(item["tokens"][-1], []).append(number)
        return cls(items, settings["prompt"], settings["decode"], trie)

    def find(self, name: str) -> dict[str, Any]:
        """The item of an id, else of a title."""
        for key in ("item_id", "title"):
            for item in self.items:
                if item[key] == name:
                    return item
        raise KeyError(f"no item has the id or the title {name!r}")

    def prompt_ids(self, tokenizer: Any, history: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a prompt; one that is too long loses its oldest items."""
        if self.words is None or self.words.tokenizer is not tokenizer:
            self.words = Words.of(tokenizer, self)
        told = list(history[-self.prompt["history"] :])
        ids = self._ids(self.words, told)
        while len(ids) > self.prompt["max_tokens"] and told:
            told = told[1:]
            ids = self._ids(self.words, told)
        return ids

    def _ids(self, words: Words, told: list[dict[str, Any]]) -> list[int]:
        if "start" in self.prompt:  # items only, one after the other
            return [self.prompt["start"], *(token for item in told for token in item["tokens"])]
        if not told:
            return words.encode(self.prompt["empty"], first=True)
        if "text" in told[0]:
            text = self.prompt["separator"].join(item["text"] for item in told)
            return words.encode(self.prompt["head"] + text + self.prompt["tail"], first=True)
        ids = words.encode(self.prompt["head"], first=True)
        for place, item in enumerate(told):  # semantic IDs, between words encoded on their own
            ids += words.encode(self.prompt["separator"]) if place else []
            ids += [*item["tokens"][:-1], *item.get("fields", [])]
        return ids + words.encode(self.prompt["tail"])


@dataclass
class Words:
    """A tokenizer for prompts: special tokens are spelt out, but for those that are marked."""

    tokenizer: Any  # the one that is meant
    marking: Any  # a copy, in which each mark is a token
    number_of: dict[int, int]  # of a mark -> of its token
    whole: bool  # prompts have all that their sequences begin with

    @classmethod
    def of(cls, tokenizer: Any, catalogue: Catalogue) -> Words:
        """With the marks that occur in the words of ``catalogue``."""
        from tokenizers import AddedToken

        texts = [value for value in catalogue.prompt.values() if isinstance(value, str)]
        texts += [item.get("text", "") for item in catalogue.items]
        meant = sorted({token for text in texts for token in MARKED.findall(text)})
        marking = copy.deepcopy(tokenizer) if meant else tokenizer
        number_of = {}
        for token in meant:
            number, mark = tokenizer.convert_tokens_to_ids(token), f"\x02{token}\x03"
            known = tokenizer.added_tokens_decoder[number]
            strips = {"lstrip": known.lstrip, "rstrip": known.rstrip}
            marking.add_tokens(AddedToken(mark, normalized=False, special=False, **strips))
            number_of[marking.convert_tokens_to_ids(mark)] = number
        return cls(tokenizer, marking, number_of, bool(catalogue.prompt.get("whole")))

    def encode(self, text: str, first: bool = False) -> list[int]:
        """Token ids of a text, behind one BOS where it comes first, and without EOS."""
        ids = self._read(text, first and not self.whole)
        if not first or self.whole:
            return ids
        plain, around = self._read("a", False), self._read("a", True)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        longer = len(around) > len(plain)  # the tokenizer adds tokens of its own
        if longer and around[0] == bos and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids[:-1] if longer and around[-1] == eos and ids[-1:] == [eos] else ids

    def _read(self, text: str, added: bool) -> list[int]:
        found = self.marking(text, split_special_tokens=True, add_special_tokens=added)
        return [self.number_of.get(token, token) for token in found["input_ids"]]


def rank(
    model: Any,
    tokenizer: Any,
    catalogue: Catalogue,
    history: Sequence[str],
    k: int = 10,
    exclude_history: bool = True,
) -> list[tuple[float, dict[str, Any]]]:
    """The ``k`` best items as (probability, item), best first; equal items count as one.

    Args:
        history: item ids or titles, oldest first.
    """
    told = [catalogue.find(name) for name in history]
    prompt = catalogue.prompt_ids(tokenizer, told)
    gone = {tuple(item["tokens"]) for item in told} if exclude_history else set()
    penalty = catalogue.decode["length_penalty"]
    found: list[tuple[float, list[int], int]] = []  # (-score, tokens, item), in order of the list
    waiting: list[tuple[float, list[int], dict[int, Any]]] = [(0.0, [], catalogue.trie)]
    while waiting and (penalty or len(found) < k or waiting[0][0] < found[k - 1][0]):
        read = [heapq.heappop(waiting) for _ in range(min(AT_ONCE, len(waiting)))]
        logs = next_logs(model, prompt, [tokens for _, tokens, _ in read])
        for (cost, tokens, node), log_V in zip(read, logs, strict=True):
            legal = list(node)
            for token, log in zip(legal, normalise(log_V, legal, catalogue.decode), strict=True):
                path, below = chain([*tokens, token], node[token], catalogue.decode)
                if isinstance(below, dict):
                    heapq.heappush(waiting, (cost - log, path, below))
                elif tuple(path) not in gone:
                    found.append(((cost - log) / len(path) ** penalty, path, below[0]))
        found.sort()
    return [
        (probability(cost * len(tokens) ** penalty), catalogue.items[number])
        for cost, tokens, number in found[:k]
    ]


def chain(path: list[int], below: Any, decode: dict[str, Any]) -> tuple[list[int], Any]:
    """The path, followed where it is alone: among legal tokens, the only one is certain."""
    while decode["mask"] == "before" and isinstance(below, dict) and len(below) == 1:
        [(token, below)] = below.items()
        path = [*path, token]
    return path, below


def normalise(logits_V: torch.Tensor, legal: list[int], decode: dict[str, Any]) -> list[float]:
    """Log-probabilities of the legal tokens, among themselves or among all."""
    logs_V = logits_V.float()
    if decode["mask"] == "after":
        kept: list[float] = torch.log_softmax(logs_V, 0)[legal].tolist()
        return kept
    kept = torch.log_softmax(logs_V[legal] / decode["temperature"], 0).tolist()
    return kept


@torch.no_grad()
def next_logs(model: Any, prompt: list[int], prefixes: list[list[int]]) -> torch.Tensor:
    """Logits of the token after the prompt and each prefix: [prefixes, vocabulary]."""
    width = max(map(len, prefixes))
    rows = [[*prompt, *tokens, *[0] * (width - len(tokens))] for tokens in prefixes]
    logits = model(input_ids=torch.tensor(rows, device=model.device)).logits
    last = [len(prompt) + len(tokens) - 1 for tokens in prefixes]  # what is behind it is not seen
    picked: torch.Tensor = logits[torch.arange(len(rows)), last]
    return picked


def probability(cost: float) -> float:
    """From minus a log-probability."""
    return float(torch.tensor(-cost, dtype=torch.float64).exp())


def load(folder: str | Path, base: str | None = None) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; an adapter lies on ``base``, or on what it names."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    safely = {"trust_remote_code": False, "use_safetensors": True}  # weights, and no code
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    adapter = Path(folder, "adapter_config.json")
    if not adapter.is_file():
        return AutoModelForCausalLM.from_pretrained(folder, **safely).eval(), tokenizer
    from peft import PeftModel

    settings = json.loads(adapter.read_text(encoding="utf-8"))
    named = base or settings["base_model_name_or_path"]
    dtype = json.loads(Path(folder, "recommender.json").read_text(encoding="utf-8"))["dtype"]
    model = AutoModelForCausalLM.from_pretrained(
        named, revision=None if base else settings["revision"], dtype=dtype, **safely
    )
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # the adapter brings the new tokens' rows
    return PeftModel.from_pretrained(model, folder).eval(), tokenizer


def main() -> None:
    """Print a list."""
    parser = argparse.ArgumentParser(description="Rank the catalogue beside this file.")
    parser.add_argument("history", nargs="*", help="item ids or titles, oldest first")
    parser.add_argument("-k", type=int, default=10, help="length of the list")
    parser.add_argument("--base", help="model below an adapter: a folder, or an id of the hub")
    asked = parser.parse_args()
    here = Path(__file__).resolve().parent
    catalogue = Catalogue.read(here)
    try:
        history = [catalogue.find(name)["item_id"] for name in asked.history]
    except KeyError as error:
        parser.error(error.args[0])
    model, tokenizer = load(here, asked.base)
    found = rank(model, tokenizer, catalogue, history, asked.k)
    if history and "unknown" in catalogue.prompt:
        sys.stderr.write(explain_unknown(catalogue) + "\n")
    for chance, item in found:
        sys.stdout.write(f"{chance:.4f}  {item['item_id']!a}  {item['title']!a}\n")
    if len(found) < asked.k:
        sys.stderr.write(explain_short_list(catalogue, len(found), asked.k) + "\n")


def explain_unknown(catalogue: Catalogue) -> str:
    """What prompts showed of a user's interactions in training, and here do not."""
    unknown = " and ".join(f"{{{name}}}" for name in catalogue.prompt["unknown"])
    return f"the prompt shows no {unknown}, as it did in training: only the items are known here"


def explain_short_list(catalogue: Catalogue, found: int, k: int) -> str:
    """Why a list has fewer than ``k`` entries."""
    size = len({tuple(item["tokens"]) for item in catalogue.items})
    left_out = size - found
    text = f"{found:,} of {k:,} entries: the catalogue has {size:,}"
    return text + (f", and {left_out:,} of the history are left out" if left_out else "")


if __name__ == "__main__":
    main()
