"""Files of `torch.save` are read without unpickling: in bounded time and memory, and with torch's own values."""

import argparse
import io
import pickle
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior, MeanScaleHyperprior

from codec.checkpoint import load_initial
from codec.checkpoint.torch_file import MOST_DIRECTORY, SavedTensor, TorchFile
from codec.errors import InputError


def opened(content: bytes) -> TorchFile:
    return TorchFile(io.BytesIO(content), len(content))


def content_of(saved: Any, **how: Any) -> bytes:
    content = io.BytesIO()
    torch.save(saved, content, **how)
    return content.getvalue()


def in_zip(pickled: bytes, **entry: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a/data.pkl", pickled, **entry)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(4096))
    return content.getvalue()


def program(*instructions: bytes) -> bytes:
    """A pickle."""
    return b"\x80\x02" + b"".join(instructions) + b"."


def name(module: str, of_it: str) -> bytes:
    return b"c" + f"{module}\n{of_it}\n".encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


FOUR_GB = number(4 * 10**9) + b"\x85R"
STORAGE = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"M\0\x04tQ"
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
EXPANDED = REBUILD + b"(" + STORAGE + b"K\0" + number(10**9) + b"\x85K\0\x85\x89)tR"
TREE = text("a") + b"q\0" + b"".join(b"h" + bytes([n, 104, n, 134, 113, n + 1]) for n in range(60))

COPIES = name("collections", "OrderedDict") + b"q\1" + b"h\1h\0\x85R" * 10**4

ENCODES = name("_codecs", "encode") + b"q\0" + b"h\0" * 32 + text("a")

BOMBS = {
    "a large bytearray": name("__builtin__", "bytearray") + FOUR_GB,
    "a large bytearray of Python 3": name("builtins", "bytearray") + FOUR_GB,
    "a text that doubles": ENCODES + text("latin1") + b"\x86R" + (text("hex") + b"\x86R") * 32,
    "a large tensor": name("torch", "Tensor") + FOUR_GB,
    "a large storage": name("torch.storage", "UntypedStorage") + FOUR_GB,
    "a large number of numpy": name("numpy.core.multiarray", "scalar") + name("numpy", "dtype") + FOUR_GB,
    "a mapping of a large view": name("collections", "OrderedDict") + EXPANDED + b"\x85R",
    "a count of a large view": name("collections", "Counter") + EXPANDED + b"\x85R",
    "attributes from a large view": name("collections", "OrderedDict") + b")R" + EXPANDED + b"b",
    "copies of a large mapping": b"}(" + b"".join(text(f"{n}") + b"N" for n in range(10**4)) + b"uq\0" + COPIES,
    "a large quantized tensor": name("torch._utils", "_rebuild_qtensor") + b"(" + number(10**12) + b"tR",
    "a key that is a tree": TREE + b"}h\x3cK\1s",
    "a memo with a large index": b"Nr\xff\xff\xff\x7f",
    "many lists": b"]" * 10**5,
    "a pickle without end": b"(" * 10**5,
    "an import of sys": name("sys", "exit") + b")R",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_pickle_can_ask_for_no_memory_and_no_time(bomb: str, form: str, tmp_path: Path) -> None:
    pickled = program(BOMBS[bomb])
    if form == "zip":
        content = in_zip(pickled)
    else:
        start = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {})]
        content = b"".join((*start, pickled, pickle.dumps([], 2)))
    (tmp_path / "bomb.pth").write_bytes(content)
    tracemalloc.start()
    since = time.process_time()
    with pytest.raises(InputError, match=r"bomb\.pth"):
        load_initial(tmp_path / "bomb.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    assert time.process_time() - since < 30


def test_a_pickle_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.pth").write_bytes(program(BOMBS["a large bytearray"]))
    with pytest.raises(InputError, match=r"it holds __builtin__\.bytearray, .* save the model's state_dict alone"):
        load_initial(tmp_path / "bomb.pth")


def test_a_pickle_is_stored_and_small() -> None:
    lists = program(b"]" * 2_000_000)
    with pytest.raises(InputError, match="compressed"):
        opened(in_zip(lists, compress_type=zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match=r"data\.pkl has 2,000,003 bytes"):
        opened(in_zip(lists))


def test_entries_that_overlap_are_refused() -> None:
    """The directory names one entry of 4 kB a thousand times."""
    content = in_zip(program(b"}"))
    directory, end = content.rfind(b"PK\x01\x02"), content.rfind(b"PK\x05\x06")
    entry = content[directory:end]
    start = content.find(b"PK\x01\x02")
    counts = (1001).to_bytes(2, "little") * 2
    length = (end - start + 999 * len(entry)).to_bytes(4, "little")
    end_record = content[end : end + 8] + counts + length + content[end + 16 :]
    with pytest.raises(InputError, match="overlap"):
        opened(content[:end] + entry * 999 + end_record)


def test_a_zip_of_very_many_entries_is_refused_before_its_directory_is_read() -> None:
    content = in_zip(program(b"}"))
    end = content.rfind(b"PK\x05\x06")
    with pytest.raises(InputError, match="more parts than weights need"):
        opened(content[: end + 12] + (MOST_DIRECTORY + 1).to_bytes(4, "little") + content[end + 16 :])


def states() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    state = FactorizedPrior(8, 12).state_dict()
    floats = {each: tensor for each, tensor in state.items() if tensor.is_floating_point()}
    flat = torch.cat([tensor.flatten() for tensor in floats.values()])
    parts = flat.split([tensor.numel() for tensor in floats.values()])
    return {
        "plain": state,
        "parameters": {each: torch.nn.Parameter(tensor) for each, tensor in floats.items()},
        "parts of one": {each: part.view(floats[each].shape) for each, part in zip(floats, parts, strict=True)},
        "transposed": {each: t.t().contiguous().t() if t.ndim == 2 else t for each, t in state.items()},
        "half": {each: tensor.half() for each, tensor in floats.items()},
        "bfloat16": {each: tensor.bfloat16() for each, tensor in floats.items()},
        "double": {each: tensor.double() for each, tensor in floats.items()},
    }


@pytest.mark.parametrize("form", states())
@pytest.mark.parametrize("zipped", [True, False])
def test_the_tensors_are_those_of_torch(form: str, zipped: bool) -> None:
    state = states()[form]
    file = opened(content_of({"state_dict": state}, _use_new_zipfile_serialization=zipped))
    saved = file.saved["state_dict"]
    assert list(saved) == list(state)
    for each, tensor in state.items():
        if tensor.is_floating_point():
            assert not saved[each].obstacle
            assert saved[each].size == tensor.numel() * tensor.element_size()
            assert torch.equal(file.tensor(saved[each]), tensor.detach())
        else:
            assert saved[each].obstacle == f"is {tensor.dtype}".replace("torch.", "")


@pytest.mark.parametrize(("zipped", "protocol"), [(False, 2), (True, 2), (True, 4), (True, 5)])
def test_a_training_checkpoint_with_numbers_beside_the_weights_loads(
    tmp_path: Path, zipped: bool, protocol: int
) -> None:
    model = MeanScaleHyperprior(8, 12)
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    saved = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2]).state_dict(),
        "rng": torch.get_rng_state(),
        "device": torch.device("cuda:0"),
        "best": np.float64(3.0),
        "step": np.int64(3),
        "others": (1e-4, -5, 10**30, None, True, {1, 2}, 1j, torch.float16, torch.Size([2]), b"text"),
    }
    saved["state_dict"] |= {"step": torch.tensor(3), "lpips.w": torch.zeros(2)}
    path = tmp_path / "c.pth.tar"
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    codec = load_initial(tmp_path / "c.pth.tar")
    assert torch.equal(codec.g_a[0].weight, model.g_a[0].weight)


