"""The model: one encoder, read once, and a stock head for each task."""

import copy
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nlp_mtl.errors import MissingExtraError, ModelError
from nlp_mtl.models.adapters import adapt
from nlp_mtl.models.attention_heads import leave_heads
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.heads import (
    build_head,
    fit_pooler,
    reads_first_token_only,
    reads_pooler,
    rows_of,
    stock_pooler,
)
from nlp_mtl.models.packing import agreed, encode_packed, has_segments, packs, pooled, token_places
from nlp_mtl.models.sharing import LayerMix, build_sharing, readers
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task, transitions_key

_WITHOUT_PACKAGE = [
    Path(__file__).with_name(f"{name}.py") for name in ("modeling_nlp_mtl", "sharing", "adapters", "attention_heads")
]


class MultiTaskModel(PreTrainedModel):
    """A shared encoder and a head for each task.

    ``from_pretrained`` and ``save_pretrained`` work as for any transformers model (safetensors).
    :func:`from_encoder` starts one from a pretrained encoder.
    """

    config_class = MultiTaskConfig
    config: MultiTaskConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    # What the encoder can really do is the encoder's own business: it checks again when it is built.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None) -> None:
        """
        Args:
            config: what to build.
            encoder: a loaded encoder to take over as it is; without it one with random weights is built.
        """
        super().__init__(config)
        tasks = config.task_list()
        encoder_config = copy.deepcopy(config.encoder_config)  # building a model changes its configuration
        if encoder is None:
            encoder = AutoModel.from_config(encoder_config, dtype=torch.get_default_dtype())
            leave_heads(encoder, config.heads_per_layer)
        types = sorted({task.type for task in tasks})
        pooled_types = {type for type in types if reads_pooler(type, encoder_config)}
        self.pooled_tasks = frozenset(task.name for task in tasks if task.type in pooled_types)
        first_token_types = {type for type in types if reads_first_token_only(type, encoder_config)}
        self.first_token_tasks = frozenset(task.name for task in tasks if task.type in first_token_types)
        poolers = [stock_pooler(type, encoder_config) for type in types]
        fit_pooler(encoder, next(filter(None, poolers), None), is_read=bool(pooled_types))
        self.task_names = tuple(task.name for task in tasks)
        self._sharing_settings = config.sharing or {"strategy": "hard"}
        try:
            self.sharing = build_sharing(self._sharing_settings, self.task_names, encoder)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"sharing: {error}") from error
        except ImportError as error:
            raise MissingExtraError("sharing by lora needs the extra `lora`: pip install 'nlp_mtl[lora]'") from error
        self.encoder = encoder
        # Keys end in "_head": a task may have any name, a module's attributes may not.
        self.heads = nn.ModuleDict(
            {f"{task.name}_head": build_head(task.type, encoder_config, task.labels) for task in tasks}
        )
        self.chained_tasks = frozenset(task.name for task in tasks if task.decoder == "crf")
        for task in tasks:
            if task.decoder == "crf":  # nothing is known of what follows what
                transitions = nn.Parameter(torch.zeros(len(task.labels) + 2, len(task.labels)))
                self.head(task.name).register_parameter("transitions", transitions)
        self.reads_pairs = any(task.pairs for task in tasks)
        self.has_segments = has_segments(encoder_config)
        self.token_tasks = frozenset(task.name for task in tasks if kind_of(task).reads_words)
        self.post_init()

    def head(self, task: str) -> PreTrainedModel:
        """The head of a task."""
        head = self.heads[f"{task}_head"]
        assert isinstance(head, PreTrainedModel)
        return head

    def packs(self, layout: str) -> bool:
        """Whether texts are packed under a layout: ``auto`` (where the encoder can), ``padded`` or ``packed``.

        The encoder is then fit for packed texts, besides padded ones.

        Raises:
            ModelError: they should be packed, but the encoder cannot read them so.
        """
        if self.reads_once_a_task:
            return agreed("each row goes through the adapter of its task (sharing: lora)", layout)
        return packs(self.encoder, layout)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seq_lens: Tensor | None = None,
        lengths: Sequence[int] = (),
        rows: Mapping[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        token_type_ids: Tensor | None = None,
        hidden_states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One pass through the encoder, and through the heads, over padded texts or (:meth:`packs`) packed ones.

        Args:
            input_ids: [rows, tokens]; [1, tokens] packed.
            attention_mask: [rows, tokens], 1 for tokens and 0 for padding; not for packed texts.
            position_ids: [1, tokens] packed, counted from 0 in each row.
            cu_seq_lens: [rows + 1] int32, where each packed row starts, and the end. Given, the texts are packed.
            lengths: tokens of each packed row.
            rows: ``{task: [r]}``, the rows that each head sees, possibly none: its logits then have no rows, and
                its parameters still take part in the backward pass. Default: all rows for each task of ``tasks``.
                Packed: the places of tokens, [n] for token tasks, [r, longest] for text tasks, -1 behind a row's end.
            tasks: the heads to run, by default all. Not together with ``rows``.
            token_type_ids: of the shape of ``input_ids``, which text of a pair a token belongs to; encoders without
                segments do not ask. Default: all 0, as tokenizers give them for single texts.
            hidden_states: [1, tokens, hidden] the encoder's last ones, as :mod:`nlp_mtl.data.kept_states` has them: it
                is not run. With ``rows`` of packed texts and nothing else.

        Returns:
            ``{task: logits}``: [r, tokens, labels] for token tasks ([1, n, labels] packed), [r, labels] for text tasks.
            Besides, under :func:`nlp_mtl.tasks.transitions_key`, the transitions of those with the decoder ``crf``,
            [labels + 2, labels]: see :func:`nlp_mtl.task_types.crf.summed_loss`.
        """
        if hidden_states is not None:
            assert rows is not None
            logits = {name: self._packed_logits(name, (hidden_states,), places) for name, places in rows.items()}
            return self._with_transitions(logits)
        assert input_ids is not None
        if token_type_ids is not None and not self.reads_pairs and token_type_ids.any():
            raise ValueError("texts are read one by one, but token_type_ids tell of pairs")
        # Some encoders would swallow them unseen, others have no place for them.
        segments = {} if token_type_ids is None or not self.has_segments else {"token_type_ids": token_type_ids}
        names = self.task_names if tasks is None else tasks
        if cu_seq_lens is not None:
            assert position_ids is not None
            states = encode_packed(
                self.encoder, input_ids, position_ids, cu_seq_lens, lengths, self._reads_all_layers, **segments
            )
            if rows is None:
                texts = token_places(cu_seq_lens, max(lengths))
                tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
                rows = {name: tokens if name in self.token_tasks else texts for name in names}
            logits = {name: self._packed_logits(name, states, places) for name, places in rows.items()}
            return self._with_transitions(logits)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        chosen = dict.fromkeys(names) if rows is None else rows
        if self.reads_once_a_task:
            outputs = adapt(self.encoder, input_ids, attention_mask, chosen, **segments)
            masks = {name: attention_mask if rows is None else attention_mask[rows] for name, rows in chosen.items()}
            logits = {name: self.head(name)(outputs[name], attention_mask=masks[name]).logits for name in chosen}
            return self._with_transitions(logits)
        output = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **({"output_hidden_states": True} if self._reads_all_layers else {}),
            **segments,
        )
        logits = {name: self._padded_logits(name, output, attention_mask, rows) for name, rows in chosen.items()}
        return self._with_transitions(logits)

    def _with_transitions(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """With those of tasks with the decoder ``crf``; copies, as FSDP and DDP put hooks on what a pass returns."""
        found = {
            transitions_key(name): self.head(name).get_parameter("transitions").clone()
            for name in logits
            if name in self.chained_tasks
        }
        return {**logits, **found}

    def _padded_logits(
        self, task: str, output: BaseModelOutputWithPooling, attention_mask: Tensor, rows: Tensor | None
    ) -> Tensor:
        if self._sharing_settings["strategy"] == "towers":
            output = rows_of(output, self._tower(task, attention_mask.shape[0]))
        if rows is not None:
            output, attention_mask = rows_of(output, rows), attention_mask[rows]
        if self.sharing is not None:
            last = output.last_hidden_state
            assert last is not None
            layers = output.hidden_states or (last,)
            if task in self.first_token_tasks:
                layers, attention_mask = tuple(layer[:, :1] for layer in layers), attention_mask[:, :1]
            output = self._shared_output(task, layers)
        logits: Tensor = self.head(task)(output, attention_mask=attention_mask).logits
        return logits

    def _packed_logits(self, task: str, states: Sequence[Tensor], places: Tensor) -> Tensor:
        """Token heads read each token for itself; text heads padded rows, or just first tokens where those suffice.

        Args:
            states: of layers, [1 or towers, tokens, hidden] each.
        """
        if task in self.first_token_tasks:
            places = places[:, :1]
        shape = places.shape if places.ndim == 2 else (1, len(places))
        tower = self.task_names.index(task) if len(states[-1]) > 1 else 0
        flat = places.clamp(min=0).flatten()
        chosen = [layer[tower].index_select(0, flat).view(*shape, layer.shape[-1]) for layer in states]
        output = self._shared_output(task, chosen)
        logits: Tensor = self.head(task)(output, attention_mask=(places >= 0).long().view(shape)).logits
        return logits

    def _shared_output(self, task: str, layers: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        """What a task's head reads of hidden states, [rows, tokens, hidden] each."""
        hidden = layers[-1] if self.sharing is None else self.sharing(task, layers)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=pooled(self.encoder, hidden) if task in self.pooled_tasks else None
        )

    def _tower(self, task: str, num_rows: int) -> Tensor:
        """Where a task's rows stand in what the encoder gives."""
        first = self.task_names.index(task) * num_rows
        return torch.arange(first, first + num_rows, device=self.device)

    @property
    def reads_once_a_task(self) -> bool:
        """Whether the encoder reads a row again for each task that it is asked for (``lora``)."""
        return bool(self._sharing_settings["strategy"] == "lora")

    @property
    def _reads_all_layers(self) -> bool:
        return isinstance(self.sharing, LayerMix)

    def readers(self) -> dict[str, frozenset[str]]:
        """``{parameter: the tasks whose answers it has a part in}``."""
        found = {}
        for name, _ in self.named_parameters():
            if name.startswith("heads."):
                found[name] = frozenset({name.split(".")[1].removesuffix("_head")})
            elif name.startswith("encoder.pooler.") and self.pooled_tasks:
                found[name] = self.pooled_tasks
            else:
                found[name] = readers(name, self.task_names, self._sharing_settings)
        return found

    def unused_parameters(self, active: Iterable[str]) -> list[nn.Parameter]:
        """The parameters that no task of ``active`` reads: those of the other heads, and maybe the pooler; or all."""
        active, read_by = set(active), self.readers()
        return [parameter for name, parameter in self.named_parameters() if not read_by[name] & active]

    def _init_weights(self, module: nn.Module) -> None:
        if self.sharing is None or all(module is not part for part in self.sharing.modules()):
            super()._init_weights(module)  # what is shared has started by itself

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's."""
        return self.encoder.get_input_embeddings()

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """As for any transformers model; the code that loads it where this package is not installed goes with it.

        Raises:
            ValueError: it should push as well, which is :meth:`push_to_hub`'s.
        """
        if options.pop("push_to_hub", False):
            raise ValueError("save_pretrained(push_to_hub=True) would leave out the model's code: call push_to_hub")
        self.config.auto_map = {
            "AutoConfig": f"{_WITHOUT_PACKAGE[0].stem}.MultiTaskConfig",
            "AutoModel": f"{_WITHOUT_PACKAGE[0].stem}.MultiTaskModel",
        }
        super().save_pretrained(save_directory, *args, **options)
        for file in _WITHOUT_PACKAGE:
            shutil.copyfile(file, Path(save_directory) / file.name)

    def push_to_hub(  # type: ignore[override]  # and the tokenizer
        self, repo_id: str, *, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
    ) -> str:
        """Push the model with a card that tells its tasks; see :func:`nlp_mtl.hub.push` for a run's, with its scores.

        Args:
            repo_id: ``user/name``; made where there is none.
            tokenizer: goes with it.
            options: of :func:`nlp_mtl.hub.pushing.push_model`; transformers' own names.

        Raises:
            HubError: the Hub refused, or could not be reached.
        """
        from nlp_mtl.hub.pushing import push_model  # a layer above: a model does not need the Hub to be a model

        return push_model(self, tokenizer, repo_id, **options)


