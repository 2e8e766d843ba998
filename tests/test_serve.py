"""The server as clients meet it: on a port of this machine, with the tiny model behind it."""

import base64
import contextlib
import http.client
import json
import socket
import struct
import threading
import time

import pytest
import torch

from llama.checkpoint import PretrainedLlama, save_model
from llama.commands.flags import ModelFlags
from llama.config import preset
from llama.generation import encode_prompt, generate
from llama.lora import LoRAConfig, add_lora
from llama.lora.files import save_adapter
from llama.sampling import SamplingConfig
from llama.serve.batch import Batch
from llama.serve.openai_form import Wish
from llama.serve.scheduler import Scheduler
from tokenizer.chat import FORMATS

MISSING = "the server's tests need fastapi and uvicorn: pip install -r requirements.txt"
pytest.importorskip("fastapi", reason=MISSING)
uvicorn = pytest.importorskip("uvicorn", reason=MISSING)

from llama.serve.__main__ import ServeFlags, check  # noqa: E402
from llama.serve.api import LOOPBACK, Server, build_app  # noqa: E402
from llama.serve.metrics import Histogram  # noqa: E402
from llama.serve.models import Models  # noqa: E402

HELLO = [{"role": "user", "content": "The quick brown fox"}]
GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """A model that says something else for every prompt, and an adapter on it, in folders."""
    home = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size), tiny_tokenizer).eval()
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    tiny_tokenizer.chat_template = FORMATS["chatml"].template
    save_model(model, home / "tiny")
    tiny_tokenizer.chat_template = None
    model.source = home / "tiny"
    add_lora(model, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 1.0)
    save_adapter(model, home / "adapters" / "loud")
    return home


