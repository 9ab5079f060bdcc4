"""What codec.compress and codec.decompress share beside `codec.convert`: options, and the codec of a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codec.cli import ArgumentParser, OptionGroup, at_least, option
from codec.convert import Conversion, convert
from codec.errors import InputError
from codec.sample import to_use

if TYPE_CHECKING:
    from codec.files import FileCodec


@dataclass(frozen=True)
class FileOptions(OptionGroup):
    checkpoint: str = option("", "checkpoint, ours or CompressAI's, or 'sample'", metavar="FILE", shown="required")
    plugin: str | None = option(None, "Python file of the blocks that the codec uses", metavar="FILE", shown="none")
    num_proc: int = option(1, "processes", rule=at_least(1))
    overwrite: bool = option(False, "replace files that exist")

    def inputs(self) -> list[Path]:
        """The checkpoint and the plugin."""
        if not self.checkpoint:
            raise InputError("--checkpoint is required: the file of the codec")
        return [to_use(self.checkpoint), *([Path(self.plugin)] if self.plugin else [])]

    def deciding(self) -> list[str]:
        """Nothing else."""
        return []


def open_codec(options: FileOptions, threads: int | None) -> "FileCodec":
    """The codec of the options."""
    from codec.files import open_file_codec

    return open_file_codec(options.checkpoint, options.plugin, threads)


def run_conversion(
    conversion: Conversion, options: type[FileOptions], description: str, argv: Sequence[str] | None
) -> int:
    """Runs a command; returns its exit status.

    Args:
        options: the class of its options.
        description: for its --help.

    Raises:
        InputError: the options cannot work, and nothing was written.
        SomeFailed: some files failed, and all others are written.
    """
    parser = ArgumentParser(
        prog=f"python -m {conversion.name}", usage="%(prog)s SOURCE TARGET [options]", description=description
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a file, or a folder with its subfolders")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the file, or the folder, to write")
    parser.add_dataclass("options", options)
    given = vars(parser.parse_args(argv))
    source, target = given.pop("source"), given.pop("target")
    convert(conversion, source, target, options(**given))
    return 0
