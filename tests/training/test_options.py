"""The options that a user can give, how files and the command line join, and what is refused before anything loads."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from codec.blocks import registry
from codec.errors import InputError
from training.options import Options, parse

COCO = ["--coco_dir", "coco224"]
RECON = (
    "--act {act} --use_prepared true --quality 8 --epochs 10 --batch_size 16 --lr 1e-4 --alpha_l1 0.4 "
    "--recon_every 2 --recon_count 16 --save_dir ./checkpoints --recon_dir ./recon --amp true --amp_dtype bf16 "
)
ADAMW = "--local_fp32 entropy --loss_type recon --sched cosine --optimizer adamw --weight_decay 1e-4 "
ADAM = (
    "--local_fp32 entropy+decoder --loss_type rd --lambda_bpp 0.01 --sched onecycle --onecycle_pct_start 0.1 "
    "--optimizer adam "
)
GDNISH = (
    "--enc_t 2.0 --enc_kdw 3 --enc_eca true --enc_residual true --dec_k 3 --dec_gmin 0.5 --dec_gmax 2.0 "
    "--dec_residual true "
)
ENCODER = "--replace_parts encoder --train_scope replaced+hyper "
RECIPES = {
    "relu recon": RECON.format(act="relu") + ADAMW + ENCODER,
    "relu rd": RECON.format(act="relu") + ADAM + ENCODER,
    "gdnish encoder": RECON.format(act="gdnish") + ADAMW + GDNISH + ENCODER,
    "gdnish everything": RECON.format(act="gdnish")
    + ADAMW
    + GDNISH
    + "--replace_parts all --train_scope all --epochs 12",
    "own block": RECON.format(act="myact") + ADAMW + "--plugin {plugin} --replace_parts all --myact_scale 2",
}
PLUGIN = """
from dataclasses import dataclass
from torch import nn
from codec.blocks import register_activation

