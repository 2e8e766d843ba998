"""Continue texts, answer questions, or chat.

    python generate.py                                          # a chat on a terminal, a sample answer otherwise
    python generate.py --prompt "The capital of France is" --max-new-tokens 32 --temperature 0
    python generate.py --adapter adapters/identity --chat --prompt "你是谁？"
    python generate.py --chat --prompt-file examples/repeat.jsonl --lookup --temperature 0
    python generate.py --prompt-file many.jsonl --output texts.jsonl         # killed? the same with --resume
    python generate.py --model qwen2.5-coder-0.5b-instruct --chat --tools tools.json --prompt "北京天气？"

Several prompts, of any lengths, run in batches. What is written goes to stdout, remarks go to stderr.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama.checkpoint import PretrainedLlama
    from llama.commands import chat_loop, flags
    from llama.commands.generate_records import RecordFile, run_job, settings_of
    from llama.commands.memory_to_write import memory_to_write
    from llama.commands.prompts import BadPrompts, Conversation, encode_prompts, read_prompts, read_tools
    from llama.decoding.beam_search import BeamConfig, beam_search
    from llama.decoding.chat_session import ChatSession
    from llama.decoding.speculative import (
        DraftModel,
        PromptLookup,
        SpeculationConfig,
        check_draft,
        generate_speculatively,
    )
    from llama.generation import Completion, clamp_max_new_tokens, encode_prompt, generate, require_decoder
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.ranges import MOST_TOKENS, Range
    from llama.runtime.terminal import say
    from llama.sampling import SamplingConfig
    from llama.tasks.fitting import refuse_lost
    from llama.tasks.instruction import InstructionTask
    from tokenizer.base import Tokenizer
    from tokenizer.chat_template import template_variables

QUESTION = "What is the capital of France, and what is it known for?"


def main() -> None:
    if "--serve" in sys.argv[1:]:                                   # whose flags are others: see --serve --help
        from llama.serve.__main__ import main as serve
        sys.argv.remove("--serve")
        serve("generate.py --serve")
        return
    parser = cli.Parser(
        "generate.py", __doc__.splitlines()[0],
        most=("prompt", "prompt-file", "output", "resume", "chat", "system", "max-new-tokens", "temperature", "seed",
              "model", "adapter", "quantize", "json"),
        example='python generate.py --prompt "The capital of France is" --max-new-tokens 20 --temperature 0')
    parser.add_argument("--serve", action="store_true",
                        help="serve the model to OpenAI's clients, and a page to people; its flags: --serve --help")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="the raw text to continue; may be repeated")
    parser.add_argument("--prompt-file", metavar="FILE",
                        help="a prompt as a text file, or several as .jsonl with the field 'prompt', or with --chat "
                        "'messages' and 'tools'")
    parser.add_argument("--skip-bad", action="store_true",
                        help="leave out prompts that cannot be used, and count them, instead of refusing all")
    parser.add_argument("--output", type=file_to_write, metavar="FILE",
                        help="write an object of JSON a line, as --json prints them, to FILE, each as soon as it is "
                             "there")
    parser.add_argument("--resume", action="store_true", help="go on where the FILE of --output ends")
    parser.add_argument("--overwrite", action="store_true", help="replace the FILE of --output")
    parser.add_argument("--batch-size", type=Range(1, 65_536), default=16, metavar="N",
                        help="texts to write at once; keys and values of each take memory")
    parser.add_argument("--chat", action="store_true", help="prompts are questions; without any, chat on the terminal")
    parser.add_argument("--system", metavar="TEXT", help="system message of the chat (default: the chat format's own)")
    parser.add_argument("--chat-format", metavar="NAME",
                        help="chatml, alpaca, llama-2, llama-3, plain, or a template's file (default: the model's)")
    parser.add_argument("--template-args", metavar="JSON", default="",
                        help="what else the chat template asks for, such as '{\"enable_thinking\": false}'")
    parser.add_argument("--tools", metavar="FILE", help="functions that the model may call, described in a list of "
                        "JSON, as its chat template writes them")
    parser.add_argument("--special-tokens", action="store_true",
                        help="special tokens that a raw prompt spells, as <|im_end|>, are such tokens, and not text")
    parser.add_argument("--max-new-tokens", type=Range(1, MOST_TOKENS), default=256, metavar="N",
                        help="end a text after N tokens")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end a text before TEXT; may be repeated")
    parser.add_argument("--num-samples", type=Range(1, 65_536), default=1, metavar="N",
                        help="texts to write for each prompt")
    parser.add_argument("--ignore-eos", action="store_true", help="go on where the model would end")
    parser.add_argument("--cache-dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16", "int8"),
                        help="number format of keys and values that are remembered; auto is that of the computation")
    cli.add_flags(parser, SamplingConfig)
    cli.add_flags(parser, BeamConfig)
    cli.add_flags(parser, SpeculationConfig)
    cli.add_flags(parser, flags.ModelFlags)
    arguments = parser.parse_args()

    given = bool(arguments.prompt or arguments.prompt_file)
    watched = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json
    interactive = not given and (arguments.chat or watched)
    check(arguments, given=given, interactive=interactive)
    bad = BadPrompts(skip=arguments.skip_bad)
    texts = read_prompts(arguments.prompt or [], arguments.prompt_file, bad) if given else [("", QUESTION)]
    chat, tools = arguments.chat or not given, read_tools(arguments.tools) if arguments.tools else []
    if not chat and (place := next((place for place, text in texts if isinstance(text, Conversation)), None)):
        raise ValueError(f"{place} is a conversation, and not a raw text to continue; add --chat")
    sampling, beams = cli.from_flags(SamplingConfig, arguments), cli.from_flags(BeamConfig, arguments)
    speculation = cli.from_flags(SpeculationConfig, arguments)
    model_flags = cli.from_flags(flags.ModelFlags, arguments)
    task = InstructionTask(arguments.chat_format, variables=template_variables(arguments.template_args))
    records = None
    if arguments.output:
        records = RecordFile(Path(arguments.output), resume=arguments.resume, overwrite=arguments.overwrite,
                             prompt_file=arguments.prompt_file)

    model = flags.load(model_flags, purpose="generate")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{model_flags.model} has no tokenizer, so it neither reads nor writes text; give a model "
                         "folder")
    if interactive or beams.beams or speculation.wanted:
        require_decoder(model)
    chat_format = task.format(tokenizer) if chat else None
    if chat and not (arguments.chat_format or tokenizer.chat_template):
        print(f"this model has no chat format of its own; '{chat_format.name}' is used", file=sys.stderr)
    cache_dtype = None if arguments.cache_dtype == "auto" else getattr(torch, arguments.cache_dtype)
    options = {"max_new_tokens": arguments.max_new_tokens, "stop": arguments.stop or [],
               "ignore_eos": arguments.ignore_eos, "cache_dtype": cache_dtype}
    draft = load_draft(speculation.draft, model_flags, model) if speculation.draft else None
    guesser = partial(DraftModel, draft, vocab_size=tokenizer.vocab_size) if draft else PromptLookup
    if interactive:
        guessing = {"guesser": guesser(), "draft_tokens": speculation.draft_tokens} if speculation.wanted else {}
        chat_loop.chat(ChatSession(model, tokenizer, chat_format, system=arguments.system, tools=tools,
                                   sampling=sampling, seed=model_flags.seed, **options, **guessing))
        return

    def encode(text: str | Conversation) -> list[int]:
        if not chat:
            ids = encode_prompt(tokenizer, text, special=arguments.special_tokens)
        else:
            talk = text if isinstance(text, Conversation) else Conversation([{"role": "user", "content": text}], [])
            told = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
            ids = encode_chat(chat_format, [*told, *talk.messages], talk.tools or tools, tokenizer)
        clamp_max_new_tokens(model, ids, arguments.max_new_tokens)  # or refuse, before a word is written
        return ids

    prompts = encode_prompts(texts, encode, bad)
    if not (chat or arguments.special_tokens):
        remark_special_tokens(texts, tokenizer)
    total = len(prompts) * arguments.num_samples
    if records:
        records.open(prompts, settings_of(arguments, model, draft, chat_format), num_samples=arguments.num_samples)
    alone = total == 1 and not (arguments.json or records)
    options |= {"tokenizer": tokenizer, "chat_format": chat_format, "on_text": print_piece if alone else None}

    def write(ids: Sequence[Sequence[int]], *, seed: int, on_end: Callable[[int, Completion], None]) -> None:
        with memory_to_write(model, rows=beams.beams or len(ids), longest=max(map(len, ids)),
                             new=arguments.max_new_tokens, dtype=cache_dtype):
            if beams.beams:
                beam_search(model, ids, beams, on_end=on_end, **options)
            elif speculation.wanted:
                generate_speculatively(model, ids, guesser(), draft_tokens=speculation.draft_tokens, sampling=sampling,
                                       seed=seed, on_end=on_end, **options)
            else:
                generate(model, ids, sampling=sampling, seed=seed, batch_size=len(ids), on_end=on_end, **options)

    def show(number: int, completion: Completion) -> None:
        if arguments.json:
            print(json.dumps(dataclasses.asdict(completion), ensure_ascii=False), flush=True)
        elif alone:
            print(flush=True)
        else:
            text = opening(completion.prompt, chat) + completion.text
            print(f"--- {number + 1} of {total} ---\n{text}\n", flush=True)

    if alone and not arguments.chat:
        print(opening(prompts[0].text, chat), end="", flush=True)
    summary = run_job(write, prompts, show, records=records, num_samples=arguments.num_samples,
                      batch_size=1 if beams.beams else arguments.batch_size, seed=model_flags.seed)
    print(summary, file=sys.stderr)


def encode_chat(chat_format: Any, messages: list[Any], tools: list[Any], tokenizer: Tokenizer) -> list[int]:
    """The ids that ask for an answer. Raises ValueError for a template that does not write the tools."""
    def encode(messages: list[Any], tools: list[Any]) -> list[int]:
        return chat_format.encode(messages, tokenizer, reply=True, **({"tools": tools} if tools else {}))[0]

    ids = encode(messages, tools)
    refuse_lost(messages, tools, ids, tokenizer, encode)
    return ids


def load_draft(name: str, model_flags: flags.ModelFlags, model: PretrainedLlama) -> PretrainedLlama:
    """The smaller model that guesses. Raises ValueError if its vocabulary is another."""
    draft = flags.load(dataclasses.replace(model_flags, model=name, adapter=""), purpose="generate")
    check_draft(model, draft, name)
    return draft


def opening(text: str, chat: bool) -> str:
    """What stands before an answer, or a text that goes on."""
    return f"you> {text}\n" if chat else text


def check(arguments: argparse.Namespace, *, given: bool, interactive: bool) -> None:
    """Refuse what cannot be meant, before a model is loaded. `given`: there are prompts."""
    if "" in (arguments.stop or []):
        raise ValueError("--stop '': an empty text stands everywhere; give at least one character")
    for flag, value in (("--system", arguments.system), ("--chat-format", arguments.chat_format),
                        ("--template-args", arguments.template_args or None), ("--tools", arguments.tools)):
        if given and value is not None and not arguments.chat:
            raise ValueError(f"{flag} means nothing to a raw prompt; add --chat, which makes a question of it")
    if arguments.special_tokens and (arguments.chat or not given):
        raise ValueError("--special-tokens is for raw prompts; in a chat the chat format writes them, and what is said "
                         "is text: leave one out")
    if interactive and arguments.json:
        raise ValueError("--json does not go with an interactive chat; give a --prompt")
    if interactive and arguments.output:
        raise ValueError(f"--output {arguments.output} does not go with an interactive chat; give a --prompt-file")
    for flag, value in (("--resume", arguments.resume), ("--overwrite", arguments.overwrite)):
        if value and not arguments.output:
            raise ValueError(f"{flag} is about the file of records; name it with --output FILE")
    if arguments.resume and arguments.overwrite:
        raise ValueError("--overwrite starts anew and --resume goes on; give one of them")
    if interactive and arguments.num_samples > 1:
        raise ValueError(f"--num-samples {arguments.num_samples} does not go with an interactive chat; give a --prompt")
    if arguments.beams:
        if interactive:
            raise ValueError(f"--beams {arguments.beams} does not go with an interactive chat; give a --prompt")
        if arguments.lookup or arguments.draft:
            raise ValueError(f"--beams {arguments.beams} looks at many texts and guesses are about one; leave "
                             f"{'--lookup' if arguments.lookup else '--draft'} out")
        usual = {field.name: field.default for field in dataclasses.fields(SamplingConfig)} | {"num_samples": 1}
        for name, value in usual.items():
            if (given := getattr(arguments, name)) != value:
                raise ValueError(f"--{name.replace('_', '-')} {given} is for drawing tokens, and --beams "
                                 f"{arguments.beams} draws none; give one of the two")
    elif arguments.length_penalty != BeamConfig.length_penalty:
        raise ValueError(f"--length-penalty {arguments.length_penalty} is for beam search; add --beams N")
    if arguments.num_samples > 1 and arguments.temperature == 0:
        raise ValueError(f"--num-samples {arguments.num_samples} at --temperature 0 would be the same text "
                         f"{arguments.num_samples} times; raise the temperature")


def remark_special_tokens(texts: Sequence[tuple[str, Any]], tokenizer: Tokenizer) -> None:
    """Say so where prompts spell tokens that they do not get: who writes a chat by hand would wonder at the answer."""
    spelt = [text[begin:end] for _, text in texts for begin, end, _ in tokenizer.special_tokens_in(text)[:1]]
    if spelt:
        say(f"{len(spelt)} of {len(texts)} prompts spell special tokens, such as {spelt[0]}, which are read as text; "
            "--special-tokens makes tokens of them")


def print_piece(row: int, text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    cli.run(main)
