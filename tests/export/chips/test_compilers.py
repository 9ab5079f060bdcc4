"""The interface of compilers: a fake one in a process of its own, and what real ones reported, read again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from codecs_for_export import in_int8, make
from programs import ROOT

from codec.errors import InputError
from export.chips import judge, sophgo
from export.chips.arm import Arm
from export.chips.compiler import Compiler, Estimate, Job, Refused
from export.chips.compilers import COMPILERS, TARGETS, installed, require
from export.chips.intel import Intel, words
from export.chips.part import QuantizedPart
from export.chips.rockchip import Rockchip
from export.chips.sophgo import Sophgo
from export.pictures import sample_picture

FAKE = """
import os
import numpy as np
from export.chips.compiler import INPUT, Compiler, Estimate, Refused

class Fake(Compiler):
    name, package, targets = "fake", "numpy", ("good", "partly", "refuses", "fails", "crashes", "blind")

    def prepare(self, part, job):
        (job.folder / "taken.txt").write_text(part.name)
        return {"form": "its own"}

    def compile(self, job):
        print("what a compiler prints is no answer")
        if job.target == "refuses":
            raise Refused("no Conv of 5x5")
        if job.target == "fails":
            raise KeyError("bug")
        if job.target == "crashes":
            print("segmentation fault", flush=True)
            os._exit(139)
        return f"{(job.folder / 'taken.txt').read_text()} {job.options['sram_kib']}"

    def figures(self, job, report):
        left = "2 operators are left for the CPU" if job.target == "partly" else ""
        return Estimate(left, {"ms": 1.5, "saw": report})

    def simulate(self, job):
        if job.target == "blind":
            raise RuntimeError("no memory")
        return np.load("answer.npy") if job.target == "good" else None
"""
PYTHON = """#!{python}
import sys
sys.path.insert(0, {folder!r})
from export.chips import compilers
from fake import Fake
compilers.COMPILERS["fake"] = Fake()
from export.chips import worker
sys.argv = ["worker", "fake"]
worker.main()
"""


@pytest.fixture(scope="module")
def part() -> QuantizedPart:
    x = sample_picture(64)
    return QuantizedPart(in_int8(make("relu"), x), "encoder", x)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of environments with that of a compiler whose chips each answer in another way."""
    (tmp_path / "fake.py").write_text(FAKE)
    python = tmp_path / "fake" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON.format(python=sys.executable, folder=str(tmp_path)))
    python.chmod(0o755)
    found: dict = {}
    exec(FAKE, found)
    monkeypatch.setattr(judge, "TARGETS", TARGETS | dict.fromkeys(found["Fake"].targets, found["Fake"]()))
    return tmp_path


@pytest.mark.slow
def test_every_way_to_answer_becomes_a_verdict(part: QuantizedPart, fake: Path) -> None:
    targets = ("good", "partly", "refuses", "fails", "crashes", "blind")
    out = fake / "out"
    (out / "good" / "encoder").mkdir(parents=True)
    theirs = part.output.copy()
    theirs.flat[0] += 1
    np.save(out / "good" / "encoder" / "answer.npy", theirs)
    verdicts = {each.target: each for each in judge.judge([part], targets, fake, out, {"sram_kib": 7})}

    good = verdicts["good"]
    assert not good.complaint
    assert good.figures == {"form": "its own", "ms": 1.5, "saw": "encoder 7"}
    assert good.difference == {
        "equal, %": pytest.approx(100 - 100 / theirs.size, abs=0.01),
        "mean": 0.0052,
        "largest": 1,
    }
    assert good.tool == f"numpy {np.__version__}"
    assert str(good).startswith(
        "all on the chip | form its own, ms 1.5, saw encoder 7 | simulated: 99.48 % of the symbols"
    )
    assert str(verdicts["partly"]).startswith("NOT all on the chip | form")
    assert verdicts["refuses"].complaint == "the compiler refuses it: no Conv of 5x5"
    assert verdicts["fails"].complaint == "the compiler fails: KeyError: 'bug'"
    assert verdicts["crashes"].complaint == "the compiler ends with status 139: segmentation fault"
    assert "simulator fails: RuntimeError: no memory" in verdicts["blind"].figures["simulation"]
    assert "no answer" in (out / "good" / "encoder" / "log.txt").read_text()


