"""Small models of other libraries in directories as these write them, and images that cannot be read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from openjepa.data.base import BadImage
from openjepa.data.idx import ArraySource


@pytest.fixture
def transformers_directory() -> Callable[..., torch.nn.Module]:
    """Writes a transformers model of some kind (``ViT``, ...) for square images, and its image processor."""

    def write(folder: Path, kind: str, size: int, **settings) -> torch.nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{kind}Config")(image_size=size, **settings)
        with torch.random.fork_rng():
            torch.random.manual_seed(1)
            model = getattr(transformers, f"{kind}Model")(config).eval()
        model.save_pretrained(folder)
        extents = {"height": size, "width": size}
        transformers.ViTImageProcessor(size=extents, do_convert_rgb=True).save_pretrained(folder)
        return model

    return write


@pytest.fixture
def timm_directory() -> Callable[..., torch.nn.Module]:
    """Writes a timm model of some name."""

    def write(folder: Path, name: str = "vit_tiny_patch16_224", **arguments) -> torch.nn.Module:
        timm = pytest.importorskip("timm")
        from timm.models import save_for_hf

        with torch.random.fork_rng():
            torch.random.manual_seed(1)
            model = timm.create_model(name, num_classes=0, **arguments).eval()
        save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
        return model

    return write


@pytest.fixture
def damaged():
    """A context in which some images of arrays cannot be read: those for which a source and a number give true."""

    @contextmanager
    def these(chosen: Callable[[ArraySource, int], bool]) -> Iterator[None]:
        read = ArraySource.read

        def sometimes(self, index, at_least=None):
            if chosen(self, index):
                raise BadImage(f"image {index}", "is damaged")
            return read(self, index, at_least)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ArraySource, "read", sometimes)
            yield

    return these
