"""The demo: from the embedded GDN codec to int8 files, by the commands that anyone would type, and what it cost."""

import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from codec.cli import NOT_NEGATIVE, POSITIVE, ArgumentParser, OptionGroup, at_least, option, run
from codec.errors import InputError
from codec.sample import GDN, SAMPLE
from codec.targets import TargetOptions
from codec_pipeline import execute

if TYPE_CHECKING:
    from torch import Tensor

    from codec.evaluation.figures import Figures

BLOCK = "gate_mlp"
MARK = ".codec-demo"
"""A file in the folder of a demo: without it, the folder is not ours to write to."""

SIZE = 512
"""Height and width of the photograph that is compared."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class DemoOptions(OptionGroup):
    out_dir: str = option("demo", "folder that the demo writes to", metavar="DIR")
    distill_steps: int = option(200, "iterations in which each block learns to replace its GDN", rule=NOT_NEGATIVE)
    steps: int = option(120, "optimizer steps in float", rule=at_least(1))
    int8_steps: int = option(80, "optimizer steps of quantization-aware training", rule=at_least(4))
    target_bpp: float = option(0.25, "bits per pixel at which the codecs are compared", rule=POSITIVE)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit status, or that of the first command that failed."""
    parser = ArgumentParser(
        prog="codec-demo",
        description="Takes the embedded codec off GDN, trains it for int8, exports it, and compares the results.",
    )
    parser.add_dataclass("demo", DemoOptions)
    options = DemoOptions(**vars(parser.parse_args(argv)))
    from export.options import require_onnx

    require_onnx()
    folder = Path(options.out_dir)
    claim(folder)
    for what, words in commands(options, folder):
        print(f"\n== {what}\n$ python {shlex.join(['-m', *words])}", flush=True)
        status = execute([sys.executable, "-m", *words])
        if status:
            print(f"{words[0]} ended with status {status}", file=sys.stderr)
            return status
    show(folder, options.target_bpp)
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run(main)


