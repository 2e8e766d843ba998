"""Training: one flat loop for every task, objective, and choice of what is learned.

Where it stands is a single number, the step: which samples a step sees follows from it and the seed, so that a
resumed run goes on with the batches that an uninterrupted one would have seen.

Beside the result, OUTPUT, lies OUTPUT.training: metrics.jsonl (a line a step) and states (llama/training/run_state.py).
A result counts only once it was loaded again from the disk and found to be the model in memory
(llama/training/verify_saved.py).

Try: divide the loss by the number of micro-batches instead of by targets; tests/test_trainer.py
(test_two_ways_accumulated_micro_batches_equal_one_batch) fails on ragged lengths.
"""

import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from llama.checkpoint import save_model
from llama.fast.agreement import readable as use_definitions
from llama.fast.agreement import use_custom_gradients
from llama.fast.compile_blocks import compilations, compile_blocks, uncompile_blocks
from llama.fast.custom_autograd import restore_autograd
from llama.lora.files import save_adapter
from llama.lora.swap import has_lora
from llama.model import Llama
from llama.runtime import distributed, run_lock, worker
from llama.runtime.interrupt import Stopped, signals_wait
from llama.runtime.progress import Progress
from llama.tasks.task import Batch, Sample, Task, to_device
from llama.training import nonfinite, run_state, what_fits
from llama.training.activation_checkpointing import checkpoint_activations, checkpoint_mlps
from llama.training.data_checks import examine
from llama.training.eval_history import EvalHistory
from llama.training.evaluation import evaluate
from llama.training.fsdp import full_tensor, gather_full_state, meta_copy, shard
from llama.training.mixed_samples import MixedSamples
from llama.training.objective import Plain
from llama.training.optimizer import MasterWeights, TrainConfig, learning_rate, make_optimizer, set_rate
from llama.training.packing import micro_batches, pack_or_pad, should_pack
from llama.training.sample_texts import SampleTexts
from llama.training.verify_saved import verify_saved
from llama.training.watched_texts import WatchedText, WatchedTexts
from llama.training.word_dropout import word_dropout
from weights.formats.atomic_write import WriteError


def as_written(samples: Sequence[Sample], number: int, epoch: int) -> Sample:
    """A sample that is the same in every epoch."""
    return samples[number]


