"""The state that a run resumes from: complete folders of only safetensors and JSON files."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from coco224.files import checksum, in_words, read_json, sync_folder
from codec.description.architecture import Architecture
from codec.description.shapes import check_shapes
from codec.description.typed import as_object, from_json
from codec.errors import InputError
from codec.network.bottleneck import TABLES
from training.distributed import gathered

FILES = ("model.safetensors", "optimizer.safetensors", "progress.json")
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
_OLD = ".old"
_LEFTOVER = re.compile(r"\.step-\d{8,}(\.old)?")


@dataclass
class Progress:
    """The progress of a run: everything of its state except tensors.

    Attributes:
        step: optimizer steps done; with the seed it gives the position in the data and in the noise.
        evaluated: the last step at which the work of an epoch's end was done; 0 before the first.
        faults_in_a_row: faulty steps since the last good one.
        best: the best value so far of each metric that keeps a `best_*` file.
        plateau: the state of the plateau schedule.
        scaler: the loss scaler's state (fp16), else empty.
        options: the resolved options, under their public names.
        global_batch: pictures per optimizer step.
        data: the dataset's fingerprint.
        validation: that of its validation split, from which `best` and `plateau` are; empty if it has none, and in
            older states.
        tracker: what trackers need to continue the same run (the W&B run's id).
        run: the id of the run. It is empty in states of version 0.1.0, and so are the next two.
        files: checksums of --init_checkpoint and --plugin, by option.
        architecture: architecture of the float codec, from which a resumed run builds it.
    """

    step: int = 0
    evaluated: int = 0
    faults_in_a_row: int = 0
    best: dict[str, float] = field(default_factory=dict)
    plateau: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    global_batch: int = 0
    data: str = ""
    validation: str = ""
    tracker: dict[str, Any] = field(default_factory=dict)
    run: str = ""
    files: dict[str, str] = field(default_factory=dict)
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A state that a run resumes from: its progress, and the tensors of the codec and the optimizer by name."""

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def host(tensor: Tensor) -> Tensor:
    """A copy of the complete tensor on the CPU, contiguous and detached; a collective call if it is sharded."""
    whole = gathered(tensor).detach()
    return torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)


def device_tensors(codec: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, where they are, without the CDF tables, which are rebuilt from the densities.

    They are complete and detached, but no copies unless the codec is sharded; then it is a collective call.
    """
    tensors = {name: t for name, t in codec.state_dict().items() if name.rsplit(".", 1)[-1] not in TABLES}
    return {name: gathered(tensor).detach() for name, tensor in tensors.items()}


def model_tensors(codec: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of what `device_tensors` gives."""
    return {name: host(tensor) for name, tensor in device_tensors(codec).items()}


def optimizer_tensors(codec: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by name: "exp_avg/g_a.0.weight" and so on."""
    state = optimizer.state
    return {
        f"{kind}/{name}": host(tensor)
        for name, parameter in codec.named_parameters()
        for kind, tensor in state.get(parameter, {}).items()
    }


def load_optimizer_tensors(codec: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, onto each parameter's device, sharding and memory layout.

    Raises:
        InputError: the tensors are not those of Adam for these parameters.
    """
    parameters = dict(codec.named_parameters())
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.rpartition("/")
        found.setdefault(name, {})[kind] = tensor
    for name, own in found.items():
        shape = tuple(parameters[name].shape) if name in parameters else None
        wanted = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
        if shape is None or {kind: tuple(tensor.shape) for kind, tensor in own.items()} != wanted:
            raise InputError(
                f"the state's optimizer.safetensors has other tensors for {name} than this codec's optimizer: give "
                "another state, or start over with --resume none"
            )
        for kind, tensor in own.items():
            optimizer.state[parameters[name]][kind] = _placed_as(parameters[name], tensor)


def _placed_as(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """A tensor of an optimizer's state where its parameter is, sharded and in memory as that is."""
    if not tensor.ndim:
        return tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    # Fused Adam pairs values by their order in memory: channels_last weights need channels_last moments.
    return torch.empty_like(parameter).copy_(tensor)


def save_state(
    folder: Path, keep: int, model: dict[str, Tensor], optimizer: dict[str, Tensor], progress: Progress
) -> None:
    """Writes `folder/step-NNNNNNNN`, completely or not at all, then removes all but the newest `keep` states.

    Files are written and synced in a folder with a temporary name; the manifest with their checksums comes last. Then
    the folder is renamed. Older states are removed only after that, and files of another run or a user never.

    Raises:
        InputError: something else has the state's name.
    """
    final = folder / f"step-{progress.step:08d}"
    beside, aside = folder / f".{final.name}", folder / f".{final.name}{_OLD}"
    restore_states(folder)
    for left in folder.glob(".step-*"):  # left by a kill in the middle of this function
        if _LEFTOVER.fullmatch(left.name):
            remove_folder(left)
    contents = (save(model), save(optimizer), json.dumps(asdict(progress), indent=1).encode())
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in zip(FILES, contents, strict=True)}
    manifest = json.dumps(sums, indent=1).encode()
    try:
        beside.mkdir(parents=True, exist_ok=True)
        for name, content in zip((*FILES, MANIFEST), (*contents, manifest), strict=True):
            _write_synced(beside / name, content)
        sync_folder(beside)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)  # frees the space on a full disk
        raise
    if final.is_symlink() or final.exists():  # the same step again, for example after its evaluation
        if not _is_state(final, progress.run):
            shutil.rmtree(beside, ignore_errors=True)
            raise InputError(foreign_words(final))
        # A kill must not leave half of it.
        final.rename(aside)
    beside.rename(final)
    sync_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)
    states = own_states(folder, progress.run)
    own = states.index(final)
    for other in states[:own] + states[own + keep :]:  # newer states are damaged, or the run restarted before them
        remove_folder(other)


