"""Encoders as Hugging Face directories, both ways: config.json, model.safetensors, preprocessor_config.json.

``transformers.AutoModel.from_pretrained`` makes an ``IJepaModel`` of such a directory. Where transformers cannot hold
the architecture (a signal that has not two axes), the directory still loads here, and its README.md says so.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.files import moved_aside, sha256_of, write_whole
from openjepa.interop.assembly import build_encoder, check_finite, is_sincos
from openjepa.interop.card import model_card
from openjepa.interop.folders import read_json, sweep, whole_folder, write_json, write_tensors
from openjepa.interop.ijepa_config import from_config_json, obstacle_to_transformers, own_facts, to_config_json
from openjepa.interop.ijepa_weights import from_huggingface, read_weights, to_huggingface
from openjepa.interop.image_processor import (
    PreprocessingLike,
    assumed,
    check_facts,
    describe,
    otherwise,
    processor_config,
    read_processor,
)

# The last line of a README.md of ours, by which one that somebody has edited is told; and under "openjepa" in
# config.json, which transformers hands on when it saves other weights, what tells those.
_SIGNED = "\n<!-- written by openjepa, which leaves this file alone once it is edited; SHA-256 of the text above: "
_WEIGHTS = "weights_sha256"
_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """An encoder with what its directory says about it.

    Attributes:
        encoder: the network, in evaluation mode.
        preprocessing: ``size``, ``channels``, ``mean``, ``std`` (of values in [0, 1]).
        metadata: ``model_type``, ``written_by`` (openjepa or transformers), ``preprocessing_assumed`` (True where the
            source does not say how its input was prepared), ``ignored`` (names of tensors that are no part of the
            encoder: a pooler, a classifier).
    """

    encoder: Encoder
    preprocessing: dict[str, Any]
    metadata: dict[str, Any]


def export(
    encoder: Encoder,
    directory: str | Path,
    *,
    preprocessing: PreprocessingLike | Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
    keep_others: bool = False,
) -> list[str]:
    """Write ``encoder`` as a Hugging Face directory, whole or not at all; an earlier export there is replaced.

    Args:
        encoder: written in float32.
        directory: the folder to make.
        preprocessing: ``size``, ``channels``, ``mean`` and ``std``, as attributes or as keys.
        card: facts for README.md; see :func:`openjepa.interop.card.model_card`.
        keep_others: of an earlier export, keep what somebody has put beside its files (and remove what writers that
            were killed have left), for a directory with one writer; without it such an export is not replaced. Neither
            is a README.md that was edited; and where the weights are others than those written, as after fine-tuning,
            the directory is moved aside.

    Returns:
        A sentence for each thing that was kept so, if any.

    Raises:
        InputError: ``directory`` holds something else, or cannot be written.
    """
    directory = Path(directory)
    directory = directory.resolve() if directory.is_symlink() else directory
    if keep_others:
        sweep(directory, _others)
    with whole_folder(directory, _not_ours if keep_others else _not_an_export, _others) as draft:
        write_encoder(encoder, draft, preprocessing=preprocessing, card=card)
        kept = _kept(directory, draft) if keep_others else []  # else such an export is refused
    return kept


def write_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    preprocessing: PreprocessingLike | Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of :func:`export` into ``folder``, which is there."""
    config, obstacle = encoder.config, obstacle_to_transformers(encoder.config)
    given = preprocessing if isinstance(preprocessing, Mapping) else describe(preprocessing)
    facts = check_facts(given, config, "the preprocessing")
    processor = {} if obstacle else processor_config(facts)
    write_tensors(folder / "model.safetensors", to_huggingface(encoder))
    content = to_config_json(config, facts, obstacle)
    content["openjepa"][_WEIGHTS] = sha256_of(folder / "model.safetensors")
    write_json(folder / "config.json", content)
    write_json(folder / "preprocessor_config.json", processor | {"openjepa": facts})
    write_whole(folder / "README.md", _signed(model_card(config, facts, card or {}, obstacle)))


def renew_card(directory: Path, card: Mapping[str, Any]) -> Path | None:
    """Write the README.md of an encoder's directory again, in one piece; returns its path, None where it was edited and
    is left as it is.

    Raises:
        InputError: it is no encoder that openjepa has written, or cannot be written.
    """
    if (reason := _not_ours(directory)) is not None:
        raise InputError(f"will not write {directory / 'README.md'}: {reason}")
    if _is_edited(directory):
        return None
    where = str(directory / "config.json")
    content = read_json(Path(where))
    own = own_facts(content)
    learned = own.get("positions") == "learned"  # as load has it, which asks the weights only about somebody else's
    config = dataclasses.replace(from_config_json(content, where), positions="learned" if learned else "sincos")
    facts = _read_facts(directory, config, own)
    facts.pop("assumed", None)
    path = directory / "README.md"
    try:
        write_whole(path, _signed(model_card(config, facts, card, obstacle_to_transformers(config))))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    return path


