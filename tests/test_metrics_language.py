from llama.metrics.language import is_chinese


def test_worked_example_signs_and_figures_do_not_count():
    assert is_chinese(["我 12345678, (--) !"]) and not is_chinese(["Llama 我"]) and not is_chinese(["", "12"])


def test_property_texts_are_weighed_by_their_letters():
    assert is_chinese(["ok", "今天天气很好"]) and not is_chinese(["the quick brown fox", "今天"])
