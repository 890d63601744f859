"""How kernels are launched: the chunks of threads, busy machines, and memory that is missing."""

import numba
import numpy as np
import pytest

import fastemd
from fastemd.kernels.cpu import compiling, driver
from fastemd.kernels.edges import power

CHAIN = fastemd.Chain(3)
MANY = driver.PARALLEL_FROM


@pytest.fixture
def clock(monkeypatch):
    """Return a list with the time in seconds, which stands still unless a test changes it."""
    now = [100.0]
    monkeypatch.setattr(driver, "perf_counter", lambda: now[0])
    monkeypatch.setattr(driver, "_serial_until", 0.0)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    return now


@pytest.mark.parametrize("result", [0, 7])
def test_calls_are_serial_after_threads_came_too_late(result, clock):
    calls = []

    def kernel(launcher, n_threads, n_chunks):
        calls.append((n_threads, n_chunks))
        clock[0] += 0.5
        return ~result if len(calls) == 1 else result

    def launch(seconds):
        clock[0] = seconds
        assert driver._launch(kernel, MANY, ()) == result

    launch(100.0)
    end = 100.5 + driver.PATIENCE * 0.5
    launch(end - 0.1)
    launch(end + 0.1)
    launch(end + 0.7)
    parallel = 2, 2 * driver.CHUNKS
    assert calls == [parallel, (1, 1), parallel, parallel]
    assert driver._one_parallel_kernel.acquire(blocking=False)
    driver._one_parallel_kernel.release()


def _run(kernel, n_threads, n_chunks, rows):
    arguments = np.empty((1, 1, 0)), 1.0, 1.0, 1.0, 1.0, np.zeros(2), np.empty((1, 1, 0)), 1.0, 1e-5
    launcher = compiling.launcher() if n_threads > 1 else 0
    return kernel(
        launcher, n_threads, n_chunks, CHAIN.layout("levels").edges, rows, rows, *arguments
    )


def test_kernel_tells_that_one_thread_did_all():
    kernel = compiling.kernel("gradient", True, "2", False, "d")
    rows = np.full((1, 2, 3), 1 / 3)
    assert _run(kernel, 1, 1, rows) == 2
    assert _run(kernel, 2, 1, rows) == ~2  # of one chunk the second thread gets nothing
    rows[0, 1, 0] = -1.0
    assert _run(kernel, 1, 1, rows) == 1
    assert _run(kernel, 2, 1, rows) == ~1


def test_missing_memory_for_scratch_raises():
    rows = np.broadcast_to(1.0, (1, 1, 1 << 58))
    layout = CHAIN.layout("levels")
    with pytest.raises(MemoryError, match="scratch"):
        driver.run(
            "gradient", layout, (rows, rows, np.empty((1, 1, 0))), power(2), np.zeros(1),
            np.empty((1, 1, 0)), True, -1.0,
        )  # fmt: skip
