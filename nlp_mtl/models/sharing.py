"""What lies between the encoder and the heads, where tasks share more or less than one last hidden state.

Needs torch alone: the file goes with a model's weights, for those who load them without this package.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import OWN, build_adapters, key, parts


class LayerMix(nn.Module):
    """For each task a weighted mean of the hidden states of all layers, embeddings first, scaled; all alike at first.

    (Peters et al. 2018, "Deep contextualized word representations", arXiv 1802.05365, equation 1.)
    """

    def __init__(self, tasks: Sequence[str], num_layers: int) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({key(task): torch.zeros(num_layers + 1) for task in tasks})
        self.scales = nn.ParameterDict({key(task): torch.ones(1) for task in tasks})

    def forward(self, task: str, states: Sequence[Tensor]) -> Tensor:
        """What the task's head reads, [.., hidden], of the encoder's hidden states."""
        weights: Tensor = self.weights[key(task)]
        shares = weights.softmax(0) * self.scales[key(task)]
        mixed: Tensor = (torch.stack(tuple(states), -1) * shares.to(states[0].dtype)).sum(-1)
        return mixed


class TaskEmbedding(nn.Module):
    """A vector of each task, added to every hidden state; it starts at 0, where all tasks read the same."""

    def __init__(self, tasks: Sequence[str], size: int) -> None:
        super().__init__()
        self.vectors = nn.ParameterDict({key(task): torch.zeros(size) for task in tasks})

    def forward(self, task: str, states: Sequence[Tensor]) -> Tensor:
        """What the task's head reads, [.., hidden], of the encoder's hidden states."""
        vector: Tensor = self.vectors[key(task)]
        return states[-1] + vector


class Gate(nn.Module):
    """Each task scales each number of the hidden states, from 0 to 2; it starts at 1.

    (Swietojanski and Renals 2014, "Learning hidden unit contributions", arXiv 1601.02828: 2 sigmoid(a).)
    """

    def __init__(self, tasks: Sequence[str], size: int) -> None:
        super().__init__()
        self.gates = nn.ParameterDict({key(task): torch.zeros(size) for task in tasks})

    def forward(self, task: str, states: Sequence[Tensor]) -> Tensor:
        """What the task's head reads, [.., hidden], of the encoder's hidden states."""
        gate: Tensor = self.gates[key(task)]
        return states[-1] * (2 * torch.sigmoid(gate))


class Experts(nn.ModuleList):
    """Perceptrons of one hidden layer side by side, from the hidden size to the hidden size, as heads are stock."""

    def __init__(self, count: int, size: int, expert_size: int) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(size, expert_size), nn.ReLU(), nn.Linear(expert_size, size)) for _ in range(count)
        )

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """What each of them says."""
        return [expert(hidden) for expert in self]


class MixtureOfExperts(nn.Module):
    """Experts that all tasks share, and a gate for each task that mixes them, token by token.

    (Ma et al. 2018, "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts", KDD,
    equations 6 to 8: f_k(x) = sum_i softmax(W_k x)_i f_i(x).)
    """

    def __init__(self, tasks: Sequence[str], size: int, num_experts: int, expert_size: int) -> None:
        super().__init__()
        self.experts = Experts(num_experts, size, expert_size)
        self.gates = nn.ModuleDict({key(task): nn.Linear(size, num_experts, bias=False) for task in tasks})
        _initialize(self)

    def forward(self, task: str, states: Sequence[Tensor]) -> Tensor:
        """What the task's head reads, [.., hidden], of the encoder's hidden states."""
        hidden = states[-1]
        return _gated(self.gates[key(task)], hidden, self.experts(hidden))


class ProgressiveExperts(nn.Module):
    """Levels of experts, some of them shared and some a task's own; a task's gate mixes its own and the shared ones.

    (Tang et al. 2020, "Progressive layered extraction (PLE)", RecSys. With one level it is their customized gate
    control.) Below the last level the shared experts read what a gate makes of all experts.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        size: int,
        num_experts: int,
        expert_size: int,
        num_task_experts: int,
        num_levels: int,
    ) -> None:
        super().__init__()
        self.names = tuple(tasks)
        last = num_levels - 1
        own, both, all_ = num_task_experts, num_task_experts + num_experts, num_task_experts * len(tasks) + num_experts
        self.shared = nn.ModuleList(Experts(num_experts, size, expert_size) for _ in range(num_levels))
        self.own = nn.ModuleList(
            nn.ModuleDict({key(task): Experts(own, size, expert_size) for task in tasks}) for _ in range(num_levels)
        )
        self.gates = nn.ModuleList(
            nn.ModuleDict({key(task): nn.Linear(size, both, bias=False) for task in tasks}) for _ in range(num_levels)
        )
        self.shared_gates = nn.ModuleList(nn.Linear(size, all_, bias=False) for _ in range(last))
        _initialize(self)

    def forward(self, task: str, states: Sequence[Tensor]) -> Tensor:
        """What the task's head reads, [.., hidden], of the encoder's hidden states."""
        levels = len(self.shared)
        # Without levels above, nobody reads what other tasks' experts say.
        names = [task] if levels == 1 else self.names
        inputs, of_shared = dict.fromkeys(names, states[-1]), states[-1]
        for level, (own_experts, gates) in enumerate(zip(self.own, self.gates, strict=True)):
            assert isinstance(own_experts, nn.ModuleDict)
            assert isinstance(gates, nn.ModuleDict)
            is_last = level == levels - 1
            shared = self.shared[level](of_shared)
            needed = [task] if is_last else names
            own = {name: own_experts[key(name)](inputs[name]) for name in needed}
            inputs = {name: _gated(gates[key(name)], inputs[name], [*own[name], *shared]) for name in needed}
            if not is_last:
                everything = [*(one for name in names for one in own[name]), *shared]
                of_shared = _gated(self.shared_gates[level], of_shared, everything)
        return inputs[task]


