"""The recipe: what a YAML file may say, with every default in one place.

Only ``build`` and ``build_data``, the verbs that stand on them, and the package's ``__init__`` see recipes; all other
modules take plain arguments of the same names. Reading one neither imports torch nor touches the network.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from nlp_mtl.recipe_checks import BUFFER_SIZE, HELD_OUT
from nlp_mtl.recipe_cleaning import AugmentationSpec, CleaningSpec, DatasetCleaningSpec
from nlp_mtl.recipe_compression import CompressionSpec
from nlp_mtl.recipe_parts import (
    ConsistencySpec,
    DistillationSpec,
    ExtensionSpec,
    HubSpec,
    MetaSpec,
    TuneSpec,
    whole_path,
)
from nlp_mtl.recipe_reading import read_yaml, validate
from nlp_mtl.recipe_strategies import (
    BalancingSpec,
    Fraction,
    GradientsSpec,
    Integer,
    Name,
    Number,
    Positive,
    SamplingSpec,
    Section,
    SharingSpec,
)
from nlp_mtl.tasks import Decoder, Metric, TaskType

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]
Tracker = Literal[
    "tensorboard", "trackio", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"
]  # what Accelerate knows


COMPUTATION = frozenset({
    "data_dir", "extension.model", "extension.revision", "extension.data_dir", "num_proc", "output_dir",
    "training.max_tokens", "training.layout", "training.mixed_precision",
    "training.num_workers", "training.log_every", "training.save_every", "training.keep_last", "training.keep_best",
    "training.gradient_checkpointing", "training.compile", "training.deterministic", "training.trackers",
})  # fmt: skip
"""Keys that say where and how a run is computed, not what it learns: a resumed run may change them."""


class DatasetSpec(Section):
    """Where rows of text come from. Columns and label columns are the dataset's own names."""

    path: str | None = None
    """What ``datasets.load_dataset`` takes: a Hub id, a local folder, or a format
    (json, csv, tsv, parquet, conll, conllu). May be left out where the ending of
    ``data_files`` tells the format (.jsonl .json .csv .tsv .parquet .conllu, also with .gz)."""
    name: str | None = None
    """The configuration of a Hub dataset, for example ``en_ewt``."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Files, or files a split. Local ones are relative to ``data_dir``."""
    data_dir: str | None = Field(default=None, min_length=1)
    """Where relative ``data_files`` of this dataset start; kept as a whole path. Default: the recipe's."""
    text: str | None = None
    """The column that holds texts. Give this or ``tokens``."""
    text_pair: str | None = None
    """The column that holds a second text, beside ``text``: the dataset's tasks learn from pairs of texts."""
    tokens: str | None = None
    """The column that holds lists of words."""
    columns: list[str] | None = None
    """Names of the columns of a CoNLL file, or of a CSV or TSV file without a header, in order."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Field delimiter of CSV files (comma unless told) and CoNLL files (white space). TSV files have tabs and no
    quoting; ``path: csv`` with a tab here reads tabs with quoting."""
    splits: dict[Split, str | None] = {}
    """The dataset's own name of a split, where it is not found by itself (``dev`` is); null: do not use it."""
    validation_fraction: Fraction = HELD_OUT
    """The share of train to hold out where the dataset has no validation split; 0: none."""
    test_fraction: Fraction = HELD_OUT
    """The same for a missing test split."""
    max_rows: dict[Split, Positive] = {}
    """At most so many rows of a split, drawn by ``split_seed``; of a streamed dataset the first ones."""
    stratify: str | None = None
    """The column whose values splits that are held out keep in proportion. Default: the labels of the first
    text-classification task that reads the dataset."""
    cleaning: DatasetCleaningSpec = DatasetCleaningSpec()
    """What is done to this dataset's texts beyond the recipe's ``cleaning``, and which training rows are left out."""
    streaming: bool = False
    """Read the training rows as they are needed, and keep none: for data that does not fit a disk."""
    buffer_size: Positive = BUFFER_SIZE
    """Rows of a stream that are mixed together. They are held in memory, by each process and loader worker."""
    oversample: str | None = None
    """A text-classification task whose classes come equally often in a pass: rows of the rarer ones again and again."""
    augmentation: AugmentationSpec = AugmentationSpec()
    """How training rows are changed each time they come."""
    undersample: str | None = None
    """The same with fewer rows of the more frequent classes, drawn anew for each pass."""

    @field_validator("data_dir")
    @classmethod
    def _whole_path(cls, value: str | None) -> str | None:
        return None if value is None else whole_path(value)


