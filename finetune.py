"""Adapt a model to examples: LoRA (--lora), new rows, all but the first blocks (--freeze-layers N), or everything.

    python finetune.py --lora                                   # default model, bundled data
    python finetune.py --lora --model weights/my-llama --data my.jsonl --eval-data dev.jsonl

    python finetune.py --lora --task sentiment --data train.tsv --eval-data dev.tsv
    python finetune.py --lora --task preference --data pairs.jsonl --preference-loss dpo

Data: Alpaca records (instruction, input, output) or chats (OpenAI's messages, ShareGPT's conversations), .json or
.jsonl; with --task generation, text; with the others what llama/datasets reads: records with labels, pairs, tagged
columns or word/tag, SQuAD's JSON. All of them may be packed by gzip or xz.
"""

import dataclasses
import functools
import itertools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama.checkpoint import PretrainedLlama, save_model
    from llama.commands import flags, side_texts
    from llama.commands.method_flags import Method, MethodFlags
    from llama.freeze import freeze, trainable_parameters, unfreeze
    from llama.lora import loftq
    from llama.lora.files import load_adapter
    from llama.lora.swap import add_lora, merge_lora, new_rows
    from llama.lora.targets import LoRAConfig
    from llama.merge import merge_and_save
    from llama.methods import preferences
    from llama.methods.augmentation import shown
    from llama.methods.preferences import PreferenceConfig
    from llama.plot import plot_runs, read_run
    from llama.pretrained import get_model, stored_bytes
    from llama.quantization.swap import is_quantized
    from llama.runtime import cli, distributed, run_lock
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.ranges import Range
    from llama.runtime.room import ELSEWHERE, check_disk
    from llama.runtime.terminal import bare
    from llama.tasks.instruction import InstructionTask
    from llama.token_prior import hold_frequencies
    from llama.trainer import Trainer
    from llama.training import recipes
    from llama.training.evaluation import evaluate_dataset
    from llama.training.inspect_samples import in_colour, inspect_samples, show_sample
    from llama.training.memory_estimate import resident_set_size
    from llama.training.objective import Plain
    from llama.training.optimizer import OPTIMIZERS, TrainConfig
    from llama.training.what_fits import disk_of, dry_run
    from weights.formats.paths import home, resolve

DATA = "identity.jsonl"


