"""VGG and ResNet for CIFAR-10, for images of 8 x 8 or larger with any number of colour channels."""

from __future__ import annotations

from torch import Tensor, nn

# The number of convolutions between two poolings, by depth, and their channels.
VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
VGG_CHANNELS = (64, 128, 256, 512, 512)


def conv_norm(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution with padding, so that the image only shrinks by its stride, and a BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(after)
    )


def vgg(colours: int = 3, classes: int = 10, *, depth: int = 16, width: float = 1.0) -> nn.Sequential:
    """VGG with BatchNorm and one linear layer at the end.

    Args:
        colours: Channels of the images.
        classes: Outputs.
        depth: 11, 13, 16 or 19.
        width: Factor for all channel counts.
    """
    layers: list[nn.Module] = []
    before = colours
    for count, channels in zip(VGG_DEPTHS[depth], VGG_CHANNELS, strict=True):
        for _ in range(count):
            after = round(channels * width)
            layers += [conv_norm(before, after), nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that an image of one pixel keeps its size
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Block(nn.Module):
    """Two convolutions with a shortcut, which is a 1 x 1 convolution if the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(before, after, stride=stride)
        self.conv2 = conv_norm(after, after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


def resnet(colours: int = 3, classes: int = 10, *, depth: int = 20, width: float = 1.0) -> nn.Sequential:
    """ResNet with three stages of 16, 32 and 64 channels (He et al., arXiv 1512.03385, section 4.2).

    Args:
        colours: Channels of the images.
        classes: Outputs.
        depth: 6 n + 2 for n blocks per stage, such as 20 or 56.
        width: Factor for all channel counts.
    """
    if depth % 6 != 2:
        raise ValueError(f"Expected depth to be 6 n + 2, such as 20 or 56, but got {depth}.")
    before = round(16 * width)
    layers: list[nn.Module] = [conv_norm(colours, before), nn.ReLU()]
    for stage, channels in enumerate((16, 32, 64)):
        for position in range((depth - 2) // 6):
            after, stride = round(channels * width), 2 if stage and not position else 1
            layers.append(Block(before, after, stride))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