class TaskSpec(Section):
    """One thing to predict, and the column that holds its labels."""

    type: TaskType
    dataset: str | list[str]
    """The dataset that carries the labels, or several."""
    labels: str | dict[str, str]
    """The label column; a mapping from dataset to column where they differ."""
    label_names: list[str] | None = None
    """The label set in order. Needed where labels are bare numbers: their names from 0 on."""
    label_map: dict[str, str] = {}
    """Other names for labels, given name to wanted name: to merge datasets that name them differently."""
    decoder: Decoder | None = None
    """How the labels of words are chosen: ``softmax``, each for itself; ``iob2``, together, as IOB2 allows; ``crf``,
    together, with learned transitions. Default: ``iob2`` for IOB tags, else ``softmax``."""
    metric: Metric | None = None
    """The main metric. Default: by type and labels, for example span_f1 for IOB tags."""
    init_from: str | None = Field(default=None, min_length=1)
    """A stock fine-tuned checkpoint (a Hub id, or a folder that starts with ``./``, ``../`` or ``/``) whose head the
    task's head starts from. Default: a new head."""
    init_from_revision: str | None = None
    """Branch, tag or commit of ``init_from`` on the Hub."""
    loss_weight: Number = Field(default=1.0, ge=0)
    """What the task's loss counts in the sum. Well chosen fixed weights are a strong baseline."""

    class_weights: Literal["balanced"] | dict[str, Annotated[Number, Field(gt=0)]] | None = None
    """What items count in the loss by their label: ``balanced``, all labels of the training rows alike in sum, so that
    rare ones are not overlooked; or weights, 1 for labels that are not named."""
    focal_gamma: Number = Field(default=0.0, ge=0, le=10)
    """Items whose label is predicted with probability p count (1 - p)^gamma: what is easy, little. 0: all alike."""
    label_smoothing: Fraction = 0.0
    """The share of an item's target that is spread over all labels: less sure answers, some noise in labels borne."""

    def columns(self) -> dict[str, str]:
        """``{dataset: label column}``."""
        datasets = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        if isinstance(self.labels, str):
            return dict.fromkeys(datasets, self.labels)
        return {dataset: self.labels[dataset] for dataset in datasets}


