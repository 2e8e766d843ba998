"""GRPO: a model answers, a rule says how good each answer is, and what is better than its neighbours is made likelier.

    python -m llama.methods.grpo --model weights/sums --reward arithmetic --steps 100 --output weights/sums-grpo
    python -m llama.methods.grpo --lora --chat --reward format --steps 20

To each of P prompts G answers o are drawn. With r the reward of each, and the mean and the deviation of its group:

    A = (r - mean r) / std r                                                           (arXiv:2402.03300, section 4.1.2)
    the mean over all answers of 1/|o| Σ_t  min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) - β D,   ρ = π(o_t) / π_old(o_t)   (eq. 3)
    D = π₀(o_t) / π(o_t) - log (π₀(o_t) / π(o_t)) - 1, never negative, in the mean the KL divergence from π₀     (eq. 4)

Nothing estimates values: a group is its own baseline, and where all its answers are alike, nothing is learned of it.
Answers are drawn at temperature 1, since what is learned is the distribution that they are drawn from.

Try: let `advantages` leave the mean out; tests/test_grpo.py (test_worked_example_advantages_by_hand) fails, and every
answer with a reward would be pushed up, the worse of two as well.
"""

import copy
import dataclasses
import json
import math
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    from llama.checkpoint import PretrainedLlama, save_model
    from llama.commands import flags
    from llama.datasets.token_file import tokenizer_sha256
    from llama.fast.agreement import use_custom_gradients
    from llama.fast.custom_autograd import restore_autograd
    from llama.freeze import trainable_parameters
    from llama.generation import encode_prompt, generate
    from llama.heads import require_lm_head
    from llama.lora.files import load_adapter, save_adapter
    from llama.lora.swap import adapter_configs, add_lora, has_lora, merge_lora, without_adapters
    from llama.lora.targets import LoRAConfig
    from llama.methods.preferences import loglikelihoods
    from llama.pretrained import get_model
    from llama.quantization.swap import is_quantized
    from llama.runtime import cli, distributed, run_lock
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.interrupt import Stopped, signals_wait
    from llama.runtime.ranges import FACTORS, MANY, MOST_TOKENS, Range, check_ranges
    from llama.sampling import SamplingConfig
    from llama.tasks.instruction import InstructionTask
    from llama.tasks.task import Batch, Sample, Task, to_device
    from llama.training import run_state
    from llama.training.digest import digest
    from llama.training.objective import Plain
    from llama.training.optimizer import MasterWeights, make_optimizer
    from llama.training.verify_saved import verify_saved
    from tokenizer.chat import stop_ids
    from weights.formats.paths import home

ALIKE = 1e-4                                                        # beside a deviation, so that none divides by 0
LARGEST_NORM = 1.0                                                  # of the gradient
HELD_OUT = 5                                                        # one question in so many is asked, never learned


@dataclass(frozen=True)
class GRPOConfig:
    """How answers are drawn, rewarded and learned."""

    reward: Annotated[Literal["arithmetic", "format"], "arithmetic: the sum is right; format: the answer is "
                      "<answer>NUMBER</answer> and nothing else"] = "arithmetic"
    largest: Annotated[int, "summands are 0 to this", Range(1, 10**9)] = 20
    steps: Annotated[int, "times that answers are drawn", Range(1, MANY)] = 100
    minutes: Annotated[float, "stop after so many minutes; 0 for no limit", Range(1e-6, 1e7, off=True)] = 0.0
    prompts: Annotated[int, "questions a step", Range(1, 65_536)] = 8
    group: Annotated[int, "answers to each question", Range(2, 65_536)] = 8
    new_tokens: Annotated[int, "tokens of an answer, at most", Range(1, MOST_TOKENS)] = 16
    updates: Annotated[int, "updates by the answers of a step", Range(1, 1000)] = 1
    clip: Annotated[float, "how far an answer's probability may move in a step, as a part of it; 0 for any", FACTORS] \
        = 0.2
    kl: Annotated[float, "pull towards the model as it was before; 0 for none", FACTORS] = 0.0
    lr: Annotated[float, "learning rate", Range(1e-12, 1e3)] = 1e-4
    batch_size: Annotated[int, "answers that go through the model at once", Range(1, 65_536)] = 32
    eval_prompts: Annotated[int, "held-out questions, answered greedily before and after; 0 for none",
                            Range(0, MANY)] = 64
    save_every: Annotated[int, "save what --resume needs every so many steps; 0 for the end", Range(0, MANY)] = 20

    def __post_init__(self) -> None:
        check_ranges(self)


