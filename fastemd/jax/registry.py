"""Ground spaces and weights of classes by number: XLA's programs hold constants only."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import validation
from fastemd.spaces import GroundSpace

# JAX keeps its programs, so nothing is ever removed.
_spaces: dict[int, GroundSpace] = {}
_weights: dict[int, NDArray[np.float64] | None] = {0: None}


def number_of(space: GroundSpace) -> int:
    """Register a space; return its number, which depends on its content only."""
    number: int | None = space.__dict__.get("_number")
    if number is None:
        number = _number(space.parent, space.weight, space.bin_node)
        _spaces.setdefault(number, space)
        space.__dict__["_number"] = number
    return number


def number_of_weights(weights: NDArray[np.float64] | None) -> int:
    """Register weights of classes; return their number, 0 for None."""
    if weights is None:
        return 0
    number = _number(weights)
    _weights[number] = weights
    return number


def _number(*arrays: NDArray[Any]) -> int:
    content = hashlib.blake2b(digest_size=7)
    for array in arrays:
        content.update(array.tobytes())
    return int.from_bytes(content.digest(), "big")


def space_of(number: int) -> GroundSpace:
    """Return the space with a number."""
    if number not in _spaces:
        validation.space_is_unknown(number)
    return _spaces[number]


def weights_of(number: int) -> NDArray[np.float64] | None:
    """Return the weights of classes with a number."""
    if number not in _weights:
        validation.space_is_unknown(number)
    return _weights[number]
