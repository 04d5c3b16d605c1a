"""Trees of a fitted forest in flat arrays, traversed together.

scikit-learn visits one tree after the other from Python, which takes milliseconds for a single row.
Here rows descend all trees in parallel, one level at a time. Each level costs a few NumPy calls for
any number of rows and trees. A pair of row and tree that has reached a leaf stays there, because a
leaf is its own child.

The probabilities equal scikit-learn's to the last bit: leaves hold the values of its trees, which
are summed in the order of the trees, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from advkit.detectors.features import Floats

Ints = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]

_LEVELS = 8  # levels between two checks for pairs that have reached a leaf
_PAIRS = 16_384  # pairs of row and tree at a time, whose arrays fit into a processor's cache
_ROWS = 4_096  # rows at a time, so that _PAIRS allows several trees
_ROUNDING = 1e-6  # of a sum of probabilities; far above the rounding of float64


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatForest:
    """Trees with `nodes` nodes and `leaves` leaves in total; a node precedes its children.

    Attributes:
        roots: index of each tree's root, int64 `(trees,)`.
        left: index of the left child, int64 `(nodes,)`; the right child is the next node. A leaf is
            its own child.
        feature: column that a node compares, int64 `(nodes,)`; 0 in leaves.
        threshold: float32 `(nodes,)`; rows with a greater value go right. Infinite in leaves.
            scikit-learn's thresholds are float64; the largest float32 that is not above each splits
            float32 values in the same way.
        leaf: index of the leaf in `values`, int64 `(nodes,)`; negative for inner nodes.
        values: probabilities in each leaf, float64 `(leaves, classes)`.
    """

    roots: Ints
    left: Ints
    feature: Ints
    threshold: Floats32
    leaf: Ints
    values: Floats

    @classmethod
    def of(cls, trees: Sequence[Any]) -> FlatForest:
        """Compile the `tree_` of each of scikit-learn's fitted trees."""
        parts = [_compile(tree) for tree in trees]
        counts = [len(part["left"]) for part in parts]
        leaves = [len(part["values"]) for part in parts]
        first_nodes = np.cumsum([0, *counts[:-1]])
        first_leaves = np.cumsum([0, *leaves[:-1]])
        for part, node, leaf in zip(parts, first_nodes, first_leaves, strict=True):
            part["left"] += node
            part["leaf"][part["leaf"] >= 0] += leaf
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return cls(roots=first_nodes, **joined)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.values.shape[1])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self, width: int) -> None:
        """Raise ValueError unless every row of `width` features ends in a leaf of the forest.

        For arrays from a file, which may be damaged or malicious.
        """
        for name, kind in _DTYPES.items():
            array = getattr(self, name)
            if array.dtype != kind or array.ndim != (2 if name == "values" else 1):
                rank = 2 if name == "values" else 1
                raise ValueError(
                    f"`{name}` must be {np.dtype(kind)} of rank {rank}, got {array.dtype} of "
                    f"shape {array.shape}."
                )
        nodes = np.arange(len(self.left))
        for name in ("feature", "threshold", "leaf"):
            count = len(getattr(self, name))
            if count != len(nodes):
                raise ValueError(f"`{name}` must have shape ({len(nodes)},), got ({count},).")
        is_leaf = self.leaf >= 0
        valid = {
            "roots": len(self.roots) > 0 and _within(self.roots, len(nodes)),
            "left": bool((self.left[is_leaf] == nodes[is_leaf]).all())
            and bool((self.left[~is_leaf] > nodes[~is_leaf]).all())
            and bool((self.left[~is_leaf] < len(nodes) - 1).all()),
            "feature": _within(self.feature, width),
            "threshold": bool((self.threshold[is_leaf] == np.inf).all())
            and bool((self.threshold[~is_leaf] < np.inf).all()),
            "leaf": bool((self.leaf < len(self.values)).all()),
            "values": bool(((self.values >= 0) & (self.values <= 1)).all())
            and bool((np.abs(self.values.sum(1) - 1) < _ROUNDING).all()),
        }
        for name, is_valid in valid.items():
            if not is_valid:
                raise ValueError(f"`{name}` must hold values of a forest, got values out of range.")

    def probabilities(self, x: Floats32) -> Floats:
        """Return the mean probabilities `(n, classes)` of all trees for finite float32 rows."""
        if len(x) == 1:
            return self._probabilities_of_row(x.ravel())[None]
        blocks = [self._probabilities_of_rows(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)]
        return np.concatenate(blocks)

    @cached_property
    def _nodes(self) -> Floats:
        """Threshold, left child, feature and leaf of each node in 32 bytes, `(nodes, 4)`.

        For a single row almost nothing is in the processor's cache, so the number of accesses to
        memory decides the time. With this layout there is one for each node.
        """
        nodes = np.zeros((len(self.left), 4))
        words = nodes.view(np.int64)
        nodes.view(np.float32)[:, 0] = self.threshold
        words[:, 1], words[:, 2], words[:, 3] = self.left, self.feature, self.leaf
        return nodes

    def _probabilities_of_row(self, x: Floats32) -> Floats:
        """Return the probabilities `(classes,)` of a single row with as few calls as possible."""
        n = len(self.roots)
        visited = np.empty((n, 4))
        words, threshold = visited.view(np.int64), visited.view(np.float32)[:, 0]
        left, feature, leaf = words[:, 1], words[:, 2], words[:, 3]
        node, right = np.empty(n, np.int64), np.empty(n, bool)
        value = np.empty(n, np.float32)
        visit, values, greater, add = self._nodes.take, x.take, np.greater, np.add
        # mode "clip" avoids the check of each index and the copy that the check needs
        visit(self.roots, 0, visited, "clip")
        while leaf.min() < 0:
            for _ in range(_LEVELS):
                values(feature, None, value, "clip")
                greater(value, threshold, right)
                add(left, right, node)
                visit(node, 0, visited, "clip")
        total: Floats = np.add.reduce(self.values.take(leaf, axis=0), axis=0)
        total /= n
        return total

    def _probabilities_of_rows(self, x: Floats32) -> Floats:
        """Return the probabilities `(n, classes)` of several rows, some trees at a time."""
        total = np.zeros((len(x), self.classes))
        together = max(1, _PAIRS // len(x))
        for i in range(0, len(self.roots), together):
            for leaves in self._leaves(x, self.roots[i : i + together]):
                total += self.values.take(leaves, axis=0)
        total /= len(self.roots)
        return total

    def _leaves(self, x: Floats32, roots: Ints) -> Ints:
        """Return the index of the leaf of each tree in which each row ends, `(trees, n)`."""
        flat = x.ravel()
        node = np.repeat(roots, len(x))
        row = np.tile(np.arange(0, x.size, x.shape[1]), len(roots))  # start of each row in `flat`
        pair, reached = np.arange(len(node)), np.empty(len(node), np.int64)
        at, right = np.empty(len(node), np.int64), np.empty(len(node), bool)
        value, threshold = np.empty(len(node), np.float32), np.empty(len(node), np.float32)
        while len(node):
            n = len(node)
            at, right, value, threshold = at[:n], right[:n], value[:n], threshold[:n]
            for _ in range(_LEVELS):
                self.feature.take(node, None, at, "clip")
                np.add(at, row, at)
                flat.take(at, None, value, "clip")
                self.threshold.take(node, None, threshold, "clip")
                np.greater(value, threshold, right)
                self.left.take(node, None, at, "clip")
                np.add(at, right, node)
            self.leaf.take(node, None, at, "clip")
            reached[pair] = at  # overwritten until the pair reaches a leaf
            inner = np.flatnonzero(at < 0)
            node, row, pair = node.take(inner), row.take(inner), pair.take(inner)
        return reached.reshape(len(roots), len(x))


_DTYPES = {
    "roots": np.int64,
    "left": np.int64,
    "feature": np.int64,
    "threshold": np.float32,
    "leaf": np.int64,
    "values": np.float64,
}


def _within(indices: Ints, n: int) -> bool:
    return bool(((indices >= 0) & (indices < n)).all())


def _compile(tree: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of one of scikit-learn's trees, with nodes in the order of their depth."""
    order = _by_depth(tree.children_left, tree.children_right)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    child = tree.children_left[order]
    is_leaf = child < 0
    return {
        "left": np.where(is_leaf, np.arange(len(order)), position[child]),
        "feature": np.where(is_leaf, 0, tree.feature[order]).astype(np.int64),
        "threshold": np.where(is_leaf, np.float32(np.inf), _round_down(tree.threshold[order])),
        "leaf": np.where(is_leaf, np.cumsum(is_leaf) - 1, -1),
        "values": tree.value[order[is_leaf], 0],
    }


def _by_depth(left: Ints, right: Ints) -> Ints:
    """Return the nodes level by level, with siblings next to each other."""
    level, order = np.zeros(1, np.int64), []
    while len(level):
        order.append(level)
        inner = level[left[level] >= 0]
        level = np.stack([left[inner], right[inner]], axis=1).ravel()
    return np.concatenate(order)


def _round_down(v: Floats) -> Floats32:
    """Return the largest float32 values that are not above `v`."""
    near = v.astype(np.float32)
    return np.where(near > v, np.nextafter(near, np.float32(-np.inf)), near)
