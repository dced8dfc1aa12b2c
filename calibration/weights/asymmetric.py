"""Weights that lead what has drifted by earlier rounding back to the exact model; knows no layer and no number format.

A projection of weights W reads x in the exact model and x' in the rounded one. The weights sought bring W' x' near to
W x, and where the product joins a sum, to what that sum lacks besides; a ridge keeps them near to W:

    W' = argmin E ||W' x' - (W x + missing)||^2 + ridge ||W' - W||^2

Source: Li et al., GPTAQ (2025), for the inputs. The sum and so strong a ridge are from trying: docs/benchmarks/cpu.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.weights.gram import cross_moments

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Of the moments' mean. A hundredth follows the calibration text too closely, and does harm on others.
RIDGE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What a point is to give, token by token of the calibration text.

    inputs: [tokens, K], what it reads in the exact model. missing: [tokens, N], by how much the sum that its product
    joins is below the exact model's; None where the product joins none.
    """

    inputs: Float32
    missing: Float32 | None = None


def correction(exact: Exact, met: Float32, moments: Float64) -> Callable[[Float32], Float32]:
    """What makes W' [N, K] of W [N, K], for inputs met [tokens, K] with these second moments [K, K].

    Where exact.missing is not None, W must be the whole projection, whose N its columns are.
    """
    k = len(moments)
    ridge = max(RIDGE * float(np.trace(moments)) / k, np.finfo(np.float64).tiny)
    damped = moments + np.eye(k) * ridge

    def share(cross: Float64) -> Float32:
        return np.linalg.solve(damped, cross.T).T.astype(np.float32)

    turn = share(cross_moments(exact.inputs, met) - moments)
    lift = None if exact.missing is None else share(cross_moments(exact.missing, met))

    def corrected(weight: Float32) -> Float32:
        moved = weight + weight @ turn
        return moved if lift is None else moved + lift

    return corrected
