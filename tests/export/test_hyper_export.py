"""Codecs with a hyperprior: h_a as a graph of its own beside the encoder, and files of the runtime."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from codecs_for_export import in_int8, make, save
from torch import Tensor

from codec.bitstream.container import unpack
from codec.bitstream.tables import to_bytes
from codec.description.architecture import Quantization
from codec.errors import InputError
from codec.files import FileCodec
from codec.network.codec import Codec
from codec.network.tables import tables_of
from codec.quantization.calibrate import calibrate
from export.__main__ import main
from export.graph.build import build, parts_of, write_all
from export.graph.check import compare
from export.measure import executed
from export.runtime import Model, decode, encode
from export.runtime.session import H_A_SUFFIX, sealed

HYPERPRIOR, MEAN_SCALE = "bmshj2018_hyperprior", "mbt2018_mean"
KINDS = [(arch, precision) for arch in (HYPERPRIOR, MEAN_SCALE) for precision in ("float", "int8")]
BYTE = onnx.TensorProto.UINT8


@pytest.fixture(scope="module")
def codecs(picture: Tensor) -> dict[tuple[str, str], Codec]:
    """A codec of each kind; all have symbols other than zero in y and in z."""
    made = {(arch, "float"): make("relu", arch=arch) for arch in (HYPERPRIOR, MEAN_SCALE)}
    return made | {(arch, "int8"): in_int8(codec, picture) for (arch, _), codec in made.items()}


@pytest.fixture
def pixels(picture: Tensor) -> np.ndarray:
    """196x243: y has 13x16 positions, z 4x4."""
    return (picture[0, :, 40:236, 100:343] * 255).round().byte().permute(1, 2, 0).numpy()


def exported(codec: Codec, part: str, folder: Path, side: int = 96, dynamic: bool = True) -> Model:
    """The part, written and opened."""
    x = torch.rand(1, 3, side, side)
    tables = tables_of(codec)
    models = {
        each: build(codec, each, "concat", x, dynamic=dynamic, fingerprint=tables.fingerprint)
        for each in parts_of(codec, part)
    }
    write_all(folder / f"{part}.onnx", models, to_bytes(tables))
    return Model(folder / f"{part}.onnx", part)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_computes_what_torch_computes(
    kind: tuple[str, str], codecs: dict[tuple[str, str], Codec], picture: Tensor
) -> None:
    codec = codecs[kind]
    for part in ("encoder", "h_a", "decoder", "full"):
        model = build(codec, part, "concat", picture[..., :96, :96], dynamic=True)
        for height, width in ((96, 96), (64, 208), (240, 16)):
            result = compare(model, codec, part, picture[..., :height, :width])
            assert result.passed, (part, result.words)
        if kind[1] == "int8" and (part, kind[0]) != ("full", MEAN_SCALE):  # which has h_s, in float
            assert {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)} == {BYTE}
            assert executed(model).int8 == executed(model).convolutions > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_writes_and_reads_the_codecs_files(
    kind: tuple[str, str],
    codecs: dict[tuple[str, str], Codec],
    pixels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = codecs[kind]
    encoder, decoder = (exported(codec, part, tmp_path) for part in ("encoder", "decoder"))
    theirs = FileCodec(codec)
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    (expected,) = theirs.compress(x)
    assert len(np.unique(theirs.latents(x)[0].z)) > 2
    data = encode(pixels, encoder)
    found, wanted = (unpack(each, encoder.coder)[2] for each in (data, expected))
    assert len(np.unique(wanted)) > 3
    assert (np.abs(found - wanted) > 0.5 / encoder.coder.unit).mean() < 1e-3
    assert abs(len(data) - len(expected)) < 8
    (x_hat,) = theirs.decompress([data])
    assert np.abs(decode(data, decoder).astype(int) - x_hat.permute(1, 2, 0).numpy()).max() <= 1
    monkeypatch.setattr("export.runtime.session.LARGEST_WHOLE", 0)
    monkeypatch.setattr("codec.tiles.SIZE", (8, 10))
    tiled = encode(np.tile(pixels, (2, 2, 1)), encoder)
    monkeypatch.undo()
    whole = encode(np.tile(pixels, (2, 2, 1)), encoder)
    assert abs(len(tiled) - len(whole)) < 8
    ours, theirs = (unpack(each, encoder.coder)[2] for each in (tiled, whole))
    assert (np.abs(ours - theirs) > 0.5 / encoder.coder.unit).mean() < 1e-3
    assert kind[1] == "float" or tiled == whole  # sums of integers have no order


def test_a_fixed_size_takes_its_own_size_smaller_and_larger_ones(
    codecs: dict[tuple[str, str], Codec], picture: Tensor, tmp_path: Path
) -> None:
    codec = codecs[HYPERPRIOR, "int8"]
    pixels = (picture[0, :, :400, :512] * 255).round().byte().permute(1, 2, 0).numpy()
    whole = exported(codec, "encoder", tmp_path / "any")
    fixed = exported(codec, "encoder", tmp_path / "336", 336, dynamic=False)  # y has 21 positions, z 6, in a tile 5
    assert encode(pixels[:336, :336], fixed) == encode(pixels[:336, :336], whole)
    assert unpack(encode(pixels[:200, :330], fixed), whole.coder)[:2] == (200, 330)
    ours, theirs = (encode(pixels, model) for model in (fixed, whole))
    assert (unpack(ours, whole.coder)[2] != unpack(theirs, whole.coder)[2]).mean() < 1e-3
    assert len(ours) < 1.02 * len(theirs)  # the last tile of h_a ends beyond y
    small = exported(codec, "encoder", tmp_path / "224", 224, dynamic=False)
    assert encode(pixels[:224, :224], small) == encode(pixels[:224, :224], whole)
    with pytest.raises(InputError, match=r"a model of 224x224 pixels .* need at least 256 pixels per side"):
        encode(pixels, small)


def test_h_a_of_another_encoder_is_refused(
    codecs: dict[tuple[str, str], Codec], pixels: np.ndarray, tmp_path: Path
) -> None:
    codec = codecs[HYPERPRIOR, "float"]
    exported(codec, "encoder", tmp_path / "a")
    other = copy.deepcopy(codec)
    with torch.no_grad():
        other.h_a[0].weight *= 1.1  # files of both decode with the same decoder
    exported(other, "encoder", tmp_path / "b")
    own, strange = ((tmp_path / name / "encoder").with_suffix(H_A_SUFFIX) for name in ("a", "b"))
    own.write_bytes(strange.read_bytes())
    with pytest.raises(InputError, match="belongs to another encoder"):
        Model(tmp_path / "a" / "encoder.onnx", "encoder")
    own.unlink()
    with pytest.raises(InputError, match=r"No such file.*beside the encoder"):
        Model(tmp_path / "a" / "encoder.onnx", "encoder")


def test_levels_without_steps_or_with_impossible_ones_are_refused(
    codecs: dict[tuple[str, str], Codec], tmp_path: Path
) -> None:
    exported(codecs[MEAN_SCALE, "int8"], "decoder", tmp_path)
    path = tmp_path / "decoder.onnx"
    model = onnx.load(path)
    (steps,) = (each for each in model.metadata_props if each.key == "steps")
    for value, reason in (
        ("", "levels without steps"),
        ("no", "no positive numbers"),
        ("00" * 48, "no positive numbers"),
        (steps.value[:-8], "11 steps"),
    ):
        steps.value = value
        path.write_bytes(sealed(model.SerializeToString()))
        with pytest.raises(InputError, match=reason):
            Model(path, "decoder")


@pytest.mark.slow
def test_the_command_writes_h_a_beside_the_encoder(
    codecs: dict[tuple[str, str], Codec],
    picture: Tensor,
    photographs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "chelsea.png").symlink_to(photographs / "chelsea.png")
    plain = codecs[HYPERPRIOR, "float"]
    trained = calibrate(plain, [picture], Quantization("encoder"))
    every = calibrate(plain, [picture], Quantization("encoder", hyper=True))
    of_photographs = ("--calib_dir", tmp_path / "photos")
    for name, codec, more, in_bytes in (
        ("plain", plain, of_photographs, True),
        ("trained", trained, (), False),
        ("joined", trained, of_photographs, True),
        ("every", every, (), True),
    ):
        checkpoint = save(codec, tmp_path / f"{name}.safetensors")
        out = tmp_path / name / "enc.onnx"
        words = ["--ckpt", checkpoint, "--part", "encoder", "--out", out, "--precision", "int8", *more]
        assert main([str(word) for word in words]) == 0
        said = capsys.readouterr().out
        assert "h_a: ONNX Runtime against PyTorch" in said
        assert "h_a looks at 256 pixels, so this encoder takes no picture larger than --input_size 224" in said
        assert sorted(path.name for path in out.parent.iterdir()) == ["enc.h_a.onnx", "enc.onnx", "enc.tables"]
        model = Model(out, "encoder")
        assert model.takes_bytes
        assert model.h_a.takes_bytes == in_bytes
    with pytest.raises(InputError, match="leave --calib_dir out"):
        main([str(word) for word in [*words, *of_photographs]])
