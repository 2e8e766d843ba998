"""Scores, each written from its definition. They compare what is right with what was predicted, and know no model.

    counts.py           correct, predicted, right: precision, recall, F1 of whatever is counted
    classification.py   one label a text, or several: accuracy, macro and micro F1, confusion matrix
    calibration.py      whether 80 % sure means right in 8 of 10
    spans.py            entities of tagged sentences (conlleval), words of segmented ones
    answers.py          exact match and F1 of answers, as SQuAD and CMRC define them
    overlap.py          generated texts: ROUGE-1, ROUGE-2, ROUGE-L, chrF, BLEU
    intervals.py        how far a share may be off by chance
    language.py         Chinese or not: which definition of a word and of a match

Shares are from 0 to 1; chrF and BLEU are from 0 to 100, as they are printed everywhere. `make parity` compares all of
them with independent implementations.
"""
