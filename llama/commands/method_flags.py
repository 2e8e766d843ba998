"""The flags of robust adaptation, and what comes of them: an objective, samples that change, a teacher that was asked.

    python finetune.py --lora --adversarial fgm --noise 5
    python finetune.py --model weights/student --teacher smollm2-135m-instruct --teacher-cache data/said.bin

docs/methods.md has a section for each. They wrap one another in one order: adversarial steps climb the loss that is
distilled or regularised, with the noise in it.

Try: let R-Drop go without dropout; tests/test_method_flags.py
(test_refusals_of_what_does_not_go_with_a_task_or_a_run) fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import torch
from torch import nn

from llama.checkpoint import PretrainedLlama
from llama.commands.flags import ModelFlags, load
from llama.datasets.token_file import tokenizer_sha256
from llama.heads import head_config
from llama.methods.adversarial import Adversarial, AdversarialConfig
from llama.methods.augmentation import OPERATIONS, Augmentation, texts_of
from llama.methods.distillation import DistillConfig, Distilled, ModelTeacher, check_teacher
from llama.methods.noise import Noisy
from llama.methods.r_drop import RDrop
from llama.methods.substitutes import HOMOPHONES, SYNONYMS, Neighbors, fills, homophones, synonyms, table
from llama.methods.teacher_cache import CachedTeacher, TeacherCache
from llama.model import Llama
from llama.pretrained import get_model
from llama.runtime import distributed
from llama.runtime.ranges import Range, check_ranges
from llama.runtime.terminal import say
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.task import Sample, Task
from llama.trainer import as_written
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from weights.formats.paths import resolve


@dataclass(frozen=True)
class MethodFlags:
    """Robust adaptation."""

    adversarial: Annotated[Literal["none", "fgm", "pgd", "freelb"], "learn on embeddings that are moved to where the "
                           "loss grows, too (fgm), instead (pgd), or at every step on the way (freelb)"] = "none"
    adversarial_epsilon: Annotated[float, "how far, as a part of the embeddings' norm", Range(1e-6, 10.0)] = 0.05
    adversarial_steps: Annotated[int, "pgd, freelb: steps", Range(1, 64)] = 3
    adversarial_start: Annotated[float, "pgd, freelb: size of a random start, as a part of the way",
                                 Range(0.0, 1.0)] = 0.0
    noise: Annotated[float, "NEFTune: size of uniform noise on the embeddings, such as 5", Range(0.0, 1e3)] = 0.0
    r_drop: Annotated[float, "R-Drop: weight of how far two passes with dropout are apart, such as 1",
                      Range(0.0, 1e3)] = 0.0
    teacher: Annotated[str, "learn from what this model finds likely: a name or folder of a model with the same "
                       "vocabulary, or of an adapter"] = ""
    distill: Annotated[Literal["forward", "reverse", "symmetric"], "which divergence from the teacher"] = "forward"
    temperature: Annotated[float, "of teacher and student, when they are compared", Range(0.01, 100.0)] = 1.0
    distill_weight: Annotated[float, "of the divergence; the rest is the task's own loss", Range(0.0, 1.0)] = 0.5
    distill_hidden: Annotated[float, "weight of the distance of the last states, for a teacher as wide",
                              Range(0.0, 1e6)] = 0.0
    teacher_cache: Annotated[str, "file of what the teacher said: asked before the run, once a sample; complete, it "
                             "needs no --teacher"] = ""
    teacher_top_k: Annotated[int, "ids a row that the file keeps", Range(1, 65_536)] = 32

    augment: Annotated[tuple[str, ...], "change inputs in every epoch anew, such as replace=0.1,delete=0.05: "
                       + ", ".join(OPERATIONS)] = ()

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.rates and self.teacher_cache:
            raise ValueError("--augment makes new samples in every epoch, and --teacher-cache knows those of before; "
                             "give --teacher alone, which is asked anew")
        if self.adversarial == "none" and self._given("adversarial_"):
            raise ValueError("--adversarial-epsilon and its like say how --adversarial fgm, pgd or freelb goes; give "
                             "that, too")
        if self.adversarial == "fgm" and self._given("adversarial_steps", "adversarial_start"):
            raise ValueError("--adversarial fgm takes one step, from the embeddings themselves; leave "
                             "--adversarial-steps and --adversarial-start out, or take pgd")
        if not self.distils and self._given("distill", "temperature", "teacher_top_k"):
            raise ValueError("--distill, --temperature and their like say how to learn from a teacher; give --teacher "
                             "or --teacher-cache")
        if self.r_drop and self.distils:
            raise ValueError("--r-drop and --teacher each say what else probabilities shall be; give one of them")
        if self.teacher_cache and self.distill_hidden:
            raise ValueError("--distill-hidden matches states, and --teacher-cache holds probabilities; leave one out")
        if self._given("teacher_top_k") and not self.teacher_cache:
            raise ValueError("--teacher-top-k is about --teacher-cache; a teacher that is asked anew says all")
        if self.adversarial != "none":
            self.adversarial_config                                 # noqa: B018 — refuses what it cannot be

    @property
    def distils(self) -> bool:
        return bool(self.teacher or self.teacher_cache)

    @property
    def adversarial_config(self) -> AdversarialConfig:
        return AdversarialConfig(self.adversarial, self.adversarial_epsilon, self.adversarial_steps,
                                 self.adversarial_start)

    @property
    def distill_config(self) -> DistillConfig:
        return DistillConfig(self.distill, self.temperature, self.distill_weight, self.distill_hidden)

    @property
    def rates(self) -> dict[str, float]:
        """Of --augment. Raises ValueError for what is no operation, or no rate."""
        found = {}
        for each in self.augment:
            name, _, number = each.partition("=")
            try:
                rate = float(number)
            except ValueError:
                rate = -1.0
            if name not in OPERATIONS or not 0 < rate <= 1 or name in found:
                raise ValueError(f"--augment {each}: give each of {', '.join(OPERATIONS)} once at most, with its rate, "
                                 "above 0 and up to 1, as in replace=0.1,delete=0.05")
            found[name] = rate
        return found

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a task whose samples cannot change so, or that has an objective of its own."""
        if getattr(task, "paired", False) and (self.rates or self.r_drop or self.distils):
            raise ValueError("--task preference has a loss of its own: leave --augment, --r-drop and --teacher out; "
                             "--adversarial and --noise go with it")
        if self.rates and isinstance(task, TextGenerationTask):
            raise ValueError("--augment changes what is read, and of --task generation all is learned; leave it out, "
                             "or take --word-dropout")
        if "mix" in self.rates and (not isinstance(task, ClassificationTask) or task.multi_label):
            raise ValueError("--augment mix mixes texts that have one label each; leave mix out")

    def substitutes(self, model: PretrainedLlama, dataset: Sequence[Any]) -> dict[str, Any]:
        """What may stand in the place of words; of a model that has learned nothing yet, nor got a head of labels."""
        made: dict[str, Callable[[], Any]] = {
            "replace": lambda: synonyms(table(SYNONYMS)),
            "homophone": lambda: homophones(table(HOMOPHONES)),
            "neighbor": lambda: Neighbors(model),
            "mask": lambda: fills(model, (text for example in dataset for text in texts_of(example)))}
        return {name: made[name]() for name in self.rates if name in made}

    def augmentation(self, task: Task, model: PretrainedLlama, found: dict[str, Any], *, seed: int
                     ) -> Callable[..., Sample]:
        """For `Trainer`, with what `substitutes` found."""
        return Augmentation(task, model.tokenizer, self.rates, found, seed=seed) if self.rates else as_written

    def _given(self, *beginnings: str) -> bool:
        return any(getattr(self, field.name) != field.default for field in fields(self)
                   if field.name.startswith(beginnings))

    def check_run(self, config: TrainConfig, *, dropout: float) -> None:
        """Raise ValueError for a run that these methods do not go with. dropout: that of an adapter."""
        if config.compile and self.adversarial in ("fgm", "freelb"):
            raise ValueError(f"--adversarial {self.adversarial} goes through a graph twice, and compiled blocks forget "
                             "theirs; leave --compile out, or take --adversarial pgd")
        if self.r_drop and not (self.noise or dropout or config.word_dropout):
            raise ValueError("--r-drop compares two passes with other dropout, and there is none; give --lora "
                             "--dropout 0.1, --word-dropout 0.1 or --noise 5, too")

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before, None where it is off."""
        return {name: str(value) if value != field.default else None for (name, value), field in
                zip(asdict(self).items(), fields(self), strict=True) if name != "teacher_cache"}


class Method:
    """What the flags make of a run, for a model and a task that are fitted to each other.

    dtype   the teacher computes in
    writes  whether the teacher's file may grow; where not, and there is a teacher, it is asked itself
    plain   the objective that the methods are put around
    """

    def __init__(self, flags: MethodFlags, model: PretrainedLlama, task: Task, *, dtype: torch.dtype | None = None,
                 writes: bool = True, plain: Callable[..., nn.Module] = Plain):
        self.flags, self.plain = flags, plain
        self.teacher: ModelTeacher | None = None
        self.cache: TeacherCache | None = None
        if flags.teacher:
            with distributed.first_goes_first():
                found = _teacher(flags.teacher, device=model.device, dtype=dtype or model.dtype)
            check_teacher(found, model, task, flags.distill_config)
            self.teacher = ModelTeacher(found, task)
        if flags.teacher_cache and (writes or not flags.teacher):
            head = head_config(model)
            rows = self.teacher and min(model.config.vocab_size, self.teacher.model.config.vocab_size)
            about = {"teacher": flags.teacher or None, "vocabulary": tokenizer_sha256(model.tokenizer), "rows": rows,
                     "labels": list(head.labels) if head else [], "top_k": None if head else flags.teacher_top_k,
                     "temperature": None if head else flags.temperature}
            self.cache = TeacherCache(flags.teacher_cache, about)

    def objective(self, model: Llama, task: Task, *, readable: bool = False) -> nn.Module:
        """For `Trainer`."""
        flags = self.flags
        if flags.r_drop:
            objective: nn.Module = RDrop(model, task, flags.r_drop, readable=readable)
        elif flags.distils:
            teacher = CachedTeacher(self.cache, task) if self.cache else self.teacher
            objective = Distilled(model, task, teacher, flags.distill_config, readable=readable)
        else:
            objective = self.plain(model, task, readable=readable)
        if flags.noise:
            objective = Noisy(objective, flags.noise)
        return objective if flags.adversarial == "none" else Adversarial(objective, flags.adversarial_config)

    def ask_teacher(self, task: Task, samples: Any, *, batch_size: int) -> None:
        """Fill the cache with what it lacks, and let the teacher go. Raises ValueError where there is nobody to ask."""
        if self.cache is None:
            return
        if missing := len(self.cache.missing(task, samples)):
            if self.teacher is None:
                raise ValueError(f"{self.cache.path} lacks {missing:,} of {len(samples):,} samples; give --teacher, "
                                 "too, and it is asked about them")
            say(f"asking the teacher about {missing:,} of {len(samples):,} samples; what it says is kept in "
                f"{self.cache.path}")
            if distributed.is_rank0():
                self.cache.fill(self.teacher, task, samples, batch_size=batch_size)
        distributed.barrier()
        self.cache.load()                                           # what the first process has written
        self.teacher = None


def _teacher(name: str, *, device: torch.device, dtype: torch.dtype) -> PretrainedLlama:
    """A model, or with an adapter's folder its base with it."""
    if not (resolve(name, "adapters") / "adapter_config.json").exists():
        return get_model(name, device=device, dtype=dtype)
    return load(ModelFlags(adapter=name, device=device.type, dtype=str(dtype).removeprefix("torch.")),
                purpose="measure")
