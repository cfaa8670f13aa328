"""An image's round trip with diffusers, as its users write it: python diffusers_round_trip.py MODEL STEPS[:SPACING] IMAGE…

SPACING is diffusers' `timestep_spacing`: "leading", as by default, or "trailing". Encodes with DDIMInverseScheduler, decodes
with DDIMScheduler, all images at once, and prints the mean squared error per dimension, pixels in 0 … 1. This is the other
side of versus_diffusers.py.
"""

import sys

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DModel
from PIL import Image

folder, wanted, paths = sys.argv[1], sys.argv[2].split(":"), sys.argv[3:]
steps, spacing = int(wanted[0]), wanted[1] if len(wanted) > 1 else "leading"
unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
inverse = DDIMInverseScheduler.from_pretrained(
    folder, subfolder="scheduler", clip_sample=False, timestep_spacing=spacing
)
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False, timestep_spacing=spacing)
pixels = np.stack([np.asarray(Image.open(p).convert("L")) for p in paths])
images = torch.from_numpy(pixels).float()[:, None] / 127.5 - 1

x = images
with torch.no_grad():
    inverse.set_timesteps(steps)
    for t in inverse.timesteps:
        x = inverse.step(unet(x, t).sample, t, x).prev_sample
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
print(((x - images) / 2).square().mean().item())
