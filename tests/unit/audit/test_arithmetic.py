"""Products row by row: to the bit the same, whatever the number of rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megatron_yuan.audit.arithmetic import RowByRow, experts_as
from megatron_yuan.model.moe.experts import Experts
from tests.unit.audit.test_causality import CONFIG


def test_row_by_row_a_product_does_not_depend_on_how_many_rows_it_has() -> None:
    x, weight = torch.randn(9, 24), torch.randn(40, 24)
    with RowByRow():
        whole = F.linear(x, weight)
        for count in range(10):
            assert torch.equal(F.linear(x[:count], weight), whole[:count])
    torch.testing.assert_close(whole, F.linear(x, weight))


def test_looped_experts_in_the_audit_give_a_row_the_same_bits_in_any_company() -> None:
    experts = torch.nn.Sequential(Experts(2, 20, CONFIG))
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x, weights = torch.randn(8, 24), torch.rand(8)
    with experts_as(experts, "looped"), torch.no_grad():
        whole = experts[0](x, weights, torch.tensor([4, 8]))
        for count in (1, 2, 3):
            few = experts[0](x[:count], weights[:count], torch.tensor([count, count]))
            assert torch.equal(few, whole[:count])
    assert experts[0].looped is False
