"""Ground spaces by number, for the compiled programs of frameworks, which hold only numbers."""

import hashlib
import weakref

from fastemd import validation
from fastemd.spaces import GroundSpace

_spaces: weakref.WeakValueDictionary[int, GroundSpace] = weakref.WeakValueDictionary()


def number_of(space: GroundSpace) -> int:
    """A number for a space, the same in every process for spaces of the same content."""
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    number: int | None = space.__dict__.get("_number")
    if number is None:
        content = hashlib.blake2b(digest_size=7)
        for array in (space.parent, space.weight, space.bin_node):
            content.update(array.tobytes())
        number = int.from_bytes(content.digest(), "big")
        # The space that stands for all of this content lives as long as any of them.
        first = _spaces.setdefault(number, space)
        space.__dict__.update(_number=number, _first=None if first is space else first)
    return number


def space_of(number: int) -> GroundSpace:
    """The space with a number."""
    space = _spaces.get(number)
    if space is None:
        validation.space_is_gone(number)
    return space
