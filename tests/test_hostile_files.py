"""Files made by an enemy, and outputs of any kind: each is taken or refused in one sentence, and nothing else happens."""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import hir
from bigbench_tasks import TASKS, Example, generate, load
from feedback import is_correct, judge
from hir import CORRECT, WRONG
from model_t5 import load_checkpoint
from support import checkpoint_files, run_directory, task_list
from support.batches import forward_tokens, make_groups
from support.errors import InputError
from tests.conftest import THOROUGH, record, write
from tests.test_reliability import write_model

CASES = 10_000 if THOROUGH else 240


@contextlib.contextmanager
def little_memory():
    """No more than a gigabyte on top of what the process has: what asks for more fails."""
    if sys.platform != "linux":
        yield
        return
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Bomb:
    """A pickle that would make a file."""

    def __init__(self, call, *arguments):
        self.parts = call, arguments

    def __reduce__(self):
        return self.parts


def bombs(marker):
    """Pickled calls that leave `marker` behind if they are made."""
    code = f"open({str(marker)!r}, 'w')"
    return [
        Bomb(Path.touch, marker), Bomb(os.system, f"touch {marker}"), Bomb(eval, code), Bomb(exec, code),
        Bomb(open, str(marker), "w"), Bomb(subprocess.Popen, ["touch", str(marker)]),
        Bomb(torch.save, torch.ones(1), str(marker)),
    ]  # fmt: skip


