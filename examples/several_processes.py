"""BYOL in a loop of your own under torchrun: every process brings its part of the batch.

    torchrun --nproc-per-node=2 examples/several_processes.py PHOTOS [--steps 10] [--out resnet18.pth]

One process for each GPU; on a machine without, for a part of its cores. `byol train` under torchrun does all
of this by itself.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

import byol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--out", type=Path, default=Path("resnet18.pth"))
    args = parser.parse_args()

    gpus = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    distributed.init_process_group("nccl" if gpus else "gloo", device_id=device if gpus else None)
    rank, size = distributed.get_rank(), distributed.get_world_size()

    net = resnet18()
    # In a process group the learner's BatchNorm takes the statistics of all processes' images by itself.
    learner = byol.BYOL(net, image_size=64).to(device)
    # Starts from rank 0's weights and averages the gradients. The target has none: it follows on its own.
    parallel = DistributedDataParallel(learner)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-4)

    photos = byol.open_images(args.photos)
    order = torch.Generator().manual_seed(0)  # the same in all processes
    torch.manual_seed(rank)  # the views are not
    for step in range(args.steps):
        batch = torch.randint(len(photos), (args.batch_size,), generator=order)
        own = [
            torch.from_numpy(photos.array(row)).permute(2, 0, 1)[None] for row in batch[rank::size].tolist()
        ]
        pairs = [learner.draw_views(photograph.to(device)) for photograph in own]
        loss = parallel(*(torch.cat(views) for views in zip(*pairs, strict=True)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_target(tau=0.99)
        distributed.all_reduce(mean := loss.detach() / size)
        if rank == 0:
            print(f"step {step + 1}: loss {mean.item():.3f}", flush=True)
    if rank == 0:
        torch.save(net.state_dict(), args.out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
