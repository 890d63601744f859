"""The C interface of XLA's foreign functions: ``xla/ffi/api/c_api.h``, by ctypes.

Names and fields are those of the header, in the versions of `KNOWN`, as far as they are read.
"""

import ctypes
import re
from ctypes import c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

KNOWN = {(0, 3)}  # XLA_FFI_API_MAJOR and XLA_FFI_API_MINOR for which the tests have passed

XLA_FFI_Extension_Metadata = 1
XLA_FFI_Error_Code_CANCELLED = 1
XLA_FFI_Error_Code_INVALID_ARGUMENT = 3
XLA_FFI_Error_Code_INTERNAL = 13

# By XLA_FFI_DataType.
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


def version(headers: str) -> tuple[int, int] | None:
    """Return the version of the interface in a folder of headers; None if it has none."""
    try:
        text = (Path(headers) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.findall(r"#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)", text)
    return (int(found[0]), int(found[1])) if len(found) == 2 else None


def _plain_struct(**fields: Any) -> type[ctypes.Structure]:
    return type("Struct", (ctypes.Structure,), {"_fields_": list(fields.items())})


def _struct(**fields: Any) -> type[ctypes.Structure]:
    """Return a structure that begins like nearly all of them."""
    return _plain_struct(struct_size=c_size_t, extension_start=c_void_p, **fields)


def _function(arguments: type[ctypes.Structure]) -> Any:
    """Return the type of a function of the interface; its result is an XLA_FFI_Error or NULL."""
    return ctypes.CFUNCTYPE(c_void_p, ctypes.POINTER(arguments))


XLA_FFI_Extension_Base = _plain_struct(struct_size=c_size_t, type=c_int, next=c_void_p)
XLA_FFI_Api_Version = _struct(major_version=c_int, minor_version=c_int)
XLA_FFI_Metadata = _plain_struct(struct_size=c_size_t, api_version=XLA_FFI_Api_Version)
XLA_FFI_Metadata_Extension = _plain_struct(
    extension_base=XLA_FFI_Extension_Base, metadata=ctypes.POINTER(XLA_FFI_Metadata)
)
XLA_FFI_Buffer = _struct(dtype=c_int, data=c_void_p, rank=c_int64, dims=ctypes.POINTER(c_int64))
XLA_FFI_ByteSpan = _plain_struct(ptr=c_void_p, len=c_size_t)
# The header has void* for arguments, results and attributes. These are the types passed here.
_buffers = ctypes.POINTER(ctypes.POINTER(XLA_FFI_Buffer))
_strings = ctypes.POINTER(ctypes.POINTER(XLA_FFI_ByteSpan))
XLA_FFI_Args = _struct(size=c_int64, types=c_void_p, args=_buffers)
XLA_FFI_Rets = _struct(size=c_int64, types=c_void_p, rets=_buffers)
XLA_FFI_Attrs = _struct(size=c_int64, types=c_void_p, names=c_void_p, attrs=_strings)
XLA_FFI_Error_Create_Args = _struct(message=c_char_p, errc=c_int)
XLA_FFI_Stream_Get_Args = _struct(ctx=c_void_p, stream=c_void_p)
XLA_FFI_DeviceOrdinal_Get_Args = _struct(ctx=c_void_p, device_ordinal=c_int32)
XLA_FFI_DeviceMemory_Allocate_Args = _struct(
    ctx=c_void_p, size=c_size_t, alignment=c_size_t, data=c_void_p
)
XLA_FFI_DeviceMemory_Free_Args = _struct(ctx=c_void_p, size=c_size_t, data=c_void_p)
XLA_FFI_Api = _struct(
    api_version=XLA_FFI_Api_Version,
    internal_api=c_void_p,
    XLA_FFI_Error_Create=_function(XLA_FFI_Error_Create_Args),
    XLA_FFI_Error_GetMessage=c_void_p,
    XLA_FFI_Error_Destroy=c_void_p,
    XLA_FFI_Handler_Register=c_void_p,
    XLA_FFI_Stream_Get=_function(XLA_FFI_Stream_Get_Args),
    XLA_FFI_Type_Register=c_void_p,
    XLA_FFI_ExecutionContext_Get=c_void_p,
    XLA_FFI_State_Set=c_void_p,
    XLA_FFI_State_Get=c_void_p,
    XLA_FFI_DeviceMemory_Allocate=_function(XLA_FFI_DeviceMemory_Allocate_Args),
    XLA_FFI_DeviceMemory_Free=_function(XLA_FFI_DeviceMemory_Free_Args),
    XLA_FFI_ThreadPool_Schedule=c_void_p,
    XLA_FFI_ThreadPool_NumThreads=c_void_p,
    XLA_FFI_Future_Create=c_void_p,
    XLA_FFI_Future_SetAvailable=c_void_p,
    XLA_FFI_Future_SetError=c_void_p,
    XLA_FFI_RunId_Get=c_void_p,
    XLA_FFI_DeviceOrdinal_Get=_function(XLA_FFI_DeviceOrdinal_Get_Args),
)
XLA_FFI_CallFrame = _struct(
    api=ctypes.POINTER(XLA_FFI_Api),
    ctx=c_void_p,
    stage=c_int,
    args=XLA_FFI_Args,
    rets=XLA_FFI_Rets,
    attrs=XLA_FFI_Attrs,
)
XLA_FFI_Handler = _function(XLA_FFI_CallFrame)
