"""Run the compiled CUDA kernels on the host, and compare their results with those on the CPU.

``python tests/support/run_kernels.py f`` raises if results in float32 differ, if a thread accesses
memory that it must not access, or if two threads race; see test_interpreter.py.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

import fastemd
from fastemd import backends
from fastemd.kernels.cuda import driver
from fastemd.kernels.edges import power
from tests.support import interpreted, threads
from tests.support.device import emd_loss_hvp

LOSSES = fastemd.emd_loss, fastemd.emd_loss_hessian_diag, emd_loss_hvp
device = interpreted.install()


def tree(n_bins, seed=0):
    """Return a tree of random parents; some of its inner nodes have a child only."""
    rng = np.random.default_rng(seed)
    n_inner = n_bins // 2
    parents = [-1, *(rng.integers(max(0, i - 4), i) for i in range(1, n_inner))]
    parents += list(rng.integers(0, n_inner, n_bins))
    lengths = rng.uniform(0.5, 2.0, len(parents))
    bins = rng.permutation(np.arange(n_inner, n_inner + n_bins))
    return fastemd.Tree.from_parents(parents, lengths, bins=bins)


def chain(n_bins, seed=0):
    return fastemd.Chain(n_bins, gaps=np.random.default_rng(seed).uniform(0.5, 2.0, n_bins - 1))


def compare(function, *arrays, space, **keywords):
    """Assert that a function has the same results on the CPU and on the device."""
    on_host = {k: v for k, v in keywords.items() if isinstance(v, np.ndarray)}
    on_device = {k: device.on_device(v) for k, v in on_host.items()}
    rho = keywords.pop("rho", None)
    rest = (space,) if rho is None else (space, rho)
    expected = function(*arrays, *rest, **keywords)
    results = function(*map(device.on_device, arrays), *rest, **(keywords | on_device))
    fastemd.synchronize()
    pairs = (
        zip(results, expected, strict=True)
        if isinstance(expected, tuple)
        else [(results, expected)]
    )
    for result, wanted in pairs:
        assert_close(result.numpy(), wanted)


def assert_close(result, expected):
    """Assert equality up to the order of sums in float64, and two roundings to float32."""
    expected = np.asarray(expected)
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    scale = np.abs(expected).max(initial=0.0)
    rtol = 2.4e-7 if expected.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=1e-12 * scale)


class Cases:
    """Arrays of a type for a ground space."""

    def __init__(self, char, space, seed=0):
        self.rng, self.char, self.space = np.random.default_rng(seed), char, space

    def histograms(self, *shape):
        return self.rng.dirichlet(np.ones(self.space.n_bins), shape).astype(self.char)

    def logits(self, *shape):
        return self.rng.normal(size=(*shape, self.space.n_bins)).astype(self.char)

    def labels(self, *shape):
        return self.rng.integers(self.space.n_bins, size=shape)

    def check_histograms(self, rho, shape_p=(5,), shape_q=(5,)):
        """Check the functions of p and q for an exponent."""
        p, q = self.histograms(*shape_p), self.histograms(*shape_q)
        v, options = self.logits(*shape_p), {"space": self.space, "rho": rho}
        compare(fastemd.emd, p, q, **options)
        compare(fastemd.emd_grad, p, q, **options)
        compare(fastemd.emd_value_and_grad, p, q, **options)
        compare(fastemd.embed, p, **options)
        if rho > 1:
            compare(fastemd.emd_hessian_diag, p, q, **options)
            compare(fastemd.emd_hvp, p, q, v, **options)

    def check_losses(self, rho, functions=LOSSES, targets=("labels", "histograms"), **keywords):
        """Check losses and their derivatives."""
        x, v, options = self.logits(5), self.logits(5), {"space": self.space, "rho": rho}
        for function in functions:
            vectors = (v,) if function is emd_loss_hvp else ()
            for target in targets:
                compare(function, x, getattr(self, target)(5), *vectors, **options, **keywords)


def check_functions(char):
    """Check every function and exponent, with a warp for each row."""
    # One type has exponents on the chain that the other one has on the tree, as every exponent,
    # type and space has kernels that take long to compile. Rows of 40 bins start at multiples of
    # the width of a vector, rows of 37 bins do not.
    first, second = (tree, chain) if char == "f" else (chain, tree)
    cases = Cases(char, first(40))
    cases.check_histograms(1.5)
    cases.check_losses(1.5)
    compare(fastemd.emd_flow, *(cases.histograms(3) for _ in "pq"), space=cases.space)
    cases = Cases(char, second(37))
    for rho in (1, 2):
        cases.check_histograms(rho)
        cases.check_losses(rho, LOSSES if rho > 1 else LOSSES[:1], ("labels",))
    small = Cases(char, second(8))
    compare(fastemd.emd_hessian, *(small.histograms(2) for _ in "pq"), space=small.space,
            rho=1.5)  # fmt: skip


def check_teams(char):
    """Check teams of 8 and 128 threads, and scratch in global memory that slots of rows share."""

    def check(n_bins, of_loss):
        cases = Cases(char, make(n_bins))
        if of_loss:
            cases.check_losses(2, LOSSES[:1])
        else:
            compare(fastemd.emd_hvp, *(cases.histograms(7) for _ in "pqv"),
                    space=cases.space, rho=1.5)  # fmt: skip

    # One type has losses where the other one has products, as they share the functions of teams.
    make, of_loss = (tree, True) if char == "f" else (chain, False)
    for n_bins, n_multiprocessors in ((7, 1), (152, 132)):
        device.n_multiprocessors = n_multiprocessors
        check(n_bins, of_loss)
    with small_memory():
        for n_bins in (37, 152):
            check(n_bins, not of_loss)
    device.n_multiprocessors = 1


@contextlib.contextmanager
def small_memory():
    """Have no scratch fit into shared memory, and few rows at a time."""
    before = driver.SHARED_BYTES, driver.MAX_GLOBAL_ROWS
    driver.SHARED_BYTES, driver.MAX_GLOBAL_ROWS = 128, 3
    yield
    driver.SHARED_BYTES, driver.MAX_GLOBAL_ROWS = before


def check_memory(char):
    """Check arrays that broadcast, and such that are not contiguous."""
    for n_bins in (37, 40):
        check_memory_of(Cases(char, chain(n_bins)))


def check_memory_of(cases):
    space, char, options = cases.space, cases.char, {"space": cases.space, "rho": 2}
    for shapes in (((3, 1), (1, 2)), ((2, 3), (3,)), ((), (6,)), ((0,), (0,))):
        p, q = (cases.histograms(*shape) for shape in shapes)
        compare(fastemd.emd_value_and_grad, p, q, **options)
    p, q = cases.histograms(6), cases.histograms(3)
    compare(fastemd.emd_value_and_grad, p[::2], q, **options)
    compare(fastemd.emd_value_and_grad, p[::-2], q, **options)
    compare(fastemd.emd_grad, np.asfortranarray(p[:3]), q, **options)
    wide = np.zeros((3, 2 * space.n_bins), char)
    wide[:, ::2] = q
    compare(fastemd.emd_value_and_grad, p[:3], wide[:, ::2], **options)
    x = cases.logits(2, 3)
    compare(fastemd.emd_loss, x[:, ::2], cases.labels(2, 2), **options)
    compare(fastemd.emd_loss, np.moveaxis(x, -1, 1), cases.labels(2, 3), axis=1, **options)
    backwards = np.moveaxis(x[..., ::-1].copy(), -1, 1)[:, ::-1]
    compare(fastemd.emd_loss, backwards, cases.labels(2, 3), axis=1, **options)
    targets = np.moveaxis(cases.histograms(2, 3), -1, 0)
    compare(fastemd.emd_loss, np.moveaxis(x, -1, 0), targets, axis=0, **options)


def check_options(char):
    """Check the options of losses."""
    cases = Cases(char, tree(37))
    n_bins, weights = cases.space.n_bins, np.array([1.0, 0.0, 0.5, 2.0, 3.0])
    class_weight = cases.rng.uniform(0.5, 2.0, n_bins)
    cases.check_losses(2, LOSSES, ("labels",), cross_entropy=0.5, sample_weight=weights,
                       reduction="sum")  # fmt: skip
    cases.check_losses(2, LOSSES, ("histograms",), cross_entropy=0.5, label_smoothing=0.1,
                       class_weight=class_weight, reduction="none")  # fmt: skip
    cases.check_losses(2, LOSSES, ("labels",), root=True, label_smoothing=0.1,
                       sample_weight=weights)  # fmt: skip
    for normalize in ("l1", None):
        x, options = cases.histograms(5), {"normalize": normalize, "space": cases.space, "rho": 2}
        compare(fastemd.emd_loss, x, cases.labels(5), **options)
        compare(fastemd.emd_loss_hessian_diag, x, cases.histograms(5), **options)
    labels = np.array([3, 0, 7, 0, 1])
    compare(fastemd.emd_loss, cases.logits(5), labels, ignore_index=0, class_weight=class_weight,
            space=cases.space, rho=2)  # fmt: skip
    aligned = Cases(char, tree(40))
    options = {"label_smoothing": 0.1, "cross_entropy": 0.5}
    options["class_weight"] = np.repeat(aligned.rng.uniform(0.5, 2.0, 40), 2)[::2]
    aligned.check_losses(2, LOSSES[:1], **options)
    device.offset = 8  # no array starts at a multiple of the width of a vector
    aligned.check_losses(2, LOSSES[:1], ("labels",), **options)
    device.offset = 0
    many = Cases(char, chain(3))  # several blocks of the kernels that sum rows
    device.observer = lambda: None
    compare(fastemd.emd_loss, many.logits(1100), many.labels(1100), space=many.space, rho=2)
    device.observer = threads.Races


def check_rows_in_turns(char):
    """Check that few blocks process the rows in turns."""
    most, driver.MOST_BLOCKS = driver.MOST_BLOCKS, 2
    cases = Cases(char, chain(40))
    compare(fastemd.emd_loss, cases.logits(11), cases.labels(11), space=cases.space, rho=2)
    driver.MOST_BLOCKS = most


def check_many_rows(char):
    """Check the last rows of a batch that 32 bits cannot count."""
    cases, n_groups, rows_per_group, n_last = Cases(char, tree(40)), 2, (1 << 31) - 3, 4
    p, q = cases.histograms(2), cases.histograms(1)
    n_rows, size = n_groups * rows_per_group, p.itemsize
    values = device.copy(np.zeros(n_last, char))

    def rows(array, group_stride):
        array = device.copy(array)
        shape, strides = (n_groups, rows_per_group, 40), (group_stride, 0, size)
        return backends.DeviceArray(array, shape, array.dtype, array.ctypes.data, strides)

    start = values.ctypes.data - (n_rows - n_last) * size
    value = backends.DeviceArray(values, (n_rows,), values.dtype, start)
    device.last_blocks = 2
    inputs, errors = (rows(p, p.strides[0]), rows(q, 0), driver.NO_ARRAY), np.zeros(2, np.int64)
    driver.launch(
        "gradient", cases.space.layout("levels"), inputs, power(2.0), value, driver.NO_ARRAY, True,
        1e-3, driver.upload(errors), None, 0, 0,
    )  # fmt: skip
    device.last_blocks = None
    assert_close(values, np.repeat(fastemd.emd(p[1], q[0], cases.space, 2), n_last))


def check_invalid_rows(char):
    """Check that the first invalid row is reported."""
    cases = Cases(char, chain(37))
    p, q, x = cases.histograms(9), cases.histograms(9), cases.logits(9)
    p[5, 1], p[7, 0] = -1.0, np.nan
    assert_reports(5, fastemd.emd_grad, p, q, cases.space)
    q[2] *= 2
    assert_reports(2, fastemd.emd_grad, p, q, cases.space)
    labels = cases.labels(9)
    x[6, 3] = np.nan
    assert_reports(6, fastemd.emd_loss, x, labels, cases.space)
    labels[4] = cases.space.n_bins
    assert_reports(4, fastemd.emd_loss, x, labels, cases.space)


def assert_reports(row, function, *arguments):
    *arrays, space = arguments
    function(*map(device.on_device, arrays), space, 2)
    with pytest.raises(ValueError, match=f"row {row}"):
        fastemd.synchronize()


# Strides and options do not depend on the type, so each is checked with one of them.
CHECKS = {
    "f": (check_functions, check_teams, check_memory, check_many_rows, check_invalid_rows),
    "d": (check_functions, check_teams, check_options, check_rows_in_turns),
}

if __name__ == "__main__":
    for check in CHECKS[sys.argv[1]]:
        check(sys.argv[1])
    rows = [x for x in device.launches if x[2][1] > 1 or x[2][0] == 128]
    assert {block[0] for _, _, block, _, _ in rows} == {8, 32, 128}
    assert 0 in {shared for *_, shared, _ in rows}