class TrainingSpec(Section):
    """The optimization. ``max_tokens``, ``layout``, ``mixed_precision``, ``num_workers``, ``gradient_checkpointing``
    and ``compile`` are about hardware."""

    num_epochs: Number = Field(default=3, gt=0, le=1_000_000)
    """One epoch is as many rows as the training splits have together."""
    max_steps: Positive | None = None
    """Stop after so many optimizer steps; schedules end there too."""
    batch_size: Positive = 64
    """Rows in an optimizer step: what is learned."""
    max_tokens: Positive = 4096
    """Tokens in a micro-batch, padding counted where there is any: what fits."""
    layout: Literal["auto", "padded", "packed"] = "auto"
    """``packed``: the texts of a micro-batch stand one behind the other, without padding, each read for itself; not
    all encoders can. ``auto``: packed where the encoder can."""
    learning_rate: Number = Field(default=5e-5, gt=0)
    """Peak learning rate of the encoder."""
    head_learning_rate: Number = Field(default=1e-3, gt=0)
    """Peak learning rate of the heads, which start from nothing, and of a pooler, which only they read."""
    weight_decay: Number = Field(default=0.01, ge=0)
    """AdamW's; biases and norms have none."""
    layer_decay: Number = Field(default=1.0, gt=0, le=1)
    """The encoder's learning rate falls by this factor from each layer to the one below, down to the embeddings."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rates fall after warm-up."""
    warmup_fraction: Fraction = 0.06
    """The share of steps in which the learning rates rise."""
    dropout: Fraction | None = None
    """The rate of every dropout in encoder and heads. Default: what the encoder's configuration says."""
    frozen_layers: Annotated[Integer, Field(ge=0)] | Literal["embeddings", "encoder"] = 0
    """What of the encoder does not learn: ``encoder``, all of it; ``embeddings``; a number, the embeddings and so many
    of the lowest layers; 0, nothing."""
    cache_features: bool = False
    """With ``frozen_layers: encoder``: the encoder reads each row once, without dropout, and what it gives is kept on
    disk; heads learn from that, in each epoch and in every run that can use it."""
    unfreeze_every: Positive | None = None
    """Gradual unfreezing: the heads learn alone at first, and after every so many steps one more layer of the encoder,
    from the top. Default: all learn from the start."""
    l1_penalty: Number = Field(default=0.0, ge=0)
    """Adds this times the sum of the absolute weights of all matrices to the loss."""
    l2_penalty: Number = Field(default=0.0, ge=0)
    """The same with the sum of the squared weights; ``weight_decay`` is usually the better choice."""
    max_grad_norm: Number = Field(default=1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0: never."""
    ema_decay: Fraction = 0.0
    """Evaluate and save an exponential moving average of the weights: the share of it that a step keeps, for example
    0.99 to average over the last hundred steps or so. 0: the weights themselves."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: matrix products in bfloat16, weights and updates in float32."""
    eval_every: Positive | None = None
    """Evaluate every so many steps. Default: once an epoch. Always at the end."""
    log_every: Positive = 10
    """A line in metrics.jsonl every so many steps."""
    save_every: Positive | None = None
    """A checkpoint every so many steps, besides the one at each evaluation."""
    keep_last: Positive = 1
    """The newest checkpoints to keep, besides the best."""
    keep_best: Positive = 1
    """The best checkpoints to keep, by selection score."""
    early_stopping_patience: Positive | None = None
    """Stop after so many evaluations without a better selection score."""
    selection_weights: dict[str, Annotated[Number, Field(ge=0)]] = {}
    """What each task's main metric counts in the selection score; a task that is not named here counts nothing.
    Without any weights: 1 each."""
    num_workers: Integer = Field(default=0, ge=0)
    """Processes that make batches ahead; 0: the training process does."""
    gradient_checkpointing: bool = False
    """Keep less of the forward pass and compute it again in the backward pass: less memory, more time."""
    deterministic: bool = True
    """On a GPU, only kernels that repeat a run bit for bit, also where others would be faster; on CPU all do."""
    compile: bool = False
    """Compile the encoder's layers (``torch.compile``), once for each of a few lengths that texts are padded to."""
    trackers: list[Tracker] = []
    """Experiment trackers that get what is logged."""

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare no as false


class Recipe(Section):
    """A run, described."""

    encoder: str = Field(min_length=1)
    """A Hub id, a local folder (starting with ``./``, ``../`` or ``/``) or ``package:NAME``."""
    encoder_revision: str | None = None
    """Branch, tag or commit of the encoder on the Hub."""
    word_splitter: Literal["unicode", "english", "whitespace"] = "unicode"
    """How texts become words, in training and prediction; see :mod:`nlp_mtl.words`."""
    max_length: Positive | None = None
    """Tokens in a window of text. Default: 512, or the most that the encoder reads if that is less."""
    cleaning: CleaningSpec = CleaningSpec()
    """What is done to all texts, in training and prediction; kept with the model."""
    window_overlap: Integer = Field(default=64, ge=0)
    """Tokens that neighbouring windows of a long text share; half a window at most."""
    data_dir: str = Field(default=".", min_length=1, validate_default=True)
    """Where relative ``data_files`` start; kept as a whole path. In a recipe file: relative to that file,
    else to the current directory."""
    num_proc: Positive = 1
    """Processes that tokenise splits of more than a few thousand rows. What comes out is the same."""
    datasets: dict[Name, DatasetSpec] = Field(min_length=1)
    tasks: dict[Name, TaskSpec] = Field(min_length=1)
    sampling: SamplingSpec = SamplingSpec()
    balancing: BalancingSpec = BalancingSpec()
    gradients: GradientsSpec = GradientsSpec()
    sharing: SharingSpec = SharingSpec()
    training: TrainingSpec = TrainingSpec()
    meta: MetaSpec | None = None
    """Learn an encoder for tasks with few rows, instead of the tasks themselves."""
    consistency: list[ConsistencySpec] = []
    """Pairs of tasks whose labels are chosen together."""
    distillation: DistillationSpec | None = None
    """Learn from trained models, too."""
    seed: Integer = Field(default=0, ge=0, lt=2**32)
    split_seed: Annotated[Integer, Field(ge=0, lt=2**32)] | None = None
    """Of which rows are held out, and which ``max_rows`` keeps: with it, runs of several seeds have the same rows.
    Default: ``seed``."""
    output_dir: str = Field(min_length=1)
    """The run folder. Relative to where the command runs."""
    extension: ExtensionSpec | None = None
    """Of which trained model this adds to the tasks, and how those are kept; ``nlp-mtl extend`` reads it."""
    hub: HubSpec | None = None
    """Push the model to the Hub."""
    tune: TuneSpec | None = None
    """What ``nlp-mtl tune`` searches, and how; no other verb reads it."""
    compression: CompressionSpec | None = None
    """How ``nlp-mtl compress`` makes the trained model smaller; training reads its ``model`` alone."""

    @field_validator("data_dir")
    @classmethod
    def _whole_path(cls, value: str) -> str:
        return whole_path(value)

    @field_validator("output_dir")
    @classmethod
    def _home(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("it holds a null byte, which no path can")
        return os.path.expanduser(value)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> "Recipe":
        """Read a recipe file, with ``key.key=value`` overrides (values in YAML).

        Raises:
            RecipeError: with all problems of the file and the overrides.
        """
        return validate(cls, *read_yaml(Path(path), overrides))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe of plain values; relative paths start from the current directory.

        Raises:
            RecipeError: with all problems.
        """
        return validate(cls, values, [], "the recipe")

    @property
    def old_tasks(self) -> list[str]:
        """Those of an extended model that the recipe knows the data of, but does not name itself."""
        named = self.extension.old_tasks if self.extension is not None else None
        return [name for name in named or [] if name in self.tasks]

    @property
    def old_datasets(self) -> list[str]:
        """The datasets that none but :attr:`old_tasks` read."""
        old = {name for task in self.old_tasks for name in self.tasks[task].columns()}
        read = {name for task, spec in self.tasks.items() if task not in self.old_tasks for name in spec.columns()}
        return [name for name in self.datasets if name in old - read]

    @property
    def learned_tasks(self) -> list[str]:
        """Those that steps learn from labels: old ones only where rows of theirs are replayed."""
        replays = self.extension is not None and self.extension.replay is not None
        drawn = {name for name in self.old_tasks if any(map(self.draws_from, self.tasks[name].columns()))}
        return [name for name in self.tasks if (replays and name in drawn) or name not in self.old_tasks]

    def draws_from(self, dataset: str) -> bool:
        """Whether steps learn from a dataset: one with the share 0 is there to be evaluated on."""
        replays = self.extension is not None and self.extension.replay is not None
        is_learned = replays or dataset not in self.old_datasets
        return is_learned and bool(self.sampling.shares.get(dataset, 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, defaults included."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The recipe as it was resolved, defaults included: what a run folder keeps."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
