"""Which module opens which engine's bundles; knows their names only and imports one when it is asked for."""

import importlib
from typing import Protocol, cast

from megrez.runtime.bundle import Bundle
from megrez.runtime.errors import BundleError
from megrez.runtime.session import Session

MODULES = {
    "ort": "megrez.engines.ort.session",
    "ort-cuda": "megrez.engines.ort.cuda",
    "portable": "megrez.engines.portable.session",
    "qdq": "megrez.engines.qnn.reference",
    "qnn": "megrez.engines.qnn.session",
    "tensorrt": "megrez.engines.tensorrt.session",
}


class OpenSession(Protocol):
    """The verb that every engine's module offers under the name `open_session`."""

    def __call__(
        self, bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None
    ) -> Session: ...


def open_session(bundle: Bundle, *, threads: int | None, slots: int = 1, capacity: int | None = None) -> Session:
    """Open the bundle with the engine its manifest names; BundleError where this version knows no such engine.

    slots: sequences held at once. capacity: tokens that each of them holds, by default the bundle's context.
    UsageError for more of either than the bundle has.
    """
    engine = bundle.manifest.engine
    if engine not in MODULES:
        raise BundleError(
            f"the bundle {bundle.path} needs the engine {engine!r}, this version has {', '.join(sorted(MODULES))}: "
            "upgrade with  pip install -U megrez-compile"
        )
    open_it = cast(OpenSession, importlib.import_module(MODULES[engine]).open_session)
    return open_it(bundle, threads=threads, slots=slots, capacity=capacity)
