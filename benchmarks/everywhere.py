"""`python -m benchmarks.everywhere`: the same files decoded under other thread counts, instruction sets and libraries.

Every picture is encoded in a process with one setting, by torch or by ONNX Runtime, and decoded in processes with all
settings, by the entropy coder in numpy and by the integer h_s in torch. Beside it, CompressAI's own float h_s predicts
the table indexes from the same symbols of z in the same processes: an index that differs makes noise of the rest of its
picture.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data

from benchmarks.harness import ROOT, Row, cpu_flags, publish
from codec.bitstream.container import unpack
from codec.bitstream.gains import STEPS
from codec.bitstream.hyper_coder import HyperCoder
from codec.bitstream.rate_coder import RateCoder, at_rate, coder_of
from codec.bitstream.tables import read_tables, to_bytes
from codec.checkpoint import Description, load_codec, save_codec
from codec.compressai import MeanScaleHyperprior, ScaleHyperprior
from codec.description.architecture import ARCHITECTURES, Architecture
from codec.files import FileCodec, Latent
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.hyperprior import HyperCodec
from codec.network.tables import tables_of, with_tables
from export.graph.build import build, parts_of, write_all
from export.runtime import Model, symbols_of

PICTURES = 1_000
N, M = 64, 96
SEVERAL = " of several rates"
KINDS = (*ARCHITECTURES, *(arch + SEVERAL for arch in ARCHITECTURES))
SIDES = (17, 128)
"""Shortest and longest side of a crop; every hundredth crop has sides up to 384."""


@dataclass(frozen=True)
class Setting:
    """What a process computes with.

    Attributes:
        name: in the result.
        threads: of torch, OpenMP and OpenBLAS.
        variables: of the environment, beside those of the threads.
        needs: a flag of the processor.
    """

    name: str
    threads: int = 1
    variables: tuple[tuple[str, str], ...] = ()
    needs: str = ""

    def environment(self) -> dict[str, str]:
        """The environment of a process."""
        counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        # Threads that wait must not take a core from those that compute.
        counts |= {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "4"}
        return {**os.environ, **counts, **dict(self.variables)}


def _of(aten: str, onednn: str, mkl: str, openblas: str) -> tuple[tuple[str, str], ...]:
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")
    return tuple(zip(names, (aten, onednn, mkl, openblas), strict=True))


SETTINGS = (
    Setting("as it is"),
    Setting("as it is, 2 threads", 2),
    Setting("SSE4", 1, _of("default", "SSE41", "SSE4_2", "Nehalem")),
    Setting("AVX, 2 threads", 2, _of("default", "AVX", "AVX", "Sandybridge"), "avx"),
    Setting("AVX2", 1, _of("avx2", "AVX2", "AVX2", "Haswell"), "avx2"),
    Setting("AVX2, 2 threads, Zen", 2, _of("avx2", "AVX2", "AVX2", "Zen"), "avx2"),
    Setting("AVX-512", 1, _of("avx512", "AVX512_CORE", "AVX512", "SkylakeX"), "avx512f"),
    Setting("AVX-512, 2 threads", 2, _of("avx512", "AVX512_CORE_VNNI", "AVX512", "Cooperlake"), "avx512_bf16"),
)


def lively(arch: str, n: int, m: int, widest: float = 30) -> Codec:
    """A codec with tables whose random weights give symbols, scales and means that differ from place to place.

    Args:
        widest: with a hyperprior, about the scale of the widest channel of y.
    """
    torch.manual_seed(0)
    codec = new_codec(Architecture(n, m, arch=arch))
    bottleneck = codec.entropy_bottleneck
    with torch.no_grad():
        bottleneck.matrices[0].add_(torch.linspace(0, 6, bottleneck.channels)[:, None, None])
        bottleneck.quantiles[:, 0] += torch.linspace(-1.3, 1.3, bottleneck.channels)[:, None]
        codec.g_a[6].weight *= 100
        if isinstance(codec, HyperCodec):
            for layer in (codec.h_a[4], codec.h_s[4]):
                next(layer.parameters()).mul_(30)
            biases = list(codec.h_s[4].parameters())[1]
            biases[:m] = torch.from_numpy(np.geomspace(0.03, widest, m))
            if codec.has_means:
                biases[m:] = torch.linspace(-40, 40, m)
    return with_tables(codec)


def rated(arch: str, n: int, m: int, rates: int = 4) -> Codec:
    """A lively codec of several rates, with gains that differ from channel to channel."""
    codec = lively(arch, n, m, widest=8)
    codec.add_rates(rates, octaves=2.0)
    with torch.no_grad():
        for gains in (codec.y_gains, codec.z_gains if isinstance(codec, HyperCodec) else None):
            if gains is not None:
                gains.drops.add_(torch.linspace(-0.5, 0.5, gains.drops.shape[1]))
    return with_tables(codec)


def crops(count: int) -> Iterator[torch.Tensor]:
    """Crops of photographs of the scikit-image wheel, uint8 [1, 3, H, W] of any size."""
    photographs = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    chance = random.Random(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        longest = 384 if number % 100 == 0 else SIDES[1]
        height, width = (min(chance.randint(SIDES[0], longest), side) for side in photograph.shape[:2])
        top, left = (chance.randrange(a - b + 1) for a, b in zip(photograph.shape[:2], (height, width), strict=True))
        picture = photograph[top : top + height, left : left + width]
        yield torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]


def encode(folder: Path, number: int, count: int) -> None:
    """Encodes every picture whose turn is setting `number`: its file, what decoding must give, CompressAI's indexes."""
    for kind in KINDS:
        codec, _ = load_codec(folder / f"{kind}.safetensors")
        coded, peer = FileCodec(codec), peer_of(codec)
        model = Model(folder / f"{kind}.onnx", "encoder")
        arrays: dict[str, NDArray[Any]] = {}
        for place, picture in enumerate(crops(count)):
            turn, own = divmod(place, len(settings()))
            if own != number:
                continue
            rate, (height, width) = rate_of(codec, place), picture.shape[-2:]
            if turn % 2:
                latent = Latent(*symbols_of(picture[0].permute(1, 2, 0).numpy(), model, rate))
            else:
                (latent,) = coded.latents(picture, rate)
            (file,) = coded.encode([latent], height, width, rate)
            coder, values = at_rate(coded.coder, rate), latent.y
            if isinstance(coded.coder, RateCoder) and rate is not None:
                values = coded.coder.tables.gains.at(rate).decoded(latent.y.copy())
            elif coder.unit < 1:
                values = latent.y * round(1 / coder.unit)
            if isinstance(coder, HyperCoder) and latent.z is not None:
                indexes, means = coder.context(latent.z, *latent.y.shape[1:])
                means = np.zeros_like(latent.y) if means is None else means
                arrays[f"{place}.z"], arrays[f"{place}.indexes"], arrays[f"{place}.means"] = latent.z, indexes, means
                values = values + means
                if peer:
                    arrays[f"{place}.floats"] = float_indexes(peer, latent.z, *latent.y.shape[1:])
            arrays[f"{place}.file"], arrays[f"{place}.values"] = np.frombuffer(file, np.uint8), values
        np.savez(folder / f"{kind}.{number}.npz", **arrays)


