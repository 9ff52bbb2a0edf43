"""The systems that bench compares: each is a function that prepares and returns the function that is timed.

All have the same weights, token ids and questions, and go from text to text or from text to an updated model. t5-mini has
its own weights; FLAN-T5's shapes have random ones, and t5-mini's vocabulary.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import hir
from baselines.imitation import demonstrations
from bigbench_tasks import Example, generate
from model_t5 import T5, T5Config, Tokenizer, load_checkpoint, save_checkpoint
from support import REPOSITORY
from support.batches import TrainingExample, make_groups, pad
from support.learner import Learner
from support.machine import MachineSettings, keep_freed_memory, place

FLAN = {"d_kv": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SHAPES = {
    "small": T5Config(d_model=512, d_ff=1024, num_layers=8, num_heads=6, **FLAN),
    "base": T5Config(d_model=768, d_ff=2048, num_layers=12, num_heads=12, **FLAN),
    "large": T5Config(d_model=1024, d_ff=2816, num_layers=24, num_heads=16, **FLAN),
}
RUNS = REPOSITORY / "runs"
MINI = REPOSITORY / "checkpoints" / "t5-mini"
TASK = "logical_deduction_three_objects"
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    work: str  # a key of WORK
    system: str  # a key of WORK[work]
    shape: str  # "mini", or a key of SHAPES
    dtype: str = "bfloat16"
    questions: int = 16
    samples: int = 4  # per question
    temperature: float = 1.0
    max_new_tokens: int = 8
    source_length: int = 0  # of every question, cut or repeated; 0: unchanged
    micro_batch_size: int = 0  # if set, blocks are recomputed in the backward pass
    compile: bool = False
    device = "cpu"  # no field: bench measures only on the CPU, gpu_check elsewhere too

    @property
    def outputs(self) -> int:
        """How many outputs a call draws, or learns."""
        return self.questions * (1 if self.work == "supervised step" else self.samples)


# --- What systems share -----------------------------------------------------------------------------------------------


def open_ours(job: Job) -> tuple[T5, Tokenizer]:
    """Our model, as in a run."""
    keep_freed_memory()
    model, tokenizer = load_checkpoint(MINI)
    if job.shape != "mini":
        torch.manual_seed(0)
        model = T5(SHAPES[job.shape]).eval()
    machine = MachineSettings(compile=job.compile, gradient_checkpointing=job.micro_batch_size > 0)
    return place(model, machine, torch.device(job.device), getattr(torch, job.dtype)), tokenizer


def folder(job: Job) -> Path:
    """The checkpoint of a shape, for the peers; one with random weights is written at first use."""
    path = MINI if job.shape == "mini" else RUNS / f"bench-{job.shape}-random"
    if not (path / "config.json").exists():
        save_checkpoint(path, *open_ours(job))
    return path


def open_transformers(job: Job, dtype: torch.dtype) -> tuple[torch.nn.Module, Tokenizer]:
    """The peer's model with weights of this dtype, and our tokenizer."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder(job), dtype=dtype).eval().to(job.device)
    return model, Tokenizer(MINI / "spiece.model")


def examples(job: Job, tokenizer: Tokenizer) -> list[Example]:
    """Questions, of one length if the job asks for one."""
    found = generate(TASK, job.questions, seed=0)
    if not job.source_length:
        return found
    length = job.source_length - len(tokenizer.encode(hir.prompt(hir.CORRECT, "")))
    ids = [(tokenizer.encode(example.question)[:-1] * job.source_length)[:length] for example in found]
    return [replace(example, question=tokenizer.decode(row)) for example, row in zip(found, ids, strict=True)]


def prompts(job: Job, tokenizer: Tokenizer) -> list[str]:
    """The source texts to be answered."""
    return [hir.prompt(hir.CORRECT, example.question) for example in examples(job, tokenizer)]


