"""One static graph in ONNX Runtime, its inputs and outputs bound to arrays; knows no engine's options."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megrez.runtime.errors import EngineError, first_line

Array = NDArray[Any]
TYPES = {"tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16}


class Graph(Protocol):
    """What a session asks of a graph."""

    def run(self) -> None:
        """Read the arrays of the inputs, write those of the outputs; raises EngineError when the engine fails."""
        ...


class BoundGraph:
    """session: an onnxruntime.InferenceSession. arrays: by name, made here where they are missing.

    Graphs that are given the same arrays read what another wrote, without a copy.
    """

    def __init__(self, session: Any, arrays: dict[str, Array], name: str) -> None:
        self._session, self._name = session, name
        self._io = session.io_binding()
        for values, bind in (
            (session.get_inputs(), self._io.bind_input),
            (session.get_outputs(), self._io.bind_output),
        ):
            for value in values:
                array = arrays.setdefault(value.name, np.zeros(value.shape, TYPES[value.type]))
                if array.shape != tuple(value.shape) or array.dtype != TYPES[value.type]:
                    raise EngineError(
                        f"{name} has {value.name} as {value.type} {value.shape}, another graph of the bundle as "
                        f"{array.dtype} {list(array.shape)}: compile the bundle again"
                    )
                bind(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self) -> None:
        """See Graph."""
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise EngineError(f"the NPU's runtime failed in {self._name}: {first_line(error)}") from error
