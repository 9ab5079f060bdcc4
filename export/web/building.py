"""Puts together the folder of the page: its scripts, the coder as WebAssembly, onnxruntime-web and the models."""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coco224.files import check_writable, read_json, read_regular, write_whole
from codec.errors import InputError
from export.device.compiling import CODER, FLAGS, complaint
from export.device.compiling import SOURCES as CODER_SOURCES
from export.runtime.session import H_A_SUFFIX, TABLES_SUFFIX, Graph, Model

SOURCES = Path(__file__).parent / "src"
PAGE = ("index.html", "page.js", "worker.js", "codec.js", "coder.js", "tiles.js", "isolate.js")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of onnxruntime-web."""

CODECS = "codecs.json"
"""The page's list of codecs, which also marks its folder as ours."""

CODER_WASM = "coder.wasm"
_OF_MODELS = re.compile(r"\d+\.(tables|(encoder|decoder|h_a)\.onnx)|\..*\.partial")
"""The names of the models' files, and of what a kill left."""

FUNCTIONS = ("message", "memory", "open", "about", "work", "size", "decode", "most", "encode", "round", "round_z")
"""Of nic.h."""


def compile_wasm(target: Path) -> None:
    """Writes the coder in C as WebAssembly, with SIMD.

    Raises:
        InputError: clang or its linker for WebAssembly is missing, or fails.
    """
    if not (shutil.which("clang") and shutil.which("wasm-ld")):
        raise InputError("the page needs clang and wasm-ld for the coder; install them (apt-get install clang lld)")
    flags = [*FLAGS, "--target=wasm32", "-msimd128", "-mbulk-memory", "-ffreestanding", "-nostdlib", "-Wl,--no-entry"]
    flags += [f"-Wl,--export=nic_{name}" for name in FUNCTIONS] + ["-Wl,--export=__heap_base", f"-I{SOURCES / 'c'}"]
    sources = [*(CODER_SOURCES / name for name in CODER), SOURCES / "c" / "memory.c"]
    done = subprocess.run(
        ["clang", *flags, *map(str, sources), "-o", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"clang does not compile the coder to WebAssembly: {complaint(done.stderr)}")


def write_page(folder: Path, models: Sequence[tuple[str, Path, Path]], runtime: Path) -> None:
    """Writes the page into a folder.

    Args:
        models: each codec's name on the page, exported encoder and exported decoder, of any size (`--dynamic`).
        runtime: the folder of the npm package onnxruntime-web.

    Raises:
        InputError: something is missing, or a model has a fixed size.
    """
    missing = [name for name in RUNTIME if not (runtime / "dist" / name).is_file()]
    if missing:
        raise InputError(
            f"{runtime} is no folder of onnxruntime-web (dist/{missing[0]} is missing); npm install onnxruntime-web"
        )
    check_writable("DIR", folder)
    if folder.exists() and not _is_page(folder):
        raise InputError(f"{folder} holds something else than such a page: name a new folder")
    for path in (path for _, *parts in models for path in parts):
        if path.parent.resolve() == folder.resolve():
            raise InputError(f"{path} lies in {folder}, whose files are replaced: give the models from another folder")
    described = [_described(name, number, encoder, decoder) for number, (name, encoder, decoder) in enumerate(models)]
    with tempfile.TemporaryDirectory() as beside:
        compile_wasm(Path(beside) / CODER_WASM)
        # An empty list comes first: after a kill the page offers no codec, and the same command goes on.
        write_whole(folder / CODECS, "[]\n")
        write_whole(folder / CODER_WASM, read_regular(Path(beside) / CODER_WASM))
    sources = {name: SOURCES / name for name in PAGE} | {name: runtime / "dist" / name for name in RUNTIME}
    for _, files in described:
        sources |= files
    for name, source in sources.items():
        write_whole(folder / name, read_regular(source))
    write_whole(folder / CODECS, json.dumps([description for description, _ in described], indent=1) + "\n")


def _is_page(folder: Path) -> bool:
    """Whether the folder is empty, or an earlier page, which may be incomplete."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    try:
        codecs = read_json(folder / CODECS)
        known = all({"name", "tables"} <= codec.keys() for codec in codecs)
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    ours = {CODECS, CODER_WASM, *PAGE, *RUNTIME}
    return known and (bool(codecs) or all(name in ours or _OF_MODELS.fullmatch(name) for name in names))


def _described(name: str, number: int, encoder: Path, decoder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The page's description of a codec, and its files by their names there."""
    parts: dict[str, Graph | None] = {"encoder": Model(encoder, "encoder"), "decoder": Model(decoder, "decoder")}
    first, last = parts["encoder"], parts["decoder"]
    assert isinstance(first, Model)
    assert isinstance(last, Model)
    if first.coder.tables.fingerprint != last.coder.tables.fingerprint:
        raise InputError(f"{encoder} and {decoder} belong to different codecs; give the two parts of one codec")
    parts["h_a"] = first.h_a
    paths = {"encoder": encoder, "decoder": decoder, "h_a": encoder.with_suffix(H_A_SUFFIX)}
    tables = f"{number}.tables"
    description: dict[str, Any] = {"name": name, "tables": tables}
    files = {tables: encoder.with_suffix(TABLES_SUFFIX)}
    for part, graph in parts.items():
        if graph is not None:
            description[part] = _graph(graph, paths[part], f"{number}.{part}.onnx")
            files[f"{number}.{part}.onnx"] = paths[part]
    return description, files


def _graph(graph: Graph, path: Path, name: str) -> dict[str, Any]:
    entry = graph.session.get_inputs()[0]
    if any(isinstance(side, int) for side in entry.shape[2:]):
        raise InputError(f"{path} takes pictures of one size; export it with --dynamic")
    return {
        "file": name,
        "input": entry.name,
        "bytes": graph.takes_bytes,
        "magnitudes": graph.takes_magnitudes,
        "margins": graph.margins,
        "unit": graph.unit,
        "steps": None if graph.steps is None else graph.steps.ravel().tolist(),
        "splits": None if graph.splits is None else graph.splits.tolist(),
    }
