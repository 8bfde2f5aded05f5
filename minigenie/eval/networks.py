"""Networks that others trained, as functions of their published weights: only what the metrics need.

Dimensions:  b pictures or videos   c channels   t frames   h w pixels   d features
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Weights = dict[str, Tensor]
Convolution = tuple[Tensor, Tensor]  # weight, bias
Picture = Float[Tensor, "b _c _h _w"]  # sizes change along the way: the underscores say that names here bind nothing
Video = Float[Tensor, "b _c _t _h _w"]
Network = Callable[[Tensor], Float[Tensor, "b d"]]


def alexnet(x: Picture, convolutions: Sequence[Convolution], shift_tolerant: bool) -> Iterator[Picture]:
    """The five layers of AlexNet (arXiv:1404.5997) after their ReLU, one after another.

    shift_tolerant: as in arXiv:2207.13686, what strides there blurs here, with its filter at every pixel before, and
    the first convolution strides by 2 rather than 4.
    """
    for layer, (weight, bias) in enumerate(convolutions):
        if layer in (1, 2):
            x = _blur(F.max_pool2d(x, 3, stride=1)) if shift_tolerant else F.max_pool2d(x, 3, stride=2)
        if layer > 0:
            x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        elif shift_tolerant:
            x = _blur(F.conv2d(x, weight, bias, padding=2))
        else:
            x = F.conv2d(x, weight, bias, stride=4, padding=2)
        x = x.relu()
        yield x


def _blur(x: Picture) -> Picture:
    """Half the size, by a binomial filter of 3 x 3 (arXiv:1904.11486)."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    window = row.outer(row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), window, stride=2, groups=x.shape[1])


def efficientnet_lite0(weights: Weights) -> Network:
    """EfficientNet-lite0 (arXiv:1905.11946 without squeeze, excitation and swish) up to its last block of stride 16:
    the 112 channels there, averaged over the picture. Takes pictures in [-1, 1]."""
    stem = _fold(weights, "_conv_stem", "_bn0")
    blocks = [
        [
            _fold(weights, f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{norm}")
            for norm, name in enumerate(("expand", "depthwise", "project"))
            if f"_blocks.{i}._{name}_conv.weight" in weights  # the first block does not expand
        ]
        for i in range(11)
    ]

    def convolve(x: Picture, convolution: Convolution, stride: int = 1, groups: int = 1) -> Picture:
        weight, bias = convolution
        return F.conv2d(_same(x, weight.shape[2:], (stride, stride)), weight, bias, stride, groups=groups)

    def features(x: Picture) -> Float[Tensor, "b d"]:
        x = F.relu6(convolve(x, stem, stride=2))
        for i, (*expand, depthwise, project) in enumerate(blocks):
            y = x
            for convolution in expand:
                y = F.relu6(convolve(y, convolution))
            y = F.relu6(convolve(y, depthwise, stride=2 if i in (1, 3, 5) else 1, groups=y.shape[1]))
            y = convolve(y, project)
            x = x + y if x.shape == y.shape else y
        return x.mean(dim=(2, 3))

    return features


def _same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Padded with zeros as in TensorFlow, where some weights come from: what is odd goes behind."""
    padding: list[int] = []
    for side, window, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):  # F.pad begins at the end
        total = max((math.ceil(side / step) - 1) * step + window - side, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def _fold(weights: Weights, convolution: str, norm: str, eps: float = 1e-3) -> Convolution:
    """A convolution and the batch norm after it, as one convolution."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + eps).sqrt()
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    weight = weights[f"{convolution}.weight"]
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), bias


