"""Best-of-N on CPU: decode, select, measure and train with best-of-N in mind.

>>> import bonaware as bon
>>> bon.estimators.pass_at_k(n=4, c=[0, 1, 2, 4], k=2)
array([0.        , 0.5       , 0.83333333, 1.        ])
"""

import importlib

__version__ = "0.1.0"

#: Public name -> (module, attribute), or (module, None) for a module itself.
#: Everything is imported when it is first used: `import bonaware` stays light.
_PUBLIC = {
    "AdamW": ("train", "AdamW"),
    "LM": ("lm", "LM"),
    "LoRA": ("train", "LoRA"),
    "Request": ("samples", "Request"),
    "Sample": ("samples", "Sample"),
    "Samples": ("samples", "Samples"),
    "TrainConfig": ("training.config", "TrainConfig"),
    "Trainer": ("train", "Trainer"),
    "estimators": ("estimators", None),
    "evaluate": ("evaluation", "evaluate"),
    "evaluate_recorded": ("recorded", "evaluate_recorded"),
    "losses": ("losses", None),
    "models": ("models", None),
    "plot": ("plot", None),
    "policies": ("policies", None),
    "select": ("select", None),
    "selfeval": ("selfeval", None),
    "show_config": ("config", "show_config"),
    "tasks": ("tasks", None),
    "training": ("training", None),
    "verifiers": ("verifiers", None),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    try:
        module, attribute = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'bonaware' has no attribute {name!r}") from None
    loaded = importlib.import_module(f"bonaware.{module}")
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
