import copy
from collections.abc import Callable

import pytest
import torch
from compressai.models import FactorizedPrior
from torch import Tensor

from codec.description.architecture import Architecture
from codec.errors import InputError
from codec.network import bottleneck
from codec.network.architectures import new_codec
from codec.network.bottleneck import TABLES, Bottleneck, noise_keys, uniform_noise
from codec.network.tables import with_tables

LATENT = torch.Size((48, 14, 14))


def noise(seed: int, step: int, places: list[int]) -> Tensor:
    return uniform_noise(noise_keys(seed, step, torch.tensor(places)), LATENT)


def test_noise_is_uniform_and_independent_between_samples_steps_and_seeds() -> None:
    samples = torch.cat([noise(0, 0, [0, 1, 2]), noise(0, 1, [0]), noise(1, 0, [0])])
    assert samples.min() >= -0.5
    assert samples.max() < 0.5
    counts = torch.histc(samples, 20, -0.5, 0.5)
    expected = samples.numel() / 20
    assert ((counts - expected).abs() < 5 * expected**0.5).all()  # five sigma
    correlation = torch.corrcoef(samples.flatten(1)) - torch.eye(5)
    assert correlation.abs().max() < 5 / LATENT.numel() ** 0.5
    shifted = samples.flatten(1)
    assert torch.corrcoef(torch.stack([shifted[0, 1:], shifted[0, :-1]]))[0, 1].abs() < 5 / LATENT.numel() ** 0.5


def test_noise_depends_on_the_place_in_the_global_batch_and_not_on_how_the_batch_is_split() -> None:
    whole = noise(7, 123, [0, 1, 2, 3])
    torch.testing.assert_close(torch.cat([noise(7, 123, [0, 2]), noise(7, 123, [1, 3])])[[0, 2, 1, 3]], whole)


@pytest.mark.slow
def test_the_compiled_noise_has_the_same_bits() -> None:
    keys = noise_keys(1, 2, torch.arange(2))
    compiled = torch.compile(uniform_noise, fullgraph=True)
    assert torch.equal(compiled(keys, LATENT), uniform_noise(keys, LATENT))


def test_training_likelihoods_are_compressai_s_at_the_same_noisy_latent(picture: Tensor) -> None:
    codec = new_codec(Architecture(16, 24))
    keys = noise_keys(0, 0, torch.arange(1))
    y = codec.g_a(picture)
    y_hat, likelihoods, aux_loss = codec.entropy_bottleneck(y, keys)
    theirs = FactorizedPrior(16, 24)
    theirs.load_state_dict(codec.state_dict())
    values = y_hat.transpose(0, 1).reshape(24, 1, -1)
    expected = theirs.entropy_bottleneck._likelihood(values)[0].view(24, 1, 32, 32).transpose(0, 1)
    torch.testing.assert_close(likelihoods, expected)
    torch.testing.assert_close(y_hat, y + uniform_noise(keys, y.shape[1:]))
    torch.testing.assert_close(aux_loss, theirs.aux_loss())


def test_a_detached_rate_moves_the_entropy_model_and_not_the_encoder(picture: Tensor) -> None:
    codec = new_codec(Architecture(16, 24))
    out = codec(picture, noise_keys(0, 0, torch.arange(1)), detach_rate=True)
    out["likelihoods"]["y"].log2().sum().backward()
    assert all(p.grad is None for p in codec.g_a.parameters())
    assert codec.entropy_bottleneck.matrices[0].grad.abs().sum() > 0


