"""NCSN++ once more, in plain numpy and by the published names: what models/ncsnpp.py must equal.

Written from the papers' descriptions (Song et al. 2021, appendix H; Karras et al. 2020 for the filter), one function
per equation and nothing of the project's. Convolutions are sums over shifted images, resampling goes by its definition:
zeros between pixels, zeros around, a full 2-D filter, every second pixel.
"""

from collections import Counter

import numpy as np

FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64.0


def silu(x):
    return x / (1 + np.exp(-x))


def correlate(x, kernel, pad, stride=1):
    """(B,H,W,C) by (kh,kw,C,F), `pad` = (before, after) zeros along both axes."""
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    kh, kw = kernel.shape[:2]
    rows, columns = ((x.shape[1 + a] - (kh, kw)[a]) // stride + 1 for a in range(2))
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(kh):
        for j in range(kw):
            window = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out += window @ kernel[i, j]
    return out


def upfirdn(x, kernel, up=1, down=1, pad=(0, 0)):
    """Zeros between the pixels, zeros around, convolution with `kernel` for each channel, every `down`-th pixel."""
    batch, height, width, channels = x.shape
    spread = np.zeros((batch, height * up, width * up, channels))
    spread[:, ::up, ::up] = x
    flipped = kernel[::-1, ::-1, None, None] * np.eye(channels)
    return correlate(spread, flipped, pad)[:, ::down, ::down]


def down2(x, fir):
    if fir:
        return upfirdn(x, FILTER, down=2, pad=(1, 1))
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def up2(x, fir):
    return upfirdn(x, 4 * FILTER, up=2, pad=(2, 1)) if fir else x.repeat(2, 1).repeat(2, 2)


def conv_down2(x, p):
    return correlate(upfirdn(x, FILTER, pad=(2, 2)), p["weight"], (0, 0), stride=2) + p["bias"]


def conv_up2(x, p):
    batch, height, width, channels = x.shape
    spread = np.zeros((batch, 2 * height - 1, 2 * width - 1, channels))
    spread[:, ::2, ::2] = x
    return upfirdn(correlate(spread, p["weight"], (2, 2)), 4 * FILTER, pad=(1, 1)) + p["bias"]


def conv(x, p):
    size = p["kernel"].shape[0]
    return correlate(x, p["kernel"], (size // 2, size // 2)) + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def nin(x, p):
    return x @ p["W"] + p["b"]


def group_norm(x, p):
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height, width, min(channels // 4, 32), -1)
    mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def joined(x, h, rescale):
    return (x + h) / np.sqrt(2) if rescale else x + h


def res_block(x, embedding, p, resample="", fir=True, rescale=True):
    change = {"": lambda x: x, "down": lambda x: down2(x, fir), "up": lambda x: up2(x, fir)}[resample]
    h = conv(change(silu(group_norm(x, p["GroupNorm_0"]))), p["Conv_0"])
    h = h + dense(silu(embedding), p["Dense_0"])[:, None, None]
    h = conv(silu(group_norm(h, p["GroupNorm_1"])), p["Conv_1"])
    x = change(x)
    return joined(conv(x, p["Conv_2"]) if "Conv_2" in p else x, h, rescale)


def attention(x, p, rescale=True):
    normed = group_norm(x, p["GroupNorm_0"])
    q, k, v = (nin(normed, p[f"NIN_{i}"]) for i in range(3))
    logits = np.einsum("bhwc,bijc->bhwij", q, k) / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max((3, 4), keepdims=True))
    weights /= weights.sum((3, 4), keepdims=True)
    return joined(x, nin(np.einsum("bhwij,bijc->bhwc", weights, v), p["NIN_3"]), rescale)


def fourier(sigma, frequencies):
    phase = 2 * np.pi * np.log(sigma)[:, None] * frequencies
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def positional(t, size):
    half = size // 2
    phase = t[:, None] * 10_000.0 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def network(model, parameters, x, time):
    """The published network for the settings of `model`; `parameters` by the published names, nested."""
    counts = Counter()

    def take(kind):
        counts[kind] += 1
        return parameters[f"{kind}_{counts[kind] - 1}"]

    fir, rescale, levels = model.fir, model.skip_rescale, len(model.channel_mult)

    def block(h, resample=""):
        return res_block(h, embedding, take("ResnetBlockBigGANpp"), resample, fir, rescale)

    def image_of(h):
        normed = silu(group_norm(h, take("GroupNorm")))
        return conv(normed, take("Conv"))

    if model.embedding == "fourier":
        embedding = fourier(time, take("GaussianFourierProjection")["W"])
    else:
        embedding = positional(time, model.num_channels)
    embedding = dense(embedding, take("Dense"))
    embedding = dense(silu(embedding), take("Dense"))
    x = x if model.centered else 2 * x - 1
    pyramid, h = x, conv(x, take("Conv"))
    skips = [h]
    for level in range(levels):
        for _ in range(model.num_res_blocks):
            h = block(h)
            h = attention(h, take("AttnBlockpp"), rescale) if level in model.attention_levels else h
            skips.append(h)
        if level < levels - 1:
            h = block(h, "down")
            if model.progressive_input == "input_skip":
                pyramid = down2(pyramid, fir)
                h = conv(pyramid, take("Combine")["Conv_0"]) + h
            elif model.progressive_input == "residual":
                h = pyramid = joined(conv_down2(pyramid, take("Downsample")["Conv2d_0"]), h, rescale)
            skips.append(h)
    h = block(h)
    h = attention(h, take("AttnBlockpp"), rescale)
    h = block(h)
    out = None
    for level in reversed(range(levels)):
        for _ in range(model.num_res_blocks + 1):
            h = block(np.concatenate([h, skips.pop()], axis=-1))
        h = attention(h, take("AttnBlockpp"), rescale) if level in model.attention_levels else h
        if model.progressive == "output_skip":
            out = image_of(h) if level == levels - 1 else up2(out, fir) + image_of(h)
        elif model.progressive == "residual":
            if level == levels - 1:
                out = image_of(h)
            else:
                h = out = joined(conv_up2(out, take("Upsample")["Conv2d_0"]), h, rescale)
        h = block(h, "up") if level else h
    h = out if model.progressive == "output_skip" else image_of(h)
    return h / time[:, None, None, None] if model.scale_by_sigma else h
