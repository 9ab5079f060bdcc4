"""The model card: what a checkpoint is, where it comes from, how good it is, and how to use and make it again."""

import json
from pathlib import Path
from typing import Any

LIBRARY = "npu-image-codec"
TAGS = ["image-compression", "learned-image-compression", "compressai", "npu"]
FIGURES = {
    "psnr": ("PSNR", "{:.2f} dB"),
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "bpp_estimated": ("bits per pixel, by the likelihoods", "{:.4f}"),
    "bpp": ("bits per pixel, of real files", "{:.4f}"),
    "rd": ("rate-distortion loss", "{:.4f}"),
}
PARTS = {"g_a": "encoder `g_a`", "g_s": "decoder `g_s`"}
MEANINGS = {
    "model.safetensors": "weights and CDF tables; its metadata holds all of `config.json`",
    "entropy_tables.bin": "CDF tables and medians for a host without torch (`codec.bitstream.tables.read_tables`)",
    "config.json": "architecture, options of the run, figures, versions",
    "config.yaml": "the options, for `train_accel.py --config`",
    "metrics.jsonl": "figures of every step and evaluation",
    "summary.json": "how the run ended, with which code",
    "onnx/": "exported graphs, and the tables that a host needs for entropy coding",
}


def model_card(repo_id: str, header: dict[str, Any], files: list[str], command: str, plugin: str = "") -> str:
    """The card in Markdown with its YAML head.

    Args:
        repo_id: USER/NAME.
        header: `architecture`, `options`, `metrics`, `step`, `versions` and `dataset` of the checkpoint.
        files: what else the repository holds.
        command: the recipe as one command; empty where it is not known.
        plugin: which of the files holds the codec's own blocks; empty where it has none.
    """
    widths = "N={N}, M={M}".format(**header["architecture"])
    sections = {
        "Figures": _figures(header),
        "Rate-distortion curve": _picture(files, "rd.png", "rate-distortion curve"),
        "Reconstructions": _picture(files, "reconstructions.png", "originals left, reconstructions right"),
        "Use": _use(repo_id, files, plugin),
        "What was replaced, what was quantized": _replaced(header),
        "Training": _training(header, command),
        "Course of the training": _picture(files, "curves.png", "loss, rate, PSNR and learning rate over the steps"),
        "Files": _files(files, plugin),
        "Licence": _licence(header["options"])[1],
    }
    introduction = (
        f"# {repo_id.rpartition('/')[2]}\n\nA learned image codec for NPUs: CompressAI's `bmshj2018_factorized` "
        f"({widths}) with {_in_short(header)}, trained with npu-image-codec."
    )
    written = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return f"---\n{_head(repo_id, header, files)}\n---\n\n" + "\n\n".join([introduction, *written]) + "\n"


