"""Checkpoints of strangers: what they claim is checked before it is allocated, and each refusal is one line."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressai.models import FactorizedPrior
from safetensors.numpy import load_file, save

from coco224.files import parse_json
from codec.checkpoint import Description, load_codec, load_initial, open_codec, save_codec
from codec.compress import main as compress
from codec.description.architecture import ARCHITECTURES, Architecture, BlockChoice, Quantization
from codec.description.file import MOST_HEADER, to_bytes
from codec.description.fingerprint import fingerprint
from codec.description.shapes import check_shapes, weight_shapes
from codec.errors import InputError
from codec.evaluate import main as evaluate
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.tables import with_tables
from codec.quantization.phases import build
from export.__main__ import main as export

ARCHITECTURE = {
    "N": 8,
    "M": 12,
    "g_a": {"name": "relu", "options": {}},
    "g_s": {"name": "gdn", "options": {}},
    "quantization": None,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("good") / "c.safetensors"
    save_codec(path, with_tables(new_codec(Architecture(8, 12, BlockChoice("relu")))), Description(step=6))
    return path


def forged(good: Path, path: Path, entries: dict[str, str | None], arrays: dict[str, np.ndarray | None]) -> Path:
    """The checkpoint with other metadata and arrays (None: without), and a checksum that is right."""
    content = good.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    del metadata["sha256"]
    metadata = {name: value for name, value in (metadata | entries).items() if value is not None}
    tensors = {name: value for name, value in (load_file(good) | arrays).items() if value is not None}
    path.write_bytes(save(tensors, metadata | {"sha256": fingerprint(tensors, metadata)}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        FileCodec(open_codec(path), str(path))
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 500
    return str(refused.value)


BLOCK = {"name": "relu", "options": {}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"N": 6000, "M": 6000}, "g_a.0.weight of shape"),
        ({"N": 10**12, "M": 10**12}, "g_a.0.weight of shape"),
        ({"N": -5}, "at least one channel"),
        ({"M": 0}, "at least one channel"),
        ({"N": "8"}, "not a whole number"),
        ({"N": 8.0}, "not a whole number"),
        ({"N": True}, "not a whole number"),
        ({"g_a": None}, "not an object"),
        ({"g_a": {"name": 5, "options": {}}}, "not text"),
        ({"g_a": {"name": ["relu"], "options": {}}}, "not text"),
        ({"g_a": {"name": "../../etc/passwd", "options": {}}}, "no such block"),
        ({"g_a": BLOCK | {"evil": 1}}, "unknown entry"),
        ({"g_a": BLOCK | {"options": [1, 2]}}, "not an object"),
        ({"g_a": BLOCK | {"options": {"enc_t": {}}}}, "architecture.g_a.options.enc_t"),
        ({"g_s": {"name": "gate_mlp", "options": {"dec_hidden": 10**9}}}, "not an option"),
        ({"g_a": {"name": "gdnish", "options": {"enc_kdw": 100001}}}, "asks for"),
        ({"g_a": {"name": "gdnish", "options": {"enc_t": 1e15}}}, "gdnish with these options"),
        ({"g_a": {"name": "gdnish", "options": {"enc_t": 1e300}}}, "gdnish: encoder(8 channels) fails"),
        ({"quantization": [1]}, "not an object"),
        ({"quantization": {"phase": "evil"}}, "has no scope"),
        ({"quantization": {"scope": "all", "phase": "evil"}}, "not one of"),
        ({"quantization": {"scope": "everything"}}, "not one of"),
        ({"quantization": {"scope": "all", "act_observer": "evil"}}, "evil"),
        ({"surprise": 1}, "unknown entry"),
    ],
)
def test_an_architecture_of_no_codec_is_refused(good: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    text = json.dumps(ARCHITECTURE | changed)
    assert said in refusal(forged(good, tmp_path / "x.safetensors", {"architecture": text}, {}))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("architecture", "[]", "not an object"),
        ("architecture", "{nope", "no JSON"),
        ("architecture", "[" * 100_000, "nested too deeply"),
        ("architecture", None, "has no architecture"),
        ("architecture", '{"N": 8, "N": 9}', "twice"),
        ("options", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("options", '{"lr": [1]}', "metadata.options.lr"),
        ("metrics", "{nope", "no JSON"),
        ("metrics", '{"psnr": "30"}', "not a number"),
        ("metrics", '{"psnr": NaN}', "metrics.psnr is nan: a figure is a finite number"),
        ("metrics", '{"psnr": -Infinity}', "a figure is a finite number"),
        ("step", '"<b>"', "not a whole number"),
        ("step", "-1", "0 steps or more"),
        ("dataset", "7", "not text"),
    ],
)
def test_metadata_of_other_types_are_refused(
    good: Path, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    assert said in refusal(forged(good, tmp_path / "x.safetensors", {name: text}, {}))


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("g_a.0.weight", None, "it has none"),
        ("g_s.2.weight", None, "g_s.2.weight of shape (8, 8, 5, 5), and it has none"),
        ("g_s.5.gamma", np.zeros((1, 1), np.float32), "g_s.5.gamma of shape (8, 8), and it has (1, 1)"),
        ("g_s.0.bias", None, "another architecture"),
        ("g_a.2.weight", np.zeros((8, 8, 5, 5)), "another architecture"),
        ("g_a.2.weight", np.zeros((8, 8, 5, 5), np.int64), "another architecture"),
        ("g_a.2.weight", np.full((8, 8, 5, 5), np.nan, np.float32), "not finite"),
        ("g_s.0.bias", np.full(8, np.inf, np.float32), "not finite"),
        ("extra.weight", np.zeros(3, np.float32), "another architecture"),
        ("entropy_bottleneck._quantized_cdf", np.zeros((2, 12, 9), np.int32), "CDF tables of 12 channels"),
        ("entropy_bottleneck._offset", np.zeros(12, np.float32), "CDF tables of 12 channels"),
        ("entropy_bottleneck._cdf_length", np.zeros(11, np.int32), "CDF tables of 12 channels"),
        ("entropy_bottleneck._cdf_length", np.zeros((), np.int32), "CDF tables of 12 channels"),
        ("entropy_bottleneck._cdf_length", np.full(12, 2**30, np.int32), "too short or too long"),
        ("entropy_bottleneck._quantized_cdf", np.zeros((12, 0), np.int32), "no CDF tables"),
    ],
)
def test_weights_and_tables_of_another_form_are_refused(
    good: Path, tmp_path: Path, name: str, array: np.ndarray | None, said: str
) -> None:
    assert said in refusal(forged(good, tmp_path / "x.safetensors", {}, {name: array}))


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("_offset", np.zeros(64, np.float32), "CDF tables of 64 scales"),
        ("_cdf_length", np.zeros(63, np.int32), "CDF tables of 64 scales"),
        ("_quantized_cdf", np.zeros((64, 9, 1), np.int32), "CDF tables of 64 scales"),
        ("scale_table", np.ones(65, np.float32), "CDF tables of 65 scales"),
        ("scale_table", np.ones(64, np.int32), "are float32"),
        ("scale_table", np.ones((64, 1), np.float32), "are float32"),
    ],
)
def test_tables_of_a_gaussian_of_another_form_are_refused(
    tmp_path: Path, name: str, array: np.ndarray, said: str
) -> None:
    codec = with_tables(new_codec(Architecture(8, 12, arch="bmshj2018_hyperprior")))
    save_codec(tmp_path / "good.safetensors", codec, Description())
    file = forged(
        tmp_path / "good.safetensors", tmp_path / "x.safetensors", {}, {f"gaussian_conditional.{name}": array}
    )
    assert said in refusal(file)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("block", ["gdn", "relu"])
def test_every_weight_that_grows_with_two_widths_is_compared_before_it_is_allocated(arch: str, block: str) -> None:
    architecture = Architecture(6, 10, g_s=BlockChoice(block), arch=arch, rates=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in new_codec(architecture).state_dict().items()}
    large = {name: shape for name, shape in shapes.items() if len(shape) == 4 or name.endswith(".gamma")}
    assert weight_shapes(architecture) == large
    check_shapes(architecture, shapes)
    for name in large:
        with pytest.raises(ValueError, match=f"ask for {name} of shape"):
            check_shapes(architecture, shapes | {name: (6, 10)})


@pytest.mark.parametrize("n", [3000, 20_000])
def test_widths_that_two_weights_agree_on_are_compared_with_all(tmp_path: Path, n: int) -> None:
    """The 1 to 8 MB of these files ask for 4 to 160 GB."""
    arrays = {"g_a.0.weight": np.zeros((n, 3, 5, 5), np.float32), "g_a.6.weight": np.zeros((1, n, 5, 5), np.float32)}
    path = tmp_path / "wide.safetensors"
    path.write_bytes(to_bytes(arrays, Architecture(n, 1), Description()))
    assert f"N={n}, M=1 ask for g_a.2.weight of shape ({n}, {n}, 5, 5), and it has none" in refusal(path)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "wide.pth.tar")
    assert "ask for g_a.2.weight" in refusal(tmp_path / "wide.pth.tar")


PLUGIN = """
import sys
from torch import nn
from codec.blocks import register_activation

