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
    """A copy of the package with the blocks of the page appended to their files; and the test."""
    folder = tmp_path_factory.mktemp("extended")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastemd", folder / "fastemd", ignore=ignore)
    page = (ROOT / "docs" / "development.md").read_text()
    blocks = re.findall(r"```python\n +# (fastemd/\S+|the test)\n(.*?)```", page, re.DOTALL)
    code = {name: re.sub(r"^   ", "", text, flags=re.MULTILINE) for name, text in blocks}
    assert len(code) == 4
    for name, text in code.items():
        if name != "the test":
            with (folder / name).open("a") as file:
                file.write(f"\n\n{text}")
    return folder, code["the test"]


@pytest.mark.parametrize("simulated", [False, True], ids=["cpu", "cuda"])
def test_development_page_adds_an_operation(extended, simulated):
    folder, test = extended
    environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(folder)}
    if simulated:
        environment["NUMBA_ENABLE_CUDASIM"] = "1"
        arrays = "(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.25, 0.75]))"
        test = test.replace("p, q, chain =", "p, q, chain =")
        test = f"{ON_DEVICE}\n{test}".replace(arrays, arrays)
    run = subprocess.run(
        [sys.executable, "-c", test], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
