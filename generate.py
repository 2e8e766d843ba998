"""Continue texts, answer questions, or chat.

    python generate.py                                          # a chat on a terminal, a sample answer otherwise
    python generate.py --prompt "The capital of France is" --max-new-tokens 32 --temperature 0
    python generate.py --adapter adapters/identity --chat --prompt "你是谁？"
    python generate.py --chat --prompt-file examples/repeat.jsonl --lookup --temperature 0

Several prompts, of any lengths, run in one batch. What is written goes to stdout, remarks go to stderr.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama.checkpoint import PretrainedLlama
    from llama.commands import chat_loop, flags
    from llama.datasets.lines import json_records, numbered_lines, text_field
    from llama.decoding.beam_search import BeamConfig, beam_search
    from llama.decoding.chat_session import ChatSession
    from llama.decoding.speculative import (
        DraftModel,
        PromptLookup,
        SpeculationConfig,
        SpeculativeCompletion,
        check_draft,
        draft_stats,
        generate_speculatively,
    )
    from llama.generation import Completion, clamp_max_new_tokens, encode_prompt, generate
    from llama.runtime import cli
    from llama.sampling import SamplingConfig
    from llama.tasks.instruction import InstructionTask

QUESTION = "What is the capital of France, and what is it known for?"


def main() -> None:
    parser = cli.Parser(
        "generate.py", __doc__.splitlines()[0],
        most=("prompt", "prompt-file", "chat", "system", "max-new-tokens", "temperature", "top-p", "seed", "model",
              "adapter", "quantize", "compile", "json"),
        example='python generate.py --prompt "The capital of France is" --max-new-tokens 20 --temperature 0')
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="the raw text to continue; may be repeated")
    parser.add_argument("--prompt-file", metavar="FILE",
                        help="a prompt as a text file, or several as .jsonl with the field 'prompt'")
    parser.add_argument("--chat", action="store_true", help="prompts are questions; without any, chat on the terminal")
    parser.add_argument("--system", metavar="TEXT", help="system message of the chat (default: the chat format's own)")
    parser.add_argument("--chat-format", metavar="NAME",
                        help="chatml, alpaca, llama-2 or llama-3 (default: the model's own)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="end a text after N tokens")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end a text before TEXT; may be repeated")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="texts to write for each prompt")
    parser.add_argument("--ignore-eos", action="store_true", help="go on where the model would end")
    parser.add_argument("--cache-dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16", "int8"),
                        help="number format of keys and values that are remembered; auto is that of the computation")
    cli.add_flags(parser, SamplingConfig)
    cli.add_flags(parser, BeamConfig)
    cli.add_flags(parser, SpeculationConfig)
    cli.add_flags(parser, flags.ModelFlags)
    arguments = parser.parse_args()

    prompts = (arguments.prompt or []) + (read_prompts(arguments.prompt_file) if arguments.prompt_file else [])
    watched = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json
    interactive = not prompts and (arguments.chat or watched)
    check(arguments, given=bool(prompts), interactive=interactive)
    sample_answer = not prompts and not interactive
    if sample_answer:
        prompts = [QUESTION]
    chat = arguments.chat or interactive or sample_answer
    sampling, beams = cli.from_flags(SamplingConfig, arguments), cli.from_flags(BeamConfig, arguments)
    speculation = cli.from_flags(SpeculationConfig, arguments)
    model_flags = cli.from_flags(flags.ModelFlags, arguments)
    task = InstructionTask(arguments.chat_format)

    model = flags.load(model_flags, purpose="generate")
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{model_flags.model} has no tokenizer, so it neither reads nor writes text; give a model "
                         "folder")
    chat_format = task.format(tokenizer) if chat else None
    if chat and not (arguments.chat_format or tokenizer.chat_template):
        print(f"this model has no chat format of its own; '{chat_format.name}' is used", file=sys.stderr)
    cache_dtype = None if arguments.cache_dtype == "auto" else getattr(torch, arguments.cache_dtype)
    options = {"max_new_tokens": arguments.max_new_tokens, "stop": arguments.stop or [],
               "ignore_eos": arguments.ignore_eos, "cache_dtype": cache_dtype}
    drawing = {"sampling": sampling, "seed": model_flags.seed}
    guessing = {}
    if speculation.wanted:
        guessing = {"guesser": guesser(speculation, model_flags, model), "draft_tokens": speculation.draft_tokens}
    if interactive:
        chat_loop.chat(ChatSession(model, tokenizer, chat_format, system=arguments.system, **options, **drawing,
                                   **guessing))
        return

    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    ids = [chat_format.encode([*system, {"role": "user", "content": text}], tokenizer, reply=True)[0] if chat
           else encode_prompt(tokenizer, text) for text in prompts]
    for prompt in ids:
        clamp_max_new_tokens(model, len(prompt), arguments.max_new_tokens)  # or refuse, before a word is printed
    alone = len(prompts) * arguments.num_samples == 1
    openings = [f"you> {text}\n" if chat else text for text in prompts]
    on_text = None
    if alone and not arguments.json:
        print("" if arguments.chat else openings[0], end="", flush=True)
        on_text = print_piece
    started = time.perf_counter()
    options |= {"tokenizer": tokenizer, "chat_format": chat_format, "on_text": on_text}
    if beams.beams:
        completions = beam_search(model, ids, beams, **options)
    else:
        write = generate_speculatively if guessing else generate
        completions = write(model, ids, **options, **drawing, **guessing, num_samples=arguments.num_samples)
    seconds = time.perf_counter() - started

    for row, completion in enumerate(completions):
        i = row // arguments.num_samples
        if arguments.json:
            record = dataclasses.replace(completion, prompt=prompts[i])
            print(json.dumps(dataclasses.asdict(record), ensure_ascii=False))
        elif alone:
            print()
        else:
            print(f"--- {row + 1} of {len(completions)} ---\n{openings[i]}{completion.text}\n")
    sys.stdout.flush()
    print(summary(completions, seconds), file=sys.stderr)


def guesser(speculation: SpeculationConfig, model_flags: flags.ModelFlags,
            model: PretrainedLlama) -> DraftModel | PromptLookup:
    """What guesses tokens. Raises ValueError for a draft model of another vocabulary."""
    if speculation.lookup:
        return PromptLookup()
    draft = flags.load(dataclasses.replace(model_flags, model=speculation.draft, adapter=""), purpose="generate")
    check_draft(model, draft, speculation.draft)
    return DraftModel(draft, vocab_size=model.tokenizer.vocab_size)


def read_prompts(name: str) -> list[str]:
    """The text of a file, without the line end that editors close it with, or the prompts of a .jsonl file."""
    path = Path(name)
    if path.suffix in (".jsonl", ".json"):
        return [text_field(record, "prompt", place) for place, record in json_records(path)]
    return ["\n".join(line for _, line in numbered_lines(path))]


def check(arguments: argparse.Namespace, *, given: bool, interactive: bool) -> None:
    """Refuse what cannot be meant, before a model is loaded. `given`: there are prompts."""
    for flag, value in (("--max-new-tokens", arguments.max_new_tokens), ("--num-samples", arguments.num_samples)):
        if value < 1:
            raise ValueError(f"{flag} {value}: it must be at least 1")
    if "" in (arguments.stop or []):
        raise ValueError("--stop '': an empty text stands everywhere; give at least one character")
    for flag, value in (("--system", arguments.system), ("--chat-format", arguments.chat_format)):
        if given and value is not None and not arguments.chat:
            raise ValueError(f"{flag} means nothing to a raw prompt; add --chat, which makes a question of it")
    if interactive and arguments.json:
        raise ValueError("--json does not go with an interactive chat; give a --prompt")
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


def print_piece(row: int, text: str) -> None:
    print(text, end="", flush=True)


def summary(completions: list[Completion], seconds: float) -> str:
    tokens = sum(len(completion.token_ids) for completion in completions)
    cut = sum(completion.finish_reason == "length" for completion in completions)
    line = f"{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} a second)"
    if guessed := [completion for completion in completions if isinstance(completion, SpeculativeCompletion)]:
        line += f"; {draft_stats(guessed)}"
    return line + (f"; {cut} of {len(completions)} texts cut off, see --max-new-tokens" if cut else "")


if __name__ == "__main__":
    cli.run(main)
