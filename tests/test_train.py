import json

import train

SIZES = ["--hidden-size", "32", "--intermediate-size", "64", "--num-hidden-layers", "1", "--num-attention-heads", "2",
         "--num-key-value-heads", "1", "--block-size", "32", "--vocab-size", "270", "--device", "cpu"]


def test_worked_example_the_end_of_the_only_document_is_held_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("The dog sleeps. " * 200, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["train.py", "--data", "a.txt", "--hold-out", "0.2", "--output", "out",
                                     "--max-steps", "1", *SIZES])
    train.main()
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[-1])["eval"]["loss"] > 0
    assert "the end of the last document is held out: 640 characters" in out.err
