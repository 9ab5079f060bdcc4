"""The replacement blocks are their formulas, start where they promise, learn everywhere; and a block is one file."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import codec.blocks
from codec.blocks import (
    block_named,
    block_names,
    block_options,
    load_plugin,
    make_options,
    options_dict,
    register_activation,
)
from codec.blocks.gdnish import ECA
from codec.description.architecture import KEEP_GDN
from codec.errors import InputError

C = 6
VARIANTS: list[tuple[str, dict]] = [
    ("relu", {}),
    ("gate", {}),
    ("gate_mlp", {}),
    ("relu_mlp", {}),
    *(
        ("gdnish", {"enc_residual": residual, "dec_residual": residual, "enc_eca": eca, "enc_t": t})
        for residual in (True, False)
        for eca in (True, False)
        for t in (0.5, 1.0, 1.4, 2.0, 2.5)
        if residual or t >= 1
    ),
    ("gdnish", {"enc_kdw": 5, "dec_k": 1, "dec_gmin": 0.0, "dec_gmax": 0.7}),
    ("gdnish", {"enc_kdw": 1, "dec_k": 5, "enc_residual": False, "dec_residual": False, "dec_gmin": 1.0}),
]


def build(name: str, values: dict, form: str, channels: int = C) -> nn.Module:
    torch.manual_seed(0)
    return getattr(block_named(name), form)(channels, make_options(name, values))


def values_on_both_sides(scale: float = 4.0) -> Tensor:
    return scale * torch.randn(2, C, 8, 10, generator=torch.Generator().manual_seed(1))


def scramble(block: nn.Module) -> dict[str, Tensor]:
    """Every parameter random, so that a formula is seen whole and not only where it starts."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.4)
    return {name: parameter.detach() for name, parameter in block.named_parameters()}


def mix(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """A 1x1 convolution, written as the matrix product that it is."""
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x) + bias.view(-1, 1, 1)


# --- what the blocks compute ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["encoder", "decoder"])
def test_relu_leaves_its_input_alone(form: str) -> None:
    x = values_on_both_sides()
    before = x.clone()
    assert torch.equal(build("relu", {}, form)(x), x * (x > 0))
    assert torch.equal(x, before)


@pytest.mark.parametrize(("form", "high"), [("encoder", 6.0), ("decoder", 30.0)])
def test_gate_is_x_times_a_bounded_affine_function_of_all_magnitudes(form: str, high: float) -> None:
    gate, x = build("gate", {}, form), values_on_both_sides(scale=50.0)
    p = scramble(gate)
    gain = mix(p["gain.weight"], p["gain.bias"], x.abs())
    assert gain.min() < 0
    assert gain.max() > high
    torch.testing.assert_close(gate(x), x * gain.clip(0, high), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("form", "high"), [("encoder", 6.0), ("decoder", 30.0)])
def test_gate_mlp_is_a_gate_and_a_hidden_layer_at_each_position(form: str, high: float) -> None:
    block, x = build("gate_mlp", {}, form), values_on_both_sides()
    p = scramble(block)
    gated = x * mix(p["gain.weight"], p["gain.bias"], x.abs()).clip(0, high)
    hidden = mix(p["inner.weight"], p["inner.bias"], x).clip(0)
    assert hidden.shape[1] == 2 * C
    expected = gated + mix(p["outer.weight"], torch.zeros(C), hidden)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["encoder", "decoder"])
def test_relu_mlp_is_a_hidden_layer_beside_x_at_each_position(form: str) -> None:
    block, x = build("relu_mlp", {}, form), values_on_both_sides()
    p = scramble(block)
    hidden = mix(p["inner.weight"], p["inner.bias"], x).clip(0)
    assert hidden.shape[1] == 2 * C
    expected = x + mix(p["outer.weight"], torch.zeros(C), hidden)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eca", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_gdnish_encoder_is_its_formula(eca: bool, residual: bool) -> None:
    block = build("gdnish", {"enc_eca": eca, "enc_residual": residual, "enc_t": 1.5, "enc_kdw": 5}, "encoder")
    p, x = scramble(block), values_on_both_sides()
    hidden = mix(p["pw1.weight"], p["pw1.bias"], x).clip(0, 6)
    assert hidden.shape[1] == 9
    depthwise = [F.conv2d(hidden[:, [i]], p["dw.weight"][[i]], p["dw.bias"][[i]], padding=2) for i in range(9)]
    branch = mix(p["pw2.weight"], p["pw2.bias"], torch.cat(depthwise, 1).clip(0, 6))
    if eca:
        taps = p["eca.conv.weight"].flatten()
        pooled = F.pad(branch.mean((2, 3)), (1, 1))
        across = taps[0] * pooled[:, :-2] + taps[1] * pooled[:, 1:-1] + taps[2] * pooled[:, 2:]
        branch = branch / (1 + torch.exp(-across))[:, :, None, None]
    torch.testing.assert_close(block(x), x + branch if residual else branch, rtol=1e-4, atol=1e-4)


