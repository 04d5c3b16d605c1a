"""The trees of a fitted forest in flat arrays, and the walk through all of them at once.

scikit-learn visits one tree after the other from Python, which takes milliseconds for a single row.
Here a row goes down all trees in lockstep, a level at a time, and many rows go down many trees
alike; each level costs a handful of NumPy calls, however many walkers there are. Walkers that have
arrived stay where they are: a leaf leads to itself.

The probabilities are scikit-learn's to the last bit: leaves hold what its trees hold, and they are
summed in the order of the trees, in float64.
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

_LEVELS = 8  # between two looks at who has arrived
_WALKERS = 16_384  # at a time: what they read and write fits a processor's cache
_ROWS = 4_096
_ROUNDING = 1e-6  # of a sum of probabilities


@dataclass(frozen=True, kw_only=True, eq=False)
class FlatForest:
    """Trees with `nodes` nodes and `leaves` leaves in all, each before its children.

    Attributes:
        roots: node of each tree's root, int64 `(trees,)`.
        left: the left child, int64 `(nodes,)`; the right one is next to it. A leaf leads to itself.
        feature: column that a node looks at, int64 `(nodes,)`; 0 in leaves.
        threshold: greater values go right, float32 `(nodes,)`; infinite in leaves. scikit-learn's
            are float64: the largest float32 below each separates values of float32 alike.
        leaf: number of the leaf that a node is, int64 `(nodes,)`; negative for none.
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
        """The fitted `tree_` of each of scikit-learn's trees, compiled."""
        parts = [_compiled(tree) for tree in trees]
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
        """Columns of what it answers."""
        return int(self.values.shape[1])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self, width: int) -> None:
        """Raise ValueError unless every walk with `width` features ends in a leaf of the forest.

        For arrays from a file, which may be damaged or made to do damage.
        """
        for name, kind in _DTYPES.items():
            array = getattr(self, name)
            if array.dtype != kind or array.ndim != (2 if name == "values" else 1):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
        nodes = np.arange(len(self.left))
        for name in ("feature", "threshold", "leaf"):
            if len(getattr(self, name)) != len(nodes):
                raise ValueError(f"{name} has not one entry for each of {len(nodes)} nodes")
        is_leaf = self.leaf >= 0
        sound = {
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
        for name, holds in sound.items():
            if not holds:
                raise ValueError(f"{name} leads out of the forest or holds impossible values")

    def probabilities(self, x: Floats32) -> Floats:
        """Mean of the trees' probabilities `(n, classes)` for finite `x` `(n, width)`, float32."""
        if len(x) == 1:
            return self._of_row(x.ravel())[None]
        blocks = [self._of_rows(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)]
        return np.concatenate(blocks)

    @cached_property
    def _nodes(self) -> Floats:
        """What a node holds side by side, 32 bytes, `(nodes, 4)`.

        A single row finds next to nothing in the processor's cache, so that it counts how often it
        goes to memory: here once for each node.
        """
        nodes = np.zeros((len(self.left), 4))
        words = nodes.view(np.int64)
        nodes.view(np.float32)[:, 0] = self.threshold
        words[:, 1], words[:, 2], words[:, 3] = self.left, self.feature, self.leaf
        return nodes

    def _of_row(self, x: Floats32) -> Floats:
        """Probabilities `(classes,)` of a single row, with as few calls as possible."""
        n = len(self.roots)
        visited = np.empty((n, 4))
        words, threshold = visited.view(np.int64), visited.view(np.float32)[:, 0]
        left, feature, leaf = words[:, 1], words[:, 2], words[:, 3]
        node, right = np.empty(n, np.int64), np.empty(n, bool)
        value = np.empty(n, np.float32)
        visit, values, greater, add = self._nodes.take, x.take, np.greater, np.add
        # "clip" does without a check of each index, and without the copy that it needs
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

    def _of_rows(self, x: Floats32) -> Floats:
        """Probabilities `(n, classes)` of several rows, some trees at a time."""
        total = np.zeros((len(x), self.classes))
        together = max(1, _WALKERS // len(x))
        for i in range(0, len(self.roots), together):
            for leaves in self._leaves(x, self.roots[i : i + together]):
                total += self.values.take(leaves, axis=0)
        total /= len(self.roots)
        return total

    def _leaves(self, x: Floats32, roots: Ints) -> Ints:
        """The leaf of each tree in which each row ends, `(trees, n)`."""
        flat = x.ravel()
        node = np.repeat(roots, len(x))
        row = np.tile(np.arange(0, x.size, x.shape[1]), len(roots))  # where each begins in `flat`
        walker, arrived = np.arange(len(node)), np.empty(len(node), np.int64)
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
            arrived[walker] = at  # -1 is written over once there is a leaf
            on = np.flatnonzero(at < 0)
            node, row, walker = node.take(on), row.take(on), walker.take(on)
        return arrived.reshape(len(roots), len(x))


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


def _compiled(tree: Any) -> dict[str, npt.NDArray[Any]]:
    """One of scikit-learn's trees, its nodes in the order of their depth."""
    order = _by_depth(tree.children_left, tree.children_right)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    child = tree.children_left[order]
    is_leaf = child < 0
    return {
        "left": np.where(is_leaf, np.arange(len(order)), position[child]),
        "feature": np.where(is_leaf, 0, tree.feature[order]).astype(np.int64),
        "threshold": np.where(is_leaf, np.float32(np.inf), _rounded_down(tree.threshold[order])),
        "leaf": np.where(is_leaf, np.cumsum(is_leaf) - 1, -1),
        "values": tree.value[order[is_leaf], 0],
    }


def _by_depth(left: Ints, right: Ints) -> Ints:
    """The nodes level by level, two siblings side by side."""
    level, order = np.zeros(1, np.int64), []
    while len(level):
        order.append(level)
        inner = level[left[level] >= 0]
        level = np.stack([left[inner], right[inner]], axis=1).ravel()
    return np.concatenate(order)


def _rounded_down(v: Floats) -> Floats32:
    """The largest float32 that is not above `v`."""
    near = v.astype(np.float32)
    return np.where(near > v, np.nextafter(near, np.float32(-np.inf)), near)
