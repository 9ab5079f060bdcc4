"""`python docs/make_options.py`: writes docs/options.md from each command's --help."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "options.md"

SECTIONS = {
    "The demo": ("-m", "codec_demo"),
    "Training": ("train_accel.py",),
    "From a recipe to a device": ("-m", "codec_pipeline"),
    "Preparing data": ("-m", "coco224.prepare"),
    "Evaluation": ("-m", "codec.evaluate"),
    "Compressing": ("-m", "codec.compress"),
    "Decompressing": ("-m", "codec.decompress"),
    "Export": ("-m", "export"),
    "The runtime": ("-m", "export.runtime"),
    "The coder in C": ("-m", "export.device"),
    "The page for browsers": ("-m", "export.web"),
    "The report of chips": ("-m", "export.report"),
    "The compilers": ("-m", "export.npu"),
    "Uploading": ("-m", "codec.push"),
}

INTRODUCTION = """\
# Every option of every command

Written by `make docs` from each command's `--help`; do not edit it by hand.

Booleans are `true` or `false`; a boolean option without a value means true. The default is in square brackets. In
training, `--config FILE.yaml` loads options, and what you type wins over the file.
"""


def page() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *(section(title, words) for title, words in SECTIONS.items())])


def section(title: str, words: tuple[str, ...]) -> str:
    """A command's heading and the tables of its options."""
    help = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    command = " ".join(("python", *words))
    return f"## {title}\n\n`{command}`\n{tables(help.stdout)}"


def tables(text: str) -> str:
    """The options of a --help in Markdown, a table for each of its groups."""
    lines: list[str] = []
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            name = f"{heading[1][0].upper()}{heading[1][1:]}"
            lines += ["", *([] if name == "Options" else [f"**{name}**", ""]), "| option | meaning |", "| --- | --- |"]
        elif (words := re.fullmatch(r"  (\S.*?)  +(\S.*)", line)) and not words[1].startswith("-h"):
            name = words[1].partition(" ")[0] if words[1].startswith("--") else words[1]
            lines.append(f"| `{name}` | {words[2]} |".replace("*", "\\*"))
    return re.sub(r"\n\| option \| meaning \|\n\| --- \| --- \|\n(?=\n|$)", "", "\n".join([*lines, ""]))


if __name__ == "__main__":
    PAGE.write_text(page())
