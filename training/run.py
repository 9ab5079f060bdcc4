"""A training run: everything that the loop uses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from codec.network.codec import Codec
from codec.network.pixels import to_float
from codec.quantization.calibrate import CALIBRATION_PICTURES, RANGE_PICTURES, fit_activations, round_to_grid
from codec.quantization.phases import build, enter
from training.data import TrainingData
from training.distributed import broadcast_buffers, broadcast_parameters
from training.faults import Watch
from training.micro_batches import MicroBatch
from training.objective import RateDistortion
from training.optim import Schedule
from training.options import Options
from training.precision import apply_local_fp32, memory_format
from training.qat import calibration_pictures
from training.state import Progress, device_tensors, model_tensors


@dataclass
class Run:
    """A training run.

    Attributes:
        codec: the unwrapped model, which shares its parameters with `model`.
        model: the model that the loop calls: wrapped for DDP or FSDP, compiled if wanted.
        objective: the objective, eager.
        loss: the objective, compiled if wanted.
        eval_codec: the copy that `shipped` fills, compiled if wanted.
        clipped: lists of parameters whose gradients are clipped to a common norm.
        total: optimizer steps of the complete run.
        micro_batches: this rank's batches, from the first step of this process.
        fp32_modules: names of the regions of local FP32.
        distilled: how well each block follows its GDN after a distilled start, in dB; empty without one.
        in_place: the run continues from a state in --save_dir.
        last_metrics: validation figures of the current weights; empty after the next step.
    """

    options: Options
    accelerator: Accelerator
    data: TrainingData
    progress: Progress
    total: int
    codec: Codec
    model: nn.Module
    eval_codec: Codec
    objective: RateDistortion
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    optimizer: torch.optim.Optimizer
    clipped: list[list[nn.Parameter]]
    schedule: Schedule
    scaler: GradScaler
    watch: Watch
    micro_batches: Iterator[MicroBatch]
    fp32_modules: list[str]
    distilled: dict[str, float]
    in_place: bool = False
    last_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last incomplete batch is dropped."""
        return self.data.batches.steps_per_epoch

    @property
    def grad_accum(self) -> int:
        """Micro-batches per optimizer step."""
        return self.data.batches.grad_accum

    @property
    def eval_batch(self) -> int:
        """Pictures per batch of an evaluation or of reconstructions; the last batch is filled up."""
        return min(self.options.data.batch_size, len(self.data.pictured))

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    def replica(self) -> Codec:
        """A complete copy of the codec: eager, unwrapped, with its FP32 regions. A collective call under FSDP."""
        copy: Codec = build(self.codec.architecture).train()
        copy.load_weights(model_tensors(self.codec))
        for ours, parameter in zip(self.codec.parameters(), copy.parameters(), strict=True):
            parameter.requires_grad_(ours.requires_grad)
        if self.fp32_modules:
            apply_local_fp32(copy, "custom", self.fp32_modules)
        copy.to(self.device, memory_format=memory_format(self.options.numerics))
        return copy

    def fix_grids(self) -> None:
        """Fits a quantized codec's ranges and rounds its weights (GPTQ), with the same result on all ranks."""
        options = self.options
        of_run = self.data.rows, options.data, options.numerics.seed, self.device
        pictures = calibration_pictures(*of_run, RANGE_PICTURES)
        self.data.batches.follow(self.progress.step)
        fit_activations(self.codec, pictures)
        round_to_grid(self.codec, pictures[:CALIBRATION_PICTURES])
        broadcast_parameters(self.codec)

    def shipped(self) -> Codec:
        """A complete copy with new medians and CDF tables, to evaluate and to save. A collective call.

        Buffers that the ranks do not share, such as the statistics of a BatchNorm, become those of rank 0 on all ranks.
        Every call returns the same module, so that it is compiled once; a new call overwrites its content.

        Raises:
            InputError: a parameter of the entropy model is not finite.
        """
        shipped, quantization = self.eval_codec, self.codec.architecture.quantization
        broadcast_buffers(self.codec)
        shipped.load_weights(device_tensors(self.codec))
        if quantization:
            enter(shipped, quantization.phase, quantization.learning)
        shipped.refresh_tables()
        return shipped

    def to_pictures(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to float32 in [0, 1] on the device, in the run's memory format."""
        return to_float(images, self.device, memory_format(self.options.numerics))

    def autocast(self) -> torch.autocast:
        """The autocast context of the forward; regions of local FP32 turn it off for themselves."""
        numerics = self.options.numerics
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[numerics.amp_dtype]
        return torch.autocast(self.device.type, dtype, enabled=numerics.amp)
