"""From a recipe's ``cache_features`` to hidden states that its steps and evaluations read."""

from accelerate import Accelerator

from nlp_mtl.build_data import Prepared
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.kept_states import KeptStates
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.inference.state_cache import keep_states
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe


def keep_features(
    recipe: Recipe, prepared: Prepared, model: MultiTaskModel, data: StepDataset, accelerator: Accelerator
) -> dict[str, KeptStates]:
    """Let steps read the encoder's hidden states from disk; those that are not there yet are computed.

    Returns:
        ``{dataset: hidden states of its validation rows}``; empty: the recipe asks for none.

    Raises:
        RunError: they cannot be written, or there is no room for them.
    """
    if not recipe.training.cache_features:
        return {}
    model.to(accelerator.device)

    def kept(split: EncodedSplit) -> KeptStates:
        return keep_states(
            model, split, [*prepared.tasks, *prepared.others], prepared.framing, accelerator,
            max_tokens=max(recipe.training.max_tokens, prepared.framing.max_length),
            packed=data.packed,
            mixed_precision=recipe.training.mixed_precision,
        )  # fmt: skip

    data.kept = {place: kept(split) for place, split in enumerate(data.splits) if isinstance(split, EncodedSplit)}
    return {name: kept(split) for name, split in prepared.split("validation").items() if split.tasks}
