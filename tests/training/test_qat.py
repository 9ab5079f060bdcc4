"""Quantization-aware training as a user runs it: phases, ranks, kills, checkpoints, any block, bad input."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator, DistributedType
from codecs_for_export import make, save
from programs import ROUNDING, TINY, distance, into, rows, run, run_ranks, same, states, train, weights
from safetensors.torch import load_file

import training.run
import training.start
from codec.checkpoint import load_codec
from codec.description.architecture import Architecture, Phase, Quantization
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import with_tables
from codec.quantization.calibrate import calibrate
from codec.quantization.layers import QuantizedLayer
from codec.quantization.levels import levels_of
from codec.quantization.phases import activation_quantizers, in_float, wide_activations
from training.options import parse
from training.qat import about_latent, forget_clamped

pytestmark = pytest.mark.slow

KILLS = Path(__file__).with_name("kills.py")
QAT = ["--qat", "true", "--qat_scope", "all", "--replace_parts", "all", "--qat_calib_steps", 4, "--qat_freeze_after", 8]
LEARNING = {"activation.high", "activation.steps", "weight.scale"}  # after a ReLU the low end is zero
Train = Callable[..., int]

PLUGIN = """
import torch
from torch import nn
from codec.blocks import register_activation

class Soft(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))
        self.mix = nn.Conv2d(channels, channels, 1, groups=channels)

    def forward(self, x):
        return x + self.mix(nn.functional.relu6(x) * self.gain)

class Odd(Soft):
    def forward(self, x):
        return super().forward(x) if x.detach().isfinite().all() else x

@register_activation("soft")
class SoftActivation:
    @staticmethod
    def encoder(channels, options):
        return Soft(channels)

    @staticmethod
    def decoder(channels, options):
        return Odd(channels)
"""


@pytest.fixture(scope="module")
def here(coco224: Path) -> Train:
    """here(folder, *options): a tiny run of the embedded photographs under QAT."""
    return lambda folder, *options: train("--coco_dir", coco224, *TINY, *into(folder), *QAT, *options)


@pytest.fixture(scope="module")
def whole(here: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps through all three phases, every state kept."""
    folder = tmp_path_factory.mktemp("whole")
    assert here(folder, "--max_steps", 12, "--checkpoint_every", 1, "--keep_checkpoints", 99) == 0
    return folder


def of_step(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "state" / f"step-{step:08d}" / "model.safetensors")


def changed(folder: Path, first: int, last: int) -> set[str]:
    """Kinds of buffers that differ between two steps."""
    a, b = of_step(folder, first), of_step(folder, last)
    return {
        f"{'weight' if 'weight_quantizer' in key else 'activation'}.{key.rsplit('.', 1)[1]}"
        for key in a
        if "quantizer" in key and not torch.equal(a[key], b[key])
    }


def test_the_phases_begin_where_the_options_say(whole: Path) -> None:
    assert changed(whole, 1, 2) == changed(whole, 3, 4) == LEARNING
    assert changed(whole, 4, 5) == {"activation.high", "activation.scale", "weight.scale"}
    assert changed(whole, 5, 6) == changed(whole, 7, 8) == {"weight.scale"}
    assert changed(whole, 8, 9) == changed(whole, 9, 12) == set()
    trained = {key for key, value in of_step(whole, 9).items() if not torch.equal(value, of_step(whole, 12)[key])}
    assert any(key.startswith("g_a") for key in trained)  # training goes on


def test_observers_can_be_stopped_at_a_step(here: Train, tmp_path: Path) -> None:
    words = ["--qat_disable_observer_step", 2, "--checkpoint_every", 1, "--keep_checkpoints", 99]
    assert here(tmp_path, *words, "--max_steps", 9) == 0
    assert changed(tmp_path, 1, 2) == LEARNING
    assert changed(tmp_path, 2, 4) == set()
    assert changed(tmp_path, 4, 9) == {"activation.scale"}


