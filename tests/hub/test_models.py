"""A codec to the Hub and back, through the real client."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import READ_ONLY, Hub, point_at
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from programs import run, same

import codec
from coco224.errors import DataError
from coco224.repository import open_repository
from codec.bitstream.tables import to_bytes
from codec.blocks import block_names, registry
from codec.checkpoint import Description, save_codec
from codec.description.architecture import BUILT_IN, Architecture, BlockChoice
from codec.description.file import read_checkpoint
from codec.errors import InputError
from codec.evaluation.figures import evaluate
from codec.hub.repository import MARK, MARKER, MARKER_FORMAT, repository_files
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.tables import tables_of, with_tables
from codec.push import main
from codec.sample import to_use
from training.options import parse

PLUGIN = """
from torch import nn
from codec.blocks import register_activation

@register_activation("mine")
class Mine:
    @staticmethod
    def encoder(channels, options): return nn.LeakyReLU()
    @staticmethod
    def decoder(channels, options): return nn.LeakyReLU()
"""
METRICS = {"psnr": 27.5, "ms_ssim": 0.95, "bpp_estimated": 0.41}


def save(path: Path, widths: tuple[int, int] = (8, 12), **options: object) -> Codec:
    """A checkpoint with a GDNishLite encoder, and its codec."""
    torch.manual_seed(0)
    model = with_tables(new_codec(Architecture(*widths, BlockChoice("gdnish"))))
    save_codec(path, model, Description(options=options, metrics=METRICS, step=1000))
    return model


def graph_of(model: Codec) -> bytes:
    """What stands in every exported graph: the fingerprint of the codec's tables."""
    return f"graph {tables_of(model).fingerprint:08x}".encode()


def mark(folder: Path) -> None:
    """Marks a folder as a run does."""
    (folder / MARKER).write_text(json.dumps({"format": MARKER_FORMAT, "id": "0" * 16, "saved": True}))


def pushed(checkpoint: Path, *words: object) -> int:
    return main(["--checkpoint", str(checkpoint), "--hub_model_id", "alice/codec", *map(str, words)])


def test_a_pushed_codec_comes_back_from_an_empty_cache_with_its_weights_and_figures(
    hub: Hub, tmp_path: Path, picture: torch.Tensor
) -> None:
    """Over 10 MB, so that it goes up as the Hub takes large files."""
    model = save(tmp_path / "c.safetensors", widths=(128, 192))
    assert (tmp_path / "c.safetensors").stat().st_size > 10_000_000
    assert pushed(tmp_path / "c.safetensors") == 0
    back = codec.from_pretrained("alice/codec")
    assert not back.training
    assert same(back.state_dict(), model.state_dict())
    assert back.architecture == model.architecture
    assert back.description is not None
    assert back.description.metrics == METRICS
    batch = (picture[..., :192, :192] * 255).to(torch.uint8)
    rows = [list(evaluate(each.eval(), [batch], torch.device("cpu"))) for each in (model, back)]
    assert rows[0] == rows[1]


def test_a_quantized_codec_comes_back_whole(hub: Hub) -> None:
    """The embedded one: its architecture in `config.json` has blocks and a quantization within it."""
    assert pushed(to_use("sample")) == 0
    back, here = codec.from_pretrained("alice/codec"), codec.from_pretrained("sample_npu")
    assert back.architecture == here.architecture
    assert back.architecture.quantization is not None
    assert same(back.state_dict(), here.state_dict())


def test_a_revision_and_the_cache_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "c.safetensors")
    assert pushed(tmp_path / "c.safetensors") == 0
    first = codec.from_pretrained(tmp_path / "c.safetensors")
    revision = hub.repositories["models/alice/codec"].commits[-1][0]
    first.g_s[0].bias.data += 1
    first.push_to_hub("alice/codec")
    assert same(codec.from_pretrained("alice/codec").state_dict(), with_tables(first).state_dict())
    newest = codec.from_pretrained("alice/codec")
    old = codec.from_pretrained("alice/codec", revision=revision)
    assert torch.allclose(newest.g_s[0].bias, old.g_s[0].bias + 1)
    hub.kill()
    assert same(codec.from_pretrained("alice/codec", local_files_only=True).state_dict(), newest.state_dict())
    with pytest.raises(LocalEntryNotFoundError):
        codec.from_pretrained("alice/other", local_files_only=True)


