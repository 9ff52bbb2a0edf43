"""How much of an outcome can PPO's critic predict, and how much could any?  python -m experiments.critic

A value is a function of the question and the tokens so far. Outputs that begin with the same tokens still end differently,
and no critic can know how. With many outputs for each question, the variance of outcomes within groups of outputs with a
common beginning can be measured; what is left of the total variance is the most that a critic can explain, if it knows
every question's difficulty for this model.

PPO's critic is then fitted to the outcomes of other outputs, of ever more questions, and predicts new ones. The policy does
not change meanwhile, which makes this easier than in PPO. Each task becomes a line of results/critic.jsonl.
"""

import json
import random
import statistics
from dataclasses import replace

import hir
import train
from baselines import ppo
from bigbench_tasks import expand
from support import REPOSITORY
from support.batches import group_by
from support.files import write_lines
from support.learner import Learner
from support.seeds import seeds

RESULTS = REPOSITORY / "results" / "critic.jsonl"
TASKS = "logical_deduction_three_objects,geometric_shapes"
SETTINGS = f"--method ppo --task {TASKS} --questions 800 --ppo-value-learning-rate 1e-3 --ppo-kl-coef 0"
QUESTIONS, OUTPUTS = 40, 64  # for what can be explained
FITTED, EPOCHS = (100, 800, 3200), 4  # for what the critic explains: outputs, passes over them
TESTED = 400  # outputs


def sampled(s: train.AllSettings, learner: Learner, task: str, iteration: int) -> list[hir.Sample]:
    """The outputs of an iteration, judged."""
    examples = train.training_questions(s.run, [task], iteration)
    return hir.sample_online(learner, examples, s.method, seeds(s.run.seed, iteration)[1])


def explainable(states: list[tuple[hir.Sample, int]]) -> float:
    """The largest share of the variance of outcomes that values of these states can explain.

    A state is an output and how many of its tokens have been written. The variance within a group of equal states is
    estimated without bias, which takes a group of at least two.
    """
    total = statistics.pvariance([s.verdict == "right" for s, _ in states])
    groups = group_by(states, key=lambda state: (state[0].example.question, state[0].tokens[: state[1]]))
    groups = [[s.verdict == "right" for s, _ in group] for group in groups if len(group) > 1]
    within = sum(len(group) * statistics.variance(group) for group in groups) / max(1, sum(map(len, groups)))
    return 1 - within / total if total else 0.0


def ceilings(samples: list[hir.Sample]) -> dict[str, float]:
    """What can be explained before the output, before its answer, and on average over all its tokens."""
    states = {
        "before_output": [(s, 0) for s in samples],
        "before_answer": [(s, s.answer_start) for s in samples],
        "all_tokens": [(s, t) for s in samples for t in range(len(s.tokens))],
    }
    return {key: round(explainable(found), 4) for key, found in states.items()}


def explained(s: train.AllSettings, learner: Learner, seen: list[hir.Sample], unseen: list[hir.Sample]) -> float:
    """What the critic explains of new outputs, as an average over their tokens, after it was fitted to others."""
    state = ppo.PPO(learner, s.ppo)
    rollouts, _ = ppo.roll_out(learner, state, seen, s.method)
    state.critic.start_iteration(progress=0.0)
    ppo.fit_critic(state.critic, rollouts, EPOCHS, s.method.train_batch_size, random.Random(s.run.seed))
    return round(ppo.roll_out(learner, state, unseen, s.method)[1]["explained_variance"], 4)


def main() -> None:
    """The command."""
    s = train.parse_arguments(SETTINGS.split())
    many = replace(s, run=replace(s.run, questions=QUESTIONS), method=replace(s.method, online_samples=OUTPUTS))
    learner, lines = Learner(*train.load_model(s.run, s.machine), s.machine, s.method), []
    for task in expand(s.run.task):
        samples = sampled(many, learner, task, iteration=1)
        line = {"task": task, "right_share": statistics.mean(sample.verdict == "right" for sample in samples)}
        line |= {"explainable": ceilings(samples), "explained": {}}
        seen, unseen = (sampled(s, learner, task, iteration) for iteration in (2, 3))
        for n in FITTED:
            line["explained"][n] = explained(s, learner, seen[:n], unseen[:TESTED])
        lines.append(line)
        write_lines(RESULTS, lines)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
