"""Muon in two processes: each does its share of the matrices, and both end with the weights of one process."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from blip3o.training import muon
from blip3o.training.muon import Muon

SHAPES = [(4, 6)] * 5 + [(6, 4)] * 2 + [(3, 3)]


def trained() -> tuple[list[Tensor], int]:
    """Weights after two steps on gradients that all processes share, and how many matrices this one treated."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer, treated, whole = Muon(parameters, lr=0.1), 0, muon.orthogonalize

    def counted(matrices: Tensor, num_iterations: int = 5) -> Tensor:
        nonlocal treated
        treated += len(matrices)
        return whole(matrices, num_iterations)

    muon.orthogonalize = counted
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    muon.orthogonalize = whole
    return [parameter.detach() for parameter in parameters], treated


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(trained(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_the_work_and_get_the_weights_of_one(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    alone, treated = trained()
    assert treated == 2 * len(SHAPES)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first[1] == second[1] == 2 * (3 + 1 + 1)
    for one, other, expected in zip(first[0], second[0], alone, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected)
