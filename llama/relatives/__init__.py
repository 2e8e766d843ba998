"""Llama's relatives, in the same style: GPT-3's block, T5's encoder and decoder, a mixture of experts.

    language_model.py       what trainer, generation, tasks and swaps ask of a model, and of its config
    gpt.py                  GPT-2 and GPT-3 (arXiv:2005.14165)
    t5.py                   T5 and T5 v1.1 (arXiv:1910.10683)
    text_to_text.py         how a model with an encoder reads prompts and writes
    families.py             every model by its preset's name, or by the model_type of its config.json
    mixture_of_experts.py   in the place of a Llama's MLP, from outside
    ablation.py             what each of Llama's changes is worth: python -m llama.relatives.ablation
"""
