"""What a repository of a checkpoint on the Hugging Face Hub holds."""

import json
from dataclasses import asdict
from pathlib import Path

from codec.bitstream.tables import tables_of_state, to_bytes
from codec.description.file import read_checkpoint
from codec.hub.card import model_card

WEIGHTS = "model.safetensors"
TABLES = "entropy_tables.bin"
# What a run leaves beside its checkpoints.
RECORD = ("config.yaml", "metrics.jsonl", "curves.png", "summary.json", "rd.png")
RECONSTRUCTIONS = "reconstructions.png"
BLOCKS = Path(__file__).parent.parent / "blocks"
BUILT_IN = {"gdn", *(path.stem for path in BLOCKS.glob("*.py"))}  # a file is a block


def repository_files(
    checkpoint: Path, repo_id: str, onnx: Path | None = None, plugin: Path | None = None
) -> dict[str, bytes]:
    """Everything that a repository holds, by its path there, made from a checkpoint and what lies beside it.

    Args:
        repo_id: USER/NAME, for the card.
        onnx: folder of exported files.
        plugin: file of blocks, taken where the codec has a block that is not built in. The checkpoint names one too,
            which is not trusted: a stranger's could name any file of this machine.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    saved = read_checkpoint(checkpoint)
    header = {"architecture": asdict(saved.architecture), **asdict(saved.description)}
    tables = tables_of_state(saved.arrays, header["architecture"]["g_s"])
    files = {
        WEIGHTS: saved.content,
        "config.json": json.dumps(header, indent=1).encode() + b"\n",
        TABLES: to_bytes(tables),
    }
    files |= {name: (checkpoint.parent / name).read_bytes() for name in RECORD if (checkpoint.parent / name).is_file()}
    grids = sorted(Path(header["options"].get("recon_dir", "")).glob("e[0-9]*.png"))
    if grids:
        files[RECONSTRUCTIONS] = grids[-1].read_bytes()
    if {header["architecture"][part]["name"] for part in ("g_a", "g_s")} <= BUILT_IN:
        plugin = None
    if plugin:
        files[plugin.name] = plugin.read_bytes()
    for path in sorted(onnx.rglob("*")) if onnx else []:
        if path.is_file():
            files[f"onnx/{path.relative_to(onnx).as_posix()}"] = path.read_bytes()  # type: ignore[arg-type]
    command = files.get("config.yaml", b"").decode().partition("\n")[0].removeprefix("# ")
    card = model_card(repo_id, header, sorted(files), command, plugin.name if plugin else "")
    return files | {"README.md": card.encode()}


def is_ours(path: str) -> bool:
    """Whether a file of a repository is one that a push makes of what may lie beside a checkpoint, or not."""
    return path in (*RECORD, RECONSTRUCTIONS) or path.startswith("onnx/")
