"""Continuous batching: whoever comes when, every request gets the text that it would get alone."""

import gc
import random
import threading
import time
import weakref

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.generation import generate
from llama.masks import padding_mask
from llama.sampling import SamplingConfig
from llama.serve import batch as module
from llama.serve.batch import Batch, Piece, Request
from llama.serve.scheduler import QueueFull, Scheduler

GREEDY, HOT = SamplingConfig(temperature=0), SamplingConfig(temperature=1.5, top_p=1, repetition_penalty=1.1)


@pytest.fixture
def tiny_model(tiny_model):
    """With larger weights: as initialised, it says the same whatever it has read."""
    return louder(tiny_model)


@pytest.fixture
def scheduler():
    running = []

    def make(**options):
        running.append(Scheduler(**options))
        running[-1].start()
        return running[-1]
    yield make
    for each in running:
        each.close()


def louder(model):
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    return model


class Asked:
    """A request, and what has come of it."""

    def __init__(self, model, prompt, **options):
        self.pieces, self.done = [], threading.Event()
        self.request = Request(model, prompt, self.take, **{"sampling": GREEDY, "ignore_eos": True} | options)
        self.left, self.error = self.request.n, None

    def take(self, piece):
        if isinstance(piece, Exception):
            self.error = piece
            self.done.set()
            return
        self.pieces.append(piece)
        self.left -= bool(piece.finish_reason)
        if not self.left:
            self.done.set()

    def texts(self):
        assert self.done.wait(20)
        return ["".join(piece.text for piece in self.pieces if piece.index == i) for i in range(self.request.n)]

    def alone(self):
        """What `generate` gives for it."""
        r = self.request
        return [each.text for each in generate(
            r.model, [r.prompt], tokenizer=r.model.tokenizer, sampling=r.sampling, max_new_tokens=r.max_new_tokens,
            seed=r.seed, num_samples=r.n, stop=r.stop, ignore_eos=r.ignore_eos)]


def drive(batch, plan):
    """Advance a batch by hand: plan is {step: [Asked, …]}, who arrives before which step."""
    step = 0
    while batch.busy or any(later >= step for later in plan):
        batch.waiting.extend(asked.request for asked in plan.get(step, ()))
        batch.advance()
        step += 1
    return step


def plan_of(model, *, count, seed=0):
    """Requests of all kinds, at any time."""
    rng = random.Random(seed)
    plan = {}
    for number in range(count):
        prompt = [rng.randrange(5, 300) for _ in range(rng.choice([1, 2, 5, 9, 30]))]
        asked = Asked(model, prompt, n=rng.choice([1, 1, 2]), seed=number, max_new_tokens=rng.choice([1, 4, 12, 25]),
                      sampling=rng.choice([GREEDY, HOT]))
        plan.setdefault(rng.randrange(30), []).append(asked)
    return plan


@torch.inference_mode()
@pytest.mark.parametrize("places, chunk", [(4, 512), (3, 8)])
def test_two_ways_requests_that_join_and_leave_get_the_texts_of_generate(tiny_model, monkeypatch, places, chunk):
    monkeypatch.setattr(module, "SLACK", 5)                         # caches grow, and lose padding, again and again
    plan = plan_of(tiny_model, count=14)
    drive(Batch(tiny_model, places=places, chunk=chunk), plan)
    for asked in (asked for many in plan.values() for asked in many):
        assert asked.texts() == asked.alone()
        assert [piece.finish_reason for piece in asked.pieces if piece.finish_reason] == ["length"] * asked.request.n


@torch.inference_mode()
@pytest.mark.parametrize("changes", [
    {"sliding_window": 16}, {"max_position_embeddings": 16, "rope_scaling": RopeScaling("dynamic", 4.0)}],
    ids=["window", "dynamic"])
