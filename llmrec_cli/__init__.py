"""llmrec: turn a language model into a recommender, from one recipe file.

The commands of ``llmrec`` as functions. They return values, print nothing, and raise the
exceptions of ``llmrec_cli.errors``. ``import llmrec_cli`` imports nothing heavy; torch comes with
the first function that needs it.

Example:
    from llmrec_cli import Recommender, compare, evaluate, load_recipe, prepare, train

    tiny = ["model.scratch.hidden=32", "train.max_steps=10", "eval.rows=100"]  # seconds on a CPU
    recipe = load_recipe("quickstart", ["name=tiny", *tiny])

    data = prepare(recipe)
    print(len(data.items), "items,", len(data.split("test")), "test rows")
    for note in data.notes:  # what was left out, and what the audit found
        print(note)

    runs = ["baseline-itemknn", "sft", "align-msl"]
    for name in runs:
        trained = train(recipe, name, progress=print)
        print(trained.folder, trained.outcome.get("best_score"))
    print(trained.metrics[["step", "loss"]].tail())

    board = evaluate(recipe, runs)
    print(board.to_frame("ndcg@10")[["entry", "mean", "low", "high"]])
    board = compare([recipe.folder], baseline="baseline-itemknn", metric="hr@10")
    print(board.to_frame("hr@10")[["entry", "difference_mean", "p_holm"]], board.notes)

    recommender = Recommender.load(recipe.folder / "align-msl")
    for item in recommender.recommend(data.items["title"].head(3).tolist(), k=5):
        print(item.rank, item.title, item.probability)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmrec_cli.config.recipe import Recipe
    from llmrec_cli.data.prepared import Prepared
    from llmrec_cli.evaluation.comparison import Comparison
    from llmrec_cli.pipeline.api import TrainedRun, compare, evaluate, load_recipe, prepare, train
    from llmrec_cli.serving.recommender import Recommendations, Recommender

__version__ = "0.2.0"
__all__ = [
    "Comparison",
    "Prepared",
    "Recipe",
    "Recommendations",
    "Recommender",
    "TrainedRun",
    "__version__",
    "compare",
    "evaluate",
    "load_recipe",
    "prepare",
    "train",
]
_HOMES: Final = {
    "Comparison": "evaluation.comparison",
    "Prepared": "data.prepared",
    "Recipe": "config.recipe",
    "Recommendations": "serving.recommender",
    "Recommender": "serving.recommender",
    "TrainedRun": "pipeline.api",
    "compare": "pipeline.api",
    "evaluate": "pipeline.api",
    "load_recipe": "pipeline.api",
    "prepare": "pipeline.api",
    "train": "pipeline.api",
}
"""Where each name lives: its module is imported on first use, as ``Recommender`` needs torch."""

if not TYPE_CHECKING:  # a checker knows the names from above, and no others

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return __all__
