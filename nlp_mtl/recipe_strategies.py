"""What a recipe says of how tasks are learned together: sampling, balancing, gradients, sharing."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from nlp_mtl.strategy_checks import (
    BALANCING_DEFAULTS,
    GRADIENTS_DEFAULTS,
    SAMPLING_DEFAULTS,
    SHARED_BY,
    SHARING_DEFAULTS,
)

Strategy = Literal[
    "proportional", "temperature", "uniform", "fixed", "unimax", "annealed", "round_robin", "dynamic"
]  # fmt: skip
Balancing = Literal["fixed", "uncertainty", "dwa", "random", "famo", "imtl_l", "log", "maximum", "smooth_maximum"]
Gradients = Literal[
    "sum", "pcgrad", "gradvac", "mgda", "cagrad", "imtl_g", "nash_mtl", "aligned_mtl", "fairgrad", "upgrad",
    "gradnorm",
]  # fmt: skip
Shared = Literal["hard", "layer_mix", "mmoe", "ple", "towers", "task_embedding", "gate", "lora"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take True for 1
        raise PydanticCustomError("number_type", "a number is wanted (YAML reads bare yes, no, on, off as booleans)")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Integer = Annotated[int, BeforeValidator(_no_boolean)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Positive = Annotated[Integer, Field(gt=0)]


class Section(BaseModel):
    """Keys with values; no others are allowed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class SamplingSpec(Section):
    """How much of each dataset a step learns from."""

    strategy: Strategy = "proportional"
    """``proportional``: by rows; ``uniform``: the same for each; ``temperature``: rows^(1/T); ``fixed``: ``shares``;
    ``unimax``: uniform, but no dataset more than ``max_passes`` times; ``annealed``: from proportional to uniform over
    the run; ``round_robin``: each step from one dataset, by turns; ``dynamic``: after each evaluation by need."""
    temperature: Number = Field(default=SAMPLING_DEFAULTS["temperature"], ge=1)
    """T of the temperature strategy: 1 is proportional, large values approach uniform."""
    shares: dict[Name, Annotated[Number, Field(ge=0)]] = {}
    """What each dataset gives under the fixed strategy, in any unit: ``{ewt: 3, sst2: 1}`` is three rows to one."""
    max_passes: Number = Field(default=SAMPLING_DEFAULTS["max_passes"], ge=1)
    """How often the unimax strategy goes over a dataset at most."""
    need: Literal["metric", "loss"] = SAMPLING_DEFAULTS["need"]
    """What a dataset needs under the dynamic strategy, by its tasks: how far their main metrics on validation are from
    their ``targets``, or their training losses since the last evaluation as shares of what guessing would lose."""
    targets: dict[Name, Annotated[Number, Field(gt=0, le=1)]] = {}
    """The main metrics that tasks should reach, for ``need: metric``; 1 where it is not said."""
    floor: Annotated[Number, Field(gt=0, le=1)] = SAMPLING_DEFAULTS["floor"]
    """What of an equal share each dataset gets under the dynamic strategy, whatever it needs."""


class BalancingSpec(Section):
    """How the tasks' losses become one. What a strategy finds stands beside the tasks' ``loss_weight``."""

    strategy: Balancing = "fixed"
    """``fixed``: the weights that the tasks have; ``random``: drawn anew each step; ``dwa``: more for tasks whose
    losses fall more slowly; learned: ``uncertainty``, ``imtl_l``, ``famo``; by the step's own losses, for one more
    forward pass: ``log`` (the sum of their logarithms), ``maximum`` (the largest alone), ``smooth_maximum``."""
    scale: Literal["none", "log_classes"] = "none"
    """``log_classes``: each loss is divided by what guessing loses, the logarithm of its number of labels."""
    temperature: Number = Field(default=BALANCING_DEFAULTS["temperature"], gt=0)
    """Of ``dwa`` and ``smooth_maximum``: large ones approach equal weights."""
    learning_rate: Annotated[Number, Field(gt=0)] | None = None
    """Of learned weights. Default: the strategy's own."""
    period: Positive | None = None
    """Steps over which ``dwa`` averages losses. Default: an epoch."""


