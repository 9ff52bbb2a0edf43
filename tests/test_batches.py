"""The replay set, and how training examples are cut into batches."""

import random
from collections import Counter

import pytest

import hir
from bigbench_tasks import Example, generate
from hir import CORRECT
from support.batches import TrainingExample, count, make_batches
from support.replay import ReplaySet


def rebuild(fields):
    return hir.Sample(**fields | {"example": Example(**fields["example"])})


def some_samples(n):
    """Four samples of each question."""
    questions = generate("object_counting", n // 4, seed=0)
    return [hir.Sample(e, (i, j), f"{i} {j}", "wrong", 0) for i, e in enumerate(questions) for j in range(4)]


@pytest.mark.parametrize("which", ["all", "last"])
def test_replay_set_equals_a_loop(which):
    samples = some_samples(72)
    replay, everything = ReplaySet(which, limit=42, rebuild=rebuild), []
    for iteration in range(3):
        latest = samples[24 * iteration : 24 * (iteration + 1)]
        replay.append(latest)
        everything = [*everything, *latest][-40:] if which == "all" else latest  # 42 samples are 10 questions
        copy = ReplaySet(which, limit=42, rebuild=rebuild)
        copy.load_state_dict(replay.state_dict())
        copy.num_latest = len(latest) // 4
        reached = set()
        for seed in range(50):
            drawn = replay.draw(random.Random(seed))
            assert drawn == copy.draw(random.Random(seed)) and len(set(drawn)) == len(drawn) == len(latest)
            assert all(n == 4 for n in Counter(s.example.question for s in drawn).values())
            reached |= set(drawn)
        assert reached == set(everything)


def test_batches_hold_everything_once_and_mix_anew_in_every_epoch():
    rng = random.Random(0)
    examples = [TrainingExample(CORRECT, "q" * rng.randrange(100, 400) + str(i // 4), (i,)) for i in range(1600)]
    epochs = [make_batches(examples, 64, rng) for _ in range(2)]
    neighbors = []
    for batches in epochs:
        assert sorted(e.output for batch in batches for group in batch for e in group) == [(i,) for i in range(1600)]
        assert all(count(batch)[1] <= 64 for batch in batches)
        sides = [[group[0].question for group in batch] for batch in batches]
        neighbors.append({frozenset((a, b)) for side in sides for a in side for b in side if a != b})
        longest = sum(max(map(len, side)) * len(side) for side in sides)
        assert longest < 1.2 * sum(len(q) for side in sides for q in side)  # little is padded
    assert len(neighbors[0] & neighbors[1]) < 0.2 * len(neighbors[0])
