"""Reads rows of pixels of a prepared dataset from a memory map, many at a time."""

import ctypes
import io
import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from coco224.errors import DataError
from coco224.files import in_words, open_regular, read_json
from coco224.photographs.decode import FORMATS, decode_photograph
from coco224.reading.rows import Ints, Pixels, Rows

_COLUMNS = ["image", "file_name"]
_LARGEST = 4096  # largest side of an encoded row in pixels
_MOST_FILES = 4096  # of a split; coco224.prepare writes at most 256
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def open_folder(folder: Path, split: str) -> Rows | None:
    """Opens `train` or `validation` of a dataset that `coco224.prepare` made; None if it has no such split.

    Raises:
        DataError: the folder is not such a dataset, or is damaged.
    """
    try:
        if split not in list(read_json(folder / "dataset_dict.json")["splits"]):
            return None
        state = read_json(folder / split / "state.json")
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        if odd := [name for name in names if name != Path(name).name or not name.isprintable()]:
            raise ValueError(f"{odd[0]!r} is not a file name")
        if len(names) > _MOST_FILES:
            raise ValueError(f"it has {len(names)} files, and {_MOST_FILES} is the most")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"it lists {twice[0]} twice")
        fingerprint = str(state["_fingerprint"])
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_no_dataset(folder, split)) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = in_words(error) if isinstance(error, OSError) else " ".join(str(error).split())
        raise DataError(f"{folder} is damaged ({reason}): prepare it again with python -m coco224.prepare") from None
    return open_files(folder, split, [str(folder / split / name) for name in names], fingerprint)


def open_files(folder: Path, split: str, files: Sequence[str], fingerprint: str) -> Rows:
    """The rows of Arrow files. The files are memory-mapped, so memory does not grow with their size.

    The arguments are those of `rows_of`. Rows are pickled as these arguments: a worker maps the same files.

    Raises:
        DataError: a file is missing or damaged, or not part of such a dataset.
    """
    try:
        table = pa.concat_tables([_columns(folder, split, _mapped(Path(file))) for file in files])
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{folder} is damaged ({reason}): prepare it again with python -m coco224.prepare") from None
    return rows_of(folder, split, table, fingerprint, files)


def rows_of(folder: Path, split: str, table: pa.Table, fingerprint: str, files: Sequence[str] = ()) -> Rows:
    """The rows of a table with the columns of a prepared dataset. It may come from a stranger, so it is validated.

    Args:
        folder, split: the source, for errors.
        files: the Arrow files that the table maps. Rows without them cannot be pickled.

    Raises:
        DataError: the table is damaged or has other columns.
    """
    table = _columns(folder, split, table)
    try:
        table.validate(full=True)  # otherwise wrong offsets would read outside the buffers
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{folder / split} is damaged ({reason}): prepare the dataset again") from None
    image, name = (table.schema.field(column).type for column in _COLUMNS)
    if not pa.types.is_string(name):
        raise DataError(f"{folder / split}: column file_name is {name}, not string: prepare the dataset again")
    if not table.num_rows:
        raise DataError(f"{folder / split} has no rows: prepare it again with python -m coco224.prepare")
    kind = RawRows if pa.types.is_binary(image) else EncodedRows
    return kind(folder, split, table, fingerprint, files)


def _columns(folder: Path, split: str, table: pa.Table) -> pa.Table:
    missing = set(_COLUMNS) - set(table.column_names)
    if missing:
        raise DataError(
            f"{folder / split} has no column {' and '.join(sorted(missing))} (its columns: "
            f"{', '.join(table.column_names)}): make the dataset with python -m coco224.prepare"
        )
    if twice := [name for name in _COLUMNS if table.column_names.count(name) > 1]:
        raise DataError(f"{folder / split} has two columns {twice[0]}: make the dataset with python -m coco224.prepare")
    return table.select(_COLUMNS)


def _no_dataset(folder: Path, split: str) -> str:
    if not folder.exists():
        return (
            f"--coco_dir {folder} does not exist: give a folder that python -m coco224.prepare made, or USER/NAME of a "
            "dataset that it uploaded to the Hub"
        )
    if (folder / "dataset_dict.json").is_file():
        return f"{folder / split} lacks state.json: prepare the dataset again with python -m coco224.prepare"
    if (folder / "train2017").is_dir():
        return (
            f"--coco_dir {folder} is a COCO root: prepare it with python -m coco224.prepare --coco_dir {folder} "
            f"--out_dir DATASET, or give --use_prepared false"
        )
    return (
        f"--coco_dir {folder} is no prepared dataset (no dataset_dict.json in it): make one with "
        f"python -m coco224.prepare"
    )


def _mapped(file: Path) -> pa.Table:
    try:
        open_regular(file).close()
        # The mapping stays valid after the file is closed, so hundreds of shards need no file handles.
        with pa.memory_map(str(file)) as source:
            if any(_is_compressed(message) for message in pa.ipc.MessageReader.open_stream(source)):
                raise pa.ArrowInvalid("it is compressed, which no file of coco224.prepare is")
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} is missing or damaged ({reason}): prepare the dataset again") from None


def _is_compressed(message: Any) -> bool:
    """Whether a message of an Arrow stream has a compressed body, which may become any size in memory.

    pyarrow does not say it. The metadata are the flatbuffer `Message`, in Arrow's Message.fbs: its field 2 is the
    header, and field 3 of a `RecordBatch` is `compression`.

    Raises:
        struct.error: the metadata are damaged.
    """
    if message.type == "schema":
        return False
    if message.type != "record batch":
        raise pa.ArrowInvalid(f"it has a {message.type}, which no file of coco224.prepare has")
    data = message.metadata.to_pybytes()

    def number(kind: str, place: int) -> int:
        found: int = struct.unpack_from(kind, data, place)[0]
        return found

    def field(table: int, index: int) -> int:
        """The place of a table's field; 0 if it is absent."""
        fields = table - number("<i", table)
        entry = 4 + 2 * index
        offset = number("<H", fields + entry) if entry < number("<H", fields) else 0
        return table + offset if offset else 0

    header = field(number("<I", 0), 2)
    return field(header + number("<I", header), 3) != 0


