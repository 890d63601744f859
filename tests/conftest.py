"""Hypothesis profiles, fixtures, and the fixed ground spaces of most tests."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.support import device, naive
from tests.support.operations import OPERATIONS
from tests.support.strategies import RHOS, chain_case, random_ground, tree_case

# Optimisation of machine code by XLA takes a quarter of the time of the tests with JAX.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

# No deadline and no check of slow data, since the first example of a test may compile a kernel.
settings.register_profile(
    "local", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True
)
settings.register_profile("simulator", parent=settings.get_profile("ci"), max_examples=10)
settings.load_profile(
    "simulator" if device.SIMULATED else "ci" if os.environ.get("CI") else "local"
)

if device.SIMULATED:
    from tests.support import simulator

    simulator.install(tensors=device.DEVICE == "torch")

MARKERS = {"any_backend", "torch_backend"} if device.DEVICE == "torch" else {"any_backend"}


def pytest_ignore_collect(collection_path):
    """Import no file without a marked test off the CPU: it may need packages that are missing."""
    if device.DEVICE == "cpu" or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    return not any(f"pytest.mark.{marker}" in text for marker in MARKERS) or None


def pytest_collection_modifyitems(config, items):
    """Deselect tests without a marker off the CPU."""
    if device.DEVICE == "cpu":
        return
    selected = [
        item for item in items if any(item.get_closest_marker(marker) for marker in MARKERS)
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected


def _binary(levels):
    n = 2**levels - 1
    parent = [-1] + [(i - 1) // 2 for i in range(1, n)]
    weight = [0.0] + [0.5 + i % 3 for i in range(1, n)]
    return naive.Ground(parent, weight, list(range(n // 2, n)))


MANY, SOME = (60, 20) if device.SIMULATED else (300, 100)  # the simulator is slow

CASES = {
    "chain of 1": chain_case(1),
    "chain of 2": chain_case(2),
    "chain of 7": chain_case(7),
    "chain with gaps": chain_case(SOME, [0.25 + i % 5 for i in range(SOME - 1)]),
    "one node": tree_case(naive.Ground([-1], [0.0], [0])),
    "star": tree_case(naive.Ground([5] * 5 + [-1], [1, 2, 0, 0.5, 3, 0], [4, 0, 1, 2, 3])),
    "binary tree": tree_case(_binary(5)),
    "random tree": tree_case(random_ground(np.random.default_rng(300), MANY)),
    # Two bins at the ends of a path, below a stem that carries no flow and a leaf without a bin.
    "unary path": tree_case(naive.Ground([1, 2, 3, 4, -1, 3], [1, 2, 0.5, 4, 0, 9], [2, 0])),
    "every node a bin": tree_case(naive.Ground([2, 2, 4, 4, -1], [1, 1, 2, 3, 0], [4, 0, 2, 1, 3])),
}


@pytest.fixture(scope="session")
def backend():
    """The functions of fastemd, for NumPy arrays, computed with arrays of the chosen backend."""
    return device.BACKEND


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture(params=["chain of 7", "every node a bin"], ids=["chain", "tree"])
def small_case(request):
    """One chain and one tree, for tests in which only the kind of space matters."""
    return CASES[request.param]


@pytest.fixture(params=OPERATIONS, ids=lambda operation: operation.name)
def operation(request):
    return request.param


@pytest.fixture(params=RHOS)
def rho(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20161122)
