"""Damaged and hostile inputs to the commands, one for each seed: what `benchmarks.fuzz` runs."""

import contextlib
import io
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.damage import damaged, forged

STRANGE: tuple[Any, ...] = (
    *(0, -1, 1, 7, 2**31, 2**63, 10**30, 1e308, -0.0, float("nan"), float("inf"), True, None),
    *("", "x", "\x1b[31m", "../../etc", "a" * 5000, "𝄞", "null", "1e9", [], {}, [[[]]], {"a": {"b": []}}),
)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        words: the module's name and its command line.
        picture: what a successful run must leave in `out`; None: any file will do.
    """

    words: list[str]
    out: Path | None = None
    picture: np.ndarray[Any, Any] | None = None


class Inputs:
    """Makes inputs in a folder, from a codec, a compressed picture, tables and a photograph that are in order."""

    def __init__(self, folder: Path) -> None:
        import torch
        from skimage import data

        from codec.bitstream.tables import to_bytes
        from codec.checkpoint import Description, load_codec, save_codec
        from codec.description.architecture import Architecture
        from codec.files import FileCodec
        from codec.network.architectures import new_codec
        from codec.network.tables import tables_of, with_tables

        self.folder = folder
        self.checkpoint, self.photo, self.packed = (folder / name for name in ("c.safetensors", "photo.png", "p.bin"))
        torch.manual_seed(0)
        codec = new_codec(Architecture(8, 12))
        with torch.no_grad():
            codec.g_a[6].weight *= 50
        save_codec(self.checkpoint, with_tables(codec), Description())
        torch.save(codec.state_dict(), folder / "c.pth.tar")
        Image.fromarray(data.chelsea()[:96, :128]).save(self.photo)
        coded = FileCodec(load_codec(self.checkpoint)[0])
        pixels = torch.from_numpy(np.array(Image.open(self.photo))).permute(2, 0, 1)[None]
        (packed,) = coded.compress(pixels)
        self.packed.write_bytes(packed)
        self.decoded = coded.decompress([packed])[0].permute(1, 2, 0).numpy()
        self.tables = to_bytes(tables_of(coded.codec))

    def make(self, seed: int) -> Case:
        """The input of a seed."""
        chance = random.Random(seed)
        place = self.folder / f"{seed:05d}"
        place.mkdir()
        kinds = (
            self._bytes_of_a_checkpoint, self._metadata, self._state_dict, self._file, self._forged_file, self._yaml,
            self._photograph, self._folder, self._options, self._curve,
        )  # fmt: skip
        return kinds[seed % len(kinds)](chance, place)

    def _bytes_of_a_checkpoint(self, chance: random.Random, place: Path) -> Case:
        path = place / "c.safetensors"
        path.write_bytes(_damaged(self.checkpoint.read_bytes(), chance))
        return self._compress(path, place)

    def _metadata(self, chance: random.Random, place: Path) -> Case:
        """A checkpoint whose checksum is right and whose description is not."""
        from safetensors.numpy import load, save

        from codec.description.fingerprint import fingerprint

        content = self.checkpoint.read_bytes()
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        metadata.pop("sha256")
        arrays = load(content)
        for _ in range(chance.randint(1, 2)):
            name = chance.choice([*metadata, "unknown"])
            with contextlib.suppress(ValueError, KeyError, RecursionError):
                value = json.loads(metadata[name])
                metadata[name] = json.dumps(_strange(value, chance))
                continue
            metadata[name] = chance.choice(["", "{", "null", "[" * 3000, "x"])
        if chance.random() < 0.4:
            name = chance.choice(list(arrays))
            array = arrays[name]
            other = np.full_like(array, np.nan if array.dtype.kind == "f" else -1)
            arrays[name] = chance.choice([array[..., None], array.astype(np.float64), array.ravel(), other, array[:0]])
        metadata["sha256"] = fingerprint(arrays, metadata)
        path = place / "c.safetensors"
        path.write_bytes(save(arrays, metadata))
        return self._compress(path, place)

    def _state_dict(self, chance: random.Random, place: Path) -> Case:
        """A `.pth.tar`, damaged, or with a strange tensor."""
        import torch

        path = place / "c.pth.tar"
        if chance.random() < 0.4:
            path.write_bytes(_damaged((self.folder / "c.pth.tar").read_bytes(), chance))
            return self._compress(path, place)
        state: dict[str, Any] = torch.load(self.folder / "c.pth.tar", weights_only=True)
        name = chance.choice(list(state))
        tensor = state[name]
        state[name] = chance.choice(
            [
                tensor * float("nan"),
                tensor * 1e30,
                tensor * 0,
                tensor[None],
                tensor.half(),
                tensor.flatten()[:1],
                "x",
                3,
            ]
        )
        prefix = chance.choice(["", "module.", "_orig_mod.module.", "net."])
        state = {prefix + key: value for key, value in state.items()}
        torch.save(chance.choice([state, {"state_dict": state}, {"model": state, "epoch": 3}, [state]]), path)
        return self._compress(path, place)

    def _file(self, chance: random.Random, place: Path) -> Case:
        path = place / "p.bin"
        path.write_bytes(_damaged(self.packed.read_bytes(), chance))
        return self._decompress(path, place)

    def _forged_file(self, chance: random.Random, place: Path) -> Case:
        """A file with another size or other symbols under a checksum that is right. Any picture may come of it."""
        file = bytearray(self.packed.read_bytes())
        if chance.random() < 0.6:
            sides = [_varint(chance.choice([1, 65535, 2**20, 13000, 200, 2**31])) for _ in range(2)]
            start = 12 + 2  # behind the sides of the picture: 128x96, a varint of two bytes and one of one
            file[12 : start + 1] = b"".join(sides)
        else:
            file[chance.randrange(12, len(file))] ^= 1 << chance.randrange(8)
        path = place / "p.bin"
        path.write_bytes(forged(bytes(file)))
        return Case(self._decompress(path, place).words)

    def _yaml(self, chance: random.Random, place: Path) -> Case:
        lines = ["act: relu", "lr: 1e-4", "batch_size: 4", "coco_dir: nowhere", "amp: false", "seed: 3"]
        for _ in range(chance.randint(1, 3)):
            line = chance.randrange(len(lines))
            name = lines[line].partition(":")[0]
            values = (
                repr(chance.choice(STRANGE)),
                "&a [*a]",
                "!!python/object:os.system x",
                "[" * 500,
                "1:30",
                "2026-01-01",
            )
            odd = (name, "\t: x", f"\x1b{name}: 1", "- - - -", lines[0], f"{name}: 0{chance.randrange(99)}", "? {a: b}")
            lines[line] = chance.choice([*odd, *(f"{name}: {value}" for value in values)])
        path = place / "c.yaml"
        path.write_bytes(chance.choice([b"", b"\xef\xbb\xbf", b"\xff\xfe"]) + "\n".join(lines).encode())
        return Case(["train_accel", "--config", str(path), "--save_dir", str(place / "run")])

    def _photograph(self, chance: random.Random, place: Path) -> Case:
        suffix = chance.choice(["png", "jpg", "webp", "bmp"])
        buffer = io.BytesIO()
        mode = chance.choice(["RGB", "L", "P", "RGBA"]) if suffix in ("png", "webp") else "RGB"
        Image.open(self.photo).convert(mode).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
        path = place / f"photo.{suffix}"
        path.write_bytes(_damaged(buffer.getvalue(), chance))
        out = place / "out.bin"
        return Case(["codec.compress", str(path), str(out), "--checkpoint", str(self.checkpoint)])

    def _folder(self, chance: random.Random, place: Path) -> Case:
        """A COCO root with what lies about on disks."""
        train = place / "coco" / "train2017"
        train.mkdir(parents=True)
        for number in range(3):
            shutil.copy(self.photo, train / f"{number:012d}.png")
        for number in range(chance.randint(1, 4)):
            path = train / f"{number}.jpg"
            match chance.randrange(7):
                case 0:
                    os.mkfifo(path)
                case 1:
                    path.symlink_to(chance.choice(["nowhere", "/dev/zero", str(train)]))
                case 2:
                    path.write_bytes(b"")
                case 3:
                    path.write_bytes(_damaged(self.photo.read_bytes(), chance))
                case 4:
                    (train / os.fsdecode(b"\xff\xfe\x1b[2J.png")).write_bytes(self.photo.read_bytes())
                case 5:
                    (train / "loop").symlink_to(train)
                case 6:
                    path.mkdir()
        command = ["coco224.prepare", "--coco_dir", str(place / "coco"), "--out_dir", str(place / "out")]
        if chance.random() < 0.4:
            return Case(["codec.compress", str(train), str(place / "bins"), "--checkpoint", str(self.checkpoint)])
        return Case([*command, "--include_val", "false", "--num_proc", "1", "--size", "64", "--max_bad", "1"])

    def _options(self, chance: random.Random, place: Path) -> Case:
        names = {
            "train_accel": ["lr", "act", "quality", "batch_size", "init_checkpoint", "plugin", "N", "save_dir", "seed"],
            "codec.evaluate": ["images", "checkpoint", "reference", "plot", "json", "batch_size", "coco_dir"],
            "coco224.prepare": ["coco_dir", "out_dir", "size", "crop", "limit", "num_proc", "max_bad"],
            "export.__main__": ["ckpt", "part", "out", "input_size", "opset", "precision", "calib_dir"],
            "codec.push": ["checkpoint", "hub_model_id", "onnx", "plugin"],
        }
        module = chance.choice(list(names))
        words = [module]
        for name in chance.sample(names[module], chance.randint(1, 4)):
            values = [str(value).replace("\0", "") for value in STRANGE if not isinstance(value, list | dict)]
            words += [f"--{name}={chance.choice([*values, str(self.photo), str(place), '/dev/null', '/proc/1/mem'])}"]
        return Case(words)

    def _curve(self, chance: random.Random, place: Path) -> Case:
        curve: Any = {"name": "c", "results": {"bpp": [0.1, 0.5], "psnr-rgb": [28.0, 33.0], "ms-ssim-rgb": [0.9, 0.97]}}
        path = place / "r.json"
        path.write_text(json.dumps(_strange(curve, chance)))
        words = ["--images", str(self.photo), "--checkpoint", str(self.checkpoint), "--reference", str(path)]
        return Case(["codec.evaluate", *words, "--plot", str(place / "p.png")])

    def _compress(self, checkpoint: Path, place: Path) -> Case:
        return Case(["codec.compress", str(self.photo), str(place / "out.bin"), "--checkpoint", str(checkpoint)])

    def _decompress(self, file: Path, place: Path) -> Case:
        out = place / "out.png"
        return Case(["codec.decompress", str(file), str(out), "--checkpoint", str(self.checkpoint)], out, self.decoded)


def _damaged(content: bytes, chance: random.Random) -> bytes:
    return next(damaged([content], 1, chance.randrange(2**32)))


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def _strange(value: Any, chance: random.Random) -> Any:
    """The value with one of its parts replaced, dropped or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        changed = dict(value)
        if chance.random() < 0.2:
            del changed[name]
        elif chance.random() < 0.2:
            changed["extra"] = chance.choice(STRANGE)
        else:
            changed[name] = _strange(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.6:
        place = chance.randrange(len(value))
        return [*value[:place], _strange(value[place], chance), *value[place + 1 :]]
    return chance.choice(STRANGE)
