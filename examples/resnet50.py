"""BYOL on a ResNet-50 in a loop of your own, in one page.

    python examples/resnet50.py PHOTOS [--steps 5] [--batch-size 4] [--image-size 224] [--out improved.pth]

PHOTOS is a folder of pictures, nested to any depth; no labels are needed.
"""

import argparse
from pathlib import Path

import torch
from torchvision.models import resnet50

import byol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path("improved.pth"))
    args = parser.parse_args()

    # Any network will do: give the image size and the layer whose output is the representation.
    net = resnet50(weights=None)
    learner = byol.BYOL(net, image_size=args.image_size, hidden_layer="avgpool")
    optimizer = byol.LARS(byol.parameter_groups(learner, weight_decay=1.5e-6), lr=0.2, momentum=0.9)

    photos = byol.open_images(args.photos)
    print(photos.description)
    generator = torch.Generator().manual_seed(0)
    for step in range(args.steps):
        rows = torch.randint(len(photos), (args.batch_size,), generator=generator)
        images = square_batch(photos, rows.tolist(), side=args.image_size * 8 // 7)
        loss = learner(images)  # draws two views of each image
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_target(tau=0.996)
        print(f"step {step + 1}: loss {loss.item():.3f}")

    # The network was trained in place: save it, and use it like any ResNet-50.
    torch.save(net.state_dict(), args.out)
    features = learner.embed(square_batch(photos, list(range(min(2, len(photos)))), side=args.image_size))
    print(f"saved {args.out}; features of {len(features)} photographs: {tuple(features.shape)}")


def square_batch(photos: "byol.Images", rows: list[int], side: int) -> torch.Tensor:
    """Photographs of many sizes as one uint8 batch (B, 3, side, side)."""
    return torch.stack([torch.from_numpy(byol.fit(photos.array(row), side)).permute(2, 0, 1) for row in rows])


if __name__ == "__main__":
    main()
