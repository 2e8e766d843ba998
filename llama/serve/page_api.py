"""What the page asks for beside OpenAI's paths, below /page; and the page itself, which lies in page/.

The page's files are read once and handed out with a policy under which a browser runs nothing else: no script in a
line, none of another site, nothing that a model wrote. All else here is JSON, and behind the same `guard`.

Try: add 'unsafe-inline' to POLICY; tests/test_serve_page.py
(test_property_the_page_may_run_nothing_but_its_own_files) fails.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from llama import lens, predict
from llama.commands.flags import TaskFlags
from llama.config import require_llama
from llama.datasets.instructions import InstructionDataset
from llama.generation import encode_prompt
from llama.pretrained import get_tokenizer
from llama.runtime.ranges import Range
from llama.serve.models import Models, Served
from llama.serve.openai_form import APIError, Fields
from llama.serve.runs import Runs
from llama.tasks.instruction import InstructionTask
from llama.trace import as_json, trace
from llama.training.data_checks import examine
from llama.training.inspect_samples import spelled
from tokenizer.base import Tokenizer
from weights.formats.paths import home
from weights.formats.sources import VOCABULARIES

FILES = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
          "form-action 'none'; base-uri 'none'; frame-ancestors 'none'")
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}
LOOKED_AT = 96                                                      # tokens whose attention is drawn
READ_ALONG = 32                                                     # tokens of a text whose every tensor is kept
SAMPLES = 5                                                         # that are shown of a data file

JSON = dict[str, Any]


def page_files() -> APIRouter:
    """The page: / and /static/NAME, of the files that are there when the server starts."""
    router = APIRouter()
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in FILES.iterdir() if path.suffix in KINDS}

    @router.get("/")
    async def index() -> Response:
        return one_file("index.html")

    @router.get("/static/{name}")
    async def one(name: str) -> Response:
        return one_file(name)

    def one_file(name: str) -> Response:
        if name not in files:
            raise APIError(f"there is no file {name!r:.80}", status=404)
        content, kind = files[name]
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    return router


def page_paths(server: Any, read_json: Callable[[Request], Any]) -> APIRouter:
    """What its views ask for; `server` is an api.Server."""
    router, runs = APIRouter(prefix="/page"), Runs()
    server.on_close.append(runs.stop_all)
    tokenizers: dict[str, Tokenizer] = {}

    async def asked(request: Request) -> Fields:
        return Fields(await read_json(request))

    @router.get("/models")
    async def models() -> Response:
        described = await server.encode(server.models.described)
        return JSONResponse({"models": described, "default": server.models.default, "tokenizers": vocabularies()})

    @router.post("/tokens")
    async def tokens(request: Request) -> Response:
        fields = await asked(request)
        name, text = fields.take("tokenizer", str, ""), fields.take("text", str, "")
        fields.close()
        if name and name not in vocabularies():
            raise APIError(f"the tokenizer {name!r:.80} is not here", status=404)
        if not name:
            tokenizer = (await server.served("")).model.tokenizer
        else:
            if name not in tokenizers:
                tokenizers[name] = await server.encode(get_tokenizer, name)
            tokenizer = tokenizers[name]
        ids = await server.encode(tokenizer.encode, text)
        return JSONResponse({"ids": ids, "pieces": pieces(tokenizer, ids), "vocab_size": tokenizer.vocab_size})

    @router.post("/attention")
    async def attention(request: Request) -> Response:
        """Of one layer, all heads: (H, T, T), and how many layers there are."""
        fields = await asked(request)
        layer = fields.number("layer", Range(0, 1000), 0)
        served, ids = await text_and_model(fields)
        if layer >= (layers := served.model.config.num_hidden_layers):
            raise APIError(f"layer is {layer}, and the model has {layers}", param="layer")
        weights = (await server.call(lens.attention, served.model, ids))[layer]
        return JSONResponse({"pieces": pieces(served.model.tokenizer, ids), "layers": layers,
                             "weights": [[[round(w, 3) for w in row] for row in head] for head in weights.tolist()]})

    @router.post("/logit-lens")
    async def logit_lens(request: Request) -> Response:
        served, ids = await text_and_model(await asked(request))
        said = await server.call(lens.logit_lens, served.model, ids)
        return JSONResponse({"pieces": pieces(served.model.tokenizer, ids), "said": said})

    @router.post("/trace")
    async def tensors(request: Request) -> Response:
        """What `python -m llama.trace --all --json` says, from a copy of the model that is gone afterwards."""
        served, ids = await text_and_model(await asked(request), most=READ_ALONG)
        require_llama(served.model.config, "this view is", "choose one")
        found = await server.call(read_along, server.models, served.name, ids)
        return JSONResponse({"ids": ids, "pieces": pieces(served.model.tokenizer, ids),
                             "layers": list(range(served.model.config.num_hidden_layers)), **found})

    async def text_and_model(fields: Fields, *, most: int = LOOKED_AT) -> tuple[Served, list[int]]:
        name, text = fields.take("model", str, ""), fields.take("text", str, "")
        fields.close()
        served = await server.served(name)
        ids = await server.encode(encode_prompt, served.model.tokenizer, text)
        if len(ids) > most:
            raise APIError(f"the text has {len(ids)} tokens, and at most {most} are shown here; shorten it",
                           param="text")
        return served, ids

    @router.post("/task")
    async def task(request: Request) -> Response:
        """What the model finds in a text: llama.predict on one text."""
        fields = await asked(request)
        name, text = fields.take("model", str, ""), fields.take("text", str, "")
        wanted, context = fields.take("task", str, ""), fields.take("context", str, "")
        labels = fields.take("labels", list, [])
        fields.close()
        if not text.strip() or wanted not in ("", *predict.FINDING, *predict.WRITING):
            raise APIError("give a text, and a task that llama.predict knows, or none")
        if not all(isinstance(each, str) for each in labels):
            raise APIError("labels must be texts", param="labels")
        served = await server.served(name)

        def found() -> JSON:
            task_name = predict.task_name(served.model, wanted)
            if task_name == "qa" and not context.strip():
                raise APIError("a question needs the text that it is about", param="context")
            given = (text, context) if task_name == "qa" else text
            task_flags = TaskFlags(task=task_name, labels=tuple(labels))
            [(_, _, result)] = predict.answers(served.model, task_flags, [[("page", given)]], max_new_tokens=64)
            return {"task": task_name, **result}
        return JSONResponse(await server.call(found))

    @router.post("/inspect")
    async def inspect(request: Request) -> Response:
        """The X-ray of finetune.py --inspect: the first samples of a file, id by id, then counts and checks."""
        fields = await asked(request)
        name, file = fields.take("model", str, ""), fields.take("file", str, "")
        fields.close()
        path = runs.data_files().get(file)
        if path is None:
            raise APIError(f"the file {file!r:.80} is not among those of GET /page/runs", status=404)
        tokenizer = (await server.served(name)).model.tokenizer
        return JSONResponse(await server.encode(x_ray, path, tokenizer))

    @router.get("/runs")
    async def all_runs() -> Response:
        return JSONResponse({"runs": runs.listed(), "data": list(runs.data_files())})

    @router.get("/runs/{name:path}")
    async def one_run(name: str, start: int = 0) -> Response:
        lines, end = runs.lines(name, start)
        return JSONResponse({"lines": lines, "end": end, "running": runs.is_running(name), "said": runs.said(name)})

    @router.post("/runs")
    async def start(request: Request) -> Response:
        """finetune.py --lora on a data file that is here, and nothing else."""
        fields = await asked(request)
        data, name = fields.take("data", str, ""), fields.take("name", str, "")
        minutes = fields.number("minutes", Range(0.1, 600.0), 5.0)
        fields.close()
        context = (await server.served(server.models.base)).model.config.context
        return JSONResponse({"name": runs.start(data, name, minutes, model=server.models.flags.model,
                                                max_length=min(context, TaskFlags.max_length))})

    @router.delete("/runs/{name:path}")
    async def stop(name: str) -> Response:
        runs.stop(name)
        return JSONResponse({"name": name})

    return router


def vocabularies() -> list[str]:
    """The tokenizers that lie in weights/, by the names of their folders."""
    return sorted(folder.name for folder in (home() / "weights").glob("[!.]*")
                  if any((folder / name).is_file() for name in (*VOCABULARIES, "model.gguf")))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Each token as something to look at: a space is ▁, part of a character its bytes."""
    return [spelled(tokenizer.token_bytes(id)) for id in ids]


def read_along(models: Models, name: str, ids: list[int]) -> JSON:
    """Every tensor of a forward and a backward pass, and every parameter; see llama/trace.py."""
    with torch.inference_mode(False):
        tensors, parameters = trace(models.unfused(name), ids)
    return {"tensors": as_json(tensors), "parameters": as_json(parameters)}


def x_ray(path: Path, tokenizer: Tokenizer) -> JSON:
    """Samples of an instruction file as the model sees them."""
    task, dataset = InstructionTask(), InstructionDataset(path)
    samples = task.samples(dataset, tokenizer)
    report = examine(task, dataset, samples, tokenizer, vocab_size=tokenizer.vocab_size)
    shown = [{"place": Path(sample.place).name, "pieces": pieces(tokenizer, list(sample.ids)), "ids": list(sample.ids),
              "learned": [bool(each) for each in sample.loss_mask]} for sample in samples[:SAMPLES]]
    return {"samples": shown, "count": len(samples), "report": report.table()}
