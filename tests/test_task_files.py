"""Task files of other sources: BIG-Bench Hard, other tasks of BIG-bench, and what people write by hand."""

import json
import os
import subprocess
import sys

import pytest

import train
from baselines.imitation import demonstrations
from bigbench_tasks import TASKS, Example, expand, load
from feedback import judge
from model_t5 import Tokenizer
from support import task_files, task_list
from support.errors import InputError
from support.files import read_lines
from support.options import meant, options_in
from tests.conftest import BIGBENCH, ROOT, SPIECE, needs_official_files, write

# --- BIG-Bench Hard: the forms of its 27 tasks, in words of our own ---------------------------------------------------

FREE = {
    "boolean_expressions": ("True and not ( True ) is", "False"),
    "dyck_languages": ("Close what is open, so that the parentheses match. Input: ( [ { }", "] )"),
    "multistep_arithmetic_two": ("((2 - 7 * 1) + (4 - -1)) - 9 =", "-9"),
    "object_counting": ("I have a harp, two drums, and a cow. How many musical instruments do I have?", "3"),
    "sports_understanding": ('Is the following sentence plausible? "The goalkeeper hit a home run."', "no"),
    "web_of_lies": ("Question: Ann lies. Bo says Ann tells the truth. Does Bo tell the truth?", "No"),
    "word_sorting": ("Sort the following words alphabetically: List: plum fig date", "date fig plum"),
}
DASHES = {
    "causal_judgement": ("Who did it?\nTom pushed the button, and the lamp went on. Did Tom cause it?", ["Yes", "No"], "Yes"),
    "formal_fallacies": ('"All cats purr. Tom purrs. So Tom is a cat."\nIs this valid?', ["valid ", "invalid"], "invalid"),
    "navigate": ("Do you return to the starting point? Take 2 steps. Turn around. Take 2 steps.", ["Yes", "No"], "Yes"),
}  # fmt: skip
LETTERS = {
    "date_understanding": ("Today is 05/02/1999. What is the date tomorrow?", ["05/01/1999", "05/03/1999"], "(B)"),
    "disambiguation_qa": ("Who is meant?\nSentence: Jo told Al that he won.", ["Jo won", "Al won", "Ambiguous"], "(C)"),
    "geometric_shapes": ('This element <path d="M 1,2 L 3,4"/> draws a', ["circle", "line", "sector"], "(B)"),
    "hyperbaton": ("Which sentence has the correct adjective order:", ["big red new hat", "big new red hat"], "(B)"),
    "movie_recommendation": ("Find a movie similar to Alpha, Beta:", ["The End", "Gamma 2", "The", "Up"], "(B)"),
    "penguins_in_a_table": ("The table:  name, age (years) Lou, 7 Bo, 5 How old is Bo?", ["7", "5", "1"], "(B)"),
    "reasoning_about_colored_objects": ("There is a cup. What color is it?", [f"hue {i}" for i in range(18)], "(R)"),
    "ruin_names": ("Which is a humorous edit of this name: 'the who!'?", ["the waho!", "the why!"], "(B)"),
    "salient_translation_error_detection": ("It has an error pertaining to", ["Facts", "Numerical Values"], "(A)"),
    "snarks": ("Which statement is sarcastic?", ["Sure, it must be true..", "Hm: it's 'true'?"], "(A)"),
    "temporal_sequences": ("When could Ed have gone to the pool?", ["6am to 9am", "1pm to 3pm"], "(A)"),
    **{
        f"{kind}_{size}_objects": (f"{kind}: where is it?", [f"The object {i}." for i in range(n)], "(C)")
        for kind in ("logical_deduction", "tracking_shuffled_objects")
        for size, n in (("three", 3), ("five", 5), ("seven", 7))
    },
}
HARD = dict(FREE)
for task, (stem, options, target) in DASHES.items():
    HARD[task] = ("\n- ".join([f"{stem}\nOptions:", *options]), target)
