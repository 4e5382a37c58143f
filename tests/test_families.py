"""Any timm family, once, with random weights: frozen features, orientation grid, checkpoint."""

import numpy as np
import pytest
import torch
from conftest import network_inputs

from geophoto.checkpoints import read_checkpoint, write_checkpoint
from geophoto.network import GPSPredictionNet

FAMILIES = {
    "ResNet": "resnet18",
    "ConvNeXt": "convnext_atto",
    "ViT with registers (DINOv2)": "vit_small_patch14_reg4_dinov2",
    "ViT (DINOv3)": "vit_small_patch16_dinov3",
    "Swin": "swin_tiny_patch4_window7_224",
    "EfficientNet": "efficientnet_b0",
}
QUICK = ("ConvNeXt",)