def test_eca_is_a_banded_1x1_convolution_of_the_pooled_input() -> None:
    eca, x = ECA(C), values_on_both_sides()
    low, centre, high = scramble(eca)["conv.weight"].flatten().tolist()
    band = np.diag([centre] * C) + np.diag([low] * (C - 1), -1) + np.diag([high] * (C - 1), 1)
    gain = torch.sigmoid(F.conv2d(F.adaptive_avg_pool2d(x, 1), torch.tensor(band, dtype=torch.float)[..., None, None]))
    torch.testing.assert_close(eca(x), x * gain)


@pytest.mark.parametrize("residual", [True, False])
def test_gdnish_decoder_is_its_formula(residual: bool) -> None:
    values = {"dec_residual": residual, "dec_k": 5, "dec_gmin": 0.25, "dec_gmax": 3.0}
    block, x = build("gdnish", values, "decoder"), values_on_both_sides()
    p = scramble(block)
    p["gate.weight"] *= 4  # far enough that the hard sigmoid meets both of its ends
    z = mix(p["mix.weight"], p["mix.bias"], x).clip(0, 6)
    scale, shift = p["gate.weight"] / 2.75 * 6, (p["gate.bias"] / 2.75 - 0.5) * 6
    gain = 0.25 + 2.75 * F.hardsigmoid(z * scale.view(-1, 1, 1) + shift.view(-1, 1, 1))
    assert gain.min() == 0.25
    assert gain.max() == 3.0
    branch = F.conv2d(z * gain, p["conv.weight"], p["conv.bias"], padding=2)
    torch.testing.assert_close(block(x), x + branch if residual else branch, rtol=1e-4, atol=1e-4)


# --- where they start, and that they learn ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["encoder", "decoder"])
@pytest.mark.parametrize(("name", "values"), VARIANTS)
def test_a_new_block_starts_at_the_identity_or_its_bounded_form(name: str, values: dict, form: str) -> None:
    x = values_on_both_sides(scale=5.0)
    assert x.abs().max() > 12
    starts_at = {"relu": x.clip(0), "gate": x, "gate_mlp": x, "relu_mlp": x, "gdnish": x}[name]
    if name == "gdnish" and not values.get(f"{form[:3]}_residual", True):
        starts_at = x.clip(-6, 6)
    tolerance = 1e-2 * x.abs() + 1e-5
    assert ((build(name, values, form)(x) - starts_at).abs() <= tolerance).all()