for task, (stem, options, target) in LETTERS.items():
    HARD[task] = (
        "\n".join([f"{stem}\nOptions:", *(f"({'ABCDEFGHIJKLMNOPQR'[i]}) {o}" for i, o in enumerate(options))]),
        target,
    )


@pytest.fixture
def checkout(tmp_path):
    for task, (text, target) in HARD.items():
        examples = [{"input": f"{i}. {text}", "target": target} for i in range(1, 6)]
        write(tmp_path / "bbh" / f"{task}.json", {"canary": "do not train on this", "examples": examples})
    write(tmp_path / "cot-prompts" / "navigate.txt", b"Q: ...")
    return tmp_path


def test_the_27_tasks_of_big_bench_hard(checkout):
    assert len(HARD) == 27 and set(expand("all", checkout)) == set(HARD) == set(expand("all", checkout / "bbh"))
    assert expand("logical_deduction,navigate", checkout) == [*TASKS[3:6], "navigate"]
    assert task_list.remarks(list(HARD), str(checkout)) == []
    for task, (text, target) in HARD.items():
        (given, *_), examples = load(task, checkout, "official"), load(task, checkout / "bbh")
        expected = f"1. {text}"
        if task in DASHES:
            for letter, option in zip("AB", DASHES[task][1], strict=True):
                expected = expected.replace(f"- {option}", f"({letter}) {option.strip()}")
        assert given.question == expected
        right = (
            next(iter(meant(target, [o.strip() for o in (DASHES | LETTERS)[task][1]]))) if task not in FREE else target
        )
        for example in (given, *examples):
            assert judge(target, example) == judge(f"So the answer is {right}.", example) == "right" or task not in FREE
            if task in FREE:
                assert example.options == () and example.targets == (target,)
                continue
            (letter,) = example.targets
            assert {judge(form, example) for form in (right, letter, letter[1], f"{letter} {right}")} == {"right"}
            others = set(example.options) - {right}
            assert len(others) == len((DASHES | LETTERS)[task][1]) - 1
            assert {judge(other, example) for other in others} == {"wrong"}
            assert judge("a cow", example) == "malformed"
    assert len({example.question.partition("Options")[2] for example in load("snarks", checkout)}) == 2, "not shuffled"
    wrong_answers = {"web_of_lies": "Yes", "boolean_expressions": "TRUE.", "multistep_arithmetic_two": "-8",
                     "object_counting": "4"}  # fmt: skip
    for task, wrong in wrong_answers.items():
        example = load(task, checkout)[0]
        assert (judge(wrong, example), judge("a cow", example)) == ("wrong", "malformed"), task
    assert judge("-3", load("object_counting", checkout)[0]) == "malformed", "there is nothing to subtract"
    assert judge("-3", Example("5 - 2?", ("3",))) == "wrong"


def test_mistakes_in_the_data_are_said(tmp_path):
    text = "Find a similar movie:\nOptions:\n(A) Monsters\n(B) Inc\n(C) Up"
    examples = [{"input": text, "target": target} for target in ("(B)", "Monsters, Inc", "(D)", "Up")]
    examples += [{"input": "Which one is it?\nOptions:\n(A) The NB", "target": "(A)"}]
    write(tmp_path / "movie_recommendation.json", {"examples": examples})
    letter, film, beyond, word, single = load("movie_recommendation", tmp_path, "official")
    assert letter.targets == ("(B)",) and word.targets == ("(C)",) and single.options == ("The NB",)
    assert (film.question, film.targets, film.options) == (text, ("Monsters, Inc",), ()) and beyond.options == ()
    assert judge("monsters, inc.", film) == "right"
    (line,) = task_list.remarks(["movie_recommendation"], str(tmp_path))
    assert "none of the options" in line and "2 of movie_recommendation" in line


