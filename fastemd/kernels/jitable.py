"""Functions that kernels call, and the compiler of kernels.

Numba makes a library of every function that a kernel calls: it is linked, optimised and turned into
machine code, and then linked into the library of every caller again, which took most of the time of
a compilation. Here all functions that a CPU kernel calls are lowered into the library of the
kernel, which is optimised once. (First pair on the ImageNet tree: 2.0 s, 4.6 s by
`numba.extending.register_jitable`.)
"""

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import llvmlite.binding as llvm
from numba.core import compiler, config, typed_passes, types, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompilerBase, Flags
from numba.core.compiler_machinery import PassManager
from numba.core.registry import cpu_target
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer, infer_global
from numba.extending import lower_builtin, register_jitable

ANNOUNCED_AFTER = 0.5  # seconds of a compilation
_libraries: list["KernelLibrary"] = []  # of the kernels that are being compiled


def jitable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let CPU kernels call a function, with positional arguments."""

    class Template(AbstractTemplate):
        key = function
        metadata: ClassVar = {"target": "cpu"}

        def generic(self, args: Any, kws: Any) -> Any:
            if kws:
                return None
            compiled = lower_into_kernel(cpu_target.target_context, function, args)
            return signature(compiled.signature.return_type, *args)

    Template.__name__ = function.__name__
    infer(Template)
    infer_global(function, types.Function(Template))

    @lower_builtin(function, types.VarArg(types.Any))
    def call(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.call_internal(
            builder, lower_into_kernel(context, function, sig.args).fndesc, sig, args
        )

    return function


def jitable_everywhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels of all targets call a function."""
    return jitable(register_jitable(function))


def lower_into_kernel(context: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return the result of lowering a function into the kernel that is being compiled."""
    library = _libraries[-1]
    key = function, args
    if key not in library.lowered:
        flags = Flags()
        options = {
            "nopython": True,
            "no_cpython_wrapper": True,
            "no_cfunc_wrapper": True,
            "forceinline": True,
        }
        cpu_target.options.parse_as_flags(flags, options)
        flags.no_compile, flags.error_model = True, "numpy"
        library.lowered[key] = compiler.compile_extra(
            cpu_target.typing_context, context, function, args, None, flags, {}, library,
            FunctionCompiler,
        )  # fmt: skip
    return library.lowered[key]


class KernelLibrary(JITCodeLibrary):
    """The code of a kernel and of all functions that it calls."""

    def __init__(self, codegen: Any) -> None:
        super().__init__(codegen, "kernel")
        self.enable_object_caching()
        self.lowered: dict[Any, Any] = {}  # by function and types of the arguments

    def _optimize_functions(self, ll_module: Any) -> None:
        """Leave all to the passes over the whole module."""
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        for function in self.lowered.values():  # of which only the inlined copies are needed
            self._final_module.get_function(function.fndesc.mangled_name).linkage = "internal"
        self.lowered.clear()
        optimize(self._final_module, self._codegen._tm)


def optimize(module: Any, machine: Any) -> None:
    """Optimise without unrolling and vectorising loops, which are written for vectors."""
    options = llvm.create_pipeline_tuning_options(config.OPT)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    manager = passes.getModulePassManager()
    manager.add_refprune_pass()
    manager.run(module, passes)


class KernelCompiler(Compiler):
    """Compile a kernel and what it calls into one library."""

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        super().__init__(typingctx, targetctx, KernelLibrary(targetctx.codegen()), *rest)

    def compile_extra(self, func: Any) -> Any:
        """Compile, while `lower_into_kernel` adds to the library."""
        _libraries.append(self.state.library)  # Numba compiles in one thread at a time
        try:
            with announced():
                return super().compile_extra(func)
        finally:
            _libraries.pop()


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Announce a compilation if it is long."""
    timer = threading.Timer(ANNOUNCED_AFTER, _announce)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # there cannot be more threads
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache  # once in a process
def _announce() -> None:
    message = "compiling kernels, a few seconds each; see fastemd.warm_up"
    log = logging.getLogger("fastemd")
    log.info(message)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no, or a closed, stream
        if sys.stderr.isatty() and not log.isEnabledFor(logging.INFO):
            print("fastemd:", message, file=sys.stderr, flush=True)


class FunctionCompiler(CompilerBase):
    """Compile a function by those of Numba's passes that ours need: a fifth of the time less."""

    def define_pipelines(self) -> list[PassManager]:
        """Return the passes from bytecode to LLVM's code."""
        manager = PassManager("function")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.RewriteSemanticConstants,
            untyped_passes.DeadBranchPrune,
            untyped_passes.GenericRewrites,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            manager.add_pass(step, step.__name__)
        manager.finalize()
        return [manager]
