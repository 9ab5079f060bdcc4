"""From options to everything that the training loop uses, refusing what cannot work before the first step."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, LoggerType, broadcast, set_seed
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from tqdm import tqdm

from coco224.batches import Batch, TrainBatches, train_loader
from coco224.dataset import Rows, open_rows
from codec.blocks import options_dict
from codec.checkpoint import load_initial
from codec.deconvolution import set_biases_apart
from codec.distill import FIT_BATCHES, distill
from codec.entropy import refresh_tables
from codec.errors import InputError
from codec.losses import RateDistortion
from codec.model import (
    Activation,
    Architecture,
    Codec,
    set_trainable,
    trainable_modules,
    zoo_state,
    zoo_widths,
)
from codec.precision import apply_local_fp32
from codec.quant import LESSONS, TRANSFORMS, enter, equalize_channels, settle_weights
from training.distributed import check_launch, check_precision
from training.faults import Watch
from training.memory import keep_freed_memory
from training.optim import Schedule, clipped_together, make_optimizer
from training.options import ModelOptions, Options
from training.qat import check_phases, check_regions, enter_phase, quantize
from training.resume import accumulation_for, make_room, saved_progress
from training.state import Progress, load_optimizer_tensors, load_tensors, model_tensors
from training.uploads import check_hub


@dataclass
class Run:
    """One training run.

    Attributes:
        codec: the unwrapped model, which shares its parameters with `model`.
        model: what the loop calls: wrapped for its launch, compiled where asked.
        loss: the objective, compiled where asked.
        eval_codec: the copy that `shipped` fills, compiled where asked.
        clipped: lists of parameters whose gradients share a norm.
        total: optimizer steps of the whole run.
        grad_accum: micro-batches an optimizer step.
        validation: whole rows to evaluate on, or None.
        dataset: the data's name on the Hub, empty where it is a folder here.
        pictured: rows whose reconstructions are saved.
        fp32_modules: the regions of local FP32, by name.
        distilled: how well each block follows its GDN after a distilled start, in dB; empty without one.
        last_metrics: validation figures of the current weights; empty once they have moved on.
    """

    options: Options
    accelerator: Accelerator
    codec: Codec
    model: nn.Module
    objective: RateDistortion
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    eval_codec: Codec
    optimizer: torch.optim.Optimizer
    clipped: list[list[nn.Parameter]]
    schedule: Schedule
    scaler: GradScaler
    train_batches: TrainBatches
    micro_batches: Iterator[Batch]
    train_rows: Rows
    validation: Rows | None
    dataset: str
    pictured: Rows
    total: int
    grad_accum: int
    progress: Progress
    fp32_modules: list[str]
    distilled: dict[str, float]
    watch: Watch
    last_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch; the last short batch is dropped."""
        return self.train_batches.steps_per_epoch

    @property
    def eval_batch(self) -> int:
        """Pictures a batch of an evaluation or of reconstructions; the last one is filled up."""
        return min(self.options.data.batch_size, len(self.pictured))

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def replica(self) -> Codec:
        """A whole copy of the codec: eager, unwrapped, with its FP32 regions. A collective call where it is sharded."""
        copy = Codec(self.codec.architecture).train()
        copy.load_weights(model_tensors(self.codec))
        for ours, parameter in zip(self.codec.parameters(), copy.parameters(), strict=True):
            parameter.requires_grad_(ours.requires_grad)
        if self.fp32_modules:
            apply_local_fp32(copy, "custom", self.fp32_modules)
        return copy.to(self.device, memory_format=memory_format(self.options))

    def settle_weights(self) -> None:
        """Puts the weights of a quantized codec on their grids, on all ranks alike."""
        settle_weights(self.codec, lessons(self.train_rows, self.options, self.device))
        agree(self.codec)

    def shipped(self) -> Codec:
        """What is evaluated and saved: a whole copy, whose medians and CDF tables fit its densities. Collective too.

        It is the same module each time, so that it is compiled once; what it was before is gone.

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
        x = images.to(self.device, non_blocking=True).float().div_(255)
        return x.contiguous(memory_format=memory_format(self.options))

    def autocast(self) -> torch.autocast:
        """The precision of the forward; regions of local FP32 leave it by themselves."""
        numerics = self.options.numerics
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[numerics.amp_dtype]
        return torch.autocast(self.device.type, dtype, enabled=numerics.amp)


def set_up(options: Options) -> Run:
    """Builds a run, from its saved state where it resumes.

    Raises:
        InputError, DataError: the options, the data, the checkpoint or the launch cannot work.
    """
    numerics = options.numerics
    check_precision(numerics.amp_dtype if numerics.amp else None)
    accelerator = make_accelerator(options)
    check_launch(accelerator)
    if options.reporting.push_to_hub:
        check_hub(options.reporting, accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()

    train_rows, validation = training_data(options)
    progress, state_path = saved_progress(options, train_rows.fingerprint, accelerator)
    world, batch_size = accelerator.num_processes, options.data.batch_size
    grad_accum = accumulation_for(progress.global_batch, batch_size, world) if state_path else options.data.grad_accum
    batches = TrainBatches(
        train_rows,
        seed=numerics.seed,
        input_size=options.data.input_size,
        hflip=options.data.hflip,
        batch_size=batch_size,
        grad_accum=grad_accum,
        rank=accelerator.process_index,
        world_size=world,
    )
    progress.global_batch = batches.global_batch
    total = options.schedule.epochs * batches.steps_per_epoch
    total = min(total, options.schedule.max_steps or total)
    if options.qat.qat:
        check_phases(options.qat, total, accelerator.distributed_type == DistributedType.FSDP)

    objective = RateDistortion(**asdict(options.loss))
    set_seed(numerics.seed)
    initial = initial_codec(options.model)
    codec = initial.without_quantization() if initial.architecture.quantization else initial
    distilled = replace_blocks(codec, options, None if state_path else train_rows, accelerator)
    modules = trainable_modules(codec, options.replacement.replace_parts, options.replacement.train_scope)
    set_trainable(codec, modules, options.entropy_model.eb_aux)
    if options.qat.qat:
        quantize(codec, options.qat, initial)
    globs = tuple((numerics.local_fp32_custom or "").split(","))
    fp32_modules = apply_local_fp32(codec, numerics.local_fp32, globs) if numerics.amp else []
    if state_path:
        model_state, optimizer_state = load_tensors(state_path)
        codec.load_weights(model_state)
    enter_phase(codec, options.qat, progress.step)
    if options.qat.qat and numerics.amp:
        check_regions(codec, fp32_modules)
    sharded = accelerator.distributed_type == DistributedType.FSDP  # which takes contiguous parameters alone
    codec = codec.to(accelerator.device)
    codec = codec if sharded else codec.to(memory_format=memory_format(options))
    if options.qat.qat and not state_path:
        equalize_channels(codec, lessons(train_rows, options, accelerator.device))
        agree(codec)
    compiles = numerics.compile if numerics.compile is not None else accelerator.device.type == "cuda" and not sharded
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]] = objective
    eval_codec = Codec(codec.architecture).eval().requires_grad_(False)
    eval_codec.to(accelerator.device, memory_format=memory_format(options))
    if compiles:
        if sharded:
            raise InputError(
                "--compile true under FSDP, whose hooks are no part of a graph: leave --compile out, or use DDP"
            )
        if accelerator.device.type == "cpu":
            set_biases_apart(codec)
        # DDP's own splitting of the graph would hide communication, which takes a hundredth of a step here.
        torch._dynamo.config.optimize_ddp = False
        # Training and evaluation share the code of a forward and so its cache, with a graph each for each phase of QAT
        # and, in evaluation, for symbols that fit 8 bits and that do not.
        torch._dynamo.config.recompile_limit = 16
        for each in (codec, eval_codec):  # in place: the state dict's names stay
            each.compile(fullgraph=True, dynamic=False)  # else the other's picture size would make this one's dynamic
        loss = torch.compile(objective, fullgraph=True)
    schedule = Schedule(
        options.schedule.sched,
        options.schedule.lr,
        total,
        options.schedule.lr_warmup_steps,
        options.schedule.onecycle_pct_start,
    )
    optimizer = make_optimizer(
        codec,
        options.schedule.optimizer,
        options.schedule.lr,
        options.schedule.weight_decay,
        options.entropy_model.eb_aux_lr,
    )
    model, prepared = accelerator.prepare(codec, optimizer)  # together: FSDP swaps the optimizer's parameters
    optimizer = prepared.optimizer
    scaler = GradScaler(accelerator.device.type, enabled=numerics.amp and numerics.amp_dtype == "fp16")
    if state_path:
        load_optimizer_tensors(codec, optimizer, optimizer_state)
        schedule.plateau.update(progress.plateau)
        scaler.load_state_dict(progress.scaler)

    if options.output.resume == "none":
        make_room(Path(options.output.save_dir), accelerator)

    workers = options.data.num_workers
    if workers is None:  # raw rows are read faster than a worker could hand them over
        workers = 2 if train_rows.decodes else 0
    pin_memory = accelerator.device.type == "cuda"
    loader = train_loader(batches, progress.step, total, workers, pin_memory)
    return Run(
        options=options,
        accelerator=accelerator,
        codec=codec,
        model=model,
        objective=objective,
        loss=loss,
        eval_codec=eval_codec,
        optimizer=optimizer,
        clipped=clipped_together(codec, apart=objective.detaches_rate),
        schedule=schedule,
        scaler=scaler,
        train_batches=batches,
        micro_batches=iter(loader),
        train_rows=train_rows,
        validation=validation,
        dataset=options.data.coco_dir if options.data.on_the_hub() else "",
        pictured=validation or train_rows,
        total=total,
        grad_accum=grad_accum,
        progress=progress,
        fp32_modules=fp32_modules,
        distilled=distilled,
        watch=Watch(numerics.overflow_tol, accelerator.device, numerics.overflow_check),
    )


def make_accelerator(options: Options) -> Accelerator:
    """An Accelerator that wraps, launches and tracks; precision and accumulation are the loop's own."""
    reporting = options.reporting
    trackers = [name.strip() for name in (reporting.report_to or "").split(",") if name.strip()]
    trackers += ["wandb"] * (reporting.wandb and "wandb" not in trackers)
    known = [str(name) for name in LoggerType if name != LoggerType.ALL]
    for name in trackers:
        if name not in known:
            raise InputError(f"--report_to {name}: no tracker that Accelerate knows; use one of {', '.join(known)}")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--report_to {name}: {name} is not installed; pip install {name}, or leave it out")
    return Accelerator(
        mixed_precision="no",
        log_with=trackers or None,
        project_dir=options.output.save_dir,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )


