"""Grammars that write new questions in the style of the twelve BIG-bench tasks, one file per family.

Every generator draws a small state (an order, a table, a row of things), computes the answer from the state, and only
then puts both into English. It returns one example in the format of a BIG-bench task file: `input`, and `target_scores`
(option -> 1 if right) or `target`, with a `task_prefix` if the official file has one; and `steps`, the way to the answer
as one would write it on paper, each step a lookup or a small sum. Options come in a natural order; they are shuffled
when the example becomes a question.

`level` makes easier questions of the same kind, a curriculum that leads to the task itself: None is the official task;
from 0 to 1, sizes are drawn between the smallest sensible one and the official one, and what takes more than a lookup
(swaps, deduction, a list to sort) grows with the level. The text keeps its form.
"""

from functools import partial

from support.grammars.colored_objects import reasoning_about_colored_objects
from support.grammars.common import NUMBER
from support.grammars.counting import object_counting
from support.grammars.dates import date_understanding
from support.grammars.deduction import logical_deduction
from support.grammars.penguins import penguins_in_a_table
from support.grammars.shapes import geometric_shapes
from support.grammars.sorting import word_sorting
from support.grammars.tracking import tracking

GENERATORS = {
    **{f"tracking_shuffled_objects_{NUMBER[size]}_objects": partial(tracking, size=size) for size in (3, 5, 7)},
    **{f"logical_deduction_{NUMBER[size]}_objects": partial(logical_deduction, size=size) for size in (3, 5, 7)},
    "date_understanding": date_understanding,
    "object_counting": object_counting,
    "geometric_shapes": geometric_shapes,
    "penguins_in_a_table": penguins_in_a_table,
    "reasoning_about_colored_objects": reasoning_about_colored_objects,
    "word_sorting": word_sorting,
}
