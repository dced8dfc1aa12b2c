"""The KV caches of a session on a device, and copies between their entries (indices of the batch dimension)."""

from megrez.engines.slot_order import Swap
from megrez.engines.tensorrt.device import Device
from megrez.engines.tensorrt.plan_shape import HALF_BYTES, PlanShape, spare_bytes


class Caches:
    """addresses: by name, of float16 [slots, kv_heads, capacity, head_dim] each. All copies are queued."""

    def __init__(self, device: Device, shape: PlanShape, slots: int) -> None:
        self._device, self._shape = device, shape
        self.addresses = {name: device.allocate(shape.cache_bytes(slots)) for name in shape.cache_names}
        # The temporary buffer of swaps, for one cache at a time.
        self._spare = device.allocate(spare_bytes(shape, slots)) if slots > 1 else None

    def entries(self, first: int) -> dict[str, int]:
        """The addresses of entry `first`, by name."""
        return {name: self._entry(address, first) for name, address in self.addresses.items()}

    def swap(self, swaps: list[Swap]) -> None:
        assert self._spare is not None, "a single entry cannot be swapped"
        for address in self.addresses.values():
            for swap in swaps:
                one, other = self._entry(address, swap.one), self._entry(address, swap.other)
                self._copy(self._spare, one, swap.tokens_of_one)
                self._copy(one, other, swap.tokens_of_other)
                self._copy(other, self._spare, swap.tokens_of_one)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one entry to another."""
        for address in self.addresses.values():
            self._copy(self._entry(address, target), self._entry(address, source), tokens)

    def _entry(self, address: int, entry: int) -> int:
        return address + entry * self._shape.cache_bytes(1)

    def _copy(self, target: int, source: int, tokens: int) -> None:
        """One piece per head: its tokens are contiguous, and the heads are `capacity` tokens apart."""
        token = HALF_BYTES * self._shape.head_dim
        if tokens and target != source:
            pitch, heads = token * self._shape.capacity, self._shape.kv_heads
            self._device.copy(target, source, size=token * tokens, pitch=pitch, pieces=heads)