@pytest.mark.parametrize("form", ["encoder", "decoder"])
@pytest.mark.parametrize(("name", "values"), [variant for variant in VARIANTS if variant[0] != "relu"])
def test_every_parameter_learns_and_the_loss_falls(name: str, values: dict, form: str) -> None:
    """The target is a GDN's own work: x over, or times, the root of a sum of squares."""
    block, x = build(name, values, form), values_on_both_sides(scale=2.0)
    norm = torch.sqrt(1 + 0.1 * x.square().sum(1, keepdim=True))
    target = x / norm if form == "encoder" else x * norm / 2
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.mse_loss(block(x), target)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    for parameter_name, parameter in block.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.slow
@pytest.mark.parametrize("form", ["encoder", "decoder"])
@pytest.mark.parametrize(("name", "values"), [(act, {}) for act in block_names() if act != KEEP_GDN])
def test_blocks_compile_whole_and_keep_channels_last_and_autocast(name: str, values: dict, form: str) -> None:
    block, x = build(name, values, form), values_on_both_sides(scale=1.0)
    if name != "relu":
        scramble(block)
    expected = block(x)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)

    last = block.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)
    assert last.is_contiguous(memory_format=torch.channels_last)

    with torch.autocast("cpu", torch.bfloat16):
        half = block(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


# --- options ----------------------------------------------------------------------------------------------------


def test_gdnish_has_the_contracts_options_and_defaults() -> None:
    contract = {
        "enc_t": 2.0, "enc_kdw": 3, "enc_eca": True, "enc_residual": True,
        "dec_k": 3, "dec_gmin": 0.5, "dec_gmax": 2.0, "dec_residual": True,
    }  # fmt: skip
    assert options_dict("gdnish", make_options("gdnish", {})) == contract
    assert {name: field.type for name, field in block_options("gdnish").items()} == {
        name: type(value) for name, value in contract.items()
    }
    assert all(field.metadata["help"] for field in block_options("gdnish").values())


def test_options_come_back_as_they_were_given_from_yaml_or_text() -> None:
    given = {"enc_t": 3, "enc_kdw": "5", "enc_eca": "false", "dec_gmin": "1e-1", "dec_residual": False}
    values = options_dict("gdnish", make_options("gdnish", given))
    read = {"enc_t": 3.0, "enc_kdw": 5, "enc_eca": False, "dec_gmin": 0.1, "dec_residual": False}
    assert values == {**options_dict("gdnish", make_options("gdnish", {})), **read}
    assert type(values["enc_t"]) is float
    assert options_dict("gdnish", make_options("gdnish", values)) == values


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"enc_kdw": 4}, "--enc_kdw 4: .*odd"),
        ({"enc_kdw": -1}, "--enc_kdw -1"),
        ({"enc_kdw": 3.5}, "--enc_kdw 3.5: give a whole number"),
        ({"enc_kdw": True}, "--enc_kdw True: give a whole number"),
        ({"dec_k": 2}, "--dec_k 2: .*odd"),
        ({"enc_t": 0}, "--enc_t 0.0"),
        ({"enc_t": "nan"}, "--enc_t nan: give a finite number"),
        ({"enc_t": "two"}, "--enc_t two: give a finite number"),
        ({"enc_t": 0.5, "enc_residual": False}, "--enc_t 0.5 with --enc_residual false"),
        ({"enc_eca": 1}, "--enc_eca 1: give true or false"),
        ({"dec_gmin": 3.0}, "--dec_gmin 3.0 --dec_gmax 2.0"),
        ({"dec_gmin": 2.0}, "--dec_gmin 2.0 --dec_gmax 2.0"),
        ({"dec_gmin": -1.0}, "--dec_gmin -1.0"),
        ({"enc_size": 3}, "--enc_size is not an option of --act gdnish: .*--enc_t"),
    ],
)
def test_impossible_options_are_refused_by_name(values: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        make_options("gdnish", values)


def test_another_blocks_option_and_an_unknown_block_are_refused() -> None:
    for name in ("relu", "relu_mlp", "gate", "gate_mlp", KEEP_GDN):
        assert make_options(name, {}) is None
        assert options_dict(name, None) == {}
        with pytest.raises(InputError, match=f"--enc_t is not an option of --act {name}"):
            make_options(name, {"enc_t": 2.0})
    assert block_names() == ["gate", "gate_mlp", "gdn", "gdnish", "relu", "relu_mlp"]
    known = "gate, gate_mlp, gdn, gdnish, relu, relu_mlp"
    with pytest.raises(InputError, match=f"--act swish: no such block; known are {known}"):
        block_named("swish")


# --- own blocks -------------------------------------------------------------------------------------------------

PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from codec.blocks import register_activation

class Scaled(nn.Module):
    def __init__(self, scale): super().__init__(); self.scale = scale
    def forward(self, x): return x * self.scale

@register_activation("myact")
class MyAct:
    @dataclass
    class Options:
        scale: float = 1.5
        steps: int = 2
        def __post_init__(self):
            if self.steps < 1: raise ValueError("steps must be at least 1")
    @staticmethod
    def encoder(channels, options): return Scaled(options.scale)
    @staticmethod
    def decoder(channels, options): return Scaled(1 / options.scale)
"""


def test_a_users_file_adds_a_block_with_options_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "my_blocks.py"
    file.write_text(PLUGIN)
    assert load_plugin(file) == ["myact"]
    assert load_plugin(str(file)) == ["myact"]
    assert "myact" in block_names()
    assert {name: field.type for name, field in block_options("myact").items()} == {
        "myact_scale": float,
        "myact_steps": int,
    }
    options = make_options("myact", {"myact_scale": 4})
    assert options_dict("myact", options) == {"myact_scale": 4.0, "myact_steps": 2}
    x = values_on_both_sides()
    assert torch.equal(block_named("myact").encoder(C, options)(x), 4 * x)
    assert torch.equal(block_named("myact").decoder(C, options)(x), x / 4)
    with pytest.raises(InputError, match="--act myact: steps must be at least 1"):
        make_options("myact", {"myact_steps": 0})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "no such file"),
        ("x = 1\n", "registers no block"),
        ("def broken(:\n", "SyntaxError"),
        ("import torch\n\nimport not_installed_here\n", "line 3: ModuleNotFoundError: .*not_installed_here"),
        (PLUGIN.replace('"myact"', '"relu"'), "line 11: activation name 'relu' is already taken"),
        (PLUGIN.replace('"myact"', '"gdn"'), "'gdn' is already taken"),
        (PLUGIN.replace('"myact"', '"My act"'), "'My act': use lower-case"),
        (PLUGIN + "\n1 / 0\n", "ZeroDivisionError"),
        (PLUGIN.replace("    @dataclass\n", ""), "no dataclass"),
        (PLUGIN.replace("scale: float = 1.5", "scale: list = None"), "option 'scale' must be int, float"),
        (PLUGIN.replace("scale: float = 1.5", "scale: float"), "option 'scale' must be .* with a default"),
        (PLUGIN.replace("def decoder", "def decode"), "no static method decoder"),
        (PLUGIN.replace('"myact"', '"enc", "enc_"').replace("scale:", "t:"), "--enc_t is an option of 'gdnish'"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, text: str | None, line: str
) -> None:
    file = tmp_path / "my_blocks.py"
    if text is not None:
        file.write_text(text)
    before, modules = block_names(), set(sys.modules)
    with pytest.raises(InputError, match=line) as refused:
        load_plugin(file)
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)
    assert block_names() == before
    assert not {name for name in set(sys.modules) - modules if "my_blocks" in name}


def test_a_fifo_is_no_plugin(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "blocks.py")
    with pytest.raises(InputError, match=r"--plugin .*blocks\.py: not a regular file"):
        load_plugin(tmp_path / "blocks.py")


def test_a_block_may_have_no_options_at_all() -> None:
    @register_activation("bare")
    class Bare:
        @staticmethod
        def encoder(channels: int, options: None) -> nn.Module:
            return nn.Identity()

        decoder = encoder

    assert block_options("bare") == {}
    assert make_options("bare", {}) is None


def test_a_block_chooses_its_prefix() -> None:
    @register_activation("long_name", prefix="ln_")
    class LongName:
        @dataclass
        class Options:
            on: bool = True
            kind: str = "a"

        @staticmethod
        def encoder(channels: int, options: Options) -> nn.Module:
            return nn.Identity()

        decoder = encoder

    options = make_options("long_name", {"ln_on": "false", "ln_kind": "b"})
    assert (options.on, options.kind) == (False, "b")


@pytest.mark.slow
def test_adding_a_block_is_adding_one_file_and_listing_blocks_does_not_load_compressai(tmp_path: Path) -> None:
    package = tmp_path / "codec"
    package.mkdir()
    source = Path(codec.blocks.__file__).parent
    for file in ("__init__.py", "errors.py"):
        shutil.copy(source.parent / file, package)
    for folder in ("blocks", "description"):
        shutil.copytree(source.parent / folder, package / folder)
    (package / "blocks" / "mine.py").write_text(PLUGIN)
    program = (
        "import sys, codec.blocks; print(codec.blocks.block_names(), 'compressai' in sys.modules,"
        " 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gate', 'gate_mlp', 'gdn', 'gdnish', 'myact', 'relu', 'relu_mlp'] False False"
