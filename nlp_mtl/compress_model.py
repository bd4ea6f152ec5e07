"""A trained model made smaller as a recipe's ``compression`` says: step by step, and what each of them did."""

import copy
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from nlp_mtl.build import steps
from nlp_mtl.build_data import Prepared
from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.compression.heads import check_alike, find_heads, take_out_heads, without_heads
from nlp_mtl.compression.importance import best_units, importances, least_heads
from nlp_mtl.compression.layers import keep_layers, layers_left
from nlp_mtl.compression.magnitude import prune_magnitude, share_of_zeros
from nlp_mtl.compression.units import find_units, keep_units, units_left, without_units
from nlp_mtl.compression.vocabulary import differences, ids_to_keep, keep_vocabulary, smaller_vocabulary
from nlp_mtl.data.loading import LoadedSplit
from nlp_mtl.data.row_words import words_in
from nlp_mtl.errors import DataError, ModelError, listed
from nlp_mtl.inference.texts import find_words
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import SPLITS, Recipe
from nlp_mtl.recipe_compression import CompressionSpec
from nlp_mtl.recipe_strategies import SamplingSpec

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Rows whose words are held at a time."""


class Compressed(NamedTuple):
    """A model that was made smaller."""

    model: MultiTaskModel
    """On the CPU."""
    tokenizer: PreTrainedTokenizerBase
    told: dict[str, Any]
    """What was done, by the section's keys; see ``docs/compression.md``."""


def compressed(
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: CompressionSpec,
    recipe: Recipe | None,
    prepared: Prepared | None,
    accelerator: Accelerator,
) -> Compressed:
    """A model made smaller: layers, heads, units, vocabulary and magnitudes, in this order.

    Args:
        model: on the CPU; it stays as it is.
        recipe, prepared: whose data heads and units are weighed on and words are taken from; None where nothing needs
            them.

    Raises:
        ModelError: nothing of it can be taken out of its family, or nothing would be.
        DataError: the data do not tell what is needed.
    """
    told: dict[str, Any] = {}
    if spec.layers is not None:
        count = model.config.encoder_config.num_hidden_layers
        model, kept = keep_layers(model, spec.layers), layers_left(spec.layers, count)
        told["layers"] = {"before": count, "after": len(kept), "kept": kept}
    if spec.heads or spec.intermediate:
        assert recipe is not None
        assert prepared is not None
        model = _pruned(model, spec, recipe, prepared, accelerator, told)
    if spec.vocabulary or spec.vocabulary_files:
        model, tokenizer = _with_fewer_pieces(model, tokenizer, spec, prepared, told)
    if spec.magnitude:
        model = copy.deepcopy(model)
        prune_magnitude(model, spec.magnitude, spec.magnitude_scope)
        told["magnitude"] = {"zeros": share_of_zeros(model)}
    return Compressed(model, tokenizer, told)


def _pruned(
    model: MultiTaskModel,
    spec: CompressionSpec,
    recipe: Recipe,
    prepared: Prepared,
    accelerator: Accelerator,
    told: dict[str, Any],
) -> MultiTaskModel:
    """Without the heads and units that matter least; both are weighed on the model as it is before."""
    heads = find_heads(model) if spec.heads else []
    units = find_units(model) if spec.intermediate else None
    of_heads = {f"encoder.{one.output_name}": one.head_size for one in heads}
    of_units = dict.fromkeys(units.outputs.values(), 1) if units else {}
    data = steps(_weighing(recipe, spec.importance_rows), prepared, device=accelerator.device.type)
    # Texts as they are, padded, and those with labels of the same tasks together.
    data.packed, data.is_bucketed, data.augmenters, data.num_threads, data.one_set_every = False, False, {}, 1, 1
    logger.info("Weighing heads and units on %d training rows", spec.importance_rows)
    model.to(accelerator.device)
    scores = importances(model, data, prepared.tasks, of_heads | of_units, accelerator=accelerator)
    model.cpu()
    if heads:
        kept = least_heads([scores[name] for name in of_heads], spec.heads)
        before, after = sum(one.num_heads for one in heads), sum(map(len, kept))
        if before == after:
            raise ModelError(f"heads: {spec.heads:g} of {before} heads is none, and one stays in each layer: take more")
        smaller = take_out_heads(model, kept)
        check_alike(model, without_heads(model, kept), smaller, "heads")
        model = smaller
        told["heads"] = {"before": before, "after": after, "kept": [[head + 1 for head in one] for one in kept]}
    if units:
        count = units_left(units.width, spec.intermediate)
        if count == units.width:
            raise ModelError(
                f"intermediate: {spec.intermediate:g} of {units.width} units is none (widths stay multiples of 8 where "
                "they are): take more"
            )
        best = {layer: best_units(scores[name], count) for layer, name in units.outputs.items()}
        smaller = keep_units(model, units, best)
        check_alike(model, without_units(model, units, best), smaller, "intermediate")
        model = smaller
        told["intermediate"] = {"before": units.width, "after": count}
    return model


