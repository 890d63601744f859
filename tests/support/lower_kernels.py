"""Lower CPU kernels to assembly for other platforms, without running it.

``python -m tests.support.lower_kernels FOLDER`` saves the assembly of each kernel for each platform
in a file ``PLATFORM KERNEL.s``. The kernel cache must be empty. Runs in a child process, because
LLVM aborts if it cannot lower an instruction.
"""

import contextlib
import sys
from pathlib import Path
from typing import ClassVar

import llvmlite.binding as llvm
from numba.core.runtime.nrt import rtsys

from fastemd.kernels import jitable
from fastemd.kernels.cpu import compiling

PLATFORMS = {  # the triple, as llvmlite passes it to LLVM, and the processor
    "macos-arm64": ("arm64-apple-darwin", "apple-m1"),
    "windows-x86": ("x86_64-pc-windows-msvc-elf", "x86-64-v3"),
}
KERNELS = {  # arguments of `compiling.kernel`
    "gradient": ("gradient", False, "any", False, "f"),
    "loss": ("loss", False, "any", False, "f"),
    "hessian": ("hessian", False, "any", False, "f"),
    "sparse": ("sparse", False, "any", False, "d"),
    "pairs": ("pairs", False, "power", False, "d"),
}


class LoweredError(Exception):
    """Ends the compilation for this processor."""


class Library(jitable.KernelLibrary):
    """The library of a kernel, without Numba's runtime, whose code is for this processor."""

    modules: ClassVar = []

    def add_linking_library(self, library):
        if library is not rtsys.library:
            super().add_linking_library(library)

    def _optimize_final_module(self):
        self.modules.append(str(self._final_module))
        raise LoweredError


def llvm_code(key):
    """Return the LLVM code of a kernel, before it is optimised."""
    jitable.KernelLibrary = Library
    with contextlib.suppress(LoweredError):
        compiling.kernel(*key)
    return Library.modules.pop()


def lower(code, triple, cpu):
    """Return the assembly of LLVM code on another platform."""
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3, jit=True)
    module = llvm.parse_assembly(code)
    module.triple, module.data_layout = triple, str(machine.target_data)
    module.verify()
    jitable.optimize(module, machine)
    return machine.emit_assembly(module)


def main():
    folder = Path(sys.argv[1])
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for kernel, key in KERNELS.items():
        code = llvm_code(key)
        for platform, target in PLATFORMS.items():
            print(platform, kernel, flush=True)
            path = folder / f"{platform} {kernel}.s"
            path.write_text(lower(code, *target), encoding="utf-8")


if __name__ == "__main__":
    main()
