"""What the commands do for the rank-pair task: pairs, their rows, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from llmrec_cli.config.data import PromptSection
from llmrec_cli.config.recipe import Recipe
from llmrec_cli.data.catalog import gather_entries
from llmrec_cli.data.negatives import count_disliked, fixed_negatives, owned_entries
from llmrec_cli.data.prompts import Question, RankTemplate, require_titles
from llmrec_cli.data.schema import (
    CHOSEN_FIRST,
    COUNT,
    DISLIKED,
    HISTORY,
    NEGATIVES,
    PREFERENCE,
    ROW,
    TARGET,
    TITLE,
    USER,
    USER_ID,
)
from llmrec_cli.decoding.ranker import score_micro_batch
from llmrec_cli.errors import DataError
from llmrec_cli.evaluation.auc import (
    CHOSEN_SCORE,
    OTHER,
    REJECTED_SCORE,
    SHOWN_FIRST,
    PairProtocol,
    build_pair_report,
    write_pairs,
)
from llmrec_cli.methods.contract import Negatives
from llmrec_cli.models.base import batches_by_length
from llmrec_cli.models.language_model import Policy, inference_mode
from llmrec_cli.models.tokenizer import Codec
from llmrec_cli.pipeline.compare import Compared, compare_experiment
from llmrec_cli.pipeline.loading import load_policy
from llmrec_cli.pipeline.provenance import require_all_inputs
from llmrec_cli.pipeline.requirements import TrainingStage
from llmrec_cli.pipeline.setup import (
    CatalogueContext,
    choose_rows,
    describe_evaluation,
    open_context,
)
from llmrec_cli.pipeline.zero_shot import open_base
from llmrec_cli.runs.record import Existing, count_opening, open_evaluation
from llmrec_cli.runs.run import Run
from llmrec_cli.tasks.base import Operations, ShownRows, StageRows
from llmrec_cli.tensors.trie import Trie
from llmrec_cli.training.collator import Collator
from llmrec_cli.training.dataset import Dataset
from llmrec_cli.training.distributed import Column, Ranks, measure_usage
from llmrec_cli.training.negatives import NegativeSampler, gather_users
from llmrec_cli.training.rows import AnyRow, IntArray, LeftOut, PairRow, Row, count_left_out
from llmrec_cli.utils.files import MANIFEST_FILE, hash_file, write_json
from llmrec_cli.utils.progress import Progress, advance_for_all

if TYPE_CHECKING:
    from llmrec_cli.pipeline.compare import Compared

# The rank-pair task: a prompt with a history and two candidates, two answers, and their scores.
#
# A training user's pairs are given by the source, or drawn: then the other candidates and the order
# in which a prompt shows the two are a pure function of (seed, row, epoch).


_ORDER = crc32(b"pair-order")
DrawsNegatives = Callable[[Row, int], tuple[tuple[int, ...], ...]]
"""(row, epoch) -> negatives of each of its targets, catalogue indices."""


@dataclass(frozen=True)
class UserPairs:
    """A user's pairs: what each prompt shows, as catalogue indices."""

    history: tuple[int, ...]  # oldest first
    liked: int
    others: tuple[int, ...]  # one prompt each
    liked_first: tuple[bool, ...]  # in the prompt, beside ``others``
    user: int = -1
    number: int = -1