def rate_of(codec: Codec, place: int) -> int | None:
    """The rate of a picture; None: the codec has one."""
    rates = codec.architecture.rates
    return place * 37 % (STEPS * (rates - 1) + 1) if rates > 1 else None


def decode(folder: Path) -> dict[str, dict[str, int]]:
    """Decodes all files; counts, for each architecture, what is not as the encoding process left it."""
    found = {}
    for kind in KINDS:
        coder = coder_of(read_tables(folder / f"{kind}.tables"))
        codec, _ = load_codec(folder / f"{kind}.safetensors")
        peer = peer_of(codec)
        counts = dict.fromkeys(("files", "symbols", "wrong", "wrong_by_torch", "float", "float_pictures"), 0)
        for path in sorted(folder.glob(f"{kind}.*.npz")):
            arrays = np.load(path)
            for place in (name.removesuffix(".file") for name in arrays.files if name.endswith(".file")):
                values = arrays[f"{place}.values"]
                wrong = unpack(arrays[f"{place}.file"].tobytes(), coder)[2] != values
                counts["files"] += 1
                counts["symbols"] += values.size
                counts["wrong"] += int(wrong.sum())
                if isinstance(codec, HyperCodec):
                    z, indexes, means = (arrays[f"{place}.{name}"] for name in ("z", "indexes", "means"))
                    counts["wrong_by_torch"] += wrong_by_torch(codec, z, indexes, means, rate_of(codec, int(place)))
                if peer:
                    flips = int((float_indexes(peer, z, *values.shape[1:]) != arrays[f"{place}.floats"]).sum())
                    counts["float"] += flips
                    counts["float_pictures"] += flips > 0
        found[kind] = counts
    return found


