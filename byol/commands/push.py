"""`byol push`"""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from byol.encoders.load import folder_of, load_encoder
from byol.errors import show
from byol.exports.hub import CARD, push as upload
from byol.settings import parse


@dataclass(frozen=True)
class Push:
    run: tyro.conf.Positional[str]
    """Run folder, encoder.safetensors, official .pkl, or torchvision:NAME or timm:NAME."""
    repository: tyro.conf.Positional[str]
    """Where to: user/name. It is made if it is not there."""
    public: bool = False
    """Let everybody see a repository that is made. By default only you do."""
    model: str | None = None
    """The torchvision or timm model that a network of your own is, such as resnet50."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library has downloaded."""


def push(arguments: Sequence[str]) -> int:
    """Upload an encoder with its model card to the Hugging Face Hub."""
    description = (
        "Upload the encoder with its model card to the Hugging Face Hub, by the token of `hf auth login` or "
        "of HF_TOKEN."
    )
    command = parse(Push, arguments, prog="byol push", description=description, switches=True)
    encoder = load_encoder(command.run, net=command.encoder, weights=command.weights)
    done = upload(
        encoder, command.repository, public=command.public, run=folder_of(command.run), model=command.model
    )
    show(f"uploaded   {done.address}")
    if done.kept_card:
        show(f"kept       {CARD}, which stood there; remove it there to have a new one")
    show(f"checked    {done.check.tool} gives the same {done.check.what}")
    name = f'"hf-hub:{command.repository}"'
    if done.check.tool == "timm":
        show(f"load       timm.create_model({name}, pretrained=True, num_classes=0)")
    else:
        show("note       neither timm nor transformers has this network: it is for byol alone")
        download = f'huggingface_hub.snapshot_download("{command.repository}")'
        show(f"load       byol.load_encoder({download})")
    return 0