def test_two_ways_texts_that_outgrow_the_cache_run_alone(tiny_tokenizer, monkeypatch, changes):
    monkeypatch.setattr(module, "SLACK", 5)
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.4, **changes),
                            tiny_tokenizer).eval()
    plan = {0: [Asked(model, [5, 6, 7], max_new_tokens=10), Asked(model, [9], max_new_tokens=12)],
            2: [Asked(model, [11, 12], max_new_tokens=40)],
            3: [Asked(model, [20, 21, 22, 23], max_new_tokens=10), Asked(model, [8] * 30, max_new_tokens=10)]}
    drive(Batch(model, places=4), plan)
    for asked in (asked for many in plan.values() for asked in many):
        assert asked.texts() == asked.alone()


class Step:
    """What a compiled one is to a batch: it takes few tokens, and its logits are float32 whatever the model's are."""

    def __init__(self, model):
        self.model, self.taken = model, 0

    def fits(self, tokens, cache):
        return tokens.shape[1] == 1

    def __call__(self, tokens, *, padding, cache, count):
        self.taken += 1
        hidden = self.model.hidden(tokens, positions=(cache.length - padding)[:, None], cache=cache,
                                   mask=padding_mask(padding, 1, cache.length + 1))
        return torch.nn.functional.linear(hidden.float(), self.model.lm_head.weight.float())


@torch.inference_mode()
def test_two_ways_rows_of_a_step_in_float32_and_prompts_in_bfloat16_mix(tiny_model):
    """Both ways to join: over rows that have ended, and beside those that go on."""
    tiny_model.lm_head.register_forward_hook(lambda layer, given, logits: logits.bfloat16())
    tiny_model.step = Step(tiny_model)
    plan = plan_of(tiny_model, count=14)
    every = [asked for many in plan.values() for asked in many]
    drive(Batch(tiny_model, places=4), plan)
    assert tiny_model.step.taken > 20
    assert [asked.texts() for asked in every] == [asked.alone() for asked in every]


@torch.inference_mode()
def test_property_a_place_is_taken_by_writing_over_it(tiny_model, monkeypatch):
    """Nothing is stacked while somebody waits, and the cache does not grow with the requests that went through it."""
    batch = Batch(tiny_model, places=2)
    many = [Asked(tiny_model, [5 + i, 6, 7], max_new_tokens=6) for i in range(12)]
    batch.waiting.extend(asked.request for asked in many[:2])
    batch.advance()
    batch.waiting.extend(asked.request for asked in many[2:])
    monkeypatch.setattr(type(batch.decoder), "stack", lambda *_: pytest.fail("rows were stacked"))
    while batch.busy:
        batch.advance()
        assert not batch.decoder or batch.decoder.cache.max_length <= 3 + 6 + module.SLACK
    assert [asked.texts() for asked in many] == [asked.alone() for asked in many]


@torch.inference_mode()
def test_property_a_long_prompt_stops_nobody(tiny_model):
    """It is read in chunks, and between them the other rows go on."""
    batch = Batch(tiny_model, places=4, chunk=8)
    first, long = Asked(tiny_model, [5, 6], max_new_tokens=20), Asked(tiny_model, [7] * 80, max_new_tokens=3)
    batch.waiting.append(first.request)
    batch.advance()
    batch.waiting.append(long.request)
    for _ in range(9):
        batch.advance()
    assert len(batch.rows) == 1 and len(batch.rows[0].token_ids) == 10 and batch.prefill
    drive(batch, {})
    assert [first.texts(), long.texts()] == [first.alone(), long.alone()]


@torch.inference_mode()
def test_two_ways_logprobs_are_those_of_the_model(tiny_model):
    asked = Asked(tiny_model, [5, 6, 7], max_new_tokens=5, top_logprobs=3)
    drive(Batch(tiny_model, places=2), {0: [asked]})
    found = [each for piece in asked.pieces for each in piece.logprobs]
    ids = [each.token for each in found]
    logits = tiny_model(torch.tensor([[5, 6, 7, *ids]]))[0, 2:-1, : tiny_model.tokenizer.vocab_size]
    expected = logits.log_softmax(-1)
    assert len(found) == 5
    for each, row in zip(found, expected, strict=True):
        assert each.logprob == pytest.approx(float(row[each.token]), abs=1e-4)
        assert [token for token, _ in each.top] == row.topk(3).indices.tolist()