def relabeled(job: Job, tokenizer: Tokenizer) -> list[TrainingExample]:
    """What HIR trains on if each question was answered with each letter, and once in words: four outputs a question."""
    samples = [
        hir.make_sample(example, tuple(tokenizer.encode(output)), tokenizer)
        for example in examples(job, tokenizer)
        for output in ("(A)", "(B)", "(C)", f"(A) {example.options[0]}")
    ]
    return hir.relabel(samples, tokenizer, hir.Settings(sub_output="none"), random.Random(0))


def sources(tokenizer: Tokenizer, texts: list[str], device: str = "cpu") -> dict[str, Tensor]:
    """Texts as transformers takes them."""
    input_ids, attention_mask = pad([tokenizer.encode(text) for text in texts], tokenizer.pad_token_id, device)
    return {"input_ids": input_ids, "attention_mask": attention_mask.long()}


def our_step(examples: Callable[[Job, Tokenizer], list[TrainingExample]], job: Job, **settings: float) -> Callable:
    """Our gradient step on training examples: on L_final (Eq. 6), unless the settings differ."""
    model, tokenizer = open_ours(job)
    groups, settings = make_groups(examples(job, tokenizer)), hir.Settings(learning_rate=LEARNING_RATE, **settings)
    learner = Learner(model, tokenizer, MachineSettings(micro_batch_size=job.micro_batch_size), settings)

    def run() -> float:
        hir.learn(learner, groups, settings)
        return learner.steps.pop()["supervised"]

    return run


