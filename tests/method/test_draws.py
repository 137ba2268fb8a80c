import numpy as np
import pytest
import torch

from byol.method.draws import Stream, seed_of, uniforms

SPLITMIX64_FROM_0 = [
    0xE220A8397B1DCDAF,
    0x6E789E6AA1B965F4,
    0x06C45D188009454F,
    0xF88BB8A8724C81EC,
    0x1B39896A51A8749B,
]
MANY = torch.arange(20_000)


def test_numbers_of_the_empty_key_are_those_of_splitmix64():
    expected = [(value >> 11) * 2.0**-53 for value in SPLITMIX64_FROM_0]
    assert uniforms((), 5)[0].tolist() == expected


def test_same_key_gives_same_numbers_whatever_came_before():
    first = uniforms((1, MANY, 2), 3)
    torch.rand(7)
    uniforms((5, 5), 100)
    torch.testing.assert_close(uniforms((1, MANY, 2), 3), first, rtol=0, atol=0)


def test_row_depends_on_its_own_key_and_not_on_its_batch():
    together = uniforms((1, torch.tensor([10, 20, 30]), 2), 4)
    for row, key in enumerate((10, 20, 30)):
        assert uniforms((1, key, 2), 4)[0].tolist() == together[row].tolist()


def test_asking_for_more_numbers_keeps_the_first_ones():
    torch.testing.assert_close(
        uniforms((1, MANY[:50]), 9)[:, :4], uniforms((1, MANY[:50]), 4), rtol=0, atol=0
    )


def test_torch_random_state_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = uniforms((3, MANY[:10]), 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.testing.assert_close(uniforms((3, MANY[:10]), 2), first, rtol=0, atol=0)


def test_numbers_are_float64_in_the_half_open_unit_interval():
    numbers = uniforms((0, MANY), 10)
    assert numbers.dtype == torch.float64
    assert numbers.shape == (20_000, 10)
    assert numbers.min() >= 0
    assert numbers.max() < 1


@pytest.mark.parametrize(
    "key", [(0, MANY), (MANY, 0), (0, 0, MANY, 1, 2), (-1, MANY), (2**62, MANY), (MANY * 4096, 3)]
)
def test_numbers_are_uniform(key):
    numbers = uniforms(key, 4)
    assert numbers.mean(dim=0).tolist() == pytest.approx([1 / 2] * 4, abs=0.008)  # 4 standard errors
    assert numbers.var(dim=0).tolist() == pytest.approx([1 / 12] * 4, abs=0.0025)
    for column in numbers.T:  # Kolmogorov-Smirnov, 1 in 10,000
        ranks = torch.arange(1, 20_001) / 20_000
        assert (column.sort().values - ranks).abs().max() * 20_000**0.5 < 2.23
    counts = np.histogram(numbers.numpy(), bins=256, range=(0, 1))[0]
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi_squared - 255) < 4 * (2 * 255) ** 0.5


@pytest.mark.parametrize(
    ("key", "neighbour"),
    [
        ((0, MANY), (0, MANY + 1)),
        ((0, MANY), (1, MANY)),
        ((0, 0, MANY, 0, 1), (0, 0, MANY, 1, 1)),
        ((0, 0, MANY, 0, 1), (0, 0, MANY, 0, 2)),
        ((0, MANY), (MANY, 0)),
        ((7, MANY), (-7, MANY)),
        ((0, MANY), (0, MANY, 0)),
    ],
)
def test_neighbouring_keys_are_uncorrelated_and_different(key, neighbour):
    one, other = uniforms(key, 3).numpy(), uniforms(neighbour, 3).numpy()
    assert (one != other).mean() > 0.999
    correlations = np.corrcoef(one.T, other.T)
    assert np.abs(correlations - np.eye(6)).max() < 4.5 / 20_000**0.5  # also between the columns of one key


def test_order_of_the_key_matters():
    assert uniforms((1, 2), 1).item() != uniforms((2, 1), 1).item()


def test_seeds_are_distinct_and_serve_torch():
    seeds = {seed_of(7, epoch) for epoch in range(2000)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert torch.Generator().manual_seed(max(seeds)).initial_seed() == max(seeds)


def test_no_two_streams_share_their_numbers():
    """The order of images and dropout once did. Also with parts behind: epochs, steps, micro-batches."""
    keys = [
        (7, stream, *rest)
        for stream in Stream
        for rest in [(), *((n,) for n in range(9)), (0, 0), (0, 1), (1, 0)]
    ]
    assert len(set(Stream)) == len(Stream.__members__) > 1
    assert len({seed_of(*key) for key in keys}) == len(keys)
    columns = np.stack([uniforms((7, stream, MANY), 1)[:, 0].numpy() for stream in Stream])
    correlations = np.corrcoef(columns)
    assert np.abs(correlations - np.eye(len(columns))).max() < 4.5 / 20_000**0.5


def test_the_numbers_of_the_streams_stay():
    """Runs are repeated by them: new ones come at the end."""
    assert list(Stream)[:12] == list(range(12))
    assert (Stream.ORDER, Stream.CROPS, Stream.VIEWS, Stream.DROPOUT) == (4, 5, 6, 7)
