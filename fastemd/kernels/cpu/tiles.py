"""Tiles: a few rows of a batch that one thread processes together, in SIMD lanes.

`run_tiles` is the loop of every kernel on rows. A `Tile` is what the functions of an operation
get: everything in it is a number or the address of an array, see `fastemd.kernels.cpu.simd`.

While a tile is computed, memory is idle. So the rows of the next tile are prefetched and the
results of the last one are written, both line by line in the order of the addresses, which is what
memory is fastest at: the sweeps touch all rows of a tile at once, a few bytes each.
"""

from typing import Any, NamedTuple

from fastemd.kernels.cpu.references import by_reference
from fastemd.kernels.cpu.row_io import (
    LINE,
    WIDTH,
    copy,
    copy_element,
    fence,
    fetch,
    lines_per_block,
    stream_line,
    transpose_square,
)
from fastemd.kernels.cpu.simd import (
    address,
    aligned,
    allocate,
    free,
    greatest,
    integer_at,
    lane,
    least,
    n_lanes,
    put_integer,
    put_number,
)
from fastemd.kernels.edges import Numbers
from fastemd.kernels.jitable import jitable

# Inputs of this size are prefetched; smaller ones are likely in a cache, where prefetching gains
# nothing and takes 3 % of the time.
PREFETCH_FROM = 4 << 20  # bytes

# Results of this size are staged in scratch and written past the caches, which could not hold them
# anyway: then memory is not read before it is written.
STREAM_FROM = 8 << 20  # bytes

# Rows a multiple of this apart are copied first, since they compete for the same few places of the
# first cache: 1024 bins of float32 took 1.7 times as long per bin as 1000, and take 1.2 times.
PAGE = 4096  # bytes

# Rows whose bins are apart are copied so many tiles at a time, to use whole cache lines: a loss of
# 150 classes on axis 1 takes 0.73 times as long as with 2, and no less with 8.
TILES_PER_STRIP = 4

TABLE = 2 * LINE  # bytes of a number for every row of a tile


class Batch(NamedTuple):
    """An array (G, R, columns) of rows."""

    address: int
    n_rows: int  # G R
    rows_per_group: int
    group_stride: int
    row_stride: int
    bin_stride: int
    n_columns: int
    item_size: int
    row_bytes: int  # if the bins are side by side


class Layout(NamedTuple):
    """The edges, see `fastemd.layout.Edges`."""

    n_bins: int
    n_edges: int
    parent: int
    length: int  # times `Numbers.length_factor`
    share: int


class Rows(NamedTuple):
    """Tables of the addresses of the rows."""

    p: int  # of a loss, x
    q: int  # of a loss, the target, unless it is a label
    v: int
    with_v: bool
    like: float  # any number of their type


class Out(NamedTuple):
    """The rows of the result."""

    rows: int  # table of their addresses, in the result or where they are staged
    n_columns: int
    like: float


class Scratch(NamedTuple):
    """Memory of the thread; arrays that an operation does not need have no place."""

    x: int  # lanes for every edge and one more: its flow, its edge value, the sum up to the root
    other: int  # the same: `Edge.other`, or the second edge value
    y: int  # of a loss: lanes for every bin
    u: int
    labels: int  # of a loss, for every row of the tile: its label,
    row_weights: int  # its weight,
    highest: int  # its largest number,
    spare: int  # and room for a number more
    zeros: int  # of a loss, a row


class Overlap(NamedTuple):
    """Memory that is fetched and written while a tile is computed."""

    prefetch: bool
    next_pq: int  # where the rows of the next tile start
    next_v: int
    staged: int  # the results of the last tile, which may be streamed
    staged_bytes: int
    destination: int  # holds the address where they belong, 0 if they have been written


class Tile(NamedTuple):
    """A tile; the groups are those above."""

    layout: Layout
    numbers: Numbers
    rows: Rows
    out: Out
    scratch: Scratch
    overlap: Overlap
    loss: Any  # `fastemd.kernels.cpu.losses.Loss`, or None


