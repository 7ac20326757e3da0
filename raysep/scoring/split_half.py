"""The same score on many random halves of the images: where intervals and the test of the best layer come from.

N images, K clusters, C classes, S splits. Each split deals the images of every class into two halves, a
and b; a score is computed on both, so that there are 2 S half-samples. Why halves and not a bootstrap with
replacement: a drawn twin of an image would be its own nearest neighbour and would end up in its cluster,
which makes every layer look better than it is. In a half, neighbours are simply the first ones of the
full list that are in it, so one neighbour search serves all halves exactly.

Halves of one split have no image in common, so they are independent samples: what is true of one can be
checked on the other (`report/selection.py`), and how they differ tells how sure the full sample's score is
(`certainty.py`). Two things are shared all the same, for their cost: the fits of the linear probe, which are
those on all images, and the directions that k-means of wide embeddings is reduced to.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.config.names import LEAST_HALVED
from raysep.scoring.few_shot import NearestMeans
from raysep.scoring.kmeans import kmeans_on_subsets

Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Positions = NDArray[np.integer[Any]]
# (S, 2): the score on half a and on half b of each split.
HalfValues = NDArray[np.float64]

# k-means starts of each half, and draws of labelled images within it.
STARTS, DRAWS_PER_HALF = 3, 4
# Images whose neighbours are counted at once.
BLOCK = 1024
# Components of the features that halves are clustered in, or twice as many as clusters; k-means hardly sees the others.
COMPONENTS, MOST_COMPONENTS = 32, 64


def can_be_halved(sizes: NDArray[np.integer[Any]]) -> bool:
    """Whether halves say how sure a score is: two classes of `LEAST_HALVED` images or more, and so many on average.

    Args:
        sizes: (K,) images of each class.
    """
    return bool((sizes >= LEAST_HALVED).sum() > 1 and sizes.mean() >= LEAST_HALVED)


def draw_halves(y: Labels, resamples: int, seed: int) -> NDArray[np.bool_]:
    """Deal the images of each class into two halves, many times.

    Args:
        y: (N,) labels. The same labels in the same order get the same halves, so that layers,
            checkpoints and models are compared on the same images.
        resamples: 2 S, the number of halves.
        seed: of the draws.

    Returns:
        (N, S), True for half a. Classes of odd size give the odd image to either half in turn.
    """
    rng = np.random.default_rng(seed)
    splits = resamples // 2
    in_a = np.zeros((len(y), splits), dtype=bool)
    for position, label in enumerate(np.unique(y)):
        members = np.flatnonzero(y == label)
        order = rng.random((splits, len(members))).argsort(axis=1)
        for split in range(splits):
            half = (len(members) + (split + position) % 2) // 2
            in_a[members[order[split, :half]], split] = True
    return in_a


def mean_on_halves(per_image: Floats, in_a: NDArray[np.bool_]) -> HalfValues:
    """A score that is a mean over images: its mean over the images of each half.

    For scores whose value for one image hardly depends on which others are there, such as whether a
    classifier that was fitted on thousands of other images is right about it.

    Args:
        per_image: (N,) the score of each image.
        in_a: (N, S) as `draw_halves` gives it.
    """
    # einsum reads booleans piece by piece; a product would make floats of all of them first.
    of_a, in_all = np.einsum("n,ns->s", per_image, in_a), in_a.sum(axis=0)
    return np.stack([of_a / in_all, (per_image.sum() - of_a) / (len(in_a) - in_all)], axis=1)


def purity_on_halves(
    hits: NDArray[Any], neighbors: Positions, k: Positions, in_a: NDArray[np.bool_], queries: Positions | None = None
) -> HalfValues:
    """Neighbour purity within each half: of an image's k nearest, those that are in its own half.

    About k/2 of the k nearest are in the half, and they are the half's own nearest ones.

    Args:
        hits: (Q, at least max k) whether a neighbour has the image's label, as `ties.hits` gives it.
        neighbors: (Q, at least max k), nearest first.
        k: (Q,) how many of them count for each image; 0 leaves the image out.
        in_a: (N, S).
        queries: (Q,) positions of the images; unset: all.
    """
    asked = np.arange(len(in_a)) if queries is None else queries
    inside = in_a.astype(np.float32)
    sums, counts = np.zeros((2, *in_a.shape[1:])), np.zeros((2, *in_a.shape[1:]))
    for first in range(0, len(asked), BLOCK):
        block = slice(first, first + BLOCK)
        near, own_k, own = neighbors[block], k[block], asked[block]
        wanted = np.arange(near.shape[1]) < own_k[:, None]
        same = wanted * hits[block]
        # Of the two halves of a split, what isn't in one is in the other.
        there_a, right_a = (_counts(near, weights, inside) for weights in (wanted, same))
        mine = in_a[own]
        there = np.where(mine, there_a, own_k[:, None] - there_a)
        right = np.where(mine, right_a, same.sum(axis=1)[:, None] - right_a)
        purity = np.where(there > 0, right / np.maximum(there, 1), 0)
        for half, members in enumerate((mine, ~mine)):
            sums[half] += (purity * members).sum(axis=0)
            counts[half] += (members & (there > 0)).sum(axis=0)
    values: HalfValues = (sums / np.maximum(counts, 1)).T
    return values


def _counts(near: Positions, weights: NDArray[Any], inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q, S) how many of the neighbours are inside each set of images, by the weight of each."""
    from scipy.sparse import csr_matrix

    which = weights > 0
    starts = np.concatenate([[0], np.cumsum(which.sum(axis=1))])
    found = csr_matrix((weights[which].astype(np.float32), near[which], starts), shape=(len(near), len(inside)))
    counts: NDArray[np.float32] = found @ inside
    return counts


