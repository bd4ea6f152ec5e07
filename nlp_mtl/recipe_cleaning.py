"""What a recipe says of how texts are changed: cleaning, of all of them; augmentation, of training rows."""

from typing import Annotated, Literal

from pydantic import Field

from nlp_mtl.cleaning_checks import NEAR
from nlp_mtl.recipe_strategies import Number, Positive, Section

Probability = Annotated[Number, Field(ge=0, le=1)]

Placeholder = Annotated[str, Field(pattern=r"^\S*$", max_length=64)]


class CleaningSpec(Section):
    """What is done to texts before words are found in them, in this order; nothing by default."""

    fix_encoding: bool | None = None
    """Text that was read in a wrong encoding: ``schÃ¶n`` becomes ``schön``. Needs the extra ``cleaning`` (ftfy)."""
    remove_html: bool | Literal["escaped"] | None = None
    """Tags, comments, scripts and styles go; entities become their characters. ``escaped``: also of HTML that was
    written as text, ``&lt;b&gt;``."""
    normalize_unicode: Literal["NFC", "NFKC", "NFD", "NFKD"] | None = None
    """A normalisation form: NFC composes letters with their accents, NFKC also makes ``ﬁ`` two letters."""
    remove_control_characters: bool | None = None
    """Characters that are not seen: control characters, soft hyphens, zero-width spaces, marks of direction. Joiners
    stay."""
    replace_urls: Placeholder | Literal[False] | None = None
    """What stands for web addresses; an empty string removes them."""
    replace_usernames: Placeholder | Literal[False] | None = None
    """What stands for names such as ``@somebody``; an empty string removes them."""
    remove_stop_words: list[str] | str | Literal[False] | None = None
    """Words to leave out, or the code of a language, such as ``en``, whose words stopwordsiso lists (extra
    ``cleaning``). Not where a task labels words."""
    lowercase: bool | None = None
    """Small letters. Most uncased encoders do this themselves."""
    remove_punctuation: bool | None = None
    """Punctuation that does not stand inside a word. Not where a task labels words."""
    normalize_white_space: bool | None = None
    """Single spaces between words, none at the ends."""


class DatasetCleaningSpec(CleaningSpec):
    """What differs for a dataset from the recipe's ``cleaning`` (``false`` takes a step back), and which of its
    training rows are left out."""

    drop_duplicates: Literal["exact", "near"] | None = None
    """Leave out training rows whose cleaned words are those of an earlier one, or of a row that is evaluated on.
    ``near``: or nearly those, needs the extra ``cleaning`` (datasketch)."""
    duplicate_threshold: Number = Field(default=NEAR, gt=0, le=1)
    """The Jaccard similarity of two texts' stretches of five characters from which on they are near duplicates."""
    min_words: Positive | None = None
    """Leave out training rows of fewer words, after cleaning."""
    max_words: Positive | None = None
    """Leave out training rows of more words, after cleaning."""


class AugmentationSpec(Section):
    """How training rows are changed each time they come; probabilities, 0: not at all."""

    rows: Probability = 1.0
    """Of a row to be changed."""
    word_dropout: Probability = 0.0
    """Of a word to be hidden by the mask token (or the unknown one). It keeps its label."""
    case_noise: Probability = 0.0
    """Of a word to be written in capitals, in small letters or with a capital."""
    typos: Probability = 0.0
    """Of a word of four letters or more to get a typing error: two letters swapped, one left out, doubled or wrong."""
    entity_swap: Probability = 0.0
    """Of an entity to become another one of its kind from the training rows; needs one task of IOB tags."""