def inception(weights: Weights) -> Network:
    """Inception v3 (arXiv:1512.00567) as FID has it: the 2048 features before the classes. Takes pictures in [-1, 1].

    Its averages leave out the padding and the last block takes the maximum, as in the TensorFlow graph of 2015-12-05.
    """
    names = [name.removesuffix(".conv.weight") for name in weights if name.endswith(".conv.weight")]
    convolutions = {name: _fold(weights, f"{name}.conv", f"{name}.bn") for name in names}

    def convolve(x: Picture, name: str, stride: int = 1, pad: bool = True) -> Picture:
        weight, bias = convolutions[name]
        padding = [side // 2 for side in weight.shape[2:]] if pad else 0
        return F.conv2d(x, weight, bias, stride, padding).relu()

    def chain(x: Picture, name: str, length: int) -> Picture:
        for i in range(1, length + 1):
            x = convolve(x, f"{name}_{i}")
        return x

    def average(x: Picture) -> Picture:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def features(x: Picture) -> Float[Tensor, "b d"]:
        x = convolve(convolve(x, "Conv2d_1a_3x3", 2, False), "Conv2d_2a_3x3", pad=False)
        x = F.max_pool2d(convolve(x, "Conv2d_2b_3x3"), 3, stride=2)
        x = F.max_pool2d(convolve(convolve(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", pad=False), 3, stride=2)
        for block in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            branches = [
                convolve(x, f"{block}.branch1x1"),
                chain(x, f"{block}.branch5x5", 2),
                chain(x, f"{block}.branch3x3dbl", 3),
                convolve(average(x), f"{block}.branch_pool"),
            ]
            x = torch.cat(branches, dim=1)
        double = convolve(chain(x, "Mixed_6a.branch3x3dbl", 2), "Mixed_6a.branch3x3dbl_3", 2, False)
        x = torch.cat([convolve(x, "Mixed_6a.branch3x3", 2, False), double, F.max_pool2d(x, 3, stride=2)], dim=1)
        for block in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            branches = [
                convolve(x, f"{block}.branch1x1"),
                chain(x, f"{block}.branch7x7", 3),
                chain(x, f"{block}.branch7x7dbl", 5),
                convolve(average(x), f"{block}.branch_pool"),
            ]
            x = torch.cat(branches, dim=1)
        single = convolve(chain(x, "Mixed_7a.branch3x3", 1), "Mixed_7a.branch3x3_2", 2, False)
        double = convolve(chain(x, "Mixed_7a.branch7x7x3", 3), "Mixed_7a.branch7x7x3_4", 2, False)
        x = torch.cat([single, double, F.max_pool2d(x, 3, stride=2)], dim=1)
        for block in ("Mixed_7b", "Mixed_7c"):
            single, double = chain(x, f"{block}.branch3x3", 1), chain(x, f"{block}.branch3x3dbl", 2)
            pooled = average(x) if block == "Mixed_7b" else F.max_pool2d(x, 3, stride=1, padding=1)
            branches = [
                convolve(x, f"{block}.branch1x1"),
                *(convolve(single, f"{block}.branch3x3_2{side}") for side in "ab"),
                *(convolve(double, f"{block}.branch3x3dbl_3{side}") for side in "ab"),
                convolve(pooled, f"{block}.branch_pool"),
            ]
            x = torch.cat(branches, dim=1)
        return x.mean(dim=(2, 3))

    return features


def i3d(weights: Weights) -> Network:
    """I3D (arXiv:1705.07750) as FVD has it: the logits of the 400 classes of Kinetics, averaged over time.

    Takes videos [b c t h w] of 9 frames or more, of 224 x 224 pixels in [-1, 1].
    """
    names = [name.removesuffix(".conv3d.weight") for name in weights if name.endswith(".conv3d.weight")]
    convolutions = {name: _fold(weights, f"{name}.conv3d", f"{name}.bn", 1e-5) for name in names if name != "logits"}

    def convolve(x: Video, name: str, stride: int = 1) -> Video:
        weight, bias = convolutions[name]
        return F.conv3d(_same(x, weight.shape[2:], (stride, stride, stride)), weight, bias, stride).relu()

    def shrink(x: Video, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Video:
        return F.max_pool3d(_same(x, kernel, stride), kernel, stride)

    def features(x: Video) -> Float[Tensor, "b d"]:
        x = shrink(convolve(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = shrink(convolve(convolve(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
        for block in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
            if block in ("4b", "5b"):
                side = 3 if block == "4b" else 2
                x = shrink(x, (side, side, side), (2, 2, 2))
            branches = [
                convolve(x, f"Mixed_{block}.b0"),
                convolve(convolve(x, f"Mixed_{block}.b1a"), f"Mixed_{block}.b1b"),
                convolve(convolve(x, f"Mixed_{block}.b2a"), f"Mixed_{block}.b2b"),
                convolve(shrink(x, (3, 3, 3), (1, 1, 1)), f"Mixed_{block}.b3b"),
            ]
            x = torch.cat(branches, dim=1)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1).mean(dim=(2, 3, 4))
        return F.linear(x, weights["logits.conv3d.weight"].flatten(1), weights["logits.conv3d.bias"])

    return features
