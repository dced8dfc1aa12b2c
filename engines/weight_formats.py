"""The weight formats of the targets: bits, block size, symmetry; independent of targets."""

from dataclasses import dataclass, replace

# Block sizes that MatMulNBits supports, and the bits of its scales.
BLOCKS = (16, 32, 64, 128, 256)
SCALE_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Unsigned integers of `bits`, with a float32 scale per `block` input channels and, unless symmetric, a zero point.

    block: None for one scale per output channel. floating: FP8 E4M3, or with 4 bits FP4 E2M1 with scales in E4M3.
    nested: the scales of an output channel's blocks are 1 .. 16 times one scale of the channel.
    """

    bits: int
    block: int | None
    symmetric: bool
    floating: bool = False
    nested: bool = False

    def __str__(self) -> str:
        kind = "fp" if self.floating else "int"
        share = "per channel" if self.block is None else f"block {self.block}{' of a channel' if self.nested else ''}"
        return f"{kind}{self.bits} {share}{'' if self.symmetric else ' with zero points'}"

    def fitted(self, columns: int) -> "WeightFormat":
        """This format with the block size, at most its own, that stores rows of `columns` weights in the fewest bits.

        A row's last block is padded: 576 columns in blocks of 256 would take as much as 768.
        """
        if self.block is None:
            return self

        def row_bits(block: int) -> int:
            return -(-columns // block) * (block * self.bits + SCALE_BITS + (0 if self.symmetric else self.bits))

        sizes = [size for size in BLOCKS if size <= self.block] or [self.block]
        return replace(self, block=min(sizes, key=row_bits))


# Activations are quantised to int8 in the same blocks: with blocks of 64, outliers make the loss 1.7 times as large.
INT8 = WeightFormat(bits=8, block=32, symmetric=True)
# A float32 scale and ONNX Runtime's sum per 32 weights would be a third of the bytes that a step reads, per 256 a 17th.
INT4 = WeightFormat(bits=4, block=128, symmetric=False)
INT4_COARSE = WeightFormat(bits=4, block=256, symmetric=False)
INT8_COARSE = WeightFormat(bits=8, block=128, symmetric=True)
# What TensorRT multiplies natively: symmetric, with a scale per output channel, or per block for 4 bits.
INT8_CHANNELS = WeightFormat(bits=8, block=None, symmetric=True)
FP8_CHANNELS = WeightFormat(bits=8, block=None, symmetric=True, floating=True)
NVFP4_BLOCKS = WeightFormat(bits=4, block=16, symmetric=True, floating=True)
INT4_BLOCKS = WeightFormat(bits=4, block=128, symmetric=True)
# What Hexagon NPUs multiply: a scale per output channel, or that times 1 .. 16 per block.
LPBQ = WeightFormat(bits=4, block=64, symmetric=True, nested=True)
