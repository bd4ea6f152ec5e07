"""From a recipe's ``augmentation`` to what changes training rows."""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from nlp_mtl.build_data import Prepared
from nlp_mtl.data.augmentation import Augmentation, Augmenter, Words
from nlp_mtl.data.encoded_splits import EncodedSplit, Split
from nlp_mtl.data.loading import LoadedDataset
from nlp_mtl.data.row_words import words_in
from nlp_mtl.errors import Problem, RecipeError, listed
from nlp_mtl.recipe import Recipe


def augmenters(recipe: Recipe, prepared: Prepared, train: Mapping[str, Split]) -> dict[int, Augmenter]:
    """``{place: what changes the rows of the training split there}``, of those whose rows are changed.

    Raises:
        RecipeError: entities should be swapped where no task, or more than one, has IOB tags.
    """
    found = {}
    for place, (name, split) in enumerate(train.items()):
        settings = Augmentation(**recipe.datasets[name].augmentation.model_dump())
        if not settings or not isinstance(split, EncodedSplit):
            continue
        spans = [task.name for task in prepared.tasks if task.is_spans and task.name in split.tasks]
        if settings.entity_swap and len(spans) != 1:
            message = f"it needs one task of IOB tags on the dataset, and there are {listed(spans)}"
            raise RecipeError([Problem(f"datasets.{name}.augmentation.entity_swap", message)])
        found[place] = Augmenter(
            split,
            _RowWords(prepared.loaded[name], split.source.rows, recipe.word_splitter),
            prepared.tasks,
            prepared.tokenizer,
            settings,
            seed=recipe.seed,
            place=place,
        )
    return found


class _RowWords:
    """The words of training rows; a class, so that it can go to loader processes."""

    def __init__(self, loaded: LoadedDataset, rows: Dataset, word_splitter: str) -> None:
        self.loaded, self.word_splitter = loaded, word_splitter
        self.rows = rows.select_columns(loaded.text_columns)

    def __call__(self, rows: Sequence[int]) -> list[tuple[Words, Words | None]]:
        first, second = words_in(self.loaded, self.rows[list(rows)], self.word_splitter, str)
        if second is None:
            return [(words, None) for words in first]
        return list(zip(first, second, strict=True))
