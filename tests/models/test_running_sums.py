"""Running sums: each equals the sum written out; chunks cover everything and stay small."""

import pytest
import torch

from cifarkit.models import running_sums
from cifarkit.models.running_sums import chunks, gather_rows, sums_from_both_ends


def test_sums_from_both_ends_are_the_sums_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.tensor([[2.0, -1.0, 0.0, -1.0], [5.0, 6.0, 7.0, 8.0], [-3.0, -2.0, -9.0, -4.0]])
    others = torch.tensor([[1.0, 0.0, -2.0, 9.0, -9.0]] * 3)  # cuts on ties, inside, and beyond either end
    high, low, single = (torch.rand(3, 4, generator=generator) for _ in range(3))
    vectors = torch.rand(3, 4, 2, generator=generator)
    right = others[:, :, None] + numbers[:, None] > 0  # (R, M, N)
    pairs = zip(
        sums_from_both_ends(numbers, others, high, low), (right * high[:, None], ~right * low[:, None]), strict=True
    )
    for found, weights in pairs:
        torch.testing.assert_close(found.of_weights(), weights.sum(2))
        torch.testing.assert_close(found.of_numbers(single), (weights * single[:, None]).sum(2))
        torch.testing.assert_close(found.of_vectors(vectors), weights @ vectors)


def test_rows_are_gathered_whole() -> None:
    matrix = torch.arange(12).view(2, 3, 2)
    assert gather_rows(matrix, torch.tensor([[2, 2], [0, 1]])).tolist() == [[[4, 5], [4, 5]], [[6, 7], [8, 9]]]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("rows", "nodes", "columns"), [(1, 1, 1), (300, 50, 100), (3, 2**18, 20), (7, 5000, 64)])
def test_chunks_cover_everything_and_stay_small(
    monkeypatch: pytest.MonkeyPatch, rows: int, nodes: int, columns: int, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    query, value = torch.empty(1).expand(rows, nodes), torch.empty(1).expand(rows, nodes, columns)
    pieces, parts = chunks(query, value)
    for slices, count in ((pieces, rows), (parts, columns)):
        assert [index for item in slices for index in range(count)[item]] == [*range(count)]
    least = 8 * nodes  # one row, a cache line of columns
    for piece in pieces:
        assert value[piece, :, parts[0]].numel() <= max(least, threads * running_sums._CHUNK_NUMBERS)


def test_elsewhere_there_are_few_chunks_of_whole_rows() -> None:
    value = torch.empty(64, 1024, 128, device="meta")
    assert chunks(value[:, :, 0], value) == ([slice(0, 32), slice(32, 64)], [slice(0, 128)])
