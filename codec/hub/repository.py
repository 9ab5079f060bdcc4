"""Selects the files that are uploaded with a checkpoint to the Hugging Face Hub.

A checkpoint and the files beside it may come from a stranger, so no path that they name is followed. Links, hidden
files, files of other kinds, and a record that no run of this program wrote are left out. What goes up names no folder
of this machine.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from coco224.files import read_json, read_regular
from codec.bitstream.tables import AnyTables, from_bytes, tables_of_state, to_bytes
from codec.description.architecture import BUILT_IN
from codec.description.file import TRAINING, CheckpointFile, read_checkpoint
from codec.errors import InputError
from codec.hub.card import model_card
from codec.hub.shared import shared, shared_config

WEIGHTS = "model.safetensors"
TABLES = "entropy_tables.bin"
CONFIG = "config.yaml"
RESOLVED = "resolved.yaml"  # a run's config.yaml, if that name was taken
RECONSTRUCTIONS = "reconstructions.png"
# Files that a run leaves beside its checkpoints.
RECORD = (CONFIG, "metrics.jsonl", "curves.png", "summary.json", "rd.png", RECONSTRUCTIONS)
MARK = f"# {TRAINING}"
"""The first line of a run's config.yaml begins with this."""
MARKER = "run.json"
"""The file with which a run marks its folder."""
MARKER_FORMAT = "npu-image-codec/run/1"
"""Its entry `format`."""

_MOST_BYTES = 2**30
"""Of all files together: they are held in memory."""


@dataclass(frozen=True)
class Repository:
    """The files of a repository, and the files that were found but are not uploaded.

    Attributes:
        files: contents by path.
        left_out: one sentence for each file that is left out.
    """

    files: dict[str, bytes]
    left_out: list[str]


def repository_files(
    checkpoint: Path, repo_id: str, onnx: Path | None = None, plugin: Path | None = None, recon_dir: Path | None = None
) -> Repository:
    """All files of a repository, made from a checkpoint and the files that a run left beside it.

    Args:
        repo_id: USER/NAME, for the card.
        onnx: folder of exported files.
        plugin: file of blocks, uploaded if the codec has a block that is not built in. The path in the checkpoint is
            not trusted, since a stranger's checkpoint could name any file of this machine.
        recon_dir: folder of reconstructions, whose newest grid is taken. Default: the grid that the run left beside
            the checkpoint, or the folder that the checkpoint names, if it is inside the checkpoint's own folder.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    saved = read_checkpoint(checkpoint)
    public = shared(saved)
    header = {"architecture": saved.architecture.as_dict(), **asdict(public.description)}
    try:
        tables = tables_of_state(saved.arrays, header["architecture"]["g_s"])
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    found = Repository(
        {
            WEIGHTS: public.content,
            "config.json": json.dumps(header, indent=1).encode() + b"\n",
            TABLES: to_bytes(tables),
        },
        [],
    )
    _add_record(found, checkpoint.parent, public)
    if recon_dir or RECONSTRUCTIONS not in found.files:
        _add_reconstructions(found, recon_dir or _own_recon_dir(checkpoint, saved))
    if {saved.architecture.g_a.name, saved.architecture.g_s.name} <= BUILT_IN:
        plugin = None
    if plugin:
        found.files[plugin.name] = plugin.read_bytes()
    if onnx:
        _add_exports(found, onnx, tables)
    command = found.files.get(CONFIG, b"").decode(errors="replace").partition("\n")[0].removeprefix("# ")
    card = model_card(repo_id, header, sorted(found.files), command, plugin.name if plugin else "")
    found.files["README.md"] = card.encode()
    return found


def is_ours(path: str) -> bool:
    """Whether a file of a repository is one that a push may have made; a later push without it removes it."""
    return path in RECORD or path.startswith("onnx/")


def _add(found: Repository, path: Path, name: str) -> bool:
    """Adds a file that is not a link; if the file exists but cannot be added, notes it in `left_out`."""
    try:
        if path.is_symlink():
            found.left_out.append(f"{path} is a link")
        elif path.exists():
            held = sum(map(len, found.files.values()))
            found.files[name] = read_regular(path, max(0, _MOST_BYTES - held))
            return True
    except OSError as error:
        found.left_out.append(f"{path}: {error.strerror}")
    return False


def _add_record(found: Repository, folder: Path, saved: CheckpointFile) -> None:
    """Adds the files that a run wrote, if its mark lies beside them."""
    present = [name for name in (*RECORD, RESOLVED) if (folder / name).exists()]
    if not _is_of_a_run(folder / MARKER):
        if present:
            found.left_out.append(f"{', '.join(present)} in {folder}: there is no {MARKER} of a run beside them")
        return
    any(_add_marked(found, folder / name, saved) for name in (CONFIG, RESOLVED))  # the first that a run wrote
    for name in RECORD[1:]:
        _add(found, folder / name, name)


def _is_of_a_run(marker: Path) -> bool:
    """Whether a file is the mark of a run, and no link to one."""
    try:
        return not marker.is_symlink() and read_json(marker)["format"] == MARKER_FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _add_marked(found: Repository, config: Path, saved: CheckpointFile) -> bool:
    """Adds a run's options as config.yaml; notes a file that no run wrote in `left_out`."""
    if not _add(found, config, CONFIG):
        return False
    if found.files[CONFIG].startswith(MARK.encode()):
        found.files[CONFIG] = shared_config(found.files[CONFIG], saved)
        return True
    del found.files[CONFIG]
    found.left_out.append(f"{config} is no run's: its first line does not begin with {MARK!r}")
    return False


def _own_recon_dir(checkpoint: Path, saved: CheckpointFile) -> Path | None:
    """The folder of reconstructions that the checkpoint names, if it is inside the checkpoint's own folder."""
    folder, named = checkpoint.parent.resolve(), saved.description.options.get("recon_dir")
    inside = isinstance(named, str) and "\0" not in named and Path(named).resolve().is_relative_to(folder)
    return Path(str(named)) if inside else None


def _add_reconstructions(found: Repository, folder: Path | None) -> None:
    named = ((path, re.fullmatch(r"e(\d+).*\.png", path.name)) for path in (folder.glob("*.png") if folder else ()))
    grids = [(int(name[1]), path) for path, name in named if name]  # from epoch 1,000 on names have another order
    if grids:
        _add(found, max(grids)[1], RECONSTRUCTIONS)


def _add_exports(found: Repository, folder: Path, tables: AnyTables) -> None:
    """Adds graphs and tables with the checkpoint's fingerprint; links to folders are not followed."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or any(part.startswith(".") for part in parts):
            continue
        name = "/".join(("onnx", *parts))
        if path.suffix not in (".onnx", ".tables"):
            found.left_out.append(f"{path} is neither a graph nor its tables")
        elif any(folder.joinpath(*parts[:depth]).is_symlink() for depth in range(1, len(parts))):
            found.left_out.append(f"{path} is in a linked folder")
        elif _add(found, path, name) and not _belongs(found.files[name], path.suffix, tables):
            del found.files[name]
            found.left_out.append(f"{path} was not exported from this checkpoint")


def _belongs(content: bytes, suffix: str, tables: AnyTables) -> bool:
    if suffix == ".onnx":
        return f"{tables.fingerprint:08x}".encode() in content  # a property of the graph
    try:
        return from_bytes(content).fingerprint == tables.fingerprint
    except InputError:
        return False
