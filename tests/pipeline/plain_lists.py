"""What a run's tokens and lists must be, by the ``tokenizers`` library and plain forwards alone."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llmrec_cli.data.prompts import load_template

Ids = list[int]


class Plain:
    """Answers and prompts as the saved tokenizer's file gives them, nothing else in between."""

    def __init__(self, home: Path, said: dict[str, Any], longest: int = 512) -> None:
        self.home, self.longest = home, longest
        self.tokenizer = Tokenizer.from_file(str(home / "base/tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # text is text
        eos = self.tokenizer.token_to_id(said["eos_token"])
        assert eos is not None
        self.eos = eos
        self.bos = self.tokenizer.token_to_id(said.get("bos_token", ""))
        self.titles = pd.read_parquet(home / "runs/own/prepared/items.parquet")["title"].tolist()
        quoted = (f'"{title}"' for title in self.titles)
        self.answers = [[*self._ids(text, special=False), self.eos] for text in quoted]

    def _ids(self, text: str, *, special: bool) -> Ids:
        ids: Ids = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def prompt(self, history: list[int]) -> Ids:
        """Of the last items that fit into ``longest`` tokens."""
        text = load_template("items", Path).render([self.titles[item] for item in history])
        ids = self._ids(text, special=True)
        ids = ids[:-1] if ids[-1] == self.eos else ids
        return ids if len(ids) <= self.longest else self.prompt(history[1:])

    def rows(self, split: str) -> list[tuple[list[int], int]]:
        """History and target of every row of a prepared split."""
        frame = pd.read_parquet(self.home / f"runs/own/prepared/{split}.parquet")
        return list(zip(map(list, frame["history"]), frame["target"], strict=True))

    def check_catalogue(self) -> None:
        """No answer begins another one, and none holds BOS or EOS before its end."""
        starts = {tuple(answer[:n]) for answer in self.answers for n in range(len(answer))}
        assert not starts & {tuple(answer) for answer in self.answers}
        inside = {token for answer in self.answers for token in answer[:-1]}
        assert not inside & {self.eos, self.bos}

    def check_fed(self, rows: list[Ids]) -> None:
        """Every row that was trained on is a prompt and its answer, and BOS begins it at most."""
        own = {
            tuple([*self.prompt(history), *self.answers[target][:-1]])
            for history, target in self.rows("train") + self.rows("valid")
        }
        assert not any(self.bos in row[1:] for row in own)
        assert len(rows) >= 8
        for row in rows:
            assert any(tuple(row[:n]) in own and not any(row[n:]) for n in range(len(row) + 1))

    def check_lists(self) -> None:
        """The lists of the SFT run are the true ones: every entry scored by itself."""
        run = self.home / "runs/own/sft"
        model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
        lists, test = pd.read_parquet(run / "predictions.parquet"), self.rows("test")
        entries = sorted({tuple(answer) for answer in self.answers})
        answers = [[*entry] for entry in entries]
        assert len(lists) == 8
        for row, ranked, scores in zip(lists["row"], lists["ranked"], lists["scores"], strict=True):
            found = slow_scores(model, self.prompt(test[row][0]), answers)
            of_entry = dict(zip(entries, found, strict=True))
            best = sorted(found, reverse=True)[: len(scores)]
            assert scores.tolist() == pytest.approx(best, abs=1e-4)
            own = [of_entry[tuple(self.answers[item])] for item in ranked]
            assert scores.tolist() == pytest.approx(own, abs=1e-4)
            assert best[0] - best[-1] > 0.5, "the list is not one of ties"


def slow_scores(model: Any, prompt: Ids, answers: list[Ids]) -> list[float]:
    """Log-probability of every answer, each token among those that continue some answer."""
    legal: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for tokens in answers:
        for place, token in enumerate(tokens):
            legal[tuple(tokens[:place])].add(token)
    width = max(map(len, answers))
    rows = torch.tensor([prompt + tokens + [0] * (width - len(tokens)) for tokens in answers])
    with torch.no_grad():
        logits = model(rows).logits[:, len(prompt) - 1 :].double()
    scores = []
    for row, tokens in zip(logits, answers, strict=True):
        score = 0.0
        for place, token in enumerate(tokens):
            among = sorted(legal[tuple(tokens[:place])])
            score += float(row[place, among].log_softmax(0)[among.index(token)])
        scores.append(score)
    return scores