def test_a_repository_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(RepositoryNotFoundError, match="alice/nothing"):
        codec.from_pretrained("alice/nothing")


def test_save_pretrained_writes_a_folder_that_from_pretrained_and_a_file_reader_take(tmp_path: Path) -> None:
    model = save(tmp_path / "c.safetensors")
    model = codec.from_pretrained(tmp_path / "c.safetensors")
    model.save_pretrained(tmp_path / "folder")
    for place in (tmp_path / "folder", str(tmp_path / "folder" / "model.safetensors")):
        back = codec.from_pretrained(place)
        assert same(back.state_dict(), model.state_dict())
        assert back.description == model.description
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["architecture"]["g_a"]["name"] == "gdnish"
    assert config["metrics"] == METRICS
    (tmp_path / "folder" / "README.md").write_text("my own words")
    model.save_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder" / "README.md").read_text() == "my own words"


def test_the_repository_holds_card_record_and_exported_files(hub: Hub, tmp_path: Path) -> None:
    onnx, recon = tmp_path / "onnx", tmp_path / "recon"
    for folder in (onnx, recon):
        folder.mkdir()
    (recon / "e002.png").write_bytes(b"older")
    (recon / "e010.png").write_bytes(b"newest")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "curves.png").write_bytes(b"curves")
    (tmp_path / "rd.png").write_bytes(b"curve")
    options = parse(["--coco_dir", "/home/alice/coco224", "--recon_dir", str(recon), "--act", "gdnish"])
    (tmp_path / "config.yaml").write_text(f"# {options.command()}\nact: gdnish\n")
    mark(tmp_path)
    model = save(tmp_path / "c.safetensors", **options.flat())
    (onnx / "enc.onnx").write_bytes(graph_of(model))
    (onnx / "enc.tables").write_bytes(to_bytes(tables_of(model)))
    assert pushed(tmp_path / "c.safetensors", "--onnx", onnx, "--hub_private") == 0
    assert hub.repositories["models/alice/codec"].private
    files = hub.files("models/alice/codec")
    assert files.keys() == {
        ".gitattributes", "README.md", "config.json", "config.yaml", "curves.png", "entropy_tables.bin",
        "metrics.jsonl", "model.safetensors", "onnx/enc.onnx", "onnx/enc.tables", "rd.png", "reconstructions.png",
    }  # fmt: skip
    assert files["reconstructions.png"] == b"newest"
    assert files["entropy_tables.bin"] == to_bytes(tables_of(model))
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "npu-image-codec"
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.license == "bsd-3-clause-clear"
    assert {"image-compression", "npu", "onnx", "gdnish"} <= set(card.data.tags)
    assert [(each.metric_type, each.metric_value) for each in card.data.eval_results] == list(METRICS.items())
    for words in (
        'codec.from_pretrained("alice/codec")',
        "| PSNR | 27.50 dB |",
        "encoder `g_a`: GDN replaced by `gdnish`",
        "decoder `g_s`: GDN kept",
        "CompressAI's `bmshj2018_factorized`, quality 8",
        "accelerate launch train_accel.py --act gdnish",
        "(rd.png)",
        "(reconstructions.png)",
        "(curves.png)",
    ):
        assert words in card.text, words
    assert "/home" not in card.text