def test_letters_without_options_are_remarked_on(tmp_path):
    question = "Which is a bird? 1. owl 2. cat"
    examples = [{"input": question, "target": "(A)"}, {"input": "1 + 1?", "target": 2}]
    write(tmp_path / "animals.json", {"examples": examples})
    (line,) = task_list.remarks(["animals"], str(tmp_path))
    assert "name an option, though none was found" in line and line.endswith(": 1 of animals.")


@pytest.fixture
def command(capsys):
    """The command with these arguments, on the smallest model: its exit code, what it prints, its errors."""

    def run(*arguments):
        code = train.main(["--checkpoint", str(ROOT / "checkpoints/t5-nano"), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_big_bench_hard_is_evaluated_and_trained_on(checkout, tmp_path, command):
    out = tmp_path / "out"
    code, printed, _ = command("--data", checkout, "--task", "all", "--iterations", 1, "--out", out)
    assert code == 0 and "27 test questions" in printed
    before, after = read_lines(out / "metrics.jsonl")
    assert set(before["tasks"]) == set(after["tasks"]) == set(HARD) and after["sampled"] == 27 * 4 * 4


# --- Other tasks of BIG-bench -----------------------------------------------------------------------------------------


def test_fields_of_other_tasks(tmp_path):
    place = tmp_path / "bigbench" / "benchmark_tasks"
    scores = {"rather good": 0.8, "good": 0.8, "bad": 0.1, "worse": -1}
    write(place / "taste" / "task.json", {
        "name": "taste", "description": "How good?", "keywords": ["taste"], "canary": "x", "metrics": ["bleu"],
        "preferred_score": "bleu", "append_choices_to_input": False, "example_output_prefix": "\nA: ",
        "task_prefix": "Say how good it is.", "comment": "",
        "examples": [{"input": "Cake.\n\nWith cream.", "target_scores": scores, "target": "good", "comment": "yes"}],
    })  # fmt: skip
    write(place / "sums" / "small" / "task.json", {
        "task_prefix": "Add.", "example_input_prefix": "\nSum: ", "example_output_prefix": "\nIs: ",
        "append_choices_to_input": True, "examples": [{"input": "1 + 1", "target": ["two", 2, "2.0"]}],
    })  # fmt: skip
    shown = "Which?\nOptions:\n(A) red\n(B) blue"
    write(place / "sums" / "task.json", {"name": "sums", "description": "Both."})
    write(place / "sums" / "large" / "task.json", {
        "example_input_prefix": "\nQ: ", "examples": [
            {"input": shown, "target_scores": {"red": 0, "blue": 1}}, {"input": "", "target_scores": {"one": 0, "two": 1}},
        ],
    })  # fmt: skip
    assert expand("all", tmp_path) == ["sums_large", "sums_small", "taste"] == expand("sums,taste", place)
    (taste,) = load("taste", tmp_path, "official")
    options = "Options:\n(A) rather good\n(B) good\n(C) bad\n(D) worse"
    assert taste.question == f"Say how good it is.\nCake.\nWith cream.\n{options}" and taste.targets == ("(A)", "(B)")
    verdicts = [judge(answer, taste) for answer in ("good", "(A)", "bad", "fine")]
    assert verdicts == ["right", "right", "wrong", "malformed"]
    (small,) = load("sums_small", tmp_path)
    assert small.question == "Add.\nSum: 1 + 1" and small.targets == ("2", "two", "2.0")
    assert [judge(answer, small) for answer in ("2", "two", "2.0", "3")] == ["right", "right", "right", "wrong"]
    large, bare = load("sums_large", tmp_path, "official")
    assert bare.targets == ("(B)",) and bare.question.split() == "Options: (A) one (B) two".split()
    assert (large.question, large.targets) == (shown, ("(B)",)), "options that are in the text are shown once"
    (line,) = task_list.remarks(["taste", "sums_small", "sums_large"], str(tmp_path))
    ignored = "append_choices_to_input, comment, example_output_prefix, metrics, preferred_score, target"
    assert line == f"Ignored in the task files: {ignored}."


# --- Written by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Which?\n(A) red\n(B) blue", ["red", "blue"]), ("Which?\na) red\nb) blue", ["red", "blue"]),
        ("Which?\n\nOptions:\nA. red\nB. blue\n", ["red", "blue"]), ("Which?\nChoices:\n- red\n* blue", ["red", "blue"]),
        ("Which? Options: (A) red (B) dark blue", ["red", "dark blue"]),
        ("Which?\nAnswer choices:\n (A) (B)\n (B) (A)", ["(B)", "(A)"]),
        ("Which?\n(B) red\n(C) blue", []), ("Which?\n- red\n- blue", []), ("Options:\n(A) red\n(B) blue", []),
        ("Which?\nOptions:\n(A) red\n(B)", []), ("Which?\nOptions:\n(A) red\nor blue", []), ("A. Smith\nsays so.", []),
    ],
)  # fmt: skip
def test_options_in_a_text(text, options):
    question, found = options_in(text)
    assert found == options
    assert question.strip() == ("Which?" if options else text.strip())


