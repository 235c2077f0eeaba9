"""Pop: recommend the most popular catalogue entries to everyone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrec_cli.methods.contract import Options
from llmrec_cli.models.baselines.contract import Arrays, Baseline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmrec_cli.data.catalog import CatalogueEntries
    from llmrec_cli.models.base import Advance, Histories, RankedLists, ScoredBy


class PopOptions(Options):
    """Pop has no options."""


@dataclass(frozen=True)
class PopRanker:
    """Every entry by its training interactions, the same list for everyone.

    A list is the beginning of ``CatalogueEntries.by_popularity_L``: of equal counts, the lower item
    comes first.
    """

    leaves: CatalogueEntries

    @property
    def scored_by(self) -> ScoredBy:
        """Training interactions of an entry's items together."""
        from llmrec_cli.models.base import ScoredBy

        return ScoredBy.COUNT

    def rank(
        self,
        histories: Histories,
        k: int,
        exclude: Histories = (),
        advance: Advance = lambda n: None,
    ) -> RankedLists:
        """As ``Ranker``; nothing is sorted."""
        import numpy as np

        from llmrec_cli.models.base import cut_lists, list_lengths

        length_B = list_lengths(len(histories), k, exclude, self.leaves.n_leaves)
        leaf_K = self.leaves.by_popularity_L[: int(length_B.max(initial=0))]
        shape = (len(histories), len(leaf_K))
        leaf_BK = np.broadcast_to(leaf_K, shape)
        score_BK = np.broadcast_to(self.leaves.count_L[leaf_K], shape)
        advance(len(histories))
        return cut_lists(leaf_BK, score_BK, length_B)

    def score(
        self,
        histories: Histories,
        items: NDArray[np.int64],
        advance: Advance = lambda n: None,
    ) -> NDArray[np.float64]:
        """As ``Ranker``."""
        import numpy as np

        advance(len(histories))
        return self.leaves.count_L[self.leaves.leaf_of_item_I[items]].astype(np.float64)

    def score_all(self, histories: Histories, /) -> NDArray[np.int64]:
        """As ``Ranker``."""
        import numpy as np

        return np.broadcast_to(self.leaves.count_L, (len(histories), self.leaves.n_leaves))


def _open(options: PopOptions, arrays: Arrays, leaves: CatalogueEntries) -> PopRanker:
    return PopRanker(leaves)


BASELINE = Baseline(
    summary="every entry by its training interactions", options=PopOptions, load=_open
)