@register_activation("mine")
class Mine:
    @staticmethod
    def encoder(channels, options):
        return {made}
    decoder = encoder
"""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("{}['x']", "fails: KeyError: 'x'"),
        ("nn.missing", "fails: AttributeError: "),
        ("None", "gives NoneType, not a torch.nn.Module"),
        ("'text'", "gives str, not a torch.nn.Module"),
        ("sys.exit(0)", "fails: it ends the program"),
        ("nn.Conv2d(channels, channels, 1)", "mine with these options asks for g_a.1.weight"),
        ("nn.AvgPool2d(2)", "to [1, 8, 4, 4]: a block keeps the shape"),
    ],
)
def test_a_plugins_block_that_cannot_be_built_is_one_line_of_every_command(
    good: Path, photographs: Path, tmp_path: Path, made: str, said: str
) -> None:
    text = json.dumps(ARCHITECTURE | {"g_a": {"name": "mine", "options": {}}})
    checkpoint = forged(good, tmp_path / "mine.safetensors", {"architecture": text}, {})
    (tmp_path / "mine.py").write_text(PLUGIN.replace("{made}", made))
    picture, use = str(photographs / "color.png"), ["--plugin", str(tmp_path / "mine.py")]
    words = {
        compress: [picture, str(tmp_path / "out.bin"), "--checkpoint", str(checkpoint)],
        evaluate: ["--checkpoint", str(checkpoint), "--images", picture],
        export: ["--ckpt", str(checkpoint), "--part", "encoder", "--out", str(tmp_path / "out.onnx")],
    }
    for command, given in words.items():
        with pytest.raises(InputError) as refused:
            command([*given, *use])
        assert said in str(refused.value)


def test_a_header_is_judged_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    assert "damaged" in refusal(path)
    path.write_bytes((MOST_HEADER + 1).to_bytes(8, "little") + b" " * (MOST_HEADER + 1))
    assert "too large" in refusal(path)
    path.write_bytes((14).to_bytes(8, "little") + b'{"a":1,"a":2} ')
    assert "twice" in refusal(path)


def test_a_key_that_comes_twice_is_found_at_once_among_many() -> None:
    """The search took minutes when it grew with the square."""
    since = time.process_time()
    with pytest.raises(ValueError, match='"99999" is given twice'):
        parse_json("{" + ",".join(f'"{number}":0' for number in (*range(100_000), 99_999)) + "}")
    assert time.process_time() - since < 10


def test_a_checkpoint_of_the_first_release_opens(good: Path, tmp_path: Path) -> None:
    """It names no dataset, and no quantization that is none."""
    text = json.dumps({name: value for name, value in ARCHITECTURE.items() if name != "quantization"})
    old = forged(good, tmp_path / "old.safetensors", {"dataset": None, "architecture": text}, {})
    assert load_codec(old)[1] == load_codec(good)[1]


def test_a_quantized_codec_whose_ranges_are_not_learned_yet_opens(tmp_path: Path) -> None:
    codec = build(Architecture(8, 12, BlockChoice("relu"), BlockChoice("gate"), Quantization("all")))
    save_codec(tmp_path / "q.safetensors", with_tables(codec), Description())
    again = load_codec(tmp_path / "q.safetensors")[0]
    assert again.architecture == codec.architecture
    assert again.state_dict().keys() == codec.state_dict().keys()


def theirs(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return FactorizedPrior(8, 12).state_dict() | {name.replace("__", "."): t for name, t in changes.items()}


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "model.", "net.module.", "_forward_module.codec.", ""]
)
@pytest.mark.parametrize(
    "containers",
    [
        (),
        ("state_dict",),
        ("model_state_dict",),
        ("net", "state_dict"),
        ("model",),
        ("module",),
        ("params",),
        ("ema_state_dict",),
    ],
)
def test_prefixes_and_containers_of_the_wild(tmp_path: Path, prefix: str, containers: tuple[str, ...]) -> None:
    state = theirs()
    saved: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    saved |= {"criterion.weight": torch.zeros(3), "epoch": 3}
    if not prefix:
        del saved["criterion.weight"]
    for name in containers:
        saved = {"epoch": 3, name: saved, "mean": torch.ones(3), "optimizer": {"state": {}}}
    torch.save(saved, tmp_path / "c.pth.tar")
    codec = load_initial(tmp_path / "c.pth.tar")
    assert torch.equal(codec.g_a[0].weight, state["g_a.0.weight"])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in theirs().items()}
        torch.save(state, tmp_path / "c.pth")
        assert {p.dtype for p in open_codec(tmp_path / "c.pth").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("g_a__0__weight", torch.zeros(()), "no codec of bmshj2018_factorized"),
        ("g_a__6__weight", torch.zeros(12, 8, 3, 3), "no codec of bmshj2018_factorized"),
        ("g_a__2__weight", torch.zeros(8, 8, 5, 5).to(torch.int8), "int8"),
        ("g_a__2__weight", torch.zeros(8, 8, 5, 5).to_sparse(), "sparse"),
        ("g_a__2__weight", torch.zeros(1).expand(10**6, 10**6), "more than the file holds"),
        ("g_a__0__weight", torch.zeros(1, 1, 1, 1).expand(10**9, 3, 5, 5), "more than the file holds"),
        ("g_s__0__bias", torch.full((8,), torch.nan), "not finite"),
        ("h_a__0__weight", torch.zeros(3), "another architecture"),
        ("entropy_bottleneck__matrices__0", torch.full((12, 3, 1), -30.0), "too wide"),
    ],
)
def test_a_state_dict_of_another_form_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor, said: str) -> None:
    torch.save({"state_dict": theirs(**{name: tensor})}, tmp_path / "c.pth.tar")
    assert said in refusal(tmp_path / "c.pth.tar")


def test_densities_that_give_nan_are_refused(tmp_path: Path) -> None:
    """Infinity times zero."""
    large, small = torch.full((12, 3, 1), 3e38), torch.full((12, 3, 3), -200.0)
    torch.save(theirs(entropy_bottleneck__matrices__0=large, entropy_bottleneck__matrices__1=small), tmp_path / "c.pth")
    assert "give no CDF" in refusal(tmp_path / "c.pth")


def test_the_line_says_what_was_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "c.pth.tar")
    assert "its entries are epoch, weights" in refusal(tmp_path / "c.pth.tar")
