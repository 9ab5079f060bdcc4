"""`python -m codec.evaluate`: how good checkpoints are, on a prepared dataset or on pictures of any size."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from coco224.batches import EvalBatches
from coco224.photographs import BadPhotograph, list_photographs, read_photograph
from coco224.prepared import open_split
from coco224.unprepared import open_photographs
from codec.blocks import load_plugin
from codec.checkpoint import load_codec, load_initial
from codec.cli import ArgumentParser, OptionGroup, at_least, option
from codec.cli import run as run_command
from codec.entropy import with_tables
from codec.errors import InputError
from codec.evaluation import Figures, evaluate
from codec.model import Codec

COLUMNS = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb", "bpp_estimated": "bpp-estimated"}


@dataclass(frozen=True)
class EvaluateOptions(OptionGroup):
    coco_dir: str | None = option(None, "dataset of coco224.prepare, or a COCO root", metavar="DIR", shown="none")
    use_prepared: bool = option(True, "false: --coco_dir is a COCO root, cropped on the fly")
    images: str | None = option(None, "folder of pictures of any size, or one picture", metavar="PATH", shown="none")
    plugin: str | None = option(None, "Python file of the blocks that a checkpoint uses", metavar="FILE", shown="none")
    batch_size: int = option(16, "crops a batch; pictures of --images go one by one", rule=at_least(1))
    json: str | None = option(
        None, "write the averages here, as CompressAI writes results", metavar="FILE", shown="none"
    )
    per_image: str | None = option(None, "write a CSV row a picture here", metavar="FILE", shown="none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.coco_dir is None) == (self.images is None):
            raise InputError("give --coco_dir DIR (a dataset) or --images PATH (pictures), one of the two")


@dataclass(frozen=True)
class Pictures:
    """What to evaluate on: names, and uint8 [B, 3, H, W] batches in the same order."""

    title: str
    names: list[str]
    batches: Sequence[Any]

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield batch if isinstance(batch, Tensor) else batch.images


class Files(Sequence[Tensor]):
    """Pictures read from files one by one, uint8 [1, 3, H, W]."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: Any) -> Any:
        try:
            pixels = np.array(read_photograph(self.paths[i]).image)
        except BadPhotograph as error:
            raise InputError(f"--images: {self.paths[i]} is no picture ({error}); take it out") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options, checkpoints = parse(argv)
    if options.plugin:
        load_plugin(options.plugin)
    codecs = {str(path): open_codec(path) for path in checkpoints}
    pictures = open_pictures(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, list[Figures]] = {}
    for name, codec in codecs.items():
        rows = evaluate(codec.to(device), pictures, device)
        figures[name] = list(tqdm(rows, desc=Path(name).name, total=len(pictures.names), unit=" pictures", leave=False))
        if not all(math.isfinite(row.l1) for row in figures[name]):
            raise InputError(f"{name} gives values that are not finite; its training has diverged, use an earlier one")
    averages = {name: average(rows) for name, rows in figures.items()}
    print_table(pictures, averages)
    if options.json:
        Path(options.json).write_text(json.dumps(as_results(pictures, averages), indent=2) + "\n")
    if options.per_image:
        write_rows(Path(options.per_image), pictures.names, figures)
    return 0


def parse(argv: Sequence[str] | None) -> tuple[EvaluateOptions, list[Path]]:
    """Options and checkpoints; InputError for what cannot work."""
    parser = ArgumentParser(prog="python -m codec.evaluate", description="PSNR, MS-SSIM and bits per pixel of codecs.")
    parser.add_dataclass("evaluation", EvaluateOptions)
    parser.add_argument(
        "--checkpoint", nargs="+", type=Path, default=[], metavar="FILE", help="checkpoints, ours or CompressAI's"
    )
    given = vars(parser.parse_args(argv))
    checkpoints = given.pop("checkpoint")
    if not checkpoints:
        raise InputError("--checkpoint is required: one file that training wrote, or several")
    options = EvaluateOptions(**given)
    for name, path in (("json", options.json), ("per_image", options.per_image)):
        if path and not Path(path).resolve().parent.is_dir():
            raise InputError(f"--{name} {path}: its folder does not exist; make it first")
    return options, checkpoints


