"""A model that is copied from another one, in this process or in another.

Stands in for a `Checkpoint` where the weights are those of an `LM` as it is now. Pickled, it
holds the weights as arrays that need not be copied to be read, and the tokenizer's files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bonaware._export import fits_bfloat16

if TYPE_CHECKING:
    from bonaware.lm import LM

__all__ = ["Copy"]


class Copy:
    """What `LM` needs to know of a model that is copied from another one.

    Adapters that are being trained are no part of it.

    Parameters
    ----------
    lm : LM
        Its weights are read when they are asked for, or when this is pickled.
    side_files : sequence of Path
        Of the tokenizer, where the copy is to have one.
    """

    def __init__(self, lm: "LM", side_files: Sequence[Path] = ()) -> None:
        self._lm: LM | None = lm
        self._values: list[tuple[str, int, NDArray[Any]]] = []
        self._files: dict[str, bytes] = {}
        self.name, self.config, self.arch, self.dtype = lm.name, lm.config, lm.arch, lm.dtype
        self.eos_token_ids, self.side_files = lm.eos_token_ids, list(side_files)
        self.self_evaluation, self.routes = lm.self_evaluation, lm.routes
        self.fingerprint = lm._fingerprint if lm._merged is None else None

    def weights(self) -> Iterator[tuple[str, int, NDArray[Any]]]:
        """Slot, layer (0: of the model) and values of every tensor."""
        if self._lm is None:
            yield from self._values
            return
        for slot, layer, _ in self.arch.slots():
            yield slot, layer or 0, self._lm._model.get(slot, layer or 0)

    def equals(self, other: "Copy") -> bool:
        """Whether all weights are the same."""
        return all(np.array_equal(_short(one[-1]), _short(another[-1]))
                   for one, another in zip(self.weights(), other.weights(), strict=True))

    def unpack(self, folder: Path) -> None:
        """Write the tokenizer's files that came with a pickled copy, and use these."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)
        self.side_files = [folder / name for name in self._files]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {
            "_lm": None, "side_files": [],
            "_values": [(slot, layer, _short(values)) for slot, layer, values in self.weights()],
            "_files": {file.name: file.read_bytes() for file in self.side_files},
        }


def _short(values: NDArray[Any]) -> NDArray[Any]:
    """float32 as the bits of bfloat16 where that loses nothing: half of what is sent."""
    if values.dtype != np.float32 or not fits_bfloat16(values):
        return values
    return (values.view(np.uint32) >> 16).astype(np.uint16)
