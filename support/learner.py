"""The gradient step: optimizer and schedule, micro-batches, processes, and numbers that are not finite."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from support import processes
from support.batches import Group, TrainingExample, count, shape
from support.machine import MachineSettings

MAX_LEFT_OUT = 10  # the run ends when so many gradient steps of an iteration were left out


@dataclass(frozen=True)
class Iteration:
    """What a method did in an iteration: the samples it drew, some of what it trained on, and what else it measured."""

    samples: list[Any]
    examples: list[TrainingExample]
    measured: dict[str, float] = field(default_factory=dict)


LossTerms = Callable[[list[Group]], dict[str, Tensor]]


class Learner:
    """A model with everything that trains it: tokenizer, machine, optimizer, schedule."""

    def __init__(self, model, tokenizer, machine: MachineSettings, settings):
        """settings: learning_rate, warmup_steps and final_learning_rate."""
        self.model, self.tokenizer, self.machine = model, tokenizer, machine
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
        self.warmup_steps, self.final_learning_rate = settings.warmup_steps, settings.final_learning_rate
        self.progress = 0.0  # of the run: 0 in the first iteration, 1 in the last
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate_factor)
        self.training_seconds = 0.0
        self.steps: list[dict[str, float] | None] = []  # of this iteration; None for a step that was left out

    def parameters(self) -> list[torch.nn.Parameter]:
        """All parameters that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def states(self) -> dict[str, Any]:
        """All that must be saved to resume training, by name."""
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def rate_factor(self, step: int) -> float:
        """The learning rate's factor: warm-up over the first steps of the run, then decay from iteration to iteration."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * (1 - (1 - self.final_learning_rate) * self.progress)

    def start_iteration(self, progress: float) -> None:
        """Set the learning rate for an iteration. progress: 0 for the first of a run, 1 for the last."""
        self.progress = progress
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.base_lrs, strict=True):
            group["lr"] = rate * self.rate_factor(self.scheduler.last_epoch)

    def gradient_step(
        self, groups: list[Group], loss_terms: LossTerms, total: Callable[[dict], Tensor], dropout: bool = True
    ) -> None:
        """One optimizer step on `total(loss_terms(groups))`, where `total` is a weighted sum of the terms.

        Each term is a mean over the tokens to be learned ("contrastive", "surrogate": over the examples). Micro-batches
        and processes each take a part of the groups. A part's mean is weighted with its share of the tokens, so that the
        gradient is that of the complete batch, however it is cut. If a term or the gradient is not finite, the step is
        left out and its examples are printed. Raises FloatingPointError if that happens too often.
        """
        begin = time.perf_counter()
        self.model.train(dropout)
        self.optimizer.zero_grad(set_to_none=True)
        (num_tokens, num_examples), done = count(groups), []
        for part in processes.rounds(sorted(groups, key=shape), self.machine.micro_batch_size or len(groups)):
            tokens, examples = count(part)
            with self.model.autocast():
                terms = loss_terms(part or groups[:1])  # a process with no groups left still takes part, with weight 0
            weights = dict.fromkeys(("contrastive", "surrogate"), examples / num_examples)
            terms = {name: term * weights.get(name, tokens / num_tokens) for name, term in terms.items()}
            total(terms).backward()
            done.append((part, torch.stack([term.detach() for term in terms.values()])))
        processes.sum_gradients(self.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.machine.max_grad_norm)
        means = processes.sum_values(sum(values for _, values in done))
        if means.isfinite().all() and norm.item() < float("inf"):  # alike in all processes
            self.optimizer.step()
            self.scheduler.step()
            self.steps.append(dict(zip(terms, means.tolist(), strict=True)))
        else:
            show_examples(done, groups)
            self.steps.append(None)
            self.check_weights()
            if self.steps.count(None) == MAX_LEFT_OUT:
                raise FloatingPointError(_NOT_FINITE.format(MAX_LEFT_OUT))
        self.training_seconds += time.perf_counter() - begin

    def finish_iteration(self) -> tuple[dict[str, float], float]:
        """The mean of each term over the iteration's steps, with the number left out, if any; and the seconds taken.

        Raises FloatingPointError if the weights are not finite.
        """
        steps, self.steps = self.steps, []
        seconds, self.training_seconds = self.training_seconds, 0.0
        taken = [terms for terms in steps if terms is not None]
        if steps and not taken:
            raise FloatingPointError(_NOT_FINITE.format(len(steps)))
        self.check_weights()
        means = {name: sum(terms[name] for terms in taken) / len(taken) for name in (taken[0] if taken else ())}
        left_out = {"steps_left_out": len(steps) - len(taken)} if len(taken) < len(steps) else {}
        return means | left_out, seconds

    def check_weights(self) -> None:
        """Raise FloatingPointError unless all weights and the optimizer's state are finite."""
        kept = [value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        finite = all(processes.local(tensor).isfinite().all() for tensor in (*self.parameters(), *kept))
        if not all(processes.gather([finite])):
            raise FloatingPointError("weights or the optimizer's state are not finite: try a smaller --learning-rate")


_NOT_FINITE = "{} gradients were not finite: try --dtype float32, or other values"


def show_examples(parts: list[tuple[list[Group], Tensor]], groups: list[Group]) -> None:
    """Print the examples of a step that is left out.

    parts: what this process has computed, groups with the terms of their loss. If these are finite in all processes, it
    is the gradient that is not, and the examples can only be narrowed down to the batch.
    """
    suspects = [group for part, terms in parts if not terms.isfinite().all() for group in part]
    suspects = processes.gather(suspects) or groups
    if processes.rank() == 0:
        lines = [f"    {example}" for group in suspects for example in group]
        tqdm.write("\n".join(["Step left out, a loss or gradient is not finite:", *lines]), file=sys.stderr)
