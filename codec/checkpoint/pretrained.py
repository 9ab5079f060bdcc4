"""A codec with the Hugging Face Hub's methods `from_pretrained`, `save_pretrained` and `push_to_hub`."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, hf_hub_download

from codec.checkpoint.ours import load_codec, save_codec
from codec.description.file import Description
from codec.hub.repository import WEIGHTS, repository_files
from codec.network.codec import Codec
from codec.network.modules import mix_in
from codec.network.tables import with_tables
from codec.sample import to_start_from


class PretrainedCodec(Codec, ModelHubMixin):
    """What `from_pretrained` adds to a codec of any architecture: it can be uploaded to the Hub.

    Attributes:
        description: the description in the codec's checkpoint.
    """

    description: Description | None = None

    def _save_pretrained(self, save_directory: Path) -> None:
        save_codec(save_directory / WEIGHTS, with_tables(self), self.description or Description())
        files = repository_files(save_directory / WEIGHTS, "/".join(save_directory.parts[-2:])).files
        for name, content in files.items():
            if name != "README.md" or not (save_directory / name).exists():
                (save_directory / name).write_bytes(content)

    @classmethod
    def from_pretrained(cls, name: str | Path, **where: Any) -> "PretrainedCodec":  # type: ignore[override]
        """A codec in eval mode: from the Hub, a folder of `save_pretrained`, a checkpoint file, or an embedded one.

        The Hub's method would read `config.json` too, but not the objects in its objects. The checkpoint has them all.

        Args:
            where: `revision`, `cache_dir`, `force_download`, `local_files_only` and `token` of `hf_hub_download`.
        """
        file = to_start_from(name)
        if file.is_file():
            return _load(file)
        return _load(file / WEIGHTS if file.is_dir() else Path(hf_hub_download(str(name), WEIGHTS, **where)))


def _load(path: Path) -> PretrainedCodec:
    codec, description = load_codec(path)
    mix_in(codec, PretrainedCodec)
    assert isinstance(codec, PretrainedCodec)
    codec.description = description
    return codec
