"""Where the boxes of a picture go: in layers from top to bottom, as Sugiyama's method has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GAP_X, GAP_Y = 28.0, 44.0
_BEND = 14.0  # what an arrow that passes between boxes takes
_LOOSE = 4.0  # the weight of a bend, and of what links it to a box
_SWEEPS = 12


@dataclass(frozen=True)
class Size:
    """The extent of a box."""

    width: float
    height: float


@dataclass(frozen=True)
class Link:
    """An arrow from one box to another.

    Attributes:
        source: Index of a box.
        out: Where it leaves, from the box's left edge.
        target: Index of a box.
        into: Where it arrives, from the box's left edge.
    """

    source: int
    out: float
    target: int
    into: float


@dataclass(frozen=True)
class Layout:
    """Coordinates.

    Attributes:
        width: Of the whole.
        height: Of the whole.
        corners: The left upper corner of each box.
        paths: For each link, the points that it goes through, from top to bottom.
    """

    width: float
    height: float
    corners: tuple[tuple[float, float], ...]
    paths: tuple[tuple[tuple[float, float], ...], ...]


@dataclass
class _Place:
    """A box in its layer, or a point that an arrow passes."""

    rank: int
    width: float
    weight: float
    x: float = 0.0  # of the left edge


def layout(sizes: Sequence[Size], links: Sequence[Link]) -> Layout:
    """Place boxes in layers such that arrows are short and cross little."""
    ranks = _ranks(len(sizes), links)
    places = [_Place(rank, size.width, 1.0) for rank, size in zip(ranks, sizes)]
    chains, edges, runs = _with_bends(places, links)
    layers: list[list[int]] = [[] for _ in range(max(ranks, default=0) + 1)]
    for index, place in enumerate(places):
        layers[place.rank].append(index)
    _arrange(places, layers, edges, runs)
    left = min((place.x for place in places), default=0.0)
    for place in places:
        place.x -= left
    tops, bottoms = _rows(sizes, ranks, len(layers))
    corners = tuple((places[i].x, tops[ranks[i]]) for i in range(len(sizes)))
    paths = []
    for link, chain in zip(links, chains):
        x, y = corners[link.source]
        points = [(x + link.out, y + sizes[link.source].height)]
        for bend in chain:
            rank = places[bend].rank
            middle = places[bend].x + places[bend].width / 2
            points += [(middle, tops[rank]), (middle, bottoms[rank])]
        points.append((corners[link.target][0] + link.into, corners[link.target][1]))
        paths.append(tuple(points))
    width = max((place.x + place.width for place in places), default=0.0)
    return Layout(width, bottoms[-1], corners, tuple(paths))


def _ranks(count: int, links: Sequence[Link]) -> list[int]:
    """A layer for each box, below all that it reads, and no higher than it has to be."""
    ranks = [0] * count
    for _ in range(count):  # once, where links come in the order of the model; a cycle never ends
        changed = False
        for link in sorted(links, key=lambda link: link.target):
            if ranks[link.target] <= ranks[link.source]:
                ranks[link.target] = ranks[link.source] + 1
                changed = True
        if not changed:
            break
    reads, readers = defaultdict(set), defaultdict(set)
    for link in links:
        reads[link.target].add(link.source)
        readers[link.source].add(link.target)
    for box in sorted(range(count), key=lambda box: -ranks[box]):
        # What only this box reads comes along with it.
        kept = [source for source in reads[box] if reads[source] or len(readers[source]) > 1]
        if readers[box] and len(kept) <= len(readers[box]):
            # Lower, it makes as many arrows shorter as it makes longer.
            ranks[box] = max(ranks[box], min(ranks[reader] for reader in readers[box]) - 1)
    used = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [used[rank] for rank in ranks]


_Edge = tuple[int, float, int, float]
_End = tuple[int, float, float]


def _with_bends(
    places: list[_Place], links: Sequence[Link]
) -> tuple[list[list[int]], list[_Edge], list[list[int]]]:
    """Break links that are longer than a layer; those of one output go together."""
    bends: dict[tuple[int, float, int], int] = {}
    chains: list[list[int]] = []
    edges: list[_Edge] = []
    runs: dict[tuple[int, float], list[int]] = defaultdict(list)
    known: set[tuple[int, int]] = set()
    for link in links:
        chain: list[int] = []
        end, out = link.source, link.out
        for rank in range(places[link.source].rank + 1, places[link.target].rank):
            key = (link.source, link.out, rank)
            if key not in bends:
                bends[key] = len(places)
                runs[link.source, link.out].append(len(places))
                places.append(_Place(rank, _BEND, _LOOSE))
            bend = bends[key]
            if (end, bend) not in known:
                known.add((end, bend))
                edges.append((end, out, bend, _BEND / 2))
            chain.append(bend)
            end, out = bend, _BEND / 2
        edges.append((end, out, link.target, link.into))
        chains.append(chain)
    return chains, edges, list(runs.values())


def _arrange(
    places: list[_Place], layers: list[list[int]], edges: Sequence[_Edge], runs: Iterable[list[int]]
) -> None:
    """Order each layer by what is above it and what is below it, in turns; then place them."""
    above: dict[int, list[_End]] = defaultdict(list)
    below: dict[int, list[_End]] = defaultdict(list)
    for source, out, target, into in edges:
        # Between its bends an arrow is to be straight; boxes follow.
        weight = places[source].weight * places[target].weight
        above[target].append((source, out - into, weight))
        below[source].append((target, into - out, weight))
    for layer in layers:
        _pack(places, layer, [0.0] * len(layer))
    for sweep in range(_SWEEPS):
        first, second = (above, below) if sweep % 2 == 0 else (below, above)
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {box: _wanted(places, box, first[box] or second[box]) for box in layer}
            layer.sort(key=lambda box: wanted[box] + places[box].width / 2)
            _pack(places, layer, [wanted[box] for box in layer])
    ends = {box: above[box] + below[box] for layer in layers for box in layer}
    for sweep in range(2 * _SWEEPS):
        straight = _straightened(places, runs, ends)
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {box: _wanted(places, box, ends[box]) for box in layer}
            _pack(places, layer, [straight.get(box, wanted[box]) for box in layer])


def _straightened(
    places: list[_Place], runs: Iterable[list[int]], ends: dict[int, list[_End]]
) -> dict[int, float]:
    """Where the bends of an arrow would be if it went straight, between the boxes at its ends."""
    found: dict[int, float] = {}
    for run in runs:
        xs = [places[bend].x for bend in run]
        for bend in run:
            xs += [places[end].x + offset for end, offset, weight in ends[bend] if weight <= _LOOSE]
        found.update(dict.fromkeys(run, sum(xs) / len(xs)))
    return found


def _wanted(places: list[_Place], box: int, ends: list[_End]) -> float:
    """Where a box would be right above and below what it is linked to."""
    if not ends:
        return places[box].x
    total = sum(weight for _, _, weight in ends)
    return sum((places[end].x + offset) * weight for end, offset, weight in ends) / total


def _pack(places: list[_Place], layer: Sequence[int], wanted: Sequence[float]) -> None:
    """Place a layer in its order, nearest to where its boxes want to be, and without overlap.

    With the room that each needs taken off, this is isotonic regression: neighbours that want to
    be in each other's place form a block, which goes to their mean.
    """
    offset, offsets = 0.0, []
    blocks: list[tuple[float, float, int]] = []  # weighted sum, weight, boxes
    for box, want in zip(layer, wanted):
        place = places[box]
        offsets.append(offset)
        block = ((want - offset) * place.weight, place.weight, 1)
        offset += place.width + GAP_X
        while blocks and blocks[-1][0] / blocks[-1][1] > block[0] / block[1]:
            last = blocks.pop()
            block = (last[0] + block[0], last[1] + block[1], last[2] + block[2])
        blocks.append(block)
    at = [total / weight for total, weight, count in blocks for _ in range(count)]
    for box, x, room in zip(layer, at, offsets):
        places[box].x = x + room


def _rows(
    sizes: Sequence[Size], ranks: Sequence[int], count: int
) -> tuple[list[float], list[float]]:
    heights = [0.0] * count
    for size, rank in zip(sizes, ranks):
        heights[rank] = max(heights[rank], size.height)
    tops, bottoms, y = [], [], 0.0
    for height in heights:
        tops.append(y)
        bottoms.append(y + height)
        y += height + GAP_Y
    return tops, bottoms
