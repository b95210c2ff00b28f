"""Shape annotations are enforced in every test: beartype checks what jaxtyping declares."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("openjepa", "beartype.beartype")
