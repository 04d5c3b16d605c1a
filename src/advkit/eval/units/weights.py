"""Hash of the weights of a model, which a reader can compute from its state dict."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from advkit.core.archives import digest_of
from advkit.models.inner_model import innermost


def hash_of_weights(model: object) -> str | None:
    """Return the SHA-256 of the state dicts of the nets inside `model`, `None` without a net.

    The hash of one net is `digest_of` its state dict: names, dtypes, shapes and values. That of
    several nets is the SHA-256 of their hashes, in their order and in hexadecimal.
    """
    nets = [getattr(inner, "module", inner) for inner in innermost(model)]
    hashes = [_hash_of_net(net) for net in nets if isinstance(net, nn.Module)]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hash_of_net(net: nn.Module) -> str:
    """Return the hash of the tensors of a state dict, which may also hold other values."""
    state = net.state_dict()
    return digest_of({name: value for name, value in state.items() if isinstance(value, Tensor)})
