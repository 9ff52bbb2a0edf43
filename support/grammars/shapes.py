"""Geometric shapes: which shape does an SVG path draw?

Steps name the lines one by one, with the x at which each ends; for four corners, also the midpoints between opposite
ones, which coincide in a rectangle and differ in a kite.
"""

import math
import re
from itertools import pairwise

from support.grammars.common import LISTS, NUMBER, scores

SHAPES = LISTS["shapes"]
SIDES = {"triangle": 3, "pentagon": 5, "hexagon": 6, "heptagon": 7, "octagon": 8}


def corners_of(rng, shape: str) -> list[tuple[int, int]]:
    """Corners with whole coordinates around the origin, none further from it than 45."""
    if shape == "rectangle":
        x, y = rng.randint(3, 31), rng.randint(3, 31)
        return [(x, y), (-x, y), (-x, -y), (x, -y)]
    if shape == "kite":  # or a dart, where the last corner lies beyond the line between the side ones
        x, top, bottom = rng.randint(5, 30), rng.randint(28, 45), rng.choice((-1, 1)) * rng.randint(4, 16)
        return [(0, top), (x, 0), (0, bottom), (-x, 0)]
    if shape == "line":
        return [(rng.randint(5, 45), 0), (-rng.randint(5, 45), rng.randint(-9, 9))]
    while True:
        angles = [(i + rng.uniform(0.2, 0.8)) * math.tau / SIDES[shape] for i in range(SIDES[shape])]
        corners = [(round(r * math.cos(a)), round(r * math.sin(a))) for a in angles for r in [rng.uniform(15, 44)]]
        turns = zip(corners, corners[1:] + corners[:1], corners[2:] + corners[:2], strict=True)
        # No corner may be so flat that it could pass for a point on a side.
        if all(abs((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)) > 20 for (x0, y0), (x1, y1), (x2, y2) in turns):
            return corners


def arcs(rng, shape: str, turn: float, plain: bool, number) -> str:
    """The path of a circle or a sector. number(low, high) draws a number."""
    radius = number(3, 45)
    x, y = number(radius, 100 - radius), number(radius, 100 - radius)
    start, sweep = (turn, math.pi) if shape == "circle" else (rng.uniform(0, math.tau), rng.uniform(0.3, 3))
    ends = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in (start, start + sweep)]
    center, one, two = (f"{x:.2f},{y:.2f}" for x, y in [(x, y), *ends])
    arc = f"A {radius:.2f},{radius:.2f} {math.degrees(turn):.2f}"
    if shape == "circle":
        return f"M {one} {arc} 1,0 {two} {arc} 1,0 {one}"
    again = "" if plain or rng.random() < 0.5 else f"M {one} "
    return f"M {center} L {one} {again}{arc} 0,1 {two} L {center}"


def lines(rng, shape: str, turn: float, plain: bool, number) -> str:
    """The path of a polygon, or of a line, in one piece or, unless it is plain, in several."""
    corners = corners_of(rng, shape)[:: rng.choice((-1, 1))]
    first, scale = rng.randrange(len(corners)), 1 if plain else rng.uniform(0.4, 1)
    corners = corners if shape == "line" else corners[first:] + corners[: first + 1]  # closed
    xs = [scale * (x * math.cos(turn) - y * math.sin(turn)) for x, y in corners]
    ys = [scale * (x * math.sin(turn) + y * math.cos(turn)) for x, y in corners]
    right, down = number(1 - min(xs), 99 - max(xs)), number(1 - min(ys), 99 - max(ys))
    points = [f"{x + right:.2f},{y + down:.2f}" for x, y in zip(xs, ys, strict=True)]
    path = f"M {points[0]} L {points[1]}"
    for here, there in pairwise(points[1:]):
        path += f" L {there}" if plain or rng.random() < 0.7 else f" M {here} L {there}"
    return path


def named_one_by_one(path: str) -> str:
    """`38 one, 50 two, 30 three`; `arc one, arc two`; of four corners, `middle 47,61 and 52,70` at the end."""
    parts = (part for part in re.split(" (?=[MLA])", path) if part[0] != "M")
    # (kind, x, y) of each line or arc
    ends = [(part[0], *(int(float(number)) for number in part.split()[-1].split(","))) for part in parts]
    steps = ", ".join(f"{'arc' if kind == 'A' else x} {NUMBER[i]}" for i, (kind, x, _) in enumerate(ends, start=1))
    if len(ends) == 4:
        middles = [f"{(ends[i][1] + ends[i + 2][1]) // 2},{(ends[i][2] + ends[i + 2][2]) // 2}" for i in (0, 1)]
        steps += f", middle {' and '.join(middles)}"
    return steps


def geometric_shapes(rng, level: float | None) -> dict:
    """As in the official file, half of the paths are turned and come in pieces."""
    shape = rng.choice(SHAPES)
    plain = level is not None or rng.random() < 0.4  # whole coordinates, one piece
    turn = 0 if plain else rng.uniform(0, math.tau)

    def number(low: float, high: float) -> float:
        return rng.randint(math.ceil(low), math.floor(high)) if plain else rng.uniform(low, high)

    path = (arcs if shape in ("circle", "sector") else lines)(rng, shape, turn, plain, number)
    others = [other for other in SHAPES if other != shape]
    options = [shape, *rng.sample(others, 9 if level is None else rng.randint(1, 9))]
    # The official file has "ellipse" only with circles and "trapezoid" only with rectangles: a giveaway, avoided here.
    options += rng.choice(([], [], ["ellipse"], ["trapezoid"]))
    right = scores(options, shape, {"circle": "ellipse", "rectangle": "trapezoid"}.get(shape))
    question = f'This SVG path element <path d="{path}"/> draws a '
    return {"input": question, "target_scores": right, "steps": named_one_by_one(path)}