def from_encoder(
    encoder: PreTrainedModel,
    tasks: Sequence[Task],
    *,
    word_splitter: str = "unicode",
    max_length: int = 512,
    window_overlap: int = 64,
    cleaning: Mapping[str, Any] | None = None,
    sharing: Mapping[str, Any] | None = None,
    consistency: Sequence[Mapping[str, Any]] = (),
    encoder_origin: Sequence[Mapping[str, Any]] = (),
) -> MultiTaskModel:
    """A multi-task model on a loaded encoder, with new heads (initialized from torch's global seed).

    Args:
        cleaning: what is done to texts, as :meth:`nlp_mtl.cleaning.cleaning.Cleaning.to_dict` gives it; None: nothing.
        sharing: what lies between encoder and heads; see :func:`nlp_mtl.models.sharing.build_sharing`. None: nothing.
        consistency: tasks whose labels are chosen together, as :class:`MultiTaskConfig` has them.
        encoder_origin: where the encoder comes from, as :class:`MultiTaskConfig` has it.

    Raises:
        ModelError: the encoder is of a family that has no such heads, or cannot be shared so.
    """
    encoder_config = copy.deepcopy(encoder.config)
    name = encoder_config.name_or_path
    if name and os.path.isdir(name):  # what is saved may go to others, whom our folders do not concern
        encoder_config.name_or_path = ""
    config = MultiTaskConfig(
        encoder_config=encoder_config,
        tasks=[task.to_dict() for task in tasks],
        word_splitter=word_splitter,
        max_length=max_length,
        window_overlap=window_overlap,
        cleaning=dict(cleaning) if cleaning else None,
        sharing=None if sharing is None else dict(sharing),
        consistency=[dict(one) for one in consistency] or None,
        encoder_origin=[dict(one) for one in encoder_origin] or None,
    )
    return MultiTaskModel(config, encoder)


AutoModel.register(MultiTaskConfig, MultiTaskModel)
