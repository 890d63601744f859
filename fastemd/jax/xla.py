"""Functions on arrays as handlers of XLA's foreign function interface, by ctypes.

XLA calls a handler with pointers to its own memory, from a thread of its own, in about 20 us; JAX's
`pure_callback` takes more than ten times as long. On a CUDA device the memory is there, and the
handler is to launch what works on it, on the stream that XLA tells. The structures are those of
XLA's ``xla/ffi/api/c_api.h`` in the versions of `KNOWN`, as far as they are read here.
"""

import ctypes
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from fastemd import devices

Array = NDArray[Any]
Function = Callable[[list[Any], list[Array], str], None]

KNOWN = {(0, 3)}  # versions of the interface for which the tests have passed
METADATA = 1
CANCELLED, INVALID_ARGUMENT, INTERNAL = 1, 3, 13  # codes of errors
DONE = 1  # instead of the address of an error
DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.bool_),
    2: np.dtype(np.int8),
    3: np.dtype(np.int16),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    6: np.dtype(np.uint8),
    7: np.dtype(np.uint16),
    8: np.dtype(np.uint32),
    9: np.dtype(np.uint64),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
}
ALIGNMENT = 256  # bytes

_pointer, _size, _int, _int64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64


def _struct(*fields: tuple[str, Any], head: bool = True) -> type[ctypes.Structure]:
    """A structure; nearly all begin with their size and a list of extensions."""
    start = [("struct_size", _size), ("extension", _pointer)] if head else []
    return type("Struct", (ctypes.Structure,), {"_fields_": [*start, *fields]})


_Version = _struct(("major", _int), ("minor", _int))
_Extension = _struct(
    ("struct_size", _size), ("type", _int), ("next", _pointer), ("metadata", _pointer), head=False
)
_Metadata = _struct(("struct_size", _size), ("version", _Version), head=False)
_Buffer = _struct(
    ("dtype", _int), ("data", _pointer), ("rank", _int64), ("dims", ctypes.POINTER(_int64))
)
_Buffers = _struct(
    ("size", _int64), ("types", _pointer), ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer)))
)
_Text = _struct(("start", _pointer), ("length", _size), head=False)
_Attributes = _struct(
    ("size", _int64),
    ("types", _pointer),
    ("names", _pointer),
    ("texts", ctypes.POINTER(ctypes.POINTER(_Text))),
)
_Error = _struct(("message", ctypes.c_char_p), ("code", _int))
_Stream = _struct(("context", _pointer), ("stream", _pointer))
_Ordinal = _struct(("context", _pointer), ("ordinal", ctypes.c_int32))
_Allocation = _struct(
    ("context", _pointer), ("size", _size), ("alignment", _size), ("data", _pointer)
)
_Release = _struct(("context", _pointer), ("size", _size), ("data", _pointer))


def _function(argument: type[ctypes.Structure]) -> Any:
    """Returns the address of an error, or 0."""
    return ctypes.CFUNCTYPE(_pointer, ctypes.POINTER(argument))


_Api = _struct(
    ("version", _Version),
    ("internal", _pointer),
    ("create_error", _function(_Error)),
    ("get_message", _pointer),
    ("destroy_error", _pointer),
    ("register_handler", _pointer),
    ("get_stream", _function(_Stream)),
    ("register_type", _pointer),
    ("get_context", _pointer),
    ("set_state", _pointer),
    ("get_state", _pointer),
    ("allocate", _function(_Allocation)),
    ("free", _function(_Release)),
    ("schedule", _pointer),
    ("count_threads", _pointer),
    ("create_future", _pointer),
    ("set_available", _pointer),
    ("set_error", _pointer),
    ("get_run_id", _pointer),
    ("get_ordinal", _function(_Ordinal)),
)
_Frame = _struct(
    ("api", ctypes.POINTER(_Api)),
    ("context", _pointer),
    ("stage", _int),
    ("arguments", _Buffers),
    ("results", _Buffers),
    ("attributes", _Attributes),
)
_Callback = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Frame), ctypes.POINTER(_size))
_Handler = ctypes.CFUNCTYPE(_pointer, ctypes.POINTER(_Frame))

# What is raised outside the callback's `try`, as by Ctrl-C, ctypes drops, and returns NULL, which
# is success to XLA. So machine code stands between: if the callback told nothing, that is an error.
_SHIM = """
define ptr @handle(ptr %frame) {{
  %told = alloca i64
  store i64 0, ptr %told
  call void inttoptr (i64 {callback} to ptr)(ptr %frame, ptr %told)
  %result = load i64, ptr %told
  switch i64 %result, label %failed [i64 0, label %lost  i64 {done}, label %done]
done:
  ret ptr null
failed:
  %error = inttoptr i64 %result to ptr
  ret ptr %error
lost:
  %api.place = getelementptr i8, ptr %frame, i64 {api}
  %api = load ptr, ptr %api.place
  %create.place = getelementptr i8, ptr %api, i64 {create_error}
  %create = load ptr, ptr %create.place
  %created = call ptr %create(ptr inttoptr (i64 {interrupted} to ptr))
  ret ptr %created
}}
"""


