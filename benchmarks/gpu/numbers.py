"""The GPU's numbers: first losses against the CPU's, compiled against eager."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

from benchmarks.gpu.processes import CPU, start, succeed
from benchmarks.gpu.runs import largest_change, losses
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.standins import capturing
from benchmarks.gpu.steps import RD_SIDE
from benchmarks.harness import Row

FP32, BF16 = 1e-4, 1e-2
"""Largest relative difference of losses. The trainer computes FP32 without TF32."""

FIRST: dict[str, tuple[tuple[object, ...], float]] = {
    "relu, FP32, mse": (("--act", "relu", "--loss_type", "mse", "--amp", "false"), FP32),
    "gdn, FP32, mse": (("--act", "gdn", "--loss_type", "mse", "--amp", "false"), FP32),
    "gate_mlp, FP32, mse": (("--act", "gate_mlp", "--loss_type", "mse", "--amp", "false"), FP32),
    "gdnish, FP32, rd": (("--act", "gdnish", "--loss_type", "rd", "--amp", "false", "--input_size", RD_SIDE), FP32),
    "relu, bf16, mse": (("--act", "relu", "--loss_type", "mse"), BF16),
    "gate_mlp, bf16, mse": (("--act", "gate_mlp", "--loss_type", "mse"), BF16),
}

COMPILED_STEPS, TINY_STEPS = 5, 2
COMPILED = {
    "relu, FP32, mse": FIRST["relu, FP32, mse"],
    "gate_mlp, bf16, mse": FIRST["gate_mlp, bf16, mse"],
    "gdn, bf16, mse": (("--act", "gdn", "--loss_type", "mse"), BF16),
}


def first_losses(setting: Setting) -> Iterator[Row]:
    """The loss of the first step on both devices: weights, pictures and noise are the same."""
    on_cpu = replace(setting, device="cpu", folder=setting.folder / "cpu")
    other = start(run_first_steps, on_cpu, log=setting.folder / "cpu.log", **CPU)
    run_first_steps(setting)
    succeed(other)
    for name, (_, limit) in FIRST.items():
        ours, theirs = (losses(each.folder / name) for each in (setting, on_cpu))
        yield Row(
            f"first loss, {name}: GPU against CPU, relative difference",
            largest_change(ours, theirs),
            "of it",
            at_most=limit,
            sides={"GPU": ours[0], "CPU": theirs[0]},
        )


def run_first_steps(setting: Setting) -> None:
    """One eager step of every case."""
    for name, (options, _) in FIRST.items():
        setting.step(name, 1, "--compile", "false", *options)


def compiled(setting: Setting) -> Iterator[Row]:
    """The losses of some steps, compiled and eager."""
    chosen = list(COMPILED.items())[: 1 if setting.tiny else None]
    steps = TINY_STEPS if setting.tiny else COMPILED_STEPS
    for name, (options, limit) in chosen:
        with nullcontext() if setting.device == "cuda" else capturing():
            sides = {
                how: losses(setting.step(f"{name}, {how}", steps, "--compile", flag, *options))
                for how, flag in (("compiled", "true"), ("eager", "false"))
            }
        yield Row(
            f"losses of {steps} steps, {name}: compiled against eager, largest relative difference",
            largest_change(sides["compiled"], sides["eager"]),
            "of it",
            at_most=limit,
            sides={f"last loss, {how}": series[-1] for how, series in sides.items()},
        )
