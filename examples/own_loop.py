"""I-JEPA's parts in a plain PyTorch loop. Put your own normalised images, (n, C, H, W), where the waves are."""

import math

import torch

from openjepa import IJEPA, EncoderConfig, IJEPAConfig, MultiBlockMasking, PredictorConfig, TokenGrid

torch.manual_seed(0)
angle, pitch, phase = torch.rand(3, 512, 1, 1)
y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
across = x * torch.cos(math.pi * angle) + y * torch.sin(math.pi * angle)
images = torch.sin(across * (0.3 + pitch) + 2 * math.pi * phase)[:, None]  # (512, 1, 32, 32)

grid = TokenGrid.of((32, 32), (4, 4))  # 8x8 tokens
masking = MultiBlockMasking(grid)
objective = IJEPA(
    EncoderConfig(signal=(32, 32), patch=(4, 4), channels=1, width=64, depth=2, heads=2),
    PredictorConfig(width=32, depth=2, heads=2),
    IJEPAConfig(momentum=(0.99, 1.0), target_norm="feature"),  # "layer" is the published one
)
optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.04)

steps, batch = 80, 32
for step in range(steps):
    chosen = torch.randperm(len(images))[:batch]
    masks = masking(chosen, step)  # a sample's masks depend on its number and the step alone
    output = objective(images[chosen], masks)
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    objective.after_step(step / steps)  # moves the target encoder
    if step % 10 == 9:
        print(f"step {step + 1:3}  loss {output.loss:.4f}")

encoder = objective.representation  # the target encoder: the one to keep
with torch.no_grad():
    features = encoder(images).mean(1)
print(f"features: {tuple(features.shape)}")