class PairEncoder:
    """UserPairs to token ids.  Prompt and answers are tokenized apart; an answer ends in EOS.

    A prompt that is too long loses its oldest items whole; a title is never cut.

    Args:
        titles: of every catalogue item.
        max_tokens: longest prompt.
        context: longest prompt and answer together; None: no end.
    """

    def __init__(
        self,
        template: RankTemplate,
        codec: Codec,
        titles: Sequence[str],
        max_tokens: int,
        context: int | None = None,
    ) -> None:
        self.template = template.map_words(codec.mark_words)
        self.codec = codec
        self.titles = titles
        self.max_tokens = max_tokens
        self.context = context

    def encode(self, users: Sequence[UserPairs]) -> list[PairRow]:
        """One pair row per user, with a prompt and two answers for each of its pairs.

        Raises:
            DataError: a prompt without any history is longer than ``max_tokens``, or than the
                context without its answer.
        """
        answers = self._answers([text for pairs in users for text in self._texts(pairs)])
        longest = [max(len(a), len(b)) for a, b in zip(answers[::2], answers[1::2], strict=True)]
        questions = [question for pairs in users for question in self._questions(pairs)]
        prompts, texts = iter(self._prompts(questions, longest)), iter(answers)
        shown = iter([len(question.history) for question in questions])  # what had room
        return [
            PairRow(
                prompts=tuple(next(prompts) for _ in pairs.others),
                answers=tuple((next(texts), next(texts)) for _ in pairs.others),
                user=pairs.user,
                number=pairs.number,
                left_out=tuple(
                    missed for _ in pairs.others if (missed := len(pairs.history) - next(shown))
                ),
            )
            for pairs in users
        ]

    def _questions(self, pairs: UserPairs) -> list[Question]:
        history, liked = tuple(self.titles[i] for i in pairs.history), self.titles[pairs.liked]
        shown = zip(pairs.others, pairs.liked_first, strict=True)
        orders = ((liked, self.titles[o]) if f else (self.titles[o], liked) for o, f in shown)
        return [Question(history, first, second) for first, second in orders]

    def _texts(self, pairs: UserPairs) -> list[str]:
        liked, render = self.titles[pairs.liked], self.template.render_answer
        others = [self.titles[other] for other in pairs.others]
        return [text for other in others for text in (render(liked, other), render(other, liked))]

    def _answers(self, texts: Sequence[str]) -> list[IntArray]:
        encoded = self.codec.encode_words(texts)
        return [np.array([*ids, self.codec.eos], np.int32) for ids in encoded]

    def _prompts(self, questions: list[Question], longest: Sequence[int]) -> list[IntArray]:
        """Prompts, each with room for its ``longest`` answer behind it."""
        prompts: list[IntArray] = [np.empty(0, np.int32)] * len(questions)
        waiting = list(range(len(questions)))
        while waiting:
            texts = [self.template.render(questions[i]) for i in waiting]
            encoded = self.codec.encode_prompts(texts, whole=self.template.whole)
            too_long = []
            for i, ids in zip(waiting, encoded, strict=True):
                prompts[i] = np.asarray(ids, dtype=np.int32)
                if len(ids) > self._room(longest[i]):
                    questions[i] = self._shorter(questions[i], len(ids), longest[i])
                    too_long.append(i)
            waiting = too_long
        return prompts

    def _room(self, answer: int) -> int:
        return min(self.max_tokens, (self.context or self.max_tokens + answer) - answer)

    def _shorter(self, question: Question, tokens: int, answer: int) -> Question:
        if not question.history:
            limit = f"prompt.max_tokens = {self.max_tokens}"
            if self._room(answer) < self.max_tokens:
                limit = f"{self.context} positions of the backbone less {answer} for the answer"
            raise DataError(
                f"{limit}: without any history, the prompt for {question.first!r} and "
                f"{question.second!r} takes {tokens} tokens in this tokenizer"
            )
        return question._replace(history=question.history[1:])


def require_history_room(encoder: PairEncoder, name: str) -> None:
    """Refuse prompts that have no room for any item of a history.

    Args:
        name: of the template, for the message.

    Raises:
        DataError: not even the shortest title has room behind the template.
    """
    shortest = min(range(len(encoder.titles)), key=lambda item: len(encoder.titles[item]))
    told = UserPairs((shortest,), shortest, (shortest,), (True,))
    (row,) = encoder.encode([told])
    if row.left_out:
        title, tokens = encoder.titles[shortest], len(row.prompts[0])
        raise DataError(
            f'[prompt] template = "{name}", max_tokens = {encoder.max_tokens}: no history is left, '
            f"not even the shortest title ({title!r}) has room behind the template ({tokens} "
            "tokens): raise prompt.max_tokens"
        )