def main(read: Callable[..., PretrainedLlama] = get_model, trains: type[Trainer] = Trainer) -> None:
    """The command. Who runs it many times in one process may read the model itself, and look at what has learned."""
    parser = cli.Parser(
        "finetune.py", __doc__.splitlines()[0],
        most=("lora", "freeze-layers", "data", "eval-data", "task", "model", "output", "resume", "epochs", "minutes",
              "lr", "rank", "dry-run"),
        example="python finetune.py --lora --data examples/identity.jsonl --output adapters/mine")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--lora", action="store_true", help="learn a LoRA adapter, leave the model as it is")
    how.add_argument("--freeze-layers", type=Range(0, 10**6), default=0, metavar="N",
                     help="keep the embeddings and the first N blocks as they are")
    how.add_argument("--freeze", default="", metavar="PATTERN",
                     help="keep what fits these names as it is, with commas between: embeddings, norms, blocks, head, "
                     "q_proj, 'layers.1?.mlp.*'")
    parser.add_argument("--train-new-rows", action="store_true",
                        help="learn the rows of the pieces that the vocabulary was grown by: alone, or beside --lora")
    parser.add_argument("--hold-frequencies", action="store_true",
                        help="these rows learn where their pieces belong, and not how likely they are on the whole: "
                        "for those of llama.resize --texts, which may then learn faster")
    parser.add_argument("--data", nargs="+", metavar="FILE", help=f"examples to learn (default: examples/{DATA})")
    parser.add_argument("--eval-data", nargs="+", metavar="FILE", help="evaluate on these during training")
    parser.add_argument("--test-data", nargs="+", metavar="FILE", help="evaluate the result on these")
    parser.add_argument("--output", type=folder_to_write, metavar="FOLDER",
                        help="where the result goes (default: the next free name under adapters/ or weights/)")
    parser.add_argument("--merge", action="store_true",
                        help="after --lora, also write the model with the adapter in it, as OUTPUT-merged")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run of --output")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="how gradients become updates")
    side_texts.add_side_texts(parser)
    flags.add_inspection(parser)
    for record in (LoRAConfig, flags.TaskFlags, PreferenceConfig, TrainConfig, MethodFlags):
        cli.add_flags(parser, record, skip=("seed", "rows", "score"))
    cli.add_flags(parser, flags.ModelFlags, skip=("compile",))
    parser.set_defaults(**dict.fromkeys(recipes.FLAGS))
    parser.table = recipes.table()
    arguments = parser.parse_args()
    adapts = arguments.lora or arguments.train_new_rows            # what is learned is an adapter
    if adapts and arguments.adapter:
        raise ValueError("--lora and --train-new-rows learn a new adapter on a plain model; without them, --adapter is "
                         "merged into the model that is tuned")
    if arguments.train_new_rows and (arguments.freeze or arguments.freeze_layers):
        raise ValueError("--train-new-rows learns new rows and nothing else; leave --freeze and --freeze-layers out")
    if arguments.train_new_rows and not arguments.lora and arguments.task not in flags.WRITING:
        raise ValueError(f"--task {arguments.task} learns a head of labels, and --train-new-rows rows; add --lora")
    if arguments.hold_frequencies and not arguments.train_new_rows:
        raise ValueError("--hold-frequencies is about rows that learn; add --train-new-rows, or leave it out")
    if arguments.hold_frequencies and (arguments.task not in flags.WRITING or arguments.parallel == "fsdp"):
        raise ValueError("--hold-frequencies needs a head of tokens, whole in each process: a task that writes, and no "
                         "--parallel fsdp")
    if not arguments.lora and cli.from_flags(LoRAConfig, arguments) != LoRAConfig():
        raise ValueError("--rank, --targets and the other flags of an adapter mean nothing without --lora")
    if arguments.lora_plus and not arguments.lora:
        raise ValueError("--lora-plus says how fast the B of an adapter learns; add --lora, or leave it out")
    loftq_starts = arguments.lora_init == "loftq"
    if loftq_starts and arguments.quantize == "none":
        raise ValueError("--lora-init loftq begins at what few bits lose; add --quantize int4 or int8")
    if arguments.quantize != "none" and not adapts:
        raise ValueError(f"--quantize {arguments.quantize}: few bits do not learn; add --lora, or leave it out")
    if arguments.quantize != "none" and arguments.merge:
        raise ValueError(f"--merge cannot fold an adapter into {arguments.quantize} weights; leave it out, and then "
                         "merge into the model in floats: python -m llama.merge")
    if arguments.merge and not adapts:
        raise ValueError("--merge folds what --lora learned into the model; without --lora there is nothing to merge")
    pairs = cli.from_flags(PreferenceConfig, arguments)
    if arguments.task != "preference" and pairs != PreferenceConfig():
        raise ValueError("--preference-loss, --beta and --margin are about pairs; add --task preference, or leave them "
                         "out")
    of_eval_data = ("patience", "watch", "guard", *(() if arguments.sample_texts else ("eval-every",)))
    if not arguments.eval_data and (given := [name for name in of_eval_data
                                              if getattr(arguments, name.replace("-", "_"))]):
        raise ValueError(f"--{given[0]} needs --eval-data to evaluate on")
    if arguments.resume and not arguments.output:
        raise ValueError("--resume needs --output: the folder of the run to go on with")

    flags.check_alone(arguments)

    # Everything that can be refused is looked at before the model is loaded.
    recipes.check(arguments.task)
    lora_config = cli.from_flags(LoRAConfig, arguments)
    method_flags = cli.from_flags(MethodFlags, arguments)
    _, dataset = flags.task_and_dataset(cli.from_flags(flags.TaskFlags, arguments))
    device = distributed.init_process_group(flags.choose_device(arguments.device))
    files = arguments.data or [str(resolve(DATA, "examples"))]
    if not arguments.data and not Path(files[0]).exists():
        raise ValueError("the bundled examples come with the clone, not with the installed package; give --data FILE")
    data = dataset(files)
    if recipes.choose_base(arguments, data, usual=flags.ModelFlags.model):
        print("the texts are Chinese, and so is the base: zh-small; --model names another", file=sys.stderr)
    recipes.complete(arguments)
    config = cli.from_flags(TrainConfig, arguments)
    model_flags = cli.from_flags(flags.ModelFlags, arguments)
    task_flags = cli.from_flags(flags.TaskFlags, arguments)
    task, dataset = flags.task_and_dataset(task_flags)
    method_flags.check_run(config, dropout=lora_config.dropout)
    method_flags.check_task(task)
    side_texts.check_task(arguments, task)
    eval_data = dataset(arguments.eval_data) if arguments.eval_data else None
    test_data = dataset(arguments.test_data) if arguments.test_data else None
    beside = {"mix": side_texts.mixed(arguments, dataset),
              "watch": side_texts.watched(arguments, block_size=task_flags.max_length, documents=task_flags.documents,
                                          **task_flags.reading)}
    if test_data is not None:
        task.check(test_data)
    if task_flags.words:
        raise ValueError("--labels NAME=WORD says what a prompt calls a label; a head that is learned needs the name "
                         "alone")
    kind = "adapters" if adapts else "weights"
    writes = arguments.inspect is None and not arguments.dry_run and distributed.is_rank0()
    output = Path(arguments.output or cli.unique_path(home() / kind, Path(files[0]).stem, take=writes))
    output = distributed.broadcast(output)
    merged = Path(f"{output}-merged")
    if writes:
        cli.check_output(output, marker="adapter_config.json" if adapts else "config.json",
                         overwrite=arguments.overwrite, resume=arguments.resume)
        run_lock.take(output)
        if arguments.merge:
            cli.check_output(merged, marker="config.json", overwrite=arguments.overwrite or arguments.resume,
                             resume=False)
    distributed.barrier()

    # The frozen base of LoRA is kept in the dtype to compute in; weights that learn keep float32 masters instead.
    dtype = flags.choose_dtype(model_flags.dtype, device, purpose="train")
    few_bits = Path(f"{output}-base")                               # of LoftQ, a base of its own
    if loftq_starts and writes:
        cli.check_output(few_bits, marker="config.json", overwrite=arguments.overwrite or arguments.resume,
                         resume=False)
    program = resident_set_size()
    with distributed.first_goes_first():                            # it may have to be fetched
        again = loftq_starts and arguments.resume
        model = read(str(few_bits) if again else model_flags.model, device=device, seed=model_flags.seed,
                     dtype=dtype if adapts else torch.float32, bits=0 if loftq_starts else model_flags.bits)
    if is_quantized(model) and (arguments.merge or not adapts):
        raise ValueError("a quantised model does not learn, and nothing can be merged into it: give --lora without "
                         "--merge, or the model in floats")
    flags.check_model(task_flags, model)
    if model_flags.adapter:
        load_adapter(model, flags.adapter_folder(model_flags.adapter))
        merge_lora(model, keep_undo=False)
        unfreeze(model)
    substitutes = method_flags.substitutes(model, data)
    task.prepare(model, data, seed=model_flags.seed)
    augment = method_flags.augmentation(task, model, substitutes, seed=model_flags.seed)
    if test_data is not None and not len(task.samples(test_data, model.tokenizer)):     # or refused now, not afterwards
        raise ValueError("the test data holds no sample; give data that can be scored, or leave --test-data out")
    if arguments.inspect is not None:
        print(shown(augment, task.samples(data, model.tokenizer)), end="",
              file=sys.stderr if model_flags.json else sys.stdout)
        inspect_samples(task, data, model.tokenizer, vocab_size=model.config.vocab_size, show=arguments.inspect,
              allow=arguments.allow, as_json=model_flags.json)
        return
    if adapts:
        if arguments.train_new_rows:
            lora_config = dataclasses.replace(lora_config, rows=new_rows(model))
            lora_config = lora_config if arguments.lora else dataclasses.replace(lora_config, targets=())
        starts = loftq.quantize_around(model, lora_config, bits=model_flags.bits) if loftq_starts and not again else {}
        if starts:
            print(loftq.summary(starts), file=sys.stderr)
            model.source = None                                     # these bits are of no other model's files
            if writes:
                save_model(model, few_bits)
            distributed.barrier()
            model.source = few_bits if not arguments.dry_run else None
        add_lora(model, lora_config, generator=torch.Generator().manual_seed(model_flags.seed))
        loftq.begin_at(model, starts)
    elif arguments.freeze_layers:
        freeze(model, layers=arguments.freeze_layers, embeddings=True)
    elif arguments.freeze:
        freeze(model, pattern=arguments.freeze)
    print(trainable_parameters(model), file=sys.stderr)

    masters = None if adapts else dtype
    plain, settings = Plain, method_flags.settings()
    settings |= {"hold_frequencies": arguments.hold_frequencies or None}
    if preferring := arguments.task == "preference":
        plain, settings = functools.partial(preferences.Preference, config=pairs), settings | dataclasses.asdict(pairs)
    method = Method(method_flags, model, task, dtype=dtype, writes=not arguments.dry_run, plain=plain)
    trainer = trains(model, task, data, eval_data, arguments.optimizer, config, dtype=masters,
                     output=None if arguments.dry_run else output, resume=arguments.resume, allow=arguments.allow,
                     readable=model_flags.readable, objective=method.objective, augment=augment,
                     settings=settings, **beside)
    if arguments.hold_frequencies:
        first = itertools.islice(trainer.samples, 64)
        hold_frequencies(model, torch.tensor([id for sample in first for id in sample.ids]))
    if preferring:
        preferences.begin(trainer, test_data, resume=arguments.resume, steps=2 * arguments.dry_run)
    if arguments.dry_run:
        dry_run(trainer, optimizer=arguments.optimizer, dtype=masters, program=program, output=output,
                as_json=model_flags.json)
        return
    if arguments.merge:
        check_disk(merged, sum(disk_of(trainer).values()) + stored_bytes(model_flags.model),
                   "this run with its merged model", ELSEWHERE)
    if isinstance(task, InstructionTask):                           # stored with the result: asked as it was tuned
        model.tokenizer.chat_template = task.format(model.tokenizer).template
    for part in trainer.samples[0].parts:
        print(show_sample(part, model.tokenizer, colour=in_colour(sys.stderr), most=100), file=bare(sys.stderr))
    print(trainer.report.summary(), file=sys.stderr)
    if arguments.mix:
        print(trainer.samples, file=sys.stderr)
    method.ask_teacher(task, trainer.samples, batch_size=config.batch_size)
    result = trainer.train() | {"test": {}, "data": dataclasses.asdict(trainer.report.counts)}
    if test_data is not None:
        result["test"] = evaluate_dataset(trainer.objective, test_data, batch_size=config.batch_size)[0]

    if arguments.merge and distributed.is_rank0():  # into the base as it is stored, not as it computed
        del trainer, model
        base = get_model(model_flags.model, device=device, seed=model_flags.seed)
        load_adapter(base, output)
        result["merged"] = {"output": str(merged), **vars(merge_and_save(base, merged))}
    use = f" {'--adapter' if adapts else '--model'} {shlex.quote(str(output))}"
    if loftq_starts:
        use += f" --model {shlex.quote(str(few_bits))}"
    elif model_flags.model != flags.ModelFlags.model and adapts:
        use += f" --model {shlex.quote(model_flags.model)}"
    if model_flags.bits and not loftq_starts:
        use += f" --quantize {model_flags.quantize}"
    named = f" --task {task_flags.task}"
    if task_flags.request:                                          # asked otherwise than tuned, it answers worse
        named += f" --request {shlex.quote(task_flags.request)}"
    if task_flags.task in ("instruction", "generation", "preference"):
        ways = [f"python generate.py{use}{' --chat' if isinstance(task, InstructionTask) else ' --prompt TEXT'}"]
    else:                                                           # a head of labels says itself what it is for
        ways = [f"python -m llama.evaluate{use}{named} --data FILE",
                f"python -m llama.predict{use}{named if isinstance(task, InstructionTask) else ''} TEXT"]
    print("\n    ".join([f"the result is in {output}; use it with", *ways]), file=sys.stderr)
    print(json.dumps(result))
    if arguments.plot and distributed.is_rank0():
        plot_runs(arguments.plot, [read_run(output)])


if __name__ == "__main__":
    cli.run(main)
