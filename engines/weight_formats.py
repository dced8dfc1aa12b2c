"""How weights are rounded: the formats that targets choose among; knows no target."""

from dataclasses import dataclass, replace

# What MatMulNBits takes, the finest first, and its scales.
BLOCKS = (16, 32, 64, 128, 256)
SCALE_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Unsigned codes of `bits`, with a float32 scale per `block` of in_features and, unless symmetric, a zero point.

    block: None for one scale per output channel. floating: the codes are bit patterns of E4M3, or of E2M1 (4 bits),
    whose scales are E4M3 numbers. nested: the scales of a channel's blocks are 1 .. 16 times one scale of the channel.
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
        """This format in the blocks, of its size or a half, a quarter … of it, that store such rows in the fewest bits.

        A row's last block is stored whole: 576 columns in blocks of 256 would take as much as 768.
        """
        if self.block is None:
            return self

        def row_bits(block: int) -> int:
            return -(-columns // block) * (block * self.bits + SCALE_BITS + (0 if self.symmetric else self.bits))

        sizes = [size for size in BLOCKS if size <= self.block] or [self.block]
        return replace(self, block=min(sizes, key=row_bits))


# Blocks of 32 also bound how far an outlier spoils the int8 activations around it: at 64 the loss is 1.7 times as much.
INT8 = WeightFormat(bits=8, block=32, symmetric=True)
# A float32 scale and ONNX Runtime's sum for every 32 weights would be a third of what a step reads, for 256 a 17th.
INT4 = WeightFormat(bits=4, block=128, symmetric=False)
INT4_COARSE = WeightFormat(bits=4, block=256, symmetric=False)
INT8_COARSE = WeightFormat(bits=8, block=128, symmetric=True)
# What TensorRT multiplies natively: symmetric, the scales of a matrix per output channel, or in blocks for 4 bits.
INT8_CHANNELS = WeightFormat(bits=8, block=None, symmetric=True)
FP8_CHANNELS = WeightFormat(bits=8, block=None, symmetric=True, floating=True)
NVFP4_BLOCKS = WeightFormat(bits=4, block=16, symmetric=True, floating=True)
INT4_BLOCKS = WeightFormat(bits=4, block=128, symmetric=True)
# What Hexagon NPUs multiply: the scales of a matrix per output channel, or such a scale times 1 .. 16 per block.
LPBQ = WeightFormat(bits=4, block=64, symmetric=True, nested=True)
