"""The settings of a server. Nothing else is imported: the command line has its defaults from here."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """What a server lets its clients do. Times in seconds."""

    name: str = "model"
    """What the model is called."""
    max_texts: int = 1000
    """How many texts a request may have."""
    max_characters: int = 100_000
    """How many characters a text may have, with its second one."""
    max_body: int = 4 * 2**20
    """How many bytes a request may have."""
    max_queue: int = 2048
    """How many texts may wait."""
    timeout: float = 60.0
    """How long a request may wait for its answer."""
    body_timeout: float = 10.0
    """How long a body may take to come."""
    batch_wait: float = 0.02
    """How long a text waits for others."""
    token: str | None = field(default=None, repr=False)
    """What clients have to send."""
    hosts: frozenset[str] | None = None
    """Names by which requests may call the server; None: any."""
