"""A checkpoint as a repository of the Hugging Face Hub, and a codec that comes from one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelHubMixin, hf_hub_download

from codec.card import model_card
from codec.errors import InputError
from codec.fingerprint import fingerprint
from codec.tables import Tables, tables_of_state, to_bytes

if TYPE_CHECKING:
    from codec.checkpoint import Description
    from codec.model import Codec

WEIGHTS = "model.safetensors"
TABLES = "entropy_tables.bin"
# What a run leaves beside its checkpoints, as far as it is there.
RECORD = ("config.yaml", "metrics.jsonl", "curves.png", "summary.json", "rd.png")
RECONSTRUCTIONS = "reconstructions.png"
BUILT_IN = {"gdn", *(path.stem for path in (Path(__file__).parent / "blocks").glob("*.py"))}  # a file is a block
DESCRIBED = ("architecture", "options", "metrics", "step", "versions")


def read_checkpoint(path: Path) -> tuple[bytes, dict[str, Any], Tables]:
    """A checkpoint's bytes, read at once, what it says of itself, and its entropy tables. Needs no torch.

    Raises:
        InputError: it is missing, damaged, or none of ours.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        arrays = load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        whole = metadata.pop("sha256") == fingerprint(arrays, metadata)
        header = {name: json.loads(metadata[name]) for name in DESCRIBED}
        header["dataset"] = json.loads(metadata.get("dataset", '""'))  # which earlier files do not name
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a checkpoint") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or no checkpoint of this program; give one that it wrote") from error
    if not whole:
        raise InputError(f"{path} is damaged: its contents do not match its checksum; use another checkpoint")
    return content, header, tables_of_state(arrays, header["architecture"]["g_s"])


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
    content, header, tables = read_checkpoint(checkpoint)
    files = {WEIGHTS: content, "config.json": json.dumps(header, indent=1).encode() + b"\n", TABLES: to_bytes(tables)}
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


class PretrainedMixin(ModelHubMixin):
    """`from_pretrained`, `save_pretrained` and `push_to_hub` for a codec, as Hub users know them.

    Attributes:
        description: what the checkpoint that the codec came from says of itself.
    """

    description: "Description | None" = None

    def _save_pretrained(self, save_directory: Path) -> None:
        from codec.checkpoint import Description, save_codec
        from codec.entropy import with_tables

        shipped = with_tables(cast("Codec", self))
        save_codec(save_directory / WEIGHTS, shipped, self.description or Description())
        files = repository_files(save_directory / WEIGHTS, "/".join(save_directory.parts[-2:]))
        for name, content in files.items():
            if name not in (WEIGHTS, "README.md") or not (save_directory / name).exists():
                (save_directory / name).write_bytes(content)

    @classmethod
    def from_pretrained(cls, name: str | Path, **where: Any) -> Any:  # type: ignore[override]
        """A codec in eval mode: from the Hub (USER/NAME), a folder of `save_pretrained`, or a checkpoint file."""
        return _load(Path(name)) if Path(name).is_file() else super().from_pretrained(name, **where)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **where: Any) -> Any:
        if Path(model_id).is_dir():
            return _load(Path(model_id) / WEIGHTS)
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return _load(Path(hf_hub_download(model_id, WEIGHTS, **{name: where[name] for name in names})))


def _load(path: Path) -> "Codec":
    from codec.checkpoint import load_codec

    codec, description = load_codec(path)
    codec.description = description
    return codec