def restore_states(folder: Path) -> None:
    """Gives a state its name back that a kill between two renames of `save_state` has left without one."""
    for aside in folder.glob(f".step-*{_OLD}"):
        final = aside.with_name(aside.name.removeprefix(".").removesuffix(_OLD))
        if _LEFTOVER.fullmatch(aside.name) and not final.exists() and (aside / MANIFEST).is_file():
            aside.rename(final)


def remove_folder(path: Path) -> None:
    """Removes a folder; warns if it cannot be removed."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        warnings.warn(f"{path} is not needed any more and cannot be removed: {in_words(error)}", stacklevel=2)


def own_states(folder: Path, run: str = "") -> list[Path]:
    """The states that a run wrote into a folder, newest first. A copy under another name is not included.

    Args:
        run: the id of the run; empty: any.
    """
    return sorted((path for path in _named(folder) if _is_state(path, run)), key=_step, reverse=True)


def foreign_states(folder: Path, run: str = "") -> dict[int, Path]:
    """By step: what has a state's name and is none of the run, so that the run could not save this step."""
    return {_step(path): path for path in _named(folder) if not _is_state(path, run)}


def foreign_words(path: Path) -> str:
    """The error for a state that cannot be saved."""
    return f"{path} is no state of this run, and has a name that its states need: move it to another folder"


def newest_whole(folder: Path, run: str = "") -> Path | None:
    """The newest state folder whose checksums match; None if there is no state. Warns about damaged newer states.

    Args:
        folder: a folder of states, or a state.
        run: the id of the run whose states count; empty: any.

    Raises:
        InputError: there are states, but none is intact.
    """
    candidates = [folder] if (folder / MANIFEST).is_file() else own_states(folder, run)
    for candidate in candidates:
        damage = _damage(candidate)
        if not damage:
            return candidate
        warnings.warn(f"{candidate} is damaged ({damage}); trying the state before it", stacklevel=2)
    if candidates:
        raise InputError(
            f"no state in {folder} is intact; start a new run with --resume none --overwrite true, and to use the "
            f"weights that were saved beside it, add --init_checkpoint {folder.parent / 'last.safetensors'}"
        )
    return None


def load_state(path: Path) -> Saved:
    """Loads a state folder that `newest_whole` returned.

    Raises:
        InputError: a later version of this program wrote it, or another program.
    """
    try:
        values = as_object(read_json(path / "progress.json"), "progress.json")
        if unknown := values.keys() - asdict(Progress()).keys():
            raise InputError(
                f"{path} is of a later version of this program ({', '.join(sorted(unknown))}): update this program"
            )
        progress = from_json(Progress, values, "progress")
        model, optimizer = (load_file(path / name) for name in FILES[:2])
        _check(progress, model)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no state of this program ({error}): give another one") from error
    return Saved(progress, model, optimizer)


def _check(progress: Progress, model: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a number cannot be, or the architecture contradicts the weights."""
    if not 0 <= progress.evaluated <= progress.step:
        raise ValueError(f"progress.step is {progress.step} and progress.evaluated {progress.evaluated}")
    from_json(dict[str, float], progress.plateau, "progress.plateau")
    if progress.architecture:
        architecture = from_json(Architecture, progress.architecture, "architecture")
        check_shapes(architecture, {name: tuple(tensor.shape) for name, tensor in model.items()})


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _step(path: Path) -> int:
    """The step in the name of a state."""
    return int(path.name.removeprefix("step-"))


def _named(folder: Path) -> list[Path]:
    """What has the name of a state."""
    try:
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_state(path: Path, run: str) -> bool:
    """Whether it is a state of the run and of the step in its name.

    A state whose progress is damaged counts if it has a manifest.
    """
    if not path.is_dir():
        return False
    try:
        progress = read_json(path / "progress.json")
        return bool(progress["step"] == _step(path) and (not run or progress.get("run", "") in ("", run)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (path / MANIFEST).is_file()


def _damage(folder: Path) -> str:
    """What is wrong with a state folder; empty if it is intact."""
    try:
        sums = read_json(folder / MANIFEST)
        for name in FILES:
            if checksum(folder / name) != sums[name]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
