"""Pictures of the run: each image, what was seen and predicted of it, and what the encoder makes of it."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Num, UInt8

from openjepa.report.formats import escape, percent
from openjepa.report.pictures import (
    TARGET_COLOURS,
    VEIL,
    as_rgb,
    cell_size,
    feature_colours,
    feature_length,
    paint_masks,
    png_uri,
    principal_components,
    resized,
    upsampled,
)
from openjepa.report.run_folder import Pictures, RunFolder, predicts_features

_MOST_IMAGES = 12
_MOST_BYTES = 2_200_000  # with the rest of the page this keeps it under 3 MB


def gallery_section(run: RunFolder) -> str:
    """The section's HTML; a run without pictures says so."""
    heading = '<h2 id="pictures">What does it see?</h2>'
    pictures = run.pictures
    if pictures is None:
        return f"{heading}<p>The run holds no pictures.npz that can be drawn, so there is nothing to show here.</p>"
    shown, columns, quiet = _shown(pictures)
    header = f'<div class="columns">{"".join(f"<span>{column}</span>" for column in columns)}</div>'
    cards = "".join(f'<figure class="card">{header}<div class="panels">{card}</div></figure>' for card in shown)
    first = (
        f" The first {len(shown)} of {len(pictures.images)} pictures are shown."
        if len(shown) < len(pictures.images)
        else ""
    )
    explained = _explained(pictures, latent=predicts_features(run))
    return f'{heading}{explained}<div class="gallery">{cards}</div><p class="quiet">{quiet}{first}</p>'


def _shown(pictures: Pictures) -> tuple[list[str], list[str], str]:
    """As many cards as fit the page's size, the titles of their panels, and what must be said about them."""
    columns, said = ["image"], ""
    if pictures.context is not None and pictures.targets is not None:
        columns.append("masks")
    else:
        said += "The run holds no masks of these pictures. "
    colours = None
    if pictures.features is None:
        said += "The run holds no features of these pictures. "
    elif not np.isfinite(pictures.features).all():
        said += "The features hold values that are not finite, so they are not drawn. "
    else:
        projected, shares = principal_components(pictures.features)
        length = feature_length(pictures.features)
        colours = feature_colours(projected, length)
        columns.append("features")
        said += (
            f"The three components hold {percent(shares.sum())} of the variance of these tokens' features "
            f"({', '.join(percent(share) for share in shares)}){_apart(pictures.features, length)}. "
        )
    channels = pictures.images.shape[-1]
    if channels not in (1, 3):
        drawn = "the first three are" if channels > 3 else "the first is"
        said += f"The images have {channels} channels; {drawn} drawn. "
    cards, size = [], 0
    for card in _cards(pictures, colours):
        size += len(card)
        if cards and (size > _MOST_BYTES or len(cards) == _MOST_IMAGES):
            break
        cards.append(card)
    return cards, columns, said


def _apart(features: Num[np.ndarray, "n N D"], length: float) -> str:
    """By how much tokens differ beside what they have in common."""
    rows = features.reshape(-1, features.shape[-1]).astype(np.float64)
    return (
        f"; tokens lie {percent(np.sqrt(rows.var(axis=0).sum()) / length)} of their length from their mean"
        if length
        else ""
    )


def _cards(pictures: Pictures, colours: UInt8[np.ndarray, "n N 3"] | None) -> Iterator[str]:
    cell = cell_size(pictures.grid, pictures.patch)
    size = (pictures.grid[0] * cell[0], pictures.grid[1] * cell[1])
    for i, image in enumerate(pictures.images):
        large = resized(as_rgb(image), size)
        crisp = "crisp" if size[0] >= 2 * image.shape[0] else ""
        panels = [_image(large, f"Picture {i + 1} of the run", crisp)]
        if pictures.context is not None and pictures.targets is not None:
            context = pictures.context[i]
            if pictures.context_valid is not None:
                context = context[pictures.context_valid[i]]
            painted = paint_masks(large, pictures.grid, context, pictures.targets[i])
            tokens, blocks = pictures.grid[0] * pictures.grid[1], len(pictures.targets[i])
            seen = len(np.unique(context))
            alt = f"Picture {i + 1}: {seen} of {tokens} tokens seen, {blocks} target blocks outlined"
            panels.append(_image(painted, alt, crisp))
        if colours is not None:
            map_ = upsampled(colours[i], pictures.grid, cell)
            panels.append(_image(map_, f"Picture {i + 1}: features of its tokens as colours", "crisp"))
        yield "".join(panels)


def _image(pixels: UInt8[np.ndarray, "H W 3"], alt: str, crisp: str) -> str:
    height, width = pixels.shape[:2]
    return f'<img src="{png_uri(pixels)}" alt="{escape(alt)}" width="{width}" height="{height}" class="{crisp}">'


def _explained(pictures: Pictures, *, latent: bool) -> str:
    text, told = "", "features" if latent else "pixels"
    if pictures.context is not None and pictures.targets is not None:
        text += (
            "<p><b>Masks:</b> the encoder is given the bright part only. From it, the predictor must predict the "
            f"{told} of every outlined block. What is dark is neither seen nor predicted.</p>"
        )
    if pictures.features is not None:
        text += (
            "<p><b>Features:</b> the trained encoder's features of the whole image, reduced to three numbers a token "
            "by a principal component analysis over all pictured tokens, and shown as red, green and blue on one "
            "scale: the strongest varies most, and where all features are nearly alike, beside their length, all stays "
            "grey. Like colours mean like features. Good signs: objects part from their background, and the same "
            "things share a colour across pictures. Warnings: grey pictures (all features alike: a collapse), shades "
            "of one hue and its opposite alone (one direction in use), or the same gradient on every picture whatever "
            "it shows (then the features hold position, not content).</p>"
        )
    if pictures.context is None or pictures.targets is None:
        return text
    blocks = min(pictures.targets.shape[1], len(TARGET_COLOURS))
    swatches = "".join(
        f'<li><i style="border:3px solid rgb{colour}"></i>target block {number}</li>'
        for number, colour in enumerate(TARGET_COLOURS[:blocks], 1)
    )
    unused = f'<li><i style="background:rgb{VEIL};border:1px solid var(--muted)"></i>neither seen nor predicted</li>'
    return f'{text}<ul class="key">{swatches}{unused}</ul>'