@jitable
def run_tiles(
    place, n_scratch, check, sweep, chunk, n_chunks, edges, p, q, v, numbers, value, out, tolerance,
    loss,
):  # fmt: skip
    """Process one of `n_chunks` equal parts of the batch, tile by tile.

    Stop at the first row that fails the check, and return it; otherwise return the number of rows.

    ``sweep(tile)`` writes the results of a tile and returns its values. `place` sets the number of
    lanes; `n_scratch` is the number of scratch arrays x, y, other, u.
    """
    n_bins, n_edges, lanes = p.shape[2], edges.length.size, n_lanes(place(0))
    with_q, with_v, n_columns = q.size > 0, v.size > 0, out.shape[2] if out.size else 0
    like, like_out = p.dtype.type(0), out.dtype.type(0)
    stream = (
        out.size * out.itemsize >= STREAM_FROM
        and n_columns == n_bins
        and lines_per_block(place(0), like_out) > 0
    )
    p, q, v, out = as_batch(p), as_batch(q), as_batch(v), as_batch(out)
    scatter = is_apart(out)
    stream = stream and not scatter
    n_rows, row_bytes = p.n_rows, out.row_bytes
    n_tiles = -(-n_rows // lanes)
    begin, end = chunk * n_tiles // n_chunks, (chunk + 1) * n_tiles // n_chunks
    if begin == end:
        return n_rows

    # In scratch, after eleven tables:
    lengths = 11 * TABLE
    x = lengths + whole_lines(n_edges)
    sweep_bytes = whole_lines((n_edges + 1) * lanes)
    y = x + (n_scratch > 1) * sweep_bytes
    other = y + (n_scratch > 2) * sweep_bytes
    u = other + (n_scratch > 3) * sweep_bytes
    staged = x + n_scratch * sweep_bytes
    copies = staged + stream * whole_lines(lanes * row_bytes // 8)
    strip = lanes
    if is_apart(p) or is_apart(q) or is_apart(v) or scatter:
        strip *= TILES_PER_STRIP
    copy_bytes = whole_lines(strip * (p.row_bytes + LINE) // 8)
    copied = strip > lanes or (lanes > 1 and (are_crowded(p) or are_crowded(q) or are_crowded(v)))
    results = copies + copied * (2 + with_v) * copy_bytes
    zeros = results + scatter * copy_bytes
    scratch = allocate(zeros // 8 + n_bins + 8)
    start = aligned(scratch)
    record = Tile(
        Layout(n_bins, n_edges, address(edges.parent), start + lengths, address(edges.share)),
        numbers,
        Rows(place(start), place(start + TABLE), place(start + 2 * TABLE), with_v, like),
        Out(place(start + 3 * TABLE), n_columns, like_out),
        Scratch(
            place(start + x), place(start + other), place(start + y), place(start + u),
            start + 4 * TABLE, place(start + 5 * TABLE), place(start + 6 * TABLE),
            place(start + 7 * TABLE), start + zeros,
        ),
        Overlap(
            n_rows * p.row_bytes >= PREFETCH_FROM, start + 8 * TABLE, start + 9 * TABLE,
            start + staged, lanes * row_bytes, start + 10 * TABLE,
        ),
        loss,
    )  # fmt: skip
    tile = by_reference(record)
    for e in range(n_edges):
        put_number(tile.layout.length, e, numbers.length_factor * edges.length[e])
    rows, overlap = tile.rows, tile.overlap
    put_integer(overlap.destination, 0, 0)
    for i in range(2):
        put_integer(overlap.next_pq, i, start)
        put_integer(overlap.next_v, i, start)

    invalid, last = n_rows, n_rows
    for t in range(begin, end):
        first = t * lanes
        last = least(first + lanes, n_rows)
        locate(p, first, rows.p)
        locate_next(p, first + lanes, overlap.next_pq, 0)
        if with_q:
            locate(q, first, rows.q)
            locate_next(q, first + lanes, overlap.next_pq, 1)
        else:
            put_integer(overlap.next_pq, 1, integer_at(overlap.next_pq, 0))
        if with_v:
            locate(v, first, rows.v)
            locate_next(v, first + lanes, overlap.next_v, 0)
            locate_next(v, first + lanes, overlap.next_v, 1)
        in_strip = (first - begin * lanes) % strip
        if copied:
            copy_rows(p, first, in_strip, strip, rows.p, start + copies, like)
            if with_q:
                copy_rows(q, first, in_strip, strip, rows.q, start + copies + copy_bytes, like)
            if with_v:
                copy_rows(v, first, in_strip, strip, rows.v, start + copies + 2 * copy_bytes, like)
        if scatter:
            locate_copies(out, first, in_strip, tile.out.rows, start + results)
        elif stream:
            for r in range(lanes):
                row = least(r, last - first - 1)
                put_integer(tile.out.rows, r, overlap.staged + row * row_bytes)
        elif n_columns:
            locate(out, first, tile.out.rows)
        invalid = check(tile, first, n_rows, tolerance)
        if invalid < n_rows:
            put_integer(overlap.destination, 0, 0)  # no more results
            break
        values = sweep(tile)
        for row in range(first, least(last, value.size)):
            value[row] = lane(values, row - first)
        if stream:
            put_integer(overlap.destination, 0, address_of_row(out, first))
        elif scatter and (in_strip == strip - lanes or t == end - 1):
            scatter_rows(out, first - in_strip, last, tile.out.rows, start + results, like_out)
    if stream:
        finish_streaming(tile, 0, (last - (end - 1) * lanes) * row_bytes)
        fence()
    free(scratch)
    return invalid


@jitable
def whole_lines(n_numbers):
    """Return the bytes of so many float64 numbers, rounded up to whole cache lines."""
    return (8 * n_numbers + LINE - 1) // LINE * LINE


# ------------------------------------------------------------------------- where the rows are


@jitable
def as_batch(array):
    n_groups, n_rows, n_columns = array.shape
    return Batch(
        address(array), n_groups * n_rows, n_rows, *array.strides, n_columns, array.itemsize,
        n_columns * array.itemsize,
    )  # fmt: skip


@jitable
def address_of_row(batch, row):
    """Return where a row starts; beyond the end of the batch, the last row."""
    row, group = least(row, batch.n_rows - 1), 0
    if row >= batch.rows_per_group:  # avoids a division, which is noticeable for few bins
        group, row = row // batch.rows_per_group, row % batch.rows_per_group
    return batch.address + group * batch.group_stride + row * batch.row_stride


@jitable
def locate(batch, first, rows):
    """Put the addresses of the rows of a tile into the table `rows`."""
    for r in range(n_lanes(rows)):
        put_integer(rows, r, address_of_row(batch, first + r))


@jitable
def locate_next(batch, first, next_rows, index):
    """Put the address of the tile that starts at row `first`, if its rows are contiguous."""
    if batch.row_stride == batch.row_bytes and not is_apart(batch):
        put_integer(next_rows, index, address_of_row(batch, first))
    else:  # any valid address
        put_integer(next_rows, index, integer_at(next_rows, 1 - index))


@jitable
def are_crowded(batch):
    """Return whether neighbouring rows compete for the same places of the first cache."""
    return batch.row_stride != 0 and batch.row_stride % PAGE == 0


@jitable
def is_apart(batch):
    """Return whether the bins of a row are not side by side."""
    return batch.bin_stride != batch.item_size and batch.n_columns > 1


@jitable
def locate_copies(batch, first, in_strip, rows, room):
    """Put the addresses of the copied rows of a tile, `in_strip` rows after the first copy."""
    for r in range(n_lanes(rows)):
        row = least(first + r, batch.n_rows - 1) - first + in_strip
        put_integer(rows, r, room + row * (batch.row_bytes + LINE))


@jitable
def copy_rows(batch, first, in_strip, strip, rows, room, like):
    """Copy the rows of a tile to where they do not compete, with their bins side by side.

    Rows whose bins are apart are copied a strip at a time, when its first tile is due.
    """
    if is_apart(batch):
        if in_strip == 0:
            gather_rows(batch, first, least(first + strip, batch.n_rows), rows, room, like)
    else:
        for r in range(n_lanes(rows)):
            copied = room + (in_strip + r) * (batch.row_bytes + LINE)
            copy(integer_at(rows, r), copied, batch.row_bytes)
    locate_copies(batch, first, in_strip, rows, room)


@jitable
def are_squares(batch, first, last, lanes):
    """Return whether the rows `first` to `last` are whole tiles of neighbours in memory."""
    in_group = first % batch.rows_per_group + last - first <= batch.rows_per_group
    is_whole = (last - first) % lanes == 0 and batch.n_columns >= lanes
    return in_group and is_whole and batch.row_stride == batch.item_size


@jitable
def gather_rows(batch, first, last, rows, room, like):
    """Copy the rows `first` to `last`, whose bins are apart, in squares if possible."""
    lanes, row_stride, step = n_lanes(rows), batch.row_bytes + LINE, batch.bin_stride
    squares, source = are_squares(batch, first, last, lanes), address_of_row(batch, first)
    for k in range(0, squares * batch.n_columns, lanes):
        k = least(k, batch.n_columns - lanes)  # the last square overlaps the one before
        for r in range(0, last - first, lanes):
            bins = source + r * batch.item_size + k * step
            target = room + r * row_stride + k * batch.item_size
            transpose_square(bins, step, target, row_stride, rows, like)
    if not squares:
        for r in range(last - first):
            row, copied = address_of_row(batch, first + r), room + r * row_stride
            for k in range(batch.n_columns):
                copy_element(row + k * step, copied + k * batch.item_size, like)


@jitable
def scatter_rows(batch, first, last, rows, room, like):
    """Copy results to the rows `first` to `last`, whose bins are apart."""
    lanes, row_stride, step = n_lanes(rows), batch.row_bytes + LINE, batch.bin_stride
    squares, target = are_squares(batch, first, last, lanes), address_of_row(batch, first)
    for k in range(0, squares * batch.n_columns, lanes):
        k = least(k, batch.n_columns - lanes)
        for r in range(0, last - first, lanes):
            result = room + r * row_stride + k * batch.item_size
            bins = target + r * batch.item_size + k * step
            transpose_square(result, row_stride, bins, step, rows, like)
    if not squares:
        for r in range(last - first):
            row, result = address_of_row(batch, first + r), room + r * row_stride
            for k in range(batch.n_columns):
                copy_element(result + k * batch.item_size, row + k * step, like)


# ------------------------------------------------------------- memory, while a tile is computed


@jitable
def overlap_memory(tile, next_rows, k):
    """Prefetch and write the share of the block of bins that starts at `k`."""
    overlap, rows, out, block = tile.overlap, tile.rows, tile.out, k // WIDTH
    if overlap.prefetch:
        n_lines = lines_per_block(rows.p, rows.like)
        first = block * n_lines * LINE
        a, b = integer_at(next_rows, 0) + first, integer_at(next_rows, 1) + first
        for i in range(n_lines):
            fetch(a + i * LINE)
            fetch(b + i * LINE)
    destination = integer_at(overlap.destination, 0)
    # The lines of the last block may reach beyond the tile.
    if destination != 0 and k + 2 * WIDTH <= tile.layout.n_bins:
        n_lines = lines_per_block(rows.p, out.like)
        first = -destination % LINE + block * n_lines * LINE
        for i in range(n_lines):
            stream_line(overlap.staged + first + i * LINE, destination + first + i * LINE)


@jitable
def finish_streaming(tile, n_blocks, n_bytes):
    """Write what `overlap_memory` has left of the last tile's results after `n_blocks` blocks."""
    overlap = tile.overlap
    destination = integer_at(overlap.destination, 0)
    if destination == 0:
        return
    n_lines = greatest(n_blocks - 1, 0) * lines_per_block(tile.rows.p, tile.out.like)
    head = least(-destination % LINE, n_bytes)
    rest = least(head + n_lines * LINE, n_bytes)
    copy(overlap.staged, destination, head)
    copy(overlap.staged + rest, destination + rest, n_bytes - rest)
    put_integer(overlap.destination, 0, 0)
