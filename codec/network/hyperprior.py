"""bmshj2018_hyperprior and mbt2018_mean: a second latent z tells the decoder how each value of y is distributed."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.bitstream.hyper_tables import PREFIX, network_arrays, network_of_arrays, source
from codec.bitstream.integer import MEAN_BITS, IntegerNetwork
from codec.compressai import MeanScaleHyperprior, ScaleHyperprior
from codec.description.architecture import Architecture
from codec.description.file import Arrays
from codec.errors import InputError
from codec.network.arrays import as_arrays
from codec.network.bottleneck import other_keys
from codec.network.codec import Codec, check_tables
from codec.network.gains import CodedGains, Gains
from codec.network.gaussian import TABLES, Gaussian
from codec.network.integer import TorchIntegerNetwork, integer_h_s
from codec.network.latent import LatentModel


class HyperCodec(Codec):
    """What the codecs with a hyperprior share: h_a makes z from y, and h_s predicts the Gaussian of y from z.

    y and z may have any size: z has a quarter of y's height and width, rounded up, and the output of h_s is cropped.
    CompressAI pads the picture to multiples of 64 instead; for these sizes the values are the same.

    Attributes:
        integer_h_s: the integer h_s, which belongs to the tables: it codes, and it predicts where y is rounded. None
            while the weights train; then h_s predicts.
        z_gains: the gains of z in a codec with several rates; None: it has one rate.
    """

    h_a: Any  # an nn.Sequential, or a graph with quantizers
    h_s: nn.Sequential

    integer_h_s: TorchIntegerNetwork | None
    z_gains: Gains | None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.gaussian_conditional = Gaussian(self.M, self.has_means)
        self.integer_h_s = None
        self.z_gains = None

    def quantize(
        self, y: Tensor, keys: Tensor | None, detach_rate: bool, rates: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """See `Codec.quantize`."""
        if self.y_gains is not None:
            return self._quantize_at(y.new_ones(len(y)) if rates is None else rates, y, keys, detach_rate)
        symbols = self.y_model.symbols(y) if keys is None and self.has_symbols("g_a") else None
        seen = y if symbols is None else symbols
        z = self.h_a(self.seen_by_h_a(seen.detach() if detach_rate else seen))
        z_hat, z_likelihoods, aux_loss = self.entropy_bottleneck(z, None if keys is None else other_keys(keys))
        if keys is None and self.integer_h_s is not None:
            scales, means = self.predict_in_integers(self.entropy_bottleneck.symbols(z), y)
        else:
            scales, means = self.predict(z_hat, y)
        y_hat, y_likelihoods = self.gaussian_conditional(y, scales, means, keys, detach_rate, symbols=symbols)
        return y_hat, {"y": y_likelihoods, "z": z_likelihoods}, aux_loss

    def _quantize_at(
        self, rates: Tensor, y: Tensor, keys: Tensor | None, detach_rate: bool
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """`quantize` of a codec with several rates: the gains scale y, z, and the scales of y."""
        assert self.y_gains is not None
        assert self.z_gains is not None
        z = self.h_a(self.seen_by_h_a(y.detach() if detach_rate else y))
        if keys is not None:
            of_y, of_z = self.y_gains(rates), self.z_gains(rates)
            z_hat, z_likelihoods, aux_loss = self.entropy_bottleneck(z, other_keys(keys), gains=of_z)
            scales, means = self.predict(z_hat, y)
            y_hat, y_likelihoods = self.gaussian_conditional(y, scales * of_y, means, keys, detach_rate, of_y)
            return y_hat, {"y": y_likelihoods, "z": z_likelihoods}, aux_loss
        y_gains, z_gains = self.y_gains.coded(rates), self.z_gains.coded(rates)
        symbols, z_hat = self.entropy_bottleneck.coded(z, z_gains)
        _, z_likelihoods, aux_loss = self.entropy_bottleneck(z_hat, gains=z_gains.gain)
        if self.integer_h_s is not None:
            scales, means = self.predict_in_integers(symbols, y, z_gains, y_gains)
        else:
            scales, means = self.predict(z_hat, y)
            scales = scales * y_gains.gain
        _, y_hat = self.gaussian_conditional.coded(y, y_gains, means)
        y_hat, y_likelihoods = self.gaussian_conditional(y_hat, scales, means, gains=y_gains.gain)
        return y_hat, {"y": y_likelihoods, "z": z_likelihoods}, aux_loss

    def emitted(self, y: Tensor) -> Tensor:
        """y as the encoder gives it to h_a in evaluation: the symbols, if an int8 encoder gives nothing else."""
        return self.y_model.symbols(y) if self.has_symbols("g_a") else y

    def seen_by_h_a(self, y: Tensor) -> Tensor:
        """The input of h_a: the magnitudes of y, or y itself if there are means to predict."""
        return y if self.has_means else y.abs()

    def predict(self, z_hat: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales and means, both of the size of y; without means, None."""
        predicted = self.h_s(z_hat)[..., : y.shape[-2], : y.shape[-1]]
        if not self.has_means:
            return predicted, None
        scales, means = predicted.chunk(2, 1)
        return scales, means

    def predict_in_integers(
        self, symbols: Tensor, y: Tensor, of_z: CodedGains | None = None, of_y: CodedGains | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`predict` from the symbols of z as the entropy coder does it, the same on every machine.

        With gains the scales are those of the symbols.
        """
        assert self.integer_h_s is not None
        indexes, means = self.integer_h_s(symbols, *y.shape[-2:], of_z, of_y)
        scales = self.gaussian_conditional.scale_table[indexes]
        return scales, None if means is None else (means * 2.0**-MEAN_BITS).to(y.dtype)

    def add_rates(self, rates: int, octaves: float = 0.0) -> None:
        """See `Codec.add_rates`; z gets half the octaves, since its precision matters where symbols are not 0."""
        super().add_rates(rates, octaves)
        gains = Gains(rates, self.entropy_bottleneck.channels, octaves / 2)
        self.z_gains = gains.to(self.entropy_bottleneck.quantiles.device)
        self.entropy_bottleneck.is_scaled = True

    @property
    def y_model(self) -> Gaussian:
        """The Gaussian."""
        return self.gaussian_conditional

    @property
    def entropy_models(self) -> dict[str, LatentModel]:
        """The Gaussian of y, and the entropy bottleneck of z."""
        return {"g_a": self.gaussian_conditional, "h_a": self.entropy_bottleneck}

    def refresh_tables(self) -> None:
        """See `Codec.refresh_tables`."""
        super().refresh_tables()
        if self.z_gains is not None:
            self.z_gains.refresh()
        self.gaussian_conditional.build_tables()
        table = self.gaussian_conditional.scale_table
        self._set_integer_h_s(integer_h_s(self.h_s, self.entropy_bottleneck, table, self.has_means), self._source())

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """See `Codec.load_weights`; the integer h_s belonged to the old weights."""
        scales = state.get("gaussian_conditional.scale_table", torch.empty(0))
        if (scales.dim(), scales.dtype) != (1, torch.float32):
            found = f"{scales.dtype} {list(scales.shape)}".removeprefix("torch.")
            raise InputError(f"the scales of the Gaussian's CDF tables are float32 [rows], and these are {found}")
        check_tables(state, "gaussian_conditional", len(scales), "scales")
        super().load_weights(state)
        self.integer_h_s = None

    def coding_arrays(self) -> Arrays:
        """The integer h_s, and a checksum of what it was made from."""
        if self.integer_h_s is None:
            return {}
        arrays = network_arrays(self.integer_h_s.network, self._made_from)
        return {PREFIX + name: array for name, array in arrays.items()}

    def load_coding_arrays(self, arrays: Arrays) -> None:
        """See `Codec.load_coding_arrays`; a codec to train from may have none."""
        if arrays:
            named = {name.removeprefix(PREFIX): array for name, array in arrays.items()}
            made_from = self._source()
            self._set_integer_h_s(network_of_arrays(named, made_from), made_from)

    def _source(self) -> NDArray[np.uint8]:
        transforms = ("g_a.", "g_s.", "h_a.")  # without them: on a GPU, each array is copied to the host
        state = self.state_dict()
        return source(as_arrays({name: state[name] for name in state if not name.startswith(transforms)}))

    def _set_integer_h_s(self, network: IntegerNetwork, made_from: NDArray[np.uint8]) -> None:
        self._made_from = made_from
        self.integer_h_s = TorchIntegerNetwork(network).to(self.gaussian_conditional.scale_bound.device)

    def table_names(self) -> list[str]:
        """The keys of the tables of both entropy models."""
        return [*super().table_names(), *(f"gaussian_conditional.{name}" for name in TABLES)]


class HyperpriorCodec(HyperCodec, ScaleHyperprior):
    """CompressAI's `ScaleHyperprior` (Balle et al. 2018, arXiv:1802.01436): h_s predicts the scale of y."""

    arch = "bmshj2018_hyperprior"
    has_means = False


class MeanScaleCodec(HyperCodec, MeanScaleHyperprior):
    """CompressAI's `MeanScaleHyperprior` (Minnen et al. 2018, arXiv:1809.02736): h_s predicts scale and mean of y."""

    arch = "mbt2018_mean"
    has_means = True
