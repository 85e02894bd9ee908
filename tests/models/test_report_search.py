"""Search over words whose probabilities depend on the last one alone, against lists that are sorted."""

from __future__ import annotations

import pytest
import torch

from medvlp.models.report_search import beam_search, greedy_search

WORDS, LONGEST, BEGIN, END = 4, 6, 0, 1
CPU = torch.device("cpu")


def chains(rows: int, seed: int) -> torch.Tensor:
    """Log-probabilities of the next word by row and last word; texts end early and late."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, WORDS, WORDS, generator=generator, dtype=torch.float64)).log_softmax(-1)


class Reader:
    """Knows of each text its row of the batch, which must follow the text that it goes on from."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.row = table, torch.arange(len(table))

    def __call__(self, last: torch.Tensor, texts: torch.Tensor | None) -> torch.Tensor:
        self.row = self.row if texts is None else self.row[texts]
        return self.table[self.row, last]


def slow(table: torch.Tensor, beams: int) -> tuple[float, list[int]]:
    """Sort all continuations of the texts that have not ended."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    for place in range(LONGEST):
        grown = [
            (total + float(table[(words or [BEGIN])[-1], word]), [*words, word])
            for total, words in live
            for word in range(WORDS)
        ]
        best = sorted(grown, key=lambda item: -item[0])[:beams]
        ended = [item for item in best if item[1][-1] == END or place == LONGEST - 1]
        done, live = done + ended, [item for item in best if item not in ended]
    total, words = max(done, key=lambda item: item[0])
    return total, words + [END] * (LONGEST - len(words))


@pytest.mark.parametrize("beams", [1, 2, 3, 20])
def test_beams_are_those_of_sorted_lists(beams: int) -> None:
    table = chains(200, beams)
    found = beam_search(Reader(table), len(table), beams, BEGIN, END, LONGEST, CPU)
    expected = [slow(one, beams)[1] for one in table]
    assert found.tolist() == expected
    lengths = {row.index(END) if END in row else LONGEST for row in expected}
    assert lengths >= {0, 1, 2, LONGEST}


def test_a_text_that_ends_takes_the_place_of_one_that_goes_on() -> None:
    """R2Gen's search: with a beam of 2 the end and one word fill the first step, and the better word is lost."""
    table = torch.full((1, WORDS, WORDS), -20.0)
    table[0, BEGIN] = torch.tensor([-20.0, -1.0, -1.1, -1.2])
    table[0, 2, END] = -5.0
    table[0, 3, END] = 0.0
    assert beam_search(Reader(table), 1, 2, BEGIN, END, 3, CPU).tolist() == [[END, END, END]]
    table[0, BEGIN, END] = -2.0
    assert beam_search(Reader(table), 1, 2, BEGIN, END, 3, CPU).tolist() == [[3, END, END]]


def test_equal_probabilities_are_decided_by_the_order_of_words() -> None:
    table = torch.full((1, WORDS, WORDS), -1.0)
    table[0, :, END] = -9.0
    assert beam_search(Reader(table), 1, 3, BEGIN, END, 3, CPU).tolist() == [[0, 0, 0]]
    assert greedy_search(Reader(table), 1, BEGIN, END, 3, CPU, False).tolist() == [[0, 0, 0]]
    table = torch.full((2, WORDS, WORDS), -9.0)
    table[:, BEGIN, [END, 2]] = -1.0
    table[0, 2, END] = 0.0
    table[1, BEGIN, END] = -9.0
    table[1, 2, 2] = table[1, 2, END] = -1.0
    assert beam_search(Reader(table), 2, 2, BEGIN, END, 3, CPU).tolist() == [[END, END, END], [2, END, END]]


def test_greedy_search_stops_at_the_end_and_fills_up() -> None:
    table = chains(50, 7)
    found = greedy_search(Reader(table), len(table), BEGIN, END, LONGEST, CPU, False)
    for one, row in zip(table, found.tolist(), strict=True):
        words, last = [], BEGIN
        while len(words) < LONGEST and last != END:
            last = int(one[last].argmax())
            words.append(last)
        assert row == words + [END] * (LONGEST - len(words))