def version(headers: str) -> tuple[int, int] | None:
    """The version of the interface whose headers are in a folder; None if that cannot be told."""
    try:
        text = (Path(headers) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    except OSError:
        return None
    found = re.findall(r"#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)", text)
    return (int(found[0]), int(found[1])) if len(found) == 2 else None


class Execution:
    """What XLA runs on a device: its stream, and memory until the handler is done."""

    def __init__(self, frame: Any) -> None:
        self._api, self._context = frame.api.contents, frame.context
        self._held: list[tuple[int, int]] = []
        self.index: int = self._ask("get_ordinal", _Ordinal).ordinal
        self.stream: int = self._ask("get_stream", _Stream).stream or 0

    def _ask(self, name: str, kind: type[ctypes.Structure], *values: Any) -> Any:
        question = kind(ctypes.sizeof(kind), None, self._context, *values)
        if getattr(self._api, name)(ctypes.byref(question)):
            raise RuntimeError(f"XLA refuses to {name.replace('_', ' ')}")
        return question

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "Memory":
        """New memory, which later work on the stream may have again when the handler is done."""
        size = max(1, math.prod(shape)) * dtype.itemsize
        data = self._ask("allocate", _Allocation, size, ALIGNMENT).data
        self._held.append((size, data))
        return Memory(self, data, shape, dtype)

    def release(self) -> None:
        """Give the memory back."""
        for held in self._held:
            self._ask("free", _Release, *held)


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


def _device(memory: Memory) -> devices.Device:
    from fastemd.kernels.cuda import driver as launcher

    execution = memory.execution

    def assign(result: Array, numbers: Memory) -> None:
        given = devices.description(numbers).reshape(-1), result.reshape(-1)
        launcher.convert(*given, execution.index, execution.stream)

    def cast(memory: Memory, dtype: np.dtype[Any]) -> Memory:
        made = execution.empty(memory.shape, dtype)
        assign(devices.description(made), memory)
        return made

    def spread(memory: Memory, shape: tuple[int, ...]) -> Memory:
        raise NotImplementedError  # JAX has done so

    return devices.Device(
        execution.index, execution.empty, cast, spread, assign, None, lambda: execution.stream
    )


devices.LIBRARIES["fastemd"] = _device


def handler(function: Function, on_device: bool = False) -> Any:
    """A handler that calls ``function(arguments, results, text)``.

    All are NumPy arrays. On a device the arguments are `Memory`, and the results only describe what
    is there. `text` is the call's only attribute. What `function` raises becomes the error of the
    call. Keep a reference to the handler as long as it may be called.
    """

    def handle(frame: Any, told: Any) -> None:
        call = frame.contents
        if call.extension:  # XLA asks what it has before it
            extension = _Extension.from_address(call.extension)
            if extension.type == METADATA:
                version = _Metadata.from_address(extension.metadata).version
                version.major, version.minor = max(KNOWN)
                told[0] = DONE
                return
        try:
            text = call.attributes.texts[0].contents
            constants = ctypes.string_at(text.start, text.length).decode()
            if on_device:
                _run_on_device(function, call, constants)
            else:
                function(_arrays(call.arguments, _array), _arrays(call.results, _array), constants)
        except (TypeError, ValueError) as error:
            told[0] = call.api.contents.create_error(_error(str(error), INVALID_ARGUMENT))
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            told[0] = call.api.contents.create_error(_error(message, INTERNAL))
        else:
            told[0] = DONE

    return _shim(_Callback(handle))


def _run_on_device(function: Function, call: Any, constants: str) -> None:
    execution = Execution(call)
    memory = functools.partial(_memory, execution)
    results = [devices.description(result) for result in _arrays(call.results, memory)]
    try:
        function(_arrays(call.arguments, memory), results, constants)
    finally:
        execution.release()


def _memory(execution: Execution, buffer: Any) -> Memory:
    shape = tuple(buffer.dims[: buffer.rank])
    return Memory(execution, buffer.data or ALIGNMENT, shape, DTYPES[buffer.dtype])


def _error(message: str, code: int) -> Any:
    return _Error(ctypes.sizeof(_Error), None, message.encode(), code)


def _shim(callback: Any) -> Any:
    """`_SHIM` around a callback, as a function of machine code."""
    interrupted = _error("interrupted, there is no result", CANCELLED)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    source = _SHIM.format(
        callback=ctypes.cast(callback, _pointer).value,
        done=DONE,
        api=_Frame.api.offset,
        create_error=_Api.create_error.offset,
        interrupted=ctypes.addressof(interrupted),
    )
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(source), machine)
    engine.finalize_object()
    shim = _Handler(engine.get_function_address("handle"))
    shim.keeps = callback, interrupted, engine  # type: ignore[attr-defined]
    return shim


def _arrays(buffers: Any, make: Callable[[Any], Any]) -> list[Any]:
    return [make(buffers.buffers[i].contents) for i in range(buffers.size)]


def _array(buffer: Any) -> Array:
    shape, dtype = tuple(buffer.dims[: buffer.rank]), DTYPES[buffer.dtype]
    if 0 in shape:
        return np.empty(shape, dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    memory: Any = (ctypes.c_char * size).from_address(buffer.data)
    return np.ndarray(shape, dtype, memory)
