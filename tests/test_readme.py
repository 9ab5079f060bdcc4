"""What scripts write into the pages is up to date: `make docs` writes it anew. And what the README lists exists."""

import re
import runpy

import pytest
import yaml
from programs import ROOT

from benchmarks import front, table
from training.options import parse

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()


def test_every_option_of_every_command_is_on_its_page_with_its_help_and_default() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["page"]()
    assert (ROOT / "docs" / "options.md").read_text() == page
    for option in ("`--act`", "`--out_dir`", "`--reference`", "`--num_proc`", "`--target`", "`SOURCE`", "`--onnx`"):
        assert f"| {option} | " in page


def test_the_page_of_benchmarks_shows_the_kept_results() -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text() == table.rendered()


def test_the_tables_of_other_pages_are_those_of_the_kept_results() -> None:
    for page in table.TABLES:
        assert table.filled(page) == page.read_text()
    study = front.kept("rd_study_cpu_long")
    for act in set(front.BLOCKS) - {"gdn"}:
        sides = front.row("rd_study_cpu_long", f"{act}: RD loss")["sides"]
        kept = [value for name, value in sides.items() if name.startswith("BD-rate")]
        assert abs(front.bd_rate(study, act) - sum(kept) / len(kept)) < 0.01


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_every_recipe_is_in_the_readme_and_parses() -> None:
    for recipe in (ROOT / "recipes").rglob("*.yaml"):
        options = parse(["--config", str(recipe), "--coco_dir", "coco224"])
        assert yaml.safe_load(recipe.read_text()).items() <= options.flat().items()
        named = "recipes/rd_curve/" if recipe.parent.name == "rd_curve" else f"recipes/{recipe.name}"
        assert named in README


def test_the_page_of_the_architecture_has_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text().partition("## Imports")[0]
    places = set(re.findall(r"^    (\S+)  ", page, flags=re.MULTILINE))
    assert [place for place in places if not (ROOT / place).exists()] == []
    packages = {path.parent for path in ROOT.glob("c*/**/__init__.py")} | {
        path.parent for path in ROOT.glob("export/*/*.py")
    }
    folders = {f"{path.relative_to(ROOT)}/" for path in packages}
    assert folders <= places
