import numpy as np
from numpy.typing import NDArray

def empty(shape: int | tuple[int, ...], /) -> NDArray[np.float64]: ...
