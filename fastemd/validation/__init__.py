"""Every message a user can get for bad input."""

from fastemd.validation.arguments import (
    check_amount,
    check_bins_axis,
    check_choice,
    check_columns,
    check_cost,
    check_count,
    check_dtype,
    check_one_histogram,
    check_out,
    check_out_pair,
    check_rho,
    complex_numbers,
    do_not_broadcast,
    mixed_devices,
    mixed_libraries,
    no_cuda,
    no_gradient,
    no_third_derivative,
    not_a_tensor,
    not_an_array,
    not_readable,
    not_solved,
    only_on_cpu,
    outs_overlap,
    unknown_device,
)
from fastemd.validation.histograms import (
    bad_on_device,
    blame,
    check_validate,
    mass_tolerance,
)
from fastemd.validation.losses import (
    bad_target,
    blame_loss,
    check_boosted,
    check_cross_entropy,
    check_ignore_index,
    check_labels_shape,
    check_normalize,
    check_target,
    check_weights,
)
from fastemd.validation.spaces import (
    check_bins,
    check_lengths,
    check_parents,
    not_a_space,
    not_a_tree,
    space_is_gone,
)
