"""The blocks of noise-to-norm's M-net, in four readings.

"Noise-to-Norm Reconstruction for Industrial Anomaly Detection and Localization", Applied Sciences 2023, 13(22), 12436:
its residual attention module, whose figure is not in the text that was at hand; and SRMNet's block (C.-M. Fan et al.,
"Selective Residual M-Net for Real Image Denoising", EUSIPCO 2022), from which the paper starts.
"""

from typing import Literal

from torch import Tensor, nn

from adref.layers.selective_kernel import SelectiveKernelFusion

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "prelu": nn.PReLU, "gelu": nn.GELU}


class ResidualAttention(nn.Module):
    """r + a v: two pathways from C_in to C_out channels, one of them gated by channel attention.

        r = conv1x1(x);  v = conv3x3(act(conv3x3(conv1x1(x))));  a = sigmoid(conv1x1(act(conv1x1(mean v))))

    Args:
        width_in, width_out: channels.
        reduction: the attention has max(width_out // reduction, 4) inner channels.
        convolutions: the two 3x3 convolutions; without them v is the 1x1 convolution alone.
        activation: a key of ACTIVATIONS.
        padding_mode: of the 3x3 convolutions.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        reduction: int = 8,
        convolutions: bool = True,
        activation: str = "relu",
        padding_mode: str = "zeros",
    ):
        super().__init__()
        inner, act = max(width_out // reduction, 4), ACTIVATIONS[activation]
        self.shortcut = nn.Conv2d(width_in, width_out, 1)
        self.body = nn.Sequential(nn.Conv2d(width_in, width_out, 1))
        if convolutions:
            self.body.append(nn.Conv2d(width_out, width_out, 3, padding=1, padding_mode=padding_mode)).append(act())
            self.body.append(nn.Conv2d(width_out, width_out, 3, padding=1, padding_mode=padding_mode))
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width_out, inner, 1), act(), nn.Conv2d(inner, width_out, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W). Equation 4 of noise-to-norm, as reconstructed."""
        v = self.body(x)
        return self.shortcut(x) + self.attention(v) * v


class SelectiveDense(nn.Module):
    """SRMNet's block: three times x <- fusion(x, ReLU(conv3x3(x))), then 1x1 to C_out, plus 1x1 of the input.

    Args:
        width_in, width_out: channels.
        reduction: of the fusions.
        padding_mode: of the 3x3 convolutions.
    """

    def __init__(self, width_in: int, width_out: int, reduction: int = 8, padding_mode: str = "zeros"):
        super().__init__()
        self.shortcut = nn.Conv2d(width_in, width_out, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width_in, width_in, 3, padding=1, padding_mode=padding_mode) for _ in range(3)
        )
        self.fusions = nn.ModuleList(SelectiveKernelFusion(width_in, 2, reduction) for _ in range(3))
        self.out = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        shortcut = self.shortcut(x)
        for convolution, fusion in zip(self.convolutions, self.fusions):
            x = fusion([x, convolution(x).relu()])
        return shortcut + self.out(x)


def block(
    kind: Literal["full", "min", "conv1x1", "skrdb"],
    width_in: int,
    width_out: int,
    reduction: int = 8,
    activation: str = "relu",
    padding_mode: str = "zeros",
) -> nn.Module:
    """One of the four readings: `ResidualAttention` with or without 3x3 convolutions, the ablation's one 1x1
    convolution, or SRMNet's block."""
    if kind == "conv1x1":
        return nn.Conv2d(width_in, width_out, 1)
    if kind == "skrdb":
        return SelectiveDense(width_in, width_out, reduction, padding_mode)
    return ResidualAttention(width_in, width_out, reduction, kind == "full", activation, padding_mode)
