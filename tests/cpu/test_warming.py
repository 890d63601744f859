"""`warm_up` compiles what functions launch; a long compilation is announced once."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastemd
from fastemd import warming
from fastemd.kernels.cpu import compiling, driver

FEW, MANY = (1,), (5,)
TREE = fastemd.Tree.from_parents([4, 4, 5, 5, 6, 6, -1])


@pytest.fixture
def launched(monkeypatch):
    """Return the set of the kernels that are requested."""
    keys, kernel = set(), compiling.kernel

    def record(*key):
        keys.add(key)
        return kernel(*key)

    monkeypatch.setattr(compiling, "kernel", record)
    driver._kernel.cache_clear()
    yield keys
    driver._kernel.cache_clear()


def _call(name, space, rho, shape, dtype, rng):
    p, q, v = rng.dirichlet(np.ones(space.n_bins), (3, *shape)).astype(dtype)
    arguments = {"emd_flow": (p, q, space), "embed": (p, space, rho), "emd_hvp": (p, q, v, space)}
    arguments = arguments.get(name, (p, q, space))
    extra = () if name in ("emd_flow", "embed") else (rho,)
    getattr(fastemd, name)(*arguments, *extra)


@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("name", warming.FUNCTIONS)
def test_warm_up_prepares_what_functions_launch(name, is_chain, launched, rng):
    space = fastemd.Chain(5) if is_chain else TREE
    for rho in (2, 3.7):
        launched.clear()
        fastemd.warm_up(space, rho=rho, dtype=["float32", float], functions=name)
        prepared = set(launched)
        launched.clear()
        driver._kernel.cache_clear()
        for dtype in (np.float32, float):
            for shape in (FEW, MANY):
                _call(name, space, rho, shape, dtype, rng)
        assert launched == prepared


def test_warm_up_prepares_narrow_kernels_of_huge_trees(launched, monkeypatch):
    monkeypatch.setattr(driver, "MANY_EDGES", 3)
    fastemd.warm_up(TREE, functions="emd_value_and_grad")
    assert {key[3] for key in launched} == {True}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"functions": "emd_lost"}, ValueError, r"functions: expected names of emd, .*'emd_lost'"),
        ({"functions": ["emd", "sinkhorn"]}, ValueError, "got 'sinkhorn'"),
        ({"dtype": int}, TypeError, "dtype: expected float32 or float64"),
        ({"dtype": ["float32", "float16"]}, TypeError, "dtype: expected float32 or float64"),
        ({"rho": 0.5}, ValueError, "rho: "),
        ({"space": 3}, TypeError, "space: expected a fastemd.Chain"),
    ],
)
def test_warm_up_rejects(arguments, error, message):
    arguments = {"space": fastemd.Chain(3), **arguments}
    with pytest.raises(error, match=message):
        fastemd.warm_up(**arguments)


# -- in separate processes -------------------------------------------------------------------------


def _run(code, folder, stderr=subprocess.PIPE, **environment):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("processes", ["", "sys.executable = '/nowhere'; "])
def test_warm_up_compiles_in_processes(processes, tmp_path):
    code = f"""
import sys, fastemd, subprocess
{processes}
started = []
Popen = subprocess.Popen
subprocess.Popen = lambda *args, **keywords: started.append(args) or Popen(*args, **keywords)
fastemd.warm_up(fastemd.Chain(4), functions="emd")
print(len(started))
"""
    done = _run(code, tmp_path, NUMBA_NUM_THREADS="2")
    assert done.stdout == "1\n"
    names = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.rglob("*.nbc"))
    assert [name.rpartition(".")[2] for name in names] == [
        "gradient_chain_2_narrow", "gradient_chain_2_wide", "launch",
    ]  # fmt: skip
    assert _run(code, tmp_path, NUMBA_NUM_THREADS="2").stdout == "0\n"


TWO_KERNELS = """
import logging
{logging}
import fastemd
from fastemd.kernels import jitable
jitable.ANNOUNCED_AFTER = 0.0
for rho in (1, 2):
    fastemd.emd([1, 0], [0, 1], fastemd.Chain(2), rho)
"""


def test_compilation_is_logged_once(tmp_path):
    code = TWO_KERNELS.format(logging="logging.basicConfig(level=logging.INFO)")
    assert _run(code, tmp_path).stderr.count("INFO:fastemd:compiling kernels") == 1
    assert _run(code, tmp_path).stderr == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_compilation_is_printed_once_in_terminals(tmp_path):
    leader, follower = os.openpty()
    _run(TWO_KERNELS.format(logging=""), tmp_path, stderr=follower)
    os.close(follower)
    assert os.read(leader, 10_000).decode().count("fastemd: compiling kernels") == 1
    os.close(leader)
    assert _run(TWO_KERNELS.format(logging=""), tmp_path / "other").stderr == ""