def _weighing(recipe: Recipe, rows: int) -> Recipe:
    """By which steps draw the rows that heads and units are weighed on: of all tasks, and teachers have no say."""
    max_steps = math.ceil(rows / recipe.training.batch_size)
    training = recipe.training.model_copy(update={"max_steps": max_steps})
    changes: dict[str, Any] = {"training": training, "distillation": None, "extension": None}
    if recipe.extension is not None and recipe.extension.replay is None and recipe.sampling.strategy == "fixed":
        changes["sampling"] = SamplingSpec()  # shares of old datasets, of which the run drew nothing, are 0
    return recipe.model_copy(update=changes)


def _with_fewer_pieces(
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: CompressionSpec,
    prepared: Prepared | None,
    told: dict[str, Any],
) -> tuple[MultiTaskModel, PreTrainedTokenizerBase]:
    counts: Counter[str] = Counter()
    for split in spec.vocabulary:
        assert prepared is not None
        counts += words_of_split(prepared, split, model.config.word_splitter)
    counts += words_of_files(spec.vocabulary_files, model.config)
    if not counts:
        raise DataError(f"vocabulary: there are no words in {listed([*spec.vocabulary, *spec.vocabulary_files])}")
    before = model.config.encoder_config.vocab_size
    found = smaller_vocabulary(
        tokenizer,
        counts.keys(),
        keep_characters=spec.keep_characters,
        kept_ids=ids_to_keep(model),
        size=spec.vocabulary_size or 0,
    )
    others = {
        split: differences(tokenizer, found, words)
        for split in SPLITS
        if prepared is not None and split not in spec.vocabulary
        if (words := words_of_split(prepared, split, model.config.word_splitter, streams=False))
    }
    told["vocabulary"] = {"before": before, "after": len(found.ids), "words": len(counts), "elsewhere": others}
    return keep_vocabulary(model, found.ids), found.tokenizer


def words_of_split(prepared: Prepared, split: str, word_splitter: str, streams: bool = True) -> Counter[str]:
    """``{word: how often it occurs}`` in a split of all datasets, cleaned.

    Args:
        streams: whether those are wanted, too.

    Raises:
        DataError: they are, and there is one.
    """
    counts: Counter[str] = Counter()
    for name, loaded in prepared.loaded.items():
        if split == "train" and loaded.stream is not None and streams:
            raise DataError(
                f"vocabulary: the training rows of `{name}` are streamed, so their words are not known beforehand: "
                "give files of texts (vocabulary_files), or other splits"
            )
        if split not in loaded.splits:
            continue
        source = loaded.splits[split]
        rows = source.rows.select_columns(loaded.text_columns)
        for start in range(0, len(rows), _AT_ONCE):
            places = range(start, min(start + _AT_ONCE, len(rows)))
            first, second = words_in(loaded, rows[places], word_splitter, partial(_where, source, places))
            for words in (*first, *(second or ())):
                counts.update(words)
    return counts


def _where(source: LoadedSplit, places: range, row: int) -> str:
    return source.where(places[row])


def words_of_files(files: Sequence[str], config: MultiTaskConfig) -> Counter[str]:
    """``{word: how often it occurs}`` in files of texts, one a line, as the model finds words at prediction.

    Raises:
        DataError: one cannot be read.
    """
    counts: Counter[str] = Counter()
    cleaning = Cleaning.from_dict(config.cleaning)
    for file in files:
        for line in lines_of(file):
            counts.update(find_words(line, config.word_splitter, cleaning)[2])
    return counts


def lines_of(file: str) -> Iterator[str]:
    """The texts of a file, one a line.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Path(file).expanduser().open(encoding="utf-8-sig") as lines:
            for line in lines:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"vocabulary_files: {file} is not text in UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"vocabulary_files: {file} cannot be read: {error.strerror}") from error
