"""Losses on the CPU: a tile of logits (or of masses) to the derivatives in them.

With D what the sweep down gives (the derivative in p) and c the weight of the cross entropy, the
derivative in x is, with a and r from `fastemd.kernels.normalize.Form`::

    a (D - <r, D> + c (1 - q / p))       softmax: a = r = p;  l1: a = 1 / total, r = p

and without normalisation a (D - <r, D>), where a = 1, r = 1 / N and the derivative of the cross
entropy, -c q / p, is in D. For 1 stands the mass of the target. The formulas for the second
derivatives are in `second_column` and `product_column`.
"""

from numba.extending import register_jitable

from fastemd.kernels.blocks import read_block, read_column, write_block, write_column
from fastemd.kernels.cpu import down, down_bins, down_to_bins, flow_edge, up, write
from fastemd.kernels.edges import BEND, SLOPE
from fastemd.kernels.entropy import (
    add_bend,
    add_entropy,
    add_product,
    add_slope,
    cross_entropies,
)
from fastemd.kernels.lanes import (
    integer_at,
    lane,
    load,
    multiply_add,
    n_lanes,
    number_at,
    put_number,
    splat,
    store,
)
from fastemd.kernels.lines import write_number
from fastemd.kernels.normalize import L1, NONE, SOFTMAX, centre_column, form_of, label, weigh

# -------------------------------------------------------- what the sweeps start from: p - q, r, u


@register_jitable
def deviation_block(tile, scale, k):
    y = tile.y
    a, b = load(y, k) * scale, load(y, k + 1) * scale
    c, d = load(y, k + 2) * scale, load(y, k + 3) * scale
    if not tile.labelled:
        e, f, g, h = read_block(tile.q_rows, splat(y, 0.0), k, tile.like)
        a, b, c, d = a - e, b - f, c - g, d - h
    return a, b, c, d


@register_jitable
def deviation_column(tile, scale, k):
    d = load(tile.y, k) * scale
    if not tile.labelled:
        d = d - read_column(tile.q_rows, splat(tile.y, 0.0), k, tile.like)
    return d


@register_jitable
def deviation_up(tile, total, scale, join, edge, function):
    """The sweep up of ``p - q``; of labels, one is taken from p meanwhile."""
    lanes, kept = n_lanes(tile.y), tile.spare
    if tile.labelled:
        for r in range(lanes):
            k = label(tile, r) * lanes + r
            put_number(kept, r, number_at(tile.y, k))
            put_number(tile.y, k, number_at(tile.y, k) - lane(total, r))
    sums = up(tile, tile.x, deviation_block, deviation_column, scale, join, edge, function)
    if tile.labelled:
        for r in range(lanes):
            put_number(tile.y, label(tile, r) * lanes + r, number_at(kept, r))
    return sums


@register_jitable
def centre_block(tile, form, k):
    return (
        centre_column(tile, form, k),
        centre_column(tile, form, k + 1),
        centre_column(tile, form, k + 2),
        centre_column(tile, form, k + 3),
    )


@register_jitable
def change_block(tile, _, k):
    u = tile.u
    return load(u, k), load(u, k + 1), load(u, k + 2), load(u, k + 3)


@register_jitable
def change_column(tile, _, k):
    return load(tile.u, k)


# ------------------------------------------------------------------------- functions on every edge


@register_jitable
def loss_edge(tile, e, flow, slope, value, _):
    psi = slope(flow, number_at(tile.weight, e), tile.rho)
    return psi, multiply_add(flow, psi, value), _


@register_jitable
def second_edge(tile, e, flow, bend, centre, grand):
    """The slope; in ``z``, where the flow of r was, what makes the diagonal."""
    slope, h = bend(flow, number_at(tile.weight, e), tile.rho)
    share = load(tile.z, e)
    store(tile.z, e, h - 2.0 * (h * share))
    return slope, multiply_add(slope, share, centre), multiply_add(h, share * share, grand)


@register_jitable
def change_edge(tile, e, flow, bend, value, _):
    """The slope; in ``z``, where the flow of u was, the curvature times it."""
    slope, h = bend(flow, number_at(tile.weight, e), tile.rho)
    store(tile.z, e, h * load(tile.z, e))
    return slope, value, _


