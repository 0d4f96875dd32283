"""tools/inspect_config.py counts what is there, and its estimates follow the settings."""

import numpy as np
import pytest

from msm.configs import brain64_msm
from msm.tools.inspect_config import Summary, report, summarize


@pytest.fixture(scope="module")
def config():
    config = brain64_msm.get_config()
    config.data.image_size = 16
    config.model.update(num_channels=8, channel_mult=(1, 2), attention_resolutions=(8, 99), num_heads=2, patch_size=1)
    return config


def test_counts_flops_and_report(config):
    summary = summarize(config)
    kernels = {layer: shape for (layer, name), shape in summary.shapes.items() if name == "kernel"}
    sizes = {"input_blocks_0_0": 256, "input_blocks_1_0/in_conv": 256, "input_blocks_2_0/in_conv": 64, "out_conv": 256}
    # Convolutions of known places are a part of the total, and a pass costs no more than all kernels at full size.
    part = sum(2 * pixels * np.prod(kernels[layer]) for layer, pixels in sizes.items())
    most = 2.5 * 256 * summary.num_params
    assert part < summary.gflop * 1e9 < most

    text = report(config, summary, batch_size=4)
    assert f"{summary.num_params:,} (" in text
    assert f"{12 * summary.gflop:,.1f} GFLOP for 4 images" in text
    assert "kernel 3x3x8x8, bias 8" in text
    assert "feature maps 8x8: 16 channels, attention" in text
    assert "model.attention_resolutions 99: no feature map has this size" in text


def test_memory_follows_size_and_remat(config):
    small = summarize(config)
    assert small.saved_bytes > 20 * 16 * 16 * 8 * 4, "at least one feature map per normalisation and convolution"
    larger = config.copy_and_resolve_references()
    larger.data.image_size = 32
    larger.model.attention_resolutions = (16,)
    assert 3.5 < summarize(larger).saved_bytes / small.saved_bytes < 7
    config.model.remat = True
    assert summarize(config).saved_bytes < 0.6 * small.saved_bytes


def test_the_step_of_noisy_losses_counts_three_passes_and_accumulation_holds_a_part(config):
    config = config.copy_and_resolve_references()
    summary = Summary({("conv", "kernel"): (2**18,)}, gflop=1.0, saved_bytes=2**20)  # a MiB of each
    for name, parts, flops, memory in (
        ("msm", 1, "24.0 GFLOP for 8 images (3 forward passes)", "13 MiB for 8 images: 5 "),
        ("msm_sure", 1, "72.0 GFLOP for 8 images (9 forward passes, as loss.name 'msm_sure' takes 3)", "29 MiB for 8 "),
        ("msm_sure", 4, "72.0 GFLOP", "12 MiB for 8 images, 2 at a time (optim.accumulate): 6 for"),
    ):
        config.loss.name, config.optim.accumulate = name, parts
        text = report(config, summary, batch_size=8)
        assert flops in text and f"at most about {memory}" in text
