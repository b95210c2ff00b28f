"""Every kind of features of chosen images in one pass, except those that the cache holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Int64

from openjepa import draws
from openjepa.assessment.cache import Entry, FeatureCache, key_of
from openjepa.assessment.encoders import Kind, Network, Panel
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Source
from openjepa.data.loader import BadRecord, Batch, NoSharedMemory, ordered_batches
from openjepa.errors import InputError
from openjepa.evaluation.features import Features, Part, Tokens
from openjepa.evaluation.suite import TOKENS
from openjepa.progress import tell

# Tokens of one part and one encoder in half precision: what is kept in memory, and so how many images they are of.
# Those of raw pixels are of as many, and wider by 127 numbers at most.
TOKEN_BYTES = 2**29
# Share of the images that may be unreadable, as training has it.
BAD_IMAGES = 0.01
_BATCH = 128
_IN_PARALLEL = 1000  # fewer images are read in this process

Count = Callable[[str, float, float], None]


@dataclass(frozen=True, kw_only=True)
class Images(ABC):
    """The images of one part: their numbers, ascending, what they are called, and which of them give tokens."""

    indices: Int64[np.ndarray, "n"]
    name: str

    @property
    @abstractmethod
    def data(self) -> str:
        """Where they come from, for a person."""

    @property
    @abstractmethod
    def content(self) -> Any:
        """What the encoder is shown of them but for its own preparation, as JSON values; for the cache."""

    @abstractmethod
    def batches(self, indices: Int64[np.ndarray, "m"], preprocessing: Preprocessing) -> Iterator[Batch]:
        """Some of the images in their order; each batch says which of its own could not be read."""

    @abstractmethod
    def labels(self, samples: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
        """Class numbers of some of the images, -1 for none."""

    @abstractmethod
    def reference(self, sample: int) -> str:
        """Where one image is, for a person."""

    def of(self, kind: Kind, tokens: tuple[int, int]) -> Int64[np.ndarray, "m"]:
        """The images that ``kind`` is taken of: all, or as many as the bound on tokens ("N", "D") allows."""
        most = max(1, TOKEN_BYTES // (2 * tokens[0] * tokens[1]))
        if kind.view != TOKENS or most >= len(self.indices):
            return self.indices
        return np.sort(self.indices[draws.permutation(len(self.indices), "tokens")[:most]])


@dataclass(frozen=True, kw_only=True)
class Chosen(Images):
    """Images of a source."""

    source: Source

    @property
    def data(self) -> str:
        return self.source.name

    @property
    def content(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self.source.content(self.indices)  # which reads all of them

    def batches(self, indices: Int64[np.ndarray, "m"], preprocessing: Preprocessing) -> Iterator[Batch]:
        read = partial(ordered_batches, self.source, preprocessing, batch=_BATCH)
        done = 0
        if len(indices) >= _IN_PARALLEL:
            try:
                for batch in read(indices, workers=1):
                    done += _BATCH
                    yield batch
            except NoSharedMemory as error:
                tell(f"images are read in this process from here on, which takes longer: {error}")
            else:
                return
        yield from read(indices[done:], workers=0)

    def labels(self, samples: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
        labels = self.source.labels
        return np.full(len(samples), -1, np.int64) if labels is None else labels[samples]

    def reference(self, sample: int) -> str:
        return self.source.reference(sample)


@dataclass(frozen=True, kw_only=True)
class Altered(Images):
    """All of some other images, altered, each in a way of its own or in several."""

    clean: Images

    @property
    def data(self) -> str:
        return self.clean.data


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """Every kind of features of one part, and which of its images could not be read."""

    parts: dict[Kind, Part]
    bad: tuple[BadRecord, ...]


def unreadable(bad: Sequence[BadRecord], images: int, bad_images: float) -> list[str]:
    """A note on those of the ``images`` asked for that could not be read; none where all could.

    Raises:
        InputError: they are more than the share ``bad_images``.
    """
    if not bad:
        return []
    said = f"{len(bad):,} of {images:,} images could not be read"
    if len(bad) > bad_images * images:
        raise InputError(
            f"{said}, more than {100 * bad_images:g}%: for example {bad[0].reference} ({bad[0].reason}). Mend or "
            "remove them, or allow more with --bad-images"
        )
    return [f"{said} (first: {bad[0].reference}: {bad[0].reason})."]


def extract_kinds(
    panel: Panel, part: Images, kinds: Sequence[Kind], cache: FeatureCache | None = None, count: Count | None = None
) -> Extracted:
    """The features of each of ``kinds``: from the cache, else from one pass over the images; new ones are cached.

    Args:
        count: told the part, the images done and their number.

    Raises:
        InputError: none of the images can be read, or an encoder gives values that are not finite.
    """
    wanted = {kind: network for network in panel.networks for kind in network.kinds if kind in kinds}
    asked = {kind: part.of(kind, panel.tokens) for kind in wanted}
    made = preparation(panel.preprocessing), part.content if cache else ""
    keys = {kind: key_of(one.identity, *kind, *made, asked[kind].tolist()) for kind, one in wanted.items()}
    found = {}
    if cache is not None:
        entries = {kind: cache.read(keys[kind], asked[kind]) for kind in wanted}
        found = {kind: entry for kind, entry in entries.items() if entry is not None}
        if _readable(part, {sample for entry in found.values() for sample in entry.left_out}, panel.preprocessing):
            found = {}
    missing = {kind: asked[kind] for kind in wanted if kind not in found}
    fresh = _compute(panel, part, missing, count) if missing else {}
    if cache is not None:
        for kind, entry in fresh.items():
            facts = {"data": part.data, "part": part.name, "features": kind.subject, "view": kind.view}
            cache.write(keys[kind], entry, facts)
    entries = {kind: (found | fresh)[kind] for kind in wanted}
    left_out = {sample: reason for entry in entries.values() for sample, reason in entry.left_out.items()}
    return Extracted(
        parts={kind: _part(kind, entry, part) for kind, entry in entries.items()},
        bad=tuple(BadRecord(one, part.reference(one), left_out[one], -1) for one in sorted(left_out)),
    )


def _readable(part: Images, left_out: set[int], preprocessing: Preprocessing) -> bool:
    """Whether an image that could not be read when its part was cached can be read now: by a newer library, say."""
    again = np.array(sorted(left_out), np.int64)
    return bool(left_out) and any(len(batch.samples) for batch in part.batches(again, preprocessing))


def preparation(preprocessing: Preprocessing) -> dict[str, Any]:
    """What is done to an image, as JSON values; another library's own way is its description (``text``)."""
    values = {name: getattr(preprocessing, name) for name in ("size", "channels", "mean", "std")}
    return values | {"text": getattr(preprocessing, "text", "")}


