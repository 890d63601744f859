"""Functions on arrays as handlers of XLA's foreign function interface.

XLA calls a handler with pointers to its own memory, from one of its threads, in about 20 us; JAX's
`pure_callback` takes more than ten times as long. On a CUDA device that memory is the device's, and
the handler launches kernels on XLA's stream.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from fastemd.backends import BACKENDS, CudaBackend, DeviceArray, Row
from fastemd.jax import c_api

Array = NDArray[Any]
Function = Callable[[list[Any], list[Any], str], None]

SUCCESS = 1  # a status; others are the address of an XLA_FFI_Error
ALIGNMENT = 256  # bytes

# What is raised outside the callback's `try`, for example by Ctrl-C, is dropped by ctypes, and the
# callback returns NULL, which means success to XLA. So XLA calls machine code, which calls the
# callback: if no status was set, it creates an error.
_SHIM = """
define ptr @handle(ptr %frame) {{
  %status.place = alloca i64
  store i64 0, ptr %status.place
  call void inttoptr (i64 {callback} to ptr)(ptr %frame, ptr %status.place)
  %status = load i64, ptr %status.place
  switch i64 %status, label %failed [i64 0, label %interrupted  i64 {success}, label %success]
success:
  ret ptr null
failed:
  %error = inttoptr i64 %status to ptr
  ret ptr %error
interrupted:
  %api.place = getelementptr i8, ptr %frame, i64 {api}
  %api = load ptr, ptr %api.place
  %create.place = getelementptr i8, ptr %api, i64 {create}
  %create = load ptr, ptr %create.place
  %created = call ptr %create(ptr inttoptr (i64 {interrupted} to ptr))
  ret ptr %created
}}
"""
_Callback = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(c_api.XLA_FFI_CallFrame), ctypes.POINTER(ctypes.c_size_t)
)


def handler(function: Function, on_device: bool = False) -> Any:
    """Return a handler that calls ``function(arguments, results, text)``.

    All are NumPy arrays. On a device the arguments are `Memory`, and the results are views of it.
    `text` is the only attribute of the call. What `function` raises becomes the error of the call.
    Hold a reference to the handler as long as it may be called.
    """

    def handle(pointer: Any, status: Any) -> None:
        frame = pointer.contents
        if frame.extension_start and _answers_metadata(frame):
            status[0] = SUCCESS
            return
        create = frame.api.contents.XLA_FFI_Error_Create
        try:
            attribute = frame.attrs.attrs[0].contents
            text = ctypes.string_at(attribute.ptr, attribute.len).decode()
            run = _run_on_device if on_device else _run_on_host
            run(function, frame, text)
        except (TypeError, ValueError) as error:
            status[0] = create(_error(str(error), c_api.XLA_FFI_Error_Code_INVALID_ARGUMENT))
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            status[0] = create(_error(message, c_api.XLA_FFI_Error_Code_INTERNAL))
        else:
            status[0] = SUCCESS

    return _shim(_Callback(handle))


def _answers_metadata(frame: Any) -> bool:
    """Fill in the metadata, if that is why XLA calls: it does once, before anything else."""
    extension = c_api.XLA_FFI_Metadata_Extension.from_address(frame.extension_start)
    if extension.extension_base.type != c_api.XLA_FFI_Extension_Metadata:
        return False
    version = extension.metadata.contents.api_version
    version.major_version, version.minor_version = max(c_api.KNOWN)
    return True


def _error(message: str, code: int) -> Any:
    kind = c_api.XLA_FFI_Error_Create_Args
    return kind(ctypes.sizeof(kind), None, message.encode(), code)


def _shim(callback: Any) -> Any:
    """Compile `_SHIM` around a callback."""
    interrupted = _error("interrupted, there is no result", c_api.XLA_FFI_Error_Code_CANCELLED)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    source = _SHIM.format(
        callback=ctypes.cast(callback, ctypes.c_void_p).value,
        success=SUCCESS,
        api=c_api.XLA_FFI_CallFrame.api.offset,
        create=c_api.XLA_FFI_Api.XLA_FFI_Error_Create.offset,
        interrupted=ctypes.addressof(interrupted),
    )
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(source), machine)
    engine.finalize_object()
    shim = c_api.XLA_FFI_Handler(engine.get_function_address("handle"))
    shim.references = callback, interrupted, engine
    return shim


def _run_on_host(function: Function, frame: Any, text: str) -> None:
    function(*_all_arrays(frame, _array), text)


def _all_arrays(frame: Any, make: Callable[[Any], Any]) -> tuple[list[Any], list[Any]]:
    """Return the arguments and the results of a call."""
    args, rets = frame.args, frame.rets
    arguments = [make(args.args[i].contents) for i in range(args.size)]
    return arguments, [make(rets.rets[i].contents) for i in range(rets.size)]


def _array(buffer: Any) -> Array:
    shape, dtype = tuple(buffer.dims[: buffer.rank]), c_api.DTYPES[buffer.dtype]
    if 0 in shape:
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    memory: Any = (ctypes.c_char * size).from_address(buffer.data)
    return np.ndarray(shape, dtype, memory)


# -- on a CUDA device ------------------------------------------------------------------------------


class Execution:
    """A call on a device: its stream, and memory until the handler returns."""

    def __init__(self, frame: Any) -> None:
        self._api, self._context = frame.api.contents, frame.ctx
        self._allocated: list[tuple[int, int]] = []
        self.index: int = self._call("DeviceOrdinal_Get").device_ordinal
        self.stream: int = self._call("Stream_Get").stream or 0

    def _call(self, name: str, *values: Any) -> Any:
        """Call a function of the interface; return its arguments, which hold the results."""
        kind = getattr(c_api, f"XLA_FFI_{name}_Args")
        arguments = kind(ctypes.sizeof(kind), None, self._context, *values)
        if getattr(self._api, f"XLA_FFI_{name}")(ctypes.byref(arguments)):
            raise RuntimeError(f"XLA_FFI_{name} failed")
        return arguments

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "Memory":
        """Allocate memory, which XLA may use on the stream again once the handler has returned."""
        size = max(1, math.prod(shape)) * dtype.itemsize
        data = self._call("DeviceMemory_Allocate", size, ALIGNMENT).data
        self._allocated.append((size, data))
        return Memory(self, data, shape, dtype)

    def release(self) -> None:
        """Free the memory."""
        for size_and_data in self._allocated:
            self._call("DeviceMemory_Free", *size_and_data)


class Memory:
    """An array on a device, in XLA's memory."""

    def __init__(
        self, execution: Execution, data: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.execution, self.data, self.shape, self.dtype = execution, data, shape, dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.data, False), "version": 3
        }  # fmt: skip


