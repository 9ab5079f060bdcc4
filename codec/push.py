"""`python -m codec.push`: a checkpoint, with its card and record, to a model repository on the Hugging Face Hub."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from coco224.errors import one_line
from coco224.repository import cause_of, is_repository, open_repository
from codec.cli import NOT_EMPTY, ArgumentParser, OptionGroup, option
from codec.cli import run as run_command
from codec.errors import InputError, no_file
from codec.sample import to_use


@dataclass(frozen=True)
class PushOptions(OptionGroup):
    checkpoint: str = option("", "checkpoint to upload, or 'sample'", metavar="FILE", rule=NOT_EMPTY, shown="required")
    hub_model_id: str = option("", "repository, created if necessary", metavar="USER/NAME", shown="required")
    hub_private: bool = option(False, "create the repository as private")
    onnx: str | None = option(None, "folder that python -m export wrote to", metavar="DIR", shown="none")
    plugin: str | None = option(
        None, "upload this Python file of the codec's own blocks too", metavar="FILE", shown="none"
    )
    recon_dir: str | None = option(
        None, "folder of reconstructions, to upload its newest grid", metavar="DIR", shown="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_repository(self.hub_model_id):
            raise InputError(f"--hub_model_id {self.hub_model_id!r} is not a repository name: give USER/NAME")
        if self.onnx and not any(Path(self.onnx).glob("*.onnx")):
            raise InputError(f"--onnx {self.onnx} holds no .onnx file: give the folder that python -m export wrote to")
        plugin = Path(self.plugin or "")
        if self.plugin and not (plugin.is_file() and plugin.suffix == ".py"):
            found = "it does not end in .py" if plugin.is_file() else no_file(plugin)
            raise InputError(f"--plugin {plugin}: {found}; give the .py file that registers the codec's blocks")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0 done, 75 the Hub cannot be reached now."""
    parser = ArgumentParser(prog="python -m codec.push", description="Uploads a checkpoint to the Hugging Face Hub.")
    parser.add_dataclass("options", PushOptions)
    options = PushOptions(**vars(parser.parse_args(argv)))
    return push(options)


def cli() -> NoReturn:
    """Entry point on the PATH: exits with main's status, or with 2 and one line for bad input."""
    run_command(main)


def push(options: PushOptions) -> int:
    """Makes the repository's files and uploads them in one commit; returns the exit status.

    Raises:
        InputError, DataError: the checkpoint is damaged, or the Hub refuses it.
    """
    from codec.hub.repository import repository_files

    places = [Path(name) if name else None for name in (options.onnx, options.plugin, options.recon_dir)]
    found = repository_files(to_use(options.checkpoint), options.hub_model_id, *places)
    for sentence in found.left_out:
        print(f"left out: {one_line(sentence)}")
    for name, content in sorted(found.files.items()):
        print(f"{len(content):>12,} bytes  {one_line(name)}")
    reason = open_repository("--hub_model_id", options.hub_model_id, "model", options.hub_private)
    reason = reason or commit(options.hub_model_id, found.files)
    if reason:
        print(f"error: the upload failed ({reason}); run the same command again to complete it", file=sys.stderr)
        return os.EX_TEMPFAIL
    print(f"{options.hub_model_id}: {len(found.files)} files")
    return 0


def commit(repo_id: str, files: dict[str, bytes]) -> str:
    """Uploads the files in one commit, except for those that the repository already has.

    Files of an earlier push that this one lacks are removed: they belong to other weights.

    Returns:
        Empty, or the reason of a failure after which a later try may succeed.

    Raises:
        InputError: the Hub refuses it.
    """
    from httpx2 import HTTPError
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from codec.hub.repository import is_ours

    api = HfApi(library_name="npu-image-codec")
    try:
        stale = [path for path in api.list_repo_files(repo_id) if is_ours(path) and path not in files]
        api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path, is_folder=False) for path in stale),
                *(CommitOperationAdd(path, content) for path, content in files.items()),
            ],
            commit_message="Checkpoint and record",
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # ValueError: the client validates names and cards
        cause, reason = cause_of(error)
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (400, 401, 403, 404, 413, 422) or (status is None and isinstance(cause, ValueError)):
            raise InputError(f"the Hub refuses the upload to {repo_id}: {reason}") from error
        return reason
    return ""


if __name__ == "__main__":
    cli()
