"""An I-JEPA objective as a folder that other tools read: both encoders in Hugging Face layout, and the predictor.

``encoder/`` is the target encoder, which the paper evaluates; ``context_encoder/``, ``predictor.safetensors`` and
``ijepa.json`` keep what training on needs.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.interop import huggingface, mae, meta
from openjepa.interop.assembly import build_predictor, check_finite, join_ijepa
from openjepa.interop.folders import read_json, read_tensors, whole_folder, write_json, write_tensors
from openjepa.interop.image_processor import PreprocessingLike, assumed
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig


def import_checkpoint(
    path: str | Path, out: str | Path, *, heads: int | None = None, predictor_heads: int | None = None
) -> dict[str, Any]:
    """Turn a published checkpoint into a folder that other tools read; return what was found.

    Of I-JEPA's `.pth.tar` both encoders and the predictor are kept, of MAE's `.pth` the encoder
    (:mod:`openjepa.interop.mae`).

    Args:
        path: the checkpoint.
        out: the folder to make; it must not exist.
        heads, predictor_heads: see :func:`openjepa.interop.meta.read`.

    Raises:
        InputError: ``out`` exists, or the checkpoint cannot be used; nothing is written then.
    """
    content = meta.load_file(Path(path))
    if mae.is_mae(content):
        if predictor_heads is not None:
            raise InputError(f"{path} is an MAE checkpoint, which has no predictor: leave --predictor-heads out.")
        return mae.import_mae(content, Path(path), Path(out), heads=heads)
    with whole_folder(Path(out)) as draft:
        checkpoint = meta.read(path, heads=heads, predictor_heads=predictor_heads)
        config = checkpoint.encoder_config
        ijepa = checkpoint.to_ijepa(copy=False)
        facts = _facts(Path(path), checkpoint, ijepa, given=heads is not None)
        card = {
            "name": f"I-JEPA encoder from {Path(path).name}",
            "summary": f"The target encoder of the checkpoint {Path(path).name}, weights unchanged.",
            "notes": ["The checkpoint's own licence goes on to hold for these weights."],
        }
        if checkpoint.epoch is not None:
            card["epochs trained"] = checkpoint.epoch
        _write(ijepa, draft, preprocessing=assumed(config), card=card, facts=facts)
    return facts


def save_objective(
    ijepa: IJEPA,
    out: str | Path,
    *,
    preprocessing: PreprocessingLike | Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write an objective's three networks in the layout of :func:`import_checkpoint`; ``out`` must not exist.

    The objective's settings are kept beside them. Running statistics of standardised targets are state of a run and
    stay in its checkpoints.
    """
    with whole_folder(Path(out)) as draft:
        _write(ijepa, draft, preprocessing=preprocessing, card=card or {}, facts={})


def load_objective(directory: str | Path, config: IJEPAConfig | None = None) -> IJEPA:
    """The objective of a folder that :func:`import_checkpoint` or :func:`save_objective` has written.

    Args:
        directory: the folder.
        config: None takes the settings that the folder holds, and the published ones where it holds none.

    Raises:
        InputError: the folder is something else, incomplete or damaged, or ``config`` asks for other layers than the
            predictor predicts.
    """
    directory = Path(directory)
    if not (directory / "ijepa.json").is_file():
        raise InputError(f"{directory} is no imported checkpoint: it holds no ijepa.json.")
    content = read_json(directory / "ijepa.json")
    target = huggingface.load(directory / "encoder").encoder
    context = huggingface.load(directory / "context_encoder").encoder
    if context.config != target.config:
        raise InputError(f"{directory} holds encoders of different shape: {context.config} and {target.config}.")
    narrow = _predictor_config(content.get("predictor"), directory / "ijepa.json")
    state = read_tensors(directory / "predictor.safetensors")
    check_finite(state, str(directory / "predictor.safetensors"))
    where = str(directory / "ijepa.json")
    config = config or _ijepa_config(content.get("ijepa"), where)
    width = target.config.width
    predictor = build_predictor(
        narrow,
        state,
        str(directory / "predictor.safetensors"),
        grid=target.config.grid,
        inputs=width,
        outputs=width * config.layers,
    )
    try:
        return join_ijepa(context.train(), target.train(), predictor, config)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _write(ijepa: IJEPA, folder: Path, *, preprocessing, card: Mapping[str, Any], facts: dict[str, Any]) -> None:
    context = dict(card) | {"name": f"{card.get('name') or 'I-JEPA encoder'} (context encoder)"}
    context["summary"] = "The context encoder, kept to train on; for features use the target encoder in `../encoder`."
    context.pop("evaluation", None)
    for name, encoder, text in (
        ("encoder", ijepa.target_encoder, card),
        ("context_encoder", ijepa.context_encoder, context),
    ):
        (folder / name).mkdir()
        huggingface.write_encoder(encoder, folder / name, preprocessing=preprocessing, card=text)
    write_tensors(folder / "predictor.safetensors", ijepa.predictor.state_dict())
    configs = {
        "encoder": dataclasses.asdict(ijepa.target_encoder.config),
        "predictor": dataclasses.asdict(ijepa.predictor.config),
        "ijepa": dataclasses.asdict(ijepa.config),
    }
    write_json(folder / "ijepa.json", configs | {"source": facts})


def _facts(path: Path, checkpoint: meta.ReferenceCheckpoint, ijepa: IJEPA, *, given: bool) -> dict[str, Any]:
    encoder: EncoderConfig = checkpoint.encoder_config
    return {
        "checkpoint": path.name,
        "encoder": dataclasses.asdict(encoder),
        "predictor": dataclasses.asdict(checkpoint.predictor_config),
        "grid": list(encoder.grid.shape),
        "heads": "given" if given else "the published number for this width",
        "parameters": {
            "encoder": sum(p.numel() for p in ijepa.target_encoder.parameters()),
            "predictor": sum(p.numel() for p in ijepa.predictor.parameters()),
        },
        # JSON knows no infinities, and a run that has blown up has left some.
        "training": {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in checkpoint.facts.items()
        },
        "ignored": list(checkpoint.ignored),
    }


def _ijepa_config(content: object, where: str) -> IJEPAConfig:
    """The objective's settings; folders of before they were kept have none, and get the published ones."""
    if content is None:
        return IJEPAConfig()
    if not isinstance(content, dict) or not set(content) <= {field.name for field in dataclasses.fields(IJEPAConfig)}:
        raise InputError(f"`ijepa` in {where} should hold the settings of IJEPAConfig and is {content!r}.")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    try:
        return IJEPAConfig(**values)
    except (TypeError, ValueError) as error:
        raise InputError(f"`ijepa` in {where} cannot be used: {error}") from error


def _predictor_config(content: object, where: Path) -> PredictorConfig:
    kinds = {field.name: field.default for field in dataclasses.fields(PredictorConfig)}
    if not isinstance(content, dict) or set(content) != set(kinds):
        raise InputError(f"`predictor` in {where} should hold {', '.join(kinds)} and is {content!r}.")
    for name, default in kinds.items():
        if not isinstance(content[name], type(default)):
            raise InputError(f"`predictor.{name}` in {where} is {content[name]!r}; a value like {default!r} is needed.")
    return PredictorConfig(**content)