def parse_pairs(frame: pd.DataFrame) -> list[UserPairs]:
    """The pairs of a prepared split that has them, numbered by their place."""
    columns = [frame[name] for name in (HISTORY, TARGET, NEGATIVES, CHOSEN_FIRST, USER)]
    return [
        UserPairs(
            _items(history), int(liked), _items(others), tuple(map(bool, first)), int(user), at
        )
        for at, (history, liked, others, first, user) in enumerate(zip(*columns, strict=True))
    ]


def fix_pairs(frame: pd.DataFrame, negatives: Sequence[int], seed: int) -> list[UserPairs]:
    """One pair per row of a split without pairs, for validation and test: the same ones always.

    Args:
        negatives: of each row, from ``data.negatives.fixed_negatives``.
    """
    columns = zip(frame[HISTORY], frame[TARGET], frame[USER], frame[ROW], negatives, strict=True)
    return [
        UserPairs(
            _items(history),
            int(liked),
            (int(other),),
            toss_order(seed, int(row), epoch=0, k=1),
            int(user),
            at,
        )
        for at, (history, liked, user, row, other) in enumerate(columns)
    ]


def draw_pairs(row: Row, others: tuple[int, ...], seed: int, epoch: int) -> UserPairs:
    """A training row's pairs of an epoch, with the ``others`` that were drawn for its target."""
    first = toss_order(seed, row.number, epoch, len(others))
    return UserPairs(row.history, row.targets[0], others, first, row.user, row.number)