# ------------------------------------------------------------------------- what the sweeps end with


@register_jitable
def keep_block(tile, x, k, a, b, c, d, given):
    store(x, k, a)
    store(x, k + 1, b)
    store(x, k + 2, c)
    store(x, k + 3, d)
    return given


@register_jitable
def keep_column(tile, x, k, total, given):
    store(x, k, total)
    return given


@register_jitable
def slope_block(tile, x, k, a, b, c, d, given):
    write_block(
        slope(tile, k, a, given), slope(tile, k + 1, b, given),
        slope(tile, k + 2, c, given), slope(tile, k + 3, d, given),
        tile.out_rows, k, tile.like_out,
    )  # fmt: skip
    return given


@register_jitable
def slope_last(tile, x, k, total, given):
    write_column(slope(tile, k, total, given), tile.out_rows, k, tile.like_out)
    return given


@register_jitable
def slope(tile, k, total, given):
    a_y, a_1, shift = given
    return multiply_add(load(tile.y, k), a_y, a_1) * (total + shift)


@register_jitable
def slope_column(tile, k, given):
    form, shift = given
    q = max(read_column(tile.q_rows, splat(tile.y, 0.0), k, tile.like), 0.0)
    change = slope(tile, k, load(tile.x, k), (form.a_y, form.a_1, shift))
    return form.factor * (change - tile.cross_entropy * q)


# ----------------------------------------------------------------------- one tile of each operation


@register_jitable
def centre_of(tile, form, x):
    """<r, x>."""
    total = splat(tile.y, 0.0)
    for k in range(tile.n_bins):
        total = multiply_add(centre_column(tile, form, k), load(x, k), total)
    return total


@register_jitable
def loss_tile(tile, join, above, slope_of_edge):
    total, zero = weigh(tile), splat(tile.y, 0.0)
    form = form_of(tile, total)
    value, _ = deviation_up(tile, total, form.scale, join, loss_edge, slope_of_edge)
    result = value * (1.0 / tile.rho)
    if tile.cross_entropy > 0.0:
        result = result + cross_entropies(tile, total, form)
    a_y, a_1 = form.a_y * form.factor, form.a_1 * form.factor
    quick = tile.labelled and tile.normalize != NONE and tile.n_edges > tile.n_bins
    quick = quick and (tile.normalize == SOFTMAX or tile.cross_entropy == 0.0)
    if quick:  # <p, D> = <p - q, D> + <q, D> is known before the sweep reaches the bins
        down_to_bins(tile, tile.x, zero)
        centre = value + labelled_sums(tile, True)
        given = a_y, a_1, form.entropy - centre
        down_bins(tile, tile.x, zero, above, slope_block, slope_last, given)
    else:
        down(tile, tile.x, zero, above, keep_block, keep_column, 0)
        centre = centre_of(tile, form, tile.x)
        if tile.cross_entropy > 0.0 and tile.normalize != SOFTMAX:
            centre = centre + form.r_1 * add_entropy(tile, form, add_slope)
        shift = form.entropy - centre
        if tile.labelled or tile.normalize != SOFTMAX:
            write(tile, kept_column, (a_y, a_1, shift))
        else:
            write(tile, slope_column, (form, shift))
    if tile.labelled and tile.cross_entropy > 0.0 and tile.normalize == SOFTMAX:
        write_labelled(tile, form, labelled_sums(tile, quick) - centre)
    return result


@register_jitable
def kept_column(tile, k, given):
    return slope(tile, k, load(tile.x, k), given)


@register_jitable
def labelled_sums(tile, quick):
    """What the sweep down gives, or would give, for the labels."""
    lanes = n_lanes(tile.x)
    for r in range(lanes):
        k = label(tile, r)
        total = number_at(tile.x, k * lanes + r)
        if quick:
            total += number_at(tile.x, integer_at(tile.parent, k) * lanes + r)
        put_number(tile.spare, r, total)
    return load(tile.spare, 0)


