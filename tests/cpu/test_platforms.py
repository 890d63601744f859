"""CPU kernels compile to machine code for other processors and operating systems."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lower_kernels import KERNELS, PLATFORMS

# What Python, Numba, the C library and the compiler's runtime define on all platforms. LLVM calls
# other functions, for example fma or __aarch64_ldadd8_relax, if the processor lacks an instruction.
LIBRARY_FUNCTION = re.compile(r"_*Py\w+|NRT_\w+|numba_\w+|log|pow|memset|memcpy|bzero|__chkstk")
# The start of an identifier which an instruction reads as an address, a call or a jump.
REFERENCE = {
    "macos-arm64": re.compile(r"\sbl?\s+_([A-Za-z_]\w*)|\b_([A-Za-z_]\w*)@(?:GOT)?PAGE\b"),
    "windows-x86": re.compile(r"\$([A-Za-z_]\w*)|\s(?:call|jmp)q?\s+([A-Za-z_]\w*)"),
}
PREFETCH = {"macos-arm64": r"\sprfm\s", "windows-x86": r"\sprefetcht1\s"}
STREAM = {"macos-arm64": r"\sstnp\s", "windows-x86": r"\svmovntps\s"}
FENCE = {"macos-arm64": r"\sdmb\s+ish\b", "windows-x86": r"\slock\s+orl\s+\$0, \(%rsp\)"}


def _undefined_symbols(assembly, platform):
    """Return the symbols that the code refers to, but does not define."""
    prefix = "_" if platform.startswith("macos") else ""
    definition = rf'^{prefix}"?([\w.$]+)"?:|^\s+\.comm\s+{prefix}([\w.$]+)'
    defined = {a or b for a, b in re.findall(definition, assembly, re.MULTILINE)}
    return {a or b for a, b in REFERENCE[platform].findall(assembly)} - defined


def _functions(assembly):
    return re.findall(r"\.cfi_startproc(.*?)\.cfi_endproc", assembly, re.DOTALL)


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms compile their own kernels")
def test_kernels_lower_for_arm64_and_windows(tmp_path):
    command = [sys.executable, "-m", "tests.support.lower_kernels", str(tmp_path)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for platform in PLATFORMS:
        text = {
            kernel: (tmp_path / f"{platform} {kernel}.s").read_text(encoding="utf-8")
            for kernel in KERNELS
        }
        for kernel, assembly in text.items():
            symbols = _undefined_symbols(assembly, platform)
            assert any(symbol.startswith("Py") for symbol in symbols)
            unexpected = {each for each in symbols if not LIBRARY_FUNCTION.fullmatch(each)}
            assert not unexpected, f"{platform} {kernel}"
        assert re.search(PREFETCH[platform], text["gradient"])
        streaming = [
            function for function in _functions(text["gradient"])
            if re.search(STREAM[platform], function)
        ]  # fmt: skip
        assert streaming
        assert all(re.search(FENCE[platform], function) for function in streaming)
