"""Text metrics written with loops and dictionaries from their definitions."""

from __future__ import annotations

import math
from collections import Counter


def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(generated: list[str], references: list[list[str]], longest: int) -> float:
    matches, guesses = [0] * longest, [0] * longest
    own = closest = 0
    for text, others in zip(generated, references, strict=True):
        length = len(text.split())
        own += length
        closest += min((abs(len(other.split()) - length), len(other.split())) for other in others)[1]
        for n in range(longest):
            counts = grams(text, n + 1)
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= grams(other, n + 1)
            matches[n] += sum((counts & most).values())
            guesses[n] += sum(counts.values())
    product = math.prod((m + 1e-15) / (g + 1e-9) for m, g in zip(matches, guesses, strict=True))
    ratio = (own + 1e-15) / (closest + 1e-9)
    return product ** (1 / longest) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


def common(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def cider(generated: list[str], references: list[list[str]], clipped: bool) -> list[float]:
    frequency: Counter[tuple[str, ...]] = Counter()
    for others in references:
        frequency.update({gram for other in others for n in range(1, 5) for gram in grams(other, n)})

    def vector(text: str, n: int) -> dict[tuple[str, ...], float]:
        rarity = {gram: math.log(len(generated)) - math.log(max(1, frequency[gram])) for gram in grams(text, n)}
        return {gram: count * rarity[gram] for gram, count in grams(text, n).items()}

    values = []
    for text, others in zip(generated, references, strict=True):
        total = 0.0
        for other in others:
            gap = sum(grams(text, 2).values()) - sum(grams(other, 2).values())
            for n in range(1, 5):
                a, b = vector(text, n), vector(other, n)
                norm = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
                product = sum((min(a[g], b[g]) if clipped else a[g]) * b[g] for g in a.keys() & b.keys())
                if norm:
                    total += product / norm * (math.exp(-(gap**2) / 72) if clipped else 1)
        values.append(10 * total / 4 / len(others))
    return values
