"""Every command in the README and in docs/ runs as written, but for how long it trains and how wide the codec is.

Each page is followed from top to bottom in a folder of its own, its Python too. Training is shortened by `--max_steps`
and starts from a narrow GDN codec where the page would download the zoo's weights; QAT's phases shrink with the run.
"""

import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import USER, Hub
from PIL import Image
from programs import ROOT, train

from codec.checkpoint import Description, save_codec
from codec.description.architecture import ARCHITECTURES, DEFAULT_ARCH, Architecture
from codec.network.architectures import new_codec
from codec.network.tables import with_tables

PAGES = [
    path.relative_to(ROOT)
    for path in (*sorted(ROOT.glob("README*.md")), ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
]
ELSEWHERE = {
    "make": "the test suite, the demo and the benchmarks cannot run inside a test",
    "pip": "an installation",
    ". .venv/": "changes the shell that it is typed in",
    "sbatch": "tests/slurm runs the batch scripts under a real SLURM",
    "SAVE_ROOT=": "the same, with a variable",
    **dict.fromkeys(("squeue", "scontrol", "scancel"), "asks a running SLURM"),
    "tail -f": "does not end",
    "hf auth login": "asks for a token",
    "python -m benchmarks": "measures for minutes",
    "accelerate launch -m codec.evaluate": "tests/codec/test_evaluate.py runs it on two ranks",
    "python -m export.web": "tests/export/test_web.py runs it where onnxruntime-web is installed",
    "python -m http.server": "does not end",
    "python -m export.npu": "tests/export/test_npu.py runs the compilers where they are installed",
    "codec-pipeline": "tests/test_codec_pipeline.py runs it",
}
"""How a command begins that is not run here, and why."""

ALWAYS = (("README.md", "bmshj2018_hyperprior"), ("docs/export.md", "mbt2018_mean"))
FOLLOWED = [
    pytest.param(
        page,
        arch,
        id=f"{page}-{arch}",
        marks=[] if arch == DEFAULT_ARCH or (str(page), arch) in ALWAYS else pytest.mark.pages,
    )
    for page in PAGES
    for arch in ARCHITECTURES
]
"""The pages, each with a codec of each architecture; most of them run only with `pytest -m pages`."""

AFTER_TRAINING = ("docs/device.md", "docs/export.md", "docs/npu.md")
"""Pages that begin with a trained checkpoint."""

FOLDERS = "accelerate_configs|benchmarks|coco224|codec|docs|export|recipes|tests|training"
"""Of the repository: what begins so is the name of a file or a module."""

SHORT = ["--max_steps", "2", "--batch_size", "4", "--recon_count", "2"]
ZOO = ["--init_checkpoint", "zoo.safetensors"]
PHASES = ["--qat_calib_steps", "1", "--qat_freeze_after", "2", "--max_steps", "3"]


def steps(page: Path) -> Iterator[list[str] | str]:
    """The words of each command in the page's shell blocks, and each Python block, top to bottom."""
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        if language == "python":
            yield block
        else:
            lines = block.replace("\\\n", " ").splitlines()
            yield from filter(None, (shlex.split(line, comments=True) for line in lines))


def is_elsewhere(words: list[str]) -> bool:
    return " ".join(words).startswith(tuple(ELSEWHERE))


@pytest.fixture
def desk(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coco224: Path, photographs: Path, hub: Hub
) -> Path:
    """A user's folder: the repository's files, a COCO root, a dataset, pictures to evaluate on, a photograph; a Hub."""
    for name in ("recipes", "accelerate_configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    block = re.search(r"^```python\n(# my_blocks.py\n.*?)^```", (ROOT / "docs/blocks.md").read_text(), re.M | re.S)
    assert block
    (tmp_path / "my_blocks.py").write_text(block[1])
    torch.manual_seed(0)
    for name in ("zoo", *(f"{runs}/q{quality}/best_rd" for runs in ("runs", "runs_gdn") for quality in (1, 2))):
        codec = with_tables(new_codec(Architecture(8, 12, arch=arch)))
        save_codec(tmp_path / f"{name}.safetensors", codec, Description())
    for split in ("coco2017/train2017", "coco2017/val2017", "kodak"):
        (tmp_path / split).mkdir(parents=True)
    with Image.open(photographs / "chelsea.png") as cat, Image.open(photographs / "coffee.png") as cup:
        for i in range(8):
            cat.convert("RGB").rotate(10 * i).save(tmp_path / f"coco2017/train2017/{i:012}.jpg")
        cup.convert("RGB").save(tmp_path / "coco2017/val2017/000000000139.jpg")
        cup.convert("RGB").crop((100, 100, 356, 292)).save(tmp_path / "kodak/kodim01.png")
        cat.convert("RGB").crop((100, 50, 340, 246)).save(tmp_path / "kodak/kodim02.png")
    shutil.copy(tmp_path / "kodak/kodim01.png", tmp_path / "photo.png")
    for name, there in (("photos", "kodak"), ("pictures", "kodak"), ("mine", "coco2017")):
        (tmp_path / name).symlink_to(there)
    shutil.copytree(coco224, tmp_path / "coco224")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(words: list[str], desk: Path) -> None:
    """Does what a command says, inside this process."""
    words = [word.replace("/path/to/", f"{desk}/").replace("USER/", f"{USER}/") for word in words]
    words = [each for word in words for each in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if "train_accel.py" in words:
        options = words[words.index("train_accel.py") + 1 :]
        if "--save_dir" not in options or "./checkpoints" in options:  # a page's recipes are alternatives
            shutil.rmtree("checkpoints", ignore_errors=True)
        options += SHORT + ([] if "--init_checkpoint" in options else ZOO)
        if any("qat" in word for word in options):
            options += PHASES
        assert train(*options) == 0
        return
    words = ["python", *words[2:]] if words[:2] == ["accelerate", "launch"] else words
    assert words[:2] == ["python", "-m"], f"{words[0]}: run it here, or say in ELSEWHERE why not"
    for name in ("a", "b", "c"):
        if f"{name}.safetensors" in words:
            shutil.copy("zoo.safetensors", f"{name}.safetensors")
    if "all_rates.safetensors" in words:
        codec = new_codec(Architecture(8, 12))
        codec.add_rates(3, octaves=2.0)
        save_codec(Path("all_rates.safetensors"), with_tables(codec), Description())
    module = import_module(words[2] if words[2] != "export" else "export.__main__")
    out = Path(words[words.index("--out_dir") + 1]) if "--out_dir" in words else None
    if out:
        shutil.rmtree(out, ignore_errors=True)
    assert not module.main(words[3:])


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page can end with."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        there = ROOT / page.parent / path if path else ROOT / page
        assert there.exists(), target
        assert not heading or heading in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_and_module_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`([\w./*]+)", re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S))
    for name in named:
        if re.match(rf"(?:{FOLDERS})/", name):
            assert list(ROOT.glob(name)), name
        elif re.match(rf"(?:{FOLDERS})\.\w", name):
            pkgutil.resolve_name(name)


@pytest.mark.parametrize(("page", "arch"), FOLLOWED)
def test_a_page_can_be_followed(page: Path, arch: str, desk: Path, hub: Hub) -> None:
    if str(page) in AFTER_TRAINING:
        Path("checkpoints").mkdir()
        shutil.copy("zoo.safetensors", "checkpoints/last.safetensors")
    found: dict[str, object] = {"Path": Path, "pixels": np.asarray(Image.open("photo.png"))}
    for step in steps(page):
        if isinstance(step, list):
            if not is_elsewhere(step):
                follow(step, desk)
        elif not step.startswith("# my_blocks.py"):  # which is a file: the commands load it
            model = hub.repositories.get(f"models/{USER}/NAME")
            commit = model.commits[-1][0] if model else ""
            code = step.replace("/path/to/", f"{desk}/").replace("USER/", f"{USER}/")
            exec(code.replace("COMMIT", commit), found)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_command_hides_outside_the_blocks_that_are_followed(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    begin = "|".join([*map(re.escape, ELSEWHERE), r"python3?\b", r"accelerate\b", r"codec-\w", "hf ", "source "])
    assert not re.findall(rf"^(?: {{4}}|\t)\s*\$?\s*(?:\S+/)?(?:{begin}).*", prose, re.MULTILINE)


def test_what_is_not_run_here_is_on_a_page() -> None:
    written = [" ".join(step) for page in PAGES for step in steps(page) if isinstance(step, list)]
    assert [start for start in ELSEWHERE if not any(line.startswith(start) for line in written)] == []
