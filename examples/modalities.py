"""Other data than images: sound, series, tables, 13-band images, video, volumes; small and generated here.

python examples/modalities.py series        # or sound, table, bands, video, volumes, all

Every kind is a network, samples with labels that training does not see, and two views of one sample. kNN on
samples held out of training tells whether it learned something: beside the untrained network, with intervals.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import byol
from byol.train.config import KnnConfig


@dataclass
class Modality:
    samples: Callable[[int], tuple[Tensor, Tensor]]  # so many, and the class of each
    view: Callable[[Tensor], Tensor]  # one view of one sample
    network: Callable[[], nn.Module]


def layers(kind: int, channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Convolutions of one, two or three dimensions, each halving the sides, and an average."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[kind - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[kind - 1]
    parts: list[nn.Module] = []
    for width in widths:
        parts += [convolution(channels, width, 3, 2, 1), norm(width), nn.ReLU()]
        channels = width
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[kind - 1](1)
    return nn.Sequential(*parts, pool, nn.Flatten())


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape)


def rolled(x: Tensor, most: int, *axes: int) -> Tensor:
    """Moved by at most so many places along some axes."""
    places = [int(torch.randint(-most, most + 1, ())) for _ in axes]
    return x.roll(places, axes)


# Sound: log-mel spectrograms (1, 40, 100). A class is how the pitch moves; place, pitch and loudness are not.
def sounds(count: int) -> tuple[Tensor, Tensor]:
    y, t = torch.randint(6, (count,)), torch.linspace(0, 1, 100)
    slow, fast = 7 * torch.sin(12.6 * t), 7 * torch.sin(37.7 * t)
    moves = [t * 0, t * 14, -t * 14, slow, fast, 3.5 * (t * 4).floor()]
    pitch = uniform(8, 24, count, 1) + torch.stack(moves)[y]
    bins = torch.arange(40.0)[:, None]
    energy = sum(torch.exp(-((bins - pitch[:, None] - 9 * n) ** 2) / 2) / (n + 1) for n in range(2))
    x = torch.log(0.05 + energy * uniform(0.3, 1, count, 1, 1) + 0.3 * torch.rand(count, 40, 100))
    return x[:, None], y


def sound_view(x: Tensor) -> Tensor:
    """Another moment, pitch and loudness, and a masked stretch of time and of frequency (SpecAugment)."""
    x = rolled(rolled(x, 8, 2), 4, 1) + 0.3 * torch.randn(()) + 0.2 * torch.randn(x.shape)
    time, bin_ = int(torch.randint(85, ())), int(torch.randint(34, ()))
    x[:, :, time : time + 15] = x.mean()
    x[:, bin_ : bin_ + 6] = x.mean()
    return x


# Time series (3, 128): three sensors. A class is the shape of the waves; rate, phase and size are not.
def series(count: int) -> tuple[Tensor, Tensor]:
    y, t = torch.randint(5, (count,)), torch.linspace(0, 1, 128)
    phase = (uniform(2, 6, count, 1, 1) * t + torch.rand(count, 3, 1)) % 1
    saw, wave = 2 * phase - 1, torch.sin(6.283 * phase)
    shapes = torch.stack([wave, wave.sign(), saw, -saw, 2 * (phase < 0.15).float() - 0.3])
    x = shapes[y, torch.arange(count)] * uniform(0.5, 1.5, count, 3, 1)
    return x + 0.8 * torch.randn(count, 3, 128), y


def series_view(x: Tensor) -> Tensor:
    """Another stretch at another speed, other gains, and sometimes a sensor that fails."""
    length = int(torch.randint(64, 113, ()))
    start = int(torch.randint(128 - length, ()))
    x = F.interpolate(x[None, :, start : start + length], size=128, mode="linear")[0]
    gains = uniform(0.6, 1.4, 3, 1) * (torch.rand(3, 1) > 0.2)
    return x * gains + 0.3 * torch.randn(x.shape)


# Tables of 32 columns. A class is a place in 6 hidden causes; the columns mix them, and most is noise.
def table(count: int) -> tuple[Tensor, Tensor]:
    y, draws = torch.randint(8, (count,)), torch.Generator().manual_seed(1)
    centres = 1.5 * torch.randn(8, 6, generator=draws)
    mix = torch.randn(6, 32, generator=draws)
    causes = centres[y] + 0.5 * torch.randn(count, 6)
    return torch.tanh(causes @ mix / 2) + 1.2 * torch.randn(count, 32), y


def table_view(x: Tensor) -> Tensor:
    """Some of the columns replaced by noise of the columns' spread (as in SCARF)."""
    return torch.where(torch.rand(x.shape) < 0.3, 1.3 * torch.randn(x.shape), x)


# Satellite images of 13 bands (13, 32, 32). A class is a mix of materials; light, haze and place are not.
def bands(count: int) -> tuple[Tensor, Tensor]:
    y, draws = torch.randint(6, (count,)), torch.Generator().manual_seed(2)
    spectra = 0.3 + 0.5 * torch.rand(6, 2, 13, generator=draws)  # of two materials each
    coarse = F.interpolate(torch.randn(count, 1, 6, 6), size=32, mode="bilinear")
    share = torch.sigmoid(4 * coarse)
    x = share * spectra[y, 0, :, None, None] + (1 - share) * spectra[y, 1, :, None, None]
    x = x * uniform(0.6, 1.4, count, 13, 1, 1) + uniform(0, 0.8, count, 1, 1, 1)  # bands drift
    return x + 0.5 * torch.randn(count, 13, 32, 32), y


