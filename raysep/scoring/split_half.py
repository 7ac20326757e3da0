"""Split-half resampling: scores on many random halves of the images, for intervals and the test of the best layer.

N images, K clusters, C classes, S splits. Each split partitions the images of every class into two halves, a and b,
which gives 2 S half-samples. A bootstrap with replacement would be biased: duplicates of an image are its nearest
neighbours and join its cluster, which raises every score. The neighbours within a half are the first entries of the
full neighbour list that belong to it, so that one neighbour search serves all halves exactly.

The halves of a split are disjoint, hence independent samples: a selection on one can be tested on the other
(`report/selection.py`), and their difference gives the standard error of the full sample (`intervals.py`). To save
time, two things are computed once on all images and shared by the halves, which makes these not quite independent:
the fits of the linear probe, and the principal components in which wide embeddings are clustered.
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
# (S, 2): the score on halves a and b of each split.
HalfValues = NDArray[np.float64]

# k-means starts, and draws of labelled images, per half.
STARTS, DRAWS_PER_HALF = 3, 4
# Query images per block.
BLOCK = 1024
# Bounds of the number of principal components for k-means, else twice the clusters. The rest hardly changes clusters.
COMPONENTS, MOST_COMPONENTS = 32, 64


def can_be_halved(sizes: NDArray[np.integer[Any]]) -> bool:
    """Whether classes are large enough for split-halves.

    At least two classes must have `LEAST_HALVED` images, and so must the average class.

    Args:
        sizes: (K,) number of images of each class.
    """
    return bool((sizes >= LEAST_HALVED).sum() > 1 and sizes.mean() >= LEAST_HALVED)


def draw_halves(y: Labels, resamples: int, seed: int) -> NDArray[np.bool_]:
    """Draw S random stratified splits into halves.

    Args:
        y: (N,) labels. Equal labels in equal order get equal halves, so that layers, checkpoints and models are
            compared on the same images.
        resamples: 2 S, the number of halves.
        seed: seed of the splits.

    Returns:
        (N, S), True for half a. For classes of odd size, the extra image goes to a and b in turn.
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
    """Mean of per-image scores over each half.

    Suits per-image scores that hardly depend on the other images, such as the correctness of a classifier that was
    fitted on thousands of them.

    Args:
        per_image: (N,) the score of each image.
        in_a: (N, S) from `draw_halves`.
    """
    # einsum casts booleans in chunks; a matrix product would first copy all of them to floats.
    of_a, in_all = np.einsum("n,ns->s", per_image, in_a), in_a.sum(axis=0)
    return np.stack([of_a / in_all, (per_image.sum() - of_a) / (len(in_a) - in_all)], axis=1)


def purity_on_halves(
    hits: NDArray[Any], neighbors: Positions, k: Positions, in_a: NDArray[np.bool_], queries: Positions | None = None
) -> HalfValues:
    """Neighbour purity within each half: over an image's k nearest neighbours, as far as they are in its half.

    About k/2 of the k are, and these are the nearest ones within the half.

    Args:
        hits: (Q, at least max k) whether a neighbour has the image's label, from `ties.hits`.
        neighbors: (Q, at least max k), nearest first.
        k: (Q,) number of neighbours of each image that count; 0 leaves the image out.
        in_a: (N, S).
        queries: (Q,) positions of the query images; unset: all.
    """
    positions = np.arange(len(in_a)) if queries is None else queries
    inside = in_a.astype(np.float32)
    sums, counts = np.zeros((2, *in_a.shape[1:])), np.zeros((2, *in_a.shape[1:]))
    for first in range(0, len(positions), BLOCK):
        block = slice(first, first + BLOCK)
        near, block_k, block_positions = neighbors[block], k[block], positions[block]
        within_k = np.arange(near.shape[1]) < block_k[:, None]
        matches = within_k * hits[block]
        # Counts of half b are the totals minus those of half a.
        count_a, matches_a = (_counts(near, weights, inside) for weights in (within_k, matches))
        is_a = in_a[block_positions]
        count = np.where(is_a, count_a, block_k[:, None] - count_a)
        matching = np.where(is_a, matches_a, matches.sum(axis=1)[:, None] - matches_a)
        purity = np.where(count > 0, matching / np.maximum(count, 1), 0)
        for half, members in enumerate((is_a, ~is_a)):
            sums[half] += (purity * members).sum(axis=0)
            counts[half] += (members & (count > 0)).sum(axis=0)
    values: HalfValues = (sums / np.maximum(counts, 1)).T
    return values


def _counts(near: Positions, weights: NDArray[Any], inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q, S) number of each query's neighbours inside the half, weighted."""
    from scipy.sparse import csr_matrix

    used = weights > 0
    starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    matrix = csr_matrix((weights[used].astype(np.float32), near[used], starts), shape=(len(near), len(inside)))
    counts: NDArray[np.float32] = matrix @ inside
    return counts