def _compute(
    panel: Panel, part: Images, missing: dict[Kind, Int64[np.ndarray, "m"]], count: Count | None
) -> dict[Kind, Entry]:
    """One pass; a kind that is of fewer images than another is computed for whole batches and then cut to its own."""
    every = np.unique(np.concatenate(list(missing.values())))
    networks: list[tuple[Network, list[Kind]]] = []
    for network in panel.networks:
        if own := [kind for kind in network.kinds if kind in missing]:
            networks.append((network, own))
    values: dict[Kind, list[np.ndarray]] = {kind: [] for kind in missing}
    samples: dict[Kind, list[np.ndarray]] = {kind: [] for kind in missing}
    done, bad = 0, list[BadRecord]()
    for batch in part.batches(every, panel.preprocessing):
        done += len(batch.samples) + len(batch.bad)
        bad += batch.bad
        numbers = batch.samples.numpy()
        inside = {kind: np.isin(numbers, indices) for kind, indices in missing.items()}
        for network, kinds in networks:
            kinds = [kind for kind in kinds if inside[kind].any()]
            given = network.encode(batch.images, kinds) if kinds else {}
            for kind in kinds:
                kept = given[kind].half() if kind.view == TOKENS else given[kind]
                values[kind].append(kept.cpu().numpy()[inside[kind]])
                samples[kind].append(numbers[inside[kind]])
        if count is not None:
            count(f"features of the {part.name} images", float(done), float(len(every)))
    if not all(samples.values()):
        first = f"; the first: {bad[0].reference}: {bad[0].reason}" if bad else ""
        raise InputError(f"none of the {len(every)} {part.name} images of {part.data} can be used{first}")
    reasons = {one.sample: one.reason for one in bad}
    return {
        kind: Entry(
            values=np.concatenate(values[kind]),
            samples=np.concatenate(samples[kind]),
            left_out={sample: reasons[sample] for sample in indices.tolist() if sample in reasons},
        )
        for kind, indices in missing.items()
    }


def _part(kind: Kind, entry: Entry, part: Images) -> Part:
    made = Tokens if kind.view == TOKENS else Features
    return made(entry.values, part.labels(entry.samples), kind.subject)
