"""The flags of the commands that take a model or data, and what comes of them: a loaded model, a task, a data set.

Try: give a field here another help text; it is at once the flag's line of `--help` (llama/runtime/cli.py).
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from llama.checkpoint import PretrainedLlama
from llama.datasets.columns import ColumnDataset
from llama.datasets.instructions import InstructionDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.multiple_choice import MultipleChoiceDataset
from llama.datasets.preferences import PreferenceDataset
from llama.datasets.records import RecordDataset
from llama.datasets.squad import SquadDataset
from llama.datasets.text_files import checked_encoding
from llama.fast.agreement import compile_step, readable, use_fused_blocks
from llama.fast.compiled_step import cxx_compiler, step_misfit
from llama.fast.fused_linear import packs_bfloat16
from llama.fast.huge_pages import in_huge_pages
from llama.heads import head_config, require_lm_head
from llama.lora.files import load_adapter
from llama.lora.peft_folder import recorded_base
from llama.lora.swap import merge_lora
from llama.pretrained import get_model
from llama.quantization.layers import QuantizedLinear
from llama.quantization.swap import dequantize, is_quantized, quantize
from llama.runtime import distributed
from llama.runtime.destinations import file_to_write
from llama.runtime.figures import need_matplotlib
from llama.runtime.ranges import MANY, MOST_TOKENS, SEEDS, Range, check_ranges
from llama.runtime.room import SURE, free_memory, size
from llama.runtime.terminal import say
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.tasks.multiple_choice import MultipleChoiceTask
from llama.tasks.opinion import OpinionTask
from llama.tasks.pairs import SummarizationTask, TranslationTask
from llama.tasks.preference import PreferenceTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask, SegmentationTask
from llama.training.data_checks import CHECKS
from tokenizer.chat_template import template_variables
from weights.download import fetched
from weights.fetch import fetch
from weights.formats.paths import data_files, resolve
from weights.hub import is_address


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags of every door that takes a model."""

    model: Annotated[str, "a model folder or file of any form known here, or a name to fetch, or one on a hub as "
                     "hf:ORG/NAME"] = "smollm2-135m-instruct"
    adapter: Annotated[str, "LoRA adapter folder to put on the model, or hf:ORG/NAME"] = ""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], "where to compute"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"],
                     "number format of the computation; auto takes what the device multiplies fast"] = "auto"
    quantize: Annotated[Literal["none", "int8", "int4"], "hold weights in 8 or 4 bits, rounded while loading"] = "none"
    compile: Annotated[Literal["auto", "on", "off"], "where text is written on a CPU, a decoding step built by a C++ "
                       "compiler, once, and kept in the user's cache; auto: where there is one; on: or refuse"] = "auto"
    readable: Annotated[bool, "run the definitions as they stand in the files, slower, and no fast version"] = False
    seed: Annotated[int, "seed of every random choice", SEEDS] = 0
    json: Annotated[bool, "print results as JSON on stdout"] = False

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def bits(self) -> int:
        """Of a weight, for get_model; 0 leaves them as they are."""
        return {"none": 0, "int8": 8, "int4": 4}[self.quantize]


WRITING = ("instruction", "generation", "summarization", "translation", "preference")   # tasks without a head of labels