def _head(repo_id: str, header: dict[str, Any], files: list[str]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = header["dataset"]
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
    head: str = ModelCardData(
        license=_licence(header["options"])[0],
        library_name=LIBRARY,
        pipeline_tag="image-to-image",
        tags=[*TAGS, *(["onnx"] if any(name.endswith(".onnx") for name in files) else []), *blocks],
        datasets=[dataset] if dataset else None,
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()
    return head.strip()


def _in_short(header: dict[str, Any]) -> str:
    parts = header["architecture"]
    new = [f"{parts[part]['name']} in the {words}" for part, words in PARTS.items() if parts[part]["name"] != "gdn"]
    return f"its GDN layers replaced ({', '.join(new)})" if new else "its GDN layers kept"


def _figures(header: dict[str, Any]) -> str:
    rows = [
        f"| {FIGURES[name][0]} | {FIGURES[name][1].format(value)} |"
        for name, value in header["metrics"].items()
        if name in FIGURES
    ]
    if not rows:
        return f"After {header['step']:,} steps; this checkpoint was not evaluated."
    table = "\n".join(["| figure | value |", "| --- | --- |", *rows])
    return f"On the validation crops, averaged over pictures, after {header['step']:,} optimizer steps:\n\n{table}"


def _picture(files: list[str], name: str, words: str) -> str:
    return f"![{words}]({name})" if name in files else ""


def _use(repo_id: str, files: list[str], plugin: str) -> str:
    before = ["import codec", ""]
    if plugin:
        before = [
            "from huggingface_hub import hf_hub_download",
            "",
            "import codec.blocks",
            "",
            "# The codec has a block of its own: code, to be read before it runs.",
            f'codec.blocks.load_plugin(hf_hub_download("{repo_id}", "{plugin}"))',
        ]
    lines = [
        "```python",
        *before,
        f'model = codec.from_pretrained("{repo_id}")  # revision=, cache_dir=, local_files_only=',
        'x_hat = model(x)["x_hat"]                    # x: float [B, 3, H, W] in [0, 1], H and W multiples of 16',
        "```",
        "",
        "```sh",
        " ".join(["hf download", repo_id, "model.safetensors", *([plugin] if plugin else []), "--local-dir ."]),
        "python -m codec.evaluate --images kodak/ --checkpoint model.safetensors"
        + (f" --plugin {plugin}" if plugin else ""),
        "```",
    ]
    if any(name.endswith(".onnx") for name in files):
        lines += ["", f"The ONNX files run without torch: `hf download {repo_id} --include 'onnx/*' --local-dir .`"]
    return "\n".join(lines)


def _replaced(header: dict[str, Any]) -> str:
    lines = []
    for part, words in PARTS.items():
        block = header["architecture"][part]
        other = "dec_" if part == "g_a" else "enc_"
        given = {name: value for name, value in block["options"].items() if not name.startswith(other)}
        options = ", ".join(f"{name} {json.dumps(value)}" for name, value in given.items())
        what = "GDN kept" if block["name"] == "gdn" else f"GDN replaced by `{block['name']}`"
        lines.append(f"- {words}: {what}" + (f" ({options})" if options else ""))
    quantization = header["architecture"].get("quantization")
    if quantization:
        scales = "a scale for each output channel" if quantization["w_per_channel"] else "one scale for each tensor"
        lines.append(
            f"- quantization: {quantization['scope']}, phase {quantization['phase']}: weights int8 with {scales}, "
            "activations uint8"
        )
    else:
        lines.append("- quantization: none, float weights")
    return "\n".join(lines)


def _training(header: dict[str, Any], command: str) -> str:
    options = header["options"]
    if not options:
        return ""
    start = "random weights"
    if options["pretrained"]:
        start = f"CompressAI's `bmshj2018_factorized`, quality {options['quality']} (MSE)"
    if options["init_checkpoint"]:
        start = f"`{Path(options['init_checkpoint']).name}`"
    rows = {
        "base model": start,
        "data": f"`{_data(header)}`, crops of {options['input_size']} pixels",
        "loss": options["loss_type"],
        "what trained": options["train_scope"],
        "versions": ", ".join(f"{name} {number}" for name, number in header["versions"].items()),
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])
    return table + (f"\n\n```sh\n{_wrapped(command)}\n```" if command else "")


def _wrapped(command: str) -> str:
    """The command over lines of a page's width, broken before options."""
    lines = [""]
    for word in command.replace(" --", "\n--").split("\n"):
        if len(lines[-1]) + len(word) > 90:
            lines.append("   ")
        lines[-1] += f" {word}"
    return " \\\n".join(lines).strip()


def _files(files: list[str], plugin: str) -> str:
    meanings = MEANINGS | ({plugin: "the codec's own blocks, for `codec.blocks.load_plugin`"} if plugin else {})
    return "\n".join(
        f"- `{place}`: {words}" for place, words in meanings.items() if any(name.startswith(place) for name in files)
    )


def _licence(options: dict[str, Any]) -> tuple[str | None, str]:
    """The Hub's name of the licence where it is sure, and what to say of it."""
    if options.get("pretrained"):
        return "bsd-3-clause-clear", "The weights derive from CompressAI's, under the BSD 3-Clause Clear License."
    if options.get("init_checkpoint"):
        return None, "That of the checkpoint that the training started from."
    return "apache-2.0", "Apache-2.0."


def _data(header: dict[str, Any]) -> str:
    """The dataset as strangers may read it: its name on the Hub, or the last part of its path."""
    return header["dataset"] or Path(header["options"].get("coco_dir", "")).name or "a folder of its trainer"
