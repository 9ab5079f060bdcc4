"""`python -m coco224.prepare`: makes a Hugging Face dataset of size x size crops from photographs."""

import argparse
import functools
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from coco224.command import run
from coco224.errors import DataError, counted, one_line, printable
from coco224.files import check_writable, expanded, in_words, write_whole
from coco224.making.disk import check_room
from coco224.making.manifest import MANIFEST, describe_split, read_manifest, summary, versions
from coco224.making.pool import StopSignals, write_shards
from coco224.making.shards import ENCODINGS, Recipe, Report, Shard, Stopped, features
from coco224.making.workspace import Workspace, checked_out_dir
from coco224.photographs.crops import METHODS
from coco224.photographs.folder import Source, coco_splits
from coco224.photographs.sample import LICENCES, SAMPLE, sample_splits
from coco224.repository import is_repository, open_repository
from coco224.walk import left_out_in_words

PREEMPTED = os.EX_TEMPFAIL
_MIN_SIZE = 16  # the codec's total stride
_MAX_SIZE = 4096  # a process takes up to 550 MB then
_NAMED = 3

# A shard is a fixed part of the sorted files, so that the bytes do not depend on --num_proc. With 256 shards a
# reader opens few files, and an interruption loses little work.
_MOST_SHARDS = 256
_LEAST_FILES = 32


@dataclass(frozen=True)
class Options:
    """The checked options of the command line."""

    coco_dir: str
    out_dir: Path
    include_val: bool
    recipe: Recipe
    limit: int | None
    max_bad: float
    num_proc: int
    overwrite: bool
    hub_dataset_id: str | None
    hub_private: bool


def prepare(options: Options, signals: StopSignals) -> str:
    """Makes the dataset and returns a line about its content.

    Raises:
        DataError: bad input; only finished shards in the hidden folder are left.
        Stopped: a signal came; the same call continues.
        OSError: the disk is full or cannot be written.
    """
    coco_dir = None if options.coco_dir == SAMPLE else Path(options.coco_dir)
    out = checked_out_dir(options.out_dir, options.overwrite, coco_dir)
    check_writable("--out_dir", out.parent)
    with Workspace(out) as work:
        # Check again after listing the photographs: another run may have finished in the meantime.
        checked_out_dir(options.out_dir, options.overwrite, coco_dir)
        sources = coco_splits(coco_dir, options.include_val) if coco_dir else sample_splits(options.include_val)
        sources = {split: _first(source, options.limit) for split, source in sources.items()}
        if signals.stopping:
            raise Stopped
        return _make(options, signals, work, sources, out)


