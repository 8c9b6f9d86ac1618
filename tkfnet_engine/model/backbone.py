"""ResNet-18, 34 and 50 without their pooling and classifier: [N, 3, H, W] -> [N, C, H/32, W/32].

Module names are torchvision's, so that torchvision and MS-Celeb-1M ResNet weights load as they are.
Source: He et al., "Deep Residual Learning for Image Recognition", 2015; ResNet-50 puts its stride on the
3x3 convolution, as torchvision does.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..spec import TKFNetConfig

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias, padded to keep the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(cin, cout, kernel, stride=stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(cout)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18, 34)."""

    expansion = 1

    def __init__(self, cin: int, channels: int, stride: int, downsample: nn.Sequential | None):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, channels, 3, stride)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3)
        self.downsample = downsample
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, cin: int, channels: int, stride: int, downsample: nn.Sequential | None):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, channels, 1)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, stride)
        self.conv3, self.bn3 = conv_bn(channels, channels * self.expansion, 1)
        self.downsample = downsample
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNet(nn.Module):
    """The feature extractor of a `TKFNetConfig`: [N, 3, H, W] -> [N, config.features, H/32, W/32]."""

    def __init__(self, config: TKFNetConfig):
        super().__init__()
        block = Bottleneck if config.backbone == "resnet50" else BasicBlock
        stem = config.scaled(64)
        self.conv1, self.bn1 = conv_bn(3, stem, 7, 2)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        cin = stem
        for stage, depth in enumerate(DEPTHS[config.backbone]):
            channels = config.scaled(64 << stage)
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                cout = channels * block.expansion
                needs_projection = stride != 1 or cin != cout
                downsample = nn.Sequential(*conv_bn(cin, cout, 1, stride)) if needs_projection else None
                blocks.append(block(cin, channels, stride, downsample))
                cin = cout
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> list[BasicBlock | Bottleneck]:
        """Every residual block in order."""
        return [b for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for b in stage]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