@register_jitable
def write_labelled(tile, form, slopes):
    """Write the derivatives in the logits of the labels anew, less c; rounded once."""
    lanes = n_lanes(tile.x)
    for r in range(lanes):
        k = label(tile, r)
        p = number_at(tile.y, k * lanes + r) * lane(form.scale, r)
        result = lane(form.factor, r) * (p * lane(slopes, r) + tile.cross_entropy * (p - 1.0))
        write_number(result, integer_at(tile.out_rows, r), k, tile.like_out)


@register_jitable
def second_tile(tile, join, above, bend):
    """The diagonal of the second derivative."""
    total, zero = weigh(tile), splat(tile.y, 0.0)
    form = form_of(tile, total)
    up(tile, tile.z, centre_block, centre_column, form, join, flow_edge, bend)
    centre, grand = deviation_up(tile, total, form.scale, join, second_edge, bend)
    down(tile, tile.z, zero, above, keep_block, keep_column, 0)
    down(tile, tile.x, zero, above, keep_block, keep_column, 0)
    if tile.cross_entropy > 0.0 and tile.normalize != SOFTMAX:
        grand = grand + form.r_1 * form.r_1 * add_entropy(tile, form, add_bend)
    write(tile, second_column, (form, centre, grand))
    return zero


@register_jitable
def second_column(tile, k, given):
    """``a^2 (Z + <r, H r>) + (a' p - 2 a^2) (D - <r, D>)``, a' = 1 for softmax and 0 for l1."""
    form, centre, grand = given
    y = load(tile.y, k)
    a, slope = multiply_add(y, form.a_y, form.a_1), load(tile.x, k) - centre
    bent = load(tile.z, k) + grand - 2.0 * form.bent * slope - form.entropy
    return form.factor * (a * (a * bent) + y * form.a_y * (slope + form.entropy))


@register_jitable
def product_tile(tile, join, above, bend):
    """The second derivative times `v`; u is what p changes by along v."""
    total, zero = weigh(tile), splat(tile.y, 0.0)
    form = form_of(tile, total)
    along = fill_change(tile, form)
    up(tile, tile.z, change_block, change_column, 0, join, flow_edge, bend)
    deviation_up(tile, total, form.scale, join, change_edge, bend)
    down(tile, tile.z, zero, above, keep_block, keep_column, 0)
    down(tile, tile.x, zero, above, keep_block, keep_column, 0)
    centre, mean, turn = centre_of(tile, form, tile.x), centre_of(tile, form, tile.z), zero
    for k in range(tile.n_bins):
        turn = multiply_add(load(tile.u, k), load(tile.x, k), turn)
    mean = mean + form.bent * turn
    if tile.cross_entropy > 0.0 and tile.normalize != SOFTMAX:
        mean = mean + form.r_1 * add_entropy(tile, form, add_product)
    write(tile, product_column, (form, centre, mean, along))
    return zero


@register_jitable
def fill_change(tile, form):
    """Fill ``u``; for l1 return how fast the sum changes, else 0."""
    rows, u, zero = tile.v_rows, tile.u, splat(tile.y, 0.0)
    mean, along = zero, zero
    for k in range(tile.n_bins):
        v = read_column(rows, zero, k, tile.like)
        store(u, k, v)
        mean = multiply_add(centre_column(tile, form, k), v, mean)
        along = along + v
    if tile.normalize == L1:
        mean = zero
    else:
        along = zero
    for k in range(tile.n_bins):
        y = load(tile.y, k)
        change = load(u, k) - mean - y * form.scale * along
        store(u, k, multiply_add(y, form.a_y, form.a_1) * change)
    return along


@register_jitable
def product_column(tile, k, given):
    """``a (H u - <r, H u> - <u, D>) + (a' u - a^2 sum(v)) (D - <r, D>)``, a' as above."""
    form, centre, mean, along = given
    u, slope = load(tile.u, k), load(tile.x, k) - centre + form.entropy
    a, soft = multiply_add(load(tile.y, k), form.a_y, form.a_1), form.a_y * (1.0 / form.scale)
    change = load(tile.z, k) - mean - form.a_1 * along * slope
    return form.factor * (a * change + soft * u * slope)


# A tile, the functions on its edges, and how many of the scratches x, y, z, u it needs.
LOSSES = {
    "loss": (loss_tile, SLOPE, 2),
    "loss_diagonal": (second_tile, BEND, 3),
    "loss_product": (product_tile, BEND, 4),
}
