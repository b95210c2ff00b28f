"""Files that are there whole or not at all, whatever stops the one who writes them."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` to write; it takes its place when the block ends well, and vanishes otherwise.

    Raises:
        OSError: the draft cannot be put in place.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield draft
        if os.name != "nt":  # so that a power cut leaves the old file or the new one
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def write_whole(path: Path, text: str) -> None:
    """A file of text, UTF-8, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")
