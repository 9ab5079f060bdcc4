"""The demo: from the embedded GDN codec to int8 files, by the commands that anyone would type, and what it cost."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from coco224.files import check_writable
from codec.cli import NOT_NEGATIVE, POSITIVE, ArgumentParser, OptionGroup, at_least, option, run
from codec.errors import InputError
from codec.sample import GDN, SAMPLE
from codec.targets import TargetOptions, bytes_of
from codec_pipeline import execute

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = "gate_mlp"
MARK = ".codec-demo"
"""A file in the folder of a demo: without it, the folder is not ours to write to."""

SIZE = 512
"""Height and width of the photograph that is compared."""

CROPS = 16
"""Crops of each photograph."""

SUMMARY = "summary.json"
"""The file with the tables of the last screen."""


@dataclass(frozen=True)
class DemoOptions(OptionGroup):
    out_dir: str = option("demo", "folder that the demo writes to", metavar="DIR")
    distill_steps: int = option(200, "iterations in which each block learns to replace its GDN", rule=NOT_NEGATIVE)
    steps: int = option(60, "optimizer steps in float", rule=at_least(1))
    int8_steps: int = option(60, "optimizer steps of quantization-aware training", rule=at_least(4))
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
    print(f"\nthe page:  {folder / 'report.html'}")
    print(f"the codec: {folder / 'onnx'}, which runs without torch:")
    print(f"  python -m export.runtime encode photo.png photo.bin --model {folder / 'onnx' / 'encoder.onnx'}")
    print(f"  python -m export.runtime decode photo.bin photo.png --model {folder / 'onnx' / 'decoder.onnx'}")
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
    check_writable("--out_dir", folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def commands(options: DemoOptions, folder: Path) -> list[tuple[str, list[str]]]:
    """The commands, each with what it does. Every command starts anew. The notebook docs/tour.ipynb gives the same."""
    crops, block, int8, onnx = (str(folder / name) for name in ("coco224", "block", "int8", "onnx"))
    training = [
        "train_accel", "--coco_dir", crops, "--act", BLOCK, "--replace_parts", "all", "--train_scope", "all",
        "--loss_type", "mse", "--lambda_mse", embedded_lambdas(), "--amp", "false", "--batch_size", "2", "--input_size",
        "192", "--lr", "1e-5", "--epochs", "1000", "--eval_every", "0", "--recon_every", "0", "--overwrite", "true",
        "--resume", "none",
    ]  # fmt: skip
    exported = ["--ckpt", f"{int8}/last.safetensors", "--precision", "int8", "--input_size", str(SIZE)]
    return [
        (f"six photographs become {6 * CROPS} crops", [
            "coco224.prepare", "--coco_dir", "sample", "--crop", "random", "--crops_per_image", str(CROPS),
            "--out_dir", crops, "--overwrite", "true",
        ]),
        (f"{BLOCK} replaces every GDN of the embedded codec", [
            *training, "--init_checkpoint", SAMPLE, "--distill_steps", str(options.distill_steps), "--max_steps",
            str(options.steps), "--save_dir", block,
        ]),
        ("quantization-aware training", [
            *training, "--init_checkpoint", f"{block}/last.safetensors", "--qat", "true", "--qat_scope", "all",
            "--qat_exclude_entropy", "false", "--qat_act_observer", "minmax", "--qat_calib_steps",
            str(options.int8_steps // 2), "--qat_freeze_after", str(options.int8_steps * 3 // 4), "--max_steps",
            str(options.int8_steps), "--save_dir", int8,
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
    """Prints the table of quality and the table of chips, and keeps both in summary.json.

    Args:
        folder: with block/last.safetensors in float, int8/last.safetensors, and its pair of models in onnx/.
    """
    gdn, block = left_by_gdn(), reported(f"{folder}/int8/last.safetensors")
    times = {each: milliseconds(block, each) for each in ("GDN original, float", "float", "int8")}
    rows = list(compared(folder, target_bpp, times))
    chips = [{"family": each["family"], "GDN": gdn[each["family"]], BLOCK: left(each)} for each in block["families"]]
    summary = {"photograph": photograph().name, "target_bpp": target_bpp, "codecs": rows, "chips": chips}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{photograph().name}, files of at most {target_bpp} bits per pixel\n")
    print(f"{'':24}{'bits/pixel':>12}{'PSNR':>12}{'MS-SSIM':>10}{'encoder + decoder':>20}")
    for row in rows:
        spent = "" if row["ms"] is None else f"{row['ms']:.0f} ms"
        print(f"{row['codec']:24}{row['bpp']:12.3f}{row['psnr']:9.2f} dB{row['ms_ssim']:10.4f}{spent:>20}")
    print(f"\nnodes that a chip leaves to its CPU{'GDN':>18}{BLOCK:>12}")
    for each in chips:
        print(f"{each['family']:36}{each['GDN']:>17}{each[BLOCK]:>12}")


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

    codec, x = open_for_export(Path(GDN), None), sample_picture(64)  # no size changes a count
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


def compared(folder: Path, target_bpp: float, times: dict[str, float]) -> Iterator[dict[str, Any]]:
    """For each codec the figures of its file of the photograph, within the target, and its milliseconds."""
    import torch

    from coco224.photographs.decode import read_photograph
    from codec.evaluation.figures import measure_pictures
    from codec.evaluation.references import within

    picture = torch.from_numpy(read_photograph(photograph()).pixels()).permute(2, 0, 1)
    limit = bytes_of(target_bpp, picture[0].numel())
    ways: list[tuple[str, tuple[bytes, Tensor], float | None]] = [
        ("GDN, float", in_torch(GDN, picture, target_bpp), times["GDN original, float"]),
        (f"{BLOCK}, float", in_torch(f"{folder}/block/last.safetensors", picture, target_bpp), times["float"]),
        (f"{BLOCK}, int8", in_onnx_runtime(folder / "onnx", picture, target_bpp), times["int8"]),
        ("JPEG", within("jpeg", picture, limit), None),
    ]
    for name, (file, decoded), ms in ways:
        (figures,) = measure_pictures(picture[None], decoded[None], None, [file])
        yield {"codec": name, "bpp": figures.bpp, "psnr": figures.psnr, "ms_ssim": figures.ms_ssim, "ms": ms}


def in_torch(checkpoint: str, picture: "Tensor", target_bpp: float) -> tuple[bytes, "Tensor"]:
    """The file of a checkpoint and its picture, as `codec.compress` and `codec.decompress` make them."""
    from codec.checkpoint import open_codec
    from codec.files import FileCodec

    return FileCodec(open_codec(Path(checkpoint))).through_file(picture, TargetOptions(target_bpp=target_bpp))


def in_onnx_runtime(folder: Path, picture: "Tensor", target_bpp: float) -> tuple[bytes, "Tensor"]:
    """The file of the exported pair and its picture."""
    import torch

    from export.runtime import Model, decode, encode

    pixels = picture.permute(1, 2, 0).numpy()
    file = encode(pixels, Model(folder / "encoder.onnx", "encoder"), TargetOptions(target_bpp=target_bpp))
    return file, torch.from_numpy(decode(file, Model(folder / "decoder.onnx", "decoder"))).permute(2, 0, 1)


if __name__ == "__main__":
    cli()
