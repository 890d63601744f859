"""CPU kernels compile to machine code for other processors and operating systems."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = "gradient", "loss", "hessian", "sparse", "pairs"
# What LLVM calls if the processor lacks an instruction. The kernels themselves call log and pow.
LIBRARY_CALL = re.compile(r"\b_*(?:aarch64_\w+|exp2?|fma|fmaximum|rint)f?\b")
PREFETCH_AND_STREAM = {
    "macos-arm64": ("prfm", "stnp", "dmb"),
    "windows-x86": ("prefetcht1", "vmovntps", "lock"),  # a fence is a locked operation
}


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """Return a function that returns the assembly of a kernel for a platform."""
    folder = tmp_path_factory.mktemp("assembly")
    command = [sys.executable, "-m", "tests.support.lower_kernels", str(folder)]
    command += [*PREFETCH_AND_STREAM, *KERNELS]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return lambda platform, kernel: (folder / f"{platform} {kernel}.s").read_text(encoding="utf-8")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("platform", PREFETCH_AND_STREAM)
def test_kernels_compile_without_library_calls(platform, kernel, assembly):
    assert sorted(set(LIBRARY_CALL.findall(assembly(platform, kernel)))) == []


@pytest.mark.parametrize("platform", PREFETCH_AND_STREAM)
def test_kernels_prefetch_and_stream(platform, assembly):
    text = assembly(platform, "gradient")
    for instruction in PREFETCH_AND_STREAM[platform]:
        assert re.search(rf"^\s+{instruction}\s", text, re.MULTILINE), instruction