@register_activation("myact")
class MyAct:
    @dataclass
    class Options:
        scale: float = 1.5

    @staticmethod
    def encoder(channels, options): return nn.Identity()
    @staticmethod
    def decoder(channels, options): return nn.Identity()
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file that registers `myact`; what it registers is gone after the test."""
    file = tmp_path / "my_blocks.py"
    file.write_text(PLUGIN)
    return file


def with_file(tmp_path: Path, text: str, *words: str) -> Options:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return parse(["--config", str(file), *words])


def refusal(words: str) -> str:
    with pytest.raises(InputError) as refused:
        parse([*COCO, *words.split()])
    return str(refused.value)


def help_text(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_parse_as_written_and_load_again_from_what_they_save(
    name: str, plugin: Path, tmp_path: Path
) -> None:
    options = parse([*COCO, *RECIPES[name].format(plugin=plugin).split()])
    flat = options.flat()
    typed = ["--plugin", str(plugin)] if flat["plugin"] else []
    assert with_file(tmp_path, json.dumps(flat), *typed) == options
    assert with_file(tmp_path, yaml.safe_dump(flat), *typed) == options
    assert flat["replace_parts"] == ("encoder" if "encoder" in RECIPES[name] else "all")
    assert ("enc_t" in flat) == ("gdnish" in name)
    assert ("myact_scale" in flat) == (name == "own block")


def test_the_defaults_are_the_tables() -> None:
    assert parse(COCO).flat() == {
        "act": "relu", "replace_parts": "encoder", "train_scope": "replaced+hyper", "plugin": None, "distill_steps": 0,
        "arch": None, "rates": None, "quality": 8, "pretrained": True, "init_checkpoint": None, "klt_start": False,
        "N": None, "M": None,
        "coco_dir": "coco224", "use_prepared": True, "streaming": False, "input_size": 224, "hflip": False,
        "batch_size": 16, "grad_accum": 1, "num_workers": None,
        "loss_type": "recon", "alpha_l1": 0.4, "lambda_bpp": 0.01, "lambda_mse": 0.01,
        "epochs": 10, "max_steps": None, "lr": 1e-4, "optimizer": "adam", "weight_decay": 0.0,
        "sched": "cosine", "onecycle_pct_start": 0.1, "lr_warmup_steps": 0,
        "amp": True, "amp_dtype": "bf16", "local_fp32": "entropy", "local_fp32_custom": None,
        "max_grad_norm": 1.0, "overflow_check": True, "overflow_tol": 1e4, "overflow_patience": 10,
        "compile": None, "deterministic": True, "channels_last": None, "seed": 0,
        "eb_aux": True, "eb_aux_lr": 1e-3,
        "qat": False, "qat_scope": "encoder", "qat_exclude_entropy": True, "qat_calib_steps": 2000,
        "qat_freeze_after": 8000, "qat_act_observer": "ema", "qat_w_per_channel": True,
        "qat_disable_observer_step": -1, "qat_eval_fakequant": True,
        "save_dir": "./checkpoints", "recon_dir": "./recon", "recon_every": 2, "recon_count": 16,
        "eval_every": 1, "checkpoint_every": 500, "log_every": 10, "keep_checkpoints": 2,
        "full_disk": "continue", "resume": "auto", "overwrite": False,
        "wandb": False, "wandb_project": "npu-image-codec", "run_name": None, "wandb_log_model": "false",
        "report_to": None, "push_to_hub": False, "hub_model_id": None, "hub_private": False,
        "ddp_timeout": 3600,
    }  # fmt: skip
    assert vars(parse([*COCO, "--act", "gdnish"]).block) == {
        "enc_t": 2.0, "enc_kdw": 3, "enc_eca": True, "enc_residual": True,
        "dec_k": 3, "dec_gmin": 0.5, "dec_gmax": 2.0, "dec_residual": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--quality 0", "--quality 0: must be within 1..8"),
        ("--quality 9", "--quality 9: must be within 1..8"),
        ("--batchsize 4", "unknown option --batchsize; did you mean --batch_size?"),
        ("--enc_t 2", "--enc_t belongs to --act gdnish, not to --act relu"),
        ("--act gdn --dec_k 3", "--dec_k belongs to --act gdnish, not to --act gdn"),
        ("--act gdnish --dec_gmin 2 --dec_gmax 1", "--dec_gmin 2.0 --dec_gmax 1.0"),
        ("--act gdnish --enc_kdw 4", "--enc_kdw 4: a kernel size must be odd"),
        ("--act swish", "--act swish: no such block; known are .*; --plugin FILE.py adds your own"),
        ("--plugin missing.py", "--plugin missing.py: no such file"),
        ("--qat_scope all", "--qat_scope does nothing with --qat false: use --qat true"),
        ("--qat true --qat_calib_steps 9000", "--qat_freeze_after 8000 comes before the end of the calibration"),
        ("--qat true --qat_disable_observer_step -2", "--qat_disable_observer_step -2: must be at least -1"),
        ("--qat true --qat_act_observer mse", "--qat_act_observer: invalid choice: 'mse'"),
        ("--input_size 160", "--input_size 160 with --loss_type recon: MS-SSIM needs 161 .* use --input_size 176"),
        ("--input_size 160 --loss_type rd", "--input_size 160 with --loss_type rd: MS-SSIM needs 161"),
        ("--input_size 200", "--input_size 200: must be a multiple of 16"),
        ("--input_size 0 --loss_type mse", "--input_size 0: must be a multiple of 16"),
        ("--N 48 --M 64", "--N 48 --M 64: .* add --pretrained false"),
        ("--N 48 --pretrained false", "--N without --M"),
        ("--M 64 --pretrained false", "--M without --N"),
        ("--N 0 --M 64 --pretrained false", "--N 0: must be at least 1"),
        ("--init_checkpoint a.safetensors --pretrained true", "--init_checkpoint and --pretrained true"),
        ("--streaming true", "--streaming true with --coco_dir coco224, which is not on the Hub"),
        ("--coco_dir a/b --streaming true --num_workers 2", "--num_workers 2 with --streaming true"),
        ("--push_to_hub true", "--push_to_hub true needs --hub_model_id USER/NAME"),
        ("--hub_model_id codec", "--hub_model_id codec is not a repository name: give USER/NAME"),
        ("--wandb_log_model end", "--wandb_log_model end without --wandb true"),
        ("--local_fp32 custom", "--local_fp32 custom needs --local_fp32_custom GLOBS"),
        ("--local_fp32_custom g_s.*", "--local_fp32_custom .* needs --local_fp32 custom: add that"),
        ("--sched onecycle --lr_warmup_steps 10", "--lr_warmup_steps 10 with --sched onecycle"),
        ("--sched onecycle --onecycle_pct_start 1", "--onecycle_pct_start 1.0: .* between 0 and 1"),
        ("--sched onecycle --onecycle_pct_start 0", "--onecycle_pct_start 0.0: .* between 0 and 1"),
        ("--onecycle_pct_start 0.1", "--onecycle_pct_start does nothing with --sched cosine: use --sched onecycle"),
        ("--sched plateau --eval_every 0", "--sched plateau .* --eval_every 0"),
        ("--lambda_mse 0.01", "--lambda_mse does nothing with --loss_type recon: use --loss_type mse"),
        ("--loss_type mse --lambda_mse 0", "--lambda_mse 0.0: must be more than 0"),
        ("--alpha_l1 1.5", "--alpha_l1 1.5: is a share and must be within 0..1"),
        ("--batch_size 0", "--batch_size 0: must be at least 1"),
        ("--grad_accum 0", "--grad_accum 0: must be at least 1"),
        ("--num_workers -1", "--num_workers -1: must be 0 to 256"),
        ("--epochs -1", "--epochs -1: must be at least 1"),
        ("--max_steps 0", "--max_steps 0: must be at least 1"),
        ("--lr 0", "--lr 0.0: must be more than 0"),
        ("--lr nan", "--lr nan: must be more than 0"),
        ("--weight_decay -1", "--weight_decay -1.0: must be 0 or more"),
        ("--overflow_tol 0", "--overflow_tol 0.0: must be more than 0"),
        ("--overflow_patience 0", "--overflow_patience 0: must be at least 1"),
        ("--keep_checkpoints 1", "--keep_checkpoints 1: must be at least 2"),
        ("--seed -1", "--seed -1: must be within"),
        ("--save_dir=", "--save_dir : must not be empty"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_that_says_what_to_do(words: str, says: str) -> None:
    line = refusal(words)
    assert re.match(says, line)
    assert "\n" not in line


@pytest.mark.parametrize("words", [[], ["--coco_dir", ""]])
def test_a_dataset_is_required(words: list[str]) -> None:
    with pytest.raises(InputError, match=r"^--coco_dir is required: .*coco224\.prepare.*--use_prepared false"):
        parse(words)


def test_amp_warmup_steps_is_refused_with_what_does_its_job(tmp_path: Path) -> None:
    advice = "--amp_warmup_steps was removed: bf16 + local FP32 + LR warm-up + gradient clipping do its job"
    assert refusal("--amp_warmup_steps 5") == advice
    assert refusal("--amp_warmup_steps=5") == advice
    with pytest.raises(InputError, match=re.escape(f"recipe.yaml: {advice[2:]}")):
        with_file(tmp_path, "amp_warmup_steps: 5", *COCO)


@pytest.mark.parametrize(
    "words", ["--loss_type mse --input_size 16", "--input_size 176", "--num_workers 0 --eval_every 0 --max_grad_norm 0"]
)
def test_the_smallest_values_that_work_are_taken(words: str) -> None:
    assert parse([*COCO, *words.split()])


def test_a_checkpoint_takes_the_place_of_the_zoo(tmp_path: Path) -> None:
    assert parse([*COCO, "--init_checkpoint", "a.safetensors"]).model.pretrained is False
    typed_over_a_file = with_file(tmp_path, "pretrained: true", *COCO, "--init_checkpoint", "a.safetensors")
    assert typed_over_a_file.model.pretrained is False
    with pytest.raises(InputError, match="--init_checkpoint and --pretrained true"):
        with_file(tmp_path, "{pretrained: true, init_checkpoint: a.safetensors}", *COCO)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    text = "coco_dir: coco224\nact: gdnish\nenc_t: 3\nlr: 1e-3\namp: false\nepochs: 4\n"
    options = with_file(tmp_path, text, "--lr", "5e-4", "--enc_t", "1.5", "--amp")
    assert (options.schedule.lr, options.schedule.epochs, options.numerics.amp) == (5e-4, 4, True)
    assert (options.data.coco_dir, options.block.enc_t) == ("coco224", 1.5)


def test_a_saved_configuration_can_be_used_with_another_loss_or_schedule(tmp_path: Path) -> None:
    saved = yaml.safe_dump(parse(COCO).flat())
    options = with_file(tmp_path, saved, "--loss_type", "mse", "--sched", "onecycle", "--lambda_mse", "0.02")
    assert (options.loss.loss_type, options.loss.lambda_mse) == ("mse", 0.02)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rate: 1e-4", "recipe.yaml: unknown option learning_rate; "),
        ("batchsize: 4", "recipe.yaml: unknown option batchsize; did you mean batch_size?"),
        ("config: other.yaml", "recipe.yaml: unknown option config; "),
        ("quality: eight", "recipe.yaml: --quality: invalid int value: 'eight'"),
        ("quality: 8.5", "recipe.yaml: --quality: invalid int value: '8.5'"),
        ("quality:", "recipe.yaml: quality: None is not one value"),
        ("save_dir: [a, b]", "recipe.yaml: save_dir: a list is not one value"),
        ("resume: no", "recipe.yaml: resume: False is not text; if text is meant, quote it"),
        ("plugin: 5", "recipe.yaml: plugin: 5 is not text; if text is meant, quote it"),
        ("enc_t: 2.0", "--enc_t belongs to --act gdnish, not to --act relu"),
        ("lambda_mse: 0.5", "--lambda_mse does nothing with --loss_type recon"),
        ("quality: 0", "--quality 0: must be within 1..8"),
        ("[lr, 1e-4]", "recipe.yaml is not a mapping"),
        ("", "recipe.yaml is not a mapping"),
        ("lr: {a: 1}", "recipe.yaml: lr: a mapping is not one value"),
        ('lr: "1e-4', "recipe.yaml is not YAML: found unexpected end of stream (line 1)"),
        ('run_name: "\\Uffffffff"', "recipe.yaml is not YAML: "),
        ("lr: 1\n---\nlr: 2", "recipe.yaml holds more than one document: keep one"),
        ("lr: !!python/object/apply:os.getcwd []", "recipe.yaml: lr: tags like tag:yaml.org,2002:python/object"),
        ("amp: !!bool maybe", "recipe.yaml: amp: tags like tag:yaml.org,2002:bool are not read"),
        ("lr: &a 1\nalpha_l1: *a", "recipe.yaml: lr: aliases and anchors (* and &) are not read"),
        ("<<: *a", "recipe.yaml: <<: aliases and anchors (* and &) are not read"),
        ("? [a]\n: 1", "recipe.yaml: the name of an option: a list is not one value"),
        ("lr: 1e-4\nepochs: 3\nlr: 5", "recipe.yaml: lr is given twice"),
        ("yes: no", "recipe.yaml: unknown option yes; "),
        ("epochs: 0x10", "recipe.yaml: epochs: 0x10 is neither a decimal number nor text"),
        ("epochs: 1:30", "recipe.yaml: epochs: 1:30 is neither a decimal number nor text"),
        (
            "run_name: 2024-13-45",
            "recipe.yaml: run_name: 2024-13-45 is neither a decimal number nor text; if text is meant",
        ),
        ("epochs: " + "1" * 5000, "recipe.yaml: epochs: 111"),
        ("epochs: " + "1" * 4000, "does not fit into 64 bits"),
        ("lr: .nan", "--lr nan: must be more than 0"),
        ('run_name: "\\e]0;x\\a"', "recipe.yaml: run_name: holds a control character or a line break"),
        ("a" * 70_000, "recipe.yaml has more than 64 KiB: give a YAML file of options"),
    ],
)
def test_a_file_with_anything_wrong_is_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        with_file(tmp_path, text, *COCO)


@pytest.mark.parametrize(
    "text",
    [
        "lr:\n- &a0 [x,x]\n" + "".join(f"- &a{n + 1} [{','.join([f'*a{n}'] * 10)}]\n" for n in range(9)),
        "lr: " + "[" * 30_000,
        "[" * 30_000,
        "? " * 30_000,
    ],
    ids=["billion laughs", "deep value", "deep document", "deep key"],
)
def test_a_file_that_would_take_for_ever_is_refused_at_once_without_its_values(text: str, tmp_path: Path) -> None:
    began = time.perf_counter()
    with pytest.raises(InputError) as refused:
        with_file(tmp_path, text, *COCO)
    assert time.perf_counter() - began < 2  # a hundredth of it here; built and printed, the first would take hours
    assert len(str(refused.value)) < 500


def test_a_number_of_a_file_is_read_as_on_the_command_line(tmp_path: Path) -> None:
    options = with_file(tmp_path, "epochs: 010\nbatch_size: 1_0\nlr: 1.0e-05\nalpha_l1: '0.5'\nN:\n", *COCO)
    assert (options.schedule.epochs, options.data.batch_size, options.schedule.lr) == (10, 10, 1e-5)
    assert (options.loss.alpha_l1, options.model.N) == (0.5, None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes("run_name: größer 圧縮\n".encode(encoding))
    assert parse(["--config", str(file), *COCO]).reporting.run_name == "größer 圧縮"


def test_the_home_folder_is_found_where_no_shell_looked_for_it(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("coco_dir: ~/coco\nplugin: ~/my_blocks.py\nact: myact\nrun_name: ~x\n")
    options = parse(["--config=~/recipe.yaml", "--plugin=~/my_blocks.py", "--save_dir=~/out", "--recon_dir", "./a~"])
    assert (options.data.coco_dir, options.output.save_dir) == (f"{tmp_path}/coco", f"{tmp_path}/out")
    assert options.replacement.plugin == str(plugin)
    assert (options.output.recon_dir, options.reporting.run_name) == ("./a~", "~x")


def test_a_missing_file_is_named() -> None:
    assert refusal("--config nowhere.yaml") == "--config nowhere.yaml: No such file or directory"


def test_a_plugin_of_the_file_brings_its_block_and_options(plugin: Path, tmp_path: Path) -> None:
    text = yaml.safe_dump({"plugin": str(plugin), "act": "myact", "myact_scale": 3})
    options = with_file(tmp_path, text, *COCO, "--plugin", str(plugin))
    assert options.block.scale == 3.0
    assert options.flat() | {"plugin": str(plugin), "act": "myact", "myact_scale": 3.0} == options.flat()


def test_a_plugins_option_may_not_be_the_trainers(plugin: Path) -> None:
    plugin.write_text(PLUGIN.replace('"myact"', '"save"').replace("scale: float", "dir: float"))
    assert (
        refusal(f"--plugin {plugin}") == "activation 'save': --save_dir is an option of the trainer: change its prefix"
    )


def test_help_groups_the_options_one_line_each_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys)
    groups = [line[:-1] for line in text.splitlines() if re.fullmatch(r"\w.*:", line)]
    blocks = [f"{act} (with --act {act})" for act in registry.block_names() if registry.block_options(act)]
    assert groups == [
        "options", "replacement", *blocks, "model", "data", "loss", "schedule", "numerics", "entropy model",
        "qat", "output", "reporting", "launch",
    ]  # fmt: skip
    for name in parse([*COCO, "--act", "gdnish"]).flat():
        assert re.search(rf"^  --{name} \S+ +\S.*\[.+\]$", text, re.MULTILINE), name


def test_help_shows_a_plugins_options(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys, "--plugin", str(plugin))
    assert re.search(r"^  --myact_scale FLOAT +\[1.5\]$", text, re.MULTILINE)


@pytest.mark.slow
def test_parsing_loads_nothing_heavier_than_torch() -> None:
    program = (
        "import sys; from training.options import parse; parse(['--coco_dir', 'x']); "
        "print({'compressai', 'accelerate', 'datasets', 'torchvision', 'matplotlib'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_a_run_is_one_command_with_what_is_not_default(plugin: Path) -> None:
    words = "--act gdnish --enc_t 3 --hflip true --local_fp32 custom --local_fp32_custom 'g_s.*' --save_dir /mine"
    options = parse([*COCO, *shlex.split(words)])
    assert options.command() == (
        "accelerate launch train_accel.py --act gdnish --coco_dir /path/to/coco224 --hflip true --local_fp32 custom "
        "--local_fp32_custom 'g_s.*' --enc_t 3.0"
    )
    again = parse(shlex.split(options.command())[3:]).flat()
    assert again | {"coco_dir": "coco224", "save_dir": "/mine"} == options.flat()
