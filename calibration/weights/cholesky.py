"""Cholesky factors of large float32 matrices in blocks, by matrix products; knows no weight.

numpy's own works in float64 in one thread for such sizes, at a tenth of the speed. Golub and Van Loan, Matrix
Computations, 4.2.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megrez.calibration.parallel import in_parts, multiply

Float32 = NDArray[np.float32]
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Cholesky:
    """factor: the lower L [n, n] of a matrix L L^T; inverses: of L's blocks on the diagonal."""

    factor: Float32
    inverses: list[Float32]

    def solve(self, b: Float32) -> Float32:
        """x [n, m] of L L^T x = b, in the memory of b [n, m]."""
        in_parts(b.shape[1], BLOCK, lambda columns: self._solve(b[:, columns]))
        return b

    def _solve(self, b: Float32) -> None:
        blocks = [slice(start, start + BLOCK) for start in range(0, len(b), BLOCK)]
        for part, inverse in zip(blocks, self.inverses, strict=True):
            b[part] = inverse @ (b[part] - self.factor[part, : part.start] @ b[: part.start])
        for part, inverse in zip(reversed(blocks), reversed(self.inverses), strict=True):
            b[part] = inverse.T @ (b[part] - self.factor[part.stop :, part].T @ b[part.stop :])


def cholesky(a: Float32) -> Cholesky:
    """Of a symmetric positive definite a [n, n], of which only the lower triangle is read; in the memory of `a`.

    A block's own factor is computed in float64, the rest in float32. Raises LinAlgError where `a` is not positive
    definite, to the accuracy of float32.
    """
    inverses = []
    for start in range(0, len(a), BLOCK):
        stop = min(start + BLOCK, len(a))
        panel = a[start:, start:stop]
        panel -= multiply(a[start:, :start], a[start:stop, :start].T)
        block = np.linalg.cholesky(panel[: stop - start].astype(np.float64))
        inverse = np.linalg.inv(block).astype(np.float32)
        panel[: stop - start] = block
        panel[stop - start :] = multiply(panel[stop - start :], inverse.T)
        a[start:stop, stop:] = 0
        inverses.append(inverse)
    return Cholesky(a, inverses)
