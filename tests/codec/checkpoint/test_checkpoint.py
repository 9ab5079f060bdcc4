import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from compressai.models import FactorizedPrior
from torch import Tensor

from codec.checkpoint import Description, load_codec, load_initial, open_codec, save_codec
from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.tables import with_tables
from export.graph.build import open_for_export


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    codec = with_tables(new_codec(Architecture(8, 12, g_a=BlockChoice("gdnish", {"enc_t": 1.5}))))
    path = tmp_path / "last.safetensors"
    save_codec(path, codec, Description(options={"lr": 1e-4, "act": "gdnish"}, metrics={"psnr": 30.5}, step=20))
    return path


def test_a_checkpoint_describes_itself_and_gives_the_same_codec_back(tmp_path: Path, picture: Tensor) -> None:
    codec = with_tables(new_codec(Architecture(8, 12, g_a=BlockChoice("gdnish", {"enc_t": 1.5}))))
    description = Description(options={"lr": 1e-4}, metrics={"psnr": 30.5}, step=20)
    save_codec(tmp_path / "last.safetensors", codec, description)
    again, read = load_codec(tmp_path / "last.safetensors")
    assert read == description
    assert read.versions["torch"] == torch.__version__.split("+")[0]
    assert again.architecture == codec.architecture
    assert again.compress(picture) == codec.compress(picture)
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_file_truncated_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            load_codec(saved)


def test_a_flipped_bit_in_the_weights_is_refused(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    saved.write_bytes(content)
    with pytest.raises(InputError, match="checksum"):
        load_codec(saved)


def test_a_missing_file_and_a_stranger_s_safetensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="no such file"):
        load_codec(tmp_path / "none.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no checkpoint of this program"):
        load_codec(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["UP.SAFETENSORS", "0f3c7a", "last.safetensors.bak", "last.pth"])
def test_a_checkpoint_is_known_by_its_content(saved: Path, name: str) -> None:
    codec = load_codec(saved)[0]
    renamed = saved.rename(saved.with_name(name))
    for opened in (open_codec(renamed), load_initial(renamed)):
        assert opened.architecture == codec.architecture
    with pytest.raises(InputError, match="already names its blocks"):
        open_for_export(renamed, "all")


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameter names of CompressAI before 1.2.6, and of its zoo files."""
    short = {"matrices.": "_matrix", "biases.": "_bias", "factors.": "_factor"}
    for new, old in short.items():
        state = {name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}"): t for name, t in state.items()}
    return state


@pytest.mark.parametrize("form", ["trainer", "state_dict", "data parallel", "old names"])
def test_what_compressai_s_trainer_saved_starts_a_run(form: str, tmp_path: Path, picture: Tensor) -> None:
    theirs = FactorizedPrior(8, 12).eval()
    theirs.update()
    state = theirs.state_dict()
    saved = {
        "trainer": {"epoch": 3, "state_dict": state, "loss": torch.tensor(1.0), "optimizer": {"state": {}}},
        "state_dict": state,
        "data parallel": OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
        "old names": old_names(state),
    }[form]
    torch.save(saved, tmp_path / "checkpoint.pth.tar")
    ours = load_initial(tmp_path / "checkpoint.pth.tar").eval()
    assert torch.equal(ours(picture)["x_hat"], theirs(picture)["x_hat"])


class Attack:
    """Unpickled, it would leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"g_a.0.weight": Attack(tmp_path / "trace")}}, tmp_path / "attack.pth.tar")
    with pytest.raises(InputError, match="never run"):
        load_initial(tmp_path / "attack.pth.tar")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_damaged_initial_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth"):
        load_initial(tmp_path / "bad.pth")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pth.tar")
    with pytest.raises(InputError, match="bmshj2018_factorized"):
        load_initial(tmp_path / "other.pth.tar")