def training_data(options: Options) -> tuple[Rows, Rows | None]:
    """The training rows, and the validation rows where there are any: those are read often, so they never stream."""
    root, use_prepared = options.data.coco_dir, options.data.use_prepared
    train = open_rows(root, "train", use_prepared, options.data.streaming)
    if train is None:
        raise InputError(f"--coco_dir {root} has no train split; make one with python -m coco224.prepare")
    return train, open_rows(root, "validation", use_prepared)


def initial_codec(model: ModelOptions) -> Codec:
    """The codec to start from: a checkpoint, the zoo, or random weights."""
    if model.init_checkpoint:
        codec = load_initial(Path(model.init_checkpoint))
        if model.N and (model.N, model.M) != (codec.N, codec.M):
            raise InputError(
                f"--init_checkpoint {model.init_checkpoint} has N={codec.N}, M={codec.M}, not --N {model.N} "
                f"--M {model.M}; leave --N and --M out"
            )
        return codec
    N, M = (model.N, model.M) if model.N and model.M else zoo_widths(model.quality)
    codec = Codec(Architecture(N, M))
    if model.pretrained:
        codec.load_weights(zoo_state(model.quality))
    return codec


def replace_blocks(codec: Codec, options: Options, rows: Rows | None, accelerator: Accelerator) -> dict[str, float]:
    """Puts the blocks in the place of GDN, with a distilled start on `rows` where they are given and it is asked for.

    Returns:
        What `distill` returns; empty without it.
    """
    replacement = options.replacement
    teacher = copy.deepcopy(codec)
    block = options_dict(replacement.act, options.block)
    for part in TRANSFORMS[replacement.replace_parts]:
        codec.replace_activations(part, Activation(replacement.act, block))
    codec.train()
    if not replacement.distill_steps or rows is None:
        return {}
    device = accelerator.device
    batches = first_batches(rows, options, options.data.batch_size, FIT_BATCHES + 1, device)
    pictures = tqdm(batches, "distilled start", FIT_BATCHES + 1, unit="batch", disable=not accelerator.is_main_process)
    result = distill(codec.to(device), teacher.to(device), pictures, replacement.distill_steps)
    agree(codec)
    return result


