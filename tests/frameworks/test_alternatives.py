"""Other libraries solve the problems of benchmarks/alternatives.py, as the page states."""

import pytest

from benchmarks.alternatives import errors, runs_of, tables
from tests.support.frameworks import needed

OPTIONAL = "OTT", "geomloss", "dlordinal"  # not in the extra `test`


@pytest.mark.parametrize("index", range(5))
def test_alternatives_agree_with_exact_results(index):
    needed("torch"), needed("jax")
    table = tables(quick=True)[index]
    problems, runs = runs_of(table)
    missing = set(table.methods) - set(runs)
    assert all(name.startswith(OPTIONAL) for name in missing)
    for name, run in runs.items():
        value_error, grad_error = errors(problems[name], *run())
        value_limit, grad_limit = table.methods[name].limits
        assert value_error < value_limit, name
        assert grad_error is None or grad_error < grad_limit, name