def claim(folder: Path) -> None:
    """Makes the folder of the demo.

    Raises:
        InputError: the folder has files that no demo wrote.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).exists())):
        raise InputError(f"--out_dir {folder} holds something else: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def commands(options: DemoOptions, folder: Path) -> list[tuple[str, list[str]]]:
    """The commands, each with what it does. Every command starts anew."""
    crops, block, int8, onnx = (str(folder / name) for name in ("coco224", "block", "int8", "onnx"))
    training = [
        "train_accel", "--coco_dir", crops, "--act", BLOCK, "--replace_parts", "all", "--train_scope", "all",
        "--loss_type", "mse", "--lambda_mse", embedded_lambdas(), "--amp", "false", "--batch_size", "4", "--input_size",
        "128", "--eval_every", "0", "--recon_every", "0", "--epochs", "1000", "--overwrite", "true", "--resume", "none",
    ]  # fmt: skip
    exported = ["--ckpt", f"{int8}/last.safetensors", "--input_size", str(SIZE)]
    return [
        ("six photographs become 96 crops", [
            "coco224.prepare", "--coco_dir", "sample", "--crop", "random", "--crops_per_image", "16",
            "--out_dir", crops, "--overwrite", "true",
        ]),
        (f"{BLOCK} replaces every GDN of the embedded codec", [
            *training, "--init_checkpoint", SAMPLE, "--distill_steps", str(options.distill_steps), "--max_steps",
            str(options.steps), "--lr", "2e-4", "--save_dir", block, "--recon_dir", f"{block}/recon",
        ]),
        ("quantization-aware training", [
            *training, "--init_checkpoint", f"{block}/last.safetensors", "--qat", "true", "--qat_scope", "all",
            "--qat_exclude_entropy", "false", "--qat_calib_steps", str(options.int8_steps // 2), "--qat_freeze_after",
            str(options.int8_steps * 3 // 4), "--max_steps", str(options.int8_steps), "--lr", "1e-4",
            "--save_dir", int8, "--recon_dir", f"{int8}/recon",
        ]),
        ("the encoder in int8", ["export", *exported, "--part", "encoder", "--out", f"{onnx}/encoder.onnx"]),
        ("the decoder in int8", ["export", *exported, "--part", "decoder", "--out", f"{onnx}/decoder.onnx"]),
        ("a page with curves and pictures", [
            "codec.evaluate", "--images", str(photograph()), "--checkpoint", GDN, f"{block}/last.safetensors",
            f"{int8}/last.safetensors", "--rates", "4", "--reference", "jpeg", "--report", str(folder / "report.html"),
        ]),
    ]  # fmt: skip


def embedded_lambdas() -> str:
    """The range of lambdas that the embedded codec was trained with."""
    from codec.description.file import read_checkpoint
    from codec.sample import to_start_from

    return str(read_checkpoint(to_start_from(SAMPLE)).description.options["lambda_mse"])


def photograph() -> Path:
    """The photograph that is compared: no crop of it is trained on."""
    from coco224.photographs.sample import sample_splits

    source = sample_splits(True)["validation"]
    return source.folder / source.names[0]


def show(folder: Path, target_bpp: float) -> None:
    """Prints the table of quality and the table of chips, and where the page is."""
    gdn, block = left_by_gdn(), reported(f"{folder}/int8/last.safetensors")
    times = {each: milliseconds(block, each) for each in ("GDN original, float", "float", "int8")}
    print(f"\n{photograph().name}, files of at most {target_bpp} bits per pixel\n")
    print(f"{'':24}{'bits/pixel':>12}{'PSNR':>12}{'MS-SSIM':>10}{'encoder + decoder':>20}")
    for name, found, ms in compared(folder, target_bpp, times):
        spent = "" if ms is None else f"{ms:.0f} ms"
        print(f"{name:24}{found.bpp:12.3f}{found.psnr:9.2f} dB{found.ms_ssim:10.4f}{spent:>20}")
    print(f"\nnodes that a chip leaves to its CPU{'GDN':>18}{BLOCK:>12}")
    for family in block["families"]:
        print(f"{family['family']:36}{gdn[family['family']]:>17}{left(family):>12}")
    print(f"\nthe page:  {folder / 'report.html'}")
    print(f"the codec: {folder / 'onnx'}, which runs without torch:")
    print(f"  python -m export.runtime encode photo.png photo.bin --model {folder / 'onnx' / 'encoder.onnx'}")
    print(f"  python -m export.runtime decode photo.bin photo.png --model {folder / 'onnx' / 'decoder.onnx'}")


def reported(checkpoint: str) -> dict[str, Any]:
    """The report of a quantized codec: chips and milliseconds."""
    from export.options import Size
    from export.report import ReportOptions, of_checkpoint

    return of_checkpoint(ReportOptions(ckpt=checkpoint, input_size=Size(SIZE, SIZE), threads=2, rounds=5))


def left_by_gdn() -> dict[str, int]:
    """For each family of chips, how many nodes of the embedded GDN codec it leaves to its CPU."""
    from export.chips.operators import FAMILIES
    from export.graph.build import build, open_for_export, parts_of
    from export.pictures import sample_picture
    from export.report import of_family

    codec, x = open_for_export(Path(GDN), None), sample_picture(SIZE)
    parts = (*parts_of(codec, "encoder"), "decoder")
    graphs = {
        form: {str(part): build(codec, part, form, x, dynamic=False) for part in parts}
        for form in {family.deconv for family in FAMILIES}
    }
    return {family.name: left(of_family(family, graphs[family.deconv], "float")) for family in FAMILIES}


def milliseconds(report: dict[str, Any], kind: str) -> float:
    """Of encoder and decoder in ONNX Runtime."""
    parts = (f"encoder, {kind}", f"decoder, {kind}")
    return sum(float(row["ms"]) for row in report["graphs"] if row["graph"] in parts)


def left(family: dict[str, Any]) -> int:
    """How many nodes a family does not take, or does not say that it takes."""
    return int(family["not taken"]) + int(family["not stated"])


def compared(folder: Path, target_bpp: float, times: dict[str, float]) -> Iterator[tuple[str, "Figures", float | None]]:
    """For each codec its name, the figures of its file of the photograph, within the target, and its milliseconds."""
    from PIL import Image

    from codec.evaluation.figures import measure_pictures

    pixels: Pixels = np.array(Image.open(photograph()).convert("RGB"))
    limit = int(target_bpp * pixels.shape[0] * pixels.shape[1] / 8)
    ways: list[tuple[str, tuple[bytes, Pixels], float | None]] = [
        ("GDN, float", in_torch(GDN, pixels, target_bpp), times["GDN original, float"]),
        (f"{BLOCK}, float", in_torch(f"{folder}/block/last.safetensors", pixels, target_bpp), times["float"]),
        (f"{BLOCK}, int8", in_onnx_runtime(folder / "onnx", pixels, target_bpp), times["int8"]),
        ("JPEG", jpeg(pixels, limit), None),
    ]
    for name, (file, decoded), ms in ways:
        (figures,) = measure_pictures(as_tensor(pixels), as_tensor(decoded), None, [file])
        yield name, figures, ms


def as_tensor(pixels: Pixels) -> "Tensor":
    """uint8 [H, W, 3] as a tensor [1, 3, H, W]."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def in_torch(checkpoint: str, pixels: Pixels, target_bpp: float) -> tuple[bytes, Pixels]:
    """The file of a checkpoint and its picture, as `codec.compress` and `codec.decompress` make them."""
    from codec.checkpoint import open_codec
    from codec.files import FileCodec
    from codec.targets import code

    codec = FileCodec(open_codec(Path(checkpoint)))
    file = code(codec.codable(as_tensor(pixels)[0]), TargetOptions(target_bpp=target_bpp))
    return file, codec.decompress([file])[0].permute(1, 2, 0).numpy()


def in_onnx_runtime(folder: Path, pixels: Pixels, target_bpp: float) -> tuple[bytes, Pixels]:
    """The file of the exported pair and its picture."""
    from export.runtime import Model, decode, encode

    file = encode(pixels, Model(folder / "encoder.onnx", "encoder"), TargetOptions(target_bpp=target_bpp))
    return file, decode(file, Model(folder / "decoder.onnx", "decoder"))


def jpeg(pixels: Pixels, limit: int) -> tuple[bytes, Pixels]:
    """The best JPEG file of at most so many bytes, or the smallest, and its picture."""
    from PIL import Image

    def of(quality: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=quality, optimize=True)
        return file.getvalue()

    file = max((each for each in map(of, range(1, 96)) if len(each) <= limit), key=len, default=of(1))
    return file, np.array(Image.open(io.BytesIO(file)))


if __name__ == "__main__":
    cli()
