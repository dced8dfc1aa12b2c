"""The KV caches of a session on a device, and how tokens are moved between their rows; knows no engine."""

from megrez.engines.slot_rows import Swap
from megrez.engines.tensorrt.device import Device
from megrez.engines.tensorrt.plan_shape import HALF_BYTES, PlanShape, spare_bytes


class Caches:
    """addresses: by name, each of float16 [slots, kv_heads, capacity, head_dim]. All copies are queued."""

    def __init__(self, device: Device, shape: PlanShape, slots: int) -> None:
        self._device, self._shape = device, shape
        self.addresses = {name: device.allocate(shape.cache_bytes(slots)) for name in shape.cache_names}
        # A swap goes through it; the caches of all layers take turns.
        self._spare = device.allocate(spare_bytes(shape, slots)) if slots > 1 else None

    def rows(self, first: int) -> dict[str, int]:
        """Where the rows from `first` on lie, by name."""
        return {name: self._row(address, first) for name, address in self.addresses.items()}

    def swap(self, swaps: list[Swap]) -> None:
        assert self._spare is not None, "a single row has none to change places with"
        for address in self.addresses.values():
            for swap in swaps:
                one, other = self._row(address, swap.one), self._row(address, swap.other)
                self._copy(self._spare, one, swap.tokens_of_one)
                self._copy(one, other, swap.tokens_of_other)
                self._copy(other, self._spare, swap.tokens_of_one)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one row to another."""
        for address in self.addresses.values():
            self._copy(self._row(address, target), self._row(address, source), tokens)

    def _row(self, address: int, row: int) -> int:
        return address + row * self._shape.cache_bytes(1)

    def _copy(self, target: int, source: int, tokens: int) -> None:
        """The tokens of one head lie together, those of the next head a capacity later."""
        token = HALF_BYTES * self._shape.head_dim
        if tokens and target != source:
            pitch, heads = token * self._shape.capacity, self._shape.kv_heads
            self._device.copy(target, source, size=token * tokens, pitch=pitch, pieces=heads)
