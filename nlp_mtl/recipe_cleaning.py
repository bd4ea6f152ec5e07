"""What a recipe says of cleaning: of all texts, and of the rows of a dataset."""

from typing import Annotated, Literal

from pydantic import Field

from nlp_mtl.cleaning_checks import NEAR
from nlp_mtl.recipe_strategies import Number, Positive, Section

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