def nearest_on_halves(
    hits: NDArray[Any], neighbors: Positions, in_a: NDArray[np.bool_], queries: Positions | None = None
) -> HalfValues:
    """Share of images whose nearest neighbour within their half has their label.

    Args:
        hits: (Q, k) whether a neighbour has the image's label, from `ties.hits`.
        neighbors: (Q, k), nearest first. Images without a neighbour in their half don't count; they are few.
        in_a: (N, S).
        queries: (Q,) positions of the query images; unset: all.
    """
    positions = np.arange(len(in_a)) if queries is None else queries
    neighbors = neighbors[:, :32]
    rows = np.arange(len(positions))
    S = in_a.shape[1]
    values = np.empty((S, 2))
    for split in range(S):
        is_a = in_a[positions, split]
        same_half = in_a[neighbors, split] == is_a[:, None]
        first = same_half.argmax(axis=1)
        exists = same_half[rows, first]
        matches = hits[rows, first] * exists
        for half, members in enumerate((is_a, ~is_a)):
            values[split, half] = matches[members].sum() / max(1, exists[members].sum())
    return values


def few_shot_on_halves(classifier: NearestMeans, shots: int, in_a: NDArray[np.bool_], seed: int) -> HalfValues | None:
    """Few-shot accuracy within each half: labelled and classified images belong to the same half.

    Args:
        classifier: classifier of the layer.
        shots: labelled images per class.
        in_a: (N, S).
        seed: seed of the draws, which otherwise depend only on labels and halves.

    Returns:
        None where a class has too few images in a half to leave any unlabelled.
    """
    subsets = np.concatenate([in_a, ~in_a], axis=1)
    accuracies = classifier.accuracy_within(subsets, shots, DRAWS_PER_HALF, seed)
    return None if accuracies is None else accuracies.reshape(2, -1).T


def clusters_on_halves(
    rows: NDArray[np.float32], y: Labels, K: int, in_a: NDArray[np.bool_], seed: int
) -> dict[str, HalfValues]:
    """NMI, AMI and ARI of k-means on each half.

    Each half is clustered independently. A clustering of all images would depend on both halves, so that a selection on
    one half would still be favoured on the other (measured: it would keep a quarter of the selection bias).

    Args:
        rows: (N, D), mean-centred.
        y: (N,) labels.
        K: number of clusters.
        in_a: (N, S).
        seed: seed of the k-means starts.
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
    """NMI, AMI and ARI of a batch of contingency tables.

    The chance term of AMI depends on the margins only. Halves have equal class sizes and similar cluster sizes, so that
    the term of the first table serves all. AMI is 0 where the mean entropy doesn't exceed this term.

    Args:
        tables: (T, C, K) counts.

    Returns:
        (T,) values of each.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    n = tables.sum(axis=(1, 2))
    rows, columns = tables.sum(axis=2), tables.sum(axis=1)
    h_rows, h_columns = _entropy(rows, n), _entropy(columns, n)
    mutual = h_rows + h_columns - _entropy(tables.reshape(len(tables), -1), n)
    mean_entropy = (h_rows + h_columns) / 2
    # Empty rows and columns only make scikit-learn warn about log(0).
    first = tables[0][rows[0] > 0][:, columns[0] > 0]
    chance = float(expected_mutual_information(first.astype(np.int64), int(n[0])))
    tiny = np.finfo(np.float64).tiny
    return {
        "nmi": np.clip(mutual / np.maximum(mean_entropy, tiny), 0, 1),
        "ami": np.where(mean_entropy > chance, (mutual - chance) / np.maximum(mean_entropy - chance, tiny), 0.0),
        "ari": adjusted_rand(tables),
    }


def adjusted_rand(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """The adjusted Rand index of a batch of contingency tables (Hubert and Arabie 1985, doi:10.1007/BF01908075).

    Args:
        tables: (T, C, K) counts.

    Returns:
        (T,); 1 where both partitions are a single group, or all singletons.
    """
    n = tables.sum(axis=(1, 2))
    counts = (tables.reshape(len(tables), -1), tables.sum(axis=2), tables.sum(axis=1))
    pairs, row_pairs, column_pairs = ((np.einsum("tc,tc->t", t, t) - t.sum(axis=1)) / 2 for t in counts)
    # Multiplied by the number of pairs, to compute with exact integers.
    all_pairs = n * (n - 1) / 2
    expected, pairs = row_pairs * column_pairs, pairs * all_pairs
    maximum = (row_pairs + column_pairs) / 2 * all_pairs
    index = np.ones(len(tables))
    np.divide(pairs - expected, maximum - expected, out=index, where=maximum > expected)
    return index


def _entropy(counts: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import xlogy

    p = counts / n[:, None]
    entropy: NDArray[np.float64] = -xlogy(p, p).sum(axis=1)
    return entropy


def components(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Project mean-centred rows on their `count` leading principal components, which hardly changes k-means.

    A projection on about K/e components preserves the cost of every clustering to a factor of 1 + e (Cohen,
    Elder, Musco, Musco, Persu 2015, doi:10.1145/2746539.2746569).
    """
    if min(rows.shape) <= count:
        return rows
    from sklearn.utils.extmath import randomized_svd

    U, s, _ = randomized_svd(rows, count, n_iter=2, random_state=0)
    reduced: NDArray[np.float32] = (U * s).astype(np.float32)
    return reduced