def open_codec(path: Path) -> Codec:
    """A checkpoint of ours as it is, or CompressAI's with fresh tables."""
    return load_codec(path)[0] if path.suffix == ".safetensors" else with_tables(load_initial(path))


def open_pictures(options: EvaluateOptions) -> Pictures:
    """The validation split (the training split where there is no other), or the files.

    Raises:
        InputError, DataError: there is nothing to evaluate on.
    """
    if options.images:
        root = Path(options.images)
        paths = [root] if root.is_file() else [root / name for name, _ in list_photographs(root)]
        if not paths:
            raise InputError(f"--images {root}: no picture there; give a picture, or a folder that holds some")
        return Pictures(str(root), [str(path) for path in paths], Files(paths))
    assert options.coco_dir
    open_rows = open_split if options.use_prepared else open_photographs
    for split in ("validation", "train"):
        rows = open_rows(options.coco_dir, split)
        if rows is not None:
            names = rows.names(range(len(rows)))
            return Pictures(f"{options.coco_dir} {split}", names, EvalBatches(rows, options.batch_size, 0, 1))  # type: ignore[arg-type]
    raise InputError(f"--coco_dir {options.coco_dir} has neither a validation nor a train split")


def average(rows: list[Figures]) -> dict[str, float]:
    """Means over pictures; pictures that came back identical have no finite PSNR and are counted instead."""
    means = {"pictures": float(len(rows))}
    for name in COLUMNS:
        values = [value for row in rows if (value := getattr(row, name)) is not None and math.isfinite(value)]
        if values:
            means[name] = fmean(values)
        if name == "ms_ssim" and len(values) < len(rows):
            means["too_small_for_ms_ssim"] = float(len(rows) - len(values))
        if name == "psnr" and len(values) < len(rows):
            means["identical"] = float(len(rows) - len(values))
    return means


def print_table(pictures: Pictures, averages: dict[str, dict[str, float]]) -> None:
    """One line a checkpoint."""
    width = max(len("checkpoint"), *map(len, averages))
    print(f"{pictures.title}: {len(pictures.names)} pictures, means over pictures")
    print(f"{'checkpoint':{width}}  PSNR dB  MS-SSIM  bpp (estimated)")
    for name, means in averages.items():
        cells = [format(means[key], style) if key in means else "-" for key, style in
                 (("psnr", ".3f"), ("ms_ssim", ".5f"), ("bpp_estimated", ".4f"))]  # fmt: skip
        print(f"{name:{width}}  {cells[0]:>7}  {cells[1]:>7}  {cells[2]:>15}")
    for key, words in (
        ("too_small_for_ms_ssim", "under 161 pixels, without MS-SSIM"),
        ("identical", "came back identical"),
    ):
        count = max(means.get(key, 0) for means in averages.values())
        if count:
            print(f"{count:.0f} pictures {words}")


def as_results(pictures: Pictures, averages: dict[str, dict[str, float]]) -> dict[str, Any]:
    """CompressAI's result format: one entry a checkpoint in each list."""
    results = {label: [means.get(name) for means in averages.values()] for name, label in COLUMNS.items()}
    return {"name": "npu-image-codec", "description": pictures.title, "checkpoints": list(averages), "results": results}


def write_rows(path: Path, names: list[str], figures: dict[str, list[Figures]]) -> None:
    """A CSV row for each checkpoint and picture."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "picture", *COLUMNS])
        for checkpoint, rows in figures.items():
            for name, row in zip(names, rows, strict=True):
                values = asdict(row)
                writer.writerow([checkpoint, name, *(values[column] for column in COLUMNS)])


if __name__ == "__main__":
    run_command(main)
