"""nlp_mtl: multi-task natural language processing with one shared encoder.

from nlp_mtl import Recipe, load, train

train(Recipe.from_yaml("recipes/four_tasks.yaml"))
nlp = load("runs/four_tasks")
nlp("Angela Merkel opened the new tram line in Berlin.")
"""

from typing import TYPE_CHECKING, Any

from nlp_mtl.errors import (
    DataError,
    HubError,
    MissingExtraError,
    ModelError,
    NlpMtlError,
    RecipeError,
    RunError,
    RunStopped,
    TrainingError,
)
from nlp_mtl.recipe import Recipe

if TYPE_CHECKING:
    from nlp_mtl.extend_model import extend
    from nlp_mtl.inference.predictor import Predictor, load
    from nlp_mtl.models.configuration import MultiTaskConfig
    from nlp_mtl.models.multitask import MultiTaskModel
    from nlp_mtl.run import train
    from nlp_mtl.run_evaluation import evaluate

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "HubError",
    "MissingExtraError",
    "ModelError",
    "MultiTaskConfig",
    "MultiTaskModel",
    "NlpMtlError",
    "Predictor",
    "Recipe",
    "RecipeError",
    "RunError",
    "RunStopped",
    "TrainingError",
    "evaluate",
    "extend",
    "load",
    "train",
]

# Imported when first used: these need torch, and `nlp-mtl --help` should not wait for it.
_LAZY = {
    "MultiTaskConfig": "nlp_mtl.models.multitask",
    "MultiTaskModel": "nlp_mtl.models.multitask",
    "Predictor": "nlp_mtl.inference.predictor",
    "load": "nlp_mtl.inference.predictor",
    "evaluate": "nlp_mtl.run_evaluation",
    "extend": "nlp_mtl.extend_model",
    "train": "nlp_mtl.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
