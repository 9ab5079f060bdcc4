"""Damaged and hostile inputs to the commands, one for each seed: what `benchmarks.fuzz` runs."""

import contextlib
import io
import json
import os
import random
import shlex
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.commands import PLUGINS, STRANGE, Case, Commands, damage, strange, varint
from benchmarks.damage import forged, sides_begin


class Inputs(Commands):
    """Makes inputs in a folder."""

    def make(self, seed: int) -> Case:
        """The input of a seed."""
        chance = random.Random(seed)
        place = self.folder / f"{seed:05d}"
        place.mkdir()
        kinds = (
            self._bytes_of_a_checkpoint, self._metadata, self._state_dict, self._file, self._forged_file, self._yaml,
            self._photograph, self._folder, self._options, self._curve, self._tables, self._model, self._dataset,
            self._pipeline, self._plugin,
        )  # fmt: skip
        return kinds[seed % len(kinds)](chance, place)

    def _bytes_of_a_checkpoint(self, chance: random.Random, place: Path) -> Case:
        path = place / "c.safetensors"
        path.write_bytes(damage(chance.choice(self.originals).checkpoint.read_bytes(), chance))
        return self.compress(path, place)

    def _metadata(self, chance: random.Random, place: Path) -> Case:
        """A checkpoint whose checksum is right and whose description is not."""
        from safetensors.numpy import load, save

        from codec.description.fingerprint import fingerprint

        content = chance.choice(self.originals).checkpoint.read_bytes()
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        metadata.pop("sha256")
        arrays = load(content)
        for _ in range(chance.randint(1, 2)):
            name = chance.choice([*metadata, "unknown"])
            with contextlib.suppress(ValueError, KeyError, RecursionError):
                value = json.loads(metadata[name])
                metadata[name] = json.dumps(strange(value, chance))
                continue
            metadata[name] = chance.choice(["", "{", "null", "[" * 3000, "x"])
        if chance.random() < 0.4:
            name = chance.choice(list(arrays))
            array = arrays[name]
            other = np.full_like(array, np.nan if array.dtype.kind == "f" else -1)
            arrays[name] = chance.choice(
                [array[..., None], array.astype(np.float64), array.ravel(), other, array.ravel()[:0]]
            )
        metadata["sha256"] = fingerprint(arrays, metadata)
        path = place / "c.safetensors"
        path.write_bytes(save(arrays, metadata))
        return self.compress(path, place)

    def _state_dict(self, chance: random.Random, place: Path) -> Case:
        """A `.pth.tar`, damaged, or with a strange tensor."""
        import torch

        path, original = place / "c.pth.tar", chance.choice(self.originals).state
        if chance.random() < 0.4:
            path.write_bytes(damage(original.read_bytes(), chance))
            return self.compress(path, place)
        state: dict[str, Any] = torch.load(original, weights_only=True)
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
        return self.compress(path, place)

    def _file(self, chance: random.Random, place: Path) -> Case:
        path, original = place / "p.bin", chance.choice(self.originals)
        path.write_bytes(damage(original.packed, chance))
        return self.decode(path, place, original) if chance.random() < 0.5 else self.decompress(path, place, original)

    def _forged_file(self, chance: random.Random, place: Path) -> Case:
        """A file with another size or other symbols under a checksum that is right. Any picture may come of it."""
        original = chance.choice(self.originals)
        file = bytearray(original.packed)
        if chance.random() < 0.6:
            sides = [varint(chance.choice([1, 65535, 2**20, 13000, 200, 2**31])) for _ in range(2)]
            start = sides_begin(file)
            file[start : start + 3] = b"".join(sides)  # 128x96: a varint of two bytes and one of one
        else:
            file[chance.randrange(12, len(file))] ^= 1 << chance.randrange(8)
        path = place / "p.bin"
        path.write_bytes(forged(bytes(file)))
        decode = self.decode if chance.random() < 0.5 else self.decompress
        return Case(decode(path, place, original).words)

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
        path.write_bytes(damage(buffer.getvalue(), chance))
        return self.encode(path, place / "out.bin", chance)

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
                    path.write_bytes(damage(self.photo.read_bytes(), chance))
                case 4:
                    (train / os.fsdecode(b"\xff\xfe\x1b[2J.png")).write_bytes(self.photo.read_bytes())
                case 5:
                    (train / f"loop{number}").symlink_to(train)
                case 6:
                    path.mkdir()
        command = ["coco224.prepare", "--coco_dir", str(place / "coco"), "--out_dir", str(place / "out")]
        if chance.random() < 0.6:
            return self.encode(train, place / "bins", chance)
        return Case([*command, "--include_val", "false", "--num_proc", "1", "--size", "64", "--max_bad", "1"])

    def _options(self, chance: random.Random, place: Path) -> Case:
        names = {
            "train_accel": ["lr", "act", "quality", "batch_size", "init_checkpoint", "plugin", "N", "save_dir", "seed"],
            "codec.evaluate": ["images", "checkpoint", "reference", "plot", "json", "batch_size", "coco_dir"],
            "coco224.prepare": ["coco_dir", "out_dir", "size", "crop", "limit", "num_proc", "max_bad"],
            "export.__main__": ["ckpt", "part", "out", "input_size", "opset", "precision", "calib_dir"],
            "codec.push": ["checkpoint", "hub_model_id", "onnx", "plugin"],
            "codec.compress": [
                "checkpoint",
                "plugin",
                "overwrite",
                "rate",
                "target_bpp",
                "target_bytes",
                "target_psnr",
            ],
            "codec.decompress": ["checkpoint", "plugin", "overwrite"],
            "export.runtime": ["model", "tables", "decoder", "overwrite", "rate", "target_bytes", "target_psnr"],
            "export.report": ["ckpt", "onnx", "out", "input_size", "calib_dir", "plugin"],
            "export.web": ["encoder", "decoder"],
        }
        module = chance.choice(list(names))
        words = [module]
        if module == "export.runtime":
            words.append(chance.choice(["encode", "decode", "x"]))
        if module in ("codec.compress", "codec.decompress", "export.runtime", "export.web"):
            paths = [str(self.photo), str(self.folder / "dataset"), "/dev/null", str(place / "out"), "", "nowhere"]
            words += [chance.choice(paths) for _ in range(1 if module == "export.web" else 2)]
        original = chance.choice(self.originals)
        files = [*map(str, (self.photo, place, original.checkpoint, original.encoder)), "/dev/null", "/proc/1/mem"]
        for name in chance.sample(names[module], chance.randint(1, min(4, len(names[module])))):
            values = [str(value).replace("\0", "") for value in STRANGE if not isinstance(value, list | dict)]
            words += [f"--{name}={chance.choice([*values, *files])}"]
        return Case(words)

    def _curve(self, chance: random.Random, place: Path) -> Case:
        curve: Any = {"name": "c", "results": {"bpp": [0.1, 0.5], "psnr-rgb": [28.0, 33.0], "ms-ssim-rgb": [0.9, 0.97]}}
        path = place / "r.json"
        path.write_text(json.dumps(strange(curve, chance)))
        words = ["--images", str(self.photo), "--checkpoint", str(self.checkpoint), "--reference", str(path)]
        return Case(["codec.evaluate", *words, "--plot", str(place / "p.png")])

    def _tables(self, chance: random.Random, place: Path) -> Case:
        """The runtime with tables that are damaged, or altered under a checksum that is right, or another codec's."""
        original, other = chance.choice(self.originals), chance.choice(self.originals)
        path, content = place / "t.tables", original.decoder.with_suffix(".tables").read_bytes()
        match chance.randrange(3):
            case 0:
                path.write_bytes(damage(content, chance))
            case 1:
                changed = bytearray(content)
                for _ in range(chance.choice((1, 1, 4, 64))):
                    changed[chance.randrange(12, min(len(changed), chance.choice((48, 10**9))))] = chance.randrange(256)
                path.write_bytes(bytes(changed[:8]) + zlib.crc32(changed[12:]).to_bytes(4, "little") + changed[12:])
            case 2:
                path.write_bytes(other.decoder.with_suffix(".tables").read_bytes())
        (place / "p.bin").write_bytes(original.packed)
        if chance.random() < 0.5:
            words = ["encode", str(self.photo), str(place / "out.bin"), "--model", str(original.encoder)]
        else:
            words = ["decode", str(place / "p.bin"), str(place / "out.png"), "--model", str(original.decoder)]
        return Case(["export.runtime", *words, "--tables", str(path)])

    def _model(self, chance: random.Random, place: Path) -> Case:
        """The runtime with a model that is damaged, or whose h_a is, or that is another part or codec."""
        original, other = chance.choice(self.originals), chance.choice(self.originals)
        for path in original.encoder.parent.glob("*coder.*"):
            shutil.copy(path, place)
        found = sorted(place.glob("*.onnx"))
        path = chance.choice(found)
        if chance.random() < 0.8:
            path.write_bytes(damage(path.read_bytes(), chance))
        else:
            shutil.copy(chance.choice([other.encoder, other.decoder]), path)
        (place / "p.bin").write_bytes(original.packed)
        if path.name == "decoder.onnx":
            words = ["decode", str(place / "p.bin"), str(place / "out.png"), "--model", str(path)]
        else:
            words = ["encode", str(self.photo), str(place / "out.bin"), "--model", str(place / "encoder.onnx")]
        return Case(["export.runtime", *words])

    def _dataset(self, chance: random.Random, place: Path) -> Case:
        """A prepared dataset one of whose files is damaged, missing, or JSON with another value."""
        root = shutil.copytree(self.folder / "dataset", place / "dataset")
        path = chance.choice(sorted(each for each in root.rglob("*") if each.is_file()))
        if path.suffix == ".json" and chance.random() < 0.6:
            path.write_text(json.dumps(strange(json.loads(path.read_text()), chance)))
        elif chance.random() < 0.2:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes(), chance))
        if chance.random() < 0.6:
            return Case(["codec.evaluate", "--coco_dir", str(root), "--checkpoint", str(self.checkpoint)])
        tiny = (
            "--pretrained false --N 8 --M 12 --loss_type mse --input_size 64 --batch_size 4 --max_steps 1 --amp false"
        )
        folders = ["--save_dir", str(place / "run"), "--recon_dir", str(place / "recon"), "--recon_every", "0"]
        return Case(["train_accel", "--coco_dir", str(root), *tiny.split(), "--num_workers", "0", *folders])

    def _pipeline(self, chance: random.Random, place: Path) -> Case:
        """A recipe with a list `then` that is not in order; where it is, the training is one that refuses to start."""
        steps: Any = [
            {"evaluate": {"images": str(self.photo), "json": str(place / "e.json")}},
            {"export": {"part": "encoder", "out": str(place / "e.onnx"), "precision": "int8"}},
            {"report": {"out": str(place / "r.json")}},
        ]
        for _ in range(chance.randint(1, 3)):
            steps = strange(steps, chance)
        recipe = {"coco_dir": "nowhere", "act": "relu", "save_dir": str(place / "run"), "then": steps}
        path = place / "r.yaml"
        text = json.dumps(recipe, ensure_ascii=chance.random() < 0.5)  # JSON is YAML
        path.write_bytes(damage(text.encode(), chance) if chance.random() < 0.3 else text.encode())
        refuses = "import sys; print('error: no training', file=sys.stderr); sys.exit(2)"
        return Case(["codec_pipeline", str(path), "--launcher", shlex.join([sys.executable, "-c", refuses])])

    def _plugin(self, chance: random.Random, place: Path) -> Case:
        """A plugin that does something else than to register a block."""
        path = place / "mine.py"
        path.write_text(chance.choice(PLUGINS))
        words = ["codec.compress", str(self.photo), str(place / "o.bin"), "--checkpoint", str(self.checkpoint)]
        if chance.random() < 0.5:
            words = [
                "train_accel",
                "--coco_dir",
                str(place / "nowhere"),
                "--act",
                "mine",
                "--save_dir",
                str(place / "run"),
            ]
        return Case([*words, "--plugin", str(path)])
