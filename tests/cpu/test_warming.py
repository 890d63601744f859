"""`warm_up` compiles what functions launch; a long compilation is announced once."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastemd
from fastemd import warming
from fastemd.kernels.cpu import compiling, driver
from tests.support.operations import call_by_name

FEW, MANY = (1,), (5,)
TREE = fastemd.Tree.from_parents([4, 4, 5, 5, 6, 6, -1])


@pytest.fixture
def requested(monkeypatch):
    """Return the set of the kernels that are requested, of which none is compiled."""
    keys = set()

    def kernel(*key):
        keys.add(key)
        return lambda *arguments: (10**9, 1)

    monkeypatch.setattr(compiling, "kernel", kernel)
    monkeypatch.setattr(compiling, "is_cached", lambda *key: True)
    driver._kernel.cache_clear()
    yield keys
    driver._kernel.cache_clear()


def test_warm_up_knows_all_functions():
    names = {name for name in fastemd.__all__ if name.startswith("emd")}
    assert set(warming.FUNCTIONS) == names | {"embed", "emd_loss_hvp", "pairwise", "neighbors"}


@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("name", warming.FUNCTIONS)
def test_warm_up_prepares_the_kernels_of_functions(name, is_chain, requested, rng):
    space = fastemd.Chain(5) if is_chain else TREE
    fastemd.warm_up(space, rho=[1, 2, 3.7], dtype=["float32", float], functions=name)
    prepared = set(requested)
    requested.clear()
    driver._kernel.cache_clear()
    for rho in (1, 2, 3.7):
        for dtype in (np.float32, float):
            for shape in (FEW, MANY):
                arrays = rng.dirichlet(np.ones(space.n_bins), (3, *shape)).astype(dtype)
                call_by_name(name, *arrays, space, rho)
    assert requested == prepared


def test_warm_up_prepares_narrow_kernels_of_huge_trees(requested, monkeypatch):
    monkeypatch.setattr(driver, "MANY_EDGES", 3)
    fastemd.warm_up(TREE, functions="emd_value_and_grad")
    assert {key[3] for key in requested} == {True}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"functions": "emd_lost"}, ValueError, r"functions: expected names of emd, .*'emd_lost'"),
        ({"functions": ["emd", "sinkhorn"]}, ValueError, "got 'sinkhorn'"),
        ({"dtype": int}, TypeError, "dtype: expected float32 or float64"),
        ({"dtype": ["float32", "float16"]}, TypeError, "dtype: expected float32 or float64"),
        ({"rho": 0.5}, ValueError, "rho: "),
        ({"device": "cuda:0"}, TypeError, "device: expected the number of a CUDA device"),
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


@pytest.mark.parametrize(
    ("executable", "n_compiled"), [("sys.executable", 1), ("'/nowhere'", 2), ("''", 2)]
)
def test_warm_up_compiles_in_processes(executable, n_compiled, tmp_path):
    code = f"""
import multiprocessing, sys, fastemd
from fastemd.kernels.jitable import KernelCompiler
multiprocessing.set_executable({executable})
compiled, compile_extra = [], KernelCompiler.compile_extra
KernelCompiler.compile_extra = lambda *args: compiled.append(args) or compile_extra(*args)
fastemd.warm_up(fastemd.Chain(4), functions="emd")
print(len(compiled))
"""
    assert _run(code, tmp_path, NUMBA_NUM_THREADS="2").stdout == f"{n_compiled}\n"
    names = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.rglob("*.nbc"))
    assert [name.rpartition(".")[2] for name in names] == [
        "gradient_chain_2_narrow", "gradient_chain_2_wide", "launch",
    ]  # fmt: skip
    assert _run(code, tmp_path, NUMBA_NUM_THREADS="2").stdout == "0\n"


def test_pairwise_compiles_nothing_after_warm_up(tmp_path):
    code = """
import fastemd, numpy as np
from scipy.sparse import csr_array
from fastemd.kernels.jitable import KernelCompiler
tree = fastemd.Tree.from_parents([4, 4, 5, 5, 6, 6, -1])
fastemd.warm_up(tree, rho=[1, 2], dtype="float64", functions=["pairwise", "neighbors"])
compiled, compile_extra = [], KernelCompiler.compile_extra
KernelCompiler.compile_extra = lambda *args: compiled.append(args) or compile_extra(*args)
for n_rows in (3, 600):
    P = np.random.default_rng(0).dirichlet(np.ones(tree.n_bins), n_rows)
    for rho in (1, 2):
        fastemd.pairwise(P, space=tree, rho=rho)
        fastemd.neighbors(P[:2], P, space=tree, rho=rho, k=1)
        fastemd.pairwise(csr_array(P), space=tree, rho=rho)
print(len(compiled))
fastemd.pairwise(P, space=tree, rho=3)
print(len(compiled))
"""
    assert _run(code, tmp_path, NUMBA_NUM_THREADS="2").stdout == "0\n1\n"


def test_warm_up_logs_failures_of_processes(tmp_path):
    code = """
import logging, fastemd
from fastemd import losses, warming
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("numba").setLevel(logging.WARNING)
warming._COMPILE = "raise ValueError('no kernels today')"
fastemd.warm_up(fastemd.Chain(4), functions="emd")
"""
    done = _run(code, tmp_path, NUMBA_NUM_THREADS="2")
    assert "DEBUG:fastemd:warm_up: a process failed: " in done.stderr
    assert "no kernels today" in done.stderr


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
