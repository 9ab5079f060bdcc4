"""Which dtypes each policy of local FP32 lets a codec compute in, under bf16 autocast."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from compressai.models import FactorizedPrior
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codec.blocks import block_named, make_options
from codec.errors import InputError
from training.precision import (
    POLICIES,
    Float32Region,
    NumericsOptions,
    apply_local_fp32,
    fit_to_gpu,
    is_emulated,
    local_fp32_modules,
)

GDNS = [f"{part}.{i}" for part in ("g_a", "g_s") for i in (1, 3, 5)]


def codec(name: str = "gdnish") -> FactorizedPrior:
    torch.manual_seed(0)
    model = FactorizedPrior(N=8, M=12)
    if name != "gdn":
        block, options = block_named(name), make_options(name, {})
        for i in (1, 3, 5):
            model.g_a[i] = block.encoder(8, options)
            model.g_s[i] = block.decoder(8, options)
    return model


class DtypesByModule(TorchDispatchMode):
    """The dtypes of all floating results, for each module whose forward was on the way when they came about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)
        self.inputs: dict[str, set[torch.dtype]] = defaultdict(set)
        self.running: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda _, args, name=name: self.enter(name, args))
            module.register_forward_hook(lambda *_: self.leave())

    def enter(self, name: str, args: Any) -> None:
        self.inputs[name] |= {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        self.running.append(name)

    def leave(self) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                for name in self.running:
                    self.seen[name].add(leaf.dtype)
        return result


@contextmanager
def bf16() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        yield


def dtypes(model: nn.Module) -> DtypesByModule:
    watch = DtypesByModule(model)
    with bf16(), watch:
        model(torch.rand(1, 3, 64, 64))
    return watch


CONVOLUTIONS = [f"{part}.{i}" for part in ("g_a", "g_s") for i in (0, 2, 4, 6)]


@pytest.mark.parametrize(
    ("name", "policy", "globs", "regions"),
    [
        ("gdn", "none", (), []),
        ("gdnish", "none", (), []),
        ("gdnish", "entropy", (), ["entropy_bottleneck"]),
        ("gdnish", "entropy+decoder", (), ["g_s", "entropy_bottleneck"]),
        ("gdn", "all_normexp", (), [*GDNS, "entropy_bottleneck"]),
        ("gdnish", "all_normexp", (), [f"g_a.{i}.eca.sigmoid" for i in (1, 3, 5)] + ["entropy_bottleneck"]),
        ("relu", "all_normexp", (), ["entropy_bottleneck"]),
        ("gate", "all_normexp", (), ["entropy_bottleneck"]),
        ("gdnish", "custom", ("g_s.*", "g_a.5.eca"), ["g_a.5.eca", *(f"g_s.{i}" for i in range(7))]),
    ],
)
def test_regions_compute_in_fp32_and_the_rest_in_bf16(
    name: str, policy: str, globs: tuple[str, ...], regions: list[str]
) -> None:
    model = codec(name)
    assert sorted(apply_local_fp32(model, policy, globs)) == sorted(regions)
    watch = dtypes(model)
    inside = [each for each in watch.seen if any(each == r or each.startswith(f"{r}.") for r in regions)]
    for each in inside:
        assert watch.seen[each] == {torch.float32}, each
        if each not in regions:
            assert watch.inputs[each] == {torch.float32}, each
    for region in regions:
        assert region in inside, region
    for convolution in set(CONVOLUTIONS) - set(inside):
        assert torch.bfloat16 in watch.seen[convolution], convolution
    if policy == "none":
        assert torch.bfloat16 in watch.seen["entropy_bottleneck"]


def test_a_region_gives_what_fp32_gives_for_the_same_input() -> None:
    plain, marked = codec(), codec()
    apply_local_fp32(marked, "entropy+decoder")
    y = torch.randn(1, 12, 4, 4).bfloat16()
    with torch.no_grad():
        expected = plain.g_s(y.float())
    with bf16():
        assert not torch.equal(plain.g_s(y).float(), expected)
        assert torch.equal(marked.g_s(y), expected)


class Softened(nn.Module):
    """A user's block that divides by itself and exponentiates in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Softmax(dim=1))
        self.norm = nn.BatchNorm2d(8)
        self.harmless = nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.harmless(self.norm(x)) + self.inner(x)


class Divides(Softened):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (1 + x.abs())


def test_all_normexp_finds_the_guilty_part_of_a_users_block() -> None:
    model = codec("relu")
    model.g_a[3], model.g_s[5] = Softened(), Divides()
    found = local_fp32_modules(model, "all_normexp")
    assert set(found) == {"g_a.3.inner.1", "g_a.3.norm", "g_s.5", "entropy_bottleneck"}


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x / 2,
        lambda x: 1 / (x + 2),
        lambda x: x.abs().sqrt(),
        lambda x: (x**2 + 1).rsqrt(),
        lambda x: x.exp(),
        lambda x: (x.abs() + 1).log_(),
        torch.tanh,
        nn.functional.silu,
        nn.functional.softplus,
        nn.functional.normalize,
        lambda x: nn.functional.layer_norm(x, x.shape[1:]),
        lambda x: nn.functional.group_norm(x, 2),
        lambda x: nn.functional.rms_norm(x, x.shape[1:]),
        lambda x: torch.logsumexp(x, 1, keepdim=True) + x,
        lambda x: x.softmax(1),
    ],
)
def test_all_normexp_knows_the_operators(operation: Any) -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operation(x)

    model = codec("relu")
    model.g_a[1] = Block()
    assert "g_a.1" in local_fp32_modules(model, "all_normexp")


def test_looking_for_regions_changes_nothing_in_the_model() -> None:
    model = codec("relu").train()
    model.g_a[3] = nn.Sequential(Softened(), nn.Dropout(0.1))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    local_fp32_modules(model, "all_normexp")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_marking_keeps_state_dicts_and_types_and_is_done_once() -> None:
    model, plain = codec("gdn"), codec("gdn")
    names = apply_local_fp32(model, "all_normexp")
    classes = [type(module) for module in model.modules()]
    assert apply_local_fp32(model, "all_normexp") == names
    assert [type(module) for module in model.modules()] == classes
    assert [type(module).__name__ for module in model.modules()] == [
        type(module).__name__ for module in plain.modules()
    ]
    assert all(isinstance(module, type(other)) for module, other in zip(model.modules(), plain.modules(), strict=True))
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())


def test_regions_nest() -> None:
    model = codec()
    apply_local_fp32(model, "custom", ["g_s.1"])
    apply_local_fp32(model, "entropy+decoder")
    watch = dtypes(model)
    assert watch.seen["g_s"] == watch.seen["g_s.1"] == {torch.float32}


def test_copies_keep_their_regions_and_are_independent() -> None:
    model = codec()
    apply_local_fp32(model, "entropy+decoder")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.g_s[0].weight.zero_()
    assert model.g_s[0].weight.abs().max() > 0
    assert isinstance(copied.g_s, Float32Region)
    assert dtypes(copied).seen["g_s"] == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["all_normexp", "entropy+decoder"])
def test_regions_compile_whole_and_train(policy: str) -> None:
    model = codec("gdn")
    apply_local_fp32(model, policy)
    y = torch.randn(1, 12, 4, 4)
    compiled = torch.compile(model.g_s, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        eager, graph = model.g_s(y), compiled(y)
    assert graph.dtype == eager.dtype == (torch.float32 if policy == "entropy+decoder" else torch.bfloat16)
    torch.testing.assert_close(graph, eager, rtol=2e-2, atol=2e-2)
    graph.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in model.g_s.parameters())


@pytest.mark.parametrize(
    ("policy", "globs", "line"),
    [
        ("everything", (), "--local_fp32 everything: no such policy; use one of entropy, none"),
        ("custom", (), "--local_fp32 custom needs --local_fp32_custom"),
        ("custom", ("g_s.*", "decoder.*"), r"--local_fp32_custom decoder\.\*: no module"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(policy: str, globs: tuple[str, ...], line: str) -> None:
    assert policy == "everything" or policy in POLICIES
    with pytest.raises(InputError, match=line):
        apply_local_fp32(codec(), policy, globs)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("supported", [True, False])
def test_a_cpu_without_instructions_emulates(dtype: str, supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{dtype}_supported", lambda: supported)
    assert is_emulated(dtype, torch.device("cpu")) == (not supported)
    assert not is_emulated(dtype, torch.device("cuda"))


@pytest.mark.parametrize("typed", [True, False])
def test_a_gpu_without_bf16_takes_fp16_unless_bf16_is_typed(typed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor generates no bf16 for Turing (T4, RTX 20xx): the run would end at its first compilation."""
    gpu, default = torch.device("cuda"), NumericsOptions()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for kept in (NumericsOptions(amp=False), NumericsOptions(amp_dtype="fp16")):
        assert fit_to_gpu(kept, typed, gpu) == kept
    assert fit_to_gpu(default, typed, torch.device("cpu")) == default
    if typed:
        with pytest.raises(InputError, match="--amp_dtype bf16: Tesla T4 has no bf16; use --amp_dtype fp16"):
            fit_to_gpu(default, typed, gpu)
    else:
        assert fit_to_gpu(default, typed, gpu) == NumericsOptions(amp_dtype="fp16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert fit_to_gpu(default, typed, gpu) == default