def test_the_auxiliary_loss_moves_the_quantiles_and_nothing_else(picture: Tensor) -> None:
    codec = new_codec(Architecture(16, 24))
    codec(picture, noise_keys(0, 0, torch.arange(1)))["aux_loss"].backward()
    moved = [name for name, p in codec.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert moved == ["entropy_bottleneck.quantiles"]


def test_tables_are_built_on_a_copy_and_hold_the_median(picture: Tensor) -> None:
    codec = new_codec(Architecture(16, 24)).train()
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    fresh = with_tables(codec)
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())
    assert codec.training
    assert all(p.requires_grad for p in codec.parameters())
    assert fresh.entropy_bottleneck._quantized_cdf.shape[0] == 24
    medians = fresh.entropy_bottleneck.quantiles[:, :, 1:2]
    logits = fresh.entropy_bottleneck._logits_cumulative(medians, stop_gradient=True)
    assert torch.sigmoid(logits).sub(0.5).abs().max() < 1e-3


@pytest.mark.slow
def test_the_model_compiles_whole_and_gives_the_eager_result(picture: Tensor) -> None:
    codec = new_codec(Architecture(8, 12))
    keys = noise_keys(0, 0, torch.arange(1))
    expected = codec(picture, keys)
    codec.compile(fullgraph=True)
    out = codec(picture, keys)
    torch.testing.assert_close(out["x_hat"], expected["x_hat"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["likelihoods"]["y"], expected["likelihoods"]["y"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("detach_rate", "of_rates"), [(False, False), (True, False), (False, True)])
def test_the_form_for_gpus_has_the_values_and_the_gradients_of_the_form_for_cpus(
    detach_rate: bool, of_rates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Bottleneck(6).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.rand_like(parameter)
    keys = noise_keys(0, 0, torch.arange(2))
    y = (3 * torch.randn(2, 6, 3, 5)).double().contiguous(memory_format=torch.channels_last)
    gains = torch.rand(2, 6, 1, 1).double() if of_rates else None

    def values_and_gradients(call: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        leaf = y.clone().requires_grad_()
        scales = None if gains is None else (0.1 + gains).requires_grad_()
        y_hat, likelihoods, aux_loss = call(leaf, keys, detach_rate, scales)
        loss = y_hat.square().sum() - likelihoods.log2().sum() + aux_loss
        leaves = [leaf, *model.parameters(), *([] if scales is None else [scales])]
        return [likelihoods, aux_loss, *torch.autograd.grad(loss, leaves)]

    expected = values_and_gradients(model)
    monkeypatch.setattr(bottleneck, "computes_sums", lambda _: True)
    for call in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        for ours, theirs in zip(values_and_gradients(call), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_form_for_gpus_is_for_compiled_code_only() -> None:
    forms = []

    def look(values: Tensor) -> Tensor:
        forms.append(bottleneck.computes_sums(values))
        return values + 1

    for device in ("cpu", "meta"):
        look(torch.empty(2, device=device))
        torch.compile(look, backend="eager", fullgraph=True)(torch.empty(2, device=device))
    assert forms == [False, False, False, True]


def test_rebuilding_gives_the_medians_and_tables_of_an_update_and_leaves_the_densities() -> None:
    torch.manual_seed(2)
    bottleneck = Bottleneck(6)
    with torch.no_grad():
        bottleneck.matrices[0] += torch.linspace(0, 2, 6)[:, None, None]
    updated, densities = copy.deepcopy(bottleneck), [p.clone() for p in bottleneck.matrices]
    updated.update(force=True, update_quantiles=True)
    bottleneck.rebuild()
    bottleneck.rebuild()  # from other tables than the first time
    assert bottleneck.medians().equal(updated.medians())
    for name in TABLES:
        assert getattr(bottleneck, name).equal(getattr(updated, name))
    assert all(a.equal(b) for a, b in zip(bottleneck.matrices, densities, strict=True))


def test_one_wide_density_among_many_channels_is_refused_before_its_tables_are_built() -> None:
    """All rows are as long as the longest: here 4 GB each time they are computed with."""
    model = Bottleneck(20_000)
    model.quantiles.data[3, 0] = torch.tensor([-25_000.0, 0.0, 25_000.0])
    with pytest.raises(InputError, match="too wide for CDF tables, up to 50000 symbols"):
        model.update(force=True)
