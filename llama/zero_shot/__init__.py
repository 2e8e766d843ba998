"""Tasks without training: a language model is asked, and can answer nothing but what the task allows.

    zero_shot.py             ZeroShot: a task, examples if there are any, and what to say to the model
    prompting.py             what all questions share: a prompt with its examples
    label_scoring.py         classification, sentiment, opinion: each label scored by its likelihood
    extraction.py            question answering, entities, words of Chinese texts: pieces copied from the text
    multiple_choice.py       which option of a question: letters or texts scored by their likelihood
    constrained_decoding.py  which ids may come next, so that what is written stays a piece of a text

Summaries, translations and instructions are asked for as the tuned task asks (llama/tasks/pairs.py).

Try: leave the reader out where label_scoring.py calls `loglikelihood`; tests/test_zero_shot.py
(test_property_what_prompts_have_in_common_is_read_once) fails: every text would pay for all the examples again.
"""