def test_an_upload_tells_no_folder_of_the_machine_that_trained(
    hub: Hub, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor takes one for a name on the Hub, wherever the card is written."""
    home = tmp_path / "home" / "alice"
    (home / "data" / "coco224").mkdir(parents=True)
    (home / "my_blocks.py").write_text(PLUGIN)
    monkeypatch.chdir(home)
    words = ["--init_checkpoint", f"{home}/start/best_rd.safetensors", "--plugin", f"{home}/my_blocks.py"]
    words += ["--save_dir", f"{home}/runs", "--wandb", "true", "--run_name", "secret", "--full_disk", "stop"]
    options = parse(["--coco_dir", "data/coco224", *words])
    (home / "config.yaml").write_text(f"# {options.command()}\nplugin: {home}/my_blocks.py\nrun_name: secret\n")
    mark(home)
    save(home / "c.safetensors", **options.flat())
    monkeypatch.chdir(tmp_path)  # where data/coco224 is no folder
    assert pushed(home / "c.safetensors") == 0
    files = hub.files("models/alice/codec")
    text = files["README.md"].decode()
    for name, content in files.items():
        for private in (str(tmp_path), "data/coco224", "secret", "start/"):
            assert private.encode() not in content, (name, private)
    kept = {"plugin": "my_blocks.py", "coco_dir": "coco224", "init_checkpoint": "best_rd.safetensors", "act": "relu"}
    assert yaml.safe_load(files["config.yaml"]).items() >= kept.items()
    assert json.loads(files["config.json"])["options"].items() >= kept.items()
    (tmp_path / "back.safetensors").write_bytes(files["model.safetensors"])
    back = read_checkpoint(tmp_path / "back.safetensors").description
    assert (back.options.items() >= kept.items(), back.metrics) == (True, METRICS)
    for private in (
        str(tmp_path),
        "data/coco224",
        "secret",
        "start/",
        "wandb",
        "full_disk",
        "base_model:",
    ):
        assert private not in text, private
    command = "accelerate launch train_accel.py --plugin my_blocks.py --pretrained false"
    assert f"{command} \\\n" in text
    assert "--init_checkpoint best_rd.safetensors --coco_dir /path/to/coco224" in text
    assert "| data | `coco224`, crops of 224 pixels |" in text
    assert "name: coco224, validation" in text
    assert ModelCard(text).data.datasets is None


def test_a_block_of_ones_own_goes_up_with_the_codec_and_the_card_says_how_to_load_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_blocks.py").write_text(PLUGIN)
    options = parse(["--coco_dir", "x", "--act", "mine", "--plugin", str(tmp_path / "my_blocks.py")])
    model = with_tables(new_codec(Architecture(8, 12, BlockChoice("mine"))))
    save_codec(tmp_path / "c.safetensors", model, Description(options.flat()))
    assert pushed(tmp_path / "c.safetensors") == 0
    assert "my_blocks.py" not in hub.files("models/alice/codec")  # what a checkpoint names is not trusted
    assert pushed(tmp_path / "c.safetensors", "--plugin", tmp_path / "my_blocks.py") == 0
    files = hub.files("models/alice/codec")
    assert files["my_blocks.py"].decode() == PLUGIN
    (code,) = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    found = {"x": torch.zeros(1, 3, 64, 64)}
    monkeypatch.setattr(registry, "_entries", {name: registry._entries[name] for name in ("relu", "gdnish", "gate")})
    exec(code, found)
    assert same(found["model"].state_dict(), model.state_dict())
    assert "--checkpoint model.safetensors --plugin my_blocks.py" in files["README.md"].decode()


def test_what_an_earlier_push_left_and_this_one_lacks_goes_away(hub: Hub, tmp_path: Path) -> None:
    """Figures and graphs of other weights; what the repository's owner put there stays."""
    (tmp_path / "onnx").mkdir()
    for name in ("rd.png", "curves.png", "metrics.jsonl"):
        (tmp_path / name).write_bytes(b"of the first weights")
    (tmp_path / "config.yaml").write_text(f"{MARK}\n")
    mark(tmp_path)
    (tmp_path / "onnx" / "enc.onnx").write_bytes(graph_of(save(tmp_path / "c.safetensors")))
    assert pushed(tmp_path / "c.safetensors", "--onnx", tmp_path / "onnx") == 0
    hub.repositories["models/alice/codec"].commit(hub.files("models/alice/codec") | {"NOTES.md": b"the owner's"})
    (tmp_path / "rd.png").unlink()
    (tmp_path / "curves.png").unlink()
    assert pushed(tmp_path / "c.safetensors") == 0
    assert hub.files("models/alice/codec").keys() == {
        ".gitattributes", "NOTES.md", "README.md", "config.json", "config.yaml", "entropy_tables.bin",
        "metrics.jsonl", "model.safetensors",
    }  # fmt: skip


def test_a_dataset_of_the_hub_is_named_by_the_card(hub: Hub, tmp_path: Path) -> None:
    options = parse(["--coco_dir", "alice/coco224"])
    model = with_tables(new_codec(Architecture(8, 12)))
    save_codec(tmp_path / "c.safetensors", model, Description(options.flat(), METRICS, dataset="alice/coco224"))
    assert pushed(tmp_path / "c.safetensors") == 0
    assert ModelCard(hub.files("models/alice/codec")["README.md"].decode()).data.datasets == ["alice/coco224"]
    assert "--coco_dir alice/coco224" in options.command()


def test_what_the_hub_has_is_not_uploaded_again(hub: Hub, tmp_path: Path) -> None:
    save(tmp_path / "c.safetensors")
    assert pushed(tmp_path / "c.safetensors") == 0
    assert pushed(tmp_path / "c.safetensors") == 0
    assert hub.count("PUT /lfs") == 2  # weights and tables
    assert hub.count("POST .*/commit/") == 1


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 0}])
def test_a_passing_failure_of_the_hub_is_overcome(hub: Hub, tmp_path: Path, trouble: dict[str, int]) -> None:
    hub.trouble("PUT /lfs", times=1, **trouble)
    save(tmp_path / "c.safetensors")
    assert pushed(tmp_path / "c.safetensors") == 0
    assert "model.safetensors" in hub.files("models/alice/codec")