RESUMABLE = ("steps", "minutes", "batch_size", "eval_prompts", "save_every")    # may be others when a run goes on


# ---- questions, and rules that say how good an answer is -------------------------------------------------------------


class Question(NamedTuple):
    """raw: as a text to continue; asked: as what a user says; answer: what is right."""

    raw: str
    asked: str
    answer: int


def draw_questions(count: int, largest: int, seed: int, *, reward: str, held_out: bool) -> list[Question]:
    """Sums of two numbers from 0 to `largest`, each held out or not by its summands alone."""
    drawn, found = random.Random(seed), []
    how = {"arithmetic": "Reply with the number alone.",
           "format": "Write the result as <answer>NUMBER</answer>."}[reward]
    while len(found) < count:
        a, b = drawn.randint(0, largest), drawn.randint(0, largest)
        if ((31 * a + b) % HELD_OUT == 0) == held_out:
            found.append(Question(f"{a}+{b}=", f"What is {a} + {b}? {how}", a + b))
    return found


def right_sum(text: str, question: Question) -> float:
    """1 if the first number of an answer is right, or else 0."""
    number = re.search(r"-?\d+", text)
    return float(number is not None and number[0] == str(question.answer))


def right_format(text: str, question: Question) -> float:
    """A third each for beginning with <answer>, ending with </answer>, and a number alone between them."""
    text = text.strip()
    inside = text.removeprefix("<answer>").removesuffix("</answer>")
    return (text.startswith("<answer>") + text.endswith("</answer>") + (inside.strip().isdecimal())) / 3


REWARDS: dict[str, Callable[[str, Question], float]] = {"arithmetic": right_sum, "format": right_format}


# ---- the loss --------------------------------------------------------------------------------------------------------


def advantages(rewards: Tensor) -> Tensor:
    """(P, G) -> (P, G): how many deviations each answer is better than its group; 0 where all are alike."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + ALIKE)


def token_loss(logps: Tensor, old: Tensor, advantage: Tensor, reference: Tensor | None = None, *, clip: float = 0.2,
               kl: float = 0.0) -> Tensor:
    """What is minimised, of each token (N,): log-likelihoods now, when the answers were drawn, and before training."""
    ratio = torch.exp(logps - old)
    gain = ratio * advantage
    if clip:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return kl * k3(logps, reference) - gain if kl else -gain


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Of tokens drawn from π: π₀/π - log (π₀/π) - 1, in the mean KL(π | π₀) (joschu.net/blog/kl-approx.html)."""
    less = reference - logps
    return torch.exp(less) - less - 1


@dataclass(frozen=True)
class Answer(Sample):
    """A prompt and an answer, learned with this advantage; of its tokens the log-likelihoods when it was drawn and
    before training, where they are needed."""

    advantage: float = 0.0
    old: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)


class Answers(Task):
    """Answers as batches: beside Task's, of each learned token "advantages", "weights" 1/|o|, "old" and "reference"."""

    def collate(self, samples: Sequence[Answer]) -> Batch:
        spread = {"advantages": [[each.advantage] * each.targets for each in samples],
                  "weights": [[1 / each.targets] * each.targets for each in samples],
                  "old": [each.old for each in samples], "reference": [each.reference for each in samples]}
        # Row after row, as `rows` finds them; the model reads at most what the longest holds.
        return super().collate(samples) | {name: torch.tensor(sum(some, [])) for name, some in spread.items()}