def test_channels_and_weights_are_put_on_grids_once(
    here: Train, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, and before the first quantized one; a run that goes on after it does neither again."""
    done: list[tuple[str, Phase]] = []

    def note(module: ModuleType, what: str) -> None:
        original = getattr(module, what)

        def noted(codec: Codec, pictures: list[torch.Tensor]) -> None:
            assert codec.architecture.quantization
            done.append((what, codec.architecture.quantization.phase))
            original(codec, pictures)

        monkeypatch.setattr(module, what, noted)

    note(training.start, "equalize_channels")
    note(training.run, "round_to_grid")
    expected_calls = [("equalize_channels", Phase.CALIBRATION), ("round_to_grid", Phase.FIXED_SCALE)]
    for step, expected in ((None, expected_calls), (2, expected_calls[1:]), (4, expected_calls[1:]), (6, [])):
        done.clear()
        resume = ["--resume", whole / "state" / f"step-{step:08d}"] if step else []
        assert here(tmp_path / str(step), "--max_steps", 12, *resume) == 0
        assert done == expected


@pytest.mark.parametrize("step", [2, 4, 6, 8, 10])
def test_a_run_resumes_bit_for_bit_in_each_phase_and_between_them(
    step: int, here: Train, whole: Path, tmp_path: Path
) -> None:
    assert here(tmp_path, "--max_steps", 12, "--resume", whole / "state" / f"step-{step:08d}") == 0
    assert same(weights(tmp_path), weights(whole))
    optimizers = [load_file(states(folder)[-1] / "optimizer.safetensors") for folder in (tmp_path, whole)]
    assert same(*optimizers)


@pytest.mark.parametrize(("ranks", "arch"), [(1, "bmshj2018_factorized"), (2, "bmshj2018_hyperprior")])
def test_killed_in_each_phase_it_ends_as_one_that_was_left_alone(ranks: int, arch: str, coco224: Path) -> None:
    done = run(KILLS, "--qat", "--kills", 1, "--ranks", ranks, "--arch", arch, "--coco_dir", coco224)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 disturbed runs left what the undisturbed one left, bit for bit" in done.stdout
    assert len(re.findall(r"^ +1 +\d+\.\d\d  ", done.stdout, flags=re.MULTILINE)) == 3


def test_a_run_with_16_bit_activations_resumes_and_its_checkpoint_says_so(here: Train, tmp_path: Path) -> None:
    words = ["--qat_a16", "g_s.after_5,g_a.*_3", "--checkpoint_every", 1, "--keep_checkpoints", 99, "--max_steps", 10]
    assert here(tmp_path / "whole", *words) == 0
    state = tmp_path / "whole" / "state" / "step-00000006"
    assert here(tmp_path / "resumed", *words, "--resume", state) == 0
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    trained, described = load_codec(tmp_path / "whole" / "last.safetensors")
    assert trained.architecture.quantization.a16 == described.options["qat_a16"] == "g_s.after_5,g_a.*_3"
    assert wide_activations(trained, "g_a", "g_s") == ["g_a.after_3", "g_s.after_5"]
    with pytest.raises(InputError, match=re.escape("--qat_a16 g_s.after_5,g_a.*_3 there, absent here")):
        here(tmp_path / "whole", "--max_steps", 11)


def test_records_without_16_bit_activations_do_not_mention_them(whole: Path) -> None:
    for name in ("last.safetensors", "config.yaml"):
        assert b"a16" not in (whole / name).read_bytes()


def test_another_quantization_is_another_run(here: Train, whole: Path) -> None:
    with pytest.raises(InputError, match=re.escape("--qat_act_observer ema there, minmax here")):
        here(whole, "--max_steps", 13, "--qat_act_observer", "minmax")


def test_two_ranks_agree_on_ranges_and_train_what_one_process_trains(coco224: Path, tmp_path: Path) -> None:
    """While ranges are learned, and after the weights went to their grids.

    Rounding is no continuous function: weights that differ in their last bit may be rounded to other grid points, and
    GPTQ carries that on. So the second half is compared from the same weights: one process goes on from the state that
    two ranks left before the rounding, and rounds as they did.
    """

    def words(folder: Path, observer: str, *more: object) -> list[str]:
        options = ["--max_steps", 10, "--qat_act_observer", observer, "--train_scope", "all", "--checkpoint_every", 1]
        options += ["--keep_checkpoints", 99, *more]
        return [str(w) for w in ["--coco_dir", coco224, *TINY, *into(folder), *QAT, *options]]

    observers = {"ema": (4, 1), "minmax": (2, 2)}
    runs = {
        name: words(tmp_path / name, name, "--batch_size", b, "--grad_accum", g) for name, (b, g) in observers.items()
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    done = run_ranks(Path(__file__).with_name("two_ranks.py"), tmp_path)
    assert done.returncode == 0, done.stderr
    for name in observers:
        both, alone, later = (tmp_path / f"{how}{name}" for how in ("", "alone-", "later-"))
        assert same(*(load_file(both / f"rank-{rank}.safetensors") for rank in (0, 1)))
        assert train(*words(alone, name, "--batch_size", 8)) == 0
        assert max(distance(of_step(alone, step), of_step(both, step)) for step in range(1, 5)) < ROUNDING
        state = both / "state" / "step-00000004"
        assert train(*words(later, name, "--batch_size", 8, "--resume", state)) == 0
        assert max(distance(of_step(later, step), of_step(both, step)) for step in range(5, 11)) < ROUNDING


# --- what it leaves ---------------------------------------------------------------------------------------------


def test_the_checkpoint_describes_itself_and_evaluates_as_trained(
    whole: Path, coco224: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from codec.evaluate import main

    codec, description = load_codec(whole / "last.safetensors")
    assert description.options["qat_scope"] == "all"
    assert codec.architecture.quantization.phase is Phase.EVAL_READY
    assert {float(q.scale) for _, q in activation_quantizers(codec)} != {1.0}
    out = tmp_path / "out.json"
    assert main(["--coco_dir", str(coco224), "--checkpoint", str(whole / "last.safetensors"), "--json", str(out)]) == 0
    quantized = json.loads(out.read_text())["results"]["psnr-rgb"][0]
    words = ["--qat_eval_fakequant", "false", "--coco_dir", str(coco224), "--json", str(out)]
    assert main([*words, "--checkpoint", str(whole / "last.safetensors")]) == 0
    assert json.loads(out.read_text())["results"]["psnr-rgb"][0] != quantized


def test_best_files_are_quantized_ones(here: Train, tmp_path: Path) -> None:
    """The first epoch ends in the calibration: its float codec is better, and is not what was asked for."""
    words = ["--eval_every", 1, "--qat_calib_steps", 7, "--qat_freeze_after", 11, "--max_steps", 12]
    assert here(tmp_path, *words) == 0
    assert [row["step"] for row in rows(tmp_path, "validation")] == [6, 12]
    best, description = load_codec(tmp_path / "best_psnr.safetensors")
    assert description.step == 12
    assert best.architecture.quantization.phase is Phase.EVAL_READY


def test_an_evaluation_that_a_kill_prevented_is_made_in_the_phase_that_it_belongs_to(
    here: Train, tmp_path: Path
) -> None:
    """An epoch ends with the calibration: the next step quantizes, but the evaluation in between is in float."""
    words = ["--batch_size", 27, "--eval_every", 1, "--qat_calib_steps", 2, "--qat_freeze_after", 2, "--max_steps", 3]
    words += ["--checkpoint_every", 1, "--keep_checkpoints", 9]
    whole, later = tmp_path / "whole", tmp_path / "later"
    assert here(whole, *words) == 0
    state = tmp_path / "killed" / "step-00000002"
    shutil.copytree(whole / "state" / state.name, state)
    progress = json.loads((state / "progress.json").read_text()) | {"evaluated": 0, "best": {}}
    (state / "progress.json").write_text(json.dumps(progress))
    sums = json.loads((state / "manifest.json").read_text())
    sums["progress.json"] = hashlib.sha256((state / "progress.json").read_bytes()).hexdigest()
    (state / "manifest.json").write_text(json.dumps(sums))
    assert here(later, *words, "--resume", state) == 0
    assert rows(later, "validation") == rows(whole, "validation")
    assert (later / "best_psnr.safetensors").exists() == (whole / "best_psnr.safetensors").exists()


@pytest.mark.parametrize("eval_fakequant", ["true", "false"])
def test_validation_is_with_or_without(eval_fakequant: str, here: Train, whole: Path, tmp_path: Path) -> None:
    from codec.evaluation.figures import evaluate

    state = whole / "state" / "step-00000011"
    words = ["--eval_every", 1, "--qat_eval_fakequant", eval_fakequant, "--max_steps", 12, "--resume", state]
    assert here(tmp_path, *words) == 0
    codec, _ = load_codec(tmp_path / "last.safetensors")
    assert codec.architecture.quantization.eval_fakequant == (eval_fakequant == "true")
    x = (torch.rand(1, 3, 64, 64) * 255).byte()
    (figures,) = evaluate(codec, [x], torch.device("cpu"))
    (plain,) = evaluate(in_float(codec).eval(), [x], torch.device("cpu"))
    assert (figures == plain) == (eval_fakequant == "false")


def test_a_float_fine_tune_and_then_a_quantized_checkpoint_are_where_to_start_from(
    here: Train, coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--coco_dir", coco224, *TINY, *into(tmp_path / "float"), "--replace_parts", "all", "--max_steps", 2]
    assert train(*first) == 0
    from_file = [word for word in TINY if word not in ("--N", "8", "--M", "12", "--pretrained", "false")]
    from_file = ["--batch_size", "8", *from_file[from_file.index("--loss_type") :]]

    def qat(name: str, start: str, *words: object) -> int:
        source = tmp_path / start / "last.safetensors"
        return train("--coco_dir", coco224, *from_file, *into(tmp_path / name), "--init_checkpoint", source, *words)

    def phases(calibration: int, freeze: int, steps: int) -> list[object]:
        words = ["--qat", "true", "--replace_parts", "all", "--qat_calib_steps", calibration]
        return [*words, "--qat_freeze_after", freeze, "--max_steps", steps]

    short = phases(1, 2, 3)
    assert qat("encoder", "float", *short, "--qat_scope", "encoder") == 0
    assert qat("all", "encoder", *short, "--qat_scope", "all", "--lr", 1e-9) == 0
    encoder, everything = (load_codec(tmp_path / name / "last.safetensors")[0] for name in ("encoder", "all"))
    assert everything.architecture.quantization.scope == "all"
    assert not any(isinstance(layer, QuantizedLayer) for layer in encoder.g_s.modules())
    # Its ranges serve as they are where no step shall learn any.
    kept = phases(0, 1, 2)
    assert qat("kept", "encoder", *kept, "--qat_scope", "encoder") == 0
    again = load_codec(tmp_path / "kept" / "last.safetensors")[0]
    for (name, a), (_, b) in zip(activation_quantizers(encoder), activation_quantizers(again), strict=True):
        assert (a.low, a.high, a.scale) == (b.low, b.high, b.scale), name
    with pytest.raises(InputError, match=r"no step learns ranges, and g_s\.\S+ has none"):
        qat("refused", "encoder", *kept, "--qat_scope", "all")
    # And back to float.
    assert qat("back", "all", "--replace_parts", "all", "--max_steps", 1) == 0
    assert load_codec(tmp_path / "back" / "last.safetensors")[0].architecture.quantization is None


def test_a_plugin_s_blocks_train_under_qat(
    here: Train, coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "soft_block.py"
    plugin.write_text(PLUGIN)
    assert here(tmp_path / "run", "--plugin", plugin, "--act", "soft", "--max_steps", 10) == 0
    said = capsys.readouterr().err
    assert "quantized   g_a and g_s in int8: " in said
    assert "g_s.1, g_s.3, g_s.5 cannot be traced: quantized at input and output, and around every convolution" in said
    assert "inside (TraceError: symbolically traced variables cannot be used as inputs to control flow)" in said
    codec, _ = load_codec(tmp_path / "run" / "last.safetensors")
    names = [name for name, _ in activation_quantizers(codec)]
    assert "g_a.quantizers.after_add" in names
    assert "g_s.1.mix.input_quantizer" in names


def test_gdn_under_qat_says_what_stays_in_float(
    here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(tmp_path, "--act", "gdn", "--max_steps", 10, "--eval_every", 1) == 0
    said = capsys.readouterr().err
    assert "g_a.1, g_a.3, g_a.5, g_s.1, g_s.3, g_s.5 (GDN) stay in float, between quantized tensors" in said
    assert "y stays in float: the CDF tables' symbols are -" in said


def test_h_a_trains_for_int8_too_and_the_run_resumes_bit_for_bit(
    here: Train, coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--arch", "mbt2018_mean", "--qat_exclude_entropy", "false", "--max_steps", 9, "--checkpoint_every", 1]
    assert here(tmp_path / "whole", *words, "--keep_checkpoints", 99) == 0
    assert "quantized   g_a and h_a and g_s in int8: " in capsys.readouterr().err
    resumed = ["--resume", tmp_path / "whole" / "state" / "step-00000005"]
    assert here(tmp_path / "resumed", *words, *resumed) == 0
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    codec, _ = load_codec(tmp_path / "whole" / "last.safetensors")
    assert codec.architecture.quantization.hyper
    plain, x = in_float(codec).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert (plain.g_a(x) - codec.g_a(x)).abs().max() < 0.2 * plain.g_a(x).abs().max()
    # Its ranges, and the steps of y, serve as they are where no step shall learn any.
    kept = ["--qat_calib_steps", 0, "--qat_freeze_after", 1, "--max_steps", 2, "--lr", 1e-12]
    kept += ["--qat_exclude_entropy", "false", "--init_checkpoint", tmp_path / "whole" / "last.safetensors"]
    tiny = ["--batch_size", "8", *TINY[TINY.index("--loss_type") :]]
    qat = ["--qat", "true", "--qat_scope", "all", "--replace_parts", "all"]
    assert train("--coco_dir", coco224, *tiny, *into(tmp_path / "kept"), *qat, *kept) == 0
    again, _ = load_codec(tmp_path / "kept" / "last.safetensors")
    with torch.no_grad():
        moved = (again.g_a(x) - codec.g_a(x)).abs() / codec.g_a.levels.step.view(-1, 1, 1)
        assert moved.max() < 1.01  # a level, where a value lay between two
        assert moved.mean() < 0.1
    for (name, a), (_, b) in zip(levels_of(codec), levels_of(again), strict=True):
        assert torch.equal(a.step, b.step), name


@pytest.mark.parametrize("arch", ["bmshj2018_factorized", "mbt2018_mean"])
def test_from_a_checkpoint_with_tables_it_resumes_bit_for_bit_in_calibration(
    arch: str, coco224: Path, tmp_path: Path
) -> None:
    start = save(make("gdn", arch=arch), tmp_path / "start.safetensors")
    tiny = ["--batch_size", "8", "--num_workers", "0", *TINY[TINY.index("--loss_type") :]]
    words = ["--coco_dir", coco224, *tiny, *QAT, "--init_checkpoint", start, "--max_steps", 9, "--checkpoint_every", 2]
    assert train(*words, *into(tmp_path / "whole"), "--keep_checkpoints", 9) == 0
    resumed = ["--resume", tmp_path / "whole" / "state" / "step-00000002"]
    assert train(*words, *into(tmp_path / "resumed"), *resumed) == 0
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))


def test_a_run_warns_of_symbols_that_8_bits_do_not_hold(picture: torch.Tensor) -> None:
    codec = with_tables(new_codec(Architecture(8, 12, arch="bmshj2018_hyperprior")))
    shipped = calibrate(codec, [picture[..., :64, :64]], Quantization("encoder"))
    for clamped, words in ((1, []), (20, ["20 of 100,000 symbols of y do not fit -128..127"])):
        shipped.y_model.clamped.copy_(torch.tensor([clamped, 100_000]))
        lines = about_latent(shipped)
        assert len(lines) == len(words)
        assert all(word in line for word, line in zip(words, lines, strict=True))


def test_a_run_warns_of_levels_that_8_bits_do_not_hold(picture: torch.Tensor) -> None:
    """With means, or with several rates, the host makes the symbols: what the chip clamps are levels of y."""
    plain = make("relu", arch="mbt2018_mean")
    shipped = calibrate(plain, [picture[..., :64, :64]], Quantization("all"))
    forget_clamped(shipped)
    with torch.no_grad():
        shipped(picture[..., :64, :64])
        assert about_latent(shipped) == []
        shipped.g_a.levels.step.mul_(1 / 32)  # as if y had become 32 times larger
        shipped.g_a.get_submodule("6").output_factor.mul_(32)
        levels = shipped.g_a(picture[..., :64, :64]) / shipped.g_a.levels.step.view(-1, 1, 1)
        forget_clamped(shipped)
        shipped(picture[..., :64, :64])
    counted, total = shipped.g_a.levels.clamped.tolist()
    assert total == 12 * 4 * 4
    assert 0 < counted <= int(((levels <= -128) | (levels >= 127)).sum())
    (line,) = about_latent(shipped)
    assert f"{counted} of {total} levels of y do not fit 8 bits and are clamped" in line


# --- options ----------------------------------------------------------------------------------------------------


def test_amp_is_off_by_default_and_warned_of(
    here: Train, coco224: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse(["--coco_dir", "c", "--qat", "true"]).numerics.amp is False
    assert parse(["--coco_dir", "c"]).numerics.amp is True
    assert here(tmp_path, "--amp", "true", "--max_steps", 9) == 0
    assert "quantized   warning: --amp true rounds quantized values a second time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max_steps", 4], "--qat_calib_steps 4: a run of 4 optimizer steps never reaches the fixed-scale phase"),
        (["--max_steps", 8], "--qat_freeze_after 8: a run of 8 optimizer steps never reaches the eval-ready phase"),
        (["--qat_freeze_after", 60], "--qat_freeze_after 60: a run of 60 optimizer steps never reaches"),
        (["--max_steps", 12, "--qat_disable_observer_step", 0], "no step learns ranges, and g_a.quantizers.after_1"),
        (["--max_steps", 12, "--qat_calib_steps", 0], "no step learns ranges, and g_a.quantizers.after_1"),
        (
            ["--qat_a16", "g_s.*,g_s.gain", "--coco_dir", "missing"],
            "a16 g_s.gain: no quantized activation has this name; there are g_a.after_1, g_a.after_3, g_a.after_5",
        ),
        (
            ["--act", "gdnish", "--amp", "true", "--local_fp32", "custom", "--local_fp32_custom", "g_a.1"],
            "--local_fp32 would keep g_a.1 in FP32, but with --qat true that block is not a separate module",
        ),
    ],
)
def test_what_cannot_work_is_refused(words: list[object], says: str, here: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        here(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_fsdp_is_refused(here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(InputError, match="--qat true with FSDP, which reads"):
        here(tmp_path / "run", "--max_steps", 12)


def test_the_recipe_of_the_readme_parses_as_written() -> None:
    words = (
        "--act relu --replace_parts encoder --train_scope all --qat true --qat_scope encoder "
        "--qat_exclude_entropy true --qat_calib_steps 2000 --qat_freeze_after 8000 --use_prepared true --quality 8 "
        "--epochs 10 --batch_size 16 --lr 1e-4 --alpha_l1 0.4 --loss_type rd --lambda_bpp 0.01 --sched cosine "
        "--optimizer adamw --weight_decay 1e-4"
    )
    assert parse(["--coco_dir", "coco224", *words.split()]).qat.qat_scope == "encoder"
