"""README, --help and code agree."""

import re

import pytest
import yaml
from programs import ROOT, run

from training.options import parse

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()


def table_of(text: str) -> list[str]:
    """The README's rows of a command's --help."""
    rows = []
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            rows += [f"**{heading[1][0].upper()}{heading[1][1:]}**"]
        elif words := re.fullmatch(r"  --(\w+) (?:\S+ )?\s*(\S.*)", line):
            rows.append(f"| `--{words[1]}` | {words[2]} |".replace("*", "\\*"))
    return [row for row in rows if row != "**Options**"]


def test_every_option_stands_in_the_readme_with_its_help_and_default() -> None:
    listed = README.partition("## Every option of training")[2].partition("## Layout")[0]
    rows = [line for line in listed.splitlines() if line.startswith(("| `--", "**"))]
    assert rows == table_of(run("train_accel.py", "--help").stdout)


def test_every_option_of_the_export_does_too() -> None:
    listed = README.partition("## Export")[2].partition("\n## ")[0]
    rows = [line for line in listed.splitlines() if line.startswith("| `--")]
    assert rows == [row for row in table_of(run("-m", "export", "--help").stdout) if row.startswith("|")]


def test_the_page_of_chips_has_every_option_of_its_commands() -> None:
    page = (ROOT / "docs" / "npu.md").read_text()
    for module in ("export.report", "export.npu"):
        for row in table_of(run("-m", module, "--help").stdout):
            assert row.replace("[FILE ...]  ", "") in page or row.startswith("**"), row


def test_every_recipe_is_in_the_readme_and_parses() -> None:
    for recipe in (ROOT / "recipes").rglob("*.yaml"):
        options = parse(["--config", str(recipe), "--coco_dir", "coco224"])
        assert yaml.safe_load(recipe.read_text()).items() <= (options.flat() | {"coco_dir": "demo/coco224"}).items()
        named = "recipes/rd_curve/" if recipe.parent.name == "rd_curve" else f"recipes/{recipe.name}"
        assert recipe.name == "demo.yaml" or named in README


def test_every_place_of_the_layout_exists() -> None:
    layout = README.partition("## Layout")[2]
    places = re.findall(r"^    (\S+)  ", layout, flags=re.MULTILINE)
    assert len(places) >= 7
    for place in places:
        assert (ROOT / place).exists(), place


def test_every_option_of_pushing_stands_in_its_page_with_its_help_and_default() -> None:
    page = (ROOT / "docs" / "hub.md").read_text()
    for row in table_of(run("-m", "codec.push", "--help").stdout):
        assert row in page, row
