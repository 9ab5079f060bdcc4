"""The model card: what a checkpoint is, where it comes from, how good it is, how to use it and how to train it again.

`card.md` is the template. Metadata may come from a stranger, so `md` or `code` escapes every text in them.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from coco224.repository import is_repository
from codec.sample import FILES, SAMPLE

LIBRARY = "npu-image-codec"
TAGS = ["image-compression", "learned-image-compression", "compressai", "npu"]
FIGURES = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "bpp_estimated": ("bits per pixel, from the likelihoods", "{:.4f}"),
    "bpp": ("bits per pixel, of real files", "{:.4f}"),
    "rd": ("rate-distortion loss", "{:.4f}"),
}
PARTS = {"g_a": "encoder `g_a`", "g_s": "decoder `g_s`"}
PICTURES_ABOVE = (
    ("Rate-distortion curve", "rd.png", "rate-distortion curve"),
    ("Reconstructions", "reconstructions.png", "originals left, reconstructions right"),
)
PICTURES_BELOW = (
    ("Course of the training", "curves.png", "loss, rate, PSNR and learning rate over the steps"),
)  # fmt: skip
MEANINGS = {
    "model.safetensors": "weights and CDF tables; its metadata holds all of `config.json`",
    "entropy_tables.bin": "entropy tables for a host without torch (`codec.bitstream.tables.read_tables`)",
    "config.json": "architecture, options of the run, figures, versions",
    "config.yaml": "the options, for `train_accel.py --config`",
    "metrics.jsonl": "figures of every step and evaluation",
    "summary.json": "how the run ended, with which code",
    "onnx/": "exported graphs, and the tables that a host needs for entropy coding",
}


def model_card(repo_id: str, header: dict[str, Any], files: list[str], command: str, plugin: str = "") -> str:
    """The card in Markdown with its YAML header.

    Args:
        repo_id: USER/NAME.
        header: `architecture`, `options`, `metrics`, `step`, `versions` and `dataset` of the checkpoint.
        files: the other files of the repository.
        command: the recipe as one command; empty if it is not known.
        plugin: the file that contains the codec's own blocks; empty if there is none.
    """
    from huggingface_hub import ModelCard

    meanings = MEANINGS | ({plugin: "the codec's own blocks, for `codec.blocks.load_plugin`"} if plugin else {})
    card = ModelCard.from_template(
        _head(repo_id, header, files),
        template_path=str(Path(__file__).parent / "card.md"),
        repo_id=code(repo_id),
        title=md(repo_id.rpartition("/")[2]),
        architecture=header["architecture"],
        in_short=_in_short(header),
        step=header["step"],
        figures=[(FIGURES[n][0], FIGURES[n][1].format(v)) for n, v in header["metrics"].items() if n in FIGURES],
        pictures_above=[each for each in PICTURES_ABOVE if each[1] in files],
        pictures_below=[each for each in PICTURES_BELOW if each[1] in files],
        blocks=[(words, *_block(header, part)) for part, words in PARTS.items()],
        training=_training(header),
        command=_wrapped(code(command)),
        files=[(place, words) for place, words in meanings.items() if any(name.startswith(place) for name in files)],
        licence=_licence(header["options"])[1],
        onnx=any(name.endswith(".onnx") for name in files),
        plugin=plugin,
        md=md,
        code=code,
        quoted=json.dumps,
        shell=shlex.quote,
    )
    content: str = card.content
    return content.rstrip() + "\n"


def md(text: object) -> str:
    """A text as one line of Markdown, which cannot add HTML, links or table cells.

    Plain words and numbers stay as they are. All else is in backticks: escapes would not do, because GitHub and the Hub
    make links from the text that they show, like www.example.org, @name or #1.
    """
    if re.fullmatch(r"([\w ,+-]|\.(?![^\W\d]))*", str(text)):
        return str(text)
    cleaned = code(text).strip()
    return f"`{cleaned}`" if cleaned else ""


def code(text: object) -> str:
    """Cleans a text for one line within backticks: it cannot end them. <, > and | are removed; no name needs them."""
    return "".join(c for c in str(text) if c.isprintable() and c not in "`|<>")


def _head(repo_id: str, header: dict[str, Any], files: list[str]) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = _hub_dataset(header)
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="Image compression",
            dataset_type=dataset or "imagefolder",
            dataset_name=f"{_data(header)}, validation",
            metric_type=name,
            metric_name=FIGURES[name][0],
            metric_value=round(value, 4),
        )
        for name, value in header["metrics"].items()
        if name in FIGURES
    ]
    blocks = sorted({header["architecture"][part]["name"] for part in PARTS} - {"gdn"})
    return ModelCardData(
        license=_licence(header["options"])[0],
        library_name=LIBRARY,
        pipeline_tag="image-to-image",
        tags=[*TAGS, *(["onnx"] if any(name.endswith(".onnx") for name in files) else []), *map(code, blocks)],
        datasets=[dataset] if dataset else None,
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _in_short(header: dict[str, Any]) -> str:
    parts = header["architecture"]
    new = [f"{md(parts[part]['name'])} in the {words}" for part, words in PARTS.items() if parts[part]["name"] != "gdn"]
    return f"its GDN layers replaced ({', '.join(new)})" if new else "its GDN layers kept"


def _block(header: dict[str, Any], part: str) -> tuple[str, str]:
    """The name of a transform's block, and its options for this transform."""
    block = header["architecture"][part]
    other = "dec_" if part == "g_a" else "enc_"
    given = {name: value for name, value in block["options"].items() if not name.startswith(other)}
    return block["name"], ", ".join(f"{name} {json.dumps(value)}" for name, value in given.items())


def _training(header: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table: the weights that training started from, the data and the settings."""
    options = header["options"]
    if not options:
        return []
    start = "random weights"
    if options.get("pretrained"):
        start = f"CompressAI's `{code(header['architecture']['arch'])}`, quality {md(options.get('quality'))} (MSE)"
    if options.get("init_checkpoint"):
        start = f"`{code(Path(str(options['init_checkpoint'])).name)}`"
    versions = ", ".join(f"{md(name)} {md(number)}" for name, number in header["versions"].items())
    return [
        ("base model", start),
        ("data", f"`{code(_data(header))}`, crops of {md(options.get('input_size'))} pixels"),
        ("loss", md(options.get("loss_type"))),
        ("what trained", md(options.get("train_scope"))),
        ("versions", versions),
    ]


def _wrapped(command: str) -> str:
    """The command in lines of the page's width, broken before options."""
    lines = [""]
    for word in command.replace(" --", "\n--").split("\n"):
        if len(lines[-1]) + len(word) > 90:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines).strip()


def _licence(options: dict[str, Any]) -> tuple[str | None, str]:
    """The Hub's name of the licence, or None if it is not known, and a sentence about it."""
    if options.get("pretrained"):
        return "bsd-3-clause-clear", "The weights derive from CompressAI's, under the BSD 3-Clause Clear License."
    if options.get("init_checkpoint") and options["init_checkpoint"] not in (SAMPLE, *FILES):
        return None, "The licence of the checkpoint that the training started from."
    return "apache-2.0", "Apache-2.0."


def _hub_dataset(header: dict[str, Any]) -> str:
    return header["dataset"] if is_repository(header["dataset"]) else ""


def _data(header: dict[str, Any]) -> str:
    """The dataset's public name: its name on the Hub, or the last part of its path."""
    folder = code(Path(str(header["options"].get("coco_dir", ""))).name)
    return _hub_dataset(header) or folder or "a folder of its trainer"