class Trainer:
    """Train what `requires_grad` in a model. `train()` returns {"train": …, "eval": …, "output": …}; "eval_before" are
    the scores before the first step, "eval_worse" is whether the loss was lower then, and "watched" what became
    of texts that were watched.

    dtype   to compute in, with float32 masters of what is learned; None: the parameters' own
    output  folder for the result (an adapter if the model has LoRA, else a model folder); None writes none, but with
            `save_epochs` that of each epoch, as ./models/NAME_epoch1 …
    resume  go on from the newest state in OUTPUT.training
    mix     name -> (data set, share): of which samples are learned, too, as that share of the tokens
    watch   texts that are scored with the evaluation data; a guard of one that is crossed ends the run
    settings  what else makes the run what it is, by name: resumed with another value it is refused
    allow   names in llama/training/data_checks.py of what need not hold of the training data
    readable  run the definitions as they stand, and no fast version, not even one that agrees with them
    objective  what makes the loss: called with the model and the task, as `Plain` is (llama/methods/ has others)
    augment   what a sample is in an epoch: of all samples, its number, and the number of the epoch

    Raises ValueError where anything else there does not hold; `report` tells what was seen.
    """

    def __init__(self, model: Llama, task: Task, train_dataset: Any, eval_dataset: Any = None,
                 optimizer: str = "adamw", config: TrainConfig | None = None, *, dtype: torch.dtype | None = None,
                 output: str | Path | None = None, resume: bool = False,
                 mix: Mapping[str, tuple[Any, float]] | None = None, watch: Sequence[WatchedText] = (),
                 settings: Mapping[str, Any] | None = None, allow: Sequence[str] = (), readable: bool = False,
                 objective: Callable[..., torch.nn.Module] = Plain, augment: Callable[..., Sample] = as_written):
        self.model, self.task, self.config, self.augment = model, task, config or TrainConfig(), augment
        self.optimizer_name = optimizer
        if getattr(model, "tokenizer", None) is None:               # a bare Llama carries none
            raise ValueError("the model has no tokenizer; take llama.get_model(…), or llama.checkpoint.PretrainedLlama("
                             "config, tokenizer)")
        task.prepare(model, train_dataset)
        self.samples = task.samples(train_dataset, model.tokenizer)
        self.eval_samples = task.samples(eval_dataset, model.tokenizer) if eval_dataset is not None else None
        if not len(self.samples):
            raise ValueError("the training data holds no sample")
        if self.eval_samples is not None and not len(self.eval_samples):
            raise ValueError("the evaluation data holds no sample")
        if mix:
            others = {name: (task.samples(some, model.tokenizer), share) for name, (some, share) in mix.items()}
            self.samples = MixedSamples(self.samples, others, seed=self.config.seed)
        if watch and self.eval_samples is None:
            raise ValueError("texts are watched when the evaluation data are scored; give evaluation data, too")
        self.watched = WatchedTexts(watch, model)
        self.sample_texts = SampleTexts(self.samples if self.eval_samples is None else self.eval_samples, task,
                                        count=self.config.sample_texts)
        self.report = examine(task, train_dataset, self.samples, model.tokenizer, vocab_size=model.config.vocab_size)
        self.report.refuse(allow)
        self.output = Path(output) if output else None
        if self.output and distributed.is_rank0():
            run_lock.take(self.output)                              # until `train` ends
        self.objective = objective(model, task, readable=readable)
        self.folder = run_state.RunFolder(self.output)
        more = dict(settings or {}) | self.watched.settings()
        self.settings = run_state.settings_of(model, task, self.samples, self.eval_samples, self.config,
                                              optimizer=optimizer, dtype=dtype, more=more) if self.output else {}
        self.outline = None                                         # of a model that is sharded
        if self.config.parallel == "fsdp":
            if self.config.sample_texts:
                raise ValueError("--sample-texts with --parallel fsdp: a model in shards writes nothing; leave one out")
            self.outline = meta_copy(model)
            shard(self.objective, dtype=dtype)
        self.masters = MasterWeights(model, None if self.outline else dtype)
        self.parallel = self.objective if self.outline else distributed.wrap_ddp(self.objective)
        outer = [each for name, each in self.masters.learned.items() if name.endswith("lora_B")]
        self.optimizer = make_optimizer(optimizer, self.masters.learned.values(), lr=self.config.lr,
                                        weight_decay=self.config.weight_decay, ratio=self.config.lora_plus or 1.0,
                                        faster=outer if self.config.lora_plus else ())
        self.packs = should_pack(model, task, self.config.pack)
        (use_definitions if readable else use_custom_gradients)(model)                  # until `train` ends
        if self.config.checkpoint_activations:
            checkpoint_activations(model)
        elif self.config.checkpoint_mlps:
            checkpoint_mlps(model)
        if self.config.compile:
            compile_blocks(model)

        self.global_batch_size = self.config.batch_size * self.config.accumulate * distributed.size()
        self.steps_per_epoch = math.ceil(len(self.samples) / self.global_batch_size)
        self.total_steps = self.steps_per_epoch * self.config.epochs
        if self.config.max_steps:
            self.total_steps = min(self.total_steps, self.config.max_steps)
        self.step, self.tokens, self.seconds, self.skipped = 0, 0, 0.0, 0
        self.epoch, self.order = -1, torch.empty(0)                 # the order of the epoch that is under way
        self.prefetched: dict[tuple[int, ...], tuple[list[Batch], int]] = {}  # by the samples of a step
        self.loss, self.history = math.nan, EvalHistory(self.folder)
        self.saved_step = 0                                         # of the newest state
        if resume:
            self._load_state()
        if self.output:
            self.folder.begin_after(self.step)
            what_fits.check_disk_of(self)

    def train(self) -> dict[str, Any]:
        """Run to the end, save the result, and say how it went. Interrupted, it saves its state and re-raises.

        Raises RuntimeError, naming the step, the samples and the module where it began, as soon as a loss or a gradient
        is not finite (after `skip_nonfinite` of them), and if what was saved, loaded again, is not the model in memory.
        """
        config, model = self.config, self.model
        if self.step == 0:
            torch.manual_seed(config.seed + distributed.rank())     # dropout differs between processes
        memory_of_step = what_fits.watch_memory(self)
        self.optimizer.zero_grad()                                  # what a run that failed has left
        progress = Progress(self.total_steps, "step")
        if self.step == 0:                                          # to be held against, not of the run's minutes
            self._evaluate(progress)
        before = self.seconds
        started = time.monotonic()
        model.train()
        with (signals_wait(second_raises=not distributed.launched()) as interruptions,   # torchrun passes on each twice
              word_dropout(model, config.word_dropout)):
            while self.step < self.total_steps and not self._out_of_time() and not self._stop_early():
                rate = learning_rate(self._fraction_done(self.step + 1), peak=config.lr, warmup=config.warmup,
                                     schedule=config.schedule)
                set_rate(self.optimizer, rate)
                indices = self._samples_of_step(self.step)
                with memory_of_step():
                    loss, targets, norm = self._update(indices)
                self.step += 1
                self.seconds, stop = distributed.all_reduce_max(before + time.monotonic() - started,
                                                                max(interruptions, default=0))
                if math.isfinite(loss) and math.isfinite(norm):
                    self.loss = loss / targets
                    self._report(progress, rate, norm)
                else:
                    self._skip(progress, indices, loss / targets, norm)

                at_epoch = self.step % self.steps_per_epoch == 0
                if self._due(config.eval_every, at_epoch):
                    self._evaluate(progress)
                if config.save_epochs and at_epoch:                 # before the state: it would not come again
                    self._save_result(Path(f"{self._named()}_epoch{self.step // self.steps_per_epoch}"))
                if self.output and self._due(config.save_every, at_epoch):
                    self._save_state()
                if stop:
                    self._stop(progress, int(stop))
        progress.clear()
        return self._finish()

    def _stop(self, progress: Progress, number: int) -> NoReturn:
        """Leave between two steps, where everything that a resumed run needs is known."""
        progress.clear()
        if self.output:
            self._save_state()
            print(f"interrupted after step {self.step}; to go on, give the same command with --resume --output "
                  f"{shlex.quote(str(self.output))}", file=sys.stderr)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    def _skip(self, progress: Progress, indices: Sequence[int], loss: float, norm: float) -> None:
        """Say of a step that parameters and optimiser are still those of the step before."""
        self.skipped += 1
        self.folder.log({"step": self.step, "skipped": self.skipped})
        progress.clear()
        print(f"skipped, {self.skipped} of {self.config.skip_nonfinite}: "
              f"{nonfinite.told(self, indices, self.step, loss, norm)}", file=sys.stderr)

    def _fail(self, indices: Sequence[int], batches: Sequence[Batch], loss: float, norm: float) -> NoReturn:
        """Before the step is taken, so that parameters and optimiser are still those of the step before."""
        kept = ""
        if self.output and self.step and not nonfinite.poisoned(self._learned()):
            self._save_state()
            kept = f" (the state after step {self.step} is kept in {self.folder.last(self.step)})"
        where = nonfinite.where_it_began(self.objective, self.masters.learned, batches, loss)
        raise RuntimeError(f"{nonfinite.told(self, indices, self.step + 1, loss, norm)}; {where}{kept}; look at them "
                           "with --inspect, start anew with a lower --lr, or leave such steps out: --skip-nonfinite "
                           f"{self.skipped + 1}")

    def _update(self, indices: Sequence[int]) -> tuple[float, int, float]:
        """One step of the optimiser on these samples, in micro-batches: summed loss, targets, gradient norm.

        A process with fewer micro-batches than another, at the end of an epoch, reads one sample more: the others wait
        for its gradients. What the next step reads is made ready while a GPU is still busy with this one.
        """
        batches, own = self.prefetched.pop(tuple(indices), None) or self._batches(indices)
        targets = sum(self.task.count(self.task.targets(batch)) for batch in batches[:own])
        targets = int(distributed.all_reduce_sum(targets)[0]) or 1           # 0 if masked is allowed
        losses = []
        for number, batch in enumerate(batches, start=1):
            weight = distributed.size() if number <= own else 0     # the mean is taken, not the sum
            with distributed.no_sync(self.parallel, stay=number < len(batches) and not self.masters.copies):
                loss, _ = self.parallel(batch)
                (loss * weight / targets).backward()                # by targets: k small batches equal a large one
            self.masters.accumulate_grads()
            losses.append(loss.detach() * (weight > 0))
        if self.step + 1 < self.total_steps:
            then = self._samples_of_step(self.step + 1)
            self.prefetched = {tuple(then): self._batches(then)}
        total = distributed.all_reduce_sum(sum(loss.item() for loss in losses))[0]
        self.tokens += sum(self.samples[i].reads for i in indices)
        learned = list(self.masters.learned.values())
        whole = get_total_norm([each.grad for each in learned if each.grad is not None])
        norm = full_tensor(whole).item()
        if math.isfinite(total) and math.isfinite(norm):
            clip_grads_with_norm_(learned, self.config.clip or math.inf, whole)
            self.optimizer.step()
        elif self.skipped >= self.config.skip_nonfinite:
            self._fail(indices, batches, total / targets, norm)
        self.optimizer.zero_grad()
        self.masters.copy_to_model()
        return total, targets, norm

    def _batches(self, indices: Sequence[int]) -> tuple[list[Batch], int]:
        """This process's micro-batches of a step, on its device, and how many of them count."""
        def sample(i: int) -> Sample:
            return self.augment(self.samples, i, self.epoch)

        mine = micro_batches([sample(i) for i in distributed.shard(indices)], self.config.batch_size)
        rounds = math.ceil(distributed.longest_shard(indices) / self.config.batch_size)
        filled = mine + [[sample(indices[0])]] * (rounds - len(mine))
        room, device = self.model.config.context, self.model.device
        return [to_device(pack_or_pad(self.task, some, room) if self.packs else self.task.collate(some), device)
                for some in filled], len(mine)

    def _samples_of_step(self, step: int) -> list[int]:
        """Every epoch visits every sample once, in an order of its own that depends on the seed alone."""
        epoch, part = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            self.epoch, self.order = epoch, self.task.order(self.samples, self.global_batch_size, generator)
        return self.order[part * self.global_batch_size : (part + 1) * self.global_batch_size].tolist()

    def _fraction_done(self, steps: int) -> float:
        """Part of the run that lies behind after so many steps, by them or by the clock, whichever ends it first."""
        by_steps = steps / self.total_steps
        return max(by_steps, self.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0)

    def _by_the_clock(self) -> bool:
        """Whether minutes end the run before its steps do, at the speed so far."""
        return 0 < 60 * self.config.minutes < self.seconds / max(self.step, 1) * self.total_steps

    def _out_of_time(self) -> bool:
        return 0 < self.config.minutes * 60 <= self.seconds

    def _stop_early(self) -> bool:
        """No evaluation has been better for `patience` of them, or a guard does not hold."""
        return 0 < self.config.patience <= self.history.since_best or bool(self.watched.crossed(self.step))

    def _due(self, every: int, at_epoch: bool) -> bool:
        last = self.step == self.total_steps or self._out_of_time()
        return last or (self.step % every == 0 if every else at_epoch)

    def _evaluate(self, progress: Progress) -> None:
        """Score the evaluation data, if there are any, and write the texts that are looked at."""
        progress.clear()
        if self.eval_samples is not None:
            self._score()
        if self.config.sample_texts and distributed.is_rank0():
            with self._saying_what_is_kept():
                self.folder.log({"step": self.step, "samples": self.sample_texts.write(self.model, self.step)})

    def _score(self) -> None:
        scores = evaluate(self.objective, self.eval_samples, self.model.tokenizer, batch_size=self.config.batch_size)
        print(f"step {self.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()), file=sys.stderr)
        with self._saying_what_is_kept():
            watched = self.watched.evaluate(self.objective, step=self.step, batch_size=self.config.batch_size)
            self.folder.log({"step": self.step, "eval": scores} | ({"watched": watched} if watched else {}))
            self.history.add(self.step, scores, self._learned(), self.objective,
                             allowed=not self.watched.crossed(self.step))

    def _report(self, progress: Progress, rate: float, norm: float) -> None:
        speed = self.tokens / self.seconds
        with self._saying_what_is_kept():
            self.folder.log({"step": self.step, "loss": self.loss, "lr": rate, "gradient_norm": norm,
                             "tokens": self.tokens, "seconds": round(self.seconds, 3),
                             "done": round(self._fraction_done(self.step), 6)})
        text = f"loss {self.loss:.4f} · {speed:,.0f} tokens/s"
        progress.total = 0 if self._by_the_clock() else self.total_steps
        if progress.live:
            done = self._fraction_done(self.step)
            progress.show(self.step, text, left=self.seconds * (1 - done) / done)
        else:
            count = f"/{progress.total}" if progress.total else ""
            print(f"step {self.step}{count} {text} · lr {rate:.2e}", file=sys.stderr)

    def _finish(self) -> dict[str, Any]:
        device = self.model.device
        held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else worker.peak_memory()
        peak = int(distributed.all_reduce_max(held)[0])             # of training, not of the proof
        if crossed := self.watched.crossed(self.step):
            if not self.history.best_step:
                raise RuntimeError(f"{crossed}; no evaluation before kept within it, so nothing is saved: mix in more "
                                   "of such text, take a lower --lr, or evaluate more often (--eval-every)")
            print(crossed, file=sys.stderr)
        if self._out_of_time() and self.step < self.total_steps:
            more = f"--resume --output {shlex.quote(str(self.output))} and " if self.output else ""
            print(f"{self.config.minutes:g} minutes are over, after {self.step / self.steps_per_epoch:.2g} of "
                  f"{self.config.epochs} epochs; to learn on, give the same command with {more}more --minutes",
                  file=sys.stderr)
        result_step = self.history.best_step or self.step
        if 0 < self.history.best_step < self.step:
            with self._saying_what_is_kept():
                self.history.restore_best(self._learned(), self.objective)
            self.masters.copy_to_model()
        if self.output:
            self._save_result(self.output)
        self.masters.restore_fp32()
        restore_autograd(self.model)
        uncompile_blocks(self.model)
        self.model.eval()
        train = {"loss": self.loss, "steps": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1),
                 "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
                 "peak_memory": peak, "skipped": self.skipped}
        if self.config.compile:
            train["compilations"] = compilations()
            print(f"torch compiled {train['compilations']} pieces of code", file=sys.stderr)
        if self.output:
            run_lock.release(self.output)
        self.history.tell_if_worse(self.config.lr)
        return {"train": train, "eval_before": self.history.before, "eval": self.history.last,
                "eval_worse": self.history.worse(), "watched": self.watched.result(result_step),
                "output": str(self.output or "")}

    def _save_result(self, folder: Path) -> None:
        nonfinite.refuse_poisoned(self._learned(), self.step)
        self.masters.restore_fp32()                                 # saved as they are, not as they compute
        if (model := self.whole_model()) is not None and distributed.is_rank0():
            save = save_adapter if has_lora(model) else save_model
            with self._saying_what_is_kept():
                save(model, folder)
                verify_saved(model, folder)
        self.masters.cast_down()
        distributed.barrier()

    def _named(self) -> Path:
        """The result, or where none is written, what the results of epochs are called: ./models/NAME of the model."""
        return self.output or Path("models", Path(str(self.model.source or "model")).stem)

    def whole_model(self) -> Llama | None:
        """The model, in one piece. Of a sharded one rank 0 gets a copy, the others None; all must ask."""
        return gather_full_state(self.model, self.outline) if self.outline else self.model

    def _save_state(self) -> None:
        if self.saved_step == self.step:                            # at an epoch's end, before a signal ends the run
            return
        nonfinite.refuse_poisoned(self._learned(), self.step)
        with self._saying_what_is_kept():
            run_state.write_state(self.folder.last(self.step), {
                "settings": self.settings, "skipped": self.skipped,
                "step": self.step, "tokens": self.tokens, "seconds": self.seconds, "loss": self.loss,
                "random": distributed.all_gather(run_state.random_state(self.model.device)),
                "watched": self.watched.found,
            } | self.history.state(), self._learned(), self.objective, self.optimizer)
            self.saved_step = self.step
            self.folder.prune()

    def _load_state(self) -> None:
        learned = self._learned()
        state = self.folder.newest(lambda path, before: run_state.check_settings(path, before, self.settings),
                                   in_shards=run_state.in_shards(learned))
        run_state.restore(state, learned, self.objective, self.optimizer)
        self.masters.copy_to_model()
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.loss, self.saved_step, self.skipped = state["loss"], state["step"], state.get("skipped", 0)
        self.history.load(state)
        self.watched.found = state.get("watched", {})
        run_state.set_random_state(state["random"][distributed.rank()], self.model.device)
        print(f"resuming after step {self.step} of {self.total_steps}", file=sys.stderr)

    @contextmanager
    def _saying_what_is_kept(self) -> Iterator[None]:
        """A disk that fails midway takes nothing that is safe: say what is, and how to go on."""
        try:
            yield
        except BrokenPipeError:                                     # of what is printed
            raise
        except (OSError, WriteError, run_state.Damaged) as error:
            what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
            kept = f"the state after step {self.saved_step} is kept, and the same command with --resume goes on " \
                f"from it" if self.saved_step else "no state was kept yet"
            raise RuntimeError(f"{what}; {kept}") from None

    def _learned(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.masters.learned.items()}