@pytest.mark.parametrize(("place", "status"), [("PUT /lfs", 403), ("commit/main", 401), ("preupload", 404)])
def test_a_refusal_is_one_line(hub: Hub, tmp_path: Path, place: str, status: int) -> None:
    hub.trouble(place, status=status)
    save(tmp_path / "c.safetensors")
    with pytest.raises(InputError, match=f"refuses the upload to alice/codec.*{status}"):
        pushed(tmp_path / "c.safetensors")


def test_a_hub_out_of_reach_is_another_status(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "c.safetensors")
    hub.trouble("whoami", status=503)
    assert pushed(tmp_path / "c.safetensors") == os.EX_TEMPFAIL
    assert "run the same command again to complete it" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None, b"altered"])
def test_what_is_no_checkpoint_is_refused_before_the_hub_is_asked(hub: Hub, tmp_path: Path, content: bytes) -> None:
    if content is None:  # torn
        save(tmp_path / "c.safetensors")
        content = (tmp_path / "c.safetensors").read_bytes()[:-100]
    if content == b"altered":
        save(tmp_path / "c.safetensors")
        whole = bytearray((tmp_path / "c.safetensors").read_bytes())
        whole[-50] ^= 1
        content = bytes(whole)
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        pushed(tmp_path / "c.safetensors")
    assert not hub.requests


def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    for words, said in (
        (["--checkpoint", "c.safetensors", "--hub_model_id", "codec"], "give USER/NAME"),
        (["--hub_model_id", "alice/codec"], "--checkpoint"),
        (["--checkpoint", "c", "--hub_model_id", "alice/codec", "--onnx", str(tmp_path)], "holds no .onnx file"),
        (["--checkpoint", "c", "--hub_model_id", "alice/codec", "--plugin", "nowhere.py"], "no such file"),
        (["--checkpoint", "c", "--hub_model_id", "alice/codec", "--plugin", str(tmp_path)], "a folder, not a file"),
    ):
        with pytest.raises(InputError, match=said):
            main(words)


@pytest.mark.parametrize(
    ("token", "repository", "said"),
    [
        ("hf_stranger", "alice/codec", "does not know this token"),
        (READ_ONLY, "alice/codec", "may only read"),
        (None, "alice/codec", "no Hugging Face token"),
        ("hf_alice", "bob/codec", "may not write there"),
    ],
)
def test_a_token_that_cannot_push_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None, repository: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DataError, match=said):
        open_repository("--hub_model_id", repository, "model", False)