def _run_on_device(function: Function, frame: Any, text: str) -> None:
    execution = Execution(frame)
    arguments, results = _all_arrays(frame, functools.partial(_memory, execution))
    try:
        function(arguments, [DeviceArray.of(result) for result in results], text)
    finally:
        execution.release()


def _memory(execution: Execution, buffer: Any) -> Memory:
    shape = tuple(buffer.dims[: buffer.rank])
    return Memory(execution, buffer.data or ALIGNMENT, shape, c_api.DTYPES[buffer.dtype])


class _XlaBackend(CudaBackend):
    """XLA's memory; JAX has broadcast the arguments of a call."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.execution = memory.execution

    def index_of(self, array: Memory) -> int:
        return array.execution.index

    def new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Memory:
        return self.execution.empty(shape, dtype)

    def convert(self, array: Memory, dtype: np.dtype[Any]) -> Memory:
        converted = self.new(array.shape, dtype)
        self.copy(converted, array)
        return converted

    def copy(self, out: Memory, array: Memory) -> None:
        from fastemd.kernels.cuda import driver

        values, result = (DeviceArray.of(memory).reshape(-1) for memory in (array, out))
        driver.convert(values, result, self.index, self.stream())

    def stream(self) -> int:
        return self.execution.stream


BACKENDS["fastemd"] = Row(cuda=_XlaBackend)