class Policy(Plain):
    """The loss of answers, each the mean over its tokens, summed; and their number."""

    def __init__(self, model: PretrainedLlama, config: GRPOConfig):
        super().__init__(model, Answers())
        self.config = config

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        logps = self.scores(batch)
        old = batch["old"] if len(batch["old"]) else logps.detach()
        each = token_loss(logps, old, batch["advantages"], batch["reference"], clip=self.config.clip, kl=self.config.kl)
        return (each * batch["weights"]).sum(), len(batch["tokens"])

    def scores(self, batch: Batch) -> Tensor:
        """Log-likelihoods (N,) of the learned tokens."""
        states = self.task.states(self.model.hidden(batch["tokens"]), batch)
        return loglikelihoods(states, self.task.targets(batch), self.task.head(self.model))


# ---- the loop --------------------------------------------------------------------------------------------------------


class GRPO:
    """Draw, reward, learn. `train()` returns {"train": …, "eval_before": …, "eval": …, "output": …}.

    chat    ask questions as a user would, in the model's chat format; else as text to continue
    dtype   to compute in, with float32 masters of what is learned; None: the parameters' own
    resume  go on from the newest state in OUTPUT.training
    """

    def __init__(self, model: PretrainedLlama, config: GRPOConfig, *, chat: bool = False, seed: int = 0,
                 dtype: torch.dtype | None = None, output: Path | None = None, resume: bool = False):
        require_lm_head(model)
        self.model, self.config, self.seed, self.output = model, config, seed, output
        self.format = InstructionTask().format(model.tokenizer) if chat else None
        self.ends = set(stop_ids(self.format, model.tokenizer))
        if not self.ends:
            raise ValueError("the tokenizer names no token that ends a text, so answers would never end; give one that "
                             "does, or --chat")
        if config.prompts % distributed.size():
            raise ValueError(f"--prompts {config.prompts} cannot be shared evenly by {distributed.size()} processes")
        self.before = copy.deepcopy(model) if config.kl and not has_lora(model) else None
        self.policy = Policy(model, config)
        self.masters = MasterWeights(model, dtype)
        self.parallel = distributed.wrap_ddp(self.policy)
        self.optimizer = make_optimizer("adamw", self.masters.learned.values(), lr=config.lr, weight_decay=0.0)
        self.folder = run_state.RunFolder(output)
        kept = {name: value for name, value in dataclasses.asdict(config).items() if name not in RESUMABLE}
        self.settings = kept | {
            "seed": seed, "chat": chat, "processes": distributed.size(), "dtype": str(dtype or model.dtype),
            "tokenizer": tokenizer_sha256(model.tokenizer).encode(), "adapter": str(adapter_configs(model)).encode(),
            "model": digest({name: each for name, each in model.named_parameters() if "adapters" not in name}),
        } if output else {}
        self.step, self.seconds, self.rewards = 0, 0.0, []
        self.scores_before: dict[str, float] = {}
        if resume:
            self._load_state()
        if output:
            self.folder.begin_after(self.step)

    def train(self) -> dict[str, Any]:
        """Run to the end, save the result, and say how it went. Interrupted, it saves its state and re-raises."""
        config = self.config
        if not self.step:
            self.scores_before = self.evaluate()
        started, earlier = time.monotonic(), self.seconds
        use_custom_gradients(self.model)
        with signals_wait(second_raises=not distributed.launched()) as interruptions:
            while self.step < config.steps and not 0 < 60 * config.minutes <= self.seconds:
                torch.manual_seed(self.seed * 1_000_003 + self.step)                    # of an adapter's dropout
                answers, rewards = self._draw()
                found = self._learn(answers, rewards)
                self.step += 1
                self.seconds, stop = distributed.all_reduce_max(earlier + time.monotonic() - started,
                                                                max(interruptions, default=0))
                self.rewards.append(found["reward"])
                self.folder.log({"step": self.step, **found, "seconds": round(self.seconds, 3)})
                print(f"step {self.step}/{config.steps} " + " · ".join(f"{k} {v:.4f}" for k, v in found.items()),
                      file=sys.stderr)
                if self.output and (stop or (config.save_every and self.step % config.save_every == 0)):
                    self._save_state()
                if stop:
                    raise KeyboardInterrupt if stop == signal.SIGINT else Stopped(int(stop))
        restore_autograd(self.model)
        after = self.evaluate()
        self._save_result()
        tenth = max(1, len(self.rewards) // 10)
        return {"train": {"steps": self.step, "seconds": round(self.seconds, 1),
                          "reward_first": sum(self.rewards[:tenth]) / tenth,
                          "reward_last": sum(self.rewards[-tenth:]) / tenth},
                "eval_before": self.scores_before, "eval": after, "output": str(self.output or "")}

    def evaluate(self) -> dict[str, float]:
        """The mean reward of the likeliest answers to held-out questions."""
        if not self.config.eval_prompts:
            return {}
        questions = draw_questions(self.config.eval_prompts, self.config.largest, self.seed, held_out=True,
                                   reward=self.config.reward)
        texts = [text for _, _, text in self._answers(questions, each=1, temperature=0.0)]
        rewards = [REWARDS[self.config.reward](text, each) for text, each in zip(texts, questions, strict=True)]
        return {"reward": sum(rewards) / len(rewards)}

    def _draw(self) -> tuple[list[Answer], Tensor]:
        """This process's answers of a step, with their advantages, and their rewards (P, G)."""
        config = self.config
        questions = draw_questions(config.prompts, config.largest, self.seed * 1_000_003 + self.step + 1,
                                   reward=config.reward, held_out=False)
        share = config.prompts // distributed.size()
        mine = questions[distributed.rank() * share :][:share]
        first = (self.step * config.prompts + distributed.rank() * share) * config.group
        drawn = self._answers(mine, each=config.group, temperature=1.0, seed=self.seed * 1_000_003 + first)
        score = REWARDS[config.reward]
        rewards = torch.tensor([score(text, mine[i // config.group]) for i, (_, _, text) in enumerate(drawn)])
        rewards = rewards.view(share, config.group)
        answers = [Answer(prompt + new, [False] * len(prompt) + [True] * len(new), advantage=advantage)
                   for (prompt, new, _), advantage in zip(drawn, advantages(rewards).flatten().tolist(), strict=True)]
        return answers, rewards

    def _answers(self, questions: Sequence[Question], *, each: int, temperature: float, seed: int = 0
                 ) -> list[tuple[list[int], list[int], str]]:
        """Of every answer the ids before it, its own with the one that ends it, and its text."""
        tokenizer, config = self.model.tokenizer, self.config
        prompts = [self.format.encode([{"role": "user", "content": question.asked}], tokenizer, reply=True)[0]
                   if self.format else encode_prompt(tokenizer, question.raw) for question in questions]
        drawn = generate(self.model, prompts, tokenizer=tokenizer, chat_format=self.format, num_samples=each, seed=seed,
                         sampling=SamplingConfig(temperature=temperature, top_p=1.0), ignore_eos=True,
                         max_new_tokens=config.new_tokens, batch_size=max(config.batch_size, each))
        found = []
        for row, completion in enumerate(drawn):                    # cut here, for which id ended it is learned, too
            ids = completion.token_ids
            end = next((i + 1 for i, token in enumerate(ids) if token in self.ends), len(ids))
            text = tokenizer.decode([token for token in ids[:end] if token not in self.ends])
            found.append((prompts[row // each], ids[:end], text))
        return found

    def _learn(self, answers: list[Answer], rewards: Tensor) -> dict[str, float]:
        """The updates of a step; what is to be told of it, over all processes."""
        config, kl = self.config, 0.0
        live = [answer for answer in answers if answer.advantage or config.kl]
        if config.kl:
            live = [replace(answer, reference=logps) for answer, logps in zip(live, self._before(live), strict=True)]
            now = self._logps(live)
            kl = sum(k3(torch.tensor(logps), torch.tensor(answer.reference)).mean().item()
                     for logps, answer in zip(now, live, strict=True))
            live = [replace(answer, old=logps) for answer, logps in zip(live, now, strict=True)]
        elif config.updates > 1:
            live = [replace(answer, old=logps) for answer, logps in zip(live, self._logps(live), strict=True)]
        count = config.prompts * config.group
        rounds = int(distributed.all_reduce_max(math.ceil(len(live) / config.batch_size))[0])
        batches = [live[i : i + config.batch_size] for i in range(0, len(live), config.batch_size)]
        filled = batches + [answers[:1]] * (rounds - len(batches))  # others wait for gradients
        norm = 0.0
        for _ in range(config.updates if rounds else 0):
            self.model.train()
            self.optimizer.zero_grad()
            for number, some in enumerate(filled, start=1):
                batch = to_device(self.policy.task.collate(some), self.model.device)
                weight = distributed.size() if number <= len(batches) else 0            # DDP takes the mean
                stay = number < len(filled) and not self.masters.copies
                with distributed.no_sync(self.parallel, stay=stay):
                    loss, _ = self.parallel(batch)
                    (loss * weight / count).backward()
                self.masters.accumulate_grads()
            learned = list(self.masters.learned.values())
            whole = get_total_norm([each.grad for each in learned if each.grad is not None])
            norm = whole.item()
            if not math.isfinite(norm):
                raise RuntimeError(f"step {self.step + 1}: the gradient is {norm}; states before are kept: start anew "
                                   "with a lower --lr")
            clip_grads_with_norm_(learned, LARGEST_NORM, whole)
            self.optimizer.step()
            self.masters.copy_to_model()
            self.model.eval()
        length = sum(answer.targets for answer in answers)
        total, kl, length, alike = distributed.all_reduce_sum(
            rewards.sum().item(), kl, length, (rewards.std(1) == 0).sum().item())
        told = {"reward": total / count, "length": length / count, "alike": alike / config.prompts, "norm": norm}
        return told | ({"kl": kl / count} if config.kl else {})

    def _before(self, answers: Sequence[Answer]) -> list[list[float]]:
        """Log-likelihoods under the model that training began with."""
        if self.before is not None:
            return self._logps(answers, Policy(self.before, self.config))
        with without_adapters(self.model):
            return self._logps(answers)

    @torch.no_grad()
    def _logps(self, answers: Sequence[Answer], policy: Policy | None = None) -> list[list[float]]:
        found, policy = [], policy or self.policy
        for start in range(0, len(answers), self.config.batch_size):
            some = answers[start : start + self.config.batch_size]
            logps = policy.scores(to_device(policy.task.collate(some), self.model.device)).cpu()
            found += [part.tolist() for part in logps.split([each.targets for each in some])]
        return found

    def _learned(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.masters.learned.items()}

    def _save_state(self) -> None:
        run_state.write_state(self.folder.last(self.step), {
            "settings": self.settings, "step": self.step, "seconds": self.seconds, "rewards": self.rewards,
            "scores_before": self.scores_before, "best": [0.0, 0]}, self._learned(), self.policy, self.optimizer)
        self.folder.prune()

    def _load_state(self) -> None:
        state = self.folder.newest(lambda path, found: run_state.check_settings(path, found, self.settings),
                                   in_shards=False)
        run_state.restore(state, self._learned(), self.policy, self.optimizer)
        self.masters.copy_to_model()
        self.step, self.seconds, self.rewards = state["step"], state["seconds"], state["rewards"]
        self.scores_before = state["scores_before"]
        print(f"resuming after step {self.step} of {self.config.steps}", file=sys.stderr)

    def _save_result(self) -> None:
        self.masters.restore_fp32()
        self.model.eval()
        if self.output and distributed.is_rank0():
            (save_adapter if has_lora(self.model) else save_model)(self.model, self.output)
            verify_saved(self.model, self.output)
            run_lock.release(self.output)
        distributed.barrier()


def main() -> None:
    parser = cli.Parser("python -m llama.methods.grpo", __doc__.splitlines()[0],
                        most=("model", "lora", "chat", "reward", "steps", "prompts", "group", "lr", "kl", "output",
                              "resume"),
                        example="python -m llama.methods.grpo --lora --chat --reward format --steps 20")
    parser.add_argument("--lora", action="store_true", help="learn a LoRA adapter, leave the model as it is")
    parser.add_argument("--chat", action="store_true", help="ask as a user would, in the model's chat format")
    parser.add_argument("--output", type=folder_to_write, metavar="FOLDER",
                        help="where the result goes (default: the next free name under adapters/ or weights/)")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run of --output")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    cli.add_flags(parser, GRPOConfig)
    cli.add_flags(parser, LoRAConfig, skip=("rows",))
    cli.add_flags(parser, flags.ModelFlags, skip=("compile", "readable"))
    arguments = parser.parse_args()
    config, lora_config = cli.from_flags(GRPOConfig, arguments), cli.from_flags(LoRAConfig, arguments)
    model_flags = cli.from_flags(flags.ModelFlags, arguments)
    if not arguments.lora and (lora_config != LoRAConfig() or model_flags.bits):
        raise ValueError("--quantize, --rank and the other flags of an adapter mean nothing without --lora")
    if lora_config.lora_init == "loftq":
        raise ValueError("--lora-init loftq makes a base of its own, as finetune.py does; take pissa or olora here")
    if arguments.resume and not arguments.output:
        raise ValueError("--resume needs --output: the folder of the run to go on with")
    device = distributed.init_process_group(flags.choose_device(model_flags.device))
    kind = "adapters" if arguments.lora else "weights"
    writes = distributed.is_rank0()
    output = distributed.broadcast(Path(arguments.output or cli.unique_path(home() / kind, config.reward, take=writes)))
    if writes:
        cli.check_output(output, marker="adapter_config.json" if arguments.lora else "config.json",
                         overwrite=arguments.overwrite, resume=arguments.resume)
        run_lock.take(output)
    distributed.barrier()
    dtype = flags.choose_dtype(model_flags.dtype, device, purpose="train")
    with distributed.first_goes_first():
        model = get_model(model_flags.model, device=device, dtype=dtype if arguments.lora else torch.float32,
                          seed=model_flags.seed, bits=model_flags.bits)
    if model.tokenizer is None:
        raise ValueError(f"{model_flags.model} has no tokenizer, so it neither reads nor writes text")
    if is_quantized(model) and not arguments.lora:
        raise ValueError("a quantised model does not learn; add --lora, or give the model in floats")
    if model_flags.adapter:
        load_adapter(model, flags.adapter_folder(model_flags.adapter))
        merge_lora(model, keep_undo=False)
        model.requires_grad_(True)
    if arguments.lora:
        add_lora(model, lora_config, generator=torch.Generator().manual_seed(model_flags.seed))
    print(trainable_parameters(model), file=sys.stderr)
    run = GRPO(model, config, chat=arguments.chat, seed=model_flags.seed, dtype=None if arguments.lora else dtype,
               output=output, resume=arguments.resume)
    result = run.train()
    print(f"the result is in {output}; the reward was {result['train']['reward_first']:.3f} in the first tenth of the "
          f"steps, {result['train']['reward_last']:.3f} in the last", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