def peer_step(model: torch.nn.Module, accumulate: Callable[[], float]) -> Callable[[], float]:
    """A peer's gradient step, around `accumulate`, which computes loss and gradient."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = accumulate()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return run


# --- The systems: each makes a function, a call of which is timed -----------------------------------------------------


def sampling_ours(job: Job) -> Callable:
    """hir.sample. All systems go from text to text."""
    model, tokenizer = open_ours(job)
    texts, how = prompts(job, tokenizer), (job.samples, job.temperature, job.max_new_tokens)
    return lambda: hir.sample(model, tokenizer, texts, *how, torch.Generator().manual_seed(0))


def sampling_transformers(job: Job) -> Callable:
    """`generate`, with the weights in the compute dtype."""
    model, tokenizer = open_transformers(job, getattr(torch, job.dtype))
    texts, eos, device = prompts(job, tokenizer), tokenizer.eos_token_id, job.device
    drawing = {"do_sample": True, "top_k": 0} if job.temperature else {"do_sample": False}
    how = {"num_return_sequences": job.samples, "max_new_tokens": job.max_new_tokens, "eos_token_id": eos} | drawing

    @torch.no_grad()
    def run() -> list[list[str]]:
        rows = model.generate(**sources(tokenizer, texts, device), **how).tolist()
        answers = [tokenizer.decode(row) for row in rows]
        return [answers[i : i + job.samples] for i in range(0, len(answers), job.samples)]

    return run


def sampling_ctranslate2(job: Job) -> Callable:
    """CTranslate2: its float32, or its int8 where the others compute in bfloat16."""
    import ctranslate2

    weights = (folder(job) / "model.safetensors").stat()  # other weights are converted anew
    converted = RUNS / f"bench-{job.shape}-ctranslate2-{weights.st_mtime_ns}"
    if not converted.exists():
        scratch = converted.with_suffix(f".{os.getpid()}.part")
        ctranslate2.converters.TransformersConverter(str(folder(job))).convert(str(scratch))
        scratch.rename(converted)
    kind = "float32" if job.dtype == "float32" else "int8"
    threads = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
    engine = ctranslate2.Translator(str(converted), compute_type=kind, **threads)
    tokenizer = Tokenizer(MINI / "spiece.model")
    texts, pieces = prompts(job, tokenizer), tokenizer.pieces
    how = {"num_hypotheses": job.samples, "sampling_topk": 0 if job.temperature else 1}

    def run() -> list[list[str]]:
        tokens = [[pieces.id_to_piece(i) for i in tokenizer.encode(text)] for text in texts]
        results = engine.translate_batch(tokens, beam_size=1, max_decoding_length=job.max_new_tokens, **how)
        return [[pieces.decode(output) for output in result.hypotheses] for result in results]

    return run


def right_answers(job: Job, tokenizer: Tokenizer) -> list[TrainingExample]:
    """The questions with the letters of their right answers."""
    return demonstrations(examples(job, tokenizer), tokenizer)


def as_batch(pairs: list[TrainingExample], tokenizer: Tokenizer, device: str) -> dict[str, Tensor]:
    """The arguments of either model: sources, and labels with -100 at padding."""
    ids, mask = pad([pair.output for pair in pairs], 0, device)
    texts = [hir.prompt(pair.instruction, pair.question) for pair in pairs]
    return sources(tokenizer, texts, device) | {"labels": ids.masked_fill(~mask, hir.IGNORE)}


def supervised_transformers(job: Job) -> Callable:
    """The same step with transformers' model and loss, in autocast."""
    model, tokenizer = open_transformers(job, torch.float32)
    pairs = right_answers(job, tokenizer)

    def accumulate() -> float:
        batch = as_batch(pairs, tokenizer, job.device)
        with torch.autocast(job.device, torch.bfloat16, enabled=job.dtype == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        return loss.item()

    return peer_step(model, accumulate)


def hir_authors(job: Job) -> Callable:
    """The authors' recipe for the same step: one output at a time, three forward passes each, bfloat16 weights.

    One pass for L_supervise and the entropy, two for L_contrastive, which is smoothed as well; gradients accumulate.
    """
    model, tokenizer = open_transformers(job, getattr(torch, job.dtype))
    outputs, smoothing, beta = relabeled(job, tokenizer), 0.2, 0.001

    def accumulate() -> float:
        total = 0.0
        for example in outputs:
            other = hir.WRONG if example.instruction == hir.CORRECT else hir.CORRECT
            labels = torch.tensor([example.output])
            texts = [hir.prompt(p, example.question) for p in (example.instruction, example.instruction, other)]
            own, again, others = (model(**sources(tokenizer, [text]), labels=labels).logits.float() for text in texts)
            shares = torch.stack([-hir.supervised_loss(logits, labels) for logits in (again, others)]).log_softmax(0)
            supervised = hir.supervised_loss(own, labels, smoothing)
            contrastive = -(1 - smoothing) * shares[0] - smoothing * shares[1]
            ((supervised + contrastive + beta * hir.entropy_loss(own, labels)) / len(outputs)).backward()
            total += supervised.item() * len(example.output)
        return total / sum(len(example.output) for example in outputs)

    return peer_step(model, accumulate)


def limit(job: Job) -> Callable:
    """The machine's own matrix product: the feed-forward layer's, for all source tokens of the questions."""
    config, tokenizer = SHAPES.get(job.shape) or load_checkpoint(MINI)[0].config, Tokenizer(MINI / "spiece.model")
    tokens, dtype = sum(len(tokenizer.encode(text)) for text in prompts(job, tokenizer)), getattr(torch, job.dtype)
    x, weight = (torch.randn(rows, config.d_model, dtype=dtype) for rows in (tokens, config.d_ff))
    return lambda: F.linear(x, weight)


WORK = {
    "sampling": {"ours": sampling_ours, "transformers": sampling_transformers, "CTranslate2": sampling_ctranslate2},
    "supervised step": {
        "ours": partial(our_step, right_answers, alpha=0.0, beta=0.0, label_smoothing=0.0),
        "transformers": supervised_transformers,
    },
    "HIR step": {"ours": partial(our_step, relabeled), "authors' recipe": hir_authors},
}
for systems in WORK.values():
    systems["limit"] = limit
