"""Every fast version in a table: its definition, where it runs, the test that holds both equal, how to switch it off.

docs/fast.md shows this table; tests/test_fast_table.py holds the two equal, and looks for every name in its file.

Try: add a fast version without a row here; tests/test_fast_table.py fails.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """Places are «file: name» below llama/; `runs` says where it takes the definition's place by itself."""

    definition: str
    fast: str
    runs: str
    test: str
    off: str


READABLE = "`--readable`, `llama.readable(model)`, `Trainer(readable=True)`"
TABLE = (
    Row("model.py: naive_attention", "model.py: attention", "everywhere, by torch's own kernel",
        "test_model.py: test_two_ways_fused_attention_equals_its_definition", READABLE),
    Row("model.py: Block", "fast/fused_block.py: FusedBlock", "where text is written on a CPU, without a step",
        "test_fused_block.py: test_two_ways_fused_equals_readable", READABLE),
    Row("model.py: MLP", "fast/fused_linear.py: PrepackedSwiGLU", "in a FusedBlock in bfloat16, where oneDNN packs it",
        "test_fused_block.py: test_two_ways_packed_equals_readable_and_back", READABLE),
    Row("model.py: RMSNorm", "fast/custom_autograd.py: FusedRMSNorm", "in training on a CPU",
        "test_custom_autograd.py: test_two_ways_gradients_equal_autograd", READABLE),
    Row("model.py: Attention", "fast/custom_autograd.py: FusedAttention", "in training on a CPU, without a window",
        "test_custom_autograd.py: test_two_ways_documents_equal_their_mask", READABLE),
    Row("model.py: MLP", "fast/custom_autograd.py: FusedMLP", "in training on a CPU",
        "test_custom_autograd.py: test_two_ways_gradients_equal_autograd", READABLE),
    Row("lora/layers.py: LoRALinear", "fast/custom_autograd.py: FusedLoRALinear",
        "in training on a CPU, over frozen weights, without dropout",
        "test_custom_autograd.py: test_two_ways_every_kind_of_adapter_and_mask", READABLE),
    Row("training/objective.py: chunked_cross_entropy", "fast/fused_cross_entropy.py: fused_linear_cross_entropy",
        "in training, where the loss is that of the next token",
        "test_fused_cross_entropy.py: test_two_ways_loss_and_gradients_equal_autograd", READABLE),
    Row("model.py: Llama", "fast/compiled_step.py: CompiledStep", "where text is written on a CPU, with a C++ compiler",
        "test_compiled_step.py: test_two_ways_step_equals_model", "`--compile off`, " + READABLE),
    Row("model.py: Block", "fast/compile_blocks.py: compile_blocks", "with `finetune.py --compile`, by torch.compile",
        "test_compile_blocks.py: test_property_other_lengths_need_no_other_code", "leave `--compile` out"),
)


def markdown() -> str:
    """The table as docs/fast.md shows it."""
    head = ("definition", "fast version", "where it runs", "test", "how to switch it off")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *TABLE))