def test_offline_is_refused_and_a_hub_that_is_down_is_no_refusal(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.kill()
    assert "refused" in open_repository("--hub_model_id", "alice/codec", "model", False).lower()
    with Hub() as again:
        point_at(again, tmp_path / "hf", monkeypatch)
        again.trouble("repos/create", status=500)
        assert open_repository("--hub_model_id", "alice/codec", "model", False) == "the Hub answers with status 500"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        open_repository("--hub_model_id", "alice/codec", "model", False)


def test_neither_the_package_nor_pushing_loads_torch() -> None:
    done = run("-c", "import codec, codec.push, codec.hub.repository, sys; print('torch' in sys.modules)")
    assert done.stdout.startswith("False"), done.stdout + done.stderr


def test_the_card_s_head_is_yaml() -> None:
    from codec.hub.card import model_card

    block = {"name": "gdn", "options": {}}
    quantization = {"scope": "all", "phase": "eval-ready", "w_per_channel": True}
    header = {"architecture": {"N": 8, "M": 12, "g_a": block, "g_s": block, "quantization": quantization}}
    header |= {"options": {}, "metrics": {}, "step": 0, "versions": {}, "dataset": ""}
    text = model_card("alice/codec", header, [], "")
    assert yaml.safe_load(text.split("---")[1])["tags"][0] == "image-compression"
    assert "its GDN layers kept" in text
    assert "all, phase eval-ready: weights int8 with a scale for each output channel" in text


def test_what_no_run_of_ours_left_stays_at_home(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's checkpoint names a folder, and lies beside a file with a password."""
    secret, home = tmp_path / "secret", tmp_path / "home"
    (secret / "recon").mkdir(parents=True)
    home.mkdir()
    (secret / "recon" / "e001.png").write_bytes(b"private")
    (secret / "key").write_bytes(b"private")
    (home / "config.yaml").write_text("password: private\n")
    (home / "metrics.jsonl").write_text("private")
    (home / "recon").symlink_to(secret / "recon")
    onnx = home / "onnx"
    (onnx / ".git").mkdir(parents=True)
    for named in (str(secret / "recon"), str(home / "recon"), "../secret/recon"):
        monkeypatch.chdir(home)
        model = save(home / "c.safetensors", recon_dir=named)
        (onnx / "enc.onnx").write_bytes(graph_of(model))
        assert "reconstructions.png" not in repository_files(home / "c.safetensors", "alice/codec").files
    (onnx / "other.onnx").write_bytes(b"of other weights")
    (onnx / "other.tables").write_bytes(b"no tables")
    (onnx / "link.onnx").symlink_to(secret / "key")
    (onnx / ".hidden.onnx").write_bytes(graph_of(model))
    (onnx / ".git" / "x.onnx").write_bytes(graph_of(model))
    (onnx / "notes.txt").write_text("private")
    os.mkfifo(onnx / "pipe.onnx")
    assert pushed(home / "c.safetensors", "--onnx", onnx) == 0
    files = hub.files("models/alice/codec")
    assert files.keys() == {
        ".gitattributes", "README.md", "config.json", "entropy_tables.bin", "model.safetensors", "onnx/enc.onnx",
    }  # fmt: skip
    assert b"private" not in b"".join(files.values())
    said = capsys.readouterr().out
    for words in ("config.yaml, metrics.jsonl in", "there is no run.json of a run",
                  "link.onnx is a link", "pipe.onnx: not a regular file",
                  "other.onnx was not exported", "other.tables was not", "notes.txt is neither"):  # fmt: skip
        assert words in said, words
    assert said.index("bytes  onnx/enc.onnx") < said.index("alice/codec: 5 files")


@pytest.mark.parametrize("marker", [None, "{}", "[]", "{nope", '{"format": "npu-image-codec/run/2"}'])
def test_a_first_line_alone_does_not_make_a_record(tmp_path: Path, marker: str | None) -> None:
    """A stranger's config.yaml beside a user's own summary.json."""
    (tmp_path / "config.yaml").write_text(f"{MARK} --act relu\n")
    (tmp_path / "summary.json").write_text("private")
    if marker:
        (tmp_path / MARKER).write_text(marker)
    save(tmp_path / "c.safetensors")
    found = repository_files(tmp_path / "c.safetensors", "alice/codec")
    assert not {"config.yaml", "summary.json"} & found.files.keys()
    assert "config.yaml, summary.json in" in found.left_out[0]


def test_a_record_that_is_a_link_stays_at_home_and_typed_reconstructions_go_up(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"private")
    run_dir, recon = tmp_path / "run", tmp_path / "recon"
    run_dir.mkdir()
    recon.mkdir()
    (recon / "e002.png").write_bytes(b"grid")
    (recon / "holiday.png").write_bytes(b"private")
    (run_dir / "config.yaml").write_text(f"{MARK}\n")
    mark(run_dir)
    (run_dir / "summary.json").symlink_to(tmp_path / "key")
    save(run_dir / "c.safetensors")
    found = repository_files(run_dir / "c.safetensors", "alice/codec", recon_dir=recon)
    assert found.files["reconstructions.png"] == b"grid"
    assert found.left_out == [f"{run_dir / 'summary.json'} is a link"]
    (run_dir / "config.yaml").rename(run_dir / "resolved.yaml")  # as a run does where config.yaml is the user's
    (run_dir / "config.yaml").write_text("password: private\n")
    found = repository_files(run_dir / "c.safetensors", "alice/codec")
    assert found.files["config.yaml"].startswith(MARK.encode())
    assert any("config.yaml is no run's" in sentence for sentence in found.left_out)


def test_a_stranger_s_metadata_stay_text_in_the_card() -> None:
    from codec.hub.card import model_card

    evil = "<script>alert(1)</script>\n---\n# [x](http://evil) | `y` \x1b[2J, WWW.evil.example a@evil.example @user #1"
    block = {"name": evil, "options": {evil: evil}}
    header: dict = {"architecture": {"N": 8, "M": 12, "g_a": block, "g_s": block, "quantization": None}}
    names = ("init_checkpoint", "coco_dir", "input_size", "loss_type", "train_scope", "quality")
    header |= {"options": dict.fromkeys(names, evil), "metrics": METRICS, "step": 0, "versions": {evil: evil}}
    text = model_card("alice/codec", header | {"dataset": evil}, ["model.safetensors"], evil)
    body = ModelCard(text).text
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\n# [" not in text
    assert body.count("\n```") == 6
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert not re.search(r"[@<>\[]|://|www\.|evil", re.sub(r"!\[[^\]]*\]\(\w+\.png\)", "", prose), re.IGNORECASE)
    assert ModelCard(text).data.library_name == "npu-image-codec"
    assert ModelCard(text).data.datasets is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *((text, text) for text in ("mse", "2.9.1+cpu", "kernel 3, bias true, gain -0.5", "ms_ssim", "写真", "")),
        ("2 https://evil.example/x", "`2 https://evil.example/x`"),
        ("mse, see www.evil.example", "`mse, see www.evil.example`"),
        ("@user", "`@user`"),
        ("a`|<>\nb\\", "`ab\\`"),
        ("`|", ""),
    ],
)
def test_words_stay_and_what_could_become_a_link_is_code(text: str, shown: str) -> None:
    from codec.hub.card import md

    assert md(text) == shown


def test_the_blocks_that_need_no_plugin_are_those_of_the_registry() -> None:
    assert sorted(BUILT_IN) == block_names()


def test_a_name_that_the_hub_s_validator_refuses_is_one_line(hub: Hub, tmp_path: Path) -> None:
    save(tmp_path / "c.safetensors")
    with pytest.raises((InputError, DataError), match="--hub_model_id"):
        main(["--checkpoint", str(tmp_path / "c.safetensors"), "--hub_model_id", "alice/-codec--x"])


def test_a_codec_of_several_rates_is_uploaded_with_its_tables_and_says_how_to_choose_a_rate(tmp_path: Path) -> None:
    model = new_codec(Architecture(8, 12))
    model.add_rates(3, octaves=2.0)
    save_codec(tmp_path / "last.safetensors", with_tables(model), Description(metrics=METRICS))
    files = repository_files(tmp_path / "last.safetensors", "alice/codec").files
    card = files["README.md"].decode()
    assert "for all rates" in card
    assert "--target_bytes 40000" in card
    loaded = codec.from_pretrained(str(tmp_path / "last.safetensors"))
    assert files["entropy_tables.bin"] == to_bytes(tables_of(loaded))
