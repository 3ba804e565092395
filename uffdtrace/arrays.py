"""The type of numpy's arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    # numpy.typing came with numpy 1.20: Debian 11 has an older one.
    import numpy.typing as npt

    # Any numpy array; docstrings give dtype and shape.
    Array = npt.NDArray[Any]
else:
    Array = np.ndarray
