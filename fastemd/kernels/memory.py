"""What the memory does meanwhile, for while a tile is computed it has nothing to do.

It fetches the rows of the next tile and carries off the results of the last one. Both go line by
line in the order of the addresses, which memory likes best: the sweeps themselves touch the rows of
a tile all at once, a few bytes each.
"""

from numba.extending import register_jitable

from fastemd.kernels.blocks import WIDTH
from fastemd.kernels.lanes import integer_at, put_integer
from fastemd.kernels.lines import LINE, copy, fetch, lines_per_block, stream_line

# Inputs of this size are fetched ahead; smaller ones are likely in a cache, where it gains nothing
# and takes 3 % of the time.
AHEAD_FROM = 4 << 20  # bytes

# From this size on, results are staged in scratch and written past the caches, which could not keep
# them anyway: memory need not be read before it is written.
STREAM_FROM = 8 << 20  # bytes


@register_jitable
def meanwhile(tile, next_rows, k, n_bins):
    """The share of the block of bins from `k` on."""
    block = k // WIDTH
    if tile.ahead:
        n_lines = lines_per_block(tile.x, tile.like)
        first = block * n_lines * LINE
        a, b = integer_at(next_rows, 0) + first, integer_at(next_rows, 1) + first
        for i in range(n_lines):
            fetch(a + i * LINE)
            fetch(b + i * LINE)
    target = integer_at(tile.pending, 0)
    if target != 0 and k + WIDTH < n_bins:  # the last block's lines may reach beyond the tile
        n_lines = lines_per_block(tile.x, tile.like_out)
        first = -target % LINE + block * n_lines * LINE
        for i in range(n_lines):
            stream_line(tile.staged + first + i * LINE, target + first + i * LINE)


@register_jitable
def settle(tile, n_blocks, n_bytes):
    """Write what `meanwhile` left of the last tile after `n_blocks`: nothing is pending now."""
    target = integer_at(tile.pending, 0)
    head = min(-target % LINE, n_bytes)
    rest = min(head + max(n_blocks - 1, 0) * lines_per_block(tile.x, tile.like_out) * LINE, n_bytes)
    copy(tile.staged, target, head)
    copy(tile.staged + rest, target + rest, n_bytes - rest)
    put_integer(tile.pending, 0, 0)
