"""The inference form of TKFNet: uint8 pixels in, logits out, no batch norm, fewer products.

Every backend starts here. Each step below is an identity of real arithmetic, proven by a test of its own
(`tests/model/test_fold.py`):

1. batch norm after a convolution or linear layer:  g (W x + b - u) / s + t  =  (g/s W) x + (g/s (b - u) + t)
2. normalisation before the first convolution: subtract the mean in pixel units, so that the zero padding
   stays the padding of the normalised image, and divide the weights by 255 std.
3. a 3x3 depthwise convolution, zero-padded, on a 1x1 map touches its centre tap: a scale and a shift,
   which join TAFE's alpha and the gate's bias.
4. the merge after the sum:  W (x + F h) + b  =  [W | W F] [x ; h] + b'  with one product over 3C.
5. DCIF's channel filter leaves the weighted pool:  mean(m c z) = c mean(m z).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..spec import Preprocessing
from .backbone import BasicBlock, Bottleneck
from .dcif import DCIF
from .net import TKFNet
from .tafe import TAFE, spatial_variance

# Pixels minus the mean span about +-150; scaled by this power of two (exact) the FP16 stem keeps its
# weights clear of FP16's subnormal range.
HALF_PIXEL_SCALE = 2.0**-6


def fold_bn(layer: nn.Conv2d | nn.Linear, bn: nn.BatchNorm2d | nn.BatchNorm1d) -> nn.Conv2d | nn.Linear:
    """A copy of `layer` that also does `bn` (evaluation mode), computed in float64. Identity 1."""
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    bias = torch.zeros_like(bn.running_mean) if layer.bias is None else layer.bias
    folded_bias = scale * (bias.double() - bn.running_mean.double()) + bn.bias.double()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return _with(layer, weight, folded_bias)


def _with(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Conv2d | nn.Linear:
    """A layer like `layer` with another weight (its channel counts may differ) and bias."""
    # On "meta" nothing is drawn for weights that are replaced at once.
    if isinstance(layer, nn.Linear):
        new: nn.Conv2d | nn.Linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        new = nn.Conv2d(
            weight.shape[1] * layer.groups,
            weight.shape[0],
            layer.kernel_size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=bias is not None,
            device="meta",
        )
    put(new, "weight", weight.float().contiguous())
    if bias is not None:
        put(new, "bias", bias.float().contiguous())
    return new


def put(module: nn.Module, name: str, value: Tensor) -> None:
    """`value` in place of the parameter, buffer or attribute `name`. One that has a gradient to pass on is no leaf, so
    it becomes a plain attribute where a parameter was."""
    if isinstance(getattr(module, name), nn.Parameter):
        if value.requires_grad:
            delattr(module, name)
        else:
            value = nn.Parameter(value, requires_grad=False)
    setattr(module, name, value)


class FoldedBlock(nn.Module):
    """A residual block: `convs` with ReLU between, plus the shortcut (`project`, 1x1, or the input), ReLU."""

    def __init__(self, block: BasicBlock | Bottleneck):
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(fold_bn(conv, bn) for conv, bn in pairs)
        self.project = None if block.downsample is None else fold_bn(*block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.project is None else self.project(x)
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return F.relu(self.convs[-1](x) + shortcut)


class FoldedStatistics(nn.Module):
    """TAFE's global context: x [N, C, H, W] -> [N, C, 1, 1], in x's dtype, computed in float32 whatever that is: FP16
    squares overflow and cancel. A module, and without weights of its own, so that an exported graph names its layers.
    """

    def __init__(self, pool: str):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, of_pool: Tensor, of_variance: Tensor) -> Tensor:
        wide = x.float()
        pooled = wide.amax((2, 3), keepdim=True) if self.pool == "max" else wide[:, :, :1, :1]
        return (of_pool.float() * pooled + of_variance.float() * spatial_variance(wide)).to(x.dtype)


class FoldedTAFE(nn.Module):
    """TAFE on a map whose pooled form is 1x1 (side below 16). Identities 3 and 4."""

    def __init__(self, tafe: TAFE):
        super().__init__()
        self.statistics = FoldedStatistics(tafe.pool)
        self.split = _with(tafe.split, tafe.split.weight.double(), tafe.split.bias.double())
        self.detail_dw = _with(tafe.detail[0], tafe.detail[0].weight.double(), tafe.detail[0].bias.double())
        self.detail_pw = _with(tafe.detail[1], tafe.detail[1].weight.double(), tafe.detail[1].bias.double())

        alpha, beta = tafe.alpha.double().flatten(), tafe.beta.double().flatten()
        centre = tafe.pool_conv.weight.double()[:, 0, 1, 1]
        gate = tafe.gate.weight.double()
        shift = gate.flatten(1) @ (alpha * tafe.pool_conv.bias.double())
        self.gate = _with(tafe.gate, gate, tafe.gate.bias.double() + shift)
        self.register_buffer("of_pool", (alpha * centre).float().reshape(1, -1, 1, 1))
        self.register_buffer("of_variance", beta.float().reshape(1, -1, 1, 1))

        merge, last = tafe.merge.weight.double().flatten(1), tafe.detail[3]
        product = torch.cat([merge, merge @ last.weight.double().flatten(1)], dim=1)
        bias = tafe.merge.bias.double() + merge @ last.bias.double()
        self.merge = _with(tafe.merge, product[:, :, None, None], bias)

    def forward(self, f: Tensor) -> Tensor:
        y, x = self.split(f).chunk(2, dim=1)
        g = F.gelu(self.gate(self.statistics(x, self.of_pool, self.of_variance)))
        detail = F.gelu(self.detail_pw(self.detail_dw(y)))
        return self.merge(torch.cat([x * g, detail], dim=1))


class FoldedDCIF(nn.Module):
    """DCIF and the global mean after it: [N, C, H, W] -> float32 [N, C]. Identities 1 and 5."""

    def __init__(self, dcif: DCIF):
        super().__init__()
        self.squeeze = fold_bn(dcif.channel[0], dcif.channel[1])
        expand = dcif.channel[3]
        self.expand = _with(expand, expand.weight.double(), expand.bias.double())
        self.spatial = _with(dcif.spatial, dcif.spatial.weight.double(), None)

    def forward(self, z: Tensor) -> Tensor:
        z = z.float()
        c = torch.sigmoid(self.expand(F.relu(self.squeeze(z.mean((2, 3))))))
        filtered = z * c[:, :, None, None]
        context = torch.cat([filtered.mean(1, keepdim=True), filtered.amax(1, keepdim=True)], dim=1)
        m = torch.sigmoid(self.spatial(context))
        return (z * m).mean((2, 3)) * c


class GlobalMean(nn.Module):
    """[N, C, H, W] -> float32 [N, C]: what is left of DCIF in its ablation."""

    def forward(self, z: Tensor) -> Tensor:
        return z.float().mean((2, 3))


class FoldedTKFNet(nn.Module):
    """uint8 RGB [N, S, S, 3] -> float32 logits [N, classes]; S = `preprocessing.size`, at most 480.

    `half` stores maps and weights of the backbone and TAFE in FP16; statistics, DCIF and the classifier
    stay float32 (a few thousandths of the arithmetic, and where FP16 loses most).
    """

    def __init__(self, model: TKFNet, preprocessing: Preprocessing | None = None):
        super().__init__()
        self.config = model.config
        self.preprocessing = facts = preprocessing or Preprocessing()
        self.pixel_scale = 1.0
        backbone = model.backbone
        stem = fold_bn(backbone.conv1, backbone.bn1)
        device = stem.weight.device
        std = torch.tensor(facts.std, dtype=torch.float64, device=device).reshape(1, 3, 1, 1)
        self.stem = _with(stem, stem.weight.double() / (255 * std), stem.bias.double())
        mean = 255 * torch.tensor(facts.mean, dtype=torch.float64, device=device)
        self.register_buffer("pixel_mean", mean.float().reshape(1, 3, 1, 1))
        self.blocks = nn.Sequential(*[FoldedBlock(b) for b in backbone.blocks])
        self.tafe = FoldedTAFE(model.tafe) if model.config.tafe else nn.Identity()
        self.dcif = FoldedDCIF(model.dcif) if model.config.dcif else GlobalMean()
        h = model.head
        last = _with(h[6], h[6].weight.double(), h[6].bias.double())
        self.head = nn.ModuleList([fold_bn(h[0], h[1]), fold_bn(h[3], h[4]), last])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        # Cast first, transpose after: one ONNX parser refuses to transpose uint8.
        x = images.float().permute(0, 3, 1, 2) - self.pixel_mean
        if self.pixel_scale != 1.0:
            x = x * self.pixel_scale
        x = F.relu(self.stem(x.to(self.stem.weight.dtype)))
        x = self.blocks(F.max_pool2d(x, 3, stride=2, padding=1))
        x = self.dcif(self.tafe(x))
        x = F.relu(self.head[0](x))
        x = F.relu(self.head[1](x))
        return self.head[2](x)

    def half(self) -> FoldedTKFNet:
        """In place: the backbone and TAFE in FP16, once."""
        if self.pixel_scale == 1.0:
            self.stem.weight.data /= HALF_PIXEL_SCALE
            self.pixel_scale = HALF_PIXEL_SCALE
            for part in (self.stem, self.blocks, self.tafe):
                nn.Module.half(part)
        return self


def fold(model: TKFNet, preprocessing: Preprocessing | None = None) -> FoldedTKFNet:
    """The inference form of `model` (its batch norms in evaluation mode); `model` is left as it was."""
    with torch.no_grad():
        return FoldedTKFNet(model, preprocessing)


def fold_live(model: TKFNet, preprocessing: Preprocessing | None = None) -> FoldedTKFNet:
    """As `fold`, with weights through which gradients reach the parameters of `model`. It cannot be copied or moved."""
    return FoldedTKFNet(model, preprocessing)
