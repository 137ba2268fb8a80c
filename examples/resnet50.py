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
    torch.manual_seed(0)
    net = resnet50(weights=None)
    learner = byol.BYOL(net, image_size=args.image_size, hidden_layer="avgpool")
    optimizer = byol.LARS(byol.parameter_groups(learner, weight_decay=1.5e-6), lr=0.2, momentum=0.9)

    photos = byol.open_images(args.photos)
    print(photos.description)
    for step in range(args.steps):
        rows = torch.randint(len(photos), (args.batch_size,)).tolist()
        # Photographs have many sizes, so each is cut alone; a batch of equal sizes is one call.
        views = [learner.draw_views(photograph(photos, row)) for row in rows]
        loss = learner(torch.cat([view1 for view1, _ in views]), torch.cat([view2 for _, view2 in views]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_target(tau=0.996)
        print(f"step {step + 1}: loss {loss.item():.3f}")

    # The network was trained in place: save it, and use it like any ResNet-50.
    torch.save(net.state_dict(), args.out)
    features = torch.cat([learner.embed(photograph(photos, row)) for row in range(min(2, len(photos)))])
    print(f"saved {args.out}; features of {len(features)} photographs: {tuple(features.shape)}")


def photograph(photos: byol.Images, row: int) -> torch.Tensor:
    """One photograph as a batch of one, uint8 (1, 3, H, W)."""
    return torch.from_numpy(photos.array(row)).permute(2, 0, 1)[None]


if __name__ == "__main__":
    main()
