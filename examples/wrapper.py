"""BYOL around any network, in ten lines: the shortest loop there is.

python examples/wrapper.py PHOTOS
"""

import sys

import torch
from torchvision.models import resnet18

import byol

photos = byol.open_images(sys.argv[1])
learner = byol.BYOL(resnet18(), image_size=64)
optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-4)
for step in range(10):
    rows = torch.randint(len(photos), (16,)).tolist()  # at random: (1, 3, H, W) each, for they differ in size
    one = [learner.draw_views(torch.from_numpy(photos.array(row)).permute(2, 0, 1)[None]) for row in rows]
    loss = learner(*(torch.cat(views) for views in zip(*one, strict=True)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    learner.update_target(tau=0.99)
    print(f"step {step + 1}: loss {loss.item():.3f}")
