"""Functions on NumPy arrays as handlers of XLA's foreign function interface, by ctypes.

XLA calls a handler with pointers to its own memory, from a thread of its own, in about 20 us; JAX's
`pure_callback` takes more than ten times as long. The structures are those of XLA's
``xla/ffi/api/c_api.h`` in the versions of `KNOWN`, as far as they are read here.
"""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[list[Array], list[Array], str], None]

KNOWN = {(0, 3)}  # versions of the interface for which the tests have passed
METADATA = 1
CANCELLED, INVALID_ARGUMENT = 1, 3
DONE = 1  # instead of the address of an error
DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(name) for number, name in ((4, "int32"), (11, "float32"), (12, "float64"))
}

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
_Api = _struct(
    ("version", _Version),
    ("internal", _pointer),
    ("create_error", ctypes.CFUNCTYPE(_pointer, ctypes.POINTER(_Error))),
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


def handler(function: Function) -> Any:
    """A handler that calls ``function(arguments, results, text)``.

    `text` is the call's only attribute. What `function` raises becomes the error of the call.
    Keep a reference to the handler as long as it may be called.
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
            function(_arrays(call.arguments), _arrays(call.results), constants)
        except BaseException as error:
            message = str(error) or type(error).__name__
            told[0] = call.api.contents.create_error(_error(message, INVALID_ARGUMENT))
        else:
            told[0] = DONE

    return _shim(_Callback(handle))


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


def _arrays(buffers: Any) -> list[Array]:
    return [_array(buffers.buffers[i].contents) for i in range(buffers.size)]


def _array(buffer: Any) -> Array:
    shape, dtype = tuple(buffer.dims[: buffer.rank]), DTYPES[buffer.dtype]
    if 0 in shape:
        return np.empty(shape, dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    memory: Any = (ctypes.c_char * size).from_address(buffer.data)
    return np.ndarray(shape, dtype, memory)
