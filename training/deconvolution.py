"""A transposed convolution with a faster backward on CPUs."""

import torch.nn.functional as F
from torch import Tensor, nn

from codec.network.modules import mix_in


class BiasApart(nn.ConvTranspose2d):
    """torch's `ConvTranspose2d` with the bias added after the convolution, in the convolution's precision.

    oneDNN sums the bias's gradient in a separate pass, which takes longer than the weight's gradient. When the bias is
    added separately and compiled, the sum becomes a part of the block's backward.
    """

    is_linear = True  # for `codec.quantization.layers`

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert not isinstance(self.padding, str)
        y = F.conv_transpose2d(
            input, self.weight, None, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


def set_biases_apart(model: nn.Module) -> None:
    """Makes each `ConvTranspose2d` of a model a `BiasApart`, in place: parameters, hooks and names stay."""
    for module in model.modules():
        if type(module) is nn.ConvTranspose2d:
            mix_in(module, BiasApart)