@dataclass(repr=False)
class Forms:
    """A small checkpoint in three forms, as file name -> bytes; its tensors; what it loads as; a directory for the damaged."""

    plain: dict
    pickled: dict
    split: dict
    tensors: dict
    loaded: tuple
    place: Path


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    place = tmp_path_factory.mktemp("forms")
    sizes = {"d_model": 8, "d_kv": 2, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    plain = {path.name: path.read_bytes() for path in write_model(place / "plain", **sizes).iterdir()}
    rest = {name: data for name, data in plain.items() if name != "model.safetensors"}
    tensors = {k: v.clone() for k, v in checkpoint_files.read_tensors(place / "plain").items()}
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        checkpoint_files.write_safetensors(place / f"half{i}.safetensors", half)
    weight_map = {name: f"half{i}.safetensors" for i, half in enumerate(halves) for name in half}
    split = {f"half{i}.safetensors": (place / f"half{i}.safetensors").read_bytes() for i in range(2)}
    split["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    loaded = load_checkpoint(place / "plain")
    return Forms(plain, rest | {"pytorch_model.bin": saved(tensors)}, rest | split, tensors, loaded, place / "damaged")


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def load_files(contents, directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in contents.items():
        (directory / name).write_bytes(data)
    with little_memory():
        return load_checkpoint(directory)


@pytest.fixture
def good(forms, tmp_path):
    """The checkpoint in its plain form, to be damaged by hand."""
    for name, data in forms.plain.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def refuses(directory, match):
    with pytest.raises(InputError, match=match):
        load_checkpoint(directory)


# --- Checkpoints damaged by hand --------------------------------------------------------------------------------------


WEIGHTS, SHARED_WEIGHT, NORM = "model.safetensors", "shared.weight", "encoder.final_layer_norm.weight"
BAD_HEADERS = {
    "overlap": lambda h: h[NORM].update(data_offsets=h[SHARED_WEIGHT]["data_offsets"][:1] * 2),
    "beyond the end": lambda h: h[NORM].update(data_offsets=[10**12, 10**12 + 32]),
    "negative": lambda h: h[NORM].update(data_offsets=[-32, 0]),
    "wrong size": lambda h: h[NORM].update(shape=[9]),
    "negative shape": lambda h: h[NORM].update(shape=[-2, -4]),
    "negative size": lambda h: h[NORM].update(shape=[-1, 8]),
    "gap": lambda h: h.pop(NORM) and None,
    "dtype": lambda h: h[NORM].update(dtype="I32"),
    "no dtype": lambda h: h[NORM].update(dtype=["F32"]),
    "no offsets": lambda h: h[NORM].pop("data_offsets") and None,
    "one offset": lambda h: h[NORM].update(data_offsets=[0]),
    "text offsets": lambda h: h[NORM].update(data_offsets="ab"),
    "no object": lambda h: h.update({NORM: 3}),
    "twice": lambda h: json.dumps(h).encode()[:-1] + f', "{NORM}": {json.dumps(h[NORM])}'.encode() + b"}",
    "no json": lambda h: b"{" * 50,
    "deep": lambda h: b'{"a":' + b"[" * 100_000,
    "a list": lambda h: b"[]",
}


def edit_header(data, edit):
    """The bytes of a safetensors file with another header: the bytes that `edit` returns, else what it makes of the JSON."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    text = edit(header)
    text = json.dumps(header).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + data[end:]


@pytest.mark.parametrize("kind", BAD_HEADERS)
def test_lying_safetensors_are_refused(good, forms, kind):
    (good / WEIGHTS).write_bytes(edit_header(forms.plain[WEIGHTS], BAD_HEADERS[kind]))
    refuses(good, r"model\.safetensors: .*; fetch the file again\.")


def test_an_unaligned_header_is_fine(good, forms):
    unaligned = edit_header(forms.plain[WEIGHTS], lambda h: json.dumps(h).encode() + b" ")
    (good / WEIGHTS).write_bytes(unaligned)
    load_checkpoint(good)


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000, -1])
@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_truncated_weights_are_refused(good, forms, name, size):
    (good / WEIGHTS).unlink()
    (good / name).write_bytes((forms.plain | forms.pickled)[name][:size])
    refuses(good, name)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop(NORM), NORM),
        (lambda t: t.update(stranger=torch.ones(1)), "stranger"),
        (lambda t: t.update({NORM: torch.ones(5)}), NORM),
        (lambda t: t.update({NORM: torch.ones(1)}), NORM),  # would broadcast
        (lambda t: t[NORM].__setitem__(3, float("nan")), NORM),
        (lambda t: t.update({"encoder.embed_tokens.weight": t[SHARED_WEIGHT] + 1}), "encoder.embed_tokens.weight"),
        (lambda t: t.update({"lm_head.weight": torch.ones(5, 5)}), "lm_head.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(good, forms, edit, named):
    tensors = {name: tensor.clone() for name, tensor in forms.tensors.items()}
    edit(tensors)
    checkpoint_files.write_safetensors(good / WEIGHTS, tensors)
    refuses(good, named)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "", "..", "sub/x.bin", "gone.bin", "a.txt", 3]
)
def test_an_index_stays_in_its_directory(good, name):
    (good / WEIGHTS).rename(good.parent / "outside.safetensors")
    (good / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {SHARED_WEIGHT: name}}))
    refuses(good, "the index lists|no plain name")


def test_a_tensor_must_be_in_the_file_its_index_says(good, forms):
    (good / WEIGHTS).rename(good / "a.safetensors")
    names = list(forms.tensors)
    for weight_map in (dict.fromkeys([*names, "ghost"], "a.safetensors"), dict.fromkeys(names[1:], "a.safetensors")):
        (good / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        refuses(good, "the tensor")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_runs_no_code(good, write):
    (good / WEIGHTS).unlink()
    for bomb in bombs(good / "marker"):
        write({SHARED_WEIGHT: bomb}, good / "pytorch_model.bin")
        refuses(good, r"pytorch_model\.bin")
    assert not (good / "marker").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("d_model", None), ("d_model", "32"), ("d_model", True), ("d_model", 0), ("num_heads", -1),
        ("dropout_rate", 1.5), ("dropout_rate", float("nan")), ("feed_forward_proj", "silu"),
        ("tie_word_embeddings", "yes"), ("vocab_size", 2000),
        ("relative_attention_num_buckets", 2), ("eos_token_id", [1]),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(good, name, value):
    config = json.loads((good / "config.json").read_text()) | {name: value}
    (good / "config.json").write_text(json.dumps(config))
    refuses(good, name)


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        *((name, data, name) for name in ("config.json", "spiece.model") for data in (None, b"", b"garbage" * 9)),
        (WEIGHTS, None, "no weights"), ("config.json", b"[1]", "config.json"), ("config.json", b"\xff", "config.json"),
        ("tokenizer_config.json", b'{"extra_ids": -1}', "extra_ids"),
    ],
)  # fmt: skip
def test_missing_and_broken_files_are_named(good, name, data, match):
    (good / name).unlink() if data is None else (good / name).write_bytes(data)
    refuses(good, match)
    refuses(good / "nothing", "no such directory")


# --- Files that claim too much ----------------------------------------------------------------------------------------


def edited(data, **values):
    return json.dumps(json.loads(data) | values).encode()


def zipped(data):
    """The same zip archive, but compressed, with 64 MB of zeros in it."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as entry:
                entry.write(old.read(name))
                for _ in range(2 * name.endswith("/0")):
                    entry.write(bytes(1 << 25))
    return file.getvalue()


def vast_pickles(tensors):
    """Small files whose tensors are not: one number seen many times over, one weight under many names, a compressed one."""
    name = "decoder.final_layer_norm.weight"
    everywhere = {f"encoder.block.{i}.layer.0.layer_norm.weight": tensors["shared.weight"] for i in range(10_000)}
    return [saved(tensors | {name: torch.ones(1).expand(1 << 40)}), saved(everywhere), zipped(saved(tensors))]


def test_no_file_claims_more_than_it_holds(forms):
    plain, pickled, place = forms.plain, forms.pickled, forms.place
    config, options = plain["config.json"], plain["tokenizer_config.json"]
    spiece = plain["spiece.model"].replace("▁the".encode(), b"\xff\xfe\xfdthe")
    assert load_files(plain, place) and load_files(pickled, place)
    damaged_files = [
        plain | {"config.json": edited(config, num_layers=10**8)},
        plain | {"config.json": edited(config, vocab_size=10**8, d_model=10**8)},
        plain | {"config.json": edited(config, d_ff=10**8)},
        plain | {"config.json": edited(config, num_layers=999, d_model=10**6 - 1, d_kv=10**6 - 1, num_heads=10**6 - 1)},
        plain | {"config.json": edited(config, decoder_start_token_id=2048)},
        plain | {"config.json": edited(config, eos_token_id=5)},
        plain | {"config.json": bytes(30_000_000)},
        plain | {"tokenizer_config.json": edited(options, extra_ids=10**9)},
        plain | {"spiece.model": spiece},
        plain | {"model.safetensors": (25_000_000).to_bytes(8, "little") + b" " * 25_000_000},
        *(pickled | {"pytorch_model.bin": data} for data in vast_pickles(forms.tensors)),
    ]
    for number, damaged in enumerate(damaged_files):
        with pytest.raises(InputError) as error:
            load_files(damaged, place)
        assert str(place) in str(error.value), number
    bigger = write_model(place.parent / "bigger", vocab_size=4096)
    with pytest.raises(InputError, match="2048 tokens"):  # a vocabulary of half the size would train, in gibberish
        load_checkpoint(bigger)


def test_a_long_task_file_is_refused(tmp_path):
    many = dict.fromkeys(range(300_000), 1)
    good = {"input": "b a", "target": "a b"}
    for bad in (
        {"input": "?", "target_scores": many}, {"input": "x" * 20_001, "target": "x"},
        {"input": "?", "target": "x" * 20_001}, {"input": "?", "target_scores": {"x" * 19_999: 1, "y": 0}},
        {"input": "?", "target": "0", "options": list(range(1001))},
    ):  # fmt: skip
        write(tmp_path / "word_sorting" / "task.json", {"examples": [good, bad]})
        with pytest.raises(InputError, match=r"example 2: .*(options|characters|short)"), little_memory():
            load("word_sorting", tmp_path)


def test_a_damaged_or_hostile_state_is_refused(tmp_path):
    layer = torch.nn.Linear(100, 100)
    parts = {"model": layer, "optimizer": torch.optim.AdamW(layer.parameters())}
    good = {name: part.state_dict() for name, part in parts.items()} | {"lines": [{"iteration": 0}]}
    marker, path, state = tmp_path / "marker", tmp_path / "state.pt", saved(good)
    flipped = bytearray(state)
    flipped[len(state) // 2] ^= 1
    other = torch.nn.Linear(9, 9).state_dict()
    spoiled = {name: tensor * float("nan") for name, tensor in layer.state_dict().items()}
    bad = [b"", state[:-100], state[: len(state) // 2], bytes(flipped), zipped(state), saved({"lines": []}), saved([1])]
    bad += [saved(good | {"model": value}) for value in (*bombs(marker), other, spoiled)]
    bad += [pickle.dumps(bomb) for bomb in bombs(marker)]
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"state\.pt cannot be resumed from"), little_memory():
            run_directory.restore(tmp_path, parts)
    assert not marker.exists()
    path.write_bytes(state)
    assert run_directory.restore(tmp_path, parts) == [{"iteration": 0}]
    for config in (b"", b"[]", b'{"run": 3, "settings": 4}', b'{"run": {}}', None):
        (tmp_path / "config.json").unlink(missing_ok=True)
        if config is not None:
            (tmp_path / "config.json").write_bytes(config)
        with pytest.raises(InputError, match=r"config\.json is missing or damaged"):
            run_directory.check_run(tmp_path, {"run": {}, "settings": {}}, resume=True)


# --- The fuzzer -------------------------------------------------------------------------------------------------------


def fuzz(share):
    """A bounded number of cases: the same ones by default, ever different ones in the thorough tests."""
    how = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    return hypothesis_settings(max_examples=round(CASES * share), derandomize=not THOROUGH, **how)


@pytest.fixture(scope="module")
def outcomes():
    """What became of the cases, counted."""
    counted = Counter()
    yield counted
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    record(
        "fuzzed checkpoints, task files and outputs; other errors than the intended ones fail the test",
        **{"cases": counted.total(), **counted, "megabytes_the_process_held_at_most": round(most / 1e6)},
    )


NUMBERS = [-1, 0, 1, 2, 10**8, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")]
TEXTS = ["", "..", "../x.bin", "/etc/passwd"]
VALUES = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *TEXTS]) | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def exchange(draw, tree):
    """A JSON value in which one part, anywhere, is gone or another."""
    if isinstance(tree, dict | list) and tree and draw(st.integers(0, 5)):
        tree = copy.copy(tree)
        key = draw(st.sampled_from(sorted(tree))) if isinstance(tree, dict) else draw(st.integers(0, len(tree) - 1))
        if draw(st.integers(0, 5)):
            tree[key] = exchange(draw, tree[key])
        else:
            del tree[key]
        return tree
    return draw(VALUES)


def damage(draw, data):
    """Bytes with up to three changes, insertions, repetitions or cuts; near the beginning, near the end, or anywhere."""
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        at = min(draw(st.integers(0, 300) | st.integers(0, len(data)) | st.integers(0, len(data))), len(data))
        at = draw(st.sampled_from([at, len(data) - at]))
        length, piece = draw(st.integers(0, 50)), draw(st.binary(max_size=4))
        change = draw(st.sampled_from(["overwrite", "overwrite", "overwrite", "insert", "delete", "repeat", "cut"]))
        if change == "cut":
            data = data[:at]
        elif change == "repeat":
            data = data[: at + length] + data[at:]
        else:
            after = {"delete": at + length, "overwrite": at + len(piece), "insert": at}[change]
            data = data[:at] + (b"" if change == "delete" else piece) + data[after:]
    return data


def damage_pickle(draw, tensors, marker):
    """A pickle with something else in the place of a tensor, or of all of them."""
    strange = st.sampled_from([
        *bombs(marker), torch.ones(3, dtype=torch.int32), torch.ones(2, 2).to_sparse(), torch.ones(1).expand(10**9),
        torch.empty(10**9, device="meta"), torch.full((8,), float("nan")), torch.ones(8, dtype=torch.complex64),
        torch.nn.Parameter(torch.ones(8)), [torch.ones(8)], "text", None,
    ])  # fmt: skip
    name = draw(st.sampled_from(sorted(tensors)))
    value = draw(
        st.sampled_from([{**tensors, name: draw(strange)}, {**tensors, draw(st.text()): draw(strange)}, draw(strange)])
    )
    if draw(st.booleans()):
        return saved(value, _use_new_zipfile_serialization=draw(st.booleans()))
    return pickle.dumps(value)


@fuzz(0.5)
@given(st.data())
def test_any_checkpoint_is_loaded_or_refused(forms, outcomes, data):
    place, marker = forms.place, forms.place.parent / "marker"
    form = getattr(forms, data.draw(st.sampled_from(["plain", "pickled", "split"])))
    name = data.draw(st.sampled_from(sorted(form)))
    content = form[name]
    way = data.draw(st.sampled_from(["bytes", "structure"]))
    if way == "bytes" or name == "spiece.model":
        content = damage(data.draw, content)
    elif name.endswith("json"):
        content = json.dumps(exchange(data.draw, json.loads(content))).encode()
    elif name.endswith("safetensors"):
        content = edit_header(content, lambda header: json.dumps(exchange(data.draw, header)).encode())
    else:
        content = damage_pickle(data.draw, forms.tensors, marker)
    try:
        model, tokenizer = load_files(form | {name: content}, place)
        assert all(p.isfinite().all() for p in model.parameters())
        hir.sample(model, tokenizer, ["Q: a b, (A) ü"], 2, 1.0, 3)
        outcomes["checkpoints_loaded"] += 1
    except InputError as error:
        assert str(place) in str(error)
        outcomes["checkpoints_refused"] += 1
    assert not marker.exists()


GOOD = [
    {"input": "Sort: b a", "target": ["a b"]}, {"input": "How many?", "target": ["2", "two"]},
    {"input": "Which?", "target_scores": {"red": 0, "blue": 1}}, {"input": "2 + 2?", "target": 4, "steps": "2, 3, 4"},
    {"input": "Which?\nOptions:\n(A) red\n(B) blue", "target": "(B)"}, {"input": "?", "target": "b", "options": ["a", "b"]},
]  # fmt: skip


@fuzz(0.25)
@given(st.data())
def test_any_task_file_is_read_or_refused(forms, outcomes, data):
    place = forms.place.parent / "tasks"
    task = data.draw(st.sampled_from(["word_sorting", "object_counting"]))  # which are the names of their directories
    tree = {"examples": GOOD, "task_prefix": "Do this.\n\n", "example_input_prefix": "Q: "}
    tree |= {name: ["said elsewhere in such a file", {"or": 1}] for name in ("name", "description", "keywords")}
    way = data.draw(st.sampled_from(["bytes", "structure", "both"]))
    content = json.dumps(tree if way == "bytes" else exchange(data.draw, tree)).encode()
    content = content if way == "structure" else damage(data.draw, content)
    path = write(place / task / "task.json", content)
    try:
        with little_memory():
            examples = load(task, place, data.draw(st.sampled_from(["shuffled", "official"])))
            task_list.remarks([task], str(place))
        outcomes["task_files_read"] += 1
    except InputError as error:
        assert str(path) in str(error)
        outcomes["task_files_refused"] += 1
        return
    for example in examples:
        assert example.targets and all(isinstance(is_correct(target, example), bool) for target in example.targets)
        hir.prompt(CORRECT, example.question).encode()


@fuzz(0.25)
@given(st.data())
def test_any_output_is_judged_and_relabeled(forms, outcomes, data):
    model, tokenizer = forms.loaded
    ids = st.lists(st.integers(-10, 3000), max_size=12)
    output = tokenizer.decode(data.draw(ids)) if data.draw(st.booleans()) else data.draw(st.text(max_size=40))
    example = data.draw(st.sampled_from(EXAMPLES))
    tokens = tuple(tokenizer.encode(output))
    sample = hir.make_sample(example, tokens, tokenizer)
    for any_example in EXAMPLES:
        assert judge(output, any_example) in ("right", "wrong", "malformed")
        assert judge(f"{output}#", any_example) == "malformed"  # no answer contains this sign
    for sub_output in ("encoder", "decoder", "answer", "none"):
        relabeled = hir.relabel([sample], tokenizer, hir.Settings(sub_output=sub_output), random.Random(0))
        assert all(0 <= e.start <= e.compared < len(e.output) for e in relabeled)
        assert relabeled[0].instruction == (CORRECT if sample.verdict == "right" else WRONG)
        groups = make_groups(relabeled)
        forward_tokens(model, tokenizer, hir.prompt, groups, (CORRECT, WRONG))
    outcomes["outputs_judged"] += 1


EXAMPLES = [example for task in TASKS for example in generate(task, 3, seed=5)] + [Example("?", ("(A)",), (" .", "."))]
