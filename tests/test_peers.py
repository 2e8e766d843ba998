import json
from pathlib import Path

import pytest

from llama import checkpoint
from llama.benchmark import peers
from llama.checkpoint import PretrainedLlama
from llama.config import preset
from weights.formats.sources import open_source


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, tie_word_embeddings=False))
    model.tokenizer = tiny_tokenizer
    checkpoint.save_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_two_ways_traffic_is_what_lies_in_the_file(folder, tmp_path):
    model = checkpoint.load_model(folder)
    matrices = sum(p.numel() for name, p in model.named_parameters() if "norm" not in name and "embed" not in name)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    for encoding, bits in (("F16", 16), ("Q8_0", 8.5)):
        file = peers.written_gguf(open_source(folder), tmp_path, encoding)
        found = peers.gguf_traffic(file, model.config)
        assert found["weights"] == matrices * bits / 8 + norms * 4
        assert found["cache"] == model.config.num_hidden_layers * model.config.num_key_value_heads * \
            model.config.head_dim * 4


def test_property_commands_name_scripts_and_files_that_exist(folder, tmp_path):
    commands = peers.peer_commands(folder, tmp_path, "python", context=64, threads=3)
    assert commands.keys() == {name for name in peers.PEERS if name != "llama.cpp Q4_1 as fetched"}
    for name, command in commands.items():
        settings = json.loads(command[-1])
        assert Path(command[2]).is_file() and Path(command[3]).is_file() and settings["threads"] == 3
        assert bool(peers.gguf_of(command)) == name.startswith("llama.cpp")
        assert Path(settings.get("file") or settings["folder"]).exists()


def test_property_only_folders_of_hugging_face_go_to_transformers(folder, tmp_path):
    file = peers.written_gguf(open_source(folder), tmp_path, "F16")
    commands = peers.peer_commands(file, tmp_path, "python", context=64, threads=1)
    assert commands and not any(name.startswith("transformers") for name in commands)


def test_refusal_of_a_missing_interpreter(tmp_path):
    with pytest.raises(ValueError, match="--peers: there is no .*nowhere/python; make parity makes it"):
        peers.peers_python(str(tmp_path / "nowhere" / "python"))


def test_worked_example_chosen_peers():
    assert peers.chosen_peers("llama.cpp Q8_0, transformers float32") == ["llama.cpp Q8_0", "transformers float32"]
    assert peers.chosen_peers("") == list(peers.PEERS)
    with pytest.raises(ValueError, match="--against llama.cpp: there is no llama.cpp; there are transformers float32"):
        peers.chosen_peers("llama.cpp")
