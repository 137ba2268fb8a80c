import torch
from torch.nn import functional as F

from byol.method.loss import normalize, regression_loss


def test_loss_equals_official(golden):
    values = golden("loss")
    loss = regression_loss(values["prediction"], values["projection"])
    torch.testing.assert_close(loss, values["loss"], rtol=0, atol=1e-5)


def test_loss_is_two_minus_two_cosines_from_zero_to_four():
    x, y = torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(regression_loss(x, y), 2 - 2 * F.cosine_similarity(x, y), rtol=0, atol=1e-5)
    torch.testing.assert_close(regression_loss(x, 3 * x), torch.zeros(200), rtol=0, atol=1e-5)
    torch.testing.assert_close(regression_loss(x, -x), torch.full((200,), 4.0), rtol=0, atol=1e-5)


def test_loss_is_float32_under_bf16_autocast():
    x, y = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = regression_loss(x, y)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, regression_loss(x, y), rtol=0, atol=0)


def test_loss_of_half_precision_rows_is_that_of_the_same_rows_in_float32():
    x, y = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = regression_loss(x, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, regression_loss(x.float(), y.float()), rtol=0, atol=0)


def test_zero_row_has_loss_one_and_a_finite_gradient():
    prediction = torch.zeros(1, 4, requires_grad=True)
    loss = regression_loss(prediction, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.ones(1))
    assert prediction.grad.isfinite().all()


def test_rows_below_the_official_floor_are_left_short():
    row = torch.tensor([[6e-8, 8e-8]])  # squared length 1e-14, floor 1e-12
    torch.testing.assert_close(normalize(row), torch.tensor([[0.06, 0.08]]))


def test_normalised_rows_are_those_of_torch_from_tiny_to_huge():
    directions = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for scale in (1e-4, 1.0, 1e6):
        torch.testing.assert_close(normalize(scale * directions), F.normalize(directions), rtol=0, atol=1e-6)
