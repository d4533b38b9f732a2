"""LM: a language model on the C engine - load, generate, logits, logp, scores, save.

This file turns what people have (text, chats, folders) into what the engine takes (token ids,
packed weights) and back; it knows no mathematics and no file formats. Drawing is in _drawing.py.
"""

import functools
import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware import _export, data, routes, verifiers
from bonaware._checks import as_ids, count, floats, megabytes
from bonaware._copy import Copy
from bonaware._drawing import Drawing
from bonaware._fresh import Fresh
from bonaware._limits import free_memory, usable_threads
from bonaware._progress import Bar, Progress
from bonaware._scheduling import Guide, Scheduled
from bonaware.checkpoint import SELF_EVALUATION, Checkpoint
from bonaware.config import engine
from bonaware.models import config_of_text, family_of, pad_token_id
from bonaware.policies import Policy, of_policy
from bonaware.samples import Request, Sample, Samples, seed_of
from bonaware.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bonaware._learner import Learner
    from bonaware.lora import Adapter

__all__ = ["LM"]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
Weights = Callable[[str, int], NDArray[np.float32]]

DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # of weights that can be stored and learn
# Share of the free memory that cache and scratch may take when memory= is not given.
MEMORY_SHARE = 0.5
# Samples may be numbered up to here: their indices are 64-bit integers.
MAX_START = 2**62
NO_TOKENS = np.empty(0, np.int32)


