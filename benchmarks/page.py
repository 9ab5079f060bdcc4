"""`python -m benchmarks.page`: the embedded codec in a browser: a photograph of 768x512 there and back, in int8.

Needs `make web`, clang and lld, Chromium and chromedriver; skips without them. The page has two threads.
"""

import functools
import http.server
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import ROOT, Row, publish
from codec.sample import NPU
from codec.targets import TargetOptions
from codec_demo import photograph
from export.__main__ import main as export
from export.runtime import Model, encode
from export.web import main as write_page

SIZE = 768, 512
ROUNDS = 7
AT_MOST = 3.0
"""Seconds from a photograph to its file and its decoded picture."""

RUNTIME = ROOT / "node_modules" / "onnxruntime-web"
PROGRAMS = ("clang", "wasm-ld", "chromium", "chromedriver")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """The standard library's server without its log."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a static server of this folder, on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextmanager
def browser_at(folder: Path) -> Iterator[Any]:
    """A headless browser with the page of this folder."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    from selenium.webdriver.support.wait import WebDriverWait

    options = ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    with served(folder) as address:
        browser = Chrome(options, ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(f"{address}/index.html")
            WebDriverWait(browser, 60).until(lambda each: each.find_elements("tag name", "option"))
            yield browser
        finally:
            browser.quit()


def coded(browser: Any, source: Path, out: Path) -> tuple[float, bytes]:
    """Seconds until the page has the file and the decoded picture of a photograph, and that file."""
    from selenium.webdriver.support.wait import WebDriverWait

    find = functools.partial(browser.find_element, "id")
    browser.execute_script("document.getElementById('file').value = ''")
    begun = time.perf_counter()
    find("file").send_keys(str(source))
    WebDriverWait(browser, 60, poll_frequency=0.01).until(lambda _: find("state").text == "")
    seconds = time.perf_counter() - begun
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(out)})
    find("download").click()
    file = out / f"{source.stem}.bin"
    WebDriverWait(browser, 20).until(lambda _: file.exists())
    data = file.read_bytes()
    file.unlink()
    return seconds, data


def main() -> None:
    """Measures on two cores."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)] + ["make web"] * (not RUNTIME.is_dir()):
        print(f"skipped: {', '.join(missing)}: not installed")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {part: folder / f"{part}.onnx" for part in ("encoder", "decoder")}
        for part, path in models.items():
            words = ["--ckpt", NPU, "--precision", "int8", "--dynamic", "true", "--part", part, "--out", str(path)]
            assert export(words) == 0
        pair = ["--encoder", str(models["encoder"]), "--decoder", str(models["decoder"])]
        assert write_page([str(folder / "site"), *pair, "--onnxruntime", str(RUNTIME)]) == 0
        picture = Image.open(photograph()).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
        picture.save(folder / "photograph.png")
        with browser_at(folder / "site") as browser:
            isolated = browser.execute_script("return crossOriginIsolated")
            found = [coded(browser, folder / "photograph.png", folder / "out") for _ in range(ROUNDS + 1)]
        model = Model(models["encoder"], "encoder")
        expected = encode(np.asarray(picture), model, TargetOptions(rate=1.0))
    same = sum(data == expected for _, data in found)
    publish(
        "page",
        [
            Row(
                "a photograph of 768x512 to its file and back, int8, in headless Chromium",
                median(seconds for seconds, _ in found[1:]),
                "s",
                at_most=AT_MOST,
                sides={"the first one, s": found[0][0], "bytes": len(expected), "cores": os.cpu_count() or 0},
                note="with threads" if isolated else "one thread",
            ),
            Row(f"files of {len(found)} that are the Python side's", same, "files", at_least=len(found)),
        ],
    )


if __name__ == "__main__":
    main()
