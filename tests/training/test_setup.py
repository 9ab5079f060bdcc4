"""What a run starts from, and what cannot start one: refused in one line, with nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressai.models import FactorizedPrior
from programs import SMALL, TINY, into, same, train
from torch import Tensor

import training.setup
from codec.checkpoint import Description, load_codec, save_codec
from codec.cli import DataError
from codec.description.architecture import Architecture, BlockChoice
from codec.errors import InputError
from codec.network.architectures import new_codec
from codec.network.tables import with_tables
from training.options import parse
from training.setup import set_up

pytestmark = pytest.mark.slow

ZOO = ["--num_workers", "0", "--resume", "auto"]


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """refusal(*options): the one line with which a run is refused, before it writes anything."""

    def refusal(*options: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((InputError, DataError)) as refused:
            train(*into(tmp_path / "run"), *options)
        assert sorted(tmp_path.rglob("*")) == before
        assert "\n" not in str(refused.value)
        return str(refused.value)

    return refusal


def test_data_that_is_missing_empty_or_no_dataset_is_refused(
    refusal: Callable[..., str], tmp_path: Path, photographs: Path
) -> None:
    assert refusal(*TINY).startswith("--coco_dir is required")
    (tmp_path / "empty").mkdir()
    for folder, says in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "is no prepared dataset"),
        (photographs, "is no prepared dataset"),
    ):
        assert refusal(*TINY, "--coco_dir", folder).startswith(f"--coco_dir {folder} {says}")
    assert "train2017" in refusal(*TINY, "--coco_dir", tmp_path / "empty", "--use_prepared", "false")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--quality 0", "--quality 0: must be within 1..8"),
        ("--quality 9", "--quality 9: must be within 1..8"),
        ("--learning_rate 1", "unknown option --learning_rate"),
        ("--amp_warmup_steps 5", "bf16 + local FP32 + LR warm-up + gradient clipping do its job"),
        ("--act relu --enc_t 2", "--enc_t belongs to --act gdnish"),
        ("--act gdnish --dec_gmin 3 --dec_gmax 2", "dec_gmin"),
        ("--act gdnish --enc_kdw 4", "enc_kdw"),
        ("--loss_type recon --input_size 160", "MS-SSIM needs 161 pixels"),
        ("--loss_type mse --input_size 240", "--input_size 240 is at most the row's size, which is 224"),
        ("--batch_size 55", "a batch of 55 is larger than the dataset of 54 rows"),
        ("--batch_size 16 --grad_accum 4", "a batch of 64 is larger than the dataset of 54 rows"),
        ("--pretrained false --local_fp32 custom --local_fp32_custom nothing.*", "--local_fp32_custom nothing.*"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    options: str, says: str, coco224: Path, refusal: Callable[..., str]
) -> None:
    assert says in refusal("--coco_dir", coco224, *options.split())


@pytest.mark.parametrize("names", ["aim", "tensorboard,aim", "numpy", "all of them", "tensorboard.nowhere"])
def test_a_tracker_that_is_not_installed_or_none_is_refused(
    names: str, coco224: Path, refusal: Callable[..., str]
) -> None:
    assert refusal("--coco_dir", coco224, *TINY, "--report_to", names).startswith("--report_to")


def test_weights_that_cannot_be_downloaded_are_refused_with_the_two_ways_out(
    coco224: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    line = refusal("--coco_dir", coco224, "--quality", 1)
    assert "cannot be downloaded" in line
    assert "--pretrained false" in line
    assert "--init_checkpoint" in line


@pytest.mark.parametrize("junk", [b"<html>log in first</html>", b"PK\3\4" + bytes(20_000)])
def test_a_damaged_download_in_the_cache_is_named(
    junk: bytes,
    coco224: Path,
    refusal: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setenv("TORCH_HOME", str(cache))
    file = cache / "hub" / "checkpoints" / "bmshj2018-factorized-prior-1-446d5c7f.pth.tar"
    file.parent.mkdir(parents=True)
    file.write_bytes(junk)
    assert f"{file} is damaged" in refusal("--coco_dir", coco224, "--quality", 1)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A checkpoint of ours: GDNishLite in the encoder, GDN in the decoder."""
    path = tmp_path / "ours.safetensors"
    save_codec(path, with_tables(new_codec(Architecture(8, 12, g_a=BlockChoice("gdnish")))), Description())
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """What CompressAI's example trainer saves."""
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 1, "state_dict": FactorizedPrior(8, 12).state_dict(), "loss": torch.tensor(1.0)}, path)
    return path


def start(coco224: Path, *options: object) -> dict[str, Tensor]:
    """The weights that a run begins with, without tables."""
    words = ["--coco_dir", coco224, *ZOO, "--batch_size", 2, *options]
    state = set_up(parse([str(word) for word in words])).codec.state_dict()
    return {name: tensor for name, tensor in state.items() if tensor.numel()}


def of_transforms(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(parts)}


