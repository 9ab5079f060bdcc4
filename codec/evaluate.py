"""`python -m codec.evaluate`: measures checkpoints by writing compressed files and decoding them again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from coco224.errors import one_line
from coco224.files import checksum, expanded, whole_or_absent
from codec.cli import ArgumentParser, OptionGroup, at_least, between, check_output, option
from codec.cli import run as run_command
from codec.errors import InputError, SomeFailed
from codec.evaluation.references import QUALITIES, check_format
from codec.sample import to_use

if TYPE_CHECKING:
    from codec.evaluation.compare import Comparison
    from codec.evaluation.pictures import Pictures


@dataclass(frozen=True)
class EvaluateOptions(OptionGroup):
    coco_dir: str | None = option(None, "dataset of coco224.prepare, or a COCO root", metavar="DIR", shown="none")
    use_prepared: bool = option(True, "false: --coco_dir is a COCO root, cropped on the fly")
    images: str | None = option(None, "folder of pictures of any size, or one picture", metavar="PATH", shown="none")
    plugin: str | None = option(None, "Python file of the blocks that a checkpoint uses", metavar="FILE", shown="none")
    qat_eval_fakequant: bool = option(True, "false: evaluate checkpoints of QAT in float")
    rates: int | None = option(
        None,
        "how many rates of a codec with several are measured, 2 to 256",
        rule=between(2, 256),
        shown="its trained ones",
    )
    batch_size: int = option(16, "224x224 crops per batch, or as many pixels of other pictures", rule=at_least(1))
    json: str | None = option(
        None, "write the averages here, in CompressAI's result format", metavar="FILE", shown="none"
    )
    per_image: str | None = option(None, "write a CSV file with one row per picture here", metavar="FILE", shown="none")
    plot: str | None = option(None, "draw the curves here (.png, .svg or .pdf)", metavar="FILE", shown="none")
    report: str | None = option(
        None, "write a page with curves, figures and pictures here (.html)", metavar="FILE", shown="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.coco_dir is None) == (self.images is None):
            raise InputError("give --coco_dir DIR (a dataset) or --images PATH (pictures), one of the two")
        if self.plot and Path(self.plot).suffix not in (".png", ".svg", ".pdf"):
            raise InputError(f"--plot {self.plot}: give a name that ends in .png, .svg or .pdf")
        if self.report and Path(self.report).suffix != ".html":
            raise InputError(f"--report {self.report}: give a name that ends in .html")

    def check_outputs(self, read: Sequence[Path]) -> None:
        """Raises InputError if an output cannot be written, is one of the files to read, or is given twice.

        Args:
            read: the files to read besides pictures and datasets.
        """
        from coco224.dataset import files_of

        names = {name: path for name in ("json", "per_image", "plot", "report") if (path := getattr(self, name))}
        if any(Path(path).exists() for path in names.values()):  # a listing of all COCO takes a second
            read = [*read, *files_of(self.images or self.coco_dir)]
        for name, path in names.items():
            check_output(name, path, read)
            if sum(Path(path).resolve() == Path(other).resolve() for other in names.values()) > 1:
                raise InputError(f"--{name} {path}: another option names this file too; name another file")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
        InputError: the input cannot be evaluated, and nothing was written.
        SomeFailed: on rank 0, if some pictures failed; the figures of all others are written.
    """
    options, checkpoints, references = parse(argv)
    from codec.blocks import load_plugin
    from codec.evaluation.compare import measure_all
    from codec.evaluation.pictures import open_pictures
    from codec.evaluation.ranks import Ranks, check_agreement

    ranks = Ranks.join()
    if options.plugin:
        load_plugin(options.plugin)
    pictures = open_pictures(options.images, options.coco_dir, options.use_prepared, options.batch_size)
    if ranks.world_size > 1:  # the facts are checksums of files
        check_agreement(facts(options, checkpoints, references, pictures), ranks.world_size)
    found = measure_all(
        checkpoints,
        references,
        pictures,
        ranks,
        fake_quant=options.qat_eval_fakequant,
        keep_pictures=options.report is not None,
        rates=options.rates,
    )
    ranks.leave()
    if ranks.rank > 0:  # ends with 0: a launcher stops all ranks when one fails, and rank 0 still has to write
        return 0
    write(options, found)
    if found.failures:
        raise SomeFailed(found.failures, len(found.failures) + len(found.pictures.names), "picture")
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run_command(main)


