"""Reads the tensors of a file of `torch.save`, without unpickling.

An unpickler calls what a pickle names. Even torch's unpickler of weights alone lets 100 bytes ask for gigabytes. Here
nothing is imported or called: each instruction of a pickle makes one object, or changes one.
"""

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from codec.errors import InputError

MOST_PICKLE = 2**19
"""Largest pickle in bytes. That of a mean-scale codec with its optimizer has 26 kB."""

MOST_DIRECTORY = 2**22
"""Largest directory of a zip in bytes: of some 50,000 tensors."""

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file that is no zip."""
_MOST_ARGUMENTS = 8
_MOST_SIZE = 2**60

_FLOATS = {"Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64}
_TYPES = {**_FLOATS, "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16,
          "Int": torch.int32, "Long": torch.int64, "ComplexFloat": torch.complex64,
          "ComplexDouble": torch.complex128}  # fmt: skip
"""Types of the elements by the names of torch's storages."""

_REBUILD = "torch._utils _rebuild_"
_PLAIN = (f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2")
_PARAMETERS = (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state")
_WITH_ATTRIBUTES = "torch._tensor _rebuild_from_type_v2"
_MAPPINGS = ("collections OrderedDict", "collections Counter")
_KINDS = {
    f"{_REBUILD}sparse_tensor": "is sparse",
    f"{_REBUILD}meta_tensor_no_storage": "is on the device meta, without values",
    f"{_REBUILD}nested_tensor": "is a nested tensor",
    f"{_REBUILD}qtensor": "is quantized",
}
"""What a tensor is that torch rebuilds with this function."""
_KNOWN = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_\w+|torch\._tensor _rebuild_from_type_v2"
    r"|torch (\w*Storage|Tensor|Size|device|bool|b?float\w+|u?int\w+|complex\w+|per_\w+)|torch\.storage UntypedStorage"
    r"|torch\.nn\.parameter (Parameter|Buffer)|torch\.serialization _get_layout"
    r"|numpy(\._?core\.multiarray scalar| dtype)|_codecs encode|(__builtin__|builtins) (set|complex)"
)
"""What the pickle of weights, of an optimizer's state and of numbers may name."""


class _Name(str):
    """What a pickle would import: a module and a name, with a space between them."""


class _Storage(NamedTuple):
    kind: str  # a name of `_TYPES`, or of another storage
    key: str


@dataclass(frozen=True)
class SavedTensor:
    """A tensor as a pickle describes it.

    Attributes:
        obstacle: why it is no tensor of floats, for example "is sparse"; empty if it is one.
        storage, offset, stride: where its values are.
        shape: its shape.
    """

    obstacle: str
    storage: _Storage | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its values, if they do not overlap."""
        assert self.storage
        return math.prod(self.shape) * _FLOATS[self.storage.kind].itemsize


class TorchFile:
    """What a file of `torch.save` holds.

    Args:
        file: the file; each tensor is read from it when it is wanted.
        size: its bytes.

    Attributes:
        saved: numbers, text, lists, tuples, mappings of text to values, and a `SavedTensor` for each tensor. None
            stands for everything else.

    Raises:
        InputError: it is damaged, no such file, or its pickle names what belongs to no weights.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._contents: dict[str, bytearray] = {}
        is_zip = file.read(len(_ZIP)) == _ZIP
        file.seek(0)
        try:
            self.saved, self._read = _read_zip(file, size) if is_zip else _read_old(file, size)
        except (InputError, OSError):
            raise
        except Exception as error:  # junk makes the readers raise whatever they trip over
            raise _damaged() from error

    def tensor(self, saved: SavedTensor) -> Tensor:
        """The values of a tensor that has no obstacle. The caller compares its size with the file's before."""
        assert saved.storage
        dtype, key = _FLOATS[saved.storage.kind], saved.storage.key
        try:
            if 0 in saved.shape:
                return torch.empty(saved.shape, dtype=dtype)
            if key not in self._contents:
                self._contents[key] = bytearray(self._read(key))
            return torch.frombuffer(self._contents[key], dtype=dtype).as_strided(
                saved.shape, saved.stride, saved.offset
            )
        except OSError:
            raise
        except Exception as error:
            raise _damaged() from error


def _damaged() -> InputError:
    return InputError("not read, it is damaged or no checkpoint; give a checkpoint, or save the model's state_dict")


def _read_zip(file: BinaryIO, size: int) -> tuple[Any, Callable[[str], bytes]]:
    """What a zip holds, and a function that reads a storage."""
    if _directory_size(file, size) > MOST_DIRECTORY:
        raise InputError("it has more parts than weights need; save the model's state_dict with torch.save")
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if any(each.compress_type for each in entries) or sum(each.file_size for each in entries) > size:
        raise InputError(
            "parts of it are compressed or overlap, and torch.save writes none so; save it with torch.save"
        )
    (pickle,) = (each for each in entries if each.filename.endswith("/data.pkl"))
    if pickle.file_size > MOST_PICKLE:
        raise InputError(
            f"its data.pkl has {pickle.file_size:,} bytes, and a codec's at most {MOST_PICKLE:,}; save the model's "
            "state_dict alone"
        )
    folder = pickle.filename.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise InputError("its numbers are big-endian; save it on a little-endian machine")
    return _value(io.BytesIO(archive.read(pickle)), {}), lambda key: archive.read(f"{folder}data/{key}")


def _directory_size(file: BinaryIO, size: int) -> int:
    """The size of a zip's directory by its end records; zipfile makes an object for each entry."""
    file.seek(max(0, size - 2**17))  # a comment has up to 2^16 bytes
    end, found = file.read(), 0
    file.seek(0)
    for mark, place, length in ((b"PK\x05\x06", 12, 4), (b"PK\x06\x06", 40, 8)):
        at = end.rfind(mark)
        value = int.from_bytes(end[at + place : at + place + length], "little") if at >= 0 else 0
        found = max(found, 0 if value == 2**32 - 1 else value)  # then the number is in the other record
    return found


def _read_old(file: BinaryIO, size: int) -> tuple[Any, Callable[[str], bytes]]:
    """What a file before torch 1.6 holds, and a function that reads a storage.

    Five pickles: the magic number, the version, the machine, what was saved, and the keys of the storages. Then comes
    each storage after the number of its elements.
    """
    start = io.BytesIO(file.read(MOST_PICKLE))
    if _value(start, {}) != _MAGIC:
        raise ValueError("no file of torch.save")
    kinds: dict[str, str] = {}
    _, _, saved, keys = (_value(start, kinds) for _ in range(4))
    places: dict[str, tuple[int, int]] = {}
    place = start.tell()
    for key in keys:
        file.seek(place)
        length = int.from_bytes(file.read(8), "little") * _TYPES[kinds[key]].itemsize
        places[key] = place + 8, length
        place += 8 + length
        if place > size:
            raise ValueError("it ends within a storage")

    def read(key: str) -> bytes:
        file.seek(places[key][0])
        return file.read(places[key][1])

    return saved, read


def _value(pickle: BinaryIO, kinds: dict[str, str]) -> Any:
    """The value of a pickle, as in `TorchFile.saved`.

    Args:
        kinds: gets the kind of each storage by its key.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below the marks
    memo: dict[int | None, Any] = {}
    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "NONE" | "EMPTY_SET":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items, stack = stack, below.pop()
                _add(stack[-1], items)
            case "APPEND":
                items = [stack.pop()]
                _add(stack[-1], items)
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                _add(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_known(f"{stack.pop()} {name}"))
            case "BINPERSID":
                storage = _storage(stack.pop())
                kinds[storage.key] = storage.kind
                stack.append(storage)
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_called(stack.pop(), arguments))
            case "BUILD":  # attributes, for example the versions of an OrderedDict's modules
                stack.pop()
            case "STOP":
                return stack.pop()
            case other:
                raise ValueError(f"{other} in a pickle of weights")
    raise ValueError("the pickle has no end")


def _add(target: Any, items: list[Any]) -> None:
    """Adds items to a list, or keys and values to a mapping. Keys that are no text, as an optimizer's, are left out."""
    if isinstance(target, list):
        target += items
    elif isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if isinstance(key, str))


