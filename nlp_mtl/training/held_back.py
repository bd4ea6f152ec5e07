"""Weights that are held back in training: those that were pruned stay 0, some layers do not learn yet."""

from collections.abc import Callable

from torch import nn

from nlp_mtl.models.attention_heads import layers_of
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.freezing import Thaw


def layer_matrices(model: MultiTaskModel) -> dict[str, nn.Linear]:
    """The linear maps of an encoder's layers, by their names in the model; adapters are none of them."""
    return {
        f"encoder.{path}.{name}": part
        for path, layer in layers_of(model.encoder)
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear) and "lora_" not in name
    }


class KeptZeros:
    """The zeros of a model's layers where its configuration says that they stay; of other models, nothing.

    Without a gradient from the first step on, AdamW moves nothing that is 0, nor do weight decay, penalties and
    averages.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        """``model``: as training starts, before a checkpoint is restored: later a weight may be 0 by chance."""
        matrices = layer_matrices(model).values() if model.config.keep_zeros else ()
        self._masks = [(one.weight, one.weight.detach() != 0) for one in matrices]

    def drop_gradients(self) -> None:
        """Take the gradients of zeros away."""
        for weight, mask in self._masks:
            if weight.grad is not None:
                weight.grad.mul_(mask)


def held_back(model: MultiTaskModel, unfreeze_every: int | None, num_steps: int) -> Callable[[int], None]:
    """What takes away, in a step (counted from 0), the gradients of all that is not to learn in it.

    Args:
        model: as training starts.
        unfreeze_every, num_steps: of :class:`nlp_mtl.training.freezing.Thaw`.
    """
    thaw, zeros = Thaw(model, unfreeze_every, num_steps), KeptZeros(model)

    def drop_gradients(step: int) -> None:
        thaw.drop_gradients(step)
        zeros.drop_gradients()

    return drop_gradients
