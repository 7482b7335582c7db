"""Tensors that stay where they are, handed between libraries without a copy: the DLPack protocol, in ctypes.

Layout: dlpack.h of DLPack 0.8, the unversioned struct, which every library reads. https://dmlc.github.io/dlpack
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Protocol

from gptexport_runtime.backends.output import Output
from gptexport_runtime.errors import InputError

CPU, CUDA = 1, 2  # DLDeviceType
INT = 0  # DLDataTypeCode


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_FRESH, _USED = b"dltensor", b"used_dltensor"
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.restype, _set_name.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]

_lent: dict[int, tuple[Any, ...]] = {}  # what lent tensors must keep alive, by the address of their struct


def _forget(managed: Any) -> None:
    _lent.pop(ctypes.addressof(managed.contents), None)


_give_back = _Deleter(_forget)


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
# the same functions for a capsule that is being destroyed, which must not become a Python object again
_raw_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_raw_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _forget_untaken(capsule: int) -> None:
    """A capsule that was never taken dies with its tensor; one that was taken is renamed, and its taker frees it."""
    if _raw_is_valid(capsule, _FRESH):
        _lent.pop(_raw_get_pointer(capsule, _FRESH), None)


_drop_capsule = _Destructor(_forget_untaken)


def lend(address: int, output: Output, device: tuple[int, int], owner: object) -> Any:
    """A capsule of an output; `owner`, which holds the memory, lives until the taker is done."""
    shape = output.shape
    dims, strides = ((ctypes.c_int64 * len(shape))(*sizes) for sizes in (shape, output.strides))
    managed = _Managed()
    managed.tensor.data = address
    managed.tensor.device = _Device(*device)
    managed.tensor.ndim = len(shape)
    managed.tensor.dtype = _DataType(*output.kind.dlpack, 1)
    managed.tensor.shape = ctypes.cast(dims, ctypes.POINTER(ctypes.c_int64))
    managed.tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _give_back
    address_of_struct = ctypes.addressof(managed)
    _lent[address_of_struct] = (managed, dims, strides, owner)
    return _new(address_of_struct, _FRESH, ctypes.cast(_drop_capsule, ctypes.c_void_p))


@dataclass(frozen=True)
class Borrowed:
    """An int64 tensor (B,T) of another library, in its memory. Alive as long as this object is."""

    address: int
    shape: tuple[int, int]
    device: tuple[int, int]
    _keep: object


class _Loan:
    """Calls the lender's deleter when the tensor is no longer needed."""

    def __init__(self, managed: Any) -> None:
        self._managed = managed

    def __del__(self) -> None:
        if self._managed.contents.deleter:
            self._managed.contents.deleter(self._managed)


def borrow_ids(value: Any, stream: int | None) -> Borrowed:
    """Take `value`, which has `__dlpack__`, without a copy.

    Args:
        stream: a CUDA stream that will read it: the lender makes it wait for its own work. None for the CPU.

    Raises:
        InputError: it is not a C-contiguous int64 tensor (B,T).
    """
    capsule = value.__dlpack__(stream=stream) if stream is not None else value.__dlpack__()
    if not _is_valid(capsule, _FRESH):
        raise InputError(f"ids is a {type(value).__name__} whose DLPack capsule is not a fresh 'dltensor'.")
    managed = ctypes.cast(_get_pointer(capsule, _FRESH), ctypes.POINTER(_Managed))
    _set_name(capsule, _USED)
    loan = _Loan(managed)
    tensor = managed.contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    dtype = (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes)
    if dtype != (INT, 64, 1):
        raise InputError(f"ids on the GPU has a dtype other than int64 (DLPack {dtype}). Convert it: ids.long().")
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"ids has shape {shape}; expected 2 dimensions (B,T), both at least 1.")
    strides = tuple(tensor.strides[axis] for axis in range(2)) if tensor.strides else (shape[1], 1)
    if not (strides[1] == 1 or shape[1] == 1) or not (strides[0] == shape[1] or shape[0] == 1):
        raise InputError(f"ids is not C-contiguous: strides {strides} for shape {shape}. Pass ids.contiguous().")
    return Borrowed(
        address=int(tensor.data or 0) + int(tensor.byte_offset),
        shape=(shape[0], shape[1]),
        device=(tensor.device.kind, tensor.device.index),
        _keep=loan,
    )


class Memory(Protocol):
    """Memory that is freed with the object."""

    @property
    def address(self) -> int: ...


class DeviceLogits:
    """Logits (B,T,V) where they were computed, the caller's own: `torch.from_dlpack(logits)`, or cupy's.

    float32 and C-contiguous; of a graph that was exported with --native-logits in the dtype of its weights, and with
    --pad-vocab a view of rows that are longer than V.

    Complete when handed over: no stream need wait for another. The memory lives as long as this, or who took it.
    """

    def __init__(self, memory: Memory, output: Output, device: tuple[int, int]) -> None:
        self._memory, self._output = memory, output
        self.shape = output.shape
        self.dtype = output.kind.name
        self.device = device

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of the tensor. Raises: BufferError: a copy, or another device, was asked for."""
        if copy:
            raise BufferError("DeviceLogits are handed over without a copy. Copy what takes them.")
        if dl_device is not None and tuple(dl_device) != self.device:
            raise BufferError(f"DeviceLogits are on device {self.device} and stay there; {dl_device} was asked for.")
        return lend(self._memory.address, self._output, self.device, self._memory)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __repr__(self) -> str:
        where = "the CPU" if self.device[0] == CPU else f"CUDA device {self.device[1]}"
        return f"<DeviceLogits {self.dtype} {self.shape} on {where}>"