@pytest.mark.parametrize("target", ["blue", "Blue.", "(B)", "b", "B)", "B.", "(B) blue", "(b) Blue", ["B", "blue"]])
@pytest.mark.parametrize("how", ["in the text", "options", "choices", "with letters"])
def test_a_target_among_options_is_right_by_letter_and_in_words(tmp_path, target, how):
    entry = {"input": "Which is it?", "target": target}
    if how == "in the text":
        entry["input"] += "\nOptions:\n(A) red\n(B) blue"
    elif how == "with letters":
        entry["options"] = ["A. red", "B. blue"]
    else:
        entry[how] = ["red", "blue"]
    write(tmp_path / "own.json", {"examples": [entry] * 2})
    assert task_list.remarks(["own"], str(tmp_path)) == []
    for order, letters in (("official", {"(B)"}), ("shuffled", {"(A)", "(B)"})):
        for example in load("own", tmp_path, order):
            assert set(example.targets) <= letters and set(example.options) == {"red", "blue"}
            (letter,) = example.targets
            forms = ("blue", "BLUE.", letter, letter[1].lower(), f"{letter} blue", "So the answer is blue")
            assert {judge(form, example) for form in forms} == {"right"}
            assert judge("red", example) == "wrong" and judge("green", example) == "malformed"