def nearest_on_halves(
    hits: NDArray[Any], neighbors: Positions, in_a: NDArray[np.bool_], queries: Positions | None = None
) -> HalfValues:
    """Share of images whose nearest neighbour within their half has their label.

    Args:
        hits: (Q, k) whether a neighbour has the image's label, as `ties.hits` gives it.
        neighbors: (Q, k), nearest first. The few images with none of them in their half don't count.
        in_a: (N, S).
        queries: (Q,) positions of the images; unset: all.
    """
    asked = np.arange(len(in_a)) if queries is None else queries
    neighbors = neighbors[:, :32]
    rows = np.arange(len(asked))
    S = in_a.shape[1]
    values = np.empty((S, 2))
    for split in range(S):
        mine = in_a[asked, split]
        own = in_a[neighbors, split] == mine[:, None]
        first = own.argmax(axis=1)
        has = own[rows, first]
        right = hits[rows, first] * has
        for half, members in enumerate((mine, ~mine)):
            values[split, half] = right[members].sum() / max(1, has[members].sum())
    return values


def few_shot_on_halves(classifier: NearestMeans, shots: int, in_a: NDArray[np.bool_], seed: int) -> HalfValues | None:
    """Few-shot accuracy within each half: its labelled images and the classified ones are all its own.

    Args:
        classifier: of the layer.
        shots: labelled images per class.
        in_a: (N, S).
        seed: of the draws, which depend on the labels and the halves alone.

    Returns:
        None where a class has no image of a half beyond the labelled ones.
    """
    subsets = np.concatenate([in_a, ~in_a], axis=1)
    found = classifier.accuracy_within(subsets, shots, DRAWS_PER_HALF, seed)
    return None if found is None else found.reshape(2, -1).T