def _known(name: Any) -> _Name:
    if not _KNOWN.fullmatch(name):
        raise InputError(
            f"it holds {name.replace(' ', '.'):.80}, which belongs to no weights, and pickled code is never run; save "
            "the model's state_dict alone"
        )
    return _Name(name)


def _storage(arguments: Any) -> _Storage:
    """A storage from "storage", its class, its key, its device, its length and, in an old file, the part of it."""
    _, kind, key, _, _, *part = _few(arguments)
    if not isinstance(kind, _Name) or type(key) is not str or any(part):
        raise ValueError("no storage")
    return _Storage(kind.partition(" ")[2].removesuffix("Storage"), key)


def _called(function: Any, arguments: Any) -> Any:
    """What a call of torch gives, as far as weights need it; None for every other call."""
    if function == _WITH_ATTRIBUTES:
        function, _, arguments = _few(arguments)[:3]
    if not isinstance(function, _Name):
        return None
    if function in _MAPPINGS:
        return {}
    if function in _PARAMETERS:
        return _few(arguments)[0]
    return _tensor(function, _few(arguments)) if function.startswith(_REBUILD) else None


def _tensor(function: _Name, arguments: tuple[Any, ...]) -> SavedTensor:
    if function not in _PLAIN:
        types = [each.partition(" ")[2] for each in arguments if isinstance(each, _Name)]
        return SavedTensor(_KINDS.get(function) or f"is {types[-1] if types else 'no plain tensor'}")
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < _MOST_SIZE for n in _few(shape)):
        raise ValueError("no tensor")
    if storage.kind not in _FLOATS:
        found = str(_TYPES.get(storage.kind, storage.kind)).removeprefix("torch.")
        return SavedTensor(f"is {found}")
    return SavedTensor("", storage, offset, shape, _few(stride))


def _few(arguments: Any) -> tuple[Any, ...]:
    """A tuple as a call of torch takes it."""
    if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
        raise ValueError("no arguments of torch")
    return arguments