@contextlib.contextmanager
def running(folder, *, key="", **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("llama.serve.models.home", lambda: folder)    # not the adapters that somebody made in the clone
        models = Models(ModelFlags(model=str(folder / "tiny"), dtype="float32", device="cpu", readable=True), keep=3)
        server = Server(models, Scheduler(**{"places": 4, "queue": 8} | options),
                        Wish(sampling=GREEDY, max_new_tokens=16), key)
        config = uvicorn.Config(build_app(server), port=0, log_level="error")
        listening = config.bind_socket()
        front = uvicorn.Server(config)
        thread = threading.Thread(target=front.run, kwargs={"sockets": [listening]})
        thread.start()
        while not front.started:
            time.sleep(0.002)
        try:
            yield Client(listening.getsockname()[1], server)
        finally:
            front.should_exit = True
            thread.join()
            listening.close()


class Client:
    def __init__(self, port, server):
        self.port, self.server = port, server

    def ask(self, path, body=None, *, status=200, method=None, raw=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = raw if raw is not None else None if body is None else json.dumps(body)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == status, text
        self.headers = answer.headers
        return json.loads(text) if answer.headers["content-type"] == "application/json" else text

    def refused(self, path, body, status, **more):
        return self.ask(path, body, status=status, **more)["error"]

    def events(self, path, body):
        *events, last = self.ask(path, body | {"stream": True}).removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]" and all(event.startswith("data: ") for event in events)
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def opened(self, path, body):
        """A socket on which a request was sent, and nothing read."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection

    def until(self, condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)


@pytest.fixture(scope="module")
def client(folders):
    with running(folders) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    client.ask("/v1/completions", {"prompt": "a", "max_tokens": 1})
    return client.server.models.loaded("").model


def completed(model, prompt, *, chat=False, **options):
    """What `generate` gives for a prompt."""
    tokenizer, chat_format = model.tokenizer, FORMATS["chatml"]
    ids = chat_format.encode(prompt, tokenizer, reply=True)[0] if chat else encode_prompt(tokenizer, prompt)
    return generate(model, [ids], tokenizer=tokenizer, chat_format=chat_format if chat else None,
                    **{"sampling": GREEDY, "max_new_tokens": 16} | options)


# Answers

def test_worked_example_health_and_models(client):
    assert client.ask("/health") == {"status": "ok"}
    listed = client.ask("/v1/models")
    assert [row["id"] for row in listed["data"]] == ["tiny", "loud"]
    assert client.ask("/v1/models/loud") == listed["data"][1]


def test_two_ways_a_chat_answers_as_generate(client, model):
    answer = client.ask("/v1/chat/completions", {"messages": HELLO})
    (expected,) = completed(model, HELLO, chat=True)
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected.text, expected.finish_reason)
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny" and answer["id"].startswith("chatcmpl-")
    assert answer["usage"] == {"prompt_tokens": expected.prompt_tokens, "completion_tokens": len(expected.token_ids),
                               "total_tokens": expected.prompt_tokens + len(expected.token_ids)}


def test_two_ways_samples_and_seeds_are_those_of_generate(client, model):
    body = {"prompt": ["The dog", "你好"], "n": 3, "seed": 11, "temperature": 1.3, "top_p": 1, "max_tokens": 7}
    answer = client.ask("/v1/completions", body)
    ids = [encode_prompt(model.tokenizer, prompt) for prompt in body["prompt"]]
    expected = generate(model, ids, tokenizer=model.tokenizer, sampling=SamplingConfig(temperature=1.3, top_p=1),
                        seed=11, num_samples=3, max_new_tokens=7)
    assert [choice["text"] for choice in answer["choices"]] == [each.text for each in expected]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len({choice["text"] for choice in answer["choices"]}) > 3


@pytest.mark.parametrize("path, body", [("/v1/chat/completions", {"messages": HELLO, "n": 2}),
                                        ("/v1/completions", {"prompt": ["The dog", [7, 8, 9]], "echo": True})])
def test_two_ways_a_stream_adds_up_to_the_answer(client, path, body):
    body = body | {"seed": 3, "temperature": 1, "stop": ["ab", " th"]}
    whole = client.ask(path, body)
    events = client.events(path, body | {"stream_options": {"include_usage": True}})
    assert events.pop()["usage"] == whole["usage"] and len({event["id"] for event in events}) == 1
    texts, ends = ["", ""], ["", ""]
    for event in events:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
        ends[choice["index"]] += choice["finish_reason"] or ""
    assert texts == [each["text"] if "text" in each else each["message"]["content"] for each in whole["choices"]]
    assert ends == [each["finish_reason"] for each in whole["choices"]]


def test_two_ways_logprobs_of_a_stream_are_those_of_the_answer(client):
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 6}
    whole = client.ask("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
    parts = [event["choices"][0]["logprobs"] for event in client.events("/v1/chat/completions", body)]
    streamed = [entry for part in parts if part for entry in part["content"]]
    assert [entry["bytes"] for entry in streamed] == [entry["bytes"] for entry in whole]
    assert [entry["logprob"] for entry in streamed] == pytest.approx([entry["logprob"] for entry in whole], abs=1e-4)
    assert len(whole) == 6 and all(len(entry["top_logprobs"]) == 2 for entry in whole)


def test_two_ways_an_embedding_is_the_mean_of_hidden_states(client, model):
    answer = client.ask("/v1/embeddings", {"input": ["The dog sleeps.", [5, 6, 7]]})
    first, second = (torch.tensor(row["embedding"]) for row in answer["data"])
    with torch.inference_mode():
        states = model.hidden(torch.tensor([[5, 6, 7]]))[0].mean(0)
    assert torch.allclose(second, states / states.norm(), atol=1e-5) and not torch.allclose(first, second, atol=1e-2)
    packed = client.ask("/v1/embeddings", {"input": [5, 6, 7], "encoding_format": "base64"})["data"][0]["embedding"]
    assert torch.allclose(torch.tensor(struct.unpack(f"<{len(second)}f", base64.b64decode(packed))), second)
    assert answer["usage"]["prompt_tokens"] == len(encode_prompt(model.tokenizer, "The dog sleeps.")) + 3


def test_property_an_adapter_is_a_model_of_its_own_beside_its_base(client):
    body = {"prompt": "The quick", "max_tokens": 12}
    base, loud = (client.ask("/v1/completions", body | {"model": name}) for name in ("tiny", "loud"))
    assert (base["model"], loud["model"]) == ("tiny", "loud")
    assert base["choices"][0]["text"] != loud["choices"][0]["text"]
    assert base["choices"] == client.ask("/v1/completions", body)["choices"]


def test_property_of_models_that_nobody_asked_for_lately_few_stay(folders, monkeypatch):
    monkeypatch.chdir(folders)
    monkeypatch.setattr("llama.serve.models.home", lambda: folders)
    models, forgotten = Models(ModelFlags(model=str(folders / "tiny"), dtype="float32", readable=True), keep=1), []
    models.on_forgotten = forgotten.append
    tiny = models.get("")
    assert models.get("tiny") is tiny and not forgotten
    loud = models.get("loud")
    assert forgotten == [tiny.model] and models.loaded("loud") is loud and models.loaded("tiny") is None


def test_worked_example_what_prometheus_reads(client):
    client.ask("/nowhere", status=404)
    text = client.ask("/metrics")
    assert client.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'llama_requests_total{path="other",status="404"}' in text
    assert "\nllama_running 0\n" in text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(float(line.rpartition(" ")[2]) >= 0 for line in lines) and text.endswith("\n")


def test_worked_example_histograms_add_up_from_bucket_to_bucket():
    histogram = Histogram("x", "about", (1.0, 2.0))
    for value in (0.5, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert list(histogram.lines())[2:] == ['x_bucket{le="1"} 1', 'x_bucket{le="2"} 3', 'x_bucket{le="+Inf"} 4',
                                           "x_sum 13.000000", "x_count 4"]


# Refusals

def test_refuses_what_is_no_model_of_this_server(client, folders):
    for name in ("gpt-4", str(folders / "tiny"), "../tiny"):
        error = client.refused("/v1/completions", {"prompt": "a", "model": name}, 404)
        assert error["code"] == "model_not_found" and error["param"] == "model"
    assert "no such path" in client.refused("/v1/nothing", None, 404)["message"]


def test_refuses_what_is_no_request(client):
    assert "no JSON" in client.refused("/v1/completions", None, 400, raw="{")["message"]
    assert "no JSON" in client.refused("/v1/completions", None, 400, raw="[" * 100_000)["message"]
    assert "Content-Type" in client.refused("/v1/completions", None, 415, raw="{}", Content_Type="text/plain"
                                            )["message"]
    assert "larger than" in client.refused("/v1/completions", None, 413, raw=" " * (4 * 2**20 + 1))["message"]
    assert client.refused("/v1/chat/completions", {"messages": HELLO, "n": 9}, 400)["message"].startswith("n is 9")
    assert "context" in client.refused("/v1/completions", {"prompt": [7] * 5000}, 400)["message"]
    assert "rows for" in client.refused("/v1/completions", {"prompt": [10**6]}, 400)["message"]
    assert "rows for" in client.refused("/v1/embeddings", {"input": [10**6]}, 400)["message"]
    assert client.refused("/v1/completions", None, 405, method="DELETE")
    error = client.refused("/v1/completions", {"prompt": ["a"] * 9}, 400)           # of which 8 may wait
    assert error["message"].startswith("these are 9 prompts, and at most 8 may wait")
    assert r"\ud800" in client.refused("/v1/completions", None, 400, raw=r'{"prompt": "a", "\ud800": 1}')["message"]
    assert client.ask("/v1/completions", {"prompt": "a", "max_tokens": 1}, Content_Type="Application/JSON")


def test_refuses_tools_that_the_chat_format_leaves_out(client):
    tool = {"type": "function", "function": {"name": "weather"}}
    error = client.refused("/v1/chat/completions", {"messages": HELLO, "tools": [tool]}, 400)
    assert "leaves tools out" in error["message"] and error["param"] == "tools"
    assert client.ask("/v1/chat/completions", {"messages": HELLO, "tools": [tool], "tool_choice": "none"})


def test_refuses_what_other_sites_send(client):
    for origin in ("https://evil.example", "null", "http://[::1", f"http://127.0.0.1:{client.port}.evil.example"):
        assert client.refused("/v1/models", None, 403, Origin=origin)["code"] == "wrong_origin"
    assert client.refused("/v1/models", None, 403, Host="evil.example:80")["code"] == "wrong_host"
    assert client.ask("/v1/models", Origin=f"http://127.0.0.1:{client.port}")


def test_refuses_who_has_no_key(folders):
    with running(folders, key="a-long-secret") as client:
        for given in ("", "Bearer a-long-secre", "Bearer é", "Bearer ", "a-long-secret", "Basic a-long-secret"):
            assert client.refused("/v1/models", None, 401, Authorization=given)["code"] == "invalid_api_key"
        assert client.refused("/page/models", None, 401)
        for scheme in ("Bearer", "bearer"):                         # of any case, says RFC 9110
            assert client.ask("/v1/models", Authorization=f"{scheme} a-long-secret")
        assert client.ask("/health") and client.ask("/")


def test_refuses_to_be_open_without_a_key(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ValueError, match="lets other machines in; give --api-key-file"):
            check(ServeFlags(host=host))
    assert all(check(ServeFlags(host=host)) == "" for host in LOOPBACK)
    (tmp_path / "key").write_text("short\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no key"):
        check(ServeFlags(api_key_file=str(tmp_path / "key")))
    (tmp_path / "key").write_text("long-enough\n", encoding="utf-8")
    assert check(ServeFlags(host="0.0.0.0", api_key_file=str(tmp_path / "key"))) == "long-enough"


# Many at once

def test_refuses_with_429_when_the_queue_is_full_and_frees_the_places_of_clients_that_hang_up(folders):
    long = {"prompt": "The", "max_tokens": 110, "ignore_eos": True}
    with running(folders, places=1, queue=2) as client:
        scheduler, gate, busy = client.server.scheduler, threading.Event(), threading.Event()
        client.ask("/v1/completions", long | {"max_tokens": 1})
        scheduler.call(lambda: (busy.set(), gate.wait(20)))         # nothing moves until the gate opens
        busy.wait(20)
        waiting = [client.opened("/v1/completions", long | {"stream": stream}) for stream in (False, True)]
        client.until(lambda: scheduler.waiting == 2)
        error = client.refused("/v1/completions", long, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert client.headers["retry-after"] == "1"
        for connection in waiting:
            connection.close()
        client.until(lambda: scheduler.waiting == 0)
        gate.set()
        before = scheduler.tally.generated
        assert client.ask("/v1/completions", long | {"max_tokens": 3})["usage"]["completion_tokens"] == 3
        assert scheduler.tally.generated == before + 3                    # nothing was written for those who had left


@pytest.mark.parametrize("stream", [True, False])
def test_property_who_hangs_up_while_it_is_answered_leaves_the_batch(folders, monkeypatch, stream):
    steps, advance = threading.Semaphore(0), Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda batch: (steps.acquire(), advance(batch)))
    with running(folders) as client:
        try:
            scheduler = client.server.scheduler
            connection = client.opened("/v1/completions", {"prompt": "The", "max_tokens": 110, "ignore_eos": True,
                                                           "stream": stream})
            steps.release(3)
            client.until(lambda: scheduler.tally.generated == 3)
            (batch,) = scheduler._batches.values()
            connection.close()
            client.until(lambda: batch.rows[0].request.cancelled)
            steps.release(1)
            client.until(lambda: scheduler.running == 0 and not batch.rows)
            assert scheduler.tally.generated == 3
        finally:
            steps.release(1000)


def test_property_who_hangs_up_while_its_texts_are_embedded_leaves_the_rest_undone(folders, monkeypatch):
    done, gate = [], threading.Semaphore(0)

    def embed(model, ids):
        gate.acquire()
        done.append(ids)
        return [1.0]
    monkeypatch.setattr("llama.serve.api.text_embedding", embed)
    with running(folders) as client:
        try:
            connection = client.opened("/v1/embeddings", {"input": [[5], [6], [7], [8], [9]]})
            gate.release()
            client.until(lambda: len(done) == 1)
            connection.close()
            client.until(lambda: client.server.metrics.requests["/v1/embeddings", 499])
            gate.release(9)
            assert client.ask("/v1/embeddings", {"input": [40]})["data"][0]["embedding"] == [1.0]
        finally:
            gate.release(9)
    assert done in ([[5], [40]], [[5], [6], [40]])                  # one may have been under way


def test_two_ways_many_clients_at_once_get_what_each_gets_alone(client, model):
    prompts = [f"The {word} fox" for word in ("quick", "brown", "lazy", "old", "new", "red", "big", "wet")]
    found = {}

    def ask(i):
        body = {"prompt": prompts[i], "max_tokens": 5 + i, "seed": i, "temperature": 1.2}
        found[i] = client.ask("/v1/completions", body)["choices"][0]["text"]
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, prompt in enumerate(prompts):
        (expected,) = completed(model, prompt, max_new_tokens=5 + i, seed=i, sampling=SamplingConfig(
            temperature=1.2, top_p=GREEDY.top_p))
        assert found[i] == expected.text