def clusters_on_halves(
    rows: NDArray[np.float32], y: Labels, K: int, in_a: NDArray[np.bool_], seed: int
) -> dict[str, HalfValues]:
    """NMI, AMI and ARI of k-means on each half.

    Each half is clustered from nothing. Clusters of all images can't stand in for its own: they hang on
    both halves, so that what is chosen on one would still be favoured on the other (measured: a quarter of
    the winner's curse stays).

    Args:
        rows: (N, D) around their mean.
        y: (N,) labels.
        K: clusters.
        in_a: (N, S).
        seed: of the starts.
    """
    classes, labels = np.unique(y, return_inverse=True)
    one_hot = np.eye(len(classes), dtype=np.float32)[labels]
    S = in_a.shape[1]
    members = np.concatenate([in_a, ~in_a], axis=1)
    assigned = kmeans_on_subsets(
        components(rows, min(max(COMPONENTS, 2 * K), MOST_COMPONENTS)), members, K, STARTS, seed
    )
    tables = np.stack([one_hot.T @ (assigned == cluster).astype(np.float32) for cluster in range(K)], axis=2)
    scores = agreement(tables.swapaxes(0, 1).astype(np.float64))
    return {name: values.reshape(2, S).T for name, values in scores.items()}


def agreement(tables: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """NMI, AMI and ARI of many contingency tables at once.

    The chance term of AMI depends on the margins only. Halves have the same class sizes and much the same
    cluster sizes, so that of the first table serves all. AMI is 0 where there is no more entropy than chance
    makes of it.

    Args:
        tables: (T, C, K) counts.

    Returns:
        (T,) each.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    n = tables.sum(axis=(1, 2))
    rows, columns = tables.sum(axis=2), tables.sum(axis=1)
    h_rows, h_columns = _entropy(rows, n), _entropy(columns, n)
    mutual = h_rows + h_columns - _entropy(tables.reshape(len(tables), -1), n)
    mean_entropy = (h_rows + h_columns) / 2
    # Groups without an image change nothing but make scikit-learn warn of their logarithm.
    first = tables[0][rows[0] > 0][:, columns[0] > 0]
    chance = float(expected_mutual_information(first.astype(np.int64), int(n[0])))
    tiny = np.finfo(np.float64).tiny
    return {
        "nmi": np.clip(mutual / np.maximum(mean_entropy, tiny), 0, 1),
        "ami": np.where(mean_entropy > chance, (mutual - chance) / np.maximum(mean_entropy - chance, tiny), 0.0),
        "ari": adjusted_rand(tables),
    }


def adjusted_rand(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """The adjusted Rand index of many contingency tables at once (Hubert and Arabie 1985, doi:10.1007/BF01908075).

    Args:
        tables: (T, C, K) counts.

    Returns:
        (T,); 1 where both sides are all one group, or all of single images.
    """
    n = tables.sum(axis=(1, 2))
    counts = (tables.reshape(len(tables), -1), tables.sum(axis=2), tables.sum(axis=1))
    pairs, row_pairs, column_pairs = ((np.einsum("tc,tc->t", t, t) - t.sum(axis=1)) / 2 for t in counts)
    # All of it times the number of pairs: whole numbers, which are exact.
    all_pairs = n * (n - 1) / 2
    expected, pairs = row_pairs * column_pairs, pairs * all_pairs
    most = (row_pairs + column_pairs) / 2 * all_pairs
    found = np.ones(len(tables))
    np.divide(pairs - expected, most - expected, out=found, where=most > expected)
    return found


def _entropy(counts: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import xlogy

    p = counts / n[:, None]
    entropy: NDArray[np.float64] = -xlogy(p, p).sum(axis=1)
    return entropy


def components(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Rows around their mean in their `count` leading principal components: k-means is little changed by the others.

    A projection on about K/e components keeps the cost of every clustering to a factor of 1 + e (Cohen,
    Elder, Musco, Musco, Persu 2015, doi:10.1145/2746539.2746569).
    """
    if min(rows.shape) <= count:
        return rows
    from sklearn.utils.extmath import randomized_svd

    U, s, _ = randomized_svd(rows, count, n_iter=2, random_state=0)
    reduced: NDArray[np.float32] = (U * s).astype(np.float32)
    return reduced