def _make(options: Options, signals: StopSignals, work: Workspace, sources: dict[str, Source], out: Path) -> str:
    sample = options.coco_dir == SAMPLE
    work.follow(_plan(options.recipe, sources))
    shards = {split: _shards(work.dataset / split, source) for split, source in sources.items()}
    reports = {shard.path: report for part in shards.values() for shard in part if (report := work.report(shard))}
    missing = [shard for part in shards.values() for shard in part if shard.path not in reports]
    check_room(out, missing, options.recipe)
    work.begin(list(sources))

    files = sum(len(source.names) for source in sources.values())
    row = features(options.recipe.encoding)
    begun_before = files - sum(len(shard.names) for shard in missing)

    def keep(shard: Shard, report: Report) -> None:
        work.keep(shard, report)
        reports[shard.path] = report
        _check_bad(list(reports.values()), files, options.max_bad)

    with tqdm(total=files, initial=begun_before, unit=" pictures") as bar:
        write_shards(
            missing,
            options.recipe,
            row.arrow_schema,
            num_proc=options.num_proc,
            signals=signals,
            keep=keep,
            progress=lambda begun: _move(bar, begun_before + begun),
        )
        _move(bar, files)

    parts = {split: [reports[shard.path] for shard in part] for split, part in shards.items()}
    for split, part in parts.items():
        if not sum(report.rows for report in part):
            raise DataError(f"no photograph of {sources[split].folder} gave a crop: {_named(part)}")
        describe_split(work.dataset / split, row, part)
    manifest = {
        "options": _recorded(options),
        "versions": versions(),
        "licences": {name: LICENCES[name] for source in sources.values() for name in source.names} if sample else {},
        "splits": {split: summary(sources[split], part) for split, part in parts.items()},
    }
    write_whole(work.dataset / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    # What makes the folder a dataset comes last.
    write_whole(work.dataset / "dataset_dict.json", json.dumps({"splits": list(parts)}))
    work.publish()
    rows = ", ".join(f"{split} {counted(sum(report.rows for report in part), 'row')}" for split, part in parts.items())
    skipped = sum(len(report.skipped) for part in parts.values() for report in part)
    left_out = left_out_in_words(sum((Counter(source.left_out) for source in sources.values()), Counter()))
    return "; ".join(
        words
        for words in (
            rows,
            f"{skipped} of {counted(files, 'file')} skipped",
            left_out,
            f"manifest: {options.out_dir / MANIFEST}",
        )
        if words
    )


def is_made(options: Options) -> bool:
    """Whether --out_dir already contains the dataset of these options, so that only the upload remains."""
    try:
        options_before = read_manifest(options.out_dir / MANIFEST)["options"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(options_before == json.loads(json.dumps(_recorded(options))) and not options.overwrite)


def _move(bar: Any, pictures: int) -> None:
    bar.update(pictures - bar.n)


def _first(source: Source, limit: int | None) -> Source:
    return replace(source, names=source.names[:limit], sizes=source.sizes[:limit])


def _shards(folder: Path, source: Source) -> list[Shard]:
    files = len(source.names)
    step = max(_LEAST_FILES, -(-files // _MOST_SHARDS))
    starts = range(0, files, step)
    return [
        Shard(
            folder / f"data-{number:05d}-of-{len(starts):05d}.arrow",
            source.folder,
            source.names[start : start + step],
            start,
        )
        for number, start in enumerate(starts)
    ]


def _plan(recipe: Recipe, sources: dict[str, Source]) -> dict[str, Any]:
    def digest(source: Source) -> str:
        return hashlib.sha256(repr((source.names, source.sizes)).encode()).hexdigest()

    splits = {split: [str(source.folder.resolve()), digest(source)] for split, source in sources.items()}
    return {"recipe": asdict(recipe), "splits": splits, "versions": versions()}


def _recorded(options: Options) -> dict[str, Any]:
    """The options that the dataset depends on; not its path or the number of processes."""
    named = {"coco_dir": options.coco_dir, "include_val": options.include_val, **asdict(options.recipe)}
    return named | {"limit": options.limit, "max_bad": options.max_bad}


def _check_bad(reports: Sequence[Report], files: int, max_bad: float) -> None:
    """Raises DataError as soon as there are more unreadable files than --max_bad allows for the complete run."""
    bad = sum(entry.unreadable for report in reports for entry in report.skipped)
    if bad > max_bad * files:
        raise DataError(
            f"{bad} of {counted(files, 'photograph')} cannot be read, more than --max_bad {max_bad:g} allows: "
            f"{_named(reports)}; repair or remove them, or raise --max_bad"
        )


def _named(reports: Sequence[Report]) -> str:
    skipped = [entry for report in reports for entry in report.skipped]
    named = [f"{printable(entry.file_name)} ({entry.reason})" for entry in skipped[:_NAMED]]
    return ", ".join(named) + (f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else "")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DataError(f"{message}; see --help")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _parser() -> argparse.ArgumentParser:
    """The options in groups, one line for each option with its [default], as in the other commands."""
    parser = _Parser(
        "python -m coco224.prepare",
        usage="%(prog)s [options]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=60, width=1000),
    )

    def switch(group: argparse._ArgumentGroup, name: str, default: bool, text: str) -> None:
        line = f"{text} [{str(default).lower()}]"
        group.add_argument(name, type=_boolean, nargs="?", const=True, default=default, metavar="BOOL", help=line)

    places = parser.add_argument_group("source and output")
    add = places.add_argument
    source = f"COCO root (train2017/, val2017/), or '{SAMPLE}': six embedded photographs"
    add("--coco_dir", required=True, type=expanded, metavar="DIR", help=f"{source} [required]")
    add(
        "--out_dir",
        required=True,
        type=lambda text: Path(expanded(text)),
        metavar="DIR",
        help="folder of the dataset, which appears when it is complete [required]",
    )
    switch(places, "--include_val", True, "write the validation split too")
    add("--limit", type=int, metavar="INT", help="only the first photographs of each split [all]")
    switch(places, "--overwrite", False, "replace the dataset in --out_dir when the new one is complete")

    add = parser.add_argument_group("crops").add_argument
    add("--size", type=int, default=224, metavar="INT", help=f"side of a crop in pixels, at most {_MAX_SIZE} [224]")
    crops = f"{{{','.join(METHODS)}}} [resize_center; grid with '{SAMPLE}']"
    add("--crop", choices=METHODS, metavar="NAME", help=f"how a photograph becomes crops {crops}")
    add("--crops_per_image", type=int, metavar="INT", help="crops of each photograph, with --crop random [1]")
    add("--seed", type=int, default=0, metavar="INT", help="seed of --crop random [0]")
    encodings = f"{{{','.join(ENCODINGS)}}} [raw]"
    add("--encoding", choices=tuple(ENCODINGS), default="raw", metavar="NAME", help=f"how rows are stored {encodings}")

    add = parser.add_argument_group("work").add_argument
    cores = len(os.sched_getaffinity(0))
    add("--num_proc", type=int, default=cores, metavar="INT", help="processes [one for each core]")
    add(
        "--max_bad",
        type=float,
        default=0.01,
        metavar="FLOAT",
        help="largest share of unreadable photographs [0.01]",
    )

    hub = parser.add_argument_group("Hugging Face Hub")
    switch(hub, "--push_to_hub", False, "upload the dataset when it is complete")
    repository = "repository to upload to, created if necessary [none]"
    hub.add_argument("--hub_dataset_id", metavar="USER/NAME", help=repository)
    switch(hub, "--hub_private", False, "create the repository as private")
    return parser


def _options(argv: Sequence[str] | None) -> Options:
    given = _parser().parse_args(argv)
    for name, least in (
        ("size", _MIN_SIZE),
        ("crops_per_image", 1),
        ("limit", 1),
        ("num_proc", 1),
        ("seed", 0),
    ):
        value = getattr(given, name)
        if value is not None and value < least:
            raise DataError(f"--{name} {value} is less than {least}")
    if given.size > _MAX_SIZE:
        raise DataError(f"--size {given.size} is more than {_MAX_SIZE}")
    if not 0 <= given.max_bad <= 1:
        raise DataError(f"--max_bad {given.max_bad:g} is a share: give 0 to 1")
    crop = given.crop or ("grid" if given.coco_dir == SAMPLE else "resize_center")
    if given.crops_per_image is not None and crop != "random":
        raise DataError(f"--crops_per_image belongs to --crop random, not to --crop {crop}: leave it out")
    if given.push_to_hub and not is_repository(given.hub_dataset_id or ""):
        raise DataError(f"--push_to_hub true needs --hub_dataset_id USER/NAME, not {given.hub_dataset_id!r}")
    return Options(
        coco_dir=given.coco_dir,
        out_dir=given.out_dir,
        include_val=given.include_val,
        recipe=Recipe(given.size, crop, given.crops_per_image or 1, given.seed, given.encoding),
        limit=given.limit,
        max_bad=given.max_bad,
        num_proc=given.num_proc,
        overwrite=given.overwrite,
        hub_dataset_id=given.hub_dataset_id if given.push_to_hub else None,
        hub_private=given.hub_private,
    )


def _check_hub(repo_id: str, private: bool) -> None:
    """Refuses a token that cannot upload. A Hub that is down now may be available when the dataset is complete."""
    reason = open_repository("--hub_dataset_id", repo_id, "dataset", private)
    if reason:
        print(f"{one_line(reason)}; the dataset is made anyway", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 done, 2 bad input, 75 stopped by a signal."""
    try:
        options = _options(argv)
        if options.hub_dataset_id:
            _check_hub(options.hub_dataset_id, options.hub_private)
        if options.hub_dataset_id and is_made(options):
            print(f"{options.out_dir} holds this dataset already: uploading it")
        else:
            with StopSignals() as signals:
                print(printable(prepare(options, signals)))
        if options.hub_dataset_id:
            from coco224.making.upload import upload

            upload(options.out_dir, options.hub_dataset_id, options.hub_private)
            print(f"uploaded: train_accel.py --coco_dir {options.hub_dataset_id}")
    except Stopped:
        print("stopped: the finished part is kept, the same command continues", file=sys.stderr)
        return PREEMPTED
    except DataError as error:
        print("error:", one_line(error), file=sys.stderr)
        return 2
    except OSError as error:
        line = f"error: {in_words(error)}; the same command continues with the finished part"
        print(printable(line), file=sys.stderr)
        return 2
    return 0


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, 130 after Ctrl-C, or 143 after SIGTERM before the work."""
    run(main)


if __name__ == "__main__":
    cli()
