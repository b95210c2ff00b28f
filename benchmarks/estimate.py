"""An estimate, of which no row was measured: what the published ViT-H/14 costs to train on ImageNet, on GPUs by name.

    python benchmarks/estimate.py

Counted: FLOPs of a step (the teacher's forward pass, context encoder and predictor forward and backward; recomputed
activations are a second forward pass of the latter two) with as many tokens as the published sampler leaves on average
in the images that a GPU takes at a time, which share their masks' sizes; and the weights. Assumed, all of it:

- bfloat16 matrix products without sparsity peak at what the makers' data sheets say (PEAKS), and a step reaches
  UTILISATION of that. Measured were smaller networks: on one H100 ViT-S/16 reaches 13% of the data sheet's peak and
  ViT-B/16 27% (17 and 35% of what its large products make; results/gpu-h100.json, batches of 256), and on two
  CPU cores our step 21 to 66% of their products' peak in bfloat16 (README.md). Wider networks reach more; ViT-H/14 was
  not measured.
- Eight GPUs of one machine are eight times as fast as one, and the loader keeps up with all of them. Measured on an
  H100 with 16 slow cores it did not (README.md, "On a GPU").
- ImageNet-1k is 1,281,167 images for 300 epochs (the paper's), ImageNet-22k 14,197,122 for 66, 2.4 times as many
  steps in all.
- Memory of one GPU of the eight, 16 images on each at a time: weights, gradients and Adam's two moments of what is
  trained (16 bytes a weight) and the teacher (4), unsharded, and bfloat16 copies of both (2 each); activations of 32
  bytes a token, feature and block (bfloat16: inputs of both norms, of queries, keys and values, of both projections and
  of GELU), or 2 if recomputed.
- Energy is the data sheet's board power for the time; nothing else that a computer needs.
"""

import torch

from openjepa.costing import flops
from openjepa.experiment import Experiment
from openjepa.masks import Masks
from openjepa.objectives.base import Objective
from openjepa.recipes.published import published

# bfloat16 TFLOP/s, memory in GB, watts, from the makers' data sheets.
PEAKS = {
    "RTX 4090": (165, 24, 450),
    "A100 SXM 80 GB": (312, 80, 400),
    "L40S": (362, 48, 350),
    "H100 SXM": (989, 80, 700),
    "H200 SXM": (989, 141, 700),
    "B200": (2250, 192, 1000),
}
UTILISATION = (0.35, 0.5)
PASSES = {"ImageNet-1k, 300 epochs": 1_281_167 * 300, "ImageNet-22k, 66 epochs": 14_197_122 * 66}
IMAGES = 16
PUBLISHED = 128  # on each of 16 GPUs at a time


def counts(made: Experiment, objective: Objective, images: int) -> tuple[int, int, dict[str, int]]:
    """Tokens seen and asked that the sampler leaves so many images on average, and the FLOPs of an image with them."""
    masking = made.masking()
    drawn = [masking(torch.arange(images) + images * number, number) for number in range(50)]
    seen = round(sum(masks.context.shape[1] for masks in drawn) / len(drawn))
    asked = round(sum(masks.targets.shape[2] for masks in drawn) / len(drawn))
    masks = Masks(torch.zeros(2, seen, dtype=torch.int64), torch.zeros(2, made.masks.targets, asked, dtype=torch.int64))
    return seen, asked, flops(objective, made, masks)


def main() -> None:
    """Print the assumptions in numbers, and the tables."""
    made = published("published-h14")
    with torch.device("meta"):
        objective = made.objective()
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    teacher = sum(p.numel() for p in objective.representation.parameters())
    grid = made.encoder.grid.size
    seen, asked, counted = counts(made, objective, IMAGES)
    step, again = counted["step"], (counted["step"] - counted["forward"]) / 3
    blocks = made.masks.targets * made.predictor.depth * (seen + asked) * made.predictor.width
    features = made.encoder.depth * seen * made.encoder.width + blocks
    state = 18 * trained + 6 * teacher
    whole, short = (state + IMAGES * per * features for per in (32, 2))
    print(
        f"ViT-H/14 at 224 px: {grid} tokens, {seen} seen, {made.masks.targets} x {asked} asked; "
        f"{teacher / 1e6:.0f} million weights in an encoder, {(trained - teacher) / 1e6:.0f} in the predictor.\n"
        f"A step: {step / 1e12:.2f} TFLOP an image, {(step + again) / 1e12:.2f} with recomputed "
        f"activations; memory with {IMAGES} images: {whole / 1e9:.0f} GB, {short / 1e9:.0f} GB recomputed.\n"
    )
    columns = [f"{name}: hours on 8 (kWh)" for name in PASSES]
    print(
        f"| **estimate** | fits in memory | images/s, one GPU | {' | '.join(columns)} |\n|{'---|' * (3 + len(PASSES))}"
    )
    for gpu, (tera, gigabytes, watts) in PEAKS.items():
        fits = next((name for name, need in (("yes", whole), ("recomputed", short)) if need < 0.9e9 * gigabytes), "no")
        cost = step + (again if fits != "yes" else 0)
        rates = [share * tera * 1e12 / cost for share in UTILISATION]
        cells = [f"{rates[0]:,.0f} to {rates[1]:,.0f}"]
        for images in PASSES.values():
            hours = [images / (8 * rate) / 3600 for rate in reversed(rates)]
            energy = [8 * watts * spent / 1000 for spent in hours]
            cells.append(f"{hours[0]:,.0f} to {hours[1]:,.0f} ({energy[0]:,.0f} to {energy[1]:,.0f})")
        print(f"| {gpu} | {fits} | {' | '.join(cells)} |")
    seen, asked, counted = counts(made, objective, PUBLISHED)
    cost = PASSES["ImageNet-1k, 300 epochs"] * counted["step"]
    spent = [cost / (16 * share * 312e12) / 3600 for share in UTILISATION]
    print(
        f"\nThe paper's run, 300 epochs on 16 A100, {PUBLISHED} images on each at a time ({seen} seen, "
        f"{made.masks.targets} x {asked} asked, {counted['step'] / 1e12:.2f} TFLOP): {spent[1]:.0f} to {spent[0]:.0f} "
        f"hours; it says under 72."
    )


if __name__ == "__main__":
    main()