@torch.inference_mode()
def test_two_ways_what_prompts_begin_with_alike_is_read_once(tiny_model):
    """A system message in front of all, and the turns of a chat that grows."""
    system, batch = list(range(20, 60)), Batch(tiny_model, chunk=64)
    plan = {step: [Asked(tiny_model, [*system, *[7, 8, 9][: step % 4], 5], max_new_tokens=6)] for step in range(5)}
    plan[2].append(Asked(tiny_model, [*system, 70, 71], max_new_tokens=4))
    chat = [*system, *range(70, 90)]
    for turn in range(3):
        plan[20 + turn] = [Asked(tiny_model, chat + list(range(90, 100 + 10 * turn)), max_new_tokens=3)]
    drive(batch, plan)
    every = [asked for many in plan.values() for asked in many]
    assert [asked.texts() for asked in every] == [asked.alone() for asked in every]
    assert batch.tally.read < 0.5 * sum(len(asked.request.prompt) for asked in every)


def test_property_nothing_is_kept_of_a_model_that_is_forgotten(tiny_model, scheduler):
    server = scheduler()
    server.submit((asked := Asked(tiny_model, [5], max_new_tokens=2)).request)
    asked.texts()
    server.call(int).result(20)
    assert len(server._batches) == 1                                # what prompts begin with is remembered
    server.forget(tiny_model)
    server.call(int).result(20)
    server.call(int).result(20)
    assert not server._batches


def test_property_who_still_asks_for_a_forgotten_model_is_answered_and_it_goes(tiny_tokenizer, scheduler):
    """A request that was made before the model went out of use, and comes to the scheduler after it."""
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size), tiny_tokenizer).eval()
    server, here = scheduler(), weakref.ref(model)
    late = Asked(model, [5], max_new_tokens=2)
    server.forget(model)
    server.submit(late.request)
    assert late.texts()
    del model, late
    for _ in range(2):
        server.call(int).result(20)
    gc.collect()
    assert not server._batches and here() is None


def test_two_ways_a_running_scheduler_gives_the_texts_of_generate(tiny_model, scheduler):
    server = scheduler(places=3)
    many = [asked for some in plan_of(tiny_model, count=10, seed=1).values() for asked in some]
    for asked in many:
        server.submit(asked.request)
    texts = [asked.texts() for asked in many]
    assert texts == [asked.alone() for asked in many]
    assert server.waiting == 0
    assert server.tally.generated == sum(asked.request.limit * asked.request.n for asked in many)


def test_two_ways_two_models_at_once(tiny_model, tiny_tokenizer, scheduler):
    torch.manual_seed(1)
    other = louder(PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size), tiny_tokenizer).eval())
    server = scheduler(places=2)
    many = [Asked(model, [5, 6, 7], max_new_tokens=12) for model in (tiny_model, other) * 2]
    for asked in many:
        server.submit(asked.request)
    texts = [asked.texts() for asked in many]
    assert texts == [asked.alone() for asked in many] and texts[0] != texts[1]


def test_refuses_more_than_may_wait_and_more_texts_than_places(tiny_model, scheduler):
    server, gate, started = scheduler(places=2, queue=2), threading.Event(), threading.Event()
    server.call(lambda: (started.set(), gate.wait(20)))             # the thread is busy; nothing leaves the queue
    started.wait(20)
    waiting = [Asked(tiny_model, [5], max_new_tokens=2) for _ in range(2)]
    for asked in waiting:
        server.submit(asked.request)
    with pytest.raises(QueueFull, match="2 requests wait already"):
        server.submit(Asked(tiny_model, [5]).request)
    with pytest.raises(QueueFull):
        server.call(int)
    with pytest.raises(ValueError, match="n is 3, and this server writes 2 texts at once"):
        server.submit(Asked(tiny_model, [5], n=3).request)
    server.cancel(waiting[0].request)                               # who leaves the queue makes room in it
    server.submit((late := Asked(tiny_model, [5], max_new_tokens=2)).request)
    gate.set()
    assert late.texts() and waiting[1].texts() and not waiting[0].pieces and server.refused == 2