def toss_order(seed: int, row: int, epoch: int, k: int) -> tuple[bool, ...]:
    """Whether each of a row's ``k`` prompts shows the liked candidate first: fair coins."""
    key = np.array([seed % 2**64, _ORDER], np.uint64)
    counter = np.array([0, 0, row % 2**64, epoch % 2**64], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(k)
    return tuple((words >> np.uint64(63)).astype(bool).tolist())


@dataclass(frozen=True)
class DrawPairs:
    """Training rows of an update as pair rows: a pure function of rows and epoch.

    A row transform (``training.dataset``).
    """

    encoder: PairEncoder
    sampler: DrawsNegatives
    seed: int
    steps_per_epoch: int
    runs_ahead: bool = True

    def __call__(self, rows: Sequence[AnyRow], step: int) -> list[AnyRow]:
        epoch = step // self.steps_per_epoch
        drawn = [
            draw_pairs(row, self.sampler(row, epoch)[0], self.seed, epoch)
            for row in rows
            if isinstance(row, Row)
        ]
        return [*self.encoder.encode(drawn)]


def make_question_rows(frame: pd.DataFrame) -> list[Row]:
    """Training rows without a prompt, numbered by their place, for ``DrawnPairs`` to complete."""
    columns = zip(frame[HISTORY], frame[TARGET], frame[USER], strict=True)
    no_prompt = np.empty(0, np.int32)
    return [
        Row(no_prompt, (int(target),), _items(history), int(user), at)
        for at, (history, target, user) in enumerate(columns)
    ]


def require_pair_count(rows: Sequence[PairRow], k: int | None, names: Sequence[str]) -> None:
    """Check that every user has as many pairs as the method expects.

    Args:
        k: of the method; None: it takes what comes.
        names: user id of each row.

    Raises:
        DataError: names the first user of whom that is not so.
    """
    for row, name in zip(rows, names, strict=True):
        if k is not None and len(row.prompts) != k:
            raise DataError(
                f"user {name!r}: has {len(row.prompts)} pairs in the source, but the method takes "
                f"k = {k} rejected answers; set k to what the file has"
            )


def score_pairs(
    policy: Any,
    rows: Sequence[PairRow],
    trie: Trie,
    *,
    batch: int,
    ranks: Ranks,
    advance: Callable[[int], object] = lambda n: None,
) -> list[NDArray[np.float64]]:
    """``log pi`` of the chosen and the rejected answer of each pair, over the vocabulary.

    Args:
        policy: called like ``models.language_model.Policy``, with its ``head()``.
        trie: any; answers are texts.
        batch: pairs of a forward pass.
        ranks: the processes that share the pairs.

    Returns:
        For each row [pairs, 2], nats, summed over an answer's tokens.
    """
    collate = Collator(trie, cut_forced=False, rejected=True)
    pairs = [pair for row in rows for pair in _one_by_one(row)]

    def work(numbers: Sequence[int]) -> list[Column]:
        lengths = [len(pairs[number].prompts[0]) for number in numbers]
        score_Q2 = torch.empty((len(numbers), 2), dtype=torch.float64)
        for_all = advance_for_all(advance, len(numbers), len(pairs))
        for part in batches_by_length(lengths, batch):
            micro = collate([pairs[numbers[at]] for at in part]).to(ranks.device)
            score_Q2[part] = (
                score_micro_batch(policy, micro, legal=False).double().cpu().view(-1, 2)
            )
            for_all(len(part))
        return [(score_Q2, 0)]

    with inference_mode(policy):
        found: NDArray[np.float64] = ranks.share_work(len(pairs), work)[0].numpy()
    ends = np.cumsum([len(row.prompts) for row in rows])
    return np.split(found, ends[:-1])


def _one_by_one(row: PairRow) -> list[PairRow]:
    pairs = zip(row.prompts, row.answers, strict=True)
    return [replace(row, prompts=(prompt,), answers=(answers,)) for prompt, answers in pairs]


def _items(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


# The operations of the rank-pair task: pairs for training, for validation, and for display.
#
# given:  pairs of the source       -> the same pair rows in every epoch
# own:    (history, target) rows    -> one liked item against drawn ones, anew in every epoch


ONE_UNIFORM = Negatives(k=1, draw="uniform")


def _make_rows(stage: TrainingStage, aligns: bool) -> StageRows:
    """Pairs to train on and to validate with.

    Where the method asks for no negatives, the other candidate of every row is drawn uniformly.

    Args:
        aligns: the stage reads the source's pairs to align on, where it has any.

    Raises:
        DataError: a user has more or fewer pairs than the method takes, or too few items to draw.
    """
    context, section, wanted = stage.context, stage.section, stage.needs.negatives
    prepared, encoder = context.prepared, make_pair_encoder(context, context.recipe.prompt)
    frame = prepared.split(PREFERENCE if aligns and PREFERENCE in prepared.splits else "train")
    valid = choose_rows(prepared.split("valid"), section.validate_rows)
    asked = choose_pairs(context, valid, "valid")
    encoded = encoder.encode(asked)
    valid_rows, notes = _trim_to_fewest(encoded)
    left_out = {"valid": count_pairs_left_out(asked, encoded)}

    def rank_valid(policy: Any, progress: Progress) -> Mapping[str, float]:
        n_pairs = sum(len(row.prompts) for row in valid_rows)
        with progress.track("validation", n_pairs, unit="pairs") as advance:
            scores = score_pairs(
                policy,
                valid_rows,
                context.trie,
                batch=section.batch,
                ranks=context.ranks,
                advance=advance,
            )
        return {"auc_paired": auc_paired(valid[USER_ID].tolist(), scores)}

    if NEGATIVES in frame.columns:
        training = parse_pairs(frame)
        encoded_training = encoder.encode(training)
        require_pair_count(encoded_training, wanted.k if wanted else None, frame[USER_ID].tolist())
        left_out["train"] = count_pairs_left_out(training, encoded_training)
        return StageRows(encoded_training, valid_rows, rank_valid, (), left_out, notes)
    sampler = _make_sampler(context, frame, wanted or ONE_UNIFORM)
    asked_rows = make_question_rows(frame)
    own = sampler.require(asked_rows)
    notes += sampler.describe_dropped(asked_rows, own)
    steps_per_epoch = -(-len(own) // section.batch)
    draw = DrawPairs(encoder, sampler, context.recipe.seed, steps_per_epoch)
    first = [row for row in draw(own, 0) if isinstance(row, PairRow)]  # pairs of the first epoch
    whole = (len(row.history) for row in own for _ in range((wanted or ONE_UNIFORM).k))
    left_out["train"] = count_left_out(whole, (n for row in first for n in row.left_out))
    return StageRows(own, valid_rows, rank_valid, (draw,), left_out, notes)


def _check_rows(stage: TrainingStage, aligns: bool) -> None:
    """What ``make_rows`` refuses."""
    _make_rows(stage, aligns)


def _show_rows(stage: TrainingStage, found: StageRows) -> ShownRows:
    """The first pair: its prompt, and both answers."""
    first = Dataset(found.rows, found.transforms or ()).complete_rows(found.rows[:1], 0)
    (row,) = (row for row in first if isinstance(row, PairRow))
    words = stage.context.codec.tokenizer.convert_ids_to_tokens
    chosen, rejected = row.answers[0]
    parts = {"prompt": row.prompts[0], "chosen": chosen, "rejected": rejected}
    lines = (f"{name}: {' '.join(words(ids.tolist()))}" for name, ids in parts.items())
    return ShownRows(len(found.rows), tuple(lines))


def check_evaluation(context: CatalogueContext) -> None:
    """Refuse a test split without rows, or whose prompts cannot be made."""
    frame = context.prepared.split("test")
    if len(frame) == 0:
        raise DataError(f"{context.prepared.folder}: no test rows")
    make_pair_encoder(context, context.recipe.prompt_for_eval).encode(
        choose_pairs(context, frame, "test")
    )


def _encode_answers(
    context: CatalogueContext, frame: pd.DataFrame, split: str
) -> list[tuple[IntArray, IntArray]]:
    """The prompt of every row's first pair, and its chosen answer."""
    encoder = make_pair_encoder(context, context.recipe.prompt_for_eval)
    rows = encoder.encode(choose_pairs(context, frame, split))
    return [(row.prompts[0], row.answers[0][0]) for row in rows]


def make_example(context: CatalogueContext) -> str:
    """A prompt about the most popular items, and both answers."""
    popular = context.prepared.items.sort_values(COUNT, ascending=False, kind="stable")
    one, two, liked, other = (popular[TITLE].dropna().tolist() * 4)[:4]
    template = context.open_rank_template(context.recipe.prompt_for_eval)
    prompt = template.render(Question((one, two), liked, other))
    answers = (template.render_answer(*pair) for pair in ((liked, other), (other, liked)))
    return "\n\n".join([prompt, *answers])


def make_pair_encoder(context: CatalogueContext, prompt: PromptSection) -> PairEncoder:
    """Encodes pairs of the context's catalogue.

    Raises:
        RecipeError: the template has no wording for the task.
        DataError: an item has no title to be shown, or no item of a history has room.
    """
    template = context.open_rank_template(prompt)
    titles = require_titles(prompt.template, template.render_history, context.prepared.items)
    encoder = PairEncoder(template, context.codec, titles, prompt.max_tokens, context.room.context)
    require_history_room(encoder, prompt.template)
    return encoder


def choose_pairs(context: CatalogueContext, frame: pd.DataFrame, split: str) -> list[UserPairs]:
    """The pairs of a validation or test split: the source's, or one fixed one per row."""
    if NEGATIVES in frame.columns:
        return parse_pairs(frame)
    entry_I = context.leaf_of_item.astype(np.int64)
    owned = owned_entries(
        [context.prepared.split(name) for name in context.prepared.splits], entry_I
    )
    seed, stream = context.recipe.seed, f"{split}-pairs"
    others = fixed_negatives(frame, owned, entry_I, seed=seed, stream=stream)
    return fix_pairs(frame, others, seed)


def describe_candidates(frame: pd.DataFrame, asked: Sequence[UserPairs]) -> str:
    """Where the other candidates of ``choose_pairs`` come from, in words and counts."""
    if NEGATIVES in frame.columns:
        return "as given"
    if DISLIKED not in frame.columns:
        return "one fixed uniform negative per row"
    disliked = count_disliked(frame, [user.others[0] for user in asked])
    return f"one fixed negative per row: {disliked:,} disliked, {len(asked) - disliked:,} uniform"


def auc_paired(users: Sequence[str], scores: Sequence[np.ndarray[Any, Any]]) -> float:
    """Share of users whose chosen answer scores higher, ties 1/2; the mean over a user's pairs."""
    above = [((s[:, 0] > s[:, 1]) + 0.5 * (s[:, 0] == s[:, 1])) for s in scores]
    names = np.repeat(users, [len(values) for values in above])
    return float(pd.Series(np.concatenate(above)).groupby(names).mean().mean())


def _make_sampler(
    context: CatalogueContext, frame: pd.DataFrame, wanted: Negatives
) -> NegativeSampler:
    leaves = gather_entries(context.prepared.items, context.leaf_of_item)
    users = gather_users(frame, leaves, wanted.below)
    return NegativeSampler(wanted, leaves, users, context.recipe.seed)


def count_pairs_left_out(asked: Sequence[UserPairs], rows: Sequence[PairRow]) -> LeftOut:
    """How much of their histories the prompts of these pairs leave out."""
    whole = (len(pairs.history) for pairs in asked for _ in pairs.others)
    return count_left_out(whole, (n for row in rows for n in row.left_out))


def _trim_to_fewest(rows: Sequence[PairRow]) -> tuple[list[PairRow], tuple[str, ...]]:
    """Every user's first k pairs, k what the user with the fewest has: a batch is a rectangle.

    Returns:
        The rows, and what to say of the pairs that are left out.
    """
    k = min((len(row.prompts) for row in rows), default=0)
    cut = [replace(row, prompts=row.prompts[:k], answers=row.answers[:k]) for row in rows]
    pairs, lost = sum(len(row.prompts) for row in rows), sum(len(row.prompts) - k for row in rows)
    if not lost:
        return cut, ()
    return cut, (
        f"validation: left out {lost:,} of {pairs:,} pairs: every user counts with {k}, as many as "
        "the user with the fewest has",
    )


def evaluate_pairs(
    recipe: Recipe,
    runs: Sequence[Run],
    split: str,
    existing: Existing,
    progress: Progress,
) -> Compared:
    """Score the pairs of a split with every run, and put all evaluated runs side by side.

    Args:
        runs: finished, and free to be evaluated; Pop prefers what occurs more often in the
            training rows.
        existing: what to do with a report that another process has written meanwhile.

    Raises:
        DataError, ArtefactError: nothing prepared, or what lies there does not fit the recipe.
    """
    context = open_context(recipe, progress, evaluation=True)
    require_all_inputs(recipe, context.codec.tokenizer, runs)
    frame = choose_rows(context.prepared.split(split), recipe.eval.rows)
    asked = choose_pairs(context, frame, split)
    source = describe_candidates(frame, asked)
    encoder = make_pair_encoder(context, recipe.prompt_for_eval)
    rows = encoder.encode(asked)
    histories = count_pairs_left_out(asked, rows)
    if line := histories.line(f"prompt.max_tokens = {encoder.max_tokens}"):
        progress.say(f"{split}: {line}")

    def evaluate_run(run: Run) -> None:
        with measure_usage(context.ranks.device) as usage:
            if run.is_pop:
                scores = _by_popularity(context, asked)
            else:
                scores = _by_model(context, rows, run, progress)
        pairs, cost = _table(frame, asked, scores), usage.to_record(context.ranks)
        protocol = _protocol(context, source, run, split)
        context.ranks.first(partial(_write, context, pairs, protocol, cost, histories, run))

    for run in runs:
        with open_evaluation(run, split, context.ranks, existing) as is_wanted:
            if is_wanted:
                evaluate_run(run)
    return compare_experiment(recipe, split)


def _write(
    context: CatalogueContext,
    pairs: pd.DataFrame,
    protocol: PairProtocol,
    cost: Mapping[str, Any],
    histories: LeftOut,
    run: Run,
) -> None:
    recipe = context.recipe
    run.folder.mkdir(parents=True, exist_ok=True)
    write_pairs(run.pairs_file(protocol.split), pairs)
    report = build_pair_report(
        pairs,
        protocol,
        _trained_users(context),
        resamples=recipe.eval.resamples,
        seed=recipe.seed,
    )
    report["cost"] = dict(cost)
    report["histories"] = histories.facts()
    write_json(run.report_file(protocol.split), report)
    count_opening(run, protocol.split, describe_evaluation(recipe, run))


def _by_model(
    context: CatalogueContext, rows: Sequence[PairRow], run: Run, progress: Progress
) -> np.ndarray[Any, Any]:
    recipe = context.recipe
    if run.is_untouched:
        model = open_base(context, run, progress, packs=True)
    else:
        model = load_policy(context, run, train=False)
    policy = Policy(model).eval()
    n_pairs = sum(len(row.prompts) for row in rows)
    with progress.track(f"eval {run}", n_pairs, unit="pairs") as advance:
        scores = score_pairs(
            policy,
            rows,
            context.trie,
            batch=recipe.eval.batch,
            ranks=context.ranks,
            advance=advance,
        )
    return np.concatenate(scores)


def _by_popularity(context: CatalogueContext, asked: Sequence[UserPairs]) -> np.ndarray[Any, Any]:
    count_I = context.prepared.items[COUNT].to_numpy(np.float64)
    return np.array([[count_I[u.liked], count_I[other]] for u in asked for other in u.others])


def _table(
    frame: pd.DataFrame, asked: Sequence[UserPairs], scores: np.ndarray[Any, Any]
) -> pd.DataFrame:
    """One row per pair, as ``evaluation.auc.SCHEMA`` has it."""
    times = [len(user.others) for user in asked]
    table = frame[[ROW, USER_ID, TARGET]].iloc[np.repeat(np.arange(len(frame)), times)]
    columns: dict[str, Any] = {
        OTHER: [other for user in asked for other in user.others],
        SHOWN_FIRST: [first for user in asked for first in user.liked_first],
        CHOSEN_SCORE: scores[:, 0],
        REJECTED_SCORE: scores[:, 1],
    }
    return table.assign(**columns).reset_index(drop=True)


def _trained_users(context: CatalogueContext) -> frozenset[str]:
    """Users with rows that the runs were trained on; none of another domain's."""
    if context.recipe.eval.data is not None:
        return frozenset()
    splits = [name for name in ("train", PREFERENCE) if name in context.prepared.splits]
    return frozenset(user for name in splits for user in context.prepared.split(name)[USER_ID])


def _protocol(context: CatalogueContext, source: str, run: Run, split: str) -> PairProtocol:
    hashes = {"data": hash_file(context.prepared.folder / MANIFEST_FILE)}
    if run.manifest_file.is_file():
        hashes["run"] = hash_file(run.manifest_file)
    return PairProtocol(
        task=context.recipe.task.name,
        split=split,
        candidates=source,
        template=context.recipe.prompt_for_eval.describe(),
        hashes=hashes,
    )


OPERATIONS = Operations(
    make_rows=_make_rows,
    check_rows=_check_rows,
    show_rows=_show_rows,
    describe_left_out=lambda context, frame: None,  # counted when pairs are made, by every stage
    check_evaluation=check_evaluation,
    evaluate=evaluate_pairs,
    encode_answers=_encode_answers,
    make_example=make_example,
)