def facts(
    options: EvaluateOptions, checkpoints: Sequence[str], references: Sequence[str], pictures: "Pictures"
) -> dict[str, Any]:
    """What must be equal in all processes that share an evaluation, by its name in errors.

    The files of the pictures are read as a whole, which takes little time beside coding them.

    Raises:
        OSError: a file cannot be read.
    """
    from codec.evaluation.ranks import program

    compared = ("qat_eval_fakequant", "rates", "batch_size")
    files = {"--checkpoint": checkpoints, "--reference": references, "--plugin": [options.plugin or ""]}
    names = "\n".join(name.removeprefix(pictures.title) for name in pictures.names)
    return {
        **{f"--{name}": getattr(options, name) for name in compared},
        "a report is written": bool(options.report),
        **{f"the files of {name}": [_checksum(each) for each in given] for name, given in files.items()},
        "the names of the pictures": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        "the content of the pictures": [pictures.fingerprint, *map(_content, pictures.files)],
        **program("codec", "coco224"),
    }


def _checksum(name: str) -> str:
    """SHA-256 of a file; the name itself where there is none, as of jpeg."""
    file = to_use(name)
    return checksum(file) if file.is_file() else name


def _content(picture: Path) -> str:
    """SHA-256 of a picture; empty if it cannot be read."""
    try:
        return checksum(picture)
    except OSError:
        return ""


def write(options: EvaluateOptions, found: "Comparison") -> None:
    """Prints the figures and writes the requested files."""
    from codec.evaluation import results
    from codec.evaluation.curves import plot
    from codec.evaluation.report import write_report

    title, names, measured = found.pictures.title, found.pictures.names, [*found.ours, *found.theirs]
    results.print_table(found.pictures, measured, len(found.failures))
    against = results.differences(found.curves[0], found.curves[1:])
    alarms = [said for each in found.ours if (said := results.alarm(each, names))]
    for said in alarms:
        print(one_line(said))
    if options.json:
        content = results.as_results(found.pictures, found.ours) | {"references": against, "alarms": alarms}
        content["failed"] = found.failures
        with whole_or_absent(Path(options.json)) as path:
            path.write_text(json.dumps(content, indent=2) + "\n")
    if options.per_image:
        with whole_or_absent(Path(options.per_image)) as path:
            results.write_rows(path, names, measured)
    if options.plot:
        plot(Path(options.plot), title, found.curves)
    if options.report:
        page, failed = Path(options.report), len(found.failures)
        write_report(page, title, names, measured, found.curves, against, found.shown, failed)


def parse(argv: Sequence[str] | None) -> tuple[EvaluateOptions, list[str], list[str]]:
    """Options, checkpoints and references; raises InputError if they cannot work."""
    parser = ArgumentParser(
        prog="python -m codec.evaluate", description="PSNR, MS-SSIM and bits per pixel of codecs, from real files."
    )
    parser.add_dataclass("evaluation", EvaluateOptions)
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        type=expanded,
        default=[],
        metavar="FILE",
        help="checkpoints, ours or CompressAI's, or 'sample' and 'sample_gdn': the embedded ones",
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        type=expanded,
        default=[],
        metavar="CURVE",
        help="curves to compare with: checkpoints (together one curve), jpeg, webp, avif, published (CompressAI's GDN "
        "codec on Kodak), or a JSON file in CompressAI's result format [none]",
    )
    given = vars(parser.parse_args(argv))
    checkpoints, references = given.pop("checkpoint"), given.pop("reference")
    if not checkpoints:
        raise InputError("--checkpoint is required: one file that training wrote, or several")
    for name in references:
        if name in QUALITIES:
            check_format(name)
        elif name != "published" and not to_use(name).is_file():
            raise InputError(f"--reference {name}: neither a file nor one of {', '.join(QUALITIES)} and published")
    options = EvaluateOptions(**given)
    read = [to_use(name) for name in (*checkpoints, *references) if name not in (*QUALITIES, "published")]
    options.check_outputs([*read, *([Path(options.plugin)] if options.plugin else [])])
    return options, checkpoints, references


if __name__ == "__main__":
    cli()