def test_refuses_ids_that_no_token_has_before_they_meet_others(tiny_tokenizer):
    """Many models have a few more rows than their tokenizer has tokens; what no text can be made of ended a batch."""
    known = tiny_tokenizer.vocab_size
    model = PretrainedLlama(preset("test", vocab_size=known + 8), tiny_tokenizer).eval()
    with pytest.raises(ValueError, match=f"holds the token {known}, and the vocabulary ends before {known}"):
        Asked(model, [5, known])
    assert Asked(model, [5, known - 1]).request.limit


@torch.inference_mode()
def test_property_who_is_cancelled_frees_its_place(tiny_model):
    batch = Batch(tiny_model, places=2)
    gone, stays = Asked(tiny_model, [5], max_new_tokens=100), Asked(tiny_model, [6], max_new_tokens=9)
    batch.waiting.extend([gone.request, stays.request])
    batch.advance()
    gone.request.cancelled = True
    before = len(gone.pieces)
    next_one = Asked(tiny_model, [7], max_new_tokens=3)
    batch.waiting.append(next_one.request)
    batch.advance()
    assert [row.request for row in batch.rows] == [next_one.request, stays.request]
    drive(batch, {})
    assert len(gone.pieces) == before
    assert [next_one.texts(), stays.texts()] == [next_one.alone(), stays.alone()]


def test_property_a_fault_ends_its_batch_and_not_the_server(tiny_model, scheduler, monkeypatch):
    server = scheduler(places=2)
    broken = Asked(tiny_model, [5], max_new_tokens=50, stop=["x"])
    monkeypatch.setattr(module.RequestRow, "draw", lambda *_: 1 / 0)
    server.submit(broken.request)
    assert broken.done.wait(20) and isinstance(broken.error, ZeroDivisionError)
    monkeypatch.undo()
    server.submit((asked := Asked(tiny_model, [5], max_new_tokens=5)).request)
    assert asked.texts() == asked.alone()
    with pytest.raises(ZeroDivisionError):
        server.call(lambda: 1 / 0).result(20)
    assert server.call(lambda: 7).result(20) == 7


@pytest.mark.parametrize("where", ["_next", "_read_common", "_join", "_keep", "_step"])
def test_property_wherever_a_batch_fails_everybody_in_it_is_told(tiny_model, scheduler, monkeypatch, where):
    """Who writes, who joins, and who waits; what comes afterwards is answered as ever."""
    server, gate, ended = scheduler(places=2), threading.Event(), threading.Event()
    first = Asked(tiny_model, [5], max_new_tokens=60)
    others = [Asked(tiny_model, [6], max_new_tokens=1), *(Asked(tiny_model, [7, 8], max_new_tokens=9) for _ in "abc")]
    server.submit(first.request)
    while len(first.pieces) < 2:
        time.sleep(0.001)
    server.call(lambda: (ended.set(), gate.wait(20)))
    ended.wait(20)

    def fail(batch, *given):
        monkeypatch.undo()
        raise ZeroDivisionError(where)
    monkeypatch.setattr(Batch, where, fail)
    for asked in others:
        server.submit(asked.request)
    gate.set()
    told = [asked for asked in (first, *others) if asked.done.wait(20)]
    assert told == [first, *others] and isinstance(first.error, ZeroDivisionError)
    assert all(asked.error or asked.pieces[-1].finish_reason for asked in others)
    server.submit((late := Asked(tiny_model, [5], max_new_tokens=5)).request)
    assert late.texts() == late.alone()


