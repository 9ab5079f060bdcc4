"""A learned image codec whose activations an NPU can run. Importing it is fast: torch is loaded where it is used."""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec.checkpoint.pretrained import PretrainedCodec

# CompressAI scripts two functions at import; torch 2.14 would warn about it whenever a command starts.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


def from_pretrained(name: str, revision: str | None = None, **where: Any) -> "PretrainedCodec":
    """A codec from the Hugging Face Hub, a folder that `save_pretrained` wrote, or a checkpoint file; in eval mode.

    Args:
        name: USER/NAME, or a path; an existing path has priority.
        revision: branch, tag or commit of the repository.
        where: `cache_dir`, `token`, `local_files_only`, `force_download`, as in `huggingface_hub`.

    Raises:
        InputError: the file is damaged, or uses a block that is not registered (`codec.blocks.load_plugin`).
        OSError: the Hub has no such repository, or it cannot be reached and the cache has no copy.
    """
    from codec.checkpoint.pretrained import PretrainedCodec

    return PretrainedCodec.from_pretrained(name, revision=revision, **where)
