"""The compiled coder for Python: a `Coder` and its container in one object."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitstream.container import latent_size
from codec.errors import InputError

_SIGNATURES = {
    "nic_message": (c_char_p, c_int),
    "nic_memory": (c_int, c_char_p, c_size_t, POINTER(c_size_t)),
    "nic_open": (c_int, c_char_p, c_size_t, c_void_p, c_size_t, POINTER(c_void_p)),
    "nic_work": (c_int, c_void_p, c_uint32, c_uint32, POINTER(c_size_t)),
    "nic_size": (c_int, c_void_p, c_char_p, c_size_t, POINTER(c_uint32), POINTER(c_uint32)),
    "nic_decode": (c_int, c_void_p, c_char_p, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t),
    "nic_most": (c_size_t, c_void_p, c_uint32, c_uint32),
    "nic_encode": (
        *(c_int, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, c_void_p),
        *(c_void_p, c_size_t, POINTER(c_size_t), c_void_p, c_size_t),
    ),
    "nic_round": (c_int, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t),
    "nic_round_z": (c_int, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p, c_void_p),
}
"""Results and arguments of the functions of nic.h."""


class _Info(ctypes.Structure):
    """`nic_info` of nic.h."""

    _fields_ = (
        *((name, c_uint32) for name in ("fingerprint", "architecture", "channels", "z_channels", "most_rate")),
        ("unit", c_float),
        ("medians", POINTER(c_float)),
    )


class DeviceCoder:
    """Codes whole files with the compiled library; one thread at a time.

    Args:
        tables: the content of a file of entropy tables.
        library: what `compile_library` wrote.

    Attributes:
        fingerprint: of the codec.
        channels: M.
        most: the number of the highest rate; 0 for a codec of one rate.
        medians: float32 [M, 1, 1]; y_hat is `unpack(..)[2] * unit + medians`.
        unit: of decoded values.

    Raises:
        InputError: the bytes are no such tables.
    """

    def __init__(self, tables: bytes, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._library.nic_about.restype, self._library.nic_about.argtypes = _Info, [c_void_p]
        size, self._coder = c_size_t(), c_void_p()
        self._call("nic_memory", tables, len(tables), byref(size))
        self._memory = ctypes.create_string_buffer(size.value)
        self._call("nic_open", tables, len(tables), self._memory, size, byref(self._coder))
        self._work = np.empty(0, np.uint8)
        info = self._library.nic_about(self._coder)
        self.fingerprint, self.channels, self.unit = info.fingerprint, info.channels, info.unit
        self.most = info.most_rate
        self.medians = np.ctypeslib.as_array(info.medians, (info.channels,)).copy()[:, None, None]

    def pack(
        self,
        height: int,
        width: int,
        symbols: NDArray[np.int32],
        z: NDArray[np.int32] | None = None,
        rate: int | None = None,
    ) -> bytes:
        """As `codec.bitstream.pack`."""
        symbols, z = np.ascontiguousarray(symbols, np.int32), None if z is None else np.ascontiguousarray(z, np.int32)
        room = self._library.nic_most(self._coder, height, width)
        file, length = np.empty(room, np.uint8), c_size_t()
        places = (symbols.ctypes.data, None if z is None else z.ctypes.data, file.ctypes.data, room, byref(length))
        self._call("nic_encode", *self._sized(height, width, rate), *places, *self._worked(height, width))
        return file[: length.value].tobytes()

    def unpack(self, data: bytes) -> tuple[int, int, NDArray[np.int32]]:
        """As `codec.bitstream.unpack`."""
        height, width = c_uint32(), c_uint32()
        self._call("nic_size", self._coder, data, len(data), byref(height), byref(width))
        values = np.empty((self.channels, *latent_size(height.value, width.value)), np.int32)
        room = self._worked(height.value, width.value)
        self._call("nic_decode", self._coder, data, len(data), values.ctypes.data, values.size, *room)
        return height.value, width.value, values

    def round(
        self,
        height: int,
        width: int,
        y: NDArray[np.float32],
        z: NDArray[np.int32] | None = None,
        rate: int | None = None,
    ) -> NDArray[np.int32]:
        """As `Coder.round`, for y of a picture of this size."""
        y, z = np.ascontiguousarray(y, np.float32), None if z is None else np.ascontiguousarray(z, np.int32)
        symbols = np.empty(y.shape, np.int32)
        places = (y.ctypes.data, None if z is None else z.ctypes.data, symbols.ctypes.data)
        self._call("nic_round", *self._sized(height, width, rate), *places, *self._worked(height, width))
        return symbols

    def round_z(self, height: int, width: int, z: NDArray[np.float32], rate: int | None = None) -> NDArray[np.int32]:
        """As `HyperCoder.round_z`, for z of a picture of this size."""
        z = np.ascontiguousarray(z, np.float32)
        symbols = np.empty(z.shape, np.int32)
        self._call("nic_round_z", *self._sized(height, width, rate), z.ctypes.data, symbols.ctypes.data)
        return symbols

    def _sized(self, height: int, width: int, rate: int | None) -> tuple[Any, ...]:
        """The coder, and what picture it shall code."""
        return self._coder, self.most if rate is None else rate, height, width

    def _worked(self, height: int, width: int) -> tuple[int, int]:
        """The address and the length of work memory for a picture of this size."""
        size = c_size_t()
        self._call("nic_work", self._coder, height, width, byref(size))
        if size.value > self._work.size:
            self._work = np.empty(size.value, np.uint8)
        return self._work.ctypes.data, self._work.size

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise InputError(self._library.nic_message(status).decode())