@pytest.mark.parametrize(
    ("beside", "found"),
    [
        (argparse.Namespace(lr=1), r"argparse\.Namespace"),
        (Path("x"), r"pathlib\.\w*PosixPath"),
        (np.arange(3), r"numpy\.\w+\.multiarray\._reconstruct"),
        (FactorizedPrior(1, 1), r"compressai\.models\.\w+\.FactorizedPrior"),
    ],
)
def test_an_object_beside_the_weights_is_named(tmp_path: Path, beside: object, found: str) -> None:
    torch.save({"state_dict": FactorizedPrior(8, 12).state_dict(), "beside": beside}, tmp_path / "c.pth.tar")
    with pytest.raises(InputError, match=f"it holds {found}, .* save the model's state_dict alone"):
        load_initial(tmp_path / "c.pth.tar")


def tensors_of_no_weights() -> dict[str, torch.Tensor]:
    return {
        "is sparse": torch.eye(8).to_sparse(),
        "is sparse, and": torch.eye(8).to_sparse_csr(),
        "is on the device meta": torch.zeros(8, device="meta"),
        "is a nested tensor": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "is quantized": torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.qint8),
        "is float8_e4m3fn": torch.zeros(8).to(torch.float8_e4m3fn),
        "is uint16": torch.zeros(8).to(torch.uint16),
        "is complex64": torch.zeros(8, dtype=torch.complex64),
        "is bool": torch.zeros(8) > 0,
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_that_is_no_weight_is_refused_with_its_reason(tmp_path: Path) -> None:
    for said, tensor in tensors_of_no_weights().items():
        torch.save(FactorizedPrior(8, 12).state_dict() | {"g_a.0.bias": tensor}, tmp_path / "c.pth")
        with pytest.raises(InputError, match=rf"g_a\.0\.bias {said}.* weights are dense, of float16, "):
            load_initial(tmp_path / "c.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_anywhere_is_damaged(zipped: bool) -> None:
    content = content_of({"g_a.0.weight": torch.ones(8, 3, 5, 5)}, _use_new_zipfile_serialization=zipped)
    for length in (0, 3, 30, len(content) // 2, len(content) - 1):
        with pytest.raises(InputError, match="damaged"):
            opened(content[:length])


def test_a_tensor_beyond_its_storage_is_damaged() -> None:
    file = opened(content_of({"a": torch.ones(3)}))
    saved = file.saved["a"]
    with pytest.raises(InputError, match="damaged"):
        file.tensor(SavedTensor("", saved.storage, 1, (3,), (1,)))
