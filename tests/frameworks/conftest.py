"""Fixtures of the tests of several files."""

import pytest

from tests.support.frameworks import needed


@pytest.fixture(params=[True, False], ids=["XLA's interface", "pure_callback"])
def ffi_or_callback(request, monkeypatch):
    """Run a test with the FFI and with the callback."""
    jax, programs = needed("jax"), needed("fastemd.jax.programs")
    jax.clear_caches()
    monkeypatch.setattr(programs, "KNOWN", request.param)
    yield
    jax.clear_caches()