def bands_view(x: Tensor) -> Tensor:
    """From above there is no up: a turn, another place, other light and haze, bands that fail."""
    x = rolled(x.rot90(int(torch.randint(4, ())), (1, 2)), 8, 1, 2)
    light = uniform(0.6, 1.4, 13, 1, 1) * (torch.rand(13, 1, 1) > 0.1)
    return x * light + 0.4 * torch.rand(()) + 0.2 * torch.randn(x.shape)


# Video clips (1, 8, 24, 24). A class is how a spot moves; where, how large and how bright it is are not.
def videos(count: int) -> tuple[Tensor, Tensor]:
    y, t = torch.randint(6, (count,)), torch.linspace(-1, 1, 8)
    still, turn = t * 0, 3.14 * t
    ways = [(still, still), (t, still), (-t, still), (still, t), (still, -t), (turn.cos(), turn.sin())]
    way = torch.stack([torch.stack(one) for one in ways])[y]  # (N, 2, T)
    place = uniform(-4, 4, count, 2, 1) + 7 * way
    axis = torch.arange(24.0) - 11.5
    rows, columns = axis[:, None] - place[:, 0, :, None, None], axis - place[:, 1, :, None, None]
    x = torch.exp(-(rows**2 + columns**2) / uniform(3, 8, count, 1, 1, 1)) * uniform(1, 2, count, 1, 1, 1)
    return (x + 0.2 * torch.randn(x.shape))[:, None], y


def video_view(x: Tensor) -> Tensor:
    """Another place and contrast, and a frame that is lost; no flip, which would turn left into right."""
    x = rolled(x, 5, 2, 3) * uniform(0.7, 1.3) + 0.2 * torch.randn(x.shape)
    x[:, int(torch.randint(8, ()))] = 0
    return x


# Volumes (1, 16, 16, 16), as of a scanner. A class is the shape of a body; place, size and density are not.
def volumes(count: int) -> tuple[Tensor, Tensor]:
    y, axis = torch.randint(5, (count,)), torch.arange(16.0) - 7.5
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    at = (grid - uniform(-2, 2, count, 3, 1, 1, 1)) / uniform(3.2, 4.8, count, 1, 1, 1, 1)
    far, (a, b, c) = at.norm(dim=1), at.abs().unbind(1)
    thin = [torch.maximum(b, c), torch.maximum(a, c), torch.maximum(a, b)]  # from each axis
    cross = torch.stack(thin).amin(0) < 0.3
    shell, rod = (far - 0.9).abs() < 0.2, (thin[0] < 0.45) & (a < 1.6)
    bodies = [far < 1, at.abs().amax(1) < 0.8, shell, cross & (far < 1.5), rod]
    x = torch.stack(bodies)[y, torch.arange(count)] * uniform(0.8, 1.6, count, 1, 1, 1)
    return (x + 0.5 * torch.randn(x.shape))[:, None], y


def volume_view(x: Tensor) -> Tensor:
    """A flip and a turn, for a body has no side; another place, density and noise."""
    x = x.flip([axis for axis in (1, 2, 3) if torch.rand(()) < 0.5]) if torch.rand(()) < 0.9 else x
    x = rolled(x.permute(0, *(torch.randperm(3) + 1).tolist()), 2, 1, 2, 3)
    return x * uniform(0.7, 1.3) + 0.3 * torch.randn(x.shape)


def columns_network() -> nn.Module:
    parts: list[nn.Module] = []
    for fan_in, fan_out in ((32, 128), (128, 128)):
        parts += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()]
    return nn.Sequential(*parts)


MODALITIES = {
    "sound": Modality(sounds, sound_view, lambda: layers(2, 1, (16, 32, 64))),
    "series": Modality(series, series_view, lambda: layers(1, 3, (32, 64, 64))),
    "table": Modality(table, table_view, columns_network),
    "bands": Modality(bands, bands_view, lambda: layers(2, 13, (32, 64, 64))),
    "video": Modality(videos, video_view, lambda: layers(3, 1, (16, 32, 64))),
    "volumes": Modality(volumes, volume_view, lambda: layers(3, 1, (16, 32, 64))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=[*MODALITIES, "all"])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/modalities")
    options = parser.parse_args()
    for name in MODALITIES if options.kind == "all" else [options.kind]:
        kind = MODALITIES[name]
        torch.manual_seed(options.seed)
        x, y = kind.samples(options.samples)
        config = byol.TrainConfig(
            out=f"{options.out}/{name}", epochs=options.epochs, batch_size=64, hidden_layer="output",
            seed=options.seed, knn=KnnConfig(hold_out_share=0.3, times=2),
        )  # fmt: skip
        samples, network = byol.Samples(x, labels=y), kind.network()
        run = byol.pretrain(network, samples, config, views=lambda x, view=kind.view: (view(x), view(x)))
        encoder = byol.load_encoder(run.folder, net=kind.network())  # as another program would
        test = byol.Samples(*kind.samples(1000))  # new ones
        linear = byol.evaluate(encoder, train=samples, test=test, protocols="linear")["linear"]
        words = f"{run.verdict.state}; {run.verdict.knn} Linear {100 * linear.top1:.1f} %."
        print(f"{name:8} {tuple(x.shape[1:])}: {words}", flush=True)


if __name__ == "__main__":
    main()
