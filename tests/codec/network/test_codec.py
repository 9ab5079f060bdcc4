from typing import Any

import pytest
import torch
from compressai.models import FactorizedPrior
from reads import Reads
from torch import Tensor, nn

from codec.blocks import block_names
from codec.description.architecture import ARCHITECTURES, Architecture, BlockChoice, Phase, Quantization
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.codec import gdn_layers
from codec.network.tables import with_tables
from training.scope import set_trainable, trainable_modules


def test_compressai_loads_our_gdn_codec_and_decodes_its_bytes_to_the_same_picture(picture: Tensor) -> None:
    ours = with_tables(new_codec(Architecture(16, 24)))
    theirs = FactorizedPrior(16, 24).eval()
    theirs.load_state_dict(ours.state_dict())
    coded = ours.compress(picture)
    assert theirs.compress(picture) == coded
    assert torch.equal(theirs.decompress(**coded)["x_hat"], ours.decompress(**coded)["x_hat"])


def test_we_load_compressai_s_state_dict_with_and_without_tables(picture: Tensor) -> None:
    theirs = FactorizedPrior(16, 24).eval()
    for _ in range(2):
        ours = new_codec(Architecture(16, 24)).eval()
        ours.load_weights(theirs.state_dict())
        assert torch.equal(ours(picture)["x_hat"], theirs(picture)["x_hat"])
        theirs.update()


@pytest.mark.parametrize("name", [name for name in block_names() if name != "gdn"])
def test_a_block_goes_where_it_is_asked_to_and_nowhere_else(name: str, picture: Tensor) -> None:
    codec = new_codec(Architecture(8, 12))
    codec.replace_blocks("g_a", BlockChoice(name))
    assert [layer for layer, _ in gdn_layers(codec)] == ["g_s.1", "g_s.3", "g_s.5"]
    codec.replace_blocks("g_s", BlockChoice(name))
    assert not list(gdn_layers(codec))
    assert codec(picture)["x_hat"].shape == picture.shape
    again = new_codec(codec.architecture)
    again.load_weights(codec.state_dict())
    assert torch.equal(again.eval()(picture)["x_hat"], codec.eval()(picture)["x_hat"])


def test_a_block_that_is_there_already_keeps_its_weights() -> None:
    codec = new_codec(Architecture(8, 12, g_a=BlockChoice("gate")))
    block = codec.g_a[1]
    codec.replace_blocks("g_a", BlockChoice("gate"))
    assert codec.g_a[1] is block


def test_gdn_cannot_be_kept_where_it_is_gone() -> None:
    with pytest.raises(InputError, match="g_a has relu"):
        new_codec(Architecture(8, 12, g_a=BlockChoice("relu"))).replace_blocks("g_a", BlockChoice("gdn"))


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="another architecture"):
        new_codec(Architecture(8, 12)).load_weights(new_codec(Architecture(16, 12)).state_dict())
    with pytest.raises(InputError, match=r"g_a\.1"):
        new_codec(Architecture(8, 12)).load_weights(
            new_codec(Architecture(8, 12, g_a=BlockChoice("relu"))).state_dict()
        )


@pytest.mark.parametrize(
    ("parts", "scope", "expected"),
    [
        ("encoder", "replaced", {"g_a"}),
        ("decoder", "replaced", {"g_s"}),
        ("all", "replaced", {"g_a", "g_s"}),
        ("encoder", "replaced+entropy", {"g_a", "entropy_bottleneck"}),
        ("encoder", "replaced+hyper", {"g_a", "entropy_bottleneck"}),
        ("decoder", "all", {"g_a", "g_s", "entropy_bottleneck"}),
    ],
)
def test_a_scope_trains_whole_transforms_and_freezes_the_rest(parts: str, scope: str, expected: set[str]) -> None:
    codec = new_codec(Architecture(8, 12, g_a=BlockChoice("relu"), g_s=BlockChoice("relu")))
    set_trainable(codec, trainable_modules(codec, parts, scope), train_quantiles=True)
    trained = {name for name, p in codec.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == expected
    assert all((name in trained) == (name.split(".")[0] in expected) for name, _ in codec.named_parameters())


def test_hyper_transforms_train_where_a_model_has_them() -> None:
    codec = new_codec(Architecture(8, 12))
    codec.h_a = nn.Conv2d(1, 1, 1)
    assert "h_a" in trainable_modules(codec, "encoder", "replaced+hyper")
    assert "h_a" not in trainable_modules(codec, "encoder", "replaced+entropy")


def test_quantiles_stay_where_they_are_without_the_auxiliary_loss() -> None:
    codec = new_codec(Architecture(8, 12))
    set_trainable(codec, trainable_modules(codec, "all", "all"), train_quantiles=False)
    assert not codec.entropy_bottleneck.quantiles.requires_grad
    assert codec.entropy_bottleneck.matrices[0].requires_grad


@pytest.mark.parametrize("name", block_names())
def test_every_codec_exports_as_one_graph(name: str) -> None:
    codec = new_codec(Architecture(8, 12, BlockChoice(name), BlockChoice(name))).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(codec, (x,)).module()
    torch.testing.assert_close(exported(x)["x_hat"], codec(x)["x_hat"])


def test_a_codec_says_in_short_what_it_computes() -> None:
    def words(**settings: Any) -> str:
        return Architecture(8, 12, g_a=BlockChoice("gate"), quantization=Quantization(**settings)).in_short()

    assert Architecture(8, 12).in_short() == "encoder gdn, decoder gdn"
    assert words(scope="all", phase=Phase.EVAL_READY) == "encoder gate in int8, decoder gdn in int8"
    assert words(scope="encoder", phase=Phase.FIXED_SCALE) == "encoder gate in int8, decoder gdn"
    assert words(scope="all", phase=Phase.CALIBRATION) == "encoder gate, decoder gdn"
    assert words(scope="all", phase=Phase.EVAL_READY, eval_fakequant=False) == "encoder gate, decoder gdn"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_weight_that_is_not_finite_is_named_after_one_read_of_all(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = new_codec(Architecture(8, 12, arch=arch))
    codec.entropy_bottleneck.biases[2].data[3] = float("nan")
    with Reads(monkeypatch) as reads, pytest.raises(InputError, match=r"^entropy_bottleneck\.biases\.2 of this codec"):
        codec.refresh_tables()
    assert reads.found == ["tolist"]
