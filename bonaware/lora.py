"""LoRA adapters as PEFT keeps them in a folder: read, write, and merge into a model.

An adapter adds ``scaling * B @ A`` to some matrices of a model. PEFT writes it as
adapter_config.json and adapter_model.safetensors; names of modules there are those of the
checkpoint. Nothing is guessed: a field that is on and that is not known here is an error.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; the scaling of rsLoRA: Kalajdzievski 2023,
arXiv:2312.03732, section 3; the folder: PEFT 0.21 `LoraConfig` and `save_pretrained`.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware import _export
from bonaware._checks import count, number
from bonaware.checkpoint import FLOATS, read_json
from bonaware.config import engine
from bonaware.lm import LM
from bonaware.models import family_of
from bonaware.models._fields import Fields, show

__all__ = ["TARGETS", "Adapter", "fresh", "merge", "read", "write"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"
MAX_RANK = 65536
# Fields of adapter_config.json that change nothing about the product.
HARMLESS = frozenset([
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "task_type",
])
# Ways to begin that leave the model's own weights alone; others subtract the adapter from them.
INITS = (True, False, "gaussian", "orthogonal", "eva")

# Matrices that can be adapted while training, in every layer.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Key = tuple[str, int]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of a model's matrices.

    Parameters
    ----------
    rank : int
        In [1, 65536].
    alpha : float
        > 0.
    pairs : mapping of (slot, layer) to (A, B)
        A is float32 [rank, inputs], B float32 [outputs, rank]; slots as in `Arch.slots`.
    full : mapping of (slot, layer) to float32 array, optional
        Tensors that are replaced whole (PEFT's modules_to_save), such as a score head.
    rslora : bool
        Whether the scaling is ``alpha / sqrt(rank)`` and not ``alpha / rank``.

    Raises
    ------
    TypeError, ValueError
        As `need_scale`.

    Examples
    --------
    >>> a, b = np.ones((2, 4), np.float32), np.ones((3, 2), np.float32)
    >>> Adapter(rank=2, alpha=8, pairs={("q", 0): (a, b)}).change("q", 0)[0]
    array([8., 8., 8., 8.], dtype=float32)
    """

    rank: int
    alpha: float
    pairs: Mapping[Key, tuple[Matrix, Matrix]]
    full: Mapping[Key, Matrix] = field(default_factory=dict)
    rslora: bool = False

    def __post_init__(self) -> None:
        need_scale(self.rank, self.alpha)

    @property
    def scaling(self) -> float:
        """The factor of B @ A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def change(self, slot: str, layer: int) -> Matrix:
        """What is added to a matrix: scaling * B @ A, float32 [outputs, inputs]."""
        a, b = self.pairs[slot, layer]
        return np.float32(self.scaling) * (b @ a)


def need_scale(rank: int, alpha: float) -> None:
    """Refuse a rank that is no int in [1, 65536], and an alpha that is no float32 > 0."""
    count("rank", rank, most=MAX_RANK)
    if not 0 < number("alpha", alpha) <= float(np.finfo(np.float32).max):
        raise ValueError(f"need alpha > 0 in the range of float32, got {alpha}")


def fresh(lm: LM, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = TARGETS,
          rng: int | np.random.SeedSequence | np.random.Generator | None = 0) -> Adapter:
    """An adapter that changes nothing yet, to be trained.

    Parameters
    ----------
    lm : LM
    rank, alpha
        As in `Adapter`.
    targets : sequence of str
        Names of the matrices that get one, in every layer.
    rng : None, int, SeedSequence or Generator

    Returns
    -------
    Adapter
        A is uniform in +- 1/sqrt(inputs), as PEFT begins; B is 0.

    Raises
    ------
    TypeError, ValueError
        A target is unknown, or there is none; or as `need_scale`.
    """
    need_scale(rank, alpha)
    if not len(targets):
        raise ValueError(f"need at least one target of {', '.join(TARGETS)}, found none")
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise ValueError(f"targets must be among {', '.join(TARGETS)}, found {unknown[0]!r}")
    random, pairs = np.random.default_rng(rng), {}
    for slot, layer, words in lm.arch.slots():
        if f"{slot}_proj" not in targets:
            continue
        outputs, inputs = lm.arch.shape(words)
        a = random.uniform(-1, 1, (rank, inputs)) / math.sqrt(inputs)
        pairs[slot, layer or 0] = a.astype(np.float32), np.zeros((outputs, rank), np.float32)
    return Adapter(rank, alpha, pairs)


def merge(lm: LM, adapter: Adapter) -> None:
    """Adds an adapter to a model's weights, in place.

    Parameters
    ----------
    lm : LM
        In bfloat16 the sums are rounded: what is smaller than half a unit in the last place
        of a weight is lost.
    adapter : Adapter

    Raises
    ------
    ValueError
        The model has no such slot, or a matrix has another shape, or it is held in int8; nothing
        is changed.
    """
    list(_parts(adapter, lm))
    if lm.dtype == "int8":
        raise ValueError(f"{lm.name} is held in int8, in which its weights are rounded: load it "
                         "in float32 or bfloat16 to merge an adapter")
    for slot, layer in adapter.pairs:
        lm._model.set(slot, layer, lm._model.get(slot, layer) + adapter.change(slot, layer))
    for (slot, layer), values in adapter.full.items():
        lm._model.set(slot, layer, np.ascontiguousarray(values, np.float32))
    lm.weights_changed()


# -- names ---------------------------------------------------------------------


def _modules(lm: LM) -> dict[str, tuple[Key, tuple[int, ...]]]:
    """Name of a module with a matrix -> slot, layer and shape [outputs, inputs]."""
    names, result = family_of(lm.config).NAMES, {}
    for slot, layer, words in lm.arch.slots():
        if len(words) == 2:
            module = names[slot].format(i=layer).removesuffix(".weight")
            result[module] = (slot, layer or 0), lm.arch.shape(words)
    return result


def _ends(module: str, names: Sequence[str]) -> bool:
    """Whether a module goes by one of these names, whole or its end."""
    return any(f".{module}".endswith(f".{name}") for name in names)


def _matches(module: str, wanted: Any) -> bool:
    """As PEFT compares: a list of names, or all linear layers."""
    if wanted == ALL_LINEAR:
        return not _ends(module, ["embed_tokens", "lm_head", "score"])
    return _ends(module, wanted)


# -- reading -------------------------------------------------------------------


def read(path: str | os.PathLike[str], lm: LM) -> Adapter:
    """An adapter from a folder of PEFT.

    Parameters
    ----------
    path : str or path
        A folder with adapter_config.json and adapter_model.safetensors.
    lm : LM
        The model that the adapter was made for.

    Returns
    -------
    Adapter

    Raises
    ------
    OSError
        The folder or a file is missing or cannot be read.
    ValueError
        It is no LoRA, a field is on whose meaning is not known here, or the matrices are not
        those that the configuration says and the model has.
    """
    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"need {name} in the folder {folder}, found no such file")
    fields = Fields(read_json(folder / CONFIG), str(folder / CONFIG))
    rank, alpha = fields.size("r", limit=MAX_RANK), fields.number("lora_alpha")
    rslora = fields.flag("use_rslora", False)
    wanted = _targets(fields, lm)
    whole = fields.raw("modules_to_save") or []
    _check_names(fields, "modules_to_save", whole)
    _finish(fields)
    pairs, full = _tensors(folder / WEIGHTS, lm, rank, whole)
    if wanted is not None and wanted != set(pairs):
        slot, layer = min(wanted ^ set(pairs))
        found = "found none" if (slot, layer) in wanted else "found one"
        raise ValueError(f"{folder / WEIGHTS}: must have matrices for the targets of {CONFIG} and "
                         f"no others, but for {slot} of layer {layer} {found}")
    return Adapter(rank, alpha, pairs, full, rslora)


def _check_names(fields: Fields, name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise fields.refuse(name, "a list of names of modules")


def _targets(fields: Fields, lm: LM) -> set[Key] | None:
    """Slots and layers that the configuration adapts; None where it has a regular expression.

    One of a stranger may take for ever, so none is run: the tensors say what is adapted.
    """
    wanted, excluded = fields.raw("target_modules"), fields.raw("exclude_modules") or []
    for name, value in (("target_modules", wanted), ("exclude_modules", excluded)):
        if not isinstance(value, str):
            _check_names(fields, name, value)
    layers = fields.raw("layers_to_transform")
    layers = [layers] if type(layers) is int else layers
    if layers is not None and not (isinstance(layers, list) and all(
        type(i) is int and 0 <= i < lm.arch.layers for i in layers
    )):
        raise fields.refuse("layers_to_transform", f"layers in [0, {lm.arch.layers})")
    if isinstance(excluded, str) or (isinstance(wanted, str) and wanted != ALL_LINEAR):
        return None
    return {
        (slot, layer) for module, ((slot, layer), _) in _modules(lm).items()
        if _matches(module, wanted) and not _matches(module, excluded)
        and (layers is None or (module.startswith("model.layers.") and layer in layers))
    }


def _finish(fields: Fields) -> None:
    """Everything else must be off: absent, null, false or empty."""
    fields.word("peft_type", "LORA", ["LORA"])
    fields.word("bias", "none", ["none"])
    if fields.raw("layers_pattern") not in (None, "layers", ["layers"]):
        raise fields.refuse("layers_pattern", "null or layers")
    if fields.raw("init_lora_weights", True) not in INITS:
        raise fields.refuse("init_lora_weights", f"one of {', '.join(map(str, INITS))}: others "
                                                 "change the model's own weights")
    for name, value in fields.values.items():
        if name not in fields.seen and name not in HARMLESS and value:
            raise fields.refuse(name, "absent or off, as it might change the mathematics of the "
                                      "adapter in ways that are not known here")


def _tensors(path: Path, lm: LM, rank: int, whole: Sequence[str]) -> tuple[
    dict[Key, tuple[Matrix, Matrix]], dict[Key, Matrix]
]:
    """A and B by slot and layer, and the tensors that are replaced whole."""
    modules, weights = _modules(lm), engine().Weights(str(path))
    halves: dict[str, dict[Key, Matrix]] = {"A": {}, "B": {}}
    full: dict[Key, Matrix] = {}
    for name in weights.names():
        found = re.fullmatch(re.escape(PREFIX) + r"(.*?)(?:\.lora_([AB]))?\.weight", name)
        module, half = found.groups() if found else (None, None)
        if module not in modules or (half is None and not _ends(module, whole)):
            raise ValueError(f"{path}: every tensor must belong to a matrix of {lm.name} that is "
                             f"adapted or saved whole, found {show(name)}")
        key, (outputs, inputs) = modules[module]
        if half is None and key[0] == "embed" and lm.arch.tied and not lm.labels:
            raise ValueError(f"{path}: must not replace the embedding alone, as {lm.name} has it "
                             f"for its vocabulary projection too, found {show(name)}")
        must = {"A": (rank, inputs), "B": (outputs, rank), None: (outputs, inputs)}[half]
        (full if half is None else halves[half])[key] = _floats(path, weights, name, must)
    if halves["A"].keys() != halves["B"].keys():
        slot, layer = min(halves["A"].keys() ^ halves["B"].keys())
        raise ValueError(f"{path}: must have lora_A and lora_B together, found one of them for "
                         f"{slot} of layer {layer}")
    return {key: (a, halves["B"][key]) for key, a in halves["A"].items()}, full


def _floats(path: Path, weights: Any, name: str, must: tuple[int, int]) -> Matrix:
    dtype, shape = weights.info(name)
    if shape != must or dtype not in FLOATS:
        raise ValueError(f"{path}: tensor {name} must have shape {list(must)} and one of the types "
                         f"{', '.join(FLOATS)}, found {list(shape)} of {dtype}")
    values = weights.array(name)
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


# -- writing -------------------------------------------------------------------


def write(path: str | os.PathLike[str], adapter: Adapter, lm: LM) -> None:
    """Writes a folder that PEFT and `read` open.

    Parameters
    ----------
    path : str or path
        A folder that does not exist yet, or is empty. It appears whole or not at all.
    adapter : Adapter
    lm : LM
        The model that the adapter is for.

    Raises
    ------
    FileExistsError
        The folder holds files.
    ValueError
        The model has no such slot, or a matrix has another shape.
    """
    tensors = list(_parts(adapter, lm))
    modules = {key: module for module, (key, _) in _modules(lm).items()}
    config = {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if lm.labels else "CAUSAL_LM",
        "base_model_name_or_path": lm.name, "inference_mode": True, "r": adapter.rank,
        "lora_alpha": _number(adapter.alpha), "use_rslora": adapter.rslora, "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "target_modules": sorted(_short_names(adapter, modules, lm)),
        "modules_to_save": [modules[key] for key in adapter.full] or None,
    }
    with _export.new_folder(path) as folder:
        _export.write_safetensors(folder / WEIGHTS, tensors)
        _export.write_json(folder / CONFIG, config)


def _parts(adapter: Adapter, lm: LM) -> Iterator[_export.Tensor]:
    """Every tensor of an adapter, which must be of a matrix of the model and have its shape."""
    modules = {key: (module, shape) for module, (key, shape) in _modules(lm).items()}
    unknown = sorted((adapter.pairs.keys() | adapter.full.keys()) - modules.keys())
    if unknown:
        slot, layer = unknown[0]
        raise ValueError(f"{lm.name} has no matrix {slot} in layer {layer} to adapt")
    for key, (a, b) in adapter.pairs.items():
        module, (outputs, inputs) = modules[key]
        yield _tensor(f"{PREFIX}{module}.lora_A.weight", a, (adapter.rank, inputs))
        yield _tensor(f"{PREFIX}{module}.lora_B.weight", b, (outputs, adapter.rank))
    for key, values in adapter.full.items():
        module, whole = modules[key]
        yield _tensor(f"{PREFIX}{module}.weight", values, whole)


def _tensor(name: str, values: Matrix, shape: tuple[int, ...]) -> _export.Tensor:
    if values.shape != shape:
        raise ValueError(f"tensor {name} must have shape {list(shape)}, found "
                         f"{list(values.shape)}")
    return _export.Tensor(name, "F32", shape, lambda: values)


def _number(value: float) -> int | float:
    """Without a point where there is nothing behind it, as PEFT writes it."""
    return int(value) if value == int(value) else value


def _short_names(adapter: Adapter, modules: Mapping[Key, str], lm: LM) -> set[str]:
    """"q_proj" where every layer has an adapter of it, else the whole names."""
    names = set()
    for slot, layer in adapter.pairs:
        module = modules[slot, layer]
        everywhere = all((slot, i) in adapter.pairs for i in range(lm.arch.layers))
        names.add(module.rsplit(".", 1)[-1] if everywhere else module)
    return names
