"""The README.md of an exported encoder: what it is, how its input is prepared, how to load it, what was measured."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openjepa.encoder import EncoderConfig

# The hub's tag for each method.
_TAGS = {"ijepa": "i-jepa", "mae": "mae", "denoising": "denoising-autoencoder"}


def model_card(config: EncoderConfig, preprocessing: Mapping[str, Any], card: Mapping[str, Any], obstacle: str) -> str:
    """The text of a model card; ``obstacle`` says why transformers cannot hold this architecture, or is empty.

    ``card`` may hold ``name``, ``method`` (ijepa, mae or denoising), ``license``, ``summary`` (a paragraph),
    ``evaluation`` (rows as in evaluation.json, each perhaps with the ``data``, ``train_images``, ``test_images``,
    ``folds`` and ``classes`` that it was measured on) and ``notes`` (sentences); anything else that is a plain value is
    listed as a fact.
    """
    title = str(card.get("name") or "I-JEPA encoder")
    parts = [
        _front_matter(card, obstacle),
        f"# {title}",
        str(card.get("summary") or "").strip(),
        _architecture(config, card),
        _preprocessing(preprocessing, obstacle),
        _loading(obstacle),
        _measured(card.get("evaluation") or ()),
        "\n".join(f"- {note}" for note in card.get("notes") or ()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(card: Mapping[str, Any], obstacle: str) -> str:
    lines = ["---", f"library_name: {'openjepa' if obstacle else 'transformers'}"]
    if card.get("license"):
        lines.append(f"license: {json.dumps(str(card['license']))}")
    lines += ["pipeline_tag: image-feature-extraction"] if not obstacle else []
    method = _TAGS[str(card.get("method") or "ijepa")]
    return "\n".join([*lines, "tags:", "- self-supervised-learning", f"- {method}", "- openjepa", "---"])


def _architecture(config: EncoderConfig, card: Mapping[str, Any]) -> str:
    known = {"name", "method", "license", "summary", "evaluation", "notes"}
    classes = "a class token before them" if config.class_token else "no class token"
    facts = {
        "input": f"{_times(config.signal)}, {config.channels} channel{'s' * (config.channels != 1)}",
        "patch": _times(config.patch),
        "tokens": f"{_times(config.grid.shape)} = {config.grid.size}, {classes}",
        "width, depth, heads": f"{config.width}, {config.depth}, {config.heads}",
        "MLP width": int(config.width * config.mlp_ratio),
        "LayerNorm epsilon": config.norm_eps,
        "positions": "fixed sine-cosine" if config.positions == "sincos" else "a learned table",
    }
    facts |= {key: value for key, value in card.items() if key not in known and isinstance(value, str | int | float)}
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items())
    text = "A vision transformer; its output is one feature vector per patch."
    return f"## The network\n\n{text}\n\n| | |\n|---|---|\n{rows}"


def _preprocessing(facts: Mapping[str, Any], obstacle: str) -> str:
    mean, std = (", ".join(f"{value:.6g}" for value in facts[name]) for name in ("mean", "std"))
    text = (
        f"## The input\n\nResize (bicubic) until the image covers {_times(facts['size'])}, cut out the centre, "
        f"scale to [0, 1], subtract the mean ({mean}) and divide by the standard deviation ({std})."
    )
    if facts.get("assumed"):
        text += " The source does not say how its input was prepared: these numbers are an assumption."
    if not obstacle:
        text += (
            " The image processor of transformers has no such step for an oblong input: it stretches an image of "
            "another shape instead."
            if len(set(facts["size"])) > 1
            else " The image processor of transformers gives the same tensors for square images; for others its cut "
            "may lie half a pixel aside."
        )
        if facts["channels"] == 1:
            text += " Before version 5 it takes grey images as arrays of shape (height, width, 1) only."
    return text


def _loading(obstacle: str) -> str:
    ours = (
        "```python\nimport openjepa\n\nencoder = openjepa.load(DIRECTORY)\n"
        "features = encoder.encode(images)  # (n, width): the mean over tokens\n```"
    )
    if obstacle:
        return f"## Loading\n\ntransformers cannot hold this architecture ({obstacle}), openjepa can:\n\n{ours}"
    theirs = (
        "```python\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
        "processor = AutoImageProcessor.from_pretrained(DIRECTORY)\nmodel = AutoModel.from_pretrained(DIRECTORY)\n"
        'tokens = model(**processor(image, return_tensors="pt")).last_hidden_state  # (1, tokens, width)\n'
        "features = tokens.mean(1)\n```"
    )
    return (
        f"## Loading\n\nWith transformers (4.48 or later):\n\n{theirs}\n\nWith openjepa:\n\n{ours}\n\nBoth give the "
        "same features at the native size. At other sizes openjepa computes fixed positions anew, and transformers "
        "interpolates the stored table (`interpolate_pos_encoding=True`): the features differ a little."
    )


def _measured(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    about = "".join(f"- {line}\n" for line in dict.fromkeys(_data(row) for row in rows if row.get("data")))
    head = "| task | features | readout | measure | value | 95% interval |\n|---|---|---|---|---|---|\n"
    return "## Measured\n\n" + (about and f"{about}\n") + head + "\n".join(_row(row) for row in rows)


def _data(row: Mapping[str, Any]) -> str:
    """On what a row was measured, in a line that is the same for all rows of a kind of task."""
    folds = row.get("folds")
    learn = f"images to learn on in each of {folds} folds" if folds else "images to learn on"
    test = "to test on in all" if folds else "to test on"
    counts = (("train_images", learn), ("test_images", test), ("classes", "classes"))
    told = [f"{row[name]:,} {of}" for name, of in counts if row.get(name)]
    return f"{_task(row).partition(':')[0]}: {', '.join([_cell(row['data']), *told])}"


def _row(row: Mapping[str, Any]) -> str:
    value, low, high = (row.get(name) for name in ("value", "low", "high"))
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    shown = "" if value is None else f"{value:.3f}"
    names = " | ".join(_cell(row.get(name, "")) for name in ("features", "evaluator", "metric"))
    return f"| {_cell(_task(row))} | {names} | {shown} | {interval} |"


def _task(row: Mapping[str, Any]) -> str:
    return str(row.get("task", "classes"))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _times(extents: Sequence[int]) -> str:
    return "x".join(str(extent) for extent in extents)
