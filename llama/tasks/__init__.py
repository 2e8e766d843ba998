"""Examples become ids, and ids say which rows of the output count and how they are scored. One capability a file.

    task.py         what all tasks share: Sample, Batch, Totals, Task
    generation.py   text: every token is learned, in blocks
    instruction.py  conversations: what the assistant says is learned
    preference.py   two answers to a conversation: the chosen one is to become likelier than the rejected one
    pairs.py        a text for a text: summaries, translations
    labelled.py     what tasks with a head of labels share: Labelled, LabelledTask, windows
    classification.py      a label for a text, or several: sentiment, topics
    opinion.py             the same for texts with dates: which share holds which opinion, and how that changes
    tagging.py             a tag for every token: entities, words; viterbi.py, the best legal row
    question_answering.py  the piece of a text that answers a question, or none
    multiple_choice.py     which option is right: a measure, scored by subject, with error bars
    task_of.py      which of those with labels a model was tuned for

Try: write a task whose `encode` learns every second token; with `show_sample` of inspect_samples.py look at what it
learns.
"""
