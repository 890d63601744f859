"""The worked example of docs/development.md, applied to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with the blocks of the page appended to their files, and the test."""
    folder = tmp_path_factory.mktemp("extended")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastemd", folder / "fastemd", ignore=ignore)
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n +# (fastemd/\S+|the test)\n(.*?)```", page, re.DOTALL)
    code = {name: re.sub(r"^   ", "", text, flags=re.MULTILINE) for name, text in blocks}
    test = code.pop("the test")
    for name, text in code.items():
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{text}")
    return folder, test


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_development_page_adds_an_operation(extended, target):
    folder, test = extended
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(folder)}
    if target == "cuda":
        environment["NUMBA_ENABLE_CUDASIM"] = "1"
        call = "emd_edge_cost(p, q, chain, rho)"
        assert call in test
        test = test.replace(call, "on_host(emd_edge_cost(on_device(p), on_device(q), chain, rho))")
        start = "from tests.support import simulator\nsimulator.install()\n"
        test = f"{start}from tests.support.device import on_device, on_host\n{test}"
    run = subprocess.run(
        [sys.executable, "-c", test], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
