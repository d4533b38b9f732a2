"""One bar that counts samples, for every command that draws."""

from collections.abc import Callable

from bonaware.samples import Sample

__all__ = ["Bar", "Progress"]

Progress = bool | Callable[[Sample], None] | None


class Bar:
    """A tqdm bar over samples, the caller's function in its place, or nothing.

    Parameters
    ----------
    total : int or None
        Samples wanted; None where a policy decides.
    progress : bool, callable or None
        True or False shows or hides the bar; None shows it in terminals and notebooks. A
        callable gets every finished Sample.
    done : int
        Samples that were there before.
    """

    def __init__(self, total: int | None, progress: Progress, done: int = 0) -> None:
        self.call = progress if callable(progress) else None
        self.bar = None
        self.tokens = 0
        if self.call is None and progress is not False:
            from tqdm.auto import tqdm

            disable = None if progress is None else False
            self.bar = tqdm(total=total, initial=done, unit="sample", disable=disable)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, sample: Sample) -> None:
        if self.call is not None:
            self.call(sample)
        elif self.bar is not None:
            self.tokens += len(sample.tokens)
            elapsed = self.bar.format_dict["elapsed"]
            rate = f"{self.tokens / max(elapsed, 1e-9):.0f} tokens/s"
            self.bar.set_postfix_str(rate, refresh=False)
            self.bar.update()
