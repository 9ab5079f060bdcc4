"""Every command's exit status and errors, and options that are dataclass fields."""

import atexit
import dataclasses
import gc
import re
from pathlib import Path
from typing import Literal

import pytest

from coco224.errors import DataError
from codec.cli import POSITIVE, ArgumentParser, OptionGroup, at_least, boolean, option, run
from codec.errors import InputError


@dataclasses.dataclass(frozen=True)
class Kettle(OptionGroup):
    litres: float = option(1.5, "how much it holds", rule=POSITIVE)
    cups: int = option(4, "how many it fills", rule=at_least(1))
    whistle: bool = option(True, "sound at 100 %")
    colour: Literal["red", "blue"] = option("red", "its paint")
    lid: bool | None = option(None, "with a lid", shown="as delivered")
    maker: str | None = option(None, "who built it")


@dataclasses.dataclass(frozen=True)
class Files(OptionGroup):
    log: str | None = option(None, "where it goes", metavar="FILE")
    title: str = option("", "any text")


def parser() -> ArgumentParser:
    made = ArgumentParser(prog="kettle", removed={"steam": "was removed: boil less"})
    made.add_dataclass("kettle", Kettle)
    return made


def given(*words: str) -> dict:
    return vars(parser().parse_args(words))


@pytest.mark.parametrize("error", [InputError("no such\n  folder: x"), DataError("no such folder: x")])
def test_bad_input_is_one_line_and_status_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: no such folder: x\n")


def test_an_error_cannot_command_the_terminal_nor_flood_it(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise InputError("--lr \x1b]0;x\a\u202e\udcff größer 圧縮 " + "9" * 100_000 + ": drop it")

    with pytest.raises(SystemExit):
        run(main)
    line = capsys.readouterr().err
    assert line.startswith(r"error: --lr \x1b]0;x\x07\u202e\udcff größer 圧縮 999")
    assert line.endswith("999: drop it\n")
    assert len(line) < 1200


@pytest.mark.parametrize(("returned", "status"), [(None, None), (0, 0), (3, 3), (75, 75)])
def test_a_command_exits_with_what_main_returns(returned: int | None, status: int | None) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: returned)
    assert ended.value.code == status  # the interpreter makes 0 of None


def test_the_end_of_a_command_searches_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    with pytest.raises(SystemExit):
        run(lambda: 0)
    assert at_exit == [gc.freeze]


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_booleans_are_true_and_false_and_a_bare_one_is_true() -> None:
    assert boolean("True") is True
    assert boolean("FALSE") is False
    assert given("--whistle", "--lid", "false") == {"whistle": True, "lid": False}
    with pytest.raises(InputError, match="--whistle: 'yes' is neither true nor false"):
        given("--whistle", "yes")


def test_the_home_folder_of_a_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    made = parser()
    made.add_dataclass("files", Files)
    made.add_argument("--kept", type=Path)
    assert vars(made.parse_args(["--log=~/l", "--title=~/p", "--kept=~/k"])) == {
        "log": "/home/ada/l", "title": "~/p", "kept": Path("/home/ada/k"),
    }  # fmt: skip


def test_only_what_was_typed_is_in_the_result() -> None:
    assert given() == {}
    assert given("--cups", "4", "--colour=blue") == {"cups": 4, "colour": "blue"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--colours", "red"], "unknown option --colours; did you mean --colour?"),
        (["--col", "red"], "unknown option --col; did you mean --colour?"),  # abbreviations are not guessed
        (["--xyz=1"], "unknown option --xyz; --help lists the options"),
        (["--steam", "5"], "--steam was removed: boil less"),
        (["--steam=5"], "--steam was removed: boil less"),
        (["tea"], "unexpected argument 'tea'; --help lists the options"),
        (["--cups", "many"], "--cups: invalid int value: 'many'"),
        (["--cups"], "--cups: expected one argument"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        given(*words)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"litres": 0.0}, "--litres 0.0: must be more than 0"),
        ({"litres": float("nan")}, "--litres nan: must be more than 0"),
        ({"litres": float("inf")}, "--litres inf: must be more than 0"),
        ({"cups": 0}, "--cups 0: must be at least 1"),
        ({"cups": 2**63}, "--cups 9223372036854775808: does not fit into 64 bits"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(values: dict, line: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        Kettle(**values)


def test_help_has_one_line_an_option_with_its_default() -> None:
    lines = parser().format_help().splitlines()
    described = {line.split()[0]: re.split(r"  +", line.strip())[1] for line in lines if "  --" in line[:4]}
    assert lines[lines.index("kettle:") + 1].startswith("  --litres")
    assert described == {
        "--litres": "how much it holds [1.5]",
        "--cups": "how many it fills [4]",
        "--whistle": "sound at 100 % [true]",
        "--colour": "its paint {red,blue} [red]",
        "--lid": "with a lid [as delivered]",
        "--maker": "who built it [none]",
    }


def test_a_mapping_is_read_like_the_command_line() -> None:
    values = {"litres": "1e-4", "cups": 3, "whistle": False, "colour": "blue", "lid": None, "maker": "-x"}
    typed = {"litres": 1e-4, "cups": 3, "whistle": False, "colour": "blue", "maker": "-x"}
    assert parser().parse_mapping(values, "k.yaml") == typed


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"cup": 3}, "k.yaml: unknown option cup; did you mean cups?"),
        ({7: 3}, "k.yaml: unknown option 7; --help lists the options"),
        ({"steam": 3}, "k.yaml: steam was removed: boil less"),
        ({"cups": 3.5}, "k.yaml: --cups: invalid int value: '3.5'"),
        ({"cups": True}, "k.yaml: --cups: invalid int value: 'true'"),
        ({"cups": [3]}, "k.yaml: cups: [3] is not one value"),
        ({"cups": None}, "k.yaml: cups: None is not one value"),
        ({"whistle": 1}, "k.yaml: --whistle: '1' is neither true nor false"),
        ({"maker": 7}, "k.yaml: maker: 7 is not text; if text is meant, quote it"),
    ],
)
def test_a_mapping_with_a_wrong_key_or_type_is_refused_with_its_source(values: dict, line: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        parser().parse_mapping(values, "k.yaml")