def test_a_decoder_is_judged_by_its_picture_too(part: QuantizedPart) -> None:
    decoder = QuantizedPart(part.codec, "decoder", part.x)
    assert (part.values, decoder.values) == ("symbols", "bytes")
    off_by_one = (part.x * 255).round().byte().numpy() ^ 1
    assert decoder.psnr(off_by_one) == pytest.approx(20 * np.log10(255), abs=0.01)


def test_levels_are_compared_as_the_whole_numbers_that_they_stand_for(part: QuantizedPart) -> None:
    codec = in_int8(make("relu", arch="mbt2018_mean"), part.x)
    encoder = QuantizedPart(codec, "encoder", part.x)
    codec.g_a.levels.step.fill_(0.25)
    assert encoder.values == "levels"
    assert encoder.rounded(np.full((1, codec.M, 1, 1), 128 + 9, np.uint8)).flatten().tolist() == [2.0] * codec.M


def test_a_missing_environment_is_one_sentence_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `make npu CHIP=rockchip`, which installs rknn-toolkit2"):
        require(["rk3588"], tmp_path)
    assert installed(tmp_path) == []


def test_every_compiler_has_its_environment_and_chips_of_its_own() -> None:
    root = Path(__file__).parents[3]
    assert {path.stem for path in (root / "constraints-npu").glob("*.txt")} == set(COMPILERS)
    for name, compiler in COMPILERS.items():
        pins = (root / "constraints-npu" / f"{name}.txt").read_text().replace("_", "-")
        assert f"\n{compiler.package}==" in pins
    assert len(TARGETS) == sum(len(each.targets) for each in COMPILERS.values())


def job(target: str = "", **options: object) -> Job:
    return Job("encoder", target, Path(), options)


def read(compiler: Compiler, report: str, given: Job | None = None) -> Estimate:
    return compiler.figures(given or job(), report)


RKNN = """\
D RKNN: [20:54:26.668] ID   OpType   DataType Target InputShape OutputShape Cycles(DDR/NPU/Total) RW(KB) FullName
D RKNN: [20:54:26.668] 0    InputOperator      INT8     CPU    \\   (1,3,224,224)  0/0/0    0    InputOperator:x
D RKNN: [20:54:26.668] 1    ConvRelu           INT8     NPU    (1,3,224,224),(128,3,5,5),(128) (1,128,112,112)  \
76452/1254400/1254400    198          Conv:/0/0.0/Conv
D RKNN: [20:54:26.668] 2    Sqrt               FLOAT16  NPU    (1,8,6,6) (1,8,6,6)  10/20/30   802  Sqrt:/0/S
\x1b[32mD RKNN: [20:54:26.668] 3    Transpose          INT8     CPU    (1,2,4,4)  (1,4,4,2)  0/0/0   0%   1  T:/0/T
\x1b[0mD RKNN: [20:54:26.668] 4    OutputOperator     INT8     CPU    (1,192,14,14)   \\   0/0/0    36  Output:symbols
D RKNN: [20:54:26.669] Total Internal Memory Size: 2107.5KB
"""


def test_rockchips_log_is_read() -> None:
    found = read(Rockchip(), RKNN)
    assert found.complaint == "1 operator is left for the CPU: Transpose"
    counted = {"CPU operators": 1, "operators in FP16": "1 of 3"}
    assert found.figures == {"Mcycles": 1.25, "MB moved": 1.0, **counted, "internal memory, KB": 2108}
    assert read(Rockchip(), RKNN.replace("INT8     CPU    (1,2", "INT8     NPU    (1,2")).complaint == ""
    with pytest.raises(Refused, match="no table"):
        read(Rockchip(), "I rknn building done.")


