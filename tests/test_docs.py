"""Every command in the README and in docs/ runs as written, but for how long it trains and how wide the codec is.

Each page is followed from top to bottom in a folder of its own. Training is shortened by `--max_steps` and starts from
a narrow GDN codec where the page would download the zoo's weights; QAT's phases shrink with the run.
"""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hub_server import USER, Hub
from PIL import Image
from programs import ROOT, train

from codec.checkpoint import Description, save_codec
from codec.entropy import with_tables
from codec.model import Architecture, Codec

PAGES = [path.relative_to(ROOT) for path in (*sorted(ROOT.glob("README*.md")), *sorted(ROOT.glob("docs/*.md")))]
ELSEWHERE = {
    "make": "the test suite, the demo and the benchmarks cannot run inside a test",
    "pip": "an installation",
    ". ": "activates an environment",
    "sbatch": "tests/slurm runs the batch scripts under a real SLURM",
    "python -m benchmarks": "measures for minutes",
    "accelerate launch -m codec.evaluate": "tests/codec/test_evaluate.py runs it on two ranks",
    "python -m export.npu": "needs the compilers' own environment: tests/export runs it there",
    ".venv-npu/": "tests/export/test_npu.py runs the compilers where they are installed",
}
"""How a command begins that is not run here, and why."""

SHORT = ["--max_steps", "2", "--batch_size", "4", "--recon_count", "2"]
ZOO = ["--init_checkpoint", "zoo.safetensors"]
PHASES = ["--qat_calib_steps", "1", "--qat_freeze_after", "2", "--max_steps", "3"]


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's shell blocks, top to bottom."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coco224: Path, photographs: Path, hub: Hub) -> Path:
    """A user's folder: the repository's files, a COCO root, a dataset, pictures to evaluate on, a photograph; a Hub."""
    for name in ("recipes", "accelerate_configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    block = re.search(r"^```python\n(# my_blocks.py\n.*?)^```", (ROOT / "docs/blocks.md").read_text(), re.M | re.S)
    assert block
    (tmp_path / "my_blocks.py").write_text(block[1])
    torch.manual_seed(0)
    for name in ("zoo", *(f"{runs}/q{quality}/best_rd" for runs in ("runs", "runs_gdn") for quality in (1, 2))):
        save_codec(tmp_path / f"{name}.safetensors", with_tables(Codec(Architecture(8, 12))), Description())
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
    module = import_module(words[2] if words[2] != "export" else "export.__main__")
    out = Path(words[words.index("--out_dir") + 1]) if "--out_dir" in words else None
    if out:
        shutil.rmtree(out, ignore_errors=True)
    assert not module.main(words[3:])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_can_be_followed(page: Path, desk: Path) -> None:
    for words in commands(page):
        if not " ".join(words).startswith(tuple(ELSEWHERE)):
            follow(words, desk)