def load(directory: str | Path) -> LoadedEncoder:
    """Read a Hugging Face directory of an I-JEPA encoder: ours, or one that transformers has saved.

    Raises:
        InputError: no such directory, another model, missing or unexpected tensors, wrong shapes, damaged files.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder. Give the folder of an encoder, which holds config.json.")
    where = str(directory / "config.json")
    if not Path(where).is_file():
        raise InputError(f"{directory} is no encoder: it holds no config.json.")
    content = read_json(Path(where))
    config, own = from_config_json(content, where), own_facts(content)
    tensors, ignored = read_weights(directory)
    state = from_huggingface(tensors, config, str(directory))
    check_finite(state, str(directory))
    table = state.pop("table")
    sincos = is_sincos(table, config.grid) and own.get("positions") != "learned"
    config = dataclasses.replace(config, positions="sincos" if sincos else "learned")
    encoder = build_encoder(config, state if sincos else state | {"table": table}, str(directory)).eval()
    facts = _read_facts(directory, config, own)
    metadata = {
        "model_type": content["model_type"],
        "written_by": "openjepa" if own else "transformers",
        "preprocessing_assumed": bool(facts.pop("assumed", False)),
        "ignored": ignored,
    }
    return LoadedEncoder(encoder=encoder, preprocessing=facts, metadata=metadata)


def prepared_otherwise(directory: str | PathLike[str]) -> tuple[str, bool]:
    """What the image processor of a directory as :func:`load` takes it does to images, in words, where that is another
    way than the one of this library (empty where it is the same, or not said); and whether it makes images of the
    encoder's native size, the only one at which transformers runs the encoder unasked.

    Raises:
        InputError: the directory has no config.json that can be used, or a damaged file.
    """
    directory = Path(directory)
    where = str(directory / "config.json")
    content, (path, processor) = read_json(Path(where)), _processor_file(directory)
    config = from_config_json(content, where)
    if processor is None or len(config.signal) != 2:
        return "", True
    facts = read_processor(processor, config, str(path))
    return otherwise(processor, facts, own=bool(own_facts(content))), facts["size"] == config.signal


def _processor_file(directory: Path) -> tuple[Path, dict[str, Any] | None]:
    """Where transformers looks for its image processor, and what stands there, if that is one."""
    path = directory / "preprocessor_config.json"
    content = read_json(path) if path.is_file() else {}
    named = content.get("image_processor_type") or content.get("feature_extractor_type") or "image_mean" in content
    return path, content if named else None


def _read_facts(directory: Path, config: EncoderConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing, from where transformers looks for it, else from our own words, else assumed."""
    path, content = _processor_file(directory)
    stated = own.get("preprocessing")
    if content is not None:
        facts = read_processor(content, config, str(path))
        return facts | {"assumed": isinstance(stated, dict) and stated.get("assumed", False)}
    return assumed(config) if stated is None else check_facts(stated, config, str(directory / "config.json"))


def _not_an_export(directory: Path) -> str | None:
    """Why an existing folder may not be replaced: only our own exports (or an empty folder) may."""
    if others := [entry.name for entry in _others(directory)]:
        return f"it holds files that are no part of an encoder ({', '.join(others[:4])})"
    if (reason := _not_ours(directory)) is not None:
        return reason
    if _has_other_weights(directory):
        return "its weights file is another than openjepa wrote (fine-tuned weights, perhaps)"
    return "its README.md has been edited" if _is_edited(directory) else None


def _others(directory: Path) -> list[Path]:
    """What lies in a folder beside an encoder's own files."""
    return sorted(entry for entry in directory.iterdir() if entry.name not in _FILES) if directory.is_dir() else []


def _not_ours(directory: Path) -> str | None:
    """Why a folder's encoder may not be replaced: only one that openjepa has written may, or none."""
    if not directory.is_dir():
        return "it is a file"
    if not any(directory.iterdir()):
        return None
    config = directory / "config.json"
    if not config.is_file() or "openjepa" not in read_json(config):
        return "it is not an encoder that openjepa has written"
    return None


def _signed(card: str) -> str:
    return f"{card}{_SIGNED}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def _is_edited(directory: Path) -> bool:
    """Whether the README.md of an encoder of ours is another than was written; older ones cannot be told."""
    path = directory / "README.md"
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    card, mark, _ = text.rpartition(_SIGNED)
    return text != _signed(card) if mark else _weights_written(directory) is not None


def _has_other_weights(directory: Path) -> bool:
    """Whether the weights of an encoder of ours are others than were written; of older ones it cannot be told."""
    written, weights = _weights_written(directory), directory / "model.safetensors"
    if written is None:
        return False
    return sha256_of(weights) != written if weights.is_file() else (directory / f"{weights.name}.index.json").is_file()


def _weights_written(directory: Path) -> str | None:
    """The SHA-256 of the weights that openjepa wrote; None where there are none, or older ones."""
    config = directory / "config.json"
    return own_facts(read_json(config)).get(_WEIGHTS) if config.is_file() else None


def _kept(directory: Path, draft: Path) -> list[str]:
    """Keep what somebody has made of an export that ``draft`` is to replace; returns a sentence on it, if any."""
    if _has_other_weights(directory):
        said = f"the weights file in {directory} is another than openjepa wrote"
        try:
            return [f"{said}: what was there is kept in {moved_aside(directory, '-yours')}"]
        except OSError as error:
            raise InputError(f"{said}, and the folder cannot be moved aside: {error.strerror}") from error
    if _is_edited(directory):
        shutil.copyfile(directory / "README.md", draft / "README.md")
        return [f"{directory / 'README.md'} has been edited, and is left as it is"]
    return []