EXAMPLE = '{"input": "Which?", "target": "x"}'
BAD_JSON = {
    "comma in a list": ('{"examples": [\n  %s,\n]}', 2, 37, "a comma after the last item; delete it"),
    "comma in an object": ('{"examples": [{"input": "?", "target": "x" , }]}', 1, 44, "a comma after the last item"),
    "comment": ('{"examples": [ // mine\n%s]}', 1, 16, "a comment; JSON has none"),
    "comment with #": ('{"examples": [%s] # mine\n}', 1, 51, "a comment"),
    "single quotes": ("{'examples': [%s]}", 1, 2, "a single quote; write double quotes"),
    "typographic quotes": ('{"examples": [{"input": “Which?”}]}', 1, 25, "a typographic quotation mark"),
    "a line each": ("%s\n%s\n", 2, 1, 'put all examples into one list: {"examples": [{"input"'),
    "no quotes": ("{examples: [%s]}", 1, 2, "a word without quotes"),
    "Python's words": ('{"examples": [%s], "a": True}', 1, 57, "write true, false or null"),
    "quotes in a text": ('{"examples": [{"input": "Say "x" now"}]}', 1, 31, r"write a comma before it, or \" for"),
    "no comma": ('{"examples": [%s\n%s]}', 2, 1, "no comma at '{\"input"),
    "no colon": ('{"examples" [%s]}', 1, 13, 'no colon'),
    "line break": ('{"examples": [{"input": "Which\nis it?"}]}', 1, 31, r"a line break or a tab within a text; write \n"),
    "backslash": (r'{"examples": [{"input": "C:\x"}]}', 1, 28, r"write \\ for a backslash"),
    "no end": ('{"examples": [%s', 1, 49, "the file ends in the middle; close what is open"),
    "no end of a text": ('{"examples": [{"input": "Wh', 1, 25, "a text that does not end"),
    "too many ends": ('{"examples": [%s]}}', 1, 51, "something after the end at '}'; delete it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json_is_explained(tmp_path, kind):
    text, line, column, explained = BAD_JSON[kind]
    path = write(tmp_path / "own.json", text.replace("%s", EXAMPLE).encode())
    with pytest.raises(InputError) as error:
        load("own", tmp_path)
    assert str(error.value).startswith(f"{path}: line {line}, column {column}: ") and explained in str(error.value)


def test_other_bad_json(tmp_path):
    good = f'{{"examples": [{EXAMPLE}]}}'
    for data, match in (
        (b"", "the file is empty; write"), (b" \n", "the file is empty"),
        (b'{"examples": []}', 'the list of "examples" is empty'),
        (f"[{EXAMPLE}]".encode(), 'no list of "examples"'),
        (b"[" * 100_000, "not JSON"), (b"1" * 5000, "not JSON"), (good.encode() + b"\n\xe9", "line 2: not UTF-8"),
    ):  # fmt: skip
        write(tmp_path / "own.json", data)
        with pytest.raises(InputError, match=match):
            load("own", tmp_path)
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        write(tmp_path / "own.json", good.encode(encoding))
        assert load("own", tmp_path)[0].targets == ("x",), encoding


def test_numbers_and_steps(tmp_path):
    entries = [
        {"input": "2 + 2?", "target": 4, "steps": "2, 3, 4."}, {"input": "Half?", "target": 0.5},
        {"input": "Is it?", "target": True}, {"input": "How many?", "target": 12, "options": [11, 12]},
    ]  # fmt: skip
    write(tmp_path / "own" / "task.json", {"examples": entries})
    examples = four, half, true, twelve = load("own", tmp_path, "official")
    assert [example.targets[0] for example in examples] == ["4", "0.5", "true", "(B)"]
    assert [judge(a, e) for a, e in zip(("four", ".5", "False", "12"), examples, strict=True)] == [
        "right", "wrong", "wrong", "right"
    ]  # fmt: skip
    assert judge("0.5", half) == judge("True", true) == judge("b", twelve) == "right"
    tokenizer = Tokenizer(SPIECE)
    (shown,) = demonstrations([four], tokenizer, "steps")
    assert tokenizer.decode(shown.output) == "2, 3, 4. So the answer is 4"


# --- Where tasks are looked for ---------------------------------------------------------------------------------------


def test_whatever_is_unambiguous_is_found(tmp_path, monkeypatch):
    one, flat = tmp_path / "mine" / "capitals" / "task.json", tmp_path / "mine" / "rivers.json"
    for path in (one, flat):
        write(path, {"examples": [json.loads(EXAMPLE)]})
    mine = tmp_path / "mine"
    monkeypatch.chdir(mine)
    for data in (mine, f"{mine}/", ".", "../mine/"):
        assert expand("all", data) == ["capitals", "rivers"] == expand("capitals/, rivers", data)
    for data, task in ((one, "capitals"), (one.parent, "capitals"), ("capitals/", "capitals"), (flat, "rivers")):
        assert expand("all", data) == [task] == expand(task, data)
        assert load(task, data) == [Example("Which?", ("x",), task=task)]
    monkeypatch.chdir(one.parent)
    assert expand("capitals", ".") == ["capitals"]
    write(mine / "seas_mine.json", b"")
    with pytest.raises(InputError, match=r": did you mean rivers\? choose from capitals, rivers, seas_mine, or all$"):
        expand("river", mine)
    (mine / "seas_mine.json").unlink()
    for name, data, match in (
        ("capitls", mine, r"no task \"capitls\" in .*mine: did you mean capitals\? choose from capitals, rivers, or all$"),
        ("word_sorting", mine, "choose from capitals, rivers"), ("../mine/capitals", mine, "no task"),
        ("word_sortin", "generated", r"did you mean word_sorting\?"), ("capitals", "official", "choose from tracking"),
        ("capitals", tmp_path / "elsewhere", "there is no directory"), ("capitals", "generatd", "generated, or official"),
        ("capitals", write(tmp_path / "empty" / "x.txt", b"").parent, "holds no task: put NAME/task.json or NAME.json there"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            expand(name, data)


@needs_official_files
def test_official_files_are_found_from_wherever(tmp_path):
    assert tuple(expand("all", BIGBENCH)) == TASKS and expand("tracking_shuffled_objects", BIGBENCH) == list(TASKS[:3])
    (tmp_path / "bigbench").mkdir()
    os.symlink(BIGBENCH, tmp_path / "bigbench" / "benchmark_tasks")
    for data in (tmp_path, tmp_path / "bigbench"):
        assert tuple(expand("all", data)) == TASKS
        assert load("word_sorting", data) == load("word_sorting", BIGBENCH)
    assert expand("all", BIGBENCH / "logical_deduction") == list(TASKS[3:6])
    three = BIGBENCH / "logical_deduction" / "three_objects"
    for data in (three, three / "task.json"):
        assert expand("logical_deduction", data) == ["logical_deduction_three_objects"]


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A task with 12 questions, which leaves three for the test."""
    examples = [{"input": f"What follows {i}?", "target": i + 1, "hint": "count"} for i in range(12)]
    write(tmp_path / "mine" / "after.json", {"examples": examples})
    return tmp_path / "mine"


def test_list(own, capsys):
    """As a process of its own, as nothing else may be printed."""
    program = [sys.executable, str(ROOT / "train.py"), "--list", "--data", own]
    prompt = "  | Solve the question with correct answer.\n  | \n  | Q: What follows 0?\n  | A:"
    listed = subprocess.run(program, capture_output=True, text=True, timeout=600, check=True)
    assert listed.stdout == (
        f"after: 9 questions to train on, 3 to test on\n{prompt}\n\nIgnored in the task files: hint.\n"
    )
    assert train.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.endswith("generated")] == list(TASKS)


def test_little_data_is_said_or_refused(own, tmp_path, command):
    small = ("--data", own, "--task", "all", "--iterations", 1)
    code, printed, _ = command(*small, "--out", tmp_path / "small")
    assert code == 0 and "Ignored in the task files: hint.\n" in printed
    assert "Few test questions, so that accuracies say little: after has 3.\n" in printed
    write(own / "after.json", {"examples": [json.loads(EXAMPLE)]})
    for arguments, missing in ((("--method", "sft"), "train on"), (("--method", "none", "--validation"), "test on")):
        code, printed, error = command(*small, *arguments, "--out", tmp_path / "one")
        assert code == 2 and f"after: no question is left to {missing}; add examples" in error
        assert not (tmp_path / "one").exists()
    assert command(*small, "--method", "none", "--out", tmp_path / "one")[0] == 0


def test_an_edited_task_file_is_noticed(own, tmp_path, command):
    arguments = ("--task", "after", "--out", tmp_path / "run", "--iterations")
    assert command(*arguments, 0, "--data", own)[0] == 0
    moved = own.rename(tmp_path / "elsewhere")
    assert command(*arguments, 1, "--data", f"{moved}/", "--resume")[0] == 0
    file = moved / "after.json"
    file.write_text(file.read_text().replace("follows 3", "comes after 3"))
    code, _, error = command(*arguments, 2, "--data", moved, "--resume")
    assert code == 2 and error.startswith("train.py: after: the file has changed since")
    assert task_files.sums(["word_sorting"], "official") == {}
