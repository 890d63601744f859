"""Compile kernels with Numba and cache their machine code on disk.

Numba's own cache raises every error of the file system and of pickle, passes damaged machine code
to LLVM, which aborts the process, and after a failed write may load the code of an older source.
Here a file holds one kernel, with a digest of its content and a key of all that the code depends
on. If the cache fails, the kernel is compiled, with one warning per process.
"""

import gc
import hashlib
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import numba
from numba import njit
from numba.core import config as settings
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.misc.appdirs import user_cache_dir

from fastemd.kernels.jitable import KernelCompiler

config: Any = settings  # which Numba's types do not know
SIZE = hashlib.sha256().digest_size
# ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION. `open` sets errno only, so winerror is None.
WINDOWS_BUSY_ERRORS = None, 5, 32
ATTEMPTS, PAUSE = 20, 0.01  # seconds; another process has a file open for some milliseconds
_warned = False


def compiled(
    function: Callable[..., Any], signature: Any, digest: bytes, parallel: bool = False
) -> Any:
    """Compile a function for one signature, or load it from the cache.

    A `parallel` function may contain `numba.prange`, and no function of
    `fastemd.kernels.jitable`.

    The cache knows a kernel by the function's module and `__qualname__`, the signature, and
    `digest`, which identifies the code of the function, of all that it calls, and of the options.
    """
    if config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT: fastemd needs Numba's compiler; unset this variable")
    options: Any = {"parallel": True} if parallel else {"pipeline_class": KernelCompiler}
    dispatcher = njit(nogil=True, **options)(function)
    dispatcher._cache = KernelCache(f"{function.__module__}.{function.__qualname__}", digest)
    collects = gc.isenabled()
    gc.disable()  # for the many objects of the compiler it takes 8 % of the time
    try:
        dispatcher.compile(signature)
    finally:
        if collects:
            gc.enable()
    dispatcher.disable_compile()
    return dispatcher


def is_cached(name: str, signature: Any, digest: bytes) -> bool:
    """Return whether the cache has a function, by its module and `__qualname__`."""
    payloads = KernelCache(name, digest).payloads(signature, cpu_target.target_context.codegen())
    return any(True for _ in payloads)


def digest_of_code(*names: str) -> bytes:
    """Identify the code of imported modules, and of this one."""
    parts = (_code(name) for name in (__name__, *names))
    return hashlib.sha256(b"".join(parts)).digest()


def _code(name: str) -> bytes:
    """Return the file of a module, also from a zip; without a file, its bytecode."""
    spec: Any = sys.modules[name].__spec__
    try:
        return bytes(spec.loader.get_data(spec.origin))
    except (AttributeError, OSError):  # the archive in a PyInstaller bundle
        return repr(_parts(spec.loader.get_code(name))).encode()


def _parts(code: CodeType) -> tuple[object, ...]:
    constants = [
        _parts(c) if isinstance(c, CodeType) else sorted(c) if isinstance(c, frozenset) else c
        for c in code.co_consts
    ]
    return code.co_code, code.co_names, constants


def folders() -> list[Path]:
    """Return where kernels are cached: all are read, and the first that can be is written to."""
    frozen = getattr(sys, "frozen", False)  # a bundle may be unpacked to a temporary folder
    origin = Path(sys.executable if frozen else __file__).absolute()
    name = f"fastemd_{hashlib.sha256(str(origin).encode()).hexdigest()[:16]}"
    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR, name)]
    beside, user = origin.parent / "__pycache__", Path(user_cache_dir("numba", False), name)
    if not user.is_absolute():  # it starts with "~" since the user has no home folder
        return [beside]
    return [user] if frozen else [beside, user]


class KernelCache(NullCache):
    """The files of one function: one for each signature, processor and version of Python."""

    def __init__(self, function: str, digest: bytes) -> None:
        self._function, self._digest = function, digest

    def _entry(self, signature: Any, codegen: Any) -> tuple[str, bytes]:
        """Return the name of a file, which all versions of the code share, and the key in it."""
        purpose = (
            self._function, str(signature), codegen.magic_tuple(), sys.implementation.cache_tag
        )  # fmt: skip
        name = hashlib.sha256(repr(purpose).encode()).hexdigest()[:16]
        key = repr((purpose, self._digest, numba.__version__, sys.version))
        return f"{self._function}-{name}.nbc", hashlib.sha256(key.encode()).digest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature, None if it is not in the cache."""
        target_context.refresh()
        for folder, payload in self.payloads(sig, target_context.codegen()):
            try:
                return CompileResult._rebuild(target_context, *pickle.loads(payload))
            except Exception as error:
                _warn(folder, error)
        return None

    def payloads(self, signature: Any, codegen: Any) -> Iterator[tuple[Path, bytes]]:
        """Yield the folders that have the function, and its machine code there."""
        name, key = self._entry(signature, codegen)
        for folder in folders():
            try:
                content = _retry_while_busy((folder / name).read_bytes)
            except OSError:
                continue  # most often there is no such file; `save_overload` warns if none can be
            digest, content = content[:SIZE], content[SIZE:]
            if digest != hashlib.sha256(content).digest():
                _warn(folder, ValueError(f"{name} is damaged"))
            elif content[:SIZE] == key:
                yield folder, content[SIZE:]

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled function to the first folder that can be written to."""
        failure: Exception = ValueError("the code holds addresses of this process")
        for folder in () if data.library.has_dynamic_globals else folders():
            try:
                name, key = self._entry(sig, data.codegen)
                content = key + dumps(data._reduce())
                _write(folder / name, hashlib.sha256(content).digest() + content)
                return
            except Exception as error:
                failure = error
        _warn(folders()[-1], failure)


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically: other processes see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.tmp.{os.urandom(8).hex()}")
    try:
        part.write_bytes(content)
        _retry_while_busy(part.replace, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _retry_while_busy(operation: Callable[..., Any], *arguments: Any) -> Any:
    """Call an operation on a file; repeat it while another process has the file open on Windows.

    Windows refuses to replace an open file, and to open a file that is being replaced.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return operation(*arguments)
        except PermissionError as error:
            if not _is_busy(error):
                raise
            time.sleep(PAUSE)
    return operation(*arguments)


def _is_busy(error: PermissionError) -> bool:
    """Return whether another process may have the file open, on Windows only."""
    return _is_windows() and getattr(error, "winerror", None) in WINDOWS_BUSY_ERRORS


def _is_windows() -> bool:
    return os.name == "nt"


def _warn(folder: Path, error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"kernel cache: cannot use {folder} ({type(error).__name__}: {error}); kernels are "
            "compiled without it. Delete this folder, or set NUMBA_CACHE_DIR to a folder that can "
            "be written to",
            RuntimeWarning,
            stacklevel=2,
        )