def wrong_by_torch(
    codec: HyperCodec, z: NDArray[np.int32], indexes: NDArray[Any], means: NDArray[Any], rate: int | None
) -> int:
    """Values of y for which torch gives another index or mean than numpy gave where the picture was encoded."""
    assert codec.integer_h_s is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    of_z = of_y = None
    if rate is not None:
        assert codec.z_gains is not None
        assert codec.y_gains is not None
        share = torch.tensor([rate / (STEPS * (codec.architecture.rates - 1))], device=device)
        of_z, of_y = (gains.to(device).coded(share) for gains in (codec.z_gains, codec.y_gains))
    symbols, (height, width) = torch.from_numpy(z)[None].to(device), indexes.shape[1:]
    found, found_means = codec.integer_h_s.to(device)(symbols, height, width, of_z, of_y)
    wrong = found[0].cpu().numpy() != indexes
    if found_means is not None:
        wrong |= found_means[0].cpu().numpy() != means
    return int(wrong.sum())


def peer_of(codec: Codec) -> Any:
    """CompressAI's own model with the codec's weights; None without a hyperprior, and with several rates."""
    if codec.architecture.rates > 1:
        return None
    for cls in (MeanScaleHyperprior, ScaleHyperprior):
        if isinstance(codec, cls):
            return cls.from_state_dict(codec.state_dict()).eval()
    return None


@torch.no_grad()
def float_indexes(peer: Any, z: NDArray[np.int32], height: int, width: int) -> NDArray[np.uint8]:
    """The table indexes of y of this size as CompressAI's compress() and decompress() compute them."""
    medians = peer.entropy_bottleneck.quantiles[:, :, 1:2, None]
    predicted = peer.h_s(torch.from_numpy(z).float()[None] + medians[:, 0])
    scales = predicted.chunk(2, 1)[0] if isinstance(peer, MeanScaleHyperprior) else predicted
    indexes = peer.gaussian_conditional.build_indexes(scales)[0, :, :height, :width]
    found: NDArray[np.uint8] = indexes.numpy().astype(np.uint8)
    return found


def settings() -> list[Setting]:
    """The settings that this processor can do."""
    flags = cpu_flags()
    return [each for each in SETTINGS if not each.needs or each.needs in flags]


def measured(count: int, n: int = N, m: int = M) -> list[dict[str, dict[str, int]]]:
    """Encodes `count` pictures, each in one setting, and decodes all in all: the counts of each setting."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arch in ARCHITECTURES:
            prepare(lively(arch, n, m), folder)
            prepare(rated(arch, n, m), folder)
        for number, setting in enumerate(settings()):
            _child(setting, "encode", name, str(number), str(count))
        return [json.loads(_child(setting, "decode", name)) for setting in settings()]


def prepare(codec: Codec, folder: Path) -> None:
    """Writes what the processes open: the codec, its exported encoder, and its tables."""
    kind = codec.arch + SEVERAL * (codec.architecture.rates > 1)
    save_codec(folder / f"{kind}.safetensors", codec, Description())
    tables, x = tables_of(codec), torch.rand(1, 3, 64, 64)
    models = {
        part: build(codec, part, "concat", x, dynamic=True, fingerprint=tables.fingerprint)
        for part in parts_of(codec, "encoder")
    }
    write_all(folder / f"{kind}.onnx", models, to_bytes(tables))


def _child(setting: Setting, *words: str) -> str:
    print(f"{words[0]}: {setting.name}", file=sys.stderr)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.everywhere", *words]
    done = subprocess.run(command, cwd=ROOT, env=setting.environment(), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def rows(found: list[dict[str, dict[str, int]]], count: int) -> Iterator[Row]:
    """The rows of the result."""
    for arch in KINDS:
        total = {name: sum(each[arch][name] for each in found) for name in found[0][arch]}
        sides = {"files decoded": float(total["files"]), "symbols decoded": float(total["symbols"])}
        what = f"{arch}: {count:,} pictures, encoded in one of {len(found)} settings each and decoded in all"
        wrong = total["wrong"] + total["wrong_by_torch"]
        note = "half of them are encoded by ONNX Runtime"
        yield Row(f"wrong symbols of {what}", wrong, "symbols", at_most=0, sides=sides, note=note)
        if arch in ARCHITECTURES[1:]:
            sides = {"decodings that an index ruins": float(total["float_pictures"]), "of": sides["files decoded"]}
            note = "CompressAI's decoder reads the rest of such a picture as noise"
            yield Row(
                f"{arch}: wrong table indexes of CompressAI's float h_s",
                total["float"],
                "indexes",
                sides=sides,
                note=note,
            )


def main() -> None:
    """All pictures in all settings; the processes that this one starts give a first word of their own."""
    match sys.argv[1:]:
        case ["encode", folder, number, count]:
            encode(Path(folder), int(number), int(count))
        case ["decode", folder]:
            print(json.dumps(decode(Path(folder))))
        case words:
            pictures = int(words[0]) if words else PICTURES
            found = measured(pictures)
            publish("everywhere", list(rows(found, pictures)), {"settings": [each.name for each in settings()]})


if __name__ == "__main__":
    main()