class _ArrowRows:
    """Shared by both encodings: names, length, and the search for a row's record batch."""

    def __init__(self, folder: Path, split: str, table: pa.Table, fingerprint: str, files: Sequence[str]) -> None:
        self.fingerprint = fingerprint
        self._where = folder, split
        self._mapped_files = files
        self._names = table.column("file_name")
        images = table.column("image")
        for column in _COLUMNS:
            if table.column(column).null_count:
                raise DataError(f"{folder / split} has rows without {column}: prepare the dataset again")
        self._images = [chunk for chunk in images.chunks if len(chunk)]
        # starts[c] is the first row of chunk c.
        self._starts = np.cumsum([0, *map(len, self._images)])

    def follow(self, order: Ints) -> None:
        pass

    def expect(self, indices: Ints) -> None:
        pass

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[object, ...]:
        return open_files, (*self._where, self._mapped_files, self.fingerprint)

    def order(self, rng: np.random.Generator) -> Ints:
        return rng.permutation(len(self))

    def names(self, indices: Sequence[int] | Ints) -> list[str]:
        return [self._names[int(index)].as_py() for index in indices]

    def _find(self, indices: Ints) -> Iterator[tuple[int, int]]:
        """(chunk, row in it) of each row."""
        chunks = np.searchsorted(self._starts, indices, side="right") - 1
        return zip(chunks.tolist(), (indices - self._starts[chunks]).tolist(), strict=True)


class RawRows(_ArrowRows):
    """Rows of size*size*3 bytes, as array views without a copy."""

    decodes = False

    def __init__(self, folder: Path, split: str, table: pa.Table, fingerprint: str, files: Sequence[str]) -> None:
        super().__init__(folder, split, table, fingerprint, files)
        row_bytes = len(self._images[0][0].as_buffer())
        self.size = math.isqrt(row_bytes // 3)
        if not row_bytes or self.size**2 * 3 != row_bytes:
            raise DataError(
                f"{folder / split} has rows of {row_bytes} bytes, which are not square RGB pictures: prepare it again"
            )
        self._chunks: list[Pixels] = []
        for chunk in self._images:
            _, ends, data = chunk.buffers()
            offsets = np.frombuffer(ends, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            if (np.diff(offsets) != row_bytes).any():
                raise DataError(f"{folder / split} has rows of different sizes: prepare the dataset again")
            pixels = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
            self._chunks.append(pixels.reshape(len(chunk), self.size, self.size, 3))
        self._addresses = [pixels.ctypes.data for pixels in self._chunks]

    def expect(self, indices: Ints) -> None:
        """Asks the kernel to read these rows from the disk in the background; one reader would wait for each page."""
        row_bytes = self.size**2 * 3
        for chunk, row in self._find(indices):
            start = self._addresses[chunk] + row * row_bytes
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            _madvise(page, start + row_bytes - page, mmap.MADV_WILLNEED)

    def read(self, indices: Ints, top: Ints, left: Ints, size: int) -> Pixels:
        out = np.empty((len(indices), size, size, 3), np.uint8)
        windows = zip(out, self._find(indices), top.tolist(), left.tolist(), strict=True)
        for window, (chunk, row), y, x in windows:
            window[:] = self._chunks[chunk][row, y : y + size, x : x + size]
        return out


class EncodedRows(_ArrowRows):
    """Rows that are PNG, WebP or JPEG files."""

    decodes = True

    def __init__(self, folder: Path, split: str, table: pa.Table, fingerprint: str, files: Sequence[str]) -> None:
        super().__init__(folder, split, table, fingerprint, files)
        images = table.column("image")
        kind = images.type
        fields = [field for field in kind if field.name == "bytes"] if pa.types.is_struct(kind) else []
        if len(fields) != 1 or not pa.types.is_binary(fields[0].type):
            raise DataError(f"{folder / split}: column image is {images.type}, neither bytes nor encoded pictures")
        self._files = [chunk.field("bytes") for chunk in self._images]
        if any(files.null_count for files in self._files):
            raise DataError(f"{folder / split} has rows that refer to other files: prepare the dataset again")
        self.size = 0
        self.size = self._decoded(0, 0).shape[0]

    def read(self, indices: Ints, top: Ints, left: Ints, size: int) -> Pixels:
        out = np.empty((len(indices), size, size, 3), np.uint8)
        windows = zip(out, self._find(indices), top.tolist(), left.tolist(), strict=True)
        for window, (chunk, row), y, x in windows:
            window[:] = self._decoded(chunk, row)[y : y + size, x : x + size]
        return out

    def _decoded(self, chunk: int, row: int) -> Pixels:
        where = f"row {int(self._starts[chunk]) + row} of {'/'.join(map(str, self._where))}"
        file = self._files[chunk][row].as_py()
        try:
            with Image.open(io.BytesIO(file), formats=FORMATS) as image:
                side = self.size or min(image.width, _LARGEST)
                if image.size != (side, side):  # checked before decoding
                    raise DataError(f"{where} is {image.width}x{image.height}, not {side}x{side}: prepare it again")
            return decode_photograph(file).pixels()
        except DataError:
            raise
        except Exception as error:  # on a damaged file Pillow's decoders raise any exception
            reason = "no picture" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
            reason = reason or type(error).__name__
            raise DataError(f"{where} cannot be decoded ({reason}): prepare the dataset again") from None