class LM:
    """A language model that draws many samples per prompt on the CPU, or one that scores them.

    Make one with `LM.load` or `LM.from_config`.

    Attributes
    ----------
    name : str
        Name of the folder it came from; of its architecture where it came from none.
    config : dict
        The checkpoint's config.json.
    tokenizer : Tokenizer or None
        None where the folder has no tokenizer.json; then prompts are token ids.
    dtype, threads, memory
        As in effect: precision of the weights, threads, bytes for cache and scratch.
    eos_token_ids : tuple of int
        Tokens that end a sample.
    labels : int
        Numbers that its score head gives per text; 0 for a model that predicts tokens.
    routes : dict
        Which kernel computes which product; see `bonaware.routes`.
    fingerprint : str
        Identifies weights and precision; stored with runs.
    self_evaluation : dict or None
        What the model was trained to be asked behind a sample, in token ids; see
        `bonaware.selfeval`. `save` writes it as self_evaluation.json.
    """

    _drawing, _scheduling = Drawing, Scheduled  # what draws, without a policy and with one

    def __init__(self, source: Checkpoint | Fresh | Copy, *, dtype: str, threads: int,
                 memory: int | None) -> None:
        built = engine()
        self.name = source.name
        self.config = source.config
        self.arch = source.arch
        self.dtype = dtype
        self.threads = threads
        self.eos_token_ids = source.eos_token_ids
        self.self_evaluation: dict[str, Any] | None = source.self_evaluation
        self._side_files = source.side_files
        self._merged: Weights | None = None  # weights with the adapters that are being trained
        self._fingerprint = source.fingerprint
        weights = source.weights()
        first = next(weights)  # a config may ask for more than the files hold: checked here
        self._model = built.Model(_engine_arch(self.arch), dtype, threads)
        for slot, layer, values in itertools.chain([first], weights):
            self._model.set(slot, layer, values)
        if source.routes is None:
            self.routes = routes.choose(self._model, built.config(), dtype)
        else:
            self.routes = source.routes
            routes.use(self._model, self.routes)
        self.memory = int(free_memory() * MEMORY_SHARE) if memory is None else memory
        folder = next((f.parent for f in self._side_files if f.name == "tokenizer.json"), None)
        self.tokenizer = None if folder is None else Tokenizer.load(folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dtype: str = "auto",
             threads: int | None = None, memory: int | None = None) -> "LM":
        """Load a Hugging Face folder.

        Parameters
        ----------
        path : str or path
            Folder with config.json and model.safetensors (one file, or several with an index),
            or the name of an embedded model. A tokenizer.json is needed only for text.
        dtype : {"auto", "float32", "bfloat16", "int8"}
            Precision of the matrices; sums are float32 or exact, and keys and values are held
            in bfloat16 unless matrices are float32. "auto": as the checkpoint says. "int8": a
            weight takes one byte, with a scale per output, two where rounding would cost more
            than 2 % of an output's weights (csrc/int8.h); activations are rounded to 12 bits,
            or to 8 and where that costs too much 16, where the processor is faster so
            (docs/design/engine.md). Such a model draws and reads, but neither learns nor is
            saved.
        threads : int, optional
            1 to 1024. Default: the processors this process may use, in its container.
            Results do not depend on it.
        memory : int, optional
            Bytes that cache and scratch of a call may take, >= 1. Default: half of what is
            free now, in its container. More samples than fit are drawn in waves.

        Raises
        ------
        OSError
            A file is missing or cannot be read.
        ValueError
            The checkpoint is damaged, contradicts its config.json, or is of an architecture
            or has a field that bonaware does not know.
        ImportError
            bonaware was installed without its engine.
        """
        if dtype not in ("auto", "int8", *DTYPES):
            raise ValueError("dtype must be 'auto', 'float32', 'bfloat16' or 'int8', got "
                             f"{dtype!r}")
        threads, memory = _threads(threads), _memory(memory)
        name = os.fspath(path)
        # A folder that holds no model does not hide the embedded one of its name.
        embedded = name in data.available() and not Path(path, "config.json").is_file()
        mine = Path(path).exists() and not embedded
        checkpoint = Checkpoint(path if mine else data.embedded(name))
        if dtype == "auto":
            dtype = checkpoint.dtype if checkpoint.dtype in DTYPES else "float32"
        return cls(checkpoint, dtype=dtype, threads=threads, memory=memory)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | os.PathLike[str],
                    rng: int | np.random.SeedSequence | np.random.Generator | None = 0, *,
                    tokenizer: str | os.PathLike[str] | None = None, dtype: str = "float32",
                    threads: int | None = None, memory: int | None = None) -> "LM":
        """A model with random weights, to be trained from scratch.

        Parameters
        ----------
        config : dict, or path of a config.json
            As transformers writes them; `architectures` says what to build, and a
            `...ForSequenceClassification` gets a score head.
        rng : None, int, SeedSequence or Generator
            The weights are a function of it and of the configuration. None: fresh randomness.
        tokenizer : str or path, optional
            A tokenizer.json or its folder, whose tokenizer and chat template the model gets.
        dtype : {"float32", "bfloat16"}
        threads, memory
            As for `load`.

        Returns
        -------
        LM
            Matrices and embeddings are normal with standard deviation `initializer_range`
            (0.02), norms change nothing, biases and the row of `pad_token_id` are 0.

        Raises
        ------
        OSError
            config or tokenizer is a path where no such file is.
        ValueError
            config describes no architecture that bonaware knows, or the tokenizer has more
            tokens than it.

        Notes
        -----
        **Source:** `PreTrainedModel._init_weights` of transformers 5.23.

        Examples
        --------
        >>> lm = LM.from_config({
        ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
        ...     "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        ... }, rng=0, threads=1)
        >>> lm.num_parameters, lm.logits([1, 2, 3]).shape
        (3248, (3, 32))
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")
        threads, memory = _threads(threads), _memory(memory)
        lm = cls(Fresh(config, rng, tokenizer, dtype), dtype=dtype, threads=threads, memory=memory)
        if lm.tokenizer is not None and lm.tokenizer.vocab_size > lm.arch.vocab:
            raise ValueError(f"vocab_size must be at least the {lm.tokenizer.vocab_size} tokens of "
                             f"the tokenizer, found {lm.arch.vocab}")
        return lm

    def __repr__(self) -> str:
        size = self.num_parameters
        unit, factor = ("B", 1e9) if size >= 1e9 else ("M", 1e6)
        return (f"LM({self.name!r}, {self.config['architectures'][0]}, {size / factor:.3g}{unit} "
                f"parameters, {self.dtype}, {self.threads} threads)")

    @property
    def num_parameters(self) -> int:
        """Weights of the model, tied ones counted once."""
        return sum(math.prod(self.arch.shape(words)) for _, _, words in self.arch.slots())

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together, at most."""
        return self.arch.max_positions

    @property
    def labels(self) -> int:
        """Numbers that the score head gives per text; 0: no such head."""
        return self.arch.labels

    @property
    def fingerprint(self) -> str:
        """Identifies weights and precision: that of the folder as loaded or as `save` writes it."""
        if self._fingerprint is None:
            self._fingerprint = _export.fingerprint(self._config(self.dtype), (
                (t.name, t.stored, t.shape, t.data())
                for t in sorted(self._tensors(None, self._merged), key=lambda tensor: tensor.name)))
        return f"{self._fingerprint}-{self.dtype}"

    def weights_changed(self) -> None:
        """To be called by who changed weights inside the engine: the fingerprint is another."""
        self._fingerprint = None

    def settings(self) -> dict[str, Any]:
        """What identifies the model and how it is computed; stored with every run."""
        return {
            "model": self.name, "fingerprint": self.fingerprint, "dtype": self.dtype,
            "threads": self.threads, "isa": engine().config()["isa"], "routes": self.routes,
        }

    def save(self, path: str | os.PathLike[str], dtype: str | None = None, *,
             weights: Weights | None = None) -> None:
        """Write a folder that `LM.load` and transformers' AutoModel classes open.

        Parameters
        ----------
        path : str or path
            A folder that does not exist yet, or is empty. It appears whole or not at all.
        dtype : {"float32", "bfloat16"}, optional
            Of the stored weights. Default: as the engine holds them, so that nothing is lost:
            in a bfloat16 model, norms and biases that bfloat16 cannot hold stay float32.
        weights : callable, optional
            weights(slot, layer) -> float32, used in place of the engine's weights, such as
            the float32 masters of a bfloat16 model in training; dtype is then float32 unless
            it is given.

        Raises
        ------
        FileExistsError
            The folder holds files.
        OSError
            A file cannot be written, or a file of the tokenizer is no longer where it was.
        ValueError
            dtype is something else, or the engine holds the weights in int8.
        """
        if self.dtype == "int8":
            raise ValueError(f"{self.name} is held in int8, in which its weights are rounded: "
                             "load it in float32 or bfloat16 to save it")
        weights = weights or self._merged
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype must be None, 'float32' or 'bfloat16', got {dtype!r}")
        stored = dtype or (self.dtype if weights is None else "float32")
        with _export.new_folder(path) as folder:
            _export.write_weights(folder, self._tensors(stored if weights else dtype, weights))
            _export.write_json(folder / "config.json", self._config(stored))
            if settings := self._generation_config():
                _export.write_json(folder / "generation_config.json", settings)
            if self.self_evaluation is not None:
                _export.write_json(folder / SELF_EVALUATION, self.self_evaluation)
            _export.copy(self._side_files, folder)

    def _config(self, dtype: str) -> dict[str, Any]:
        """config.json of the model as it is: of a multimodal one, of its text part."""
        config = config_of_text(self.config)
        named = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        return {name: value for name, value in config.items() if name != "torch_dtype"} | {
            named: dtype}

    def _generation_config(self) -> dict[str, Any]:
        """The end token and its like, where no generation_config.json was loaded."""
        if self.labels or any(f.name == "generation_config.json" for f in self._side_files):
            return {}
        config = config_of_text(self.config)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {name: config[name] for name in names if config.get(name) is not None}

    def _tensors(self, dtype: str | None, weights: Weights | None) -> list[_export.Tensor]:
        """Every tensor as `save` writes it."""
        names, read = family_of(self.config).NAMES, weights or self._model.get
        tensors = []
        for slot, layer, words in self.arch.slots():
            shape, get = self.arch.shape(words), functools.partial(read, slot, layer or 0)
            stored = DTYPES.get(dtype or self.dtype, "F32")
            held_as_float32 = len(shape) == 1 or slot == "score"  # as csrc/model.h says
            if dtype is None and held_as_float32 and not _export.fits_bfloat16(get()):
                stored = "F32"
            tensors.append(_export.Tensor(names[slot].format(i=layer), stored, shape, get))
        return tensors

    # -- text and tokens -----------------------------------------------------

    def encode(self, prompt: Prompt) -> NDArray[np.int32]:
        """Token ids of a prompt.

        Parameters
        ----------
        prompt : str, sequence of int, or sequence of chat messages
            Text is encoded with the special tokens the tokenizer adds; ids are taken as they
            are; messages go through the chat template, with a generation prompt.

        Returns
        -------
        int32, shape [T]
        """
        if isinstance(prompt, str):
            return self._need_tokenizer("a text prompt").encode(prompt)
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self._need_tokenizer("a chat").chat(prompt)
        return as_ids(prompt, "a prompt")

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"{what} needs a tokenizer, but {self.name} has no tokenizer.json: pass token ids"
            )
        return self.tokenizer

    # -- reading -------------------------------------------------------------

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Logits behind every position of a text.

        Parameters
        ----------
        tokens : int, shape [T]
            1 <= T <= context.

        Returns
        -------
        float32, shape [T, vocab]
            Row t belongs to the token after tokens[t]; at temperature 1, after soft-capping.

        Raises
        ------
        ValueError
            Too many tokens, none, or an id outside the vocabulary; or the model has a score
            head.
        MemoryError
            Cache, scratch and logits are larger than `memory`.
        """
        self._need_logits("logits")
        tokens = as_ids(tokens, "tokens")
        self._need_memory("logits", len(tokens), [], 4 * len(tokens) * self.arch.vocab)
        return self._model.logits(tokens)

    def logp(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]],
             temperature: float = 1.0) -> list[list[NDArray[np.float32]]]:
        """Per-token log-probabilities of completions.

        Parameters
        ----------
        prompts : sequence of P prompts
            As for `generate`.
        completions : P sequences of completions
            Each a str (encoded without special tokens) or a sequence of ids.
        temperature : float
            > 0; log-probabilities are those of the tempered, untruncated policy.

        Returns
        -------
        list [P] of lists of float32 arrays [length]
            Natural logarithms. A prompt runs once for all of its completions.

        Raises
        ------
        ValueError
            prompts and completions differ in number, temperature <= 0, a text is too long, or
            the model has a score head.
        MemoryError
            `memory` does not hold a prompt and what goes with it.
        """
        self._need_logits("logp")
        _temperature(temperature)
        return [
            self._of_completions(self._logp_of_prompt, "logp", prompt, texts, temperature)
            for prompt, texts in self._pairs(prompts, completions)
        ]

    def scores(self, prompts: Sequence[Prompt],
               completions: Sequence[Sequence[Any]]) -> list[NDArray[np.float32]]:
        """Scores of completions by a model with a score head, such as a reward model.

        Parameters
        ----------
        prompts : sequence of P prompts
            As for `generate`.
        completions : P sequences of completions
            Each a str (encoded without special tokens) or a sequence of ids. One without
            tokens has the score of its prompt.

        Returns
        -------
        list [P] of float32 arrays [count], or [count, labels] where there are more labels than 1
            What the head gives behind the last token of prompt + completion; as in
            transformers, ids at its end that are the config's `pad_token_id` do not count.
            A prompt runs once for all of its completions.

        Raises
        ------
        ValueError
            prompts and completions differ in number, a text is too long, or the model has no
            score head.
        MemoryError
            `memory` does not hold a prompt and what goes with it.
        """
        if not self.labels:
            raise ValueError(
                f"scores need a model with a score head, but {self.name} is a "
                f"{self.config['architectures'][0]}: use logp, or a "
                "...ForSequenceClassification")
        return [
            self._of_completions(self._scores_of_prompt, "scores", prompt, texts)
            for prompt, texts in self._pairs(prompts, completions)
        ]

    def _need_logits(self, what: str) -> None:
        if self.labels:
            raise ValueError(
                f"{what} needs a model that predicts tokens, but {self.name} is a "
                f"{self.config['architectures'][0]}, which gives scores: use lm.scores")

    def _need_memory(self, what: str, length: int, lengths: Sequence[int], result: int = 0) -> None:
        """Refuse texts whose cache and scratch would not fit: a prompt and completions."""
        needed = result + self._model.score_bytes(length, np.array(lengths, np.uintp))
        if needed > self.memory:
            raise MemoryError(
                f"{what} of a text of {length + max(lengths, default=0)} tokens needs "
                f"{megabytes(needed)}, but memory={self.memory} allows "
                f"{megabytes(self.memory)}: give more memory or pass less text at once")

    def _pairs(self, prompts: Any, completions: Any) -> Iterator[tuple[Prompt, Any]]:
        """Prompts with their completions."""
        prompts = _one_per_prompt(prompts)
        if any(isinstance(texts, str) for texts in completions):
            raise TypeError("completions must hold a list of completions per prompt, found a str")
        if len(prompts) != len(completions):
            raise ValueError(
                f"need one list of completions per prompt, got {len(prompts)} prompts and "
                f"{len(completions)} lists"
            )
        return zip(prompts, completions, strict=True)

    def _of_completions(self, compute: Callable[..., Any], what: str, prompt: Prompt,
                        completions: Sequence[Any], *more: Any) -> Any:
        """compute(prompt's ids, completions' ids), once memory is seen to do."""
        ids, texts = self.encode(prompt), [self._completion(c) for c in completions]
        self._need_memory(what, len(ids), [len(text) for text in texts])
        return compute(ids, texts, *more)

    def _completion(self, completion: Any) -> NDArray[np.int32]:
        if isinstance(completion, str):
            return self._need_tokenizer("a text completion").encode(
                completion, add_special_tokens=False)
        return as_ids(completion, "a completion")

    def _logp_of_prompt(self, prompt: NDArray[np.int32], texts: list[NDArray[np.int32]],
                        temperature: float) -> list[NDArray[np.float32]]:
        if not texts:
            return []
        lengths = np.array([len(text) for text in texts], np.uintp)
        flat = self._model.logp(prompt, np.concatenate(texts), lengths, temperature)
        return np.split(flat, np.cumsum(lengths[:-1]).astype(np.intp))

    def _scores_of_prompt(self, prompt: NDArray[np.int32],
                          texts: list[NDArray[np.int32]]) -> NDArray[np.float32]:
        pad = pad_token_id(self.config)
        kept = [text[: 1 + np.flatnonzero(text != pad).max(initial=-1)] for text in texts]
        lengths = np.array([len(text) for text in kept], np.uintp)
        flat = np.concatenate([NO_TOKENS, *kept])
        scores = self._model.score(prompt, flat, lengths)
        return scores[:, 0] if self.labels == 1 else scores

    def gradients(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Any]],
                  weights: ArrayLike, temperature: float = 1.0) -> dict[str, NDArray[np.float32]]:
        """Gradient of sum w[p, i] log pi(completions[p][i] | prompts[p]) in every weight.

        Parameters
        ----------
        prompts, completions, temperature
            As for `logp`.
        weights : float, shape [P, n], or P sequences of one number per completion

        Returns
        -------
        dict of float32 arrays
            With the keys and shapes of torch's `named_parameters()`. Tied weights stand once,
            under the embedding's name.

        Raises
        ------
        ValueError
            As for `logp`; or the weights do not match the completions, or are not finite.
        MemoryError
            `memory` does not hold a prompt with its completions.

        Examples
        --------
        >>> lm = LM.from_config({
        ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
        ...     "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        ... }, rng=0, threads=1)
        >>> gradients = lm.gradients([[1, 2]], [[[3, 4], [5]]], weights=[[1.0, -1.0]])
        >>> gradients["model.norm.weight"].shape
        (16,)
        """
        self._need_logits("gradients")
        used = _temperature(temperature)
        ids = [(self.encode(prompt), [self._completion(text) for text in texts])
               for prompt, texts in self._pairs(prompts, completions)]
        rows = [floats("weights", row) for row in weights]
        if [len(row) for row in rows] != [len(texts) for _, texts in ids]:
            raise ValueError("weights must have one number per completion, "
                             f"{[len(texts) for _, texts in ids]} for these prompts, got "
                             f"{[len(row) for row in rows]}")
        kept = [[i for i, text in enumerate(texts) if len(text)] for _, texts in ids]
        learner = self.learner()
        learner.accumulate(
            [prompt for prompt, _ in ids],
            [[texts[i] for i in own] for (_, texts), own in zip(ids, kept, strict=True)],
            [row[own] for row, own in zip(rows, kept, strict=True)], used)
        return learner.gradients()

    def learner(self, memory: int | None = None, start: "Adapter | None" = None) -> "Learner":
        """What adds up this model's gradients and makes its steps; see `bonaware._learner`."""
        from bonaware._learner import Learner

        return Learner(self, memory, start)

    # -- drawing -------------------------------------------------------------

    def generate(self, prompts: Prompt | Sequence[Prompt], n: int | None = None, *,
                 temperature: float | ArrayLike = 1.0, top_k: int | None = None,
                 top_p: float | None = None, min_p: float | None = None,
                 max_new_tokens: int = 256, stop_strings: Sequence[str] = (),
                 rng: int | np.random.SeedSequence | np.random.Generator | None = 0,
                 start: int = 0, policy: Policy | None = None, verifier: Any = None,
                 progress: Progress = None) -> Samples:
        """Draw n samples of every prompt.

        Parameters
        ----------
        prompts : str, sequence of ids, chat messages, or a sequence of P of these
        n : int, optional
            Samples per prompt, >= 1; default 32, or what the policy has.
        temperature : float, or float [n]
            >= 0; an array gives sample ``start + i`` its own (annealing). At 0 the most likely
            token is taken, so at most one sample per prompt may have it.
        top_k, top_p, min_p : optional
            Truncation, in this order, behind the temperature; see csrc/sample.h.
        max_new_tokens : int
            >= 1. Samples also end where the model's context does.
        stop_strings : str or sequence of str
            A sample ends where its text first contains one; `text` excludes it.
        rng : int, SeedSequence, Generator or None
            Sample i of a prompt depends on (rng, prompt, i) only: not on n, on other prompts,
            on threads or memory. None draws fresh randomness.
        start : int
            Index of the first sample: after 8 samples, ``start=8, n=24`` completes 32.
        policy : Policy, optional
            Decides how many samples are drawn, which are dropped early and when to stop; see
            `bonaware.policies`. The result has `scores` and `chosen`.
        verifier : Verifier or str, optional
            Guides the policy; default "self_evaluation", by this model.
        progress : bool or callable, optional
            True or False shows or hides a bar that counts samples; None shows it in terminals
            and notebooks. A callable gets every finished `Sample`.

        Returns
        -------
        Samples
            After Ctrl-C: what was drawn so far, unfinished samples marked "aborted".

        Raises
        ------
        ValueError
            A parameter is out of its range, or a prompt is longer than the context.
        MemoryError
            `memory` does not hold even one sample.
        """
        n, temperature = of_policy(policy, n, temperature)
        n, start = count("n", n), count("start", start, least=0, most=MAX_START)
        prompts = _one_per_prompt(prompts)
        seen: Counter[bytes] = Counter()
        requests = []
        for p, prompt in enumerate(prompts):
            tokens = self.encode(prompt)
            requests.append(Request(p, tokens, range(start, start + n), seen[tokens.tobytes()]))
            seen[tokens.tobytes()] += 1
        settings = {
            "temperature": _by_index(temperature, n, start), "top_k": top_k, "top_p": top_p,
            "min_p": min_p, "max_new_tokens": max_new_tokens, "stop_strings": stop_strings,
            "rng": rng,
        }
        if policy is None:
            drawing = self.stream(requests, **settings)
        else:
            drawing = self._scheduled(requests, prompts, policy, verifier, start, settings)
        samples = []
        with Bar(None if policy else len(prompts) * n, progress) as bar:
            try:
                for sample in drawing:
                    samples.append(sample)
                    bar(sample)
            except KeyboardInterrupt:
                samples += drawing.abort()
                done = sum(sample.finish_reason != "aborted" for sample in samples)
                warnings.warn(f"interrupted: {done} of {len(prompts) * n} samples are finished",
                              stacklevel=2)
        made = Samples.from_list(prompts, samples, n, start, stats=drawing.stats,
                                 settings=self.settings() | drawing.settings)
        if policy is not None:
            made.scores, made.chosen = drawing.found(made.valid.shape)
        return made

    def _scheduled(self, requests: Sequence[Request], prompts: Sequence[Prompt], policy: Policy,
                   verifier: Any, start: int, settings: dict[str, Any]) -> Scheduled:
        """A drawing that a policy schedules."""
        if start:
            raise ValueError(f"a policy draws from sample 0 on, got start={start}")
        if verifier is None and policy.judged:
            verifier = "self_evaluation"
        if isinstance(verifier, str):
            verifier = verifiers.get(verifier)
        return self.scheduled(requests, prompts, policy, Guide(policy, verifier), **settings)

    def scheduled(self, requests: Sequence[Request], prompts: Sequence[Prompt], policy: Policy,
                  guide: Guide, kept: Mapping[tuple[int, int], tuple[Sample, float]] | None = None,
                  *, rng: int | np.random.SeedSequence | np.random.Generator | None = 0,
                  **sampling: Any) -> Scheduled:
        """As `stream`, what a policy wants of what is requested; see `bonaware._scheduling`."""
        return self._scheduling(self, requests, prompts, policy, guide, kept, seed=seed_of(rng),
                                **sampling)

    def stream(self, requests: Sequence[Request], *, temperature: float | ArrayLike = 1.0,
               top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
               max_new_tokens: int = 256, stop_strings: Sequence[str] = (),
               rng: int | np.random.SeedSequence | np.random.Generator | None = 0) -> Drawing:
        """Draw what is requested and yield every sample as it ends, in any order.

        Parameters
        ----------
        requests : sequence of Request
            Which samples of which prompts.
        temperature : float, or float array indexed by sample index
        top_k, top_p, min_p, max_new_tokens, stop_strings, rng
            As for `generate`.

        Returns
        -------
        Drawing
            An iterator of `Sample`, with `.stats` and `.settings`. On Ctrl-C it yields the
            unfinished samples as "aborted" and then raises KeyboardInterrupt.

        Raises
        ------
        ValueError, MemoryError
            As for `generate`.
        """
        return self._drawing(self, requests, temperature=temperature, top_k=top_k, top_p=top_p,
                             min_p=min_p, max_new_tokens=max_new_tokens,
                             stop_strings=stop_strings, seed=seed_of(rng))


# -- conversions ---------------------------------------------------------------


def _engine_arch(arch: Any) -> dict[str, Any]:
    fields = {name: getattr(arch, name) for name in arch.__slots__}
    return fields | {
        "window": np.array(arch.window, np.uintp),
        "rope": np.array(arch.rope, np.uint8),
        "rope_freq": tuple(np.ascontiguousarray(table, np.float32) for table in arch.rope_freq),
    }


def _threads(threads: int | None) -> int:
    most = engine().MAX_THREADS
    return min(usable_threads(), most) if threads is None else count("threads", threads, most=most)


def _memory(memory: int | None) -> int | None:
    return None if memory is None else count("memory", memory)


def _one_per_prompt(prompts: Any) -> list[Prompt]:
    """A list of prompts, from one prompt or several."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        return [[prompts]]
    several = list(prompts) if isinstance(prompts, Iterable) else [prompts]
    if several and isinstance(several[0], (int, np.integer, Mapping)) and several[0] is not prompts:
        return [several]
    for prompt in several:
        if not isinstance(prompt, (Sequence, np.ndarray)):
            raise TypeError("a prompt must be a str, a sequence of token ids or a sequence of "
                            f"chat messages, got {type(prompt).__name__}")
    return several


def _by_index(temperature: float | ArrayLike, n: int, start: int) -> float | NDArray[np.float64]:
    """Temperatures by absolute sample index, from one per drawn sample."""
    array = floats("temperature", temperature)
    if array.ndim == 0:
        return float(array)
    if array.shape != (n,):
        raise ValueError(f"temperature must be a number or an array of shape [n] = ({n},), got "
                         f"shape {array.shape}")
    return np.concatenate([np.full(start, array[0]), array])


def _temperature(value: float) -> float:
    """One temperature at which log-probabilities exist."""
    with np.errstate(over="ignore"):
        used = floats("temperature", value).astype(np.float32)
    if used.ndim or not (np.isfinite(used) and used > 0):
        raise ValueError(f"need one finite temperature > 0, got {value}")
    return float(used)