class GradientsSpec(Section):
    """How the tasks' gradients on the shared encoder become one update."""

    strategy: Gradients = "sum"
    """``sum``: added up, as the sum of the losses has it. All others need the gradient of each task by itself, which
    costs memory and time; see ``docs/methods.md``."""
    measure_every: Positive | None = None
    """Under ``sum``: in every so many steps the tasks' gradients are told apart, and ``metrics.jsonl`` has their
    cosines (under any other strategy always). With ``look_ahead``, under any: those in which it does."""
    look_ahead: bool = False
    """Measure the tasks' affinities: by how much the gradient of one alone would lower the losses of the others. One
    more forward pass a task."""
    measured_layers: list[Annotated[Integer, Field(ge=0)]] = []
    """The encoder's layers that the logged cosines compare, counted from 1; 0: the embeddings. Default: all."""
    c: Number = Field(default=GRADIENTS_DEFAULTS["c"], ge=0, lt=1)
    """Of ``cagrad``: how far from the mean gradient, as a share of its length; 0: the mean."""
    alpha: Annotated[Number, Field(gt=0, le=10)] | None = None
    """Of ``fairgrad`` (default 2): 1, as ``nash_mtl``; larger, the more for tasks that gain least. Of ``gradnorm``
    (default 1.5): how strongly tasks that learn slowly are drawn along.
    At most 10: beyond, the weights of some tasks are smaller than numbers can be."""
    beta: Number = Field(default=GRADIENTS_DEFAULTS["beta"], gt=0, le=1)
    """Of ``gradvac``: how much a step's cosine counts in the moving average."""
    learning_rate: Number = Field(default=GRADIENTS_DEFAULTS["learning_rate"], gt=0)
    """Of the weights of ``gradnorm``."""


class SharingSpec(Section):
    """What lies between the encoder and the heads."""

    strategy: Shared = "hard"
    """``hard``: nothing, all tasks read the encoder's last hidden states; ``layer_mix``: each a weighted mean of all
    layers; ``mmoe``, ``ple``: each a mix of experts; ``towers``: the encoder's last layers, copied for each;
    ``task_embedding``, ``gate``: the hidden states shifted or scaled for each; ``lora``: the encoder with adapters of
    each, by peft. See ``docs/methods.md``."""
    num_layers: Positive = SHARING_DEFAULTS["num_layers"]
    """Of ``towers``: the last layers that each task has for itself."""
    cross_stitch: bool = SHARING_DEFAULTS["cross_stitch"]
    """Of ``towers``: mix the tasks' states behind each of these layers."""
    num_experts: Positive = SHARING_DEFAULTS["num_experts"]
    """Of ``mmoe`` and ``ple``: experts that all tasks share, on each level."""
    expert_size: Positive = SHARING_DEFAULTS["expert_size"]
    """Of ``mmoe`` and ``ple``: the size of an expert's hidden layer."""
    num_task_experts: Positive = SHARING_DEFAULTS["num_task_experts"]
    """Of ``ple``: experts that a task has for itself, on each level."""
    num_levels: Positive = SHARING_DEFAULTS["num_levels"]
    """Of ``ple``."""
    rank: Positive = SHARING_DEFAULTS["rank"]
    """Of ``lora``: the rank of an adapter's matrices."""
    alpha: Positive = SHARING_DEFAULTS["alpha"]
    """Of ``lora``: what an adapter says counts alpha / rank."""

    def settings(self) -> dict[str, Any] | None:
        """The strategy and what it reads, as a model keeps it; None: nothing lies between."""
        if self.strategy == "hard":
            return None
        return self.model_dump(include={"strategy", *(key for key, by in SHARED_BY.items() if self.strategy in by)})
