"""Two processes on this machine's CPU, started as users start them, against one: tests/together.py is what they run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama.checkpoint import load_model
from llama.lora import load_adapter
from llama.runtime import distributed
from llama.runtime.room import is_out_of_memory
from llama.trainer import Trainer
from llama.training.fsdp import cpu_can_shard, meta_copy, shard
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from tests import together

HOME = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "localhost:0", str(HOME / "tests" / "together.py")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def ended(folder):
    """The one launch of all these tests: starting three processes takes longer than what they do."""
    return subprocess.run([*TORCHRUN, str(folder)], env=ENVIRONMENT, capture_output=True, encoding="utf-8",
                          timeout=120)


@pytest.fixture(scope="module")
def two(folder, ended):
    """Of each rank what it has found."""
    assert (folder / "rank-1.pt").exists(), ended.stderr
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one():
    return together.alone()


CASES = ["full ddp", "full ddp, accumulated", "full fsdp", "lora ddp", "lora fsdp, checkpointed", "labels ddp",
         "labels fsdp", "pairs ddp", "pairs fsdp", "pissa fsdp", "int8 ddp", "attacked ddp", "attacked fsdp",
         "full fsdp, resumed", "lora ddp, resumed"]
shards = pytest.mark.skipif(not cpu_can_shard(), reason="this torch does not shard on CPUs (docs/compat.md)")


@pytest.mark.parametrize("case", [pytest.param(case, marks=shards) if "fsdp" in case else case for case in CASES])
def test_two_ways_gradients_and_ten_steps_equal_one_process(case, one, two):
    """Of 7 samples the second step of each epoch sees one, and a process has none."""
    expected, found = one[case.split()[0]], two[0][case]
    if "resumed" not in case:                                       # whose first gradients are those of step 6
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    assert found["norms"] == pytest.approx(expected["norms"][-len(found["norms"]) :], rel=1e-3)
    assert found["trained"].keys() == expected["trained"].keys()
    for name, weight in expected["trained"].items():
        torch.testing.assert_close(found["trained"][name], weight, rtol=1e-3, atol=2e-5)
    for score, value in expected["train"]["eval"].items():
        assert found["train"]["eval"][score] == pytest.approx(value, rel=1e-4)
    assert found["eval"] == pytest.approx(expected["eval"], rel=1e-4)
    assert found["train"]["train"]["loss"] == pytest.approx(expected["train"]["train"]["loss"], rel=1e-4)
    assert found["train"]["train"]["tokens"] == expected["train"]["train"]["tokens"]


def test_two_ways_answers_are_drawn_and_learned_as_by_one_process(one, two):
    expected = one["grpo"]
    assert len(set(expected["rewards"])) == 2
    for rank in two:
        assert rank["grpo"]["rewards"] == pytest.approx(expected["rewards"])
        for name, tensor in expected["learned"].items():
            torch.testing.assert_close(rank["grpo"]["learned"][name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=shards)])
def test_two_ways_bfloat16_over_float32_masters_or_shards(parallel, one, two):
    expected, found = one["bfloat16"], two[0][f"bfloat16 {parallel}"]
    assert found["norms"] == pytest.approx(expected["norms"], rel=0.1)
    assert found["eval"]["loss"] == pytest.approx(expected["eval"]["loss"], rel=2**-8)    # bfloat16's own
    assert all(weight.dtype == torch.float32 for weight in found["trained"].values())


@shards
def test_property_all_ranks_know_the_scores_and_rank_0_has_the_whole_model(two):
    for case in CASES:
        assert two[0][case]["eval"] == two[1][case]["eval"]
        assert bool(two[1][case]["trained"]) == ("fsdp" not in case)


@shards
def test_property_rotary_tables_stay_exact(two):
    assert two[0]["bfloat16 fsdp"]["rotary"] == torch.float32


def test_property_each_rank_drops_others_and_the_same_again(two):
    assert [rank["full ddp"]["seed"] for rank in two] == [0, 1]


@shards
def test_two_ways_what_rank_0_wrote_is_what_was_trained(folder, two):
    loaded = dict(load_model(folder / "full").named_parameters())
    assert all(torch.equal(loaded[name], weight) for name, weight in two[0]["full fsdp"]["trained"].items())
    model = together.fresh("full")
    load_adapter(model, folder / "lora")
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], weight) for name, weight in two[0]["lora ddp"]["trained"].items())
    metrics = (folder / "full.training" / "metrics.jsonl").read_text(encoding="utf-8")
    assert metrics.count('"loss"') == 12                            # ten steps, once, and evaluations before and after


def test_property_all_stop_after_the_same_step_when_one_is_interrupted(folder, two):
    assert {rank["interrupted"]["stopped"] for rank in two} == {"KeyboardInterrupt after step 3: "}
    assert torch.load(folder / "interrupted.training" / "last-3.pt")["step"] == 3


@shards
def test_property_a_shard_that_is_damaged_on_one_rank_sets_all_back_to_the_state_before(two):
    assert {len(rank["full fsdp, resumed"]["norms"]) for rank in two} == {7}
    assert {len(rank["lora ddp, resumed"]["norms"]) for rank in two} == {5}


@shards
def test_refusal_a_loss_that_is_not_finite_on_one_rank_stops_all(folder, two):
    for rank in two:
        assert rank["burst"]["stopped"].startswith("RuntimeError after step 3: step 4: the loss is nan")
        assert "; it began in the head or the loss, on finite states (the state" in rank["burst"]["stopped"]
    state = torch.load(folder / "burst.training" / "last-3.pt")
    assert state["step"] == 3 and len(list((folder / "burst.training" / "last-3").iterdir())) == 2


@shards
def test_two_ways_all_skip_the_step_that_is_not_finite_on_one_rank(two):
    for run in ("skipped ddp", "skipped fsdp"):
        assert all(rank[run]["train"]["train"]["skipped"] == 1 and len(rank[run]["norms"]) == 9 for rank in two)
        assert all(tensor.isfinite().all() for tensor in two[0][run]["trained"].values())


def test_refusal_a_failing_rank_ends_all_with_its_own_sentence(ended):
    assert ended.returncode == 1
    assert "rank 1: together.py: data/gone.txt: No such file or directory\n" in ended.stderr
    assert "exitcode  : 2" in ended.stderr


def test_refusal_devices_that_processes_cannot_share_and_shards_of_one_process(tiny_model, monkeypatch):
    with pytest.raises(ValueError, match=r"--parallel fsdp shards a model over processes.*torchrun"):
        Trainer(tiny_model, together.InstructionTask(chat_format="chatml"), together.TALK,
                config=TrainConfig(parallel="fsdp"))
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match="processes of torchrun cannot meet on mps; give --device cpu"):
        distributed.init_process_group(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="this machine has 1 GPUs and torchrun started a process for number 2"):
        distributed.init_process_group(torch.device("cuda"))


def test_refusal_shards_on_cpus_where_torch_cannot_do_it(tiny_model, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: True)
    monkeypatch.setattr(torch.cpu, "Stream", object)                # as it is in torch 2.6
    with pytest.raises(ValueError, match=f"--parallel fsdp on CPUs needs torch 2.7, .* {re.escape(torch.__version__)}"):
        shard(Plain(tiny_model, together.InstructionTask(chat_format="chatml")), dtype=None)


def test_property_alone_nothing_is_shared():
    assert distributed.shard([1, 2, 3]) == [1, 2, 3] and distributed.longest_shard([1, 2, 3]) == 3
    assert distributed.all_reduce_sum(1.5, 2) == [1.5, 2] == distributed.all_reduce_max(1.5, 2)
    assert distributed.broadcast("x") == "x" and distributed.all_gather("x") == ["x"] and distributed.is_rank0()
    assert distributed.init_process_group(torch.device("mps")).type == "mps"


def test_property_shares_are_disjoint_whole_and_even(monkeypatch):
    for count in range(9):
        shares = []
        for rank in range(3):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "size", lambda: 3)
            shares.append(distributed.shard(range(count)))
        assert sorted(i for share in shares for i in share) == list(range(count))
        assert max(map(len, shares)) == distributed.longest_shard(range(count)) <= min(map(len, shares)) + 1


def test_property_an_outline_has_names_ties_and_no_numbers(tiny_model):
    copy = meta_copy(tiny_model)
    assert {n: p.shape for n, p in copy.named_parameters()} == {n: p.shape for n, p in tiny_model.named_parameters()}
    assert all(p.is_meta for p in copy.parameters()) and copy.tokenizer is tiny_model.tokenizer
    assert copy.lm_head.weight is copy.embed_tokens.weight


def test_worked_example_what_a_lost_neighbour_says(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    assert distributed.lost(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]"))
    assert not distributed.lost(RuntimeError("shapes do not match")) and is_out_of_memory(MemoryError())