class Towers(nn.Module):
    """In place of one of the encoder's layers: a copy of it for each task, and a cross-stitch unit behind them.

    Rows come once, to the lowest, and leave task by task, [tasks * rows, tokens, hidden]: what the encoder has behind
    its layers takes them for more rows. The unit (Misra et al. 2016, "Cross-stitch networks for multi-task learning",
    arXiv 1604.03539) mixes the tasks' states, number by number: it starts at 0.9 of a task's own, as in the paper,
    and equal parts of the others.
    """

    def __init__(
        self, layer: nn.Module, tasks: Sequence[str], size: int, *, is_lowest: bool, cross_stitch: bool
    ) -> None:
        super().__init__()
        self.is_lowest = is_lowest
        # What layers share with their encoder stays shared: its attention is chosen in its configuration.
        config = {id(module.config): module.config for module in layer.modules() if hasattr(module, "config")}
        self.copies = nn.ModuleDict({key(task): _copied(layer, config) for task in tasks})
        self.stitch: nn.Parameter | None = None
        if cross_stitch and len(tasks) > 1:  # one alone has nobody to mix with
            others = 0.1 / (len(tasks) - 1)
            start = torch.full((len(tasks), len(tasks)), others).fill_diagonal_(0.9)
            self.stitch = nn.Parameter(start[..., None].repeat(1, 1, size))

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the layer, for all tasks."""
        copies = list(self.copies.values())
        inputs = [hidden] * len(copies) if self.is_lowest else hidden.chunk(len(copies))
        outputs = [layer(one, *args, **kwargs) for layer, one in zip(copies, inputs, strict=True)]
        rest = outputs[0][1:] if isinstance(outputs[0], tuple) else None
        states = [output if rest is None else output[0] for output in outputs]
        if self.stitch is not None:
            stacked = torch.stack(states)
            states = [torch.einsum("jh,jrth->rth", one.to(stacked.dtype), stacked) for one in self.stitch]
        flat = torch.cat(states)
        return flat if rest is None else (flat, *rest)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("copies", "_modules"):
                raise
            return getattr(next(iter(self.copies.values())), name)  # encoders ask layers for their kind of attention


def build_sharing(settings: Mapping[str, Any], tasks: Sequence[str], encoder: Any) -> nn.Module | None:
    """The layers on top of an encoder; None where there are none. They take (task, hidden states of its layers).

    Args:
        settings: ``strategy`` and what it reads, as a recipe's ``sharing`` has them. Under ``towers`` the encoder's
            last layers give way to those of the tasks.

    Raises:
        ValueError: the encoder's layers cannot be copied, or have no adapters; the strategy is not known.
        ImportError: adapters need peft, which is not installed.
    """
    strategy, config = settings["strategy"], encoder.config
    size = config.hidden_size
    if strategy == "layer_mix":
        return LayerMix(tasks, config.num_hidden_layers)
    if strategy == "task_embedding":
        return TaskEmbedding(tasks, size)
    if strategy == "gate":
        return Gate(tasks, size)
    if strategy == "mmoe":
        return MixtureOfExperts(tasks, size, settings["num_experts"], settings["expert_size"])
    if strategy == "ple":
        keys = ("num_experts", "expert_size", "num_task_experts", "num_levels")
        return ProgressiveExperts(tasks, size, *(settings[key] for key in keys))
    if strategy == "towers":
        _build_towers(encoder, tasks, settings["num_layers"], settings["cross_stitch"])
    elif strategy == "lora":
        build_adapters(encoder, tasks, settings["rank"], settings["alpha"])
    elif strategy != "hard":  # of a later version: its weights must not be left out
        raise ValueError(f"the strategy {strategy!r} is not known here")
    return None


def _build_towers(encoder: Any, tasks: Sequence[str], num_layers: int, cross_stitch: bool) -> None:
    family, count = encoder.config.model_type, encoder.config.num_hidden_layers
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(lists) != 1:
        raise ValueError(f"the {count} layers of a {family} are not in one list, so none can be copied")
    if num_layers >= count:
        raise ValueError(f"num_layers is {num_layers}, but the encoder has {count}: choose fewer, the lowest is shared")
    for place in range(count - num_layers, count):
        lists[0][place] = Towers(
            lists[0][place],
            tasks,
            encoder.config.hidden_size,
            is_lowest=place == count - num_layers,
            cross_stitch=cross_stitch,
        )


def is_own(name: str) -> bool:
    """Whether a parameter is made for one task, by its name: of its head, its experts, its gate, its layers."""
    return name.startswith("heads.") or any(part.endswith(OWN) for part in name.split("."))


def readers(name: str, tasks: Sequence[str], settings: Mapping[str, Any]) -> frozenset[str]:
    """The tasks whose answers a parameter of the encoder or of what lies on top of it has a part in, by its name."""
    own = {part.removesuffix(OWN) for part in name.split(".") if part.endswith(OWN)}
    strategy = settings["strategy"]
    if strategy == "towers" and settings["cross_stitch"]:
        own.clear()
    if strategy == "ple" and name.startswith("sharing."):
        _, kind, level, *_ = name.split(".")
        above = settings["num_levels"] - 1 - int(level)
        # Shared experts read a task's own a level above; what a gate makes they read two levels above.
        if above > (kind == "gates"):
            own.clear()
    return frozenset(own or tasks)


def _copied(layer: nn.Module, shared: Mapping[int, Any]) -> nn.Module:
    made = copy.deepcopy(layer, dict(shared))
    for part, other in zip(parts(made), parts(layer), strict=True):
        if hasattr(other, "_is_hf_initialized"):  # a copied parameter forgets it, and would start anew
            part._is_hf_initialized = other._is_hf_initialized
    return made


def _gated(gate: nn.Module, hidden: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    shares = gate(hidden).softmax(-1)
    return torch.stack([share * output for share, output in zip(shares.split(1, -1), outputs, strict=True)]).sum(0)


def _initialize(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
