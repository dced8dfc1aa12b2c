"""Whether a session fits into this machine's memory, checked before it is allocated; knows no library."""

from megrez.engines.ort.caches import CacheShape
from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import UsageError
from megrez.runtime.memory import machine_memory


def check_memory(bundle: Bundle, cache: CacheShape) -> None:
    """Raise UsageError where the weights and full KV caches exceed this machine's memory."""
    weights, found = sum(file.size for file in bundle.manifest.files), machine_memory()
    needed = weights + cache.nbytes
    if found is None or needed <= found:
        return
    tokens = max(found - weights, 0) // (cache.nbytes // cache.capacity)
    remedies = [f"choose a --context of at most {tokens}"] if tokens else []
    remedies += ["fewer slots"] if cache.slots > 1 else []
    remedies += ["a bundle with --kv int8"] if bundle.manifest.kv_cache.dtype == "float32" else []
    raise UsageError(
        f"{bundle.path} with {cache.slots} x {cache.capacity} tokens needs {needed / 1e9:.2f} GB of memory "
        f"({weights / 1e9:.2f} GB of weights, {cache.nbytes / 1e9:.2f} GB of KV cache), this machine has "
        f"{found / 1e9:.2f} GB: {', or '.join(remedies) or 'open it on a larger one'}"
    )
