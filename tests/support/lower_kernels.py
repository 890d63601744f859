"""Lower CPU kernels to machine code for other platforms, without running it.

``python -m tests.support.lower_kernels FOLDER`` saves the assembly of each kernel for each platform
in a file ``PLATFORM KERNEL.s``. Names of platforms and kernels after FOLDER select some. The
kernel cache must be empty. It is a process, as LLVM aborts if it cannot lower an instruction.
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
    "linux-arm64": ("aarch64-unknown-linux-gnu", ""),
    "macos-x86": ("x86_64-apple-darwin", "x86-64-v3"),
    "windows-x86": ("x86_64-pc-windows-msvc-elf", "x86-64-v3"),
}
KERNELS = {  # arguments of `compiling.kernel`
    "gradient": ("gradient", False, "any", False, "f"),
    "chain": ("gradient", True, "1", False, "d"),
    "narrow": ("gradient", False, "2", True, "d"),
    "loss": ("loss", False, "any", False, "f"),
    "product": ("loss_product", True, "2", False, "f"),
    "curvature": ("curvature", False, "any", False, "d"),
    "hessian": ("hessian", False, "any", False, "f"),
    "masses": ("masses", False, "mass", False, "d"),
    "fill": ("fill", False, "any", False, "d"),
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


def module_of(key):
    """Return the LLVM code of a kernel, before it is optimised."""
    jitable.KernelLibrary = Library
    with contextlib.suppress(LoweredError):
        compiling.kernel(*key)
    return Library.modules.pop()


def lower(text, triple, cpu):
    """Return the assembly of LLVM code on another platform."""
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3, jit=True)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    module.verify()
    jitable.optimize(module, machine)
    assert machine.emit_object(module)
    return machine.emit_assembly(module)


def selected(known, names):
    """Return the known ones among names; all, if there is none."""
    return [name for name in known if name in names] or list(known)


def main():
    folder, *names = sys.argv[1:]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for kernel in selected(KERNELS, names):
        text = module_of(KERNELS[kernel])
        for platform in selected(PLATFORMS, names):
            print(platform, kernel, flush=True)
            path = Path(folder, f"{platform} {kernel}.s")
            path.write_text(lower(text, *PLATFORMS[platform]), encoding="utf-8")


if __name__ == "__main__":
    main()