@torch.inference_mode()
def test_property_who_cannot_be_told_keeps_nobody_from_being_told(tiny_model):
    batch = Batch(tiny_model, places=2)
    deaf, other = Asked(tiny_model, [5], max_new_tokens=50), Asked(tiny_model, [6], max_new_tokens=50)
    deaf.request.send = lambda piece: 1 / 0
    batch.waiting.extend([deaf.request, other.request])
    batch.fail(RuntimeError("over"))
    assert str(other.error) == "over" and not batch.busy


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_property_whatever_ends_the_thread_nobody_waits_for_it(tiny_model, scheduler, monkeypatch):
    server, gate = scheduler(places=1), threading.Event()
    server.call(lambda: gate.wait(20))
    many, called = [Asked(tiny_model, [5], max_new_tokens=9) for _ in range(3)], server.call(int)
    for asked in many:
        server.submit(asked.request)

    def end(batch):
        raise SystemExit                                            # no Exception, so that `_advance` passes it on
    monkeypatch.setattr(Batch, "advance", end)
    gate.set()
    assert all(asked.done.wait(20) and "about to end" in str(asked.error) for asked in many)
    assert called.exception(20) is None or "about to end" in str(called.exception())
    with pytest.raises(RuntimeError, match="about to end"):
        server.submit(Asked(tiny_model, [5]).request)


@torch.inference_mode()
def test_property_who_hangs_up_while_a_turn_is_given_moves_nobody(tiny_model, monkeypatch):
    """`cancel` comes from another thread: here at the worst moment, between a look at the queue and a move in it."""
    server = Scheduler(places=2)                                    # driven by hand
    first, gone, big = (Asked(tiny_model, [5 + n], n=n, max_new_tokens=9) for n in (1, 1, 2))
    server.submit(first.request)
    (batch,) = server._batches.values()
    batch.advance()
    for asked in (gone, big):
        server.submit(asked.request)
    outgrows, cancelling = batch._outgrows, threading.Thread(target=server.cancel, args=(gone.request,))

    def look(request):
        if request is gone.request and not cancelling.ident:
            cancelling.start()
            cancelling.join(0.05)                                   # it has to wait, or is done before the move
        return outgrows(request)
    monkeypatch.setattr(batch, "_outgrows", look)
    assert batch._next() == [gone.request] and list(batch.waiting) == [big.request]     # there is no place for two more
    cancelling.join(20)
    assert gone.request.cancelled and not cancelling.is_alive()


def test_property_logits_that_are_not_finite_end_one_row_alone(tiny_model):
    batch = Batch(tiny_model, places=3)
    sick, well = Asked(tiny_model, [5], n=2, max_new_tokens=5), Asked(tiny_model, [6], max_new_tokens=5)
    batch.waiting.extend([sick.request, well.request])
    with torch.inference_mode():
        batch.advance()
        batch.logits[0] = float("nan")
        before = len(sick.pieces)
        drive(batch, {})
    assert "not finite" in str(sick.error) and len(sick.pieces) == before       # no text of a request that has failed
    assert well.texts() == well.alone()


def test_property_closing_tells_everybody(tiny_model, scheduler):
    server = scheduler(places=1)
    many = [Asked(tiny_model, [5], max_new_tokens=120) for _ in range(3)]
    for asked in many:
        server.submit(asked.request)
    while not many[0].pieces:
        time.sleep(0.001)
    server.close()
    assert all(asked.done.is_set() for asked in many)
    with pytest.raises(RuntimeError, match="about to end"):
        server.submit(Asked(tiny_model, [5]).request)


def test_property_the_scheduler_needs_no_web_framework(program, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, llama.serve.scheduler\nsys.exit('fastapi' in sys.modules)", encoding="utf-8")
    program(script, cwd=tmp_path)


def test_worked_example_pieces_add_up_and_the_last_says_why(tiny_model, scheduler):
    asked = Asked(tiny_model, [5, 6, 7], max_new_tokens=8)
    scheduler().submit(asked.request)
    (text,) = asked.texts()
    *before, last = asked.pieces
    assert not any(piece.finish_reason for piece in before) and last.finish_reason == "length" and last.tokens == 8
    assert isinstance(last, Piece) and text == asked.alone()[0]
