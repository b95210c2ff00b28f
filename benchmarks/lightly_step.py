"""The peer: one I-JEPA training step made of lightly's modules, put together as in lightly's documentation.

Where lightly leaves a choice, the faster one is taken: fused AdamW, EMA by its ``update_momentum`` (multi-tensor), no
gradient norm, no number read back in the loop.
"""

import copy

import torch
import torch.nn.functional as F
from lightly.models import utils
from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.masks import Masks


class LightlyStep:
    """Forward, backward, AdamW and EMA of lightly's I-JEPA with the same shapes as ours.

    Args:
        encoder, predictor: the architecture.
        autocast: compute under bfloat16 autocast, else in float32.
        momentum: of the EMA.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        predictor: PredictorConfig,
        *,
        device: torch.device,
        autocast: bool,
        momentum: float,
    ) -> None:
        vit = VisionTransformer(
            img_size=encoder.signal[0],
            patch_size=encoder.patch[0],
            in_chans=encoder.channels,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            num_classes=0,
            class_token=False,
            global_pool="",
        )
        self.encoder = MaskedVisionTransformerTIMM(vit).to(device)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=encoder.grid.size,
            depth=predictor.depth,
            mlp_dim=encoder.width,
            predictor_embed_dim=predictor.width,
            num_heads=predictor.heads,
        ).to(device)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        parameters = [*self.encoder.parameters(), *self.predictor.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.04, fused=True)
        self.criterion = nn.SmoothL1Loss()
        self.device, self.autocast, self.momentum = device, autocast, momentum

    def __call__(self, x: Tensor, masks: Masks) -> Tensor:
        """Take one step; returns the loss, still on the device."""
        targets = list(masks.targets.unbind(1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                features = self.target.encode(x)
                wanted = utils.apply_masks(F.layer_norm(features, features.shape[-1:]), targets)
            context = self.encoder.encode(x, idx_keep=masks.context)
            loss = self.criterion(self.predictor(context, masks.context, targets), wanted)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            utils.update_momentum(self.encoder, self.target, m=self.momentum)
        return loss.detach()