def test_sophgos_report_is_read() -> None:
    report = """\
TCYC : 567175. (bdc_cycle:497698, gdma_cycle:153991)
GDMA SUMMARY : |dr[0] S2L:2031328|dr[1] L2S:439040|dr[2] S2S:0|dr[3] L2L:0
flops: 3697206016, runtime: 0.630194ms, ComputationAbility: 5.866770T
    %1 = "tpu.Cast"(%0) {w = true} : (tensor<1x3x4x4xf32>) -> tensor<1x3x4x4x!quant.uniform<u8:f32, 0.0039>> loc(#loc2)
    %4 = "tpu.Conv2D"(%1) {a = [1]} : (tensor<1x3x4xi8>) -> tensor<1x8x2x2x!quant.uniform<u8:f32, 0.0026>> loc(#loc3)
    %5 = "tpu.Concat"(%4) {} : (tensor<1x8x2x2xf16>) -> tensor<1x8x2x2x!quant.calibrated<f16<-1.0:1.0>>> loc(#loc4)
"""
    found = read(Sophgo(), report)
    assert found == Estimate(
        "", {"ms": 0.63, "Mcycles": 0.57, "MB moved": 2.5, "CPU operators": 0, "layers in float": "1 of 2"}
    )
    assert read(Sophgo(), report.replace("Concat", "GenericCpu")).complaint == "1 operator is left for the CPU"


def test_sophgos_table_has_our_ranges_and_the_scales_of_our_weights() -> None:
    ranges = {"x": (0.0, 1.0), "symbols": (-128.0, 127.0), "/0/Relu_output_0": (0.0, 2.5), "/0/R": (-1.0, 3.0)}
    lines = sophgo.table(
        ["x", "/0/Relu_output_0_Relu", "symbols_Conv", "other"], ranges, {"symbols": [0.5, 0.25]}
    ).splitlines()
    assert lines[1:4] == ["x 1 0 1", "/0/Relu_output_0_Relu 2.5 0 2.5", "symbols_Conv 127 -128 127"]
    assert lines[4:] == ["#weight_scale", "symbols_Conv_weight 2 0.5 0.25"]
    assert sophgo.grid((-128.0, 127.0)) == (1.0, 128)


def test_velas_operators_on_the_cpu_and_memory_are_complaints() -> None:
    said = {
        "strategy": "Size", "milliseconds": 1.25, "macs": 2e9, "sram_kib": 300.0, "dram_kib": 0.0, "cpu_operators": [],
        "file": "x",
    }  # fmt: skip
    assert read(Arm(), json.dumps(said), job("ethos-u55-256")).complaint == ""
    small = read(Arm(), json.dumps(said), job("ethos-u55-256", sram_kib=256))
    assert small.complaint == "it needs 300 KiB of SRAM, and the chip has 256 KiB"
    assert read(Arm(), json.dumps(said), job("ethos-u65-512", sram_kib=256)).complaint == ""
    left = read(Arm(), json.dumps(said | {"cpu_operators": ["SQRT", "DIV"]}), job("ethos-u65-512"))
    assert left.complaint == "2 operators are left for the CPU: SQRT, DIV"


def test_openvinos_layers_and_words_are_read() -> None:
    layers = [("Input", "u8"), ("Convolution", "u8"), ("Subgraph", "bf16"), ("Reorder", "f32"), ("Subgraph", "f32")]
    figures = read(Intel(), json.dumps({"layers": layers, "saturates": False})).figures
    assert figures == {"layers in float": "2 of 3", "in float": "2 Subgraph"}
    figures = read(Intel(), json.dumps({"layers": layers, "saturates": True})).figures
    assert figures["layers in float"].startswith("all, since int8 sums saturate on this CPU")
    error = 'Exception from src/a.cpp:1:\nException from b:2:\nCannot load library "/x/y/libnpu.so": it is absent\n\n'
    assert words(error) == "Cannot load library libnpu.so: it is absent"


def test_a_compiler_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    """The command is a process between: it starts one that ends with it, and then is killed."""
    compiler = "import os, sys, time; from export.chips.lifetime import end_with; end_with(int(sys.argv[1])); " \
        "print(os.getpid(), flush=True); time.sleep(60)"  # fmt: skip
    command = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {compiler!r}, str(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    number = process.stdout.readline().decode().strip()
    assert Path("/proc", number).exists()
    process.kill()
    assert not process.stdout.read()  # until the compiler, too, has closed it
    process.wait()
