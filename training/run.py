"""One training run: everything that the loop uses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from coco224.batches import Batch
from codec.network.bottleneck import refresh_tables
from codec.network.codec import Codec
from codec.network.pixels import to_float
from codec.quantization.calibrate import round_to_grid
from codec.quantization.phases import build, enter
from training.data import TrainingData
from training.distributed import broadcast_parameters
from training.faults import Watch
from training.objective import RateDistortion
from training.optim import Schedule
from training.options import Options
from training.precision import apply_local_fp32, memory_format
from training.qat import calibration_pictures
from training.state import Progress, model_tensors


@dataclass
class Run:
    """One training run.

    Attributes:
        codec: the unwrapped model, which shares its parameters with `model`.
        model: what the loop calls: wrapped for its launch, compiled where asked.
        objective: the objective, eager.
        loss: the objective, compiled where asked.
        eval_codec: the copy that `shipped` fills, compiled where asked.
        clipped: lists of parameters whose gradients share a norm.
        total: optimizer steps of the complete run.
        micro_batches: this rank's batches, from the step at which the run starts.
        fp32_modules: the regions of local FP32, by name.
        distilled: how well each block follows its GDN after a distilled start, in dB; empty without one.
        in_place: it goes on from a state in --save_dir.
        last_metrics: validation figures of the current weights; empty once these have moved on.
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
    micro_batches: Iterator[Batch]
    fp32_modules: list[str]
    distilled: dict[str, float]
    in_place: bool = False
    last_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last short batch is dropped."""
        return self.data.batches.steps_per_epoch

    @property
    def grad_accum(self) -> int:
        """Micro-batches an optimizer step."""
        return self.data.batches.grad_accum

    @property
    def eval_batch(self) -> int:
        """Pictures in a batch of an evaluation or of reconstructions; the last batch is filled up."""
        return min(self.options.data.batch_size, len(self.data.pictured))

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def replica(self) -> Codec:
        """A complete copy of the codec: eager, unwrapped, with its FP32 regions. A collective call if it is sharded."""
        copy: Codec = build(self.codec.architecture).train()
        copy.load_weights(model_tensors(self.codec))
        for ours, parameter in zip(self.codec.parameters(), copy.parameters(), strict=True):
            parameter.requires_grad_(ours.requires_grad)
        if self.fp32_modules:
            apply_local_fp32(copy, "custom", self.fp32_modules)
        copy.to(self.device, memory_format=memory_format(self.options.numerics))
        return copy

    def round_weights(self) -> None:
        """Rounds the weights of a quantized codec to their grids (GPTQ), on all ranks alike."""
        options = self.options
        pictures = calibration_pictures(self.data.rows, options.data, options.numerics.seed, self.device)
        round_to_grid(self.codec, pictures)
        broadcast_parameters(self.codec)

    def shipped(self) -> Codec:
        """What is evaluated and saved: a complete copy with fresh medians and CDF tables. Collective too.

        It is the same module each time, so that it is compiled once; its earlier contents are gone.

        Raises:
            InputError: a parameter of the entropy model is not finite.
        """
        shipped, quantization = self.eval_codec, self.codec.architecture.quantization
        shipped.load_weights(model_tensors(self.codec))
        if quantization:
            enter(shipped, quantization.phase, quantization.learning)
        refresh_tables(shipped)
        return shipped

    def to_pictures(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] on the host to float32 in [0, 1] on the device, in the layout that convolutions run on."""
        return to_float(images, self.device, memory_format(self.options.numerics))

    def autocast(self) -> torch.autocast:
        """The precision of the forward; regions of local FP32 leave it by themselves."""
        numerics = self.options.numerics
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[numerics.amp_dtype]
        return torch.autocast(self.device.type, dtype, enabled=numerics.amp)
