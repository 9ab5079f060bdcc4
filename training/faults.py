"""Numerical faults: all ranks detect them before a step is applied, and the module where they began is found."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from codec.quantization.layers import QuantizedLayer
from training.distributed import local_part

ADVICE = (
    "the same command goes on with --local_fp32 entropy+decoder or all_normexp, a lower --max_grad_norm, or "
    "--amp false; for a lower --lr or more --lr_warmup_steps start a new run with --init_checkpoint; "
    "the skipped steps and the guilty modules are in metrics.jsonl"
)


class Watch:
    """The largest magnitude in an optimizer step, kept on the device; NaN and Inf are above every limit."""

    def __init__(self, limit: float, device: torch.device, enabled: bool) -> None:
        self.limit = limit
        self.device = device
        self.enabled = enabled
        self.reset()

    def reset(self) -> None:
        """Forgets the last step."""
        self.worst = torch.zeros((), device=self.device)

    def see(self, *values: Tensor) -> None:
        """Includes outputs and losses of a micro-batch."""
        for value in values if self.enabled else ():
            low, high = torch.aminmax(value.detach())
            self.worst = torch.maximum(self.worst, torch.maximum(-low, high).float())

    def see_gradients(self, parameters: Iterable[nn.Parameter], *, forgive_overflow: bool) -> None:
        """Includes gradients, of a sharded parameter this rank's shard; the loop adds up the flags of all ranks.

        A loss scaler handles overflows itself: with `forgive_overflow` they are not a fault.
        """
        gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
        gradients = [gradient for gradient in gradients if gradient.numel()]  # a small parameter has empty shards
        if not self.enabled or not gradients:
            return
        largest = torch.nn.utils.get_total_norm(gradients, float("inf"))
        if forgive_overflow:
            largest = torch.where(torch.isfinite(largest), largest, torch.zeros_like(largest))
        self.worst = torch.maximum(self.worst, largest.float())

    def faulty(self) -> Tensor:
        """1 if a value of this rank was NaN, Inf or over the limit, else 0; 0-dim on the device."""
        return 1 - (self.worst <= self.limit).float()


def guilty_module(codec: nn.Module, run: Callable[[nn.Module], Tensor], limit: float) -> str:
    """Runs a faulty batch again, eagerly and with hooks, and returns where the first bad value appeared.

    Args:
        codec: a copy that is not used afterwards: it keeps hooks and gradients.
        run: computes forward and loss of the batch with the given codec.
        limit: the largest magnitude that is not a fault.

    Returns:
        For example "g_a.2 (Conv2d), forward", "the loss" or "g_a.2 (Conv2d), backward"; empty if no bad value appeared.
    """
    found: list[str] = []

    def bad(values: Any) -> bool:
        if isinstance(values, Tensor):
            return values.is_floating_point() and not bool((values.detach().abs() <= limit).all())
        if isinstance(values, dict):
            return any(bad(value) for value in values.values())
        return isinstance(values, tuple | list) and any(bad(value) for value in values)

    def hook(name: str, way: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not found and bad(inputs if way == "backward" else outputs):
                found.append(f"{name} ({type(module).__name__}), {way}")

        return look

    for name, module in codec.named_modules():
        if getattr(module, "inplace", False):  # a backward hook forbids changes in place
            module.inplace = False
        # Only leaves: a container's output is that of its last leaf. A quantized layer contains a quantizer; it counts.
        if isinstance(module, QuantizedLayer) or not list(module.children()):
            module.register_forward_hook(hook(name, "forward"))
            module.register_full_backward_hook(hook(name, "backward"))
    loss = run(codec)
    if not found and bad(loss):
        return "the loss"
    if not found:
        loss.backward()
    if not found:
        found += [f"the gradient of {n}" for n, p in codec.named_parameters() if p.grad is not None and bad(p.grad)]
    return found[0] if found else ""