def test_our_checkpoint_starts_a_run_with_its_own_weights(ours: Path, coco224: Path) -> None:
    whole = load_codec(ours)[0].state_dict()
    first = start(coco224, "--init_checkpoint", ours, "--act", "gdnish")
    assert same(of_transforms(first, "g_a", "g_s"), of_transforms(whole, "g_a", "g_s"))
    assert first["entropy_bottleneck.matrices.0"].equal(whole["entropy_bottleneck.matrices.0"])


def test_compressai_s_checkpoint_starts_a_run_and_gdn_stays_the_baseline(theirs: Path, coco224: Path) -> None:
    state = torch.load(theirs, weights_only=True)["state_dict"]
    first = start(coco224, "--init_checkpoint", theirs, "--act", "gdn")
    assert same(first, {name: tensor for name, tensor in state.items() if tensor.numel()})


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_blocks_are_swapped_on_top_of_a_checkpoint_and_the_convolutions_stay(
    parts: str, theirs: Path, coco224: Path
) -> None:
    state = torch.load(theirs, weights_only=True)["state_dict"]
    first = start(coco224, "--init_checkpoint", theirs, "--act", "relu", "--replace_parts", parts)
    replaced = {"encoder": ("g_a",), "decoder": ("g_s",), "all": ("g_a", "g_s")}[parts]
    gone = {name for name in state if name.startswith(replaced) and ("beta" in name or "gamma" in name)}
    assert first.keys() == {name for name, tensor in state.items() if tensor.numel()} - gone
    assert same(first, {name: state[name] for name in first})


def test_a_swap_on_our_checkpoint_replaces_the_blocks_that_were_there(ours: Path, coco224: Path) -> None:
    first = start(coco224, "--init_checkpoint", ours, "--act", "relu", "--replace_parts", "all")
    assert not any("beta" in name or ".1." in name for name in of_transforms(first, "g_a", "g_s"))
    convolution = load_codec(ours)[0].state_dict()["g_a.0.weight"]
    assert first["g_a.0.weight"].equal(convolution)


def test_a_bad_initial_checkpoint_is_refused(
    ours: Path, theirs: Path, coco224: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    def of(path: Path, *options: object) -> str:
        line = refusal("--coco_dir", coco224, "--init_checkpoint", path, *options)
        assert str(path) in line or options
        return line

    for path in (ours, theirs):
        torn = tmp_path / f"torn-{path.name}"
        torn.write_bytes(path.read_bytes()[:-1000])
        assert "damaged" in of(torn)
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pth.tar")
    assert "no codec of bmshj2018_factorized" in of(tmp_path / "other.pth.tar")
    autoregressive = tmp_path / "mbt2018.pth.tar"
    from compressai.models import JointAutoregressiveHierarchicalPriors

    torch.save({"state_dict": JointAutoregressiveHierarchicalPriors(8, 12).state_dict()}, autoregressive)
    assert "another architecture" in of(autoregressive, "--act", "relu")
    assert "is a bmshj2018_factorized, not --arch mbt2018_mean" in of(theirs, "--arch", "mbt2018_mean")
    assert "has N=8, M=12, not --N 16 --M 24" in of(theirs, "--N", 16, "--M", 24)
    assert "cannot keep" in of(ours, "--act", "gdn") or "would keep GDN" in of(ours, "--act", "gdn")


def test_the_seed_alone_decides_the_first_weights(coco224: Path) -> None:
    a, b, c = (start(coco224, *SMALL, "--seed", seed) for seed in (1, 1, 2))
    assert same(a, b)
    assert not a["g_a.0.weight"].equal(c["g_a.0.weight"])


def test_a_coco_root_is_trained_on_without_preparation(photographs: Path, tmp_path: Path) -> None:
    for folder, names in (("train2017", ("coffee.png", "chelsea.png", "rocket.jpg")), ("val2017", ("astronaut.png",))):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "coco" / folder / name).write_bytes((photographs / name).read_bytes())
    words = ["--coco_dir", tmp_path / "coco", "--use_prepared", "false", *TINY, *into(tmp_path / "run")]
    assert train(*words, "--batch_size", 3, "--max_steps", 2, "--eval_every", 1) == 0
    assert load_codec(tmp_path / "run" / "best_psnr.safetensors")[1].step in (1, 2)


def test_the_validation_split_is_compared_between_processes(coco224: Path, tmp_path: Path) -> None:
    """A node without it would not evaluate, and the others would wait for it."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "train").symlink_to(coco224 / "train")
    (copy / "dataset_dict.json").write_text('{"splits": ["train"]}')
    seen: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.setup, "check_agreement", lambda facts, processes: seen.append(facts))
        for folder in (coco224, copy):
            set_up(parse(["--coco_dir", str(folder), *TINY, *into(tmp_path / "run")]))
    assert {name for name in seen[0] if seen[0][name] != seen[1][name]} == {"the validation split"}