def agree(codec: Codec) -> None:
    """Gives every rank the first one's parameters: all have done the same work, and need not have rounded alike."""
    for parameter in codec.parameters():
        broadcast(parameter.data)


def lessons(rows: Rows, options: Options, device: torch.device) -> list[Tensor]:
    """Pictures that quantization looks at, [1, 3, H, W] in [0, 1] each."""
    return list(first_batches(rows, options, 1, min(LESSONS, len(rows)), device))


def first_batches(rows: Rows, options: Options, batch_size: int, count: int, device: torch.device) -> Iterator[Tensor]:
    """Pictures from the run's beginning, [B, 3, H, W] in [0, 1] each: the same on every rank, and after a resume."""
    data = options.data
    batches = TrainBatches(
        rows,
        seed=options.numerics.seed,
        input_size=data.input_size,
        hflip=data.hflip,
        batch_size=batch_size,
        grad_accum=1,
        rank=0,
        world_size=1,
    )
    loader = train_loader(batches, 0, count, num_workers=0, pin_memory=False)
    return (batch.images.to(device).float() / 255 for batch in loader)


def memory_format(options: Options) -> torch.memory_format:
    """Convolutions run faster in channels_last on CPUs (oneDNN) and on tensor cores alike."""
    return torch.contiguous_format if options.numerics.channels_last is False else torch.channels_last
