"""Ground spaces by number: XLA's programs hold constants only."""

import hashlib

from fastemd import validation
from fastemd.spaces import GroundSpace

_spaces: dict[int, GroundSpace] = {}  # JAX keeps its programs, so they are never removed


def number_of(space: GroundSpace) -> int:
    """Register a space; return its number, which depends on its content only."""
    number: int | None = space.__dict__.get("_number")
    if number is None:
        content = hashlib.blake2b(digest_size=7)
        for array in (space.parent, space.weight, space.bin_node):
            content.update(array.tobytes())
        number = int.from_bytes(content.digest(), "big")
        _spaces.setdefault(number, space)
        space.__dict__["_number"] = number
    return number


def space_of(number: int) -> GroundSpace:
    """Return the space with a number."""
    if number not in _spaces:
        validation.space_is_unknown(number)
    return _spaces[number]
