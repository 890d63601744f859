"""How kernels are launched: the chunks of threads, busy machines, and memory that is missing."""

import numba
import numpy as np
import pytest

import fastemd
from fastemd.kernels.cpu import compiling, driver
from fastemd.kernels.edges import power

CHAIN = fastemd.Chain(3)
MANY = 3 * driver.ELEMENTS_PER_THREAD  # for all threads of `clock`


class FakeKernel:
    """A kernel that takes half a second, with so many `in_time` of the threads."""

    def __init__(self, clock, in_time):
        self.clock, self.in_time, self.calls = clock, in_time, []

    def __call__(self, launcher, n_threads, n_chunks):
        self.calls.append((n_threads, n_chunks, numba.get_num_threads()))
        self.clock[0] += 0.5
        return 7, min(self.in_time, n_threads)

    def threads_of_next_call(self, seconds, n_elements):
        """Launch at a time, and return the number of threads, which must be that of Numba."""
        self.clock[0] = seconds
        assert driver._launch(self, 1000, n_elements, ()) == 7
        n_threads, n_chunks, n_all = self.calls[-1]
        assert n_chunks == (driver.CHUNKS_PER_THREAD * n_threads if n_threads > 1 else 1)
        assert n_threads in (1, n_all)
        return n_threads


@pytest.fixture
def clock(monkeypatch):
    """Return a list with the time in seconds, which stands still unless a test changes it."""
    now, n_threads = [0.0], [3]
    monkeypatch.setattr(driver, "perf_counter", lambda: now[0])
    monkeypatch.setattr(driver, "_late", (0.0, 0, 0))
    monkeypatch.setattr(numba, "get_num_threads", lambda: n_threads[0])
    monkeypatch.setattr(numba, "set_num_threads", lambda n: n_threads.__setitem__(0, n))
    yield now
    assert n_threads == [3]
    assert driver._one_parallel_kernel.acquire(blocking=False)
    driver._one_parallel_kernel.release()


@pytest.mark.parametrize("in_time", [1, 2])
def test_launch_leaves_late_threads_out_for_a_while(in_time, clock):
    kernel, end = FakeKernel(clock, in_time), 100.5 + driver.WITHOUT_LATE_THREADS * 0.5
    assert kernel.threads_of_next_call(100.0, 2 * MANY) == 3
    assert kernel.threads_of_next_call(101.0, MANY) == in_time
    assert kernel.threads_of_next_call(end - 0.1, 2 * MANY) == in_time
    assert kernel.threads_of_next_call(end + 0.1, 2 * MANY) == 3  # late again
    assert kernel.threads_of_next_call(end + 1.0, 2 * MANY + 1) == 3  # a larger call
    assert kernel.threads_of_next_call(end + 1.0, 2 * MANY) == in_time


def test_launch_keeps_threads_in_time(clock):
    kernel = FakeKernel(clock, 3)
    for seconds in (100.0, 101.0):
        assert kernel.threads_of_next_call(seconds, MANY) == 3
    assert kernel.threads_of_next_call(102.0, MANY * 2 // 3 - 1) == 1


@pytest.mark.parametrize(("n_elements", "n_threads"), [(39_999, 1), (40_000, 2), (10**9, 3)])
def test_take_threads_grows_with_elements(n_elements, n_threads, clock):
    assert driver.take_threads(n_elements) == n_threads
    if n_threads > 1:
        driver.give_threads_back()


def test_emd_loss_counts_elements_twice(monkeypatch):
    counts, take_threads = [], driver.take_threads
    monkeypatch.setattr(driver, "take_threads", lambda n: counts.append(n) or take_threads(n))
    fastemd.emd_loss(np.zeros((5, 3)), np.zeros(5, int), CHAIN)
    assert counts == [2 * 15]


def _run(kernel, n_threads, n_chunks, rows):
    arguments = np.empty((1, 1, 0)), 1.0, 1.0, 1.0, 1.0, np.zeros(2), np.empty((1, 1, 0)), 1.0, 1e-5
    launcher = compiling.launcher() if n_threads > 1 else 0
    edges = CHAIN.layout("levels").edges
    return kernel(launcher, n_threads, n_chunks, edges, rows, rows, *arguments)


def test_kernel_returns_invalid_row_and_number_of_threads_in_time():
    kernel = compiling.kernel("gradient", True, "2", False, "d")
    rows = np.full((1, 2, 3), 1 / 3)
    assert _run(kernel, 1, 1, rows) == (2, 1)
    assert _run(kernel, 2, 1, rows) == (2, 1)  # of one chunk the second thread gets nothing
    assert _run(kernel, 2, 5, rows) in ((2, 1), (2, 2))
    rows[0, 1, 0] = -1.0
    assert _run(kernel, 1, 1, rows) == (1, 1)
    assert _run(kernel, 2, 1, rows) == (1, 1)


def test_missing_memory_for_scratch_raises():
    rows = np.broadcast_to(1.0, (1, 1, 1 << 58))
    layout = CHAIN.layout("levels")
    with pytest.raises(MemoryError, match="fewer threads"):
        driver.run(
            "gradient", layout, (rows, rows, np.empty((1, 1, 0))), power(2), np.zeros(1),
            np.empty((1, 1, 0)), True, -1.0,
        )  # fmt: skip
