"""The names and shapes of a U-Net's weights by its configuration, without torch; a test compares them with the network's."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ddimctl.unet.config import DOWN_BLOCKS, UP_BLOCKS, BlockKind, UNetConfig

Shape = tuple[int, ...]


def weights(config: UNetConfig) -> dict[str, Shape]:
    """Every tensor of the network, as `UNet2DModel` has it."""
    c, layers = config.block_out_channels, config.layers_per_block
    width, levels = time_width(config), len(config.block_out_channels)
    found: dict[str, Shape] = {}
    for name, shape in (
        ("conv_in", (c[0], config.in_channels, 3, 3)),
        ("time_embedding.linear_1", (width, config.sinusoid)),
        ("time_embedding.linear_2", (width, width)),
        ("conv_norm_out", (c[0],)),
        ("conv_out", (config.out_channels, c[0], 3, 3)),
    ):
        found |= _layer(name, shape)
    if config.num_class_embeds:
        found["class_embedding.weight"] = (config.num_class_embeds, width)
    for i, block in enumerate(config.down_block_types):
        widths = [(c[max(i - 1, 0)], c[i]), *[(c[i], c[i])] * (layers - 1)]
        found |= dict(_block(config, f"down_blocks.{i}", i, widths=widths, kind=DOWN_BLOCKS[block], side="down"))
    for i, block in enumerate(config.up_block_types):
        level = levels - 1 - i
        below, above = c[min(level + 1, levels - 1)], c[max(level - 1, 0)]
        # What comes from below, and the skip that is concatenated to it; the last skip is from the block above.
        inputs = [below, *[c[level]] * layers]
        skips = [*[c[level]] * layers, above]
        widths = [(a + b, c[level]) for a, b in zip(inputs, skips, strict=True)]
        found |= dict(_block(config, f"up_blocks.{i}", level, widths=widths, kind=UP_BLOCKS[block], side="up"))
    if config.mid_block_type:
        for j in range(2):
            found |= dict(_resnet(config, f"mid_block.resnets.{j}", c[-1], out=c[-1]))
        if config.add_attention:
            normed = config.mid_groups is not None
            found |= dict(_attention(config, "mid_block.attentions.0", levels - 1, normed=normed))
    return found


def memory(config: UNetConfig) -> int:
    """Bytes that one image needs in float32, weights included: an estimate. The image size must be known."""
    return 4 * (sum(map(prod, weights(config).values())) + config.activation_floats())


def time_width(config: UNetConfig) -> int:
    """How wide the embedding of the label is."""
    return config.time_embedding_dim or config.block_out_channels[0] * 4


def _block(
    config: UNetConfig, name: str, level: int, *, widths: list[tuple[int, int]], kind: BlockKind, side: str
) -> Iterator[tuple[str, Shape]]:
    channels = config.block_out_channels[level]
    for j, (into, out) in enumerate(widths):
        yield from _resnet(config, f"{name}.resnets.{j}", into, out=out)
        if kind.attention:
            yield from _attention(config, f"{name}.attentions.{j}", level)
    if level == (len(config.block_out_channels) - 1 if side == "down" else 0):
        return
    how = kind.resample or (config.downsample_type if side == "down" else config.upsample_type) or "conv"
    if how == "conv":
        yield from _layer(f"{name}.{side}samplers.0.conv", (channels, channels, 3, 3)).items()
    else:
        yield from _resnet(config, f"{name}.{side}samplers.0", channels, out=channels)


def _resnet(config: UNetConfig, name: str, into: int, *, out: int) -> Iterator[tuple[str, Shape]]:
    time = 2 * out if config.resnet_time_scale_shift == "scale_shift" else out
    yield from _layer(f"{name}.norm1", (into,)).items()
    yield from _layer(f"{name}.conv1", (out, into, 3, 3)).items()
    yield from _layer(f"{name}.time_emb_proj", (time, time_width(config))).items()
    yield from _layer(f"{name}.norm2", (out,)).items()
    yield from _layer(f"{name}.conv2", (out, out, 3, 3)).items()
    if into != out:
        yield from _layer(f"{name}.conv_shortcut", (out, into, 1, 1)).items()


def _attention(config: UNetConfig, name: str, level: int, *, normed: bool = True) -> Iterator[tuple[str, Shape]]:
    channels, head = config.block_out_channels[level], config.head_dim(level)
    inner = channels // head * head
    if normed:
        yield from _layer(f"{name}.group_norm", (channels,)).items()
    for part in ("to_q", "to_k", "to_v"):
        yield from _layer(f"{name}.{part}", (inner, channels)).items()
    yield from _layer(f"{name}.to_out.0", (channels, inner)).items()


def _layer(name: str, shape: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