@dataclasses.dataclass(frozen=True)
class TaskFlags:
    """What the data means."""

    task: Annotated[Literal["instruction", "generation", "summarization", "translation", "preference", "classification",
                            "sentiment", "opinion", "ner", "segmentation", "qa", "multiple-choice"],
                    "instruction, summarization, translation: learn answers; preference: chosen answers against "
                    "rejected ones; generation: all text; multiple-choice: measured, never learned; the others: "
                    "labels"] = "instruction"
    max_length: Annotated[int, "tokens of a sample, or of a block of text, at most", Range(2, MOST_TOKENS)] = 512
    documents: Annotated[Literal["blank-line", "line"], "what separates the documents of a .txt file"] = "blank-line"
    overlap: Annotated[int, "generation: tokens of a block that the one before has learned, given again",
                       Range(0, MOST_TOKENS)] = 0
    chat_format: Annotated[str, "chatml, alpaca, llama-2, llama-3, plain, or a file with a chat template; default: the "
                           "model's own"] = ""
    template_args: Annotated[str, "what else the chat template asks for, as '{\"enable_thinking\": false}'"] = ""
    attention: Annotated[Literal["auto", "causal", "full"], "with labels: whether a position sees what is behind it; "
                         "auto: as the model was tuned, or else causal"] = "auto"
    pooling: Annotated[Literal["auto", "last", "mean"], "classification: score the last row of a text, or the mean of "
                       "all, with which a model learns faster from nothing; auto: as tuned, or else last"] = "auto"
    multi_label: Annotated[bool, "classification: any number of labels a text"] = False
    columns: Annotated[tuple[str, ...], "what the columns of a table hold, such as text,label, or - for nothing"] = ()
    header: Annotated[Literal["auto", "yes", "no"], "whether the first line of a table names its columns; auto: if it "
                      "names one that is known"] = "auto"
    encoding: Annotated[str, "of data files, such as gb18030; default: UTF-8"] = ""
    skip_bad: Annotated[bool, "go on without the records in which something is wrong; they are counted, and the first "
                        "named"] = False
    labels: Annotated[tuple[str, ...], "all labels, or types of entities, that there are; NAME=WORD says what a prompt "
                      "calls one; default: those of the model, or of the data that is learned"] = ()
    request: Annotated[str, "what a prompt asks, before the text; default: ours, in the language of the text"] = ""
    scheme: Annotated[Literal["BIO", "BMES"], "ner: tags that a new head learns, whatever those of the data"] = "BIO"
    score: Annotated[Literal["letter", "text"], "multiple-choice: whether the letter of each option is weighed, or its "
                     "text"] = "letter"
    period: Annotated[Literal["day", "week", "month", "year"], "opinion: what shares are followed over"] = "month"

    @property
    def reading(self) -> dict[str, Any]:
        """How files are read, for data sets."""
        return {"encoding": self.encoding, "skip_bad": self.skip_bad}

    @property
    def table(self) -> dict[str, Any]:
        """The same where they may be tables."""
        return self.reading | {"columns": self.columns or None, "header": {"yes": True, "no": False}.get(self.header)}

    @property
    def words(self) -> dict[str, str]:
        """What prompts call the labels for which that is said."""
        return dict(label.split("=", 1) for label in self.labels if "=" in label)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels alone."""
        return tuple(label.split("=", 1)[0] for label in self.labels)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.task in WRITING and self.attention != "auto":
            raise ValueError(f"--attention {self.attention}: whoever learns to write must not see what is behind; "
                             f"leave it out with --task {self.task}")
        if self.multi_label and self.task not in ("classification", "sentiment"):
            raise ValueError(f"--multi-label: a text of --task {self.task} has no several labels; leave it out")
        if self.pooling != "auto" and self.task not in ("classification", "sentiment", "opinion"):
            raise ValueError(f"--pooling {self.pooling}: only whole texts are scored by one row; leave it out with "
                             f"--task {self.task}")
        if self.scheme != "BIO" and self.task != "ner":
            raise ValueError(f"--scheme {self.scheme}: only --task ner has a choice of tags; leave it out")
        if self.score != "letter" and self.task != "multiple-choice":
            raise ValueError(f"--score {self.score}: only the options of --task multiple-choice are weighed; leave it "
                             "out")
        if self.task == "multiple-choice" and (self.columns or self.header != "auto"
                                               or self.max_length != TaskFlags.max_length):
            raise ValueError("--columns, --header and --max-length mean nothing to --task multiple-choice: its tables "
                             "name their columns, and its questions are never cut; leave them out")
        if self.overlap and self.task != "generation":
            raise ValueError(f"--overlap {self.overlap}: only the text of --task generation is cut into blocks; leave "
                             "it out")
        if (self.columns or self.header != "auto") and self.task in ("instruction", "preference", "generation", "ner",
                                                                     "segmentation", "qa"):
            raise ValueError(f"--{'columns' if self.columns else 'header'}: the data of --task {self.task} is in no "
                             "table; leave it out")
        checked_encoding(self.encoding)
        if self.labels and self.task not in ("classification", "sentiment", "opinion", "ner"):
            raise ValueError(f"--labels: --task {self.task} has no labels to name; leave it out")
        if len(set(self.names)) < len(self.names) or "" in self.names:
            raise ValueError(f"--labels {','.join(self.labels)}: give each label once, and by its name")


def add_inspection(parser: argparse.ArgumentParser) -> None:
    """--inspect, --dry-run, --allow and --plot, of the doors that train."""
    group = parser.add_argument_group("What the samples are, and what must hold of them")
    group.add_argument("--inspect", nargs="?", type=Range(0, MANY), const=3, metavar="K",
                       help="show how the first K samples (3) look to the model, count and check all, train nothing")
    group.add_argument("--dry-run", action="store_true",
                       help="tell what the run will cost in memory, time and disk, from two steps; write nothing")
    group.add_argument("--allow", action="append", choices=tuple(CHECKS), default=[], metavar="NAME",
                       help=f"train in spite of this check; may be repeated: {', '.join(CHECKS)}")
    group.add_argument("--plot", type=file_to_write, metavar="FILE", help="after the run, draw its loss, learning rate "
                       "and gradient norm, as .png, .svg or .pdf; python -m llama.plot compares several runs")


def check_alone(arguments: argparse.Namespace) -> None:
    """Raise ValueError for questions about a run that are asked of several processes, or of none that runs."""
    if distributed.launched() and (arguments.dry_run or arguments.inspect is not None):
        raise ValueError("--inspect and --dry-run look at one process; leave torchrun out")
    if arguments.dry_run and arguments.resume:
        raise ValueError("--dry-run is about a run that has not begun; leave --resume out")
    if arguments.plot and (arguments.dry_run or arguments.inspect is not None):
        raise ValueError("--plot draws a run, and --inspect and --dry-run train nothing; leave it out")
    if arguments.plot:
        need_matplotlib(arguments.plot)                             # now, and not when hours of training have ended


def choose_device(name: str) -> torch.device:
    """«auto» takes CUDA, then Apple's MPS, then the CPU. Raises ValueError for one that this machine lacks."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, present in here.items() if present))
    if not here[name]:
        raise ValueError(f"--device {name}: this machine has none that torch can use; take --device cpu")
    return torch.device(name)


