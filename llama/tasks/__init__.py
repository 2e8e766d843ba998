"""Examples become ids, and ids say which rows of the output count and how they are scored. One capability a file.

    task.py         what all tasks share: Sample, Batch, Totals, Task
    generation.py   text: every token is learned, in blocks
    instruction.py  conversations: what the assistant says is learned

Try: write a task whose `encode` learns every second token; with `show_sample` of inspect.py look at what it learns.
"""
