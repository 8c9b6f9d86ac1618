"""What the planner knows of a folded network: shapes, strides and names, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Stem: 7x7, stride 2, padding 3, then a 3x3 maximum, stride 2, padding 1.
STEM_TAPS, STEM_PADDING = 7, 3


@dataclass(frozen=True)
class Conv:
    """A convolution of `taps` x `taps` (1 or 3), padded to keep the map at stride 1, on `cin` -> `cout` channels."""

    name: str
    cin: int
    cout: int
    taps: int
    stride: int

    def output_side(self, side: int) -> int:
        return (side - 1) // self.stride + 1


@dataclass(frozen=True)
class Block:
    """A residual block. project: the 1x1 convolution of the shortcut, None where the shortcut is the input."""

    convs: tuple[Conv, ...]
    project: Conv | None

    @property
    def cout(self) -> int:
        return self.convs[-1].cout


@dataclass(frozen=True)
class Network:
    """A folded TKFNet.

    size: side of the square input, pixels. channel_means: per RGB channel, 0..255. pool: TAFE's, None without TAFE.
    hidden: width of DCIF's channel filter, 0 without DCIF. wide, narrow: widths of the classifier's hidden layers.
    """

    size: int
    classes: int
    channel_means: tuple[float, ...]
    stem: int
    blocks: tuple[Block, ...]
    pool: str | None
    hidden: int
    wide: int
    narrow: int

    @property
    def stem_side(self) -> int:
        """Side of the stem's convolution, before its maximum."""
        return (self.size - 1) // 2 + 1

    @property
    def pooled_side(self) -> int:
        """Side of the map that the first block reads."""
        return (self.stem_side - 1) // 2 + 1

    @property
    def side(self) -> int:
        """Side of the backbone's last map (7 at 224)."""
        side = self.pooled_side
        for block in self.blocks:
            for conv in block.convs:
                side = conv.output_side(side)
        return side

    @property
    def channels(self) -> int:
        """Channels of the backbone's last map (512 for ResNet-18)."""
        return self.blocks[-1].cout


def network_of(folded: Any) -> Network:
    """Reads the shapes of a `model.fold.FoldedTKFNet`."""
    blocks, stage, index = [], 1, 0
    for block in folded.blocks:
        if any(conv.stride[0] == 2 for conv in block.convs):
            stage, index = stage + 1, 0
        name = f"layer{stage}.{index}"
        convs = tuple(_conv(f"{name}.conv{i + 1}", conv) for i, conv in enumerate(block.convs))
        blocks.append(Block(convs, None if block.project is None else _conv(f"{name}.project", block.project)))
        index += 1
    return Network(
        size=folded.preprocessing.size,
        classes=folded.head[2].out_features,
        channel_means=tuple(255 * mean for mean in folded.preprocessing.mean),
        stem=folded.stem.out_channels,
        blocks=tuple(blocks),
        pool=folded.tafe.statistics.pool if folded.config.tafe else None,
        hidden=folded.dcif.squeeze.out_features if folded.config.dcif else 0,
        wide=folded.head[0].out_features,
        narrow=folded.head[1].out_features,
    )


def _conv(name: str, conv: Any) -> Conv:
    return Conv(name, conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