Purpose = Literal["train", "generate", "find", "measure"]
WORTH_COMPILING = 1 << 20               # parameters: smaller ones write a page before their step is built


def choose_dtype(name: str, device: torch.device, *, purpose: Purpose) -> torch.dtype:
    """The dtype to compute in. «auto» is bfloat16 where the device multiplies it fast, and float32 elsewhere.

    On such CPUs products are 4 × faster, and half of the bytes are read for a token. What is found in texts stays the
    same, but for labels that are as likely as others. A perplexity («measure») stays in float32 there: it is compared
    with those of others, and bfloat16 moves it by a thousandth.
    """
    if purpose == "train" and name == "float16":
        raise ValueError("--dtype float16 loses small gradients in training; take bfloat16 or float32")
    if name == "bfloat16" and device.type == "cpu" and not _cpu_multiplies_bfloat16():
        say("--dtype bfloat16: this processor has no fast products of it, so plain torch makes them; float32 is "
            "faster here")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = device.type == "cpu" and purpose != "measure" and _cpu_multiplies_bfloat16()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether products of bfloat16 take much less time than those of float32: tried once, in some 20 ms.

    A processor's name does not tell, and what torch says of it does not follow ATEN_CPU_CAPABILITY. Where bfloat16 is
    emulated it takes longer than float32, where it is built in a third or less, so a noisy machine does not matter.
    """
    def seconds(dtype: torch.dtype) -> float:
        x, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        taken = []
        for _ in range(6):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            taken.append(time.perf_counter() - start)
        return min(taken)

    return packs_bfloat16() and seconds(torch.bfloat16) * 1.5 < seconds(torch.float32)


def load(flags: ModelFlags, *, purpose: Literal["generate", "find", "measure"]) -> PretrainedLlama:
    """The model that the flags name, with its adapter, on its device and in the dtype for this purpose.

    Where it writes on a CPU, its decoding step is compiled: what 4 or 8 bits hold without any loss is then read so, and
    an adapter is folded into the weights first. Where that cannot be, its blocks are swapped for faster ones, and few
    bits become floats at once, and not for every token. Either computes what the definitions compute (see
    fast/agreement.py).
    """
    if flags.readable and flags.compile == "on":
        raise ValueError("--readable runs the definitions and --compile a fast version of them; give one of the two")
    device = choose_device(flags.device)
    dtype = choose_dtype(flags.dtype, device, purpose=purpose)
    writes = purpose == "generate" and device.type == "cpu" and not flags.readable
    compiled = writes and _wants_step(flags)
    merging = bool(flags.adapter) and compiled                      # into a few bits nothing can be merged
    lossless = compiled and not (flags.bits or merging)
    model = get_model(base_of(flags), device=device, dtype=dtype, seed=flags.seed, bits=0 if merging else flags.bits,
                      lossless=lossless, put=in_huge_pages if compiled else None)
    if flags.adapter:
        load_adapter(model, adapter_folder(flags.adapter))
    if purpose == "generate":
        require_lm_head(model)
    if merging:
        merge_lora(model, keep_undo=False)
        if flags.bits:
            quantize(model, bits=flags.bits, report=False)
    if flags.readable:
        readable(model)
    elif compiled and _takes_step(model, flags.compile, precise=not flags.bits):
        if model.step is None:                                      # somebody edited model.py, and was told
            _unpack_once(model)
    elif purpose != "measure" and device.type == "cpu":
        if lossless:
            dequantize(model)
        elif writes:
            _unpack_once(model)
        if head_config(model) is None:
            use_fused_blocks(model)
        if writes and flags.compile == "auto" and cxx_compiler() is None and not _is_small(model):
            say("no C++ compiler is here, so torch writes, at about half the speed; with g++ or clang++ (Debian: apt "
                "install g++; macOS: xcode-select --install) the step would be compiled; --compile off: not a word")
    return model


def _wants_step(flags: ModelFlags) -> bool:
    """Whether to try. What an adapter learned on few bits stays on them unless somebody asks: a step has no LoRA."""
    if flags.compile == "auto":
        return not (flags.adapter and flags.bits) and cxx_compiler() is not None
    return flags.compile == "on"


def _is_small(model: PretrainedLlama) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) < WORTH_COMPILING


def _takes_step(model: PretrainedLlama, wish: str, *, precise: bool) -> bool:
    """Whether the model was given a compiled step, or one that was found to differ from an edited model.py.

    Raises ValueError where it was asked for and cannot be; where it was not, that is said.
    """
    if wish == "auto" and (_is_small(model) or step_misfit(model.config)):
        return False
    try:
        compile_step(model, precise=precise, say=say)
    except ValueError as error:
        if wish == "on":
            raise
        say(f"{error}: torch writes, slower")
        return False
    return True


def _unpack_once(model: PretrainedLlama) -> None:
    """Few bits into floats, where there is room for them: without a step every token would make all of them anew."""
    if not is_quantized(model):
        return
    taken = model.dtype.itemsize * sum(matrix.out_features * matrix.in_features for matrix in model.modules()
                                       if isinstance(matrix, QuantizedLinear))
    if taken * SURE > free_memory(model.device):
        say(f"without a compiled step each token unpacks all weights, for floats would take {size(taken)}; a C++ "
            "compiler brings one")
        return
    say(f"without a compiled step the weights are unpacked once, {size(taken)}")
    dequantize(model)


def adapter_folder(name: str) -> Path:
    """The folder that `--adapter` means; one on a hub is fetched if it is not here yet."""
    return fetch(name, kind="adapters") if is_address(name) else resolve(name, "adapters")


def base_of(flags: ModelFlags) -> str:
    """The model to load: `--model`, or where it is left out, the base that the adapter names, if that is here."""
    if not flags.adapter or flags.model != ModelFlags.model:
        return flags.model
    base = recorded_base(adapter_folder(flags.adapter))
    default, own = resolve(flags.model, "weights"), resolve(base, "weights")
    if not base or own.resolve() == default.resolve():
        return flags.model
    if not own.exists() and not fetched(base := f"hf:{base}"):
        say(f"the adapter's own base, {base.removeprefix('hf:')}, is not here: {flags.model} is tried; give --model to "
            "name another, which hf:ORG/NAME fetches")
        return flags.model
    say(f"the adapter's own base is taken: {base}")
    return base


def task_and_dataset(flags: TaskFlags) -> tuple[Any, Callable[[list[str]], Any]]:
    """The task that `--task` names, and what makes its data set from files."""
    if flags.task == "multiple-choice":
        return MultipleChoiceTask(flags.score), lambda files: MultipleChoiceDataset(*data_files(files), **flags.reading)
    if flags.task not in WRITING:
        return _task_of_labels(flags)
    options = {"chat_format": flags.chat_format or None, "max_length": flags.max_length,
               "variables": template_variables(flags.template_args), "skip_bad": flags.skip_bad}
    if flags.task == "instruction":
        return InstructionTask(**options), lambda files: InstructionDataset(*data_files(files), **flags.reading)
    if flags.task == "preference":
        return PreferenceTask(**options), lambda files: PreferenceDataset(*data_files(files), **flags.reading)
    if flags.task in ("summarization", "translation"):
        kind = SummarizationTask if flags.task == "summarization" else TranslationTask
        return kind(flags.request, **options), lambda files: RecordDataset(
            *data_files(files), fields=("source", "target"), **flags.table)
    return TextGenerationTask(), lambda files: LanguageModelingDataset(
        *data_files(files), block_size=flags.max_length, overlap=flags.overlap, documents=flags.documents,
        **flags.reading)


def _task_of_labels(flags: TaskFlags) -> tuple[Any, Callable[[list[str]], Any]]:
    options = {"attention": "" if flags.attention == "auto" else flags.attention, "max_length": flags.max_length}
    if flags.task == "ner":
        return NERTask(flags.names, scheme=flags.scheme, **options), lambda files: ColumnDataset(
            *data_files(files), **flags.reading)
    if flags.task == "segmentation":
        return SegmentationTask(**options), lambda files: ColumnDataset(
            *data_files(files), spans="words", scheme="BMES", **flags.reading)
    if flags.task == "qa":
        return QuestionAnsweringTask(**options), lambda files: SquadDataset(*data_files(files), **flags.reading)
    pooling = "" if flags.pooling == "auto" else flags.pooling
    if flags.task == "opinion":                                     # labels and dates come along where they are
        return OpinionTask(flags.names, period=flags.period, pooling=pooling, **options), lambda files: RecordDataset(
            *data_files(files), fields=("text",), **flags.table)
    task = ClassificationTask(flags.names, multi_label=flags.multi_label, pooling=pooling, **options)
    return task, lambda files: RecordDataset(*data_files(files), **flags.table,
                                             fields=("text", "labels" if flags.multi_label else "label"))


def check_model(flags: TaskFlags, model: PretrainedLlama) -> None:
    """Raise ValueError for a model without tokenizer, and if samples may be longer than what it can read."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; give a model folder, or make one of a "
                         "preset's shape with train.py --preset")
    if flags.max_length > (context := model.config.context):
        raise ValueError(f"samples of up to {flags.max_length} tokens do not fit the model's context of {context}; "
                         f"give --max-length {context}")
